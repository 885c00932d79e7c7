"""Who is let in: so many requests are admitted and unanswered at once, and fewer while more come than can be scored.

Two wishes pull apart. A moment in which the process did not run (another program had the core, a model was loaded) leaves
a backlog that is gone in some milliseconds: whoever refuses then refuses for nothing, so there should be room. Under
lasting overload room is only time: as many are scored a second with a short queue as with a long one, and what is
admitted waits for all of it. The two look alike when they begin and differ one run later: after a pause nothing is
refused any more, under overload something is in every run. So

    refused in two runs on end     from then on fewer are admitted, `SUSTAINED` of the places
    hardly any is left in flight   all places again

(the idea of Nichols and Jacobson, Controlling Queue Delay, ACM Queue 2012: what stands in a queue is the fault, not what
passes through; by counting runs and not by a clock, which says nothing of a time in which the process did not run).
"""

from __future__ import annotations

from collections.abc import Callable

ROWS_A_PLACE = 12
MOST_PLACES = 5
SUSTAINED = 0.4
"""The share of the places that is used while overload lasts: more candidates than one run joins, by a half."""
CALM = 0.1
"""Overload is over when no more than this share is taken."""


def places_of(rows: int) -> int:
    """How many places a request of so many candidates takes, up to five: what waits behind it waits for all of them."""
    return min(1 + rows // ROWS_A_PLACE, MOST_PLACES)


class Admission:
    """The places of a worker. `in_flight` of them are taken, by requests that are admitted and not answered."""

    def __init__(self, places: int, runs: Callable[[], int]) -> None:
        """`runs()`: how many runs there have been."""
        self.in_flight = 0
        self._runs = runs
        self._places = self._limit = places
        self._sustained = max(1, int(SUSTAINED * places))
        self._calm = int(CALM * places)
        self._refused_in = -2

    @property
    def is_full(self) -> bool:
        """Whether a request that comes now is turned away."""
        return self.in_flight >= self._limit

    def take(self, places: int = 1) -> None:
        """An admitted request takes places, or more of them."""
        self.in_flight += places

    def free(self, places: int = 1) -> None:
        """A request is answered."""
        self.in_flight -= places
        if self.in_flight <= self._calm:
            self._limit = self._places

    def note_refusal(self) -> None:
        """Something was turned away."""
        run = self._runs()
        if run != self._refused_in:
            if run == self._refused_in + 1:
                self._limit = self._sustained
            self._refused_in = run
