"""Exposures, events, a window and a moment -> the rows of a training log, and a count of everything that is none.

One row an impression: its exposure, its features, and whether it was clicked within the attribution window. An
impression is written once its window has closed, clicked or not: to write clicks earlier than their absence would make
every rate too high. Candidates of which nobody knows a click, not shown or still waiting, make rows of another table
where they are asked for: a student learns from them without.

The records are read twice: for events and the times of exposures, then for the exposures. In memory are a time a
request, the events, and the rows, packed in columns.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from models.journal.attribution import CLICK, IMPRESSION, Attributed, Told, attribute
from models.schema import FeatureSchema
from training.errors import DataError
from training.from_log.features import FeatureColumns
from training.from_log.records import Event, Exposure, read_records
from training.pipeline.stages import Report

FLUSH_ROWS = 8192

FACTS: Mapping[str, pa.DataType] = {
    "request_id": pa.string(),
    "candidate": pa.int32(),
    "time": pa.timestamp("us", tz="UTC"),
    "unit": pa.string(),
    "click": pa.int8(),
    "click_seconds": pa.float64(),
    "experiment": pa.string(),
    "phase": pa.int64(),
    "arm": pa.string(),
    "served": pa.string(),
    "enrolled": pa.bool_(),
    "propensity": pa.float64(),
    "model": pa.string(),
    "version": pa.int64(),
    "fallback": pa.string(),
    "pctr": pa.float64(),
}
"""What the log says of an impression beside its features. `time` is when it was scored: all impressions of a request
have one; `click_seconds` is how much later it was clicked; `propensity` that of the arm."""
SPLIT = "split"
"""The column that says which part a row is in."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Which exposures become rows."""

    window_seconds: float
    """The attribution window."""
    as_of: float | None = None
    """Seconds since 1970: exposures whose window closes later wait. None: the time of the last record."""
    experiment: str | None = None
    """Of this experiment alone; None: all of them, and requests outside any."""
    keep_forced: bool = False
    """Requests that forced an arm, too."""
    unlabelled: float = 0.0
    """So much of the candidates that make no row, because they were not shown or wait, makes one without a click."""


@dataclass(slots=True)
class Joined:
    """The rows, and what became of everything else."""

    table: pa.Table
    """The columns of `FACTS`, then the features; sorted by time, request and candidate."""
    features: FeatureColumns
    as_of: float
    counts: Counter[str] = field(default_factory=Counter)
    unlabelled: pa.Table | None = None
    """The same columns of candidates without a click; None where none were asked for, or are there."""


def join(
    folders: Sequence[Path],
    schema: FeatureSchema,
    choice: Choice,
    *,
    catalogue: Mapping[str, Mapping[str, Any]] | None = None,
    progress: Report | None = None,
) -> Joined:
    """The training log of these folders. `catalogue`: candidates by id, for requests that named theirs.

    Raises `DataError` where a folder cannot be read or no row is left, saying what became of them.
    """
    counts: Counter[str] = Counter()
    first, told, last = _first_reading(folders, counts, progress)
    as_of = last if choice.as_of is None else choice.as_of
    rows, others = _Rows(schema), _Rows(schema)
    total, done = len(first), 0
    for exposure in read_records(folders, Counter()):
        if isinstance(exposure, Event):
            continue
        time = first.get(exposure.request_id)
        if time is None:
            continue  # it was written since
        if time != exposure.time:
            counts["duplicate_exposures"] += 1
            continue
        first[exposure.request_id] = float("nan")  # used: a second one of that very time is a duplicate
        became = _became(exposure, told.pop(exposure.request_id, ()), choice.window_seconds, counts)
        left_out = _left_out(exposure, became, choice, as_of)
        if left_out is None:
            left_out = rows.add(exposure, became, choice.window_seconds, catalogue or {}, counts)
        if choice.unlabelled and left_out in (None, "young", "not_shown"):
            known = became.shown if left_out is None else frozenset[int]()
            others.add_unlabelled(exposure, known, choice.unlabelled, catalogue or {})
        if left_out is not None:
            counts[left_out] += 1
            counts[f"{left_out}_impressions"] += len(became.shown)
        done += 1
        if progress is not None and done % FLUSH_ROWS == 0:
            progress(done, total, f"{rows.count} rows")
    counts["orphan_events"] += sum(map(len, told.values()))
    table = rows.table()
    counts["rows"], counts["clicks"] = len(table), sum(table["click"].to_pylist())
    if not len(table):
        became_of = (
            ", ".join(f"{name} {count}" for name, count in sorted(counts.items()) if count) or "no record at all"
        )
        where = ", ".join(map(str, folders))
        raise DataError(f"{where}: no impression is left to train on: {became_of}. {_advice(counts)}")
    if choice.unlabelled:
        counts["unlabelled"] = others.count
    return Joined(table, rows.features, as_of, counts, others.table() if others.count else None)


def _advice(counts: Counter[str]) -> str:
    if counts["without_features_impressions"]:
        return "Features are logged where the service runs with --log-features above 0."
    if counts["young_impressions"]:
        return "The window of those that wait has not closed: say --window, or --as-of, or come later."
    return "See docs/journal.md for what each count means."


