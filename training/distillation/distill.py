"""Distillation from an ensemble that does not move (arXiv:2011.04106, section 3; scheme `pretrain`).

    L_S = gamma CE(y, sigmoid(z_S)) + beta L_KD        kd_weight = beta / (beta + gamma), all that matters of the two

    L_KD = sum of weight_k L_k over the recipe's `losses`:
    soft    CE(sigmoid(z_E / tau), sigmoid(z_S / tau))      as printed, without tau^2 unless `scale_by_tau_squared`
    hint    |sum_i alpha_i W_i v_i - v_S|^2                 `HintRegression`
    mse     (z_E - z_S)^2                                   Ba and Caruana, 2014, arXiv:1312.6184, section 2.3

z_E is the ensemble's logit after its scale and bias, tau the temperature; labels meet the un-tempered sigmoid. A
student trains beside the labels it is judged by, and is stopped by the distillation loss alone, on rows that it does
not train on: those need no labels. Nor do rows that it learns from as the ensemble says, beta L_KD, without a click.

`Imitation` is L_S of one batch, whoever gives the target: the stored ensemble here, teachers that still learn in
`together.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from training.data.encoded_log import EncodedLog, Part
from training.fit.checkpoint import Checkpoint
from training.fit.devices import CPU
from training.fit.divergence import Setting
from training.fit.loop import (
    ClickLearner,
    FitOptions,
    FitResult,
    Learner,
    Loss,
    NetworkSpec,
    Progress,
    answers,
    copy_of_state,
    embedding_penalty,
    fit_to,
    higher_auc,
    measure_clicks,
    rows_to_learn_from,
    run_epochs,
    score,
    seeded,
    started,
)
from training.fit.metrics import sigmoid
from training.fit.negatives import EVERY_ROW, Negatives
from training.fit.warm import Start
from training.zoo import Encoded

LossName = Literal["soft", "hint", "mse"]
Aggregate = Literal["logits", "probabilities"]


class FineTune(BaseModel):
    """Epochs on clicks alone, after distillation."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    epochs: int = Field(ge=1)
    learning_rate: float = Field(gt=0)


class DistillOptions(FitOptions):
    """How a student trains: like any network, and what it imitates of the ensemble."""

    max_epochs: int = Field(default=30, ge=1)
    patience: int = Field(default=3, ge=1)
    kd_weight: float = Field(default=0.9, ge=0, le=1)
    """beta / (beta + gamma): 0 learns from clicks alone, 1 from the ensemble alone."""
    temperature: float = Field(default=1.0, gt=0)
    """tau: both logits are divided by it in the soft-label loss."""
    scale_by_tau_squared: bool = False
    """Multiply the soft-label loss by tau^2, so that its gradient does not shrink with tau (Hinton et al., 2015)."""
    losses: dict[LossName, float] = Field(default={"soft": 1.0}, min_length=1)
    """What L_KD is made of, with the weight of each: soft, hint, mse."""
    aggregate: Aggregate = "logits"
    """Of several teachers: z_E, or the logit whose tempered probability is sum_i alpha_i sigmoid(z_i / tau)."""
    taught_by: Literal["unseen", "all"] = "unseen"
    """Who labels a training row: the teachers that did not learn from it (all where each did), or every teacher."""
    stop_by: Literal["kd", "valid_auc"] = "kd"
    """What picks the epoch on validation part A: the distillation loss, or AUC with clicks."""
    auxiliary_head: bool = False
    """A second logit on the student's hidden layer learns `soft` and `mse`, the served one from clicks alone; it is
    dropped at export (Khani et al., 2024, arXiv:2408.14678)."""
    fine_tune: FineTune | None = None
    """Epochs on clicks alone at the end."""

    @model_validator(mode="after")
    def _losses_can_be_learned(self) -> DistillOptions:
        for name, weight in self.losses.items():
            if not (weight > 0 and math.isfinite(weight)):
                raise ValueError(f"losses.{name}: expected a weight above 0, got {weight}; leave the loss out instead")
        if "hint" in self.losses and self.kd_weight == 1:
            raise ValueError(
                "losses.hint: expected kd_weight below 1, got 1: only clicks keep W v_T and v_S from shrinking to "
                "nothing together; say kd_weight: 0.9"
            )
        if self.auxiliary_head and self.kd_weight == 1:
            raise ValueError(
                "auxiliary_head: expected kd_weight below 1, got 1: the served logit learns from clicks alone; "
                "say kd_weight: 0.5"
            )
        if self.auxiliary_head and set(self.losses) == {"hint"}:
            raise ValueError("auxiliary_head: expected soft or mse among losses, got hint alone, which needs no head")
        if self.scale_by_tau_squared and "soft" not in self.losses:
            raise ValueError("scale_by_tau_squared: expected soft among losses, it is the only one with a temperature")
        return self

    @property
    def needs_student_hint(self) -> bool:
        """Whether a student must have a hidden layer."""
        return "hint" in self.losses or self.auxiliary_head


