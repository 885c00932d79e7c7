"""Records as they come -> sums by unit of each arm, for the rails of one phase of one experiment.

    at once         requests, errors, fallbacks, slow answers; impressions and clicks
    after a while   clicks and predicted clicks, once an impression's attribution window has closed: before that its
                    click may still come, and every model would seem to promise too much

A request is in memory for its window, so that its events find it. Where too many are, or too many units, whole units
are left out from then on, half of them each time, by a hash that knows nothing of arms: what is left is a sample of
units, on which every rail means what it meant before.
"""

from __future__ import annotations

import math
import os
from array import array
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from models.journal.attribution import SKEW_SECONDS
from service.answers import guard_rails, lift
from service.answers.fold import SCORED_CLICKS
from service.answers.moments import Moments

MAX_OPEN = 200_000
"""Requests of a phase in memory."""
MAX_UNITS = 400_000
NAMES = (
    *(guard_rails.REQUESTS, guard_rails.ERRORS, guard_rails.FALLBACKS, guard_rails.SLOW),
    *(lift.IMPRESSIONS, lift.CLICKS, SCORED_CLICKS, guard_rails.PREDICTED),
)
REQUESTS, ERRORS, FALLBACKS, SLOW, IMPRESSIONS, CLICKS, SCORED, PREDICTED = range(len(NAMES))


class UnitSums:
    """Totals of `NAMES` by unit, of one arm."""

    def __init__(self) -> None:
        self._rows: dict[str, int] = {}
        self._sums: NDArray[np.float64] = np.zeros((1024, len(NAMES)))

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, unit: str, column: int, value: float = 1.0) -> None:
        """Adds to one total of a unit."""
        row = self._rows.get(unit)
        if row is None:
            row = self._rows[unit] = len(self._rows)
            if row == len(self._sums):
                self._sums = np.concatenate((self._sums, np.zeros_like(self._sums)))
        self._sums[row, column] += value

    def keep(self, mask: int) -> None:
        """Leaves out the units whose hash is not in a sample."""
        kept = [unit for unit in self._rows if _is_kept(unit, mask)]
        sums = self._sums[[self._rows[unit] for unit in kept]]
        self._rows = {unit: row for row, unit in enumerate(kept)}
        self._sums = np.concatenate((sums, np.zeros((max(1024, len(kept)), len(NAMES)))))

    def total(self, column: int) -> float:
        """Over all units."""
        return float(self._sums[: len(self._rows), column].sum())

    def moments(self, **columns: int) -> Moments:
        """Moments of some totals under other names, over the units for which not all are 0."""
        picked = self._sums[: len(self._rows), list(columns.values())]
        picked = picked[np.any(picked != 0, axis=1)]
        return Moments.of_units(**dict(zip(columns, picked.T, strict=True)))


@dataclass(slots=True)
class _Request:
    """What the events of a request are held against."""

    arm: str
    unit: str
    time: float
    pctr: array[float]
    """nan where there is none."""
    is_scored: bool
    """Whether these are the arm's own model's."""
    clicked: dict[int, bool] = field(default_factory=dict)
    """Candidates that were shown, and whether they were clicked."""


_KEY = os.urandom(16)
"""Nobody outside can choose units that are in every sample, and so crowd out all others."""


def _is_kept(unit: str, mask: int) -> bool:
    if mask == 0:
        return True
    return int.from_bytes(blake2b(unit.encode(), digest_size=8, key=_KEY).digest()) & mask == 0


