"""Teachers and student in one training run: the schemes `cotrain` and `mutual`.

cotrain (arXiv:2011.04106, section 3), with nothing held out from the teachers:

    teachers and gate    CE(y, sigmoid(z_E)) + teacher_weight * sum_i CE(y, sigmoid(z_i))        z_E = sum_i alpha_i z_i
    student              L_S of `distill.py` against z_E and the teachers' hidden layers, as they stand in that step

The student's loss reaches neither teachers nor gate. With a teacher_weight of 0 only z_E meets the labels, as in the
paper's figure.

mutual (EKTF, later KDEF; Li et al., arXiv:2411.16122), the strongest rival in one stage. Teachers and student are
peers i = 1..P; p_i = sigmoid(z_i), p_T = sigmoid(mean_i z_i), the ensemble as an abstract teacher; sg stops gradients:

    L = gamma mean_i CE(y, p_i) + beta (sum_i u_i |p_i - sg p_T|^2 + mean_i sum_{j != i} v_ij |p_i - sg p_j|^2)
    examination:   s_i = mean over the batch of 1 - |y - p_i|,  u = softmin_i s_i,  v_i. = softmax_{j != i} (s_j - s_i)

Theirs is gamma = beta, a `kd_weight` of .5. Departures: peers have embeddings of their own, as everywhere here; no
gradient flows through the examination's weights; labels are not flipped at random, as their code does on top.

When to stop. Teachers are judged by the ensemble's AUC on validation part A, and the best epoch's teachers are the
snapshot. A student's distillation loss against teachers that move cannot be compared between epochs, so every epoch's
student is measured against that one snapshot, again whenever it changes. Both have an epoch of their own, then, and a
refit runs as many as the later of the two, keeping teachers and student where they stood at theirs.

Everyone sees the same batches, so `batch_rows`, `max_epochs`, `patience`, `averaged_steps` and `schedule` are the
student's; learning rate and L2 are each network's own, the gate's are the student's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional

from training.data.encoded_log import EncodedLog, Part
from training.distillation.distill import (
    DistillOptions,
    EnsembleTargets,
    Imitation,
    Target,
    better_student,
    fine_tuned,
    measure_student,
    mixed_logit,
)
from training.distillation.gate import Form, Gate, GateModule, LearningGate
from training.fit.checkpoint import Checkpoint
from training.fit.divergence import Setting
from training.fit.loop import (
    SCORE_ROWS,
    FitOptions,
    FitResult,
    Learner,
    Loss,
    NetworkSpec,
    Progress,
    batches,
    copy_of_state,
    embedding_penalty,
    higher_auc,
    measure_clicks,
    rows_to_learn_from,
    run_epochs,
    seeded,
    setting_of,
)
from training.fit.negatives import EVERY_ROW, Negatives
from training.fit.warm import Start
from training.zoo import Encoded


class Pretrain(BaseModel):
    """Teachers first, then the student (`distill.py`)."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["pretrain"] = "pretrain"


class Cotrain(BaseModel):
    """Teachers, gate and student at once."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["cotrain"]
    teacher_weight: float = Field(default=1.0, ge=0)
    """Of each teacher's own cross-entropy, beside that of the ensemble. 0 is the paper's figure."""


class Mutual(BaseModel):
    """Teachers and student as peers that teach one another."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["mutual"]


@dataclass(frozen=True)
class TeacherSpec:
    """One teacher: which network, and its own learning rate and L2."""

    network: NetworkSpec
    options: FitOptions
    place: str = ""
    """Where it stands in the recipe, for advice."""


@dataclass(frozen=True)
class Epochs:
    """How many epochs each side trains in a refit."""

    teachers: int
    student: int


@dataclass(frozen=True)
class TogetherResult:
    """A fit for every network. `gate` has no scale and no bias yet; None where none was trained."""

    teachers: dict[str, FitResult]
    student: FitResult
    gate: Gate | None


@dataclass(frozen=True)
class Told:
    """What the teachers say of a batch."""

    logits: Tensor
    """[B, M]"""
    hints: tuple[Tensor, ...]
    """[B, H_i] a teacher, where anybody wants them."""
    ensemble_logit: Tensor
    """[B]"""
    gate_weights: Tensor
    """[B, M]"""


