"""What a scored part is measured by: the definitions of `models/metrics.py`, which the service shares, all at once."""

from __future__ import annotations

from numpy.typing import ArrayLike

from models.metrics import (
    Array,
    auc,
    ece,
    ece_floor,
    gauc,
    logloss,
    normalised_entropy,
    predicted_over_actual,
    reliability,
    sigmoid,
    xauc,
    xlogloss,
)

__all__ = [
    "Array",
    "auc",
    "ece",
    "ece_floor",
    "evaluate",
    "gauc",
    "logloss",
    "normalised_entropy",
    "predicted_over_actual",
    "reliability",
    "sigmoid",
    "xauc",
    "xlogloss",
]


def evaluate(
    label: ArrayLike, logit: ArrayLike, *, truth: ArrayLike | None = None, unit: ArrayLike | None = None
) -> dict[str, float]:
    """Every metric of one model on one part, from its calibrated logit; under the truth too if known."""
    pctr = sigmoid(logit)
    found = {
        "auc": auc(label, logit),
        "logloss": logloss(label, pctr),
        "normalised_entropy": normalised_entropy(label, pctr),
        "ece": ece(label, pctr),
        "ece_floor": ece_floor(pctr),
        "predicted_over_actual": predicted_over_actual(label, pctr),
    }
    if unit is not None:
        found["gauc"] = gauc(label, logit, unit)
    if truth is not None:
        found["xauc"] = xauc(truth, logit)
        found["xlogloss"] = xlogloss(truth, pctr)
        found["xece"] = ece(truth, pctr)
    return found