class PhaseEvidence:
    """Everything the rails of one phase are judged on. Adds up what happened after `since`, in seconds since 1970."""

    def __init__(self, *, since: float, window: float, slow_above_ms: float | None) -> None:
        """`window`: the attribution window in seconds."""
        self.since = since
        self._window = window
        self._slow_above_ms = math.inf if slow_above_ms is None else slow_above_ms
        self._arms: dict[str, UnitSums] = {}
        self._open: dict[str, _Request] = {}
        self._order: deque[str] = deque()
        self._mask = 0

    def of(self, arm: str) -> UnitSums:
        """The sums of an arm."""
        sums = self._arms.get(arm)
        if sums is None:
            sums = self._arms[arm] = UnitSums()
        return sums

    @property
    def open_requests(self) -> int:
        """Requests that wait for their windows to close."""
        return len(self._open)

    @property
    def share_of_units(self) -> float:
        """The share of units that is looked at."""
        return 1.0 / (self._mask + 1)

    def add_answer(
        self,
        request_id: str,
        arm: str,
        unit: str,
        time: float,
        *,
        pctr: list[float | None],
        latency_ms: float,
        fell_back: bool,
    ) -> None:
        """Of an enrolled unit, answered on behalf of its arm; of two with one request id the first counts."""
        if time < self.since or request_id in self._open or not _is_kept(unit, self._mask):
            return
        sums = self.of(arm)
        sums.add(unit, REQUESTS)
        if fell_back:
            sums.add(unit, FALLBACKS)
        if latency_ms > self._slow_above_ms:
            sums.add(unit, SLOW)
        scores = array("d", [math.nan if score is None else score for score in pctr])
        self._open[request_id] = _Request(arm, unit, time, scores, not fell_back)
        self._order.append(request_id)
        if len(self._open) > MAX_OPEN or sum(map(len, self._arms.values())) > MAX_UNITS:
            self._leave_out()

    def add_failure(self, arm: str, unit: str, time: float, *, latency_ms: float) -> None:
        """Of an enrolled unit, not answered."""
        if time >= self.since and _is_kept(unit, self._mask):
            sums = self.of(arm)
            sums.add(unit, REQUESTS)
            sums.add(unit, ERRORS)
            if latency_ms > self._slow_above_ms:
                sums.add(unit, SLOW)

    def add_event(
        self, request_id: str, candidate: int | None, is_click: bool, time: float | None, received: float
    ) -> bool:
        """Whether the request is known. An event that comes twice counts once, a click implies an impression, and a
        time that cannot be is replaced by that of receipt, as in results (`models/journal/attribution.py`)."""
        request = self._open.get(request_id)
        if request is None:
            return False
        if candidate is None or candidate >= len(request.pctr) or math.isnan(request.pctr[candidate]):
            return True
        if time is None or time > received + SKEW_SECONDS or time < request.time - SKEW_SECONDS:
            time = received
        if time - request.time > self._window:
            return True
        sums, before = self.of(request.arm), request.clicked.get(candidate)
        if before is None:
            sums.add(request.unit, IMPRESSIONS)
        if is_click and not before:
            sums.add(request.unit, CLICKS)
        request.clicked[candidate] = is_click or bool(before)
        return True

    def close_windows(self, now: float) -> None:
        """Takes what predictions came to where no click counts any more."""
        until = now - self._window - SKEW_SECONDS
        while self._order:
            request = self._open.get(self._order[0])
            if request is not None:
                if request.time > until:
                    return
                del self._open[self._order[0]]
                self._settle(request)
            self._order.popleft()

    def _settle(self, request: _Request) -> None:
        if not request.is_scored:
            return
        sums = self.of(request.arm)
        for candidate, is_clicked in request.clicked.items():
            sums.add(request.unit, PREDICTED, request.pctr[candidate])
            if is_clicked:
                sums.add(request.unit, SCORED)

    def _leave_out(self) -> None:
        self._mask = 2 * self._mask + 1
        for sums in self._arms.values():
            sums.keep(self._mask)
        self._open = {name: request for name, request in self._open.items() if _is_kept(request.unit, self._mask)}
        self._order = deque(name for name in self._order if name in self._open)

    def counts(self) -> Iterator[tuple[str, dict[str, float]]]:
        """By arm, every total and the number of units."""
        for arm, sums in sorted(self._arms.items()):
            yield arm, {"units": float(len(sums)), **{name: sums.total(k) for k, name in enumerate(NAMES)}}