class Together(Learner):
    """Teachers and a student on the same batches; `network` is the student."""

    def __init__(
        self,
        log: EncodedLog,
        teachers: Mapping[str, TeacherSpec],
        student: NetworkSpec,
        options: DistillOptions,
        correction: float = 0.0,
    ) -> None:
        networks = [teacher.network.build(log.fields) for teacher in teachers.values()]
        super().__init__(student, student.build(log.fields), options, "student")
        self._teacher_settings = [
            setting_of(teacher.network, teacher.options, teacher.place) for teacher in teachers.values()
        ]
        self.teachers = nn.ModuleList(networks)
        self.teacher_options = [teacher.options for teacher in teachers.values()]
        self.options = options
        imitates_hints = "hint" in options.losses
        widths = [teacher.network.hint_width(log.fields) for teacher in teachers.values()] if imitates_hints else []
        without = [name for name, width in zip(teachers, widths, strict=False) if width is None]
        if without:
            raise ValueError(f"teachers {without}: expected networks with a hidden layer, got some that give no hint")
        self.imitation = Imitation(
            options,
            student.hint_width(log.fields) if options.needs_student_hint else None,
            [width for width in widths if width is not None],
            correction,
        )
        self.labels = log.labels
        """Clicks of rows, [B]."""

    def setting(self, figure: str) -> Setting:
        of_teachers, _, place = figure.rpartition("_")
        return self._teacher_settings[int(place)] if of_teachers == "teacher_loss" else super().setting(figure)

    @abstractmethod
    def ask(self, batch: Encoded) -> Told:
        """The teachers on a batch, and what the ensemble makes of them."""

    def found_gate(self) -> Gate | None:
        """The gate as learned so far; None where none is."""
        return None

    def target(self, told: Told) -> Target:
        """What the student is shown: without a gradient."""
        logit, weights = told.ensemble_logit.detach(), told.gate_weights.detach()
        if self.options.aggregate == "probabilities":
            logit = mixed_logit(told.logits.detach(), weights, self.options.temperature)
        return Target(logit, weights, tuple(hint.detach() for hint in told.hints))

    def penalty(self, batch: Encoded) -> Tensor | float:
        """L2 of every network's own option."""
        networks = zip([*self.teachers, self.network], [*self.teacher_options, self.options], strict=True)
        return sum(embedding_penalty(network, batch, options.embedding_l2) for network, options in networks)

    def parameter_groups(self) -> list[dict[str, Any]]:
        groups = [
            {"params": list(teacher.parameters()), "lr": options.learning_rate}
            for teacher, options in zip(self.teachers, self.teacher_options, strict=True)
        ]
        of_teachers = {id(weight) for weight in self.teachers.parameters()}
        rest = [weight for weight in self.parameters() if id(weight) not in of_teachers]
        return [*groups, {"params": rest, "lr": self.options.learning_rate}]

    def measure(self, log: EncodedLog, rows: NDArray[np.int64]) -> dict[str, float]:
        """The student as it stands, against the teachers as they stand."""
        return measure_student(log, self.network, self.imitation, rows, told_of(self, log, rows)[1])


class CoTraining(Together):
    """Teachers and gate learn from clicks, the student from clicks and from them."""

    def __init__(
        self,
        log: EncodedLog,
        teachers: Mapping[str, TeacherSpec],
        student: NetworkSpec,
        options: DistillOptions,
        *,
        scheme: Cotrain,
        form: Form,
        gate: nn.Module | None = None,
        correction: float = 0.0,
    ) -> None:
        super().__init__(log, teachers, student, options, correction)
        self.teacher_weight = scheme.teacher_weight
        self.gate_takes_hints = form == "hints"
        inputs = len(teachers)
        if self.gate_takes_hints:
            inputs += sum(teacher.network.hint_width(log.fields) or 0 for teacher in teachers.values())
        self.gate = gate if gate is not None else LearningGate(form, len(teachers), inputs)

    def ask(self, batch: Encoded) -> Told:
        answers_ = [teacher(batch) for teacher in self.teachers]
        logits = torch.stack([logit for logit, _ in answers_], dim=1)
        wants_hints = self.gate_takes_hints or self.imitation.hint is not None
        hints = tuple(hint for _, hint in answers_) if wants_hints else ()
        inputs = torch.cat([logits, *hints], dim=1) if self.gate_takes_hints else logits
        return Told(logits, hints, *self.gate(logits, inputs))

    def found_gate(self) -> Gate | None:
        return self.gate.found() if isinstance(self.gate, LearningGate) else None

    def loss(self, batch: Encoded, rows: NDArray[np.int64]) -> Loss:
        label = self.labels(rows)
        told = self.ask(batch)
        ensemble_loss = _ce(told.ensemble_logit, label)
        teacher_losses = torch.stack([_ce(logit, label) for logit in told.logits.unbind(dim=1)])
        logit, hint = self.network(batch)
        student_loss, shown = self.imitation(logit, hint, label, self.target(told))
        taught = ensemble_loss + self.teacher_weight * teacher_losses.sum()
        return Loss(
            taught + student_loss + self.penalty(batch),
            {"train_loss": student_loss, **shown, "ensemble_loss": ensemble_loss, **_by_teacher(teacher_losses)},
        )


