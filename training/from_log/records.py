"""A folder of the service -> its exposures and events: segments as workers write them, or Parquet as `compact` does.

Only what a training log needs is looked at; what a record must have and has not makes it unreadable, and is counted.
What a member means: docs/journal.md.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq

from models.journal.compacted import parts
from models.journal.frames import Skipped
from models.journal.reading import read_payloads
from training.errors import DataError

COMPACTED = "compacted.json"
"""The file by which a folder of `python -m service compact` is known."""
_BATCH_ROWS = 4096
_OTHER_KINDS = ("shadow", "failure")


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a candidate."""

    request_id: str
    kind: str
    candidate: int | None
    time: float | None
    received: float
    event_id: str | None


@dataclass(frozen=True, slots=True)
class Exposure:
    """One scored request."""

    request_id: str
    time: float
    unit: str
    pctr: Sequence[float | None]
    model: str
    version: int
    experiment: str | None
    phase: int | None
    arm: str | None
    served: str | None
    enrolled: bool
    forced: bool
    fallback: str | None
    propensity: float | None
    candidate_ids: Sequence[str] | None
    context: Mapping[str, Any] | None
    """None where features were not logged, or the request had none."""
    candidates: Sequence[Any] | Mapping[str, Any] | None


def read_records(folders: Sequence[Path], counts: Counter[str]) -> Iterator[Exposure | Event]:
    """Every exposure and event, in no order. `DataError` where a folder cannot be read.

    Adds to `counts`: torn, damaged, unreadable, failures (requests that were not answered).
    """
    for folder in folders:
        try:
            if not folder.is_dir():
                raise DataError(f"{folder}: expected the folder of the service's --log, or of its `compact`")
            yield from (_compacted if (folder / COMPACTED).is_file() else _segments)(folder, counts)
        except OSError as error:
            raise DataError(f"{folder}: cannot be read: {error.strerror or error}") from None


def _segments(folder: Path, counts: Counter[str]) -> Iterator[Exposure | Event]:
    skipped = Skipped()
    for payload in read_payloads(folder, skipped):
        try:
            record = json.loads(payload, parse_constant=_refuse)
            kind = record.get("kind")
        except (ValueError, RecursionError, AttributeError):
            counts["unreadable"] += 1
            continue
        yield from _read(kind, record, counts)
    counts["torn"] += skipped.torn
    counts["damaged"] += skipped.damaged


def _compacted(folder: Path, counts: Counter[str]) -> Iterator[Exposure | Event]:
    for part in parts(folder):
        for kind, table in (("exposure", "exposures"), ("event", "events"), ("failure", "failures")):
            for path in sorted((part / table).glob("*/*.parquet")):
                for record in _rows(path):
                    try:
                        for name in ("context", "candidates"):
                            if (text := record.get(name)) is not None:
                                record[name] = json.loads(text, parse_constant=_refuse)
                    except (ValueError, RecursionError):
                        counts["unreadable"] += 1
                        continue
                    yield from _read(kind, record, counts)
        for record in _rows(part / "segments.parquet"):
            for name in ("torn", "damaged", "unreadable"):
                counts[name] += record[name] or 0


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(_BATCH_ROWS, use_threads=False):
                yield from batch.to_pylist()
    except FileNotFoundError:
        raise DataError(
            f"{path}: has gone meanwhile (`compact` makes parts one, and removes old days): try again"
        ) from None
    except pa.ArrowException as error:
        raise DataError(f"{path}: is damaged: {error}; compact the segments again, if they are still there") from None


def _read(kind: object, record: dict[str, Any], counts: Counter[str]) -> Iterator[Exposure | Event]:
    try:
        if kind == "exposure":
            yield _exposure(record)
        elif kind == "event":
            yield _event(record)
        elif kind in _OTHER_KINDS:
            counts["failures"] += kind == "failure"
        else:
            counts["unreadable"] += 1
    except (KeyError, TypeError):
        counts["unreadable"] += 1


def _exposure(record: dict[str, Any]) -> Exposure:
    get = record.get
    pctr = _typed(record["pctr"], list)
    context, candidates = get("context"), get("candidates")
    ids = get("candidate_ids")
    return Exposure(
        request_id=_typed(record["request_id"], str),
        time=float(_typed(record["time"], int, float)),
        unit=_typed(record["unit"], str),
        pctr=[None if score is None else float(_typed(score, int, float)) for score in pctr],
        model=_typed(record["model"], str),
        version=_typed(record["version"], int),
        experiment=_optional(get("experiment"), str),
        phase=_optional(get("phase"), int) if get("experiment") is not None else None,  # in Parquet it is 0
        arm=_optional(get("arm"), str),
        served=_optional(get("served"), str),
        enrolled=bool(get("enrolled")),
        forced=bool(get("forced")),
        fallback=_optional(get("fallback"), str),
        propensity=_optional(get("propensity"), int, float),
        candidate_ids=None if ids is None else [_typed(one, str) for one in _typed(ids, list)],
        context=_optional(context, dict),
        candidates=_optional(candidates, list, dict),
    )


def _event(record: dict[str, Any]) -> Event:
    return Event(
        request_id=_typed(record["request_id"], str),
        kind=_typed(record["event"], str),
        candidate=_optional(record.get("candidate"), int),
        time=_optional(record.get("time"), int, float),
        received=_typed(record["received"], int, float),
        event_id=_optional(record.get("event_id"), str),
    )


def _typed(value: Any, *kinds: type) -> Any:
    if type(value) not in kinds:
        raise TypeError
    return value


def _optional(value: Any, *kinds: type) -> Any:
    return None if value is None else _typed(value, *kinds)


def _refuse(token: str) -> NoReturn:
    raise ValueError(token)  # NaN and Infinity, which the service takes from nobody
