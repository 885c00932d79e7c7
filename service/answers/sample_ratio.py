"""Whether units arrived in the arms as the weights say: the sequential sample-ratio test.

Lindon and Malek (NeurIPS 2022, arXiv:2011.03567): a Dirichlet prior around the planned shares against the shares
themselves,

    ln E = lnG(sum a) - sum lnG(a_i) + sum lnG(a_i + n_i) - lnG(sum a + N) - sum n_i ln pi_i,    a_i = 1000 pi_i

If the split is as planned, E ever reaches 1/alpha with probability at most alpha, however often one looks: exactly, not
nearly. What is counted is *units*, each once, in the arm assigned: requests of one unit are no independent draws, and
arms may rightly differ in requests a unit. Each phase has its own E, since weights may differ; evidence of
several is their product.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

CONCENTRATION = 1000.0
"""How near the planned shares other shares are thought to be: finds 51/49 by 42,000 units, 52/48 by 10,000."""

_HALF_LOG_TWO_PI = math.log(2 * math.pi) / 2


def log_evidence(units: ArrayLike, shares: Sequence[float]) -> Array:
    """ln E, [...], of the units counted in each arm, [..., K], against the planned shares (positive, summing to 1).

    Every ln G is written as Stirling's formula plus its remainder s. The large terms then cancel on paper rather
    than in floating point: with x_i = a_i + n_i and X their sum, ln E is

        sum x_i ln(x_i / (X pi_i)) + (sum ln(a_i / x_i) + ln(X / sum a)) / 2 + s(sum a) - s(X) + sum s(x_i) - s(a_i)
    """
    n, share = np.asarray(units, dtype=np.float64), np.asarray(shares, dtype=np.float64)
    if share.ndim != 1 or len(share) < 2 or n.shape[-1:] != share.shape:
        raise ValueError(f"expected counts of {share.size} arms (two or more), got an array of shape {n.shape}")
    if share.min() <= 0 or not math.isclose(math.fsum(share), 1.0, abs_tol=1e-9):
        raise ValueError(f"shares: expected positive numbers that sum to 1, got {list(shares)}")
    if n.size and not n.min() >= 0:
        raise ValueError("units: expected counts from 0")
    prior = CONCENTRATION * share
    x = prior + n
    total = x.sum(axis=-1, keepdims=True)
    off = x / (total * share) - 1
    # sum pi_i off_i = 0, so it may be taken off term by term: what is left is small and of one sign.
    divergence = (total * share * ((1 + off) * np.log1p(off) - off)).sum(axis=-1)
    total = total[..., 0]
    halves = (np.log(prior / x).sum(axis=-1) + np.log(total / CONCENTRATION)) / 2
    rests = _stirling_rest(x).sum(axis=-1) - _stirling_rest(prior).sum() - _stirling_rest(total)
    return np.asarray(divergence + halves + rests + _stirling_rest(np.float64(CONCENTRATION)))


def _stirling_rest(x: ArrayLike) -> Array:
    """s(x) = ln G(x) - ((x - 1/2) ln x - x + ln(2 pi) / 2), to 16 digits: from 12 on by its series."""
    at = np.asarray(x, dtype=np.float64)
    inverse = 1 / np.maximum(at, 12.0)
    square = inverse**2
    series = inverse * (1 / 12 - square * (1 / 360 - square * (1 / 1260 - square * (1 / 1680 - square / 1188))))
    if (at >= 12).all():
        return np.asarray(series)
    small = np.minimum(at, 12.0)
    exact = np.vectorize(math.lgamma, otypes=[np.float64])(small)
    return np.asarray(np.where(at >= 12, series, exact - ((small - 0.5) * np.log(small) - small + _HALF_LOG_TWO_PI)))


def always_p(log_e: float) -> float:
    """A p-value that may be looked at on any day: min(1, 1/E)."""
    return math.exp(min(0.0, -log_e))


def chi_squared_p(units: Sequence[float], shares: Sequence[float]) -> float:
    """Pearson's chi-squared p-value, what other tools show. For one look: re-tested daily it errs often."""
    total = math.fsum(units)
    if total <= 0:
        return 1.0
    statistic = math.fsum((n - total * s) ** 2 / (total * s) for n, s in zip(units, shares, strict=True))
    return _chi_squared_tail(statistic, len(shares) - 1)


def _chi_squared_tail(statistic: float, freedom: int) -> float:
    """P(X >= statistic) = Q(freedom/2, statistic/2) for a chi-squared X.

    Q(1/2, x) = erfc(sqrt x), Q(1, x) = e^-x, Q(a+1, x) = Q(a, x) + x^a e^-x / G(a+1).
    """
    x = statistic / 2
    if x <= 0:
        return 1.0
    a, tail = (0.5, math.erfc(math.sqrt(x))) if freedom % 2 else (1.0, math.exp(-x))
    while a < freedom / 2:
        tail += math.exp(a * math.log(x) - x - math.lgamma(a + 1))
        a += 1
    return min(1.0, tail)