class MutualLearning(Together):
    """Peers: every network learns from clicks, from the mean of all, and from each other by examination."""

    def ask(self, batch: Encoded) -> Told:
        logits = torch.stack([teacher(batch)[0] for teacher in self.teachers], dim=1)
        return Told(logits, (), logits.mean(dim=1), torch.full_like(logits, 1 / logits.shape[1]))

    def loss(self, batch: Encoded, rows: NDArray[np.int64]) -> Loss:
        label = self.labels(rows)
        told = self.ask(batch)
        logits = torch.cat([told.logits, self.network(batch)[0].unsqueeze(1)], dim=1)  # [B, P]
        task_losses = torch.stack([_ce(logit, label) for logit in logits.unbind(dim=1)])
        loss = mutual_loss(logits, label, self.options.kd_weight)
        return Loss(
            loss + self.penalty(batch),
            {"train_loss": task_losses[-1], "mutual_loss": loss, **_by_teacher(task_losses[:-1])},
        )


def mutual_loss(logits: Tensor, label: Tensor, kd_weight: float) -> Tensor:
    """L of `mutual` for the logits [B, P] of all peers, with beta = kd_weight and gamma = 1 - kd_weight."""
    peers = logits.shape[1]
    pctr = torch.sigmoid(logits)
    fixed = pctr.detach()
    score = (1 - (label.unsqueeze(1) - fixed).abs()).mean(dim=0)  # [P], who passes the examination how well
    task = functional.binary_cross_entropy_with_logits(logits, label.unsqueeze(1).expand_as(logits))

    teacher = torch.sigmoid(logits.mean(dim=1, keepdim=True)).detach()
    from_teacher = (pctr - teacher).square().mean(dim=0)  # [P]
    taught = (torch.softmax(-score, dim=0) * from_teacher).sum()

    apart = (pctr.unsqueeze(2) - fixed.unsqueeze(1)).square().mean(dim=0)  # [P, P]: i from j
    oneself = torch.eye(peers, dtype=torch.bool, device=logits.device)
    better = (score.unsqueeze(0) - score.unsqueeze(1)).masked_fill(oneself, -torch.inf)
    among_peers = (torch.softmax(better, dim=1) * apart).sum(dim=1).mean()
    return (1 - kd_weight) * task + kd_weight * (taught + among_peers)


def told_of(learner: Together, log: EncodedLog, rows: NDArray[np.int64]) -> tuple[NDArray[np.float32], EnsembleTargets]:
    """Each teacher's logits of `rows` [n, M], and what the ensemble says of them, frozen."""
    learner.eval()
    logits: list[Tensor] = []
    targets: list[Target] = []
    for piece in batches(rows, SCORE_ROWS):
        with torch.inference_mode():
            told = learner.ask(log.batch(piece))
            logits.append(told.logits)
            targets.append(learner.target(told))
    hints = zip(*(target.hints for target in targets), strict=True) if learner.imitation.hint is not None else ()
    weights = [target.gate_weights for target in targets if target.gate_weights is not None]
    return torch.cat(logits).cpu().numpy(), EnsembleTargets(
        torch.cat([target.logit for target in targets]).cpu().numpy(),
        torch.cat(weights).cpu().numpy(),
        tuple(torch.cat(pieces).cpu().numpy() for pieces in hints),
        rows=rows,
    )


