"""p50 and p99 as they are now: of what was counted since somebody last looked, not since the service began.

A histogram only ever grows. Two looks at it, a minute apart, say what happened between them; so looks are kept for a
while, and the newest that is at least `WINDOW_SECONDS` old is taken off the present one. Nothing is kept while nobody
looks.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

WINDOW_SECONDS = 60.0
SPACING_SECONDS = 5.0
KEPT = 30

Key = tuple[str, str, str]
Counts = Sequence[float]
"""Of each bucket, not added up; the last is of what is above every bound."""


def quantile(bounds: Sequence[float], counts: Counts, share: float) -> float | None:
    """The value that this share of the observations does not exceed, straight lines drawn through each bucket, as
    Prometheus' `histogram_quantile` does. None of no observation; infinity above the last bound."""
    total = sum(counts)
    if total <= 0:
        return None
    rank, seen, low = share * total, 0.0, 0.0
    for bound, count in zip(bounds, counts, strict=False):
        if count > 0 and seen + count >= rank:
            return low + (bound - low) * (rank - seen) / count
        seen += count
        low = bound
    return math.inf


@dataclass(frozen=True, slots=True)
class Window:
    """What was counted in the last `seconds`."""

    seconds: float
    counts: Mapping[Key, Counts]


class Looks:
    """The last looks at some histograms."""

    def __init__(self) -> None:
        self._looks: deque[tuple[float, Mapping[Key, Counts]]] = deque(maxlen=KEPT)

    def add(self, now: float, counts: Mapping[Key, Counts]) -> Window | None:
        """Takes note of a look and says what was counted since an earlier one: `WINDOW_SECONDS` ago, or as long ago as
        there was one; None at the first. A count that fell (the service is another) ends what came before it."""
        if self._looks and any(sum(counts.get(key, ())) < sum(old) for key, old in self._looks[-1][1].items()):
            self._looks.clear()
        while len(self._looks) > 1 and now - self._looks[1][0] >= WINDOW_SECONDS:
            self._looks.popleft()
        window = None
        if self._looks and now > self._looks[0][0]:
            then, old = self._looks[0]
            if now - then <= 10 * WINDOW_SECONDS:
                between = {
                    key: [after - before for after, before in zip(new, old.get(key, [0.0] * len(new)), strict=True)]
                    for key, new in counts.items()
                }
                window = Window(now - then, between)
        if not self._looks or now - self._looks[-1][0] >= SPACING_SECONDS:
            self._looks.append((now, counts))
        return window
