"""Soft-label distillation from a frozen ensemble (arXiv:2011.04106, section 3; scheme `pretrain`).

    L_S = gamma CE(y, sigmoid(z_S)) + beta L_KD           L_KD = CE(sigmoid(z_E / tau), sigmoid(z_S / tau))

z_E is the ensemble's logit after its scale and bias, tau the temperature. As printed there is no factor
tau^2, and labels meet the un-tempered sigmoid. Only the ratio of beta to gamma matters, so a recipe gives
`kd_weight` = beta / (beta + gamma). The student trains beside the labels it is judged by, and is stopped by
the distillation loss alone, on rows that it does not train on: those need no labels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from training.encoded_log import EncodedLog, Part
from training.loop import FitOptions, FitResult, NetworkSpec, Progress, fit_to, rows_to_learn_from
from training.metrics import sigmoid


class DistillOptions(FitOptions):
    """How a student trains: like any network, with the soft labels' weight and temperature."""

    max_epochs: int = Field(default=30, ge=1)
    patience: int = Field(default=3, ge=1)
    kd_weight: float = Field(default=0.9, ge=0, le=1)
    """beta / (beta + gamma): 0 learns from clicks alone, 1 from the ensemble alone."""
    temperature: float = Field(default=1.0, gt=0)
    """tau: both logits are divided by it in the distillation loss."""


def distill_loss(student_logit: Tensor, ensemble_logit: Tensor, temperature: float) -> Tensor:
    """L_KD: cross-entropy of the student's tempered probability under the ensemble's, mean over [B]."""
    soft_label = torch.sigmoid(ensemble_logit / temperature)
    return functional.binary_cross_entropy_with_logits(student_logit / temperature, soft_label)


def student_loss(
    student_logit: Tensor, label: Tensor, ensemble_logit: Tensor, *, kd_weight: float, temperature: float
) -> Tensor:
    """L_S with beta = kd_weight and gamma = 1 - kd_weight."""
    task_loss = functional.binary_cross_entropy_with_logits(student_logit, label)
    return (1 - kd_weight) * task_loss + kd_weight * distill_loss(student_logit, ensemble_logit, temperature)


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
    ensemble_logit: NDArray[np.floating],
    *,
    seed: int,
    train: Sequence[Part],
    valid: Sequence[Part] | None,
    epochs: int | None = None,
    progress: Progress | None = None,
) -> FitResult:
    """Train on clicks and on the ensemble's logits, [len(log)] and computed once.

    With `valid`, stops by the distillation KL on those parts; without, runs exactly `epochs`.
    """
    if ensemble_logit.shape != (len(log),):
        raise ValueError(f"ensemble_logit: expected one for each of {len(log)} rows, got {ensemble_logit.shape}")
    label = np.asarray(log.label, dtype=np.float32)
    target = np.asarray(ensemble_logit, dtype=np.float32)

    def loss(logit: Tensor, rows: NDArray[np.int64]) -> Tensor:
        return student_loss(
            logit,
            torch.from_numpy(label[rows]),
            torch.from_numpy(target[rows]),
            kd_weight=options.kd_weight,
            temperature=options.temperature,
        )

    def measure(logit: NDArray[np.float32], rows: NDArray[np.int64]) -> dict[str, float]:
        return {"valid_kl": kl_divergence(target[rows], logit, options.temperature)}

    return fit_to(
        log,
        spec,
        options,
        seed=seed,
        train_rows=rows_to_learn_from(log, train),
        loss=loss,
        valid_rows=None if valid is None else log.rows(valid),
        measure=measure,
        better=lambda new, best: new["valid_kl"] < best["valid_kl"],
        epochs=epochs,
        progress=progress,
    )
