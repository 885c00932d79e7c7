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
from training.metrics import sigmoid


@dataclass(frozen=True)
class Platt:
    """A fitted calibration."""

    scale: float = 1.0
    bias: float = 0.0

    def apply(self, logit: ArrayLike) -> NDArray[np.float64]:
        """Calibrated logits."""
        return np.asarray(self.scale * np.asarray(logit, dtype=np.float64) + self.bias)


def fit_platt(logit: ArrayLike, label: ArrayLike, *, max_steps: int = 50) -> Platt:
    """The scale and bias of least cross-entropy, by Newton's method; `SplitError` without both kinds of rows.

    Labels are taken as they are: Platt's smoothed targets matter for tens of rows, not for thousands. A step
    that would raise the loss is halved, and logits that separate clicks perfectly stop at a finite scale.
    """
    z = np.asarray(logit, dtype=np.float64)
    y = np.asarray(label, dtype=np.float64)
    if len(y) == 0 or y.min() == y.max():
        raise SplitError(f"calibration: expected clicks and non-clicks, got {len(y)} rows of one kind")
    x = np.stack([z, np.ones_like(z)], axis=1)  # [n, 2]
    ridge = 1e-9 * np.eye(2)

    def loss(theta: NDArray[np.float64]) -> float:
        s = x @ theta
        return float(np.mean(np.logaddexp(0, s) - y * s))

    theta = np.array([1.0, 0.0])
    current = loss(theta)
    for _ in range(max_steps):
        p = sigmoid(x @ theta)
        gradient = x.T @ (p - y) / len(y)
        curvature = (x * (p * (1 - p))[:, None]).T @ x / len(y) + ridge
        step = np.linalg.solve(curvature, gradient)
        factor = 1.0
        while loss(theta - factor * step) > current and factor > 1e-6:
            factor /= 2
        theta = theta - factor * step
        previous, current = current, loss(theta)
        if abs(previous - current) < 1e-14:
            break
    return Platt(float(theta[0]), float(theta[1]))
