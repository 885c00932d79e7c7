"""How much to trust each teacher, row by row (arXiv:2011.04106, section 3: the teacher gating network).

    alpha = softmax(A x + b)        z_E = scale * sum_i s_i alpha_i z_i + bias        s_i = 1 but for stacking

What A may be is the gate's form; x holds the teachers' logits z [M], and for `hints` their hidden layers behind them:

    average       A = 0, b = 0: every teacher alike
    static        A = 0: one weight a teacher, for every row the same
    per_teacher   A diagonal: w_i z_i + b_i, our reading of the paper's {w_i, b_i}; its softmax's argument is not known
    full          A [M, M]: each weight sees every logit
    hints         A [M, M + H_1 + ... + H_M]: each weight sees every logit and every hidden layer
    stacking      no softmax: z_E = sum_i a_i z_i + c, logistic regression on the logits (Wolpert 1992, Stacked
                  generalization). Kept in the same numbers: alpha_i = |a_i| / sum_j |a_j|, s_i = sign a_i

Four rules, each measured (a gate trained otherwise was worse than the plain average):

- it starts at zero, where alpha is 1/M and the ensemble is the average;
- it learns from its own cross-entropy with clicks on rows the teachers did not train on (validation part B), never
  from the distillation loss, which would have it choose the teacher that is lowest where clicks are rare, or easiest to
  imitate. `learns_on: train` is what the paper probably did, `learns_by` what a gate would that the student's gradient
  reaches: both for comparison;
- its numbers have a prior (`PRIOR_SD`), or a gate that switches runs off to where float32 stops agreeing with itself;
- it is kept only where it beats the average on other rows again (part C). Either way scale and bias are fitted on B.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from training.distillation.calibrate import fit_platt

PRIOR_SD = 1.0
"""Of each number of A and b around its start: a teacher's say changes by a factor e for a logit or for being itself."""

Form = Literal["average", "static", "per_teacher", "full", "hints", "stacking"]

LEARNING_NUMBERS = 100_000_000
"""A gate learns in one batch of at most so many inputs; of more rows it takes every second, third, ..."""


