"""How far from the truth an estimate may be: at one look fixed beforehand, or at every look at once.

The second is a confidence sequence: with probability 1 - alpha the truth is inside at *all* looks, so one may look
daily and stop when one likes. It is the asymptotic one of Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas
(arXiv:2103.06476): Robbins' normal mixture around an estimate whose variance is estimated,

    estimate +- sqrt(V) * c(t),    c(t)^2 = 2 (1 + 1/(t rho^2)) ln(sqrt(t rho^2 + 1) / alpha)

where V is the estimate's variance and t a clock: what has been observed, in units that V t stays about constant in.
One-sided, the logarithm is ln(1 + sqrt(t rho^2 + 1) / (2 alpha)). rho decides when the sequence is narrowest; it is
best at `expected`, the clock at which a decision is expected, and valid with any other that was fixed beforehand.

Asymptotic means: V must be about right at the first look that counts, which takes tens of clicks an arm (`lift.py`).
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def normal_quantile(probability: float) -> float:
    """z with P(Z <= z) = probability, Z standard normal."""
    return NormalDist().inv_cdf(probability)


def mixture_rate(expected: float, alpha: float, *, one_sided: bool = False) -> float:
    """rho^2, in one over the clock's units: (-2 ln a + ln(-2 ln a + 1)) / expected, a = alpha (2 alpha one-sided)."""
    _check_alpha(alpha)
    if not (expected > 0 and math.isfinite(expected)):
        raise ValueError(f"expected: a positive number of the clock's units, got {expected}")
    twice = -2 * math.log(2 * alpha if one_sided else alpha)
    return (twice + math.log(twice + 1)) / expected


def critical_value(clock: ArrayLike, expected: float, alpha: float, *, one_sided: bool = False) -> Array:
    """c(t): how many standard errors the confidence sequence reaches to each side (or to the one). Infinite at 0."""
    rate = mixture_rate(expected, alpha, one_sided=one_sided)
    x = np.asarray(clock, dtype=np.float64) * rate
    log = np.log1p(np.sqrt(x + 1) / (2 * alpha)) if one_sided else np.log(np.sqrt(x + 1) / alpha)
    with np.errstate(divide="ignore"):
        return np.asarray(np.sqrt(2 * (1 + 1 / x) * log))


def fixed_value(alpha: float, *, one_sided: bool = False) -> float:
    """How many standard errors an interval reaches that is looked at once, at a size fixed beforehand."""
    _check_alpha(alpha)
    return normal_quantile(1 - (alpha if one_sided else alpha / 2))


def sum_boundary(variance: ArrayLike, expected_variance: float, alpha: float, *, one_sided: bool = False) -> Array:
    """What a sum of mean zero stays within at every look, `variance` being its variance so far.

    sqrt((v + r) ln((v + r) / (r alpha^2))), r = 1/rho^2: the same mixture with the variance itself as the clock.
    """
    v = np.asarray(variance, dtype=np.float64)
    r = 1 / mixture_rate(expected_variance, alpha, one_sided=one_sided)
    if one_sided:
        return np.asarray(np.sqrt(2 * (v + r) * np.log1p(np.sqrt((v + r) / r) / (2 * alpha))))
    return np.asarray(np.sqrt((v + r) * np.log((v + r) / (r * alpha**2))))


def _check_alpha(alpha: float) -> None:
    if not 0 < alpha < 0.5:
        raise ValueError(f"alpha: expected a number above 0 and below 0.5, got {alpha}")
