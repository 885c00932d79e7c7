"""The journal of one application: what is recorded, what is counted, and what is said when the disk fails.

Belongs to the event loop, as its metrics do.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from models.journal.attribution import CLICK, IMPRESSION, SKEW_SECONDS
from service.errors import Code, ConfigError, Refusal
from service.journal.exposures import exposure_of, failure_of, shadow_of
from service.journal.feedback import decode_events
from service.journal.records import Event, encode
from service.journal.segments import adopt
from service.journal.sinks import lag
from service.journal.units import unit_hasher
from service.journal.writer import DROP_REASONS, Bounds, SegmentWriter
from service.metrics import Metrics, adder

if TYPE_CHECKING:
    from service.scoring.plan import ShadowRoute
    from service.scoring.predict import Call

logger = logging.getLogger(__name__)

REMEMBERED_EVENTS = 1 << 17
EVENT_LABELS = (IMPRESSION, CLICK, "other")
OUTCOMES = ("accepted", "skewed", "duplicate", "dropped")


class Journal:
    """Keeps exposures and events of one worker in `folder`."""

    def __init__(
        self,
        folder: Path,
        bounds: Bounds,
        metrics: Metrics,
        *,
        feature_rate: float,
        is_required: bool,
        unit_key: bytes | None,
    ) -> None:
        """`is_required`: what cannot be kept is not answered either. `unit_key`: units are logged under a hash with it.
        Raises `ConfigError` where nothing can be written there."""
        self.is_required = is_required
        self._feature_rate = feature_rate
        self._hash_unit = None if unit_key is None else unit_hasher(unit_key)
        self._metrics = metrics
        try:
            self._writer = SegmentWriter(folder, bounds)
        except OSError as error:
            raise ConfigError(f"--log (RETORT_LOG): {folder}: {error.strerror or error}") from None
        lag.show(metrics, folder)
        self._recent = _Recent(REMEMBERED_EVENTS)
        self._drop = {reason: adder(metrics.log_dropped.labels(reason)) for reason in DROP_REASONS}
        self._count_exposure = adder(metrics.log_records.labels("exposure"))
        self._count_event = adder(metrics.log_records.labels("event"))
        self._count_shadow = adder(metrics.log_records.labels("shadow"))
        self._count_failure = adder(metrics.log_records.labels("failure"))
        self._count_bytes = adder(metrics.log_bytes)
        self._outcomes = {
            (event, outcome): adder(metrics.events.labels(event, outcome))
            for event in EVENT_LABELS
            for outcome in OUTCOMES
        }

    async def start(self) -> None:
        """Seals what dead writers left, and counts what of it cannot be read."""
        try:
            files, skipped = await asyncio.to_thread(adopt, self._writer.folder)
        except OSError as error:
            logger.warning("the journal's older segments cannot be read: %s", error)
            return
        self._metrics.log_torn.inc(skipped.torn + skipped.damaged)
        if files:
            logger.info(
                "%d segments of the journal were left by a worker that died: %d torn ends, %d damaged places, %d bytes",
                *(files, skipped.torn, skipped.damaged, skipped.bytes),
            )

    def close(self) -> None:
        """Syncs what was written; nothing is recorded any more."""
        self._writer.close()

    @property
    def failure(self) -> str | None:
        """Why the journal is not kept just now, or None."""
        reason = self._writer.failure
        return None if reason is None else f"the exposure log cannot be written: {reason}"

    def record(self, call: Call, scores: bytes) -> None:
        """Records a request that is about to be answered with these scores. `Refusal` where it must not be answered
        without its record."""
        exposure = exposure_of(call, scores, self._feature_rate)
        if self._hash_unit is not None:
            exposure.unit = self._hash_unit(exposure.unit)
        if self._append(encode(exposure), self._count_exposure):
            call.logged = exposure.time
        elif self.is_required:
            raise _unavailable()

    def record_failure(self, call: Call, code: Code) -> None:
        """Records a request that is refused after its arm was known, where that is not the request's own fault."""
        failure = failure_of(call, code)
        if failure is not None:
            if self._hash_unit is not None:
                failure.unit = self._hash_unit(failure.unit)
            self._append(encode(failure), self._count_failure)

    def record_shadow(self, call: Call, route: ShadowRoute, scores: bytes) -> None:
        """Records what a shadow said of a request, where that is logged itself."""
        if call.logged is not None:
            self._append(encode(shadow_of(call, route, scores)), self._count_shadow)

    def _append(self, record: bytes, count: Callable[[float], object]) -> bool:
        """Whether the record was kept; counted either way."""
        reason = self._writer.append((record,))
        if reason is None:
            count(1)
            self._count_bytes(len(record))
            return True
        self._drop[reason](1)
        return False

    def take_feedback(self, body: bytes) -> dict[str, int]:
        """Keeps the events of a body: how many were new, and how many were here before. Raises `Refusal`."""
        received = round(time.time(), 6)
        events, ignored = decode_events(body, received)
        if ignored:
            self._metrics.ignored_fields.inc(ignored)
        new = self._recent.new_among(events)
        reason = self._writer.append(records) if (records := [encode(event) for event in new.values()]) else None
        if reason is not None:
            self._drop[reason](len(records))
            for event in new.values():
                self._count(event, "dropped")
            raise _unavailable()
        self._recent.learn(new)
        for event in new.values():
            is_ahead = event.time is not None and event.time > received + SKEW_SECONDS
            self._count(event, "skewed" if is_ahead else "accepted")
        kept = set(map(id, new.values()))
        for event in events:
            if id(event) not in kept:
                self._count(event, "duplicate")
        self._count_event(len(records))
        self._count_bytes(sum(map(len, records)))
        return {"accepted": len(records), "duplicates": len(events) - len(records)}

    def _count(self, event: Event, outcome: str) -> None:
        label = event.event if event.event in EVENT_LABELS else "other"
        self._outcomes[label, outcome](1)


class _Recent:
    """Keys of the last events, by their hash: two generations, so that forgetting costs nothing.

    Two different events are taken for one with a chance of less than 2^-40.
    """

    def __init__(self, size: int) -> None:
        self._half = size // 2
        self._young: set[int] = set()
        self._old: set[int] = set()

    def new_among(self, events: list[Event]) -> dict[int, Event]:
        """Those that were not here before, each once, by the hash of their key."""
        found: dict[int, Event] = {}
        for event in events:
            key = event.key()
            if key not in self._young and key not in self._old:
                found.setdefault(key, event)
        return found

    def learn(self, events: dict[int, Event]) -> None:
        """Remembers events that were kept."""
        if len(self._young) + len(events) > self._half:
            self._old, self._young = self._young, set()
        self._young.update(events)


def _unavailable() -> Refusal:
    return Refusal(
        Code.LOG_UNAVAILABLE, "the exposure log cannot be written: try again", headers=((b"retry-after", b"1"),)
    )