class GateOptions(BaseModel):
    """Which gate, and what it learns from."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    form: Form = "per_teacher"
    """What the weights of the teachers depend on."""
    learns_on: Literal["held_out", "train"] = "held_out"
    """Rows that a gate over finished teachers learns from: validation part B, or the rows that its teachers learned
    from. A co-trained gate learns with its teachers, on training rows."""
    learns_by: Literal["clicks", "distillation", "divergence"] = "clicks"
    """What its weights make small: cross-entropy with clicks; or, as a gate would that the student's gradient reaches,
    the distillation loss, or that less the ensemble's entropy, of a student that learned from the average. The last two
    are there to be compared with (docs/training.md)."""
    fallback: bool = True
    """The average takes its place where the gate does not beat it on part C."""
    hints_l2: float = Field(default=0.1, ge=0)
    """Of the form `hints`: added to its loss, this times half the squared A, of inputs brought to a spread of 1."""

    @model_validator(mode="after")
    def _something_is_learned(self) -> GateOptions:
        if self.learns_by != "clicks" and self.form in ("average", "stacking"):
            raise ValueError(
                f"learns_by {self.learns_by}: expected a softmax with weights to learn, got form {self.form}; "
                "say form: per_teacher"
            )
        return self


@dataclass(frozen=True)
class Gate:
    """A fitted gate over M teachers with X inputs. The average is the gate whose A and b are zero."""

    form: Form
    matrix: tuple[tuple[float, ...], ...]
    """A, [M, X]."""
    biases: tuple[float, ...]
    """b, one a teacher."""
    signs: tuple[float, ...]
    """s, 1 or -1."""
    scale: float
    bias: float
    chosen: Literal["gate", "average"]
    scale_of_some: tuple[float, float] | None = None
    """Scale and bias where only some teachers have a say, as in labels out of sample: a mean of fewer spreads wider."""

    @property
    def teachers(self) -> int:
        """M."""
        return len(self.biases)

    @property
    def takes_hints(self) -> bool:
        """Whether the inputs are more than the teachers' logits."""
        return len(self.matrix[0]) > self.teachers

    def gate_weights(
        self, teacher_logits: ArrayLike, hints: Sequence[ArrayLike] = (), unseen: NDArray[np.bool_] | None = None
    ) -> NDArray[np.float64]:
        """alpha: logits [n, M], and [n, H_i] a teacher where the gate takes hints, to [n, M], each row summing to 1.

        With `unseen` [n, M], only those teachers of a row have a weight.
        """
        inputs = [np.asarray(teacher_logits, dtype=np.float64)]
        if self.takes_hints:
            inputs += [np.asarray(hint, dtype=np.float64) for hint in hints]
        score = np.concatenate(inputs, axis=1) @ np.array(self.matrix).T + np.array(self.biases)
        if unseen is not None:
            score = np.where(unseen, score, -np.inf)
        score -= score.max(axis=1, keepdims=True)
        unscaled = np.exp(score)
        return np.asarray(unscaled / unscaled.sum(axis=1, keepdims=True))

    def ensemble_logit(
        self, teacher_logits: ArrayLike, hints: Sequence[ArrayLike] = (), unseen: NDArray[np.bool_] | None = None
    ) -> NDArray[np.float64]:
        """z_E: [n, M] -> [n]."""
        z = np.asarray(teacher_logits, dtype=np.float64)
        weighted = self.gate_weights(z, hints, unseen) * np.array(self.signs) * z
        scale, bias = self.scales(unseen)
        return np.asarray(scale * weighted.sum(axis=1) + bias)

    def scales(
        self, unseen: NDArray[np.bool_] | None = None
    ) -> tuple[float | NDArray[np.float64], float | NDArray[np.float64]]:
        """Scale and bias: of every row, or with `unseen` [n, M] of each, [n]."""
        if unseen is None or self.scale_of_some is None:
            return self.scale, self.bias
        by_all = unseen.all(axis=1)
        scale, bias = self.scale_of_some
        return np.where(by_all, self.scale, scale), np.where(by_all, self.bias, bias)

    def rescaled(self, scale: float, bias: float) -> Gate:
        """The gate whose logit is scale * z_E + bias."""
        return replace(self, scale=scale * self.scale, bias=scale * self.bias + bias)

    def to_json(self) -> dict[str, Any]:
        """Plain values, for `from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Gate:
        """What `to_json` gave."""
        tuples = {name: tuple(values[name]) for name in ("biases", "signs")}
        if values.get("scale_of_some") is not None:
            tuples["scale_of_some"] = tuple(values["scale_of_some"])
        return cls(**values | tuples | {"matrix": tuple(tuple(row) for row in values["matrix"])})


@dataclass(frozen=True)
class GateResult:
    """The gate to use, the average, and the evidence: cross-entropy of both on rows B and C."""

    gate: Gate
    average: Gate
    evidence: dict[str, float]


class GateModule(nn.Module):
    """A fitted gate in torch, as it is exported in the ensemble's graph."""

    signs: Tensor | None

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.tensor(gate.matrix, dtype=torch.float32))
        self.biases = nn.Parameter(torch.tensor(gate.biases, dtype=torch.float32))
        self.scale = nn.Parameter(torch.tensor(gate.scale, dtype=torch.float32))
        self.bias = nn.Parameter(torch.tensor(gate.bias, dtype=torch.float32))
        has_signs = min(gate.signs) < 0
        self.register_buffer("signs", torch.tensor(gate.signs, dtype=torch.float32) if has_signs else None)

    def forward(self, teacher_logits: Tensor, inputs: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """[N, M] -> ensemble_logit [N] and gate_weights [N, M]; `inputs` [N, X] are x, by default the logits."""
        x = teacher_logits if inputs is None else inputs
        alpha = torch.softmax(functional.linear(x, self.matrix, self.biases), dim=1)
        weights = alpha if self.signs is None else alpha * self.signs
        return self.scale * (weights * teacher_logits).sum(dim=1) + self.bias, alpha


class LearningGate(nn.Module):
    """A gate whose numbers are still to be found: zero at first, where it is the average. Every form but stacking.

    It has no scale and no bias: those come after, from rows that no teacher trained on.
    """

    def __init__(self, form: Form, teachers: int, inputs: int) -> None:
        super().__init__()
        if form == "stacking":
            raise ValueError("expected a gate that is a softmax, got stacking")
        shapes: dict[str, tuple[int, ...]] = {
            "per_teacher": (teachers,),
            "full": (teachers, teachers),
            "hints": (teachers, inputs),
        }
        self.form: Form = form
        self.teachers = teachers
        self.weights = nn.Parameter(torch.zeros(shapes[form])) if form in shapes else None
        self.biases = nn.Parameter(torch.zeros(teachers)) if form != "average" else None

    def forward(
        self, teacher_logits: Tensor, inputs: Tensor | None = None, unseen: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """[N, M] -> ensemble_logit [N] and gate_weights [N, M]; `inputs` [N, X] are x, by default the logits."""
        score = torch.zeros_like(teacher_logits)
        if self.weights is not None:
            x = teacher_logits if inputs is None else inputs
            score = x * self.weights if self.form == "per_teacher" else functional.linear(x, self.weights)
        if self.biases is not None:
            score = score + self.biases
        if unseen is not None:
            score = score.masked_fill(~unseen, -torch.inf)
        alpha = torch.softmax(score, dim=1)
        return (alpha * teacher_logits).sum(dim=1), alpha

    def found(self) -> Gate:
        """What it has learned so far."""
        if self.biases is None:
            return average_of(self.teachers)
        biases = self.biases.detach() - self.biases.detach().mean()  # softmax does not see a common shift
        matrix = torch.zeros(self.teachers, self.teachers)
        if self.weights is not None:
            weights = self.weights.detach()
            matrix = torch.diag(weights) if self.form == "per_teacher" else weights
        return Gate(self.form, _rows(matrix), tuple(biases.tolist()), _ones(self.teachers), 1.0, 0.0, "gate")


def average_of(teachers: int) -> Gate:
    """The plain average of so many teachers, unscaled."""
    nothing = (0.0,) * teachers
    return Gate("average", (nothing,) * teachers, nothing, _ones(teachers), 1.0, 0.0, "average")


def fit_gate(
    teacher_logits: NDArray[np.floating],
    label: NDArray[np.floating],
    *,
    rows_b: NDArray[np.integer],
    rows_c: NDArray[np.integer],
    options: GateOptions | None = None,
    hints: Sequence[NDArray[np.floating]] = (),
    rows_train: NDArray[np.integer] | None = None,
    unseen: NDArray[np.bool_] | None = None,
    learned: Gate | None = None,
    student_logit: NDArray[np.floating] | None = None,
    correction: float = 0.0,
) -> GateResult:
    """Learn on rows B, or on `rows_train` if the options say so; scale and bias on B; decide on C.

    `teacher_logits` [n, M] are of teachers that saw neither B nor C, `hints` [n, H_i] a teacher for the form that takes
    them; on training rows the gate weighs only teachers that are `unseen` [n, M] there. A gate that was `learned`
    together with its teachers is only scaled and decided on; one that does not learn by clicks imitates the
    `student_logit` [n]. `correction` (`negatives.py`) is for logits on B and C;
    training rows are those that teachers saw, and need none.

    Where some training rows are new to only some teachers, what those say together has a scale and bias of its own,
    fitted on the clicks of such rows: none of the teachers that speak has learned from them.
    """
    options = options or GateOptions()
    learn_from = rows_b
    if options.learns_on == "train":
        if rows_train is None:
            raise ValueError("rows_train: expected the rows that the gate is to learn from, got none")
        learn_from = rows_train
    z_b, y_b = np.asarray(teacher_logits[rows_b], dtype=np.float64), np.asarray(label[rows_b])
    z_c, y_c = np.asarray(teacher_logits[rows_c], dtype=np.float64), np.asarray(label[rows_c])
    hints = hints if options.form == "hints" else ()
    if options.form == "hints" and len(hints) != teacher_logits.shape[1]:
        raise ValueError(f"hints: expected those of each of {teacher_logits.shape[1]} teachers, got {len(hints)}")
    hints_b, hints_c = [hint[rows_b] for hint in hints], [hint[rows_c] for hint in hints]

    average = _scaled(average_of(z_b.shape[1]), z_b, y_b, correction=correction)
    of_rows = correction if learn_from is rows_b else 0.0
    gate = learned or _learned(options, teacher_logits, label, hints, learn_from, unseen, of_rows, student_logit)
    gate = _scaled(gate, z_b, y_b, hints_b, correction=correction)
    evidence = {
        f"{name}_ce_{part}": cross_entropy(rival.ensemble_logit(z, v) + correction, y)
        for part, z, v, y in (("b", z_b, hints_b, y_b), ("c", z_c, hints_c, y_c))
        for name, rival in (("average", average), ("gate", gate))
    }
    is_kept = not options.fallback or evidence["gate_ce_c"] < evidence["average_ce_c"]
    kept = gate if is_kept else average
    if rows_train is not None and unseen is not None:
        kept = _scaled_of_some(kept, teacher_logits, label, hints if is_kept else (), rows_train, unseen)
    return GateResult(kept, average, evidence)


def cross_entropy(logit: ArrayLike, label: ArrayLike) -> float:
    """Mean cross-entropy of labels with the un-tempered sigmoid of a logit."""
    z = np.asarray(logit, dtype=np.float64)
    return float(np.mean(np.logaddexp(0, z) - np.asarray(label, dtype=np.float64) * z))


def _learned(
    options: GateOptions,
    teacher_logits: NDArray[np.floating],
    label: NDArray[np.floating],
    hints: Sequence[NDArray[np.floating]],
    rows: NDArray[np.integer],
    unseen: NDArray[np.bool_] | None,
    correction: float,
    student_logit: NDArray[np.floating] | None,
) -> Gate:
    """Minimise a loss of z_E with the prior on each number: few, so all rows are one batch (L-BFGS, float64)."""
    teachers, inputs = teacher_logits.shape[1], _inputs(teacher_logits, hints)
    rows = _one_batch(rows, inputs)
    z = torch.from_numpy(np.asarray(teacher_logits[rows], dtype=np.float64))
    y = torch.from_numpy(np.asarray(label[rows], dtype=np.float64))
    may_speak = None if unseen is None or options.learns_on == "held_out" else torch.from_numpy(unseen[rows])
    if options.form == "stacking":
        return _stacked(z, y, correction)

    if options.learns_by == "clicks":

        def loss_of(ensemble_logit: Tensor) -> Tensor:
            return _ce(ensemble_logit + correction, y)

    else:
        if student_logit is None:
            raise ValueError(
                f"student_logit: expected what a gate imitates that learns by {options.learns_by}, got none"
            )
        z_s = torch.from_numpy(np.asarray(student_logit[rows], dtype=np.float64))

        def loss_of(ensemble_logit: Tensor) -> Tensor:
            return _distance(ensemble_logit, z_s, less_entropy=options.learns_by == "divergence")

    gate = LearningGate(options.form, teachers, inputs).double()
    if gate.weights is None or not hints:
        _minimise(list(gate.parameters()), lambda: loss_of(gate(z, None, may_speak)[0]), len(y))
        return gate.found()

    weights = gate.weights
    x = torch.cat([z, *(torch.from_numpy(np.asarray(hint[rows], dtype=np.float64)) for hint in hints)], dim=1)
    mean, spread = x.mean(dim=0), x.std(dim=0).clamp(min=1e-6)
    x = (x - mean) / spread
    _minimise(
        list(gate.parameters()),
        lambda: loss_of(gate(z, x, may_speak)[0]) + 0.5 * options.hints_l2 * weights.square().sum(),
        len(y),
    )
    assert gate.biases is not None
    with torch.no_grad():  # back to inputs as the teachers give them
        weights.div_(spread)
        gate.biases.sub_(weights @ mean)
    return gate.found()


def _stacked(z: Tensor, y: Tensor, correction: float) -> Gate:
    """Logistic regression on the teachers' logits, started at their average."""
    teachers = z.shape[1]
    coefficients = nn.Parameter(torch.full((teachers,), 1 / teachers, dtype=torch.float64))
    constant = nn.Parameter(torch.zeros((), dtype=torch.float64))
    _minimise([coefficients, constant], lambda: _ce(z @ coefficients + constant + correction, y), len(y))
    sizes = coefficients.detach().abs().clamp(min=1e-12)
    scale = sizes.sum()
    return Gate(
        "stacking",
        _rows(torch.zeros(teachers, teachers)),
        tuple((sizes / scale).log().tolist()),
        tuple(1.0 if value >= 0 else -1.0 for value in coefficients.tolist()),
        float(scale),
        float(constant.detach()),
        "gate",
    )


def _minimise(parameters: list[nn.Parameter], mean_loss: Callable[[], Tensor], rows: int) -> None:
    """From where they stand, with a Gaussian prior of standard deviation `PRIOR_SD` around there on each number.

    Without, clicks of some parts can be fitted a little better by a gate that switches, and its numbers run off to
    thousands, where float32 no longer agrees with itself.
    """
    if not parameters:
        return
    starts = [parameter.detach().clone() for parameter in parameters]
    optimizer = torch.optim.LBFGS(parameters, max_iter=200, tolerance_grad=1e-7, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        squares = sum((now - start).square().sum() for now, start in zip(parameters, starts, strict=True))
        value = mean_loss() + squares / (2 * PRIOR_SD**2 * rows)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]


def _ce(logit: Tensor, label: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(logit, label)


def _distance(ensemble_logit: Tensor, student_logit: Tensor, *, less_entropy: bool) -> Tensor:
    """CE(sigmoid(z_E), sigmoid(z_S)) as a function of z_E; less the entropy of z_E it is KL."""
    p = torch.sigmoid(ensemble_logit)
    loss = (functional.softplus(student_logit) - p * student_logit).mean()
    entropy = (functional.softplus(ensemble_logit) - p * ensemble_logit).mean()
    return loss - entropy if less_entropy else loss


def _scaled(
    gate: Gate,
    z: NDArray[np.float64],
    y: NDArray[np.floating],
    hints: Sequence[NDArray[np.floating]] = (),
    *,
    correction: float,
) -> Gate:
    """The gate with the scale and bias that fit clicks best."""
    platt = fit_platt(gate.ensemble_logit(z, hints), y, correction=correction)
    return gate.rescaled(platt.scale, platt.bias)


def _scaled_of_some(
    gate: Gate,
    teacher_logits: NDArray[np.floating],
    label: NDArray[np.floating],
    hints: Sequence[NDArray[np.floating]],
    rows: NDArray[np.integer],
    unseen: NDArray[np.bool_],
) -> Gate:
    """The gate with the scale and bias that fit the clicks of training rows best which some teachers, not all, saw."""
    rows = rows[unseen[rows].any(axis=1) & ~unseen[rows].all(axis=1)]
    if len(rows) == 0:
        return gate
    rows = _one_batch(rows, _inputs(teacher_logits, hints))
    plain = replace(gate, scale=1.0, bias=0.0, scale_of_some=None)
    mixed = plain.ensemble_logit(teacher_logits[rows], [hint[rows] for hint in hints], unseen[rows])
    platt = fit_platt(mixed, label[rows])
    return replace(gate, scale_of_some=(platt.scale, platt.bias))


def _inputs(teacher_logits: NDArray[np.floating], hints: Sequence[NDArray[np.floating]]) -> int:
    inputs: int = teacher_logits.shape[1] + sum(hint.shape[1] for hint in hints)
    return inputs


def _one_batch(rows: NDArray[np.integer], inputs: int) -> NDArray[np.integer]:
    """Every row, or every second, third, ...: what is learned from in one batch."""
    return rows[:: 1 + len(rows) * inputs // LEARNING_NUMBERS]


def _rows(matrix: Tensor) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in matrix.tolist())


def _ones(teachers: int) -> tuple[float, ...]:
    return (1.0,) * teachers