@dataclass(frozen=True)
class Target:
    """What the ensemble says of a batch. Nothing in it carries a gradient."""

    logit: Tensor
    """[B]"""
    gate_weights: Tensor | None = None
    """[B, M], with hints."""
    hints: tuple[Tensor, ...] = ()
    """[B, H_i] a teacher, where they are to be imitated."""


@dataclass(frozen=True)
class EnsembleTargets:
    """What the ensemble says of the rows of a log, computed once."""

    logit: NDArray[np.floating]
    """[n]"""
    gate_weights: NDArray[np.floating] | None = None
    """[n, M], with hints."""
    hints: tuple[NDArray[np.floating], ...] = ()
    """[n, H_i] a teacher."""
    rows: NDArray[np.int64] | None = None
    """The rows of the log that the arrays are about, ascending; None for all."""

    def of(self, rows: NDArray[np.int64], device: torch.device = CPU) -> Target:
        """Those rows as tensors, float32."""
        places = rows if self.rows is None else np.searchsorted(self.rows, rows)

        def tensor(values: NDArray[np.floating]) -> Tensor:
            return torch.from_numpy(np.asarray(values[places], dtype=np.float32)).to(device)

        weights = None if self.gate_weights is None else tensor(self.gate_weights)
        return Target(tensor(self.logit), weights, tuple(tensor(hint) for hint in self.hints))


def distill_loss(
    student_logit: Tensor, ensemble_logit: Tensor, temperature: float, *, scale_by_tau_squared: bool = False
) -> Tensor:
    """Cross-entropy of the student's tempered probability under the ensemble's, mean over [B]."""
    soft_label = torch.sigmoid(ensemble_logit / temperature)
    loss = functional.binary_cross_entropy_with_logits(student_logit / temperature, soft_label)
    return temperature**2 * loss if scale_by_tau_squared else loss


def mixed_logit(teacher_logits: Tensor, gate_weights: Tensor, temperature: float) -> Tensor:
    """The logit whose tempered probability is sum_i alpha_i sigmoid(z_i / tau): [N, M], [N, M] -> [N].

    Cross-entropy is linear in the label, so the distillation loss against this one logit is sum_i alpha_i L_KD(S, T_i),
    its gradient too, at any tau (the other reading of the paper's adaptive loss; the first is z_E).
    """
    log_alpha = gate_weights.log()
    click = torch.logsumexp(log_alpha + functional.logsigmoid(teacher_logits / temperature), dim=1)
    other = torch.logsumexp(log_alpha + functional.logsigmoid(-teacher_logits / temperature), dim=1)
    return temperature * (click - other)


class HintRegression(nn.Module):
    """The student's hidden layer meets the ensemble's through one learned matrix a teacher.

        |sum_i alpha_i W_i v_i - v_S|^2, summed over the width of v_S, mean over rows

    The paper prints |W v_T - v_S|^2 for one teacher: W is on the teacher's side and learned with the student, so it is
    thrown away and the student carries nothing extra. Of several teachers it regresses on the gated sum, one target a
    row, as its Figure 2 puts the gate before the loss and as z_E does for soft labels. The other reading,
    sum_i alpha_i |W_i v_i - v_S|^2, is this plus the spread of the W_i v_i around their gated sum: a pull on the W_i
    alone, towards agreeing and towards nothing, that says nothing to the student. Each W_i is its own because hidden
    layers of different networks share no axes, even where their widths agree.
    """

    def __init__(self, teacher_widths: Sequence[int], student_width: int) -> None:
        super().__init__()
        self.matrices = nn.ModuleList(nn.Linear(width, student_width, bias=False) for width in teacher_widths)

    def forward(self, student_hint: Tensor, target: Target) -> tuple[Tensor, dict[str, Tensor]]:
        """[B, H] and the batch's target -> loss, and the mean lengths of both sides: where they fall, they collapse."""
        parts = [matrix(hint) for matrix, hint in zip(self.matrices, target.hints, strict=True)]
        if len(parts) == 1:
            wanted = parts[0]
        else:
            assert target.gate_weights is not None
            wanted = (target.gate_weights.unsqueeze(2) * torch.stack(parts, dim=1)).sum(dim=1)  # [B, H]
        lengths = {"teacher_hint_norm": wanted, "student_hint_norm": student_hint}
        return (wanted - student_hint).square().sum(dim=1).mean(), {
            name: hint.detach().norm(dim=1).mean() for name, hint in lengths.items()
        }


