"""A folder of records -> the joined log that answers are made of: each impression with its exposure and its click.

Decided here, where all of it can be seen, and counted in `Rows.counts`:

    log_exposures             of the experiment that was asked for
    log_other_experiments     of others, and of model routes
    log_duplicate_exposures   of two exposures with one request_id the first by its time wins
    log_events                impressions and clicks, those included that are left out below
    log_duplicate_events      equal events (request, candidate, kind, event id), whichever worker wrote them: one counts
    log_orphan_events         no exposure has their request_id
    log_misplaced_events      the exposure has no such candidate, or no pctr for it
    log_skewed_events         their time cannot be: more than `SKEW_SECONDS` before the exposure, or after they were
                              received; when they were received stands in for it
    log_late_events           more than the attribution window after the exposure
    log_other_events          neither impressions nor clicks
    log_failures              requests of the experiment that were assigned and not answered
    log_shadow_scores         exposures that another arm's model scored too
    log_unreadable            records of a kind or a form that is not known here
    log_torn, log_damaged     what of the files cannot be read

An impression that is late is none; a click that is late is handed on with its time where the impression is not late,
and `fold` leaves it out. A click implies an impression.

The files are read twice: for events and the times of exposures, then for the exposures. In memory are a time a request,
the events, and the rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from models.journal.attribution import CLICK, IMPRESSION, Told, attribute
from models.journal.frames import Skipped
from models.journal.reading import read_payloads
from service.answers.rows import Rows, make_rows, row_values
from service.errors import AnswersError
from service.journal.records import Event, Failure

COUNTS = (
    *("exposures", "other_experiments", "duplicate_exposures", "events", "duplicate_events", "orphan_events"),
    *("misplaced_events", "skewed_events", "late_events", "other_events", "failures", "shadow_scores"),
    *("unreadable", "torn", "damaged"),
)


class _Head(msgspec.Struct, tag_field="kind", tag="exposure"):
    """Of an exposure, what the first reading needs."""

    request_id: str
    time: float


class _Exposure(msgspec.Struct, tag_field="kind", tag="exposure"):
    """Of an exposure, what a row needs; `records.Exposure` says what it means."""

    request_id: str
    time: float
    unit: str
    pctr: list[float | None]
    latency_ms: float
    experiment: str | None = None
    phase: int = 0
    arm: str | None = None
    served: str | None = None
    enrolled: bool = False
    forced: bool = False
    fallback: str | None = None
    context: dict[str, Any] | None = None


class _Shadow(msgspec.Struct, tag_field="kind", tag="shadow"):
    """Of shadow scores, what a row needs; `records.Shadow` says what it means."""

    request_id: str
    time: float
    arm: str
    pctr: list[float | None]


_First = _Head | Event | _Shadow | Failure
_decode_first: msgspec.json.Decoder[_First] = msgspec.json.Decoder(_First)
_decode_exposure = msgspec.json.Decoder(_Exposure).decode
_OTHERS = tuple(b'{"kind":"%b"' % kind for kind in (b"event", b"shadow", b"failure"))
_USED = -1.0


@dataclass(slots=True)
class _Found:
    """What the first reading found, by request."""

    first: dict[str, float] = field(default_factory=dict)
    """The time of the first exposure."""
    told: dict[str, list[Told]] = field(default_factory=dict)
    shadows: dict[str, _Shadow] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    """Of the experiment that was asked for."""


class _Counts(dict[str, int]):
    """Counts under their names in the report."""

    def __init__(self) -> None:
        super().__init__((f"log_{name}", 0) for name in COUNTS)

    def add(self, name: str, number: int = 1) -> None:
        self[f"log_{name}"] += number


def read_journal(folders: Sequence[Path], experiment: str, window_seconds: float, segments: Sequence[str] = ()) -> Rows:
    """The rows of one experiment in these folders. Raises `AnswersError` where a folder cannot be read.

    `window_seconds` after its exposure an event is late. `segments`: context fields, known of the exposures that hold
    their features.
    """
    counts = _Counts()
    found = _read_first(folders, experiment, counts)
    first, told = found.first, found.told
    values: list[list[Any]] = []
    bad = 0

    def add(row: dict[str, Any], context: dict[str, Any] | None) -> None:
        nonlocal bad
        for name in segments:
            row.setdefault(name, (context or {}).get(name))
        try:
            values.append(row_values(row, segments))
        except ValueError:  # a unit with a NUL in it, say
            bad += 1

    for payload in _payloads(folders, Skipped()):
        if payload.startswith(_OTHERS):
            continue
        try:
            exposure = _decode_exposure(payload)
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue  # counted by the first reading
        time = first.get(exposure.request_id)
        if time is None:  # it was written since
            continue
        if time != exposure.time:
            counts.add("duplicate_exposures")
            continue
        first[exposure.request_id] = _USED
        events = told.pop(exposure.request_id, ())
        if exposure.experiment != experiment:
            counts.add("other_experiments")
            continue
        counts.add("exposures")
        shadow = found.shadows.get(exposure.request_id)
        if shadow is not None and shadow.time != time:
            shadow = None
        counts.add("shadow_scores", shadow is not None)
        for row in _join(exposure, events, shadow, window_seconds, counts):
            add(row, exposure.context)
    for failure in found.failures:
        add(_row_of_failure(failure), None)
    counts.add("failures", len(found.failures))
    counts.add("orphan_events", sum(map(len, told.values())))
    return make_rows(values, segments, bad, counts)


def _payloads(folders: Sequence[Path], skipped: Skipped) -> Iterator[bytes]:
    for folder in folders:
        try:
            yield from read_payloads(folder, skipped)
        except OSError as error:
            raise AnswersError(f"{folder}: {error.strerror or error}") from None


def _read_first(folders: Sequence[Path], experiment: str, counts: _Counts) -> _Found:
    found = _Found()
    first = found.first
    seen: set[int] = set()
    skipped = Skipped()
    for payload in _payloads(folders, skipped):
        try:
            record = _decode_first.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError):
            counts.add("unreadable")
            continue
        if isinstance(record, _Head):
            before = first.get(record.request_id)
            if before is not None:
                record.time = min(before, record.time)
            first[record.request_id] = record.time
            continue
        if isinstance(record, _Shadow):
            found.shadows.setdefault(record.request_id, record)
            continue
        if isinstance(record, Failure):
            if record.experiment == experiment:
                found.failures.append(record)
            continue
        if record.event not in (IMPRESSION, CLICK):
            counts.add("other_events")
            continue
        counts.add("events")
        key = record.key()
        if key in seen:
            counts.add("duplicate_events")
            continue
        seen.add(key)
        event = (record.candidate, record.event == CLICK, record.time, record.received)
        found.told.setdefault(record.request_id, []).append(event)
    counts.add("torn", skipped.torn)
    counts.add("damaged", skipped.damaged)
    return found


def _row_of_failure(failure: Failure) -> dict[str, Any]:
    """The row of a request that was not answered: nothing of it was shown."""
    return {
        "request_id": failure.request_id,
        "time": failure.time,
        "unit": failure.unit,
        "experiment": failure.experiment,
        "phase": failure.phase,
        "arm": failure.arm,
        "served": failure.served,
        "enrolled": failure.enrolled,
        "forced": failure.forced,
        "error": True,
        "latency_ms": failure.latency_ms,
    }


def _join(
    exposure: _Exposure, events: Sequence[Told], shadow: _Shadow | None, window: float, counts: _Counts
) -> list[dict[str, Any]]:
    """The rows of one exposure: one for each candidate that was shown in time; else one without."""
    scored = {candidate for candidate, pctr in enumerate(exposure.pctr) if pctr is not None}
    became = attribute(events, exposure.time, scored, window)
    counts.add("misplaced_events", became.misplaced)
    counts.add("skewed_events", became.skewed)
    counts.add("late_events", became.late)
    common: dict[str, Any] = {
        "request_id": exposure.request_id,
        "time": exposure.time,
        "unit": exposure.unit,
        "experiment": exposure.experiment,
        "phase": exposure.phase,
        "arm": exposure.arm,
        "served": exposure.served,
        "enrolled": exposure.enrolled,
        "forced": exposure.forced,
        "fallback": exposure.fallback,
        "latency_ms": exposure.latency_ms,
    }
    if not became.shown:
        return [common]
    rows = []
    for candidate in sorted(became.shown):
        pctr, click_time = exposure.pctr[candidate], became.clicks.get(candidate)
        row = {**common, "candidate": candidate, "click": click_time is not None, "click_time": click_time}
        if pctr is not None and 0 < pctr < 1:  # of a score that says never or always no loss can be taken
            row["pctr"] = pctr
        unseen = shadow.pctr[candidate] if shadow is not None and candidate < len(shadow.pctr) else None
        if shadow is not None and unseen is not None and 0 < unseen < 1:
            row["shadow_arm"], row["shadow_pctr"] = shadow.arm, unseen
        rows.append(row)
    return rows
