"""The lift as it stood at one look after another: what an owner who came every hour, or every day, would have seen.

A look takes in every impression made until then, by units' totals up to there, so that a unit that comes back is the
same unit. Looks stand at round times (UTC), the last behind the last impression: there the lift is the report's own.
The sequence's promise is about all of them at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from service.answers.fold import Counted
from service.answers.lift import CLICKS, IMPRESSIONS, lift
from service.answers.moments import Moments

MOST_LOOKS = 60
STEPS_SECONDS = (60, 300, 900, 3600, 3 * 3600, 6 * 3600, 86_400, 7 * 86_400, 28 * 86_400)
"""Between two looks: the smallest with which there are at most `MOST_LOOKS`, or else a multiple of the last."""


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """Every arm's moments of clicks and impressions, over the impressions made before `until`."""

    until: float
    """Seconds since 1970."""
    arms: Mapping[str, Moments]


def looks_at(counted: Counted, arms: Sequence[str]) -> list[Look]:
    """The looks at what counted, in order of time; none where nothing was shown."""
    rows = counted.rows.take(counted.shown)
    if not len(rows):
        return []
    order = np.argsort(rows["time"], kind="stable")
    time, click = rows["time"][order], counted.click[counted.shown][order]
    distinct, unit = np.unique(rows["unit"][order], return_inverse=True)
    arm = rows["arm"][order]
    step = _step(float(time[0]), float(time[-1]))
    times = np.arange(math.floor(time[0] / step) + 1, math.floor(time[-1] / step) + 2) * step
    totals = {name: np.zeros((2, len(distinct))) for name in arms}  # clicks, impressions
    looks, start = [], 0
    for until, stop in zip(times.tolist(), np.searchsorted(time, times).tolist(), strict=True):
        for name in arms:
            here = arm[start:stop] == name
            places = unit[start:stop][here]
            totals[name][0] += np.bincount(places, weights=click[start:stop][here], minlength=len(distinct))
            totals[name][1] += np.bincount(places, minlength=len(distinct))
        looks.append(Look(float(until), {name: _moments(*totals[name]) for name in arms}))
        start = stop
    return looks


def lifts_over_time(
    looks: Sequence[Look], control: str, treatment: str, *, alpha: float, expected: float
) -> list[dict[str, Any]]:
    """The relative lift at every look, with its confidence sequence; null where there is too little to say."""
    found = []
    for look in looks:
        both = look.arms[control], look.arms[treatment]
        relative = lift(*both, alpha=alpha, expected=expected).relative
        seen = sum(float(arm.total(IMPRESSIONS)) for arm in both)
        found.append(
            {"until": look.until, "impressions": int(seen), "value": relative.value, "always": relative.always}
        )
    return found


def _step(first: float, last: float) -> int:
    for step in STEPS_SECONDS:
        if last // step - first // step < MOST_LOOKS:
            return step
    longest = STEPS_SECONDS[-1]
    return longest * math.ceil((last - first) / (longest * (MOST_LOOKS - 1)))


def _moments(clicks: Any, impressions: Any) -> Moments:
    some = impressions > 0
    return Moments.of_units(**{CLICKS: clicks[some], IMPRESSIONS: impressions[some]})