class Imitation(nn.Module):
    """L_S, and what is learned for its sake and thrown away: the matrices of hint regression, the auxiliary head."""

    def __init__(
        self,
        options: DistillOptions,
        student_width: int | None,
        teacher_widths: Sequence[int] = (),
        correction: float = 0.0,
        *,
        has_unlabelled: bool = False,
    ) -> None:
        super().__init__()
        self.options = options
        self.has_unlabelled = has_unlabelled
        """Whether labels may be NaN: of such rows the ensemble alone is learned."""
        self.correction = correction
        """Of logits on rows that were not sampled, the ensemble's and the student's, see `negatives.py`."""
        if options.needs_student_hint and student_width is None:
            raise ValueError("student: expected a network with a hidden layer, got one that gives no hint")
        width = student_width or 0
        self.hint = HintRegression(teacher_widths, width) if "hint" in options.losses else None
        self.head = nn.Linear(width, 1) if options.auxiliary_head else None

    def taught_logit(self, logit: Tensor, hint: Tensor | None) -> Tensor:
        """The logit that learns from the ensemble: the served one, or the auxiliary head's."""
        return logit if self.head is None else self.head(hint).squeeze(1)

    def distill(self, logit: Tensor, hint: Tensor | None, target: Target) -> tuple[Tensor, dict[str, Tensor]]:
        """L_KD of a batch, and its parts by name where there is more to see than the sum."""
        options, shown = self.options, dict[str, Tensor]()
        is_more = set(options.losses) != {"soft"}
        taught = self.taught_logit(logit, hint)
        parts: list[Tensor] = []
        for name, weight in options.losses.items():
            if name == "soft":
                part = distill_loss(
                    taught, target.logit, options.temperature, scale_by_tau_squared=options.scale_by_tau_squared
                )
            elif name == "mse":
                part = (taught - target.logit).square().mean()
            else:
                assert self.hint is not None
                assert hint is not None
                part, norms = self.hint(hint, target)
                shown |= norms
            parts.append(weight * part)
            shown[f"train_{name}"] = part.detach()
        return parts[0] if len(parts) == 1 else torch.stack(parts).sum(), shown if is_more else {}

    def forward(
        self, logit: Tensor, hint: Tensor | None, label: Tensor, target: Target
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """L_S with beta = kd_weight and gamma = 1 - kd_weight, mean over [B], and what to show of it.

        A row without a label has no first term, and the same share in the second as any.
        """
        if self.has_unlabelled:
            is_known = ~label.isnan()
            each = functional.binary_cross_entropy_with_logits(logit, label.nan_to_num(), reduction="none")
            task_loss = (each * is_known).mean()
        else:
            task_loss = functional.binary_cross_entropy_with_logits(logit, label)
        distilled, shown = self.distill(logit, hint, target)
        weight = self.options.kd_weight
        return (1 - weight) * task_loss + weight * distilled, shown


class StudentLearner(Learner):
    """A student beside an ensemble that has been asked already."""

    def __init__(
        self,
        log: EncodedLog,
        spec: NetworkSpec,
        options: DistillOptions,
        targets: EnsembleTargets,
        place: str = "",
        correction: float = 0.0,
        *,
        has_unlabelled: bool = False,
    ) -> None:
        super().__init__(spec, spec.build(log.fields), options, place)
        self.options, self.targets = options, targets
        width = spec.hint_width(log.fields) if options.needs_student_hint else None
        widths = [hint.shape[1] for hint in targets.hints]
        self.imitation = Imitation(options, width, widths, correction, has_unlabelled=has_unlabelled)
        self._labels = log.labels

    def loss(self, batch: Encoded, rows: NDArray[np.int64]) -> Loss:
        logit, hint = self.network(batch)
        label = self._labels(rows)
        loss, shown = self.imitation(logit, hint, label, self.targets.of(rows, label.device))
        penalty = embedding_penalty(self.network, batch, self.options.embedding_l2)
        return Loss(loss + penalty, {"train_loss": loss, **shown})

    def measure(self, log: EncodedLog, rows: NDArray[np.int64]) -> dict[str, float]:
        return measure_student(log, self.network, self.imitation, rows, self.targets)


def measure_student(
    log: EncodedLog, network: nn.Module, imitation: Imitation, rows: NDArray[np.int64], targets: EnsembleTargets
) -> dict[str, float]:
    """On rows that need no labels: `valid_kl` of the served logit; `valid_kd` where L_KD has logits to match; and
    `valid_hint`, how far hints are.

    `valid_kd` is L_KD less the ensemble's entropy and less its hints, of the served logit also where an auxiliary head
    takes its place in training: soft labels do not overfit, and by the head's own loss the served logit, which learns
    from clicks, would for long. Hints never judge an epoch: both of their sides are learned, so that their distance
    falls to a hundredth where both shrink to a tenth. AUC and logloss beside them if the options stop by AUC.
    """
    options = imitation.options
    served, wanted = np.empty((2, len(rows)), dtype=np.float32)
    hint_loss = 0.0
    for piece, logit, hint in answers(log, network, rows):
        target = targets.of(rows[piece], log.device)
        served[piece], wanted[piece] = logit.cpu().numpy(), target.logit.cpu().numpy()
        if imitation.hint is not None:
            with torch.inference_mode():
                hint_loss += imitation.hint(hint, target)[0].item() * len(logit) / len(rows)
    found = _served(options, wanted + imitation.correction, served + imitation.correction, log.label[rows])
    if set(options.losses) != {"soft"}:
        tau_squared = options.temperature**2 if options.scale_by_tau_squared else 1.0
        parts = {
            "soft": tau_squared * found["valid_kl"],
            "mse": float(np.mean((wanted.astype(np.float64) - served) ** 2)),
        }
        matched = [weight * parts[name] for name, weight in options.losses.items() if name in parts]
        if matched:
            found["valid_kd"] = sum(matched)
        if imitation.hint is not None:
            found["valid_hint"] = hint_loss
    return found


def _served(
    options: DistillOptions, wanted: NDArray[np.floating], served: NDArray[np.floating], label: NDArray[np.floating]
) -> dict[str, float]:
    """What is measured of the served logit alone."""
    clicks = measure_clicks(served, label) if options.stop_by == "valid_auc" else {}
    return {"valid_kl": kl_divergence(wanted, served, options.temperature)} | clicks


def better_student(options: DistillOptions) -> Any:
    """What compares two epochs of a student."""
    if options.stop_by == "valid_auc":
        return higher_auc
    return lambda new, best: kd_of(new) < kd_of(best)


def kd_of(row: Mapping[str, float]) -> float:
    """The distillation loss that `measure_student` found."""
    return row.get("valid_kd", row["valid_kl"])


def kl_divergence(ensemble_logit: ArrayLike, student_logit: ArrayLike, temperature: float = 1.0) -> float:
    """Mean KL(ensemble || student) of the tempered click probabilities, in nats.

    It is L_KD less the ensemble's entropy, with the same minimum: zero where the student answers as
    the ensemble does.
    """
    z_e = np.asarray(ensemble_logit, dtype=np.float64) / temperature
    z_s = np.asarray(student_logit, dtype=np.float64) / temperature
    p = sigmoid(z_e)
    # ln sigmoid(z) = -ln(1 + exp(-z)), exact where sigmoid itself rounds to 0 or 1
    clicks = np.logaddexp(0, -z_s) - np.logaddexp(0, -z_e)
    others = np.logaddexp(0, z_s) - np.logaddexp(0, z_e)
    return float(np.mean(p * clicks + (1 - p) * others))


def fit_student(
    log: EncodedLog,
    spec: NetworkSpec,
    options: DistillOptions,
    targets: EnsembleTargets,
    *,
    seed: int,
    train: Sequence[Part],
    valid: Sequence[Part] | None,
    epochs: int | None = None,
    unlabelled: Sequence[Part] = (),
    negatives: Negatives = EVERY_ROW,
    start: Start | None = None,
    place: str = "",
    progress: Progress | None = None,
    checkpoint: Checkpoint | None = None,
) -> FitResult:
    """Train on clicks and on what the ensemble says, and of the parts `unlabelled` on the latter alone.

    With `valid`, stops on those parts as the options say; without, runs exactly `epochs`. Fine-tuning comes after
    either, on rows with clicks. `negatives`, `start`, `place` and `checkpoint` as for `loop.fit`.
    """
    if targets.logit.shape != (len(log),):
        raise ValueError(f"targets: expected a logit for each of {len(log)} rows, got {targets.logit.shape}")
    if ("hint" in options.losses) != bool(targets.hints):
        raise ValueError(f"targets: expected hints where losses has hint, got {len(targets.hints)} teachers' hints")
    train_rows = rows_to_learn_from(log, train, negatives=negatives)
    further = log.rows(unlabelled)
    needs_labels = options.stop_by == "valid_auc"
    valid_rows = None if valid is None else rows_to_learn_from(log, valid) if needs_labels else log.rows(valid)
    result = fit_to(
        log,
        lambda: started(
            StudentLearner(log, spec, options, targets, place, negatives.correction, has_unlabelled=len(further) > 0),
            start,
            log.fields,
        ),
        options,
        seed=seed,
        train_rows=np.concatenate([train_rows, further]),
        valid_rows=valid_rows,
        better=better_student(options),
        epochs=epochs,
        progress=progress,
        checkpoint=checkpoint,
    )
    watch = None if valid_rows is None else (valid_rows, targets)
    return fine_tuned(
        log,
        spec,
        options,
        result,
        seed=seed,
        train_rows=train_rows,
        watch=watch,
        correction=negatives.correction,
        place=place,
        progress=progress,
        checkpoint=checkpoint,
    )


class LastEpoch:
    """Keeps a student's weights as they stand, and tells how far they went from the ensemble on the rows of `watch`."""

    def __init__(
        self,
        log: EncodedLog,
        network: nn.Module,
        options: DistillOptions,
        watch: tuple[NDArray[np.int64], EnsembleTargets] | None,
        correction: float,
    ) -> None:
        self.log, self.network, self.options, self.watch = log, network, options, watch
        self.correction = correction
        self.state: dict[str, Tensor] = {}

    def __call__(self, row: dict[str, float]) -> bool:
        self.state = copy_of_state(self.network)
        if self.watch is not None:
            rows, targets = self.watch
            served = score(self.log, self.network, rows) + self.correction
            wanted = targets.of(rows).logit.numpy() + self.correction
            row |= _served(self.options, wanted, served, self.log.label[rows])
        return False

    def state_dict(self) -> dict[str, Any]:
        return {"state": self.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = state["state"]


def fine_tuned(
    log: EncodedLog,
    spec: NetworkSpec,
    options: DistillOptions,
    result: FitResult,
    *,
    seed: int,
    train_rows: NDArray[np.int64],
    watch: tuple[NDArray[np.int64], EnsembleTargets] | None = None,
    correction: float = 0.0,
    place: str = "",
    progress: Progress | None = None,
    checkpoint: Checkpoint | None = None,
) -> FitResult:
    """The student after the epochs on clicks alone that the options ask for; itself where they ask for none.

    `epochs` stays what distillation took; the history goes on behind it, with `fine_tune` counting and the distance to
    the ensemble on the rows of `watch`.
    """
    if options.fine_tune is None:
        return result
    own = {"learning_rate": options.fine_tune.learning_rate, "schedule": "constant", "warmup_epochs": 0.0}
    slower = options.model_copy(update=own)
    with seeded(seed):
        learner = FineTuning(log, spec, slower, place)
        learner.network.load_state_dict(result.state)
        last = LastEpoch(log, learner.network, options, watch, correction)
        rows = run_epochs(
            log,
            learner,
            slower,
            seed=seed,
            train_rows=train_rows,
            epochs=options.fine_tune.epochs,
            after_epoch=last,
            progress=progress,
            checkpoint=checkpoint and checkpoint.behind("fine-tune"),
        )
    behind = [row | {"epoch": len(result.history) + row["epoch"], "fine_tune": row["epoch"]} for row in rows]
    return FitResult(last.state, result.epochs, [*result.history, *behind])


class FineTuning(ClickLearner):
    """Clicks alone, at a learning rate of its own."""

    def setting(self, figure: str) -> Setting:
        return replace(super().setting(figure), learning_rate_key="fit.fine_tune.learning_rate")
