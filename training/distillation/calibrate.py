"""Platt scaling: the two numbers that turn a logit into one whose sigmoid is a calibrated pctr (Platt, 1999).

    pctr = sigmoid(scale * z + bias)

Fitted on validation part C with the networks as they were before `refit`, because it cannot be fitted on rows
that a network has trained on; carried over to the refitted networks unchanged.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from training.errors import SplitError
from training.fit.metrics import sigmoid

PRIOR_SCALE_SD = 0.5
"""How far from 1 the scale is expected to be before any click is seen. Thousands of clicks outvote it by far; ten
clicks alone would as soon say 5 as 1."""


@dataclass(frozen=True)
class Platt:
    """A fitted calibration."""

    scale: float = 1.0
    bias: float = 0.0

    def apply(self, logit: ArrayLike) -> NDArray[np.float64]:
        """Calibrated logits."""
        return np.asarray(self.scale * np.asarray(logit, dtype=np.float64) + self.bias)


def fit_platt(logit: ArrayLike, label: ArrayLike, *, correction: float = 0.0, max_steps: int = 50) -> Platt:
    """The scale and bias of least cross-entropy, by Newton's method; `SplitError` without both kinds of rows.

    A normal prior holds the scale near 1, as ((scale - 1) / .5)^2 / 2 beside the sum of the cross-entropies, so that
    few clicks, or logits that separate clicks perfectly, give a sober one. (Platt's smoothed targets do not: it is the
    scale that ten clicks leave open.) Nothing holds the bias: the mean prediction is the click rate. A step that would
    raise the loss is halved. `correction` (`negatives.py`) is added behind scale and bias, as it is where they serve.
    """
    z = np.asarray(logit, dtype=np.float64)
    y = np.asarray(label, dtype=np.float64)
    if len(y) == 0 or y.min() == y.max():
        raise SplitError(f"calibration: expected clicks and non-clicks, got {len(y)} rows of one kind")
    x = np.stack([z, np.ones_like(z)], axis=1)  # [n, 2]
    unchanged = np.array([1.0, 0.0])
    prior = np.array([PRIOR_SCALE_SD**-2, 0.0])  # precision of scale and bias

    def loss(theta: NDArray[np.float64]) -> float:
        s = x @ theta + correction
        return float(np.mean(np.logaddexp(0, s) - y * s) + prior @ (theta - unchanged) ** 2 / (2 * len(y)))

    theta = unchanged
    current = loss(theta)
    for _ in range(max_steps):
        p = sigmoid(x @ theta + correction)
        gradient = (x.T @ (p - y) + prior * (theta - unchanged)) / len(y)
        curvature = ((x * (p * (1 - p))[:, None]).T @ x + np.diag(prior)) / len(y)
        step = np.linalg.solve(curvature, gradient)
        factor = 1.0
        while loss(theta - factor * step) > current and factor > 1e-6:
            factor /= 2
        theta = theta - factor * step
        previous, current = current, loss(theta)
        if abs(previous - current) < 1e-14:
            break
    return Platt(float(theta[0]), float(theta[1]))
