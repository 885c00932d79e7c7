"""Which candidates of one request were shown, and which clicked: decided once, for answers and for training logs alike.

An event is late beyond the attribution window after the exposure. A time that cannot be (more than `SKEW_SECONDS`
before the exposure, or after it was received) is replaced by the time of receipt. A click implies an impression.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TypeAlias

IMPRESSION, CLICK = "impression", "click"
SKEW_SECONDS = 60.0
"""A caller's clock may be so far from ours."""

Told: TypeAlias = tuple[int | None, bool, float | None, float]
"""What an event says: candidate, whether it is a click, its own time, when it was received."""


@dataclass(frozen=True, slots=True)
class Attributed:
    """What became of a request's candidates, and of how many events it is not the whole story."""

    shown: frozenset[int]
    """Candidates with an impression in time."""
    clicks: dict[int, float]
    """When each candidate was clicked first: also of one that was not shown in time, and also too late."""
    misplaced: int
    """Events of a candidate that the exposure does not have, or has no score for."""
    skewed: int
    """Events whose time cannot be; they count by the time of receipt."""
    late: int
    """Events beyond the window."""


def attribute(events: Iterable[Told], exposed: float, scored: Collection[int], window: float) -> Attributed:
    """The events of one request, each once, in any order. `exposed`: the time of its exposure; `window`: in seconds."""
    shown: set[int] = set()
    clicks: dict[int, float] = {}
    misplaced = skewed = late = 0
    for candidate, is_click, time, received in events:
        if candidate is None or candidate not in scored:
            misplaced += 1
            continue
        if time is None:
            time = received
        elif time > received + SKEW_SECONDS or time < exposed - SKEW_SECONDS:
            skewed += 1
            time = received
        if time - exposed > window:
            late += 1
        else:
            shown.add(candidate)
        if is_click:
            clicks[candidate] = min(time, clicks.get(candidate, time))
    return Attributed(frozenset(shown), clicks, misplaced, skewed, late)
