"""Who is let in: so many requests are admitted and unanswered at once, and fewer while more come than can be scored.

Two wishes pull apart. A moment in which the process did not run (another program had the core, a model was loaded)
leaves a backlog that is gone in some milliseconds: whoever refuses it refuses for nothing, so there should be room.
Under lasting overload room is only time: as many are scored a second with a short queue as with a long one, and what
is admitted waits for all of it. The two look alike when they begin and differ a run later: after a pause nothing is
refused any more, under overload something is in every run. So

    refused in two runs on end       from then on fewer are admitted, `SUSTAINED` of the places
    in none of `CALM_RUNS` runs      all places again
    nor for `CALM_SECONDS`           likewise: where nobody asks there are no runs, and the next burst is a burst

What is bad is the queue that stands, not the one that passes (Nichols and Jacobson, Controlling Queue Delay, ACM Queue
2012). Counted in runs: a clock goes on while the process does not. Overload refuses somebody in every run, so seconds
without a refusal are none, or some in which the process stood still; what has come meanwhile is a burst as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter

ROWS_A_PLACE = 12
MOST_PLACES = 5
SUSTAINED = 0.4
"""The share of the places that may be taken while overload lasts. Of a hundred that is eight requests of 50 candidates:
five share a run, and three are there already when it ends."""
CALM_RUNS = 8
CALM_SECONDS = 5.0


def places_of(rows: int) -> int:
    """How many places a request of so many candidates takes, up to five: what waits behind it waits for all of them."""
    return min(1 + rows // ROWS_A_PLACE, MOST_PLACES)


class Admission:
    """The places of a worker. `in_flight` of them are taken, by requests that are admitted and not answered."""

    def __init__(self, places: int, runs: Callable[[], int], clock: Callable[[], float] = perf_counter) -> None:
        """`runs()`: how many runs there have been; `clock()`: seconds."""
        self.in_flight = 0
        self._runs = runs
        self._clock = clock
        self._places = self._limit = places
        self._sustained = max(1, int(SUSTAINED * places))
        self._refused_in = -2
        self._refused_at = 0.0

    @property
    def is_full(self) -> bool:
        """Whether a request that comes now is turned away."""
        if self.in_flight < self._limit:
            return False
        self._forget_what_is_over()
        return self.in_flight >= self._limit

    @property
    def is_overloaded(self) -> bool:
        """Whether overload lasts, so that fewer are let in than there are places."""
        self._forget_what_is_over()
        return self._limit < self._places

    def _forget_what_is_over(self) -> None:
        if self._limit < self._places and (
            self._runs() > self._refused_in + CALM_RUNS or self._clock() > self._refused_at + CALM_SECONDS
        ):
            self._limit = self._places

    def take(self, places: int = 1) -> None:
        """An admitted request takes places, or more of them."""
        self.in_flight += places

    def free(self, places: int = 1) -> None:
        """A request is answered."""
        self.in_flight -= places

    @contextmanager
    def taking(self, rows: int) -> Iterator[None]:
        """Inside, an admitted request that took one place takes those of so many candidates."""
        more = places_of(rows) - 1
        self.take(more)
        try:
            yield
        finally:
            self.free(more)

    def note_refusal(self) -> None:
        """Something was turned away."""
        run, now = self._runs(), self._clock()
        if run != self._refused_in:
            if run == self._refused_in + 1 and now <= self._refused_at + CALM_SECONDS:
                self._limit = self._sustained
            self._refused_in = run
        self._refused_at = now
