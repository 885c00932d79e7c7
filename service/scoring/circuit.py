"""A circuit breaker: a model whose runs fail or are late again and again is not asked for a while.

    closed  --BAD_RUNS of the last WINDOW runs were bad-->  open
    open  --the pause is over: one probe may be made-->  half-open
    half-open  --the probe went well-->  closed
    half-open  --it did not-->  open, and the next pause is twice as long, up to LONGEST_PAUSE_SECONDS

A pure state machine over a clock: it knows neither models nor metrics. Only a closed circuit lets requests through, so
a model that is out of order costs nobody an answer; what finds out whether it is well again is the probe, which nobody
waits for (`Predictor` makes it of a copy of a request that another model answers).
"""

from __future__ import annotations

import enum
import math
from collections import deque
from collections.abc import Callable
from time import monotonic

WINDOW = 20
BAD_RUNS = 5
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0


class State(enum.IntEnum):
    """As the metric shows it: the worst of several workers is the greatest."""

    CLOSED = 1
    HALF_OPEN = 2
    OPEN = 3


class Circuit:
    """The state of one model version in one worker."""

    def __init__(
        self,
        *,
        clock: Callable[[], float] = monotonic,
        changed: Callable[[Circuit], object] = lambda circuit: None,
    ) -> None:
        """`changed` is called after each change of state."""
        self._clock = clock
        self._changed = changed
        self._recent: deque[bool] = deque(maxlen=WINDOW)  # whether each run was bad
        self._until = -math.inf
        self.state = State.CLOSED
        self.pause_seconds = FIRST_PAUSE_SECONDS
        """How long it stays open, or will when it opens next."""
        self.limit_seconds = math.inf
        """A run that takes longer is late: a bad one."""

    @property
    def is_closed(self) -> bool:
        """Whether the model may be asked."""
        return self.state is State.CLOSED

    def note(self, is_bad: bool) -> None:
        """Takes a run into account. Runs that were under way when it opened change nothing any more."""
        if self.state is not State.CLOSED:
            return
        self._recent.append(is_bad)
        if is_bad and sum(self._recent) >= BAD_RUNS:
            self._open()

    def take_probe(self) -> bool:
        """Whether whoever asks is to make the one probe; it then owes `end_probe`."""
        if self.state is not State.OPEN or self._clock() < self._until:
            return False
        self._change(State.HALF_OPEN)
        return True

    def end_probe(self, is_bad: bool | None) -> None:
        """The probe's end. None: it came to nothing and says nothing of the model; another may be made after the same
        pause."""
        assert self.state is State.HALF_OPEN, "no probe was taken"
        if is_bad is False:
            self._recent.clear()
            self.pause_seconds = FIRST_PAUSE_SECONDS
            self._change(State.CLOSED)
            return
        if is_bad:
            self.pause_seconds = min(2 * self.pause_seconds, LONGEST_PAUSE_SECONDS)
        self._open()

    def _open(self) -> None:
        self._until = self._clock() + self.pause_seconds
        self._change(State.OPEN)

    def _change(self, state: State) -> None:
        self.state = state
        self._changed(self)