class Keeper(ABC):
    """Which epoch's teachers and which epoch's student are kept; called after each epoch."""

    def __init__(self, learner: Together) -> None:
        self.learner = learner
        self.epochs = Epochs(0, 0)
        self.teacher_states: list[dict[str, Tensor]] = []
        self.student_state: dict[str, Tensor] = {}
        self.gate: Gate | None = None
        self.teacher_measures: list[list[dict[str, float]]] = []
        """[epoch][teacher]; nothing where nothing is measured."""
        self.student_measures: dict[int, dict[str, float]] = {}
        """By epoch."""
        self.watch: tuple[NDArray[np.int64], EnsembleTargets] | None = None
        """Rows to measure on, and what the kept teachers say of them."""

    def keep_teachers(self, epoch: int) -> None:
        """As they stand now."""
        self.epochs = Epochs(epoch, self.epochs.student)
        self.teacher_states = [copy_of_state(teacher) for teacher in self.learner.teachers]
        self.gate = self.learner.found_gate()

    @abstractmethod
    def __call__(self, row: dict[str, float]) -> bool:
        """Keep what is to be kept of this epoch; true ends training."""

    def state_dict(self) -> dict[str, Any]:
        return {
            "epochs": [self.epochs.teachers, self.epochs.student],
            "teacher_states": self.teacher_states,
            "student_state": self.student_state,
            "gate": self.gate and self.gate.to_json(),
            "teacher_measures": self.teacher_measures,
            "student_measures": self.student_measures,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epochs = Epochs(*state["epochs"])
        self.teacher_states, self.student_state = state["teacher_states"], state["student_state"]
        self.gate = state["gate"] and Gate.from_json(state["gate"])
        self.teacher_measures, self.student_measures = state["teacher_measures"], state["student_measures"]


class AtEpochs(Keeper):
    """Each side where a refit was told."""

    def __init__(self, learner: Together, epochs: Epochs) -> None:
        super().__init__(learner)
        self.told = epochs

    def __call__(self, row: dict[str, float]) -> bool:
        epoch = int(row["epoch"])
        if epoch == self.told.teachers:
            self.keep_teachers(epoch)
        if epoch == self.told.student:
            self.epochs = Epochs(self.epochs.teachers, epoch)
            self.student_state = copy_of_state(self.learner.network)
        self.teacher_measures.append([{} for _ in self.learner.teachers])
        return epoch >= max(self.told.teachers, self.told.student)


class Snapshots(Keeper):
    """The teachers of the ensemble's best AUC, and the student that is nearest to those.

    The students of all epochs are kept until training ends, because the answer may change with the teachers.
    """

    def __init__(self, learner: Together, log: EncodedLog, rows: NDArray[np.int64]) -> None:
        super().__init__(learner)
        self.log, self.rows, self.label = log, rows, log.label[rows]
        self.students: dict[int, tuple[dict[str, Tensor], dict[str, Tensor]]] = {}
        """By epoch: the network, and what is learned for its sake."""
        self._best: dict[str, float] = {}

    def __call__(self, row: dict[str, float]) -> bool:
        epoch, learner = int(row["epoch"]), self.learner
        self.students[epoch] = copy_of_state(learner.network), copy_of_state(learner.imitation)
        logits, targets = told_of(learner, self.log, self.rows)
        correction = learner.imitation.correction
        self.teacher_measures.append([measure_clicks(logit + correction, self.label) for logit in logits.T])
        ensemble = measure_clicks(targets.logit + correction, self.label)
        row |= {f"ensemble_{name}": value for name, value in ensemble.items()}
        if not self._best or higher_auc(ensemble, self._best):
            self.keep_teachers(epoch)
            self._best, self.watch, self.student_measures = ensemble, (self.rows, targets), {}
        self._measure_students()
        self._keep_student()
        return epoch - max(self.epochs.teachers, self.epochs.student) >= learner.options.patience

    def state_dict(self) -> dict[str, Any]:
        targets = None
        if self.watch is not None:
            said = self.watch[1]
            weights = None if said.gate_weights is None else torch.from_numpy(said.gate_weights)
            hints = [torch.from_numpy(hint) for hint in said.hints]
            targets = {"logit": torch.from_numpy(said.logit), "gate_weights": weights, "hints": hints}
        return super().state_dict() | {"students": self.students, "best": self._best, "targets": targets}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.students, self._best = state["students"], state["best"]
        if (said := state["targets"]) is not None:
            weights = None if said["gate_weights"] is None else said["gate_weights"].numpy()
            hints = tuple(hint.numpy() for hint in said["hints"])
            self.watch = self.rows, EnsembleTargets(said["logit"].numpy(), weights, hints, rows=self.rows)

    def _measure_students(self) -> None:
        """Those not yet measured against the snapshot: the last, or all after the snapshot has changed."""
        assert self.watch is not None
        network, imitation = self.learner.network, self.learner.imitation
        standing = copy_of_state(network), copy_of_state(imitation)
        for epoch, states in self.students.items():
            if epoch not in self.student_measures:
                network.load_state_dict(states[0])
                imitation.load_state_dict(states[1])
                self.student_measures[epoch] = measure_student(self.log, network, imitation, *self.watch)
        network.load_state_dict(standing[0])
        imitation.load_state_dict(standing[1])

    def _keep_student(self) -> None:
        better, best = better_student(self.learner.options), min(self.student_measures)
        for epoch, measured in self.student_measures.items():
            if better(measured, self.student_measures[best]):
                best = epoch
        self.epochs = Epochs(self.epochs.teachers, best)
        self.student_state = self.students[best][0]


def fit_together(
    log: EncodedLog,
    scheme: Cotrain | Mutual,
    teachers: Mapping[str, TeacherSpec],
    student: NetworkSpec,
    options: DistillOptions,
    *,
    form: Form,
    seed: int,
    train: Sequence[Part],
    valid: Sequence[Part] | None,
    epochs: Epochs | None = None,
    gate: Gate | None = None,
    negatives: Negatives = EVERY_ROW,
    starts: Mapping[str, Start] | None = None,
    progress: Progress | None = None,
    checkpoint: Checkpoint | None = None,
) -> TogetherResult:
    """Train all networks at once.

    With `valid`, which needs labels, each side keeps its own best epoch there. Without, runs `epochs`; a co-trained
    `gate` then stays as it was found, because what rests on it, scale, bias and calibration, is carried over too.
    `starts` are earlier fits that networks start from, by the teacher's name, or `student`.
    """
    if (valid is None) == (epochs is None):
        raise ValueError("expected either rows to stop by or numbers of epochs, not both and not neither")
    train_rows = rows_to_learn_from(log, train, negatives=negatives)
    with seeded(seed):
        learner = _learner(log, scheme, teachers, student, options, form, gate, negatives.correction)
        networks = dict(zip(teachers, learner.teachers, strict=True)) | {"student": learner.network}
        for name, start in (starts or {}).items():
            start.into(networks[name], log.fields)
        keeper: AtEpochs | Snapshots
        if valid is not None:
            keeper, most = Snapshots(learner, log, rows_to_learn_from(log, valid)), options.max_epochs
        else:
            assert epochs is not None
            keeper, most = AtEpochs(learner, epochs), max(epochs.teachers, epochs.student)
        history = run_epochs(
            log,
            learner,
            options,
            seed=seed,
            train_rows=train_rows,
            epochs=most,
            after_epoch=keeper,
            progress=progress,
            checkpoint=checkpoint,
        )
    fits = {}
    for place, (name, state) in enumerate(zip(teachers, keeper.teacher_states, strict=True)):
        rows = [
            {"epoch": row["epoch"], "train_loss": row[f"teacher_loss_{place}"]} | measured[place]
            for row, measured in zip(history, keeper.teacher_measures, strict=True)
        ]
        fits[name] = FitResult(state, keeper.epochs.teachers, rows)
    own = [
        {name: value for name, value in row.items() if not name.startswith("teacher_loss_")}
        | keeper.student_measures.get(int(row["epoch"]), {})
        for row in history
    ]
    result = FitResult(keeper.student_state, keeper.epochs.student, own)
    result = fine_tuned(
        log,
        student,
        options,
        result,
        seed=seed,
        train_rows=train_rows,
        watch=keeper.watch,
        correction=negatives.correction,
        place="student",
        progress=progress,
        checkpoint=checkpoint,
    )
    return TogetherResult(fits, result, keeper.gate)


def _learner(
    log: EncodedLog,
    scheme: Cotrain | Mutual,
    teachers: Mapping[str, TeacherSpec],
    student: NetworkSpec,
    options: DistillOptions,
    form: Form,
    gate: Gate | None,
    correction: float,
) -> Together:
    if isinstance(scheme, Mutual):
        return MutualLearning(log, teachers, student, options, correction)
    carried = None if gate is None else GateModule(gate).requires_grad_(False)
    return CoTraining(log, teachers, student, options, scheme=scheme, form=form, gate=carried, correction=correction)


def _by_teacher(losses: Tensor) -> dict[str, Tensor]:
    return {f"teacher_loss_{place}": loss for place, loss in enumerate(losses.detach())}


def _ce(logit: Tensor, label: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(logit, label)