def _first_reading(
    folders: Sequence[Path], counts: Counter[str], progress: Report | None
) -> tuple[dict[str, float], dict[str, list[Told]], float]:
    """(the time of each request's first exposure, what was told of it, the time of the last record)."""
    first: dict[str, float] = {}
    told: dict[str, list[Told]] = {}
    seen: set[int] = set()
    last = 0.0
    for number, record in enumerate(read_records(folders, counts)):
        if isinstance(record, Exposure):
            counts["exposures"] += 1
            last = max(last, record.time)
            first[record.request_id] = min(record.time, first.get(record.request_id, record.time))
        else:
            last = max(last, record.received)
            if record.kind not in (IMPRESSION, CLICK):
                counts["other_events"] += 1
                continue
            counts["events"] += 1
            key = hash((record.request_id, record.candidate, record.kind, record.event_id))
            if key in seen:
                counts["duplicate_events"] += 1
                continue
            seen.add(key)
            event = (record.candidate, record.kind == CLICK, record.time, record.received)
            told.setdefault(record.request_id, []).append(event)
        if progress is not None and number % FLUSH_ROWS == 0:
            progress(0, 1, f"{number} records")
    return first, told, last


def _became(exposure: Exposure, events: Sequence[Told], window: float, counts: Counter[str]) -> Attributed:
    scored = {candidate for candidate, pctr in enumerate(exposure.pctr) if pctr is not None}
    became = attribute(events, exposure.time, scored, window)
    counts["misplaced_events"] += became.misplaced
    counts["skewed_events"] += became.skewed
    counts["late_events"] += became.late
    return became


def _left_out(exposure: Exposure, became: Attributed, choice: Choice, as_of: float) -> str | None:
    """Why an exposure makes no row, by what can be said before its features are looked at."""
    if choice.experiment is not None and exposure.experiment != choice.experiment:
        return "other_experiments"
    if exposure.forced and not choice.keep_forced:
        return "forced"
    if exposure.time + choice.window_seconds > as_of:
        return "young"
    if not became.shown:
        return "not_shown"
    return None


class _Rows:
    """Rows that are being collected."""

    def __init__(self, schema: FeatureSchema) -> None:
        self.features = FeatureColumns(schema, (*FACTS, SPLIT))
        self._serving = {field.name: field.serving_value for field in schema.training_only_fields}
        self.count = 0
        self._facts: dict[str, list[Any]] = {name: [] for name in FACTS}
        self._packed: list[pa.RecordBatch] = []

    def add(
        self,
        exposure: Exposure,
        became: Attributed,
        window: float,
        catalogue: Mapping[str, Mapping[str, Any]],
        counts: Counter[str],
    ) -> str | None:
        """A row for each impression; or why the exposure makes none."""
        candidates = _candidates(exposure, catalogue)
        if candidates is None:
            return "without_features"
        for index in sorted(became.shown):
            candidate = candidates[index] if index < len(candidates) else None
            if candidate is None:
                counts["candidates_unknown_impressions"] += 1
                continue
            after = became.clicks.get(index)
            seconds = None if after is None else after - exposure.time
            if seconds is not None and seconds > window:
                counts["late_clicks"] += 1
                seconds = None
            self._append(exposure, index, candidate, int(seconds is not None), seconds)
        return None

    def add_unlabelled(
        self,
        exposure: Exposure,
        known: Collection[int],
        share: float,
        catalogue: Mapping[str, Mapping[str, Any]],
    ) -> None:
        """A row for this share of its scored candidates that are not `known`, drawn by request and candidate.

        What is known only of those shown, as the place, is what stands in for it when serving.
        """
        serving = {name: value for name, value in self._serving.items() if name not in (exposure.context or {})}
        for index, candidate in enumerate(_candidates(exposure, catalogue) or ()):
            is_scored = index < len(exposure.pctr) and exposure.pctr[index] is not None
            if is_scored and candidate is not None and index not in known and _is_drawn(exposure, index, share):
                self._append(exposure, index, serving | dict(candidate), None, None)

    def _append(
        self, exposure: Exposure, index: int, candidate: Mapping[str, Any], click: int | None, seconds: float | None
    ) -> None:
        facts = (
            *(exposure.request_id, index, round(1e6 * exposure.time), exposure.unit, click, seconds),
            *(exposure.experiment, exposure.phase, exposure.arm, exposure.served or exposure.arm),
            *(exposure.enrolled, exposure.propensity, exposure.model, exposure.version, exposure.fallback),
            exposure.pctr[index],
        )
        for column, value in zip(self._facts.values(), facts, strict=True):
            column.append(value)
        self.features.add(exposure.context or {}, candidate)
        self.count += 1
        if len(self._facts["time"]) >= FLUSH_ROWS:
            self._flush()

    def _flush(self) -> None:
        arrays = [pa.array(self._facts[name], kind) for name, kind in FACTS.items()]
        self._packed.append(pa.record_batch(arrays, names=list(FACTS)))
        self._facts = {name: [] for name in FACTS}
        self.features.flush()

    def table(self) -> pa.Table:
        """Everything, in the order of time."""
        self._flush()
        table = pa.Table.from_batches(self._packed)
        for name, column in self.features.table().items():
            table = table.append_column(name, column)
        return table.sort_by([(name, "ascending") for name in ("time", "request_id", "candidate")])


def _is_drawn(exposure: Exposure, index: int, share: float) -> bool:
    """Whoever reads the records in whatever order draws the same."""
    if share == 1:
        return True
    digest = hashlib.sha256(f"{exposure.request_id}:{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def _candidates(
    exposure: Exposure, catalogue: Mapping[str, Mapping[str, Any]]
) -> Sequence[Mapping[str, Any] | None] | None:
    """The features of each candidate, None where nothing is known of one; None altogether where none were logged."""
    given = exposure.candidates
    if given is None:
        if exposure.candidate_ids is None or exposure.context is None or not catalogue:
            return None
        return [catalogue.get(one) for one in exposure.candidate_ids]
    if isinstance(given, Mapping):
        columns = {name: values for name, values in given.items() if isinstance(values, list)}
        return [
            {name: values[index] for name, values in columns.items() if index < len(values)}
            for index in range(len(exposure.pctr))
        ]
    return [row if isinstance(row, dict) else None for row in given]
