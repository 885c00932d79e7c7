"""What another policy would have earned, from impressions whose probability of being shown was logged.

An impression that the logging policy showed with probability p and the other would have shown with probability q counts
w = q/p times (Horvitz and Thompson, JASA 1952):

    IPS = sum w y / n        SNIPS = sum w y / sum w     (Swaminathan and Joachims, NIPS 2015)

IPS is unbiased where p > 0 wherever q > 0; SNIPS trades a little bias for a smaller variance and stays between 0 and 1.
Both are ratios of totals, so both are clustered by unit like any click rate. Neither knows what happens where p was 0.

One impression shown against all odds may outweigh the whole log: in Open Bandit's women's campaign 10,000 impressions
are worth 2. Such an estimate has no interval; one from so few would be far too narrow.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from service.answers.lift import ENOUGH_CLICKS, ENOUGH_CLICKS_ONCE, ENOUGH_UNITS, Estimate, estimate
from service.answers.moments import Moments

Array = NDArray[np.float64]

IMPRESSIONS, CLICKS, WEIGHTS, WEIGHTED_CLICKS = "impressions", "clicks", "weights", "weighted_clicks"
NAMES = (IMPRESSIONS, CLICKS, WEIGHTS, WEIGHTED_CLICKS)
"""Of a unit: impressions, clicks, sum of w, sum of w y."""


@dataclass(frozen=True, slots=True)
class OffPolicy:
    """The other policy's click rate, estimated both ways."""

    ips: Estimate
    snips: Estimate
    mean_weight: Estimate
    """1 when the logged probabilities are right; an interval that lacks 1 says that they are not."""
    effective_units: float | None
    """(sum w_u)^2 / sum w_u^2 over units: how many evenly weighted units would tell as much."""


def importance_weights(target: ArrayLike, logged: ArrayLike) -> Array:
    """q/p; `ValueError` where p is not in (0, 1] or q not in [0, 1]."""
    q, p = np.asarray(target, dtype=np.float64), np.asarray(logged, dtype=np.float64)
    for name, values, fine in (("logged", p, (p > 0) & (p <= 1)), ("target", q, (q >= 0) & (q <= 1))):
        if not fine.all():
            row = int(np.flatnonzero(~fine)[0])
            raise ValueError(
                f"{name} propensity: expected a probability{' above 0' if values is p else ''} (row {row})"
            )
    return np.asarray(q / p)


def off_policy(units: Moments, *, alpha: float, expected: float) -> OffPolicy:
    """Both estimates from moments of `NAMES`. `expected`: impressions at which a decision is expected."""
    clicks, impressions = float(units.total(CLICKS)), float(units.total(IMPRESSIONS))
    squares = float(units.spread({WEIGHTS: 1.0}))
    effective = float(units.total(WEIGHTS)) ** 2 / squares if squares > 0 else None
    found = {}
    for name, over, under in (
        ("ips", WEIGHTED_CLICKS, IMPRESSIONS),
        ("snips", WEIGHTED_CLICKS, WEIGHTS),
        ("mean_weight", WEIGHTS, IMPRESSIONS),
    ):
        value, variance = units.ratio(over, under), units.ratio_variance(over, under)
        reason = None
        if effective is not None and effective < ENOUGH_UNITS <= float(units.units):
            reason = f"a few tiny propensities decide: worth {effective:.1f} units, an interval needs {ENOUGH_UNITS}"
        elif float(units.units) < ENOUGH_UNITS:
            reason = f"{float(units.units):.0f} units, an interval needs {ENOUGH_UNITS}"
        elif clicks < ENOUGH_CLICKS_ONCE:
            reason = f"{clicks:.0f} clicks, needed are {ENOUGH_CLICKS_ONCE}"
        elif not float(variance) > 0:
            reason = "no variation: nothing says how far it is from the truth"
        if not impressions or not float(units.total(under)):
            found[name] = Estimate(None, reason="no impressions that the other policy would have shown")
        elif reason is not None:
            found[name] = Estimate(float(value), reason=reason)
        else:
            few = f"{clicks:.0f} clicks, needed are {ENOUGH_CLICKS}" if clicks < ENOUGH_CLICKS else None
            seen = units.total(IMPRESSIONS)
            found[name] = estimate(value, variance, seen, alpha=alpha, expected=expected, reason=few)
    return OffPolicy(**found, effective_units=effective)
