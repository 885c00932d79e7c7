"""Two models on the same impressions: the difference of their logloss, by who chose what was shown.

Every impression is scored by both models, one of which chose it. What is common to an impression (an easy one, a
hard one) cancels in the difference: some ten thousand impressions tell what a split of traffic cannot tell in millions.

But whoever chooses is judged on its own optimism: the best of 20 candidates is one that a model overrates, so of two
equally good models the one that chose looks worse. Hence one difference a chooser; a model is called better only
when both agree in sign, each beyond doubt, or when what was shown was drawn at random.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from service.answers.lift import ENOUGH_CLICKS, ENOUGH_CLICKS_ONCE, ENOUGH_UNITS, Estimate, estimate
from service.answers.moments import Moments

IMPRESSIONS, CLICKS, LOSS = "impressions", "clicks", "loss"
NAMES = (IMPRESSIONS, CLICKS, LOSS)
"""Of a unit: impressions that both models scored, clicks on them, sum of treatment's minus control's logloss."""

RANDOM = "random"
"""The chooser of impressions drawn at random."""


def paired_difference(units: Moments, *, alpha: float, expected: float) -> Estimate:
    """Treatment's logloss minus control's, a mean over impressions, clustered by unit; below 0 treatment is better.

    `units`: moments of `NAMES`, for one chooser. `expected`: impressions at which a decision is expected.
    """
    impressions, clicks = float(units.total(IMPRESSIONS)), float(units.total(CLICKS))
    value = float(units.total(LOSS)) / impressions if impressions else None
    variance = units.ratio_variance(LOSS, IMPRESSIONS)
    reason = None
    if float(units.units) < ENOUGH_UNITS:
        reason = f"{float(units.units):.0f} units, an interval needs {ENOUGH_UNITS}"
    elif clicks < ENOUGH_CLICKS_ONCE:
        reason = f"{clicks:.0f} clicks, needed are {ENOUGH_CLICKS_ONCE}"
    elif not float(variance) > 0:
        reason = "the difference is the same on every impression"
    if value is None or reason is not None:
        return Estimate(value, reason=reason)
    if clicks < ENOUGH_CLICKS:
        reason = f"{clicks:.0f} clicks, needed are {ENOUGH_CLICKS}"
    return estimate(
        units.ratio(LOSS, IMPRESSIONS),
        variance,
        units.total(IMPRESSIONS),
        alpha=alpha,
        expected=expected,
        reason=reason,
    )


def verdict(by_chooser: Mapping[str, Estimate], arms: tuple[str, str]) -> tuple[str | None, str]:
    """(the arm whose model predicts better or None, why), from the difference for each chooser; `arms` has control
    first."""
    sides = {chooser: _side(estimate) for chooser, estimate in by_chooser.items()}
    if sides.get(RANDOM):
        return arms[0 if sides[RANDOM] > 0 else 1], "on impressions that were drawn at random"
    judged = [sides.get(arm, 0) for arm in arms]
    if judged[0] and judged[0] == judged[1]:
        return arms[0 if judged[0] > 0 else 1], "on the impressions that either arm chose"
    if judged[0] and judged[1]:
        return None, "each chooser's impressions speak for another model: each is judged on its own optimism"
    if any(judged):
        return None, "only the impressions of one chooser are beyond doubt"
    return None, "the difference may still be nothing"


def _side(found: Estimate) -> int:
    if found.always is None:
        return 0
    low, high = found.always
    return int(low > 0) - int(high < 0) if math.isfinite(low) and math.isfinite(high) else 0
