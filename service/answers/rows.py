"""The joined log: what goes into an answer (a contract between whoever joins and whoever reads).

One row an impression; an exposure (a scored request) of which nothing was shown has one row without `candidate`. JSON
lines, or CSV with a header; names and meaning are the same:

    request_id           text      required; repeated on each impression of the request
    time                 number    required; seconds since 1970 (UTC), when the request was scored
    unit                 text      required; what was hashed (or its keyed hash)
    arm                  text      required; the arm *assigned*
    experiment           text      rows of another experiment are left out; absent: it is this one
    phase                integer   default 1
    enrolled, forced     boolean   default true, false; who is not enrolled or was forced is no evidence
    served               text      the arm that answered; default `arm`. Another without a fallback: `arm` was halted
    fallback             text      why another arm's model answered; absent or empty: it did not
    error                boolean   the request failed
    latency_ms           number
    candidate            integer   which candidate was shown; absent or empty: none
    pctr                 number    in (0, 1): the probability that was answered for it
    click                boolean   default false
    click_time           number    a click later than the attribution window after `time` is not counted
    shadow_arm           text      the arm whose model scored the impression too, unseen
    shadow_pctr          number    and what it said
    random               boolean   the candidate was drawn at random, not chosen by a model
    propensity           number    the probability with which it was shown
    target_propensity    number    that of the policy one asks about
    earlier_impressions  number    the unit's before the experiment; the same on all its rows
    earlier_clicks       number

What else a row has may be named as a segment (`--segment device`). Booleans are true/false or 1/0. The first of two
rows with one request and candidate wins. A row that cannot be read is skipped and counted; more than one in a thousand
refuse the file, naming the first.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.errors import AnswersError

MAX_BAD_SHARE = 0.001
MAX_TEXT_BYTES = 256
"""What the service allows a unit. A column is as wide as its longest text: one long text would fill the memory."""
LATEST = 1e11
"""The year 5138: a time beyond it is in milliseconds."""


def _text(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**64:
        return str(value)
    if not isinstance(value, str) or not value:
        raise ValueError("expected a text")
    if len(value) <= MAX_TEXT_BYTES and value.isascii() and "\0" not in value:
        return value
    if len(value) > MAX_TEXT_BYTES or len(value.encode("utf-8", "surrogatepass")) > MAX_TEXT_BYTES:
        raise ValueError(f"expected at most {MAX_TEXT_BYTES} bytes of UTF-8")
    if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError("expected a text without NUL and lone surrogates")
    return value


def _float(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError("expected a number")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError("expected a finite number")
    return number


def _time(value: object) -> float:
    number = _float(value)
    if abs(number) > LATEST:
        raise ValueError("expected seconds since 1970 (these may be milliseconds)")
    return number


def _count(value: object) -> float:
    number = _float(value)
    if number < 0:
        raise ValueError("expected a number from 0")
    return number


def _whole(value: object) -> int:
    number = _float(value)
    if not 0 <= number < 2**53 or number != int(number):
        raise ValueError("expected a whole number from 0")
    return int(number)


def _open_share(value: object) -> float:
    number = _float(value)
    if not 0 < number < 1:
        raise ValueError("expected a probability between 0 and 1")
    return number


def _share(value: object) -> float:
    number = _float(value)
    if not 0 <= number <= 1:
        raise ValueError("expected a probability from 0 to 1")
    return number


def _positive_share(value: object) -> float:
    number = _share(value)
    if number == 0:
        raise ValueError("expected a probability above 0: what was never shown cannot have been shown")
    return number


_BOOLEANS: dict[object, bool] = {"true": True, "false": False, "1": True, "0": False}


def _boolean(value: object) -> bool:
    if isinstance(value, bool) or (isinstance(value, int) and value in (0, 1)):
        return bool(value)
    found = _BOOLEANS.get(value.lower()) if isinstance(value, str) else None
    if found is None:
        raise ValueError("expected true or false")
    return found


_NOTHING = float("nan")

#: name -> (what reads it, what stands for its absence; ... where it may not be absent)
COLUMNS: Mapping[str, tuple[Callable[[object], Any], Any]] = {
    "request_id": (_text, ...),
    "time": (_time, ...),
    "unit": (_text, ...),
    "arm": (_text, ...),
    "experiment": (_text, ""),
    "phase": (_whole, 1),
    "enrolled": (_boolean, True),
    "forced": (_boolean, False),
    "served": (_text, ""),
    "fallback": (_text, ""),
    "error": (_boolean, False),
    "latency_ms": (_count, _NOTHING),
    "candidate": (_whole, -1),
    "pctr": (_open_share, _NOTHING),
    "click": (_boolean, False),
    "click_time": (_time, _NOTHING),
    "shadow_arm": (_text, ""),
    "shadow_pctr": (_open_share, _NOTHING),
    "random": (_boolean, False),
    "propensity": (_positive_share, _NOTHING),
    "target_propensity": (_share, _NOTHING),
    "earlier_impressions": (_count, _NOTHING),
    "earlier_clicks": (_count, _NOTHING),
}

_DEFAULTS = tuple(default for _, default in COLUMNS.values())
_PLACES = {name: (place, read) for place, (name, (read, _)) in enumerate(COLUMNS.items())}
_REQUIRED = tuple(name for name, (_, default) in COLUMNS.items() if default is ...)
assert tuple(COLUMNS)[: len(_REQUIRED)] == _REQUIRED, "required columns stand first"


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """The rows as columns, all of one length; `segments` by name as text, absent ones as the empty text."""

    columns: Mapping[str, NDArray[Any]]
    segments: Mapping[str, NDArray[np.str_]]
    bad: int = 0
    """Rows that could not be read."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """What whoever joined the log counted, by name; the report shows it."""

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.columns[name]

    def __len__(self) -> int:
        return len(self.columns["request_id"])

    def take(self, which: NDArray[Any]) -> Rows:
        """Some of the rows, by mask or by place."""
        return Rows(
            {name: column[which] for name, column in self.columns.items()},
            {name: column[which] for name, column in self.segments.items()},
            self.bad,
            self.counts,
        )


def read_rows(paths: Sequence[Path], segments: Sequence[str] = ()) -> Rows:
    """Every row of the files, `.csv` or JSON lines; `AnswersError` names file and line."""
    found: list[list[Any]] = []
    bad = 0
    for path in paths:
        here, first_bad, total = 0, "", 0
        try:
            for line, record in _records(path):
                total += 1
                try:
                    found.append(row_values(record, segments))
                except ValueError as error:
                    here, first_bad = here + 1, first_bad or f"{path}:{line}: {error}"
        except OSError as error:
            raise AnswersError(f"{path}: {error.strerror or error}") from None
        except UnicodeDecodeError:
            raise AnswersError(f"{path}: not UTF-8 text") from None
        if here > MAX_BAD_SHARE * total:
            raise AnswersError(f"{first_bad} ({here} of {total} rows cannot be read; docs/answers.md has the columns)")
        bad += here
    return make_rows(found, segments, bad)


def rows_of(records: Iterable[Mapping[str, object]], segments: Sequence[str] = ()) -> Rows:
    """The same from records in memory; `AnswersError` names the first that is not valid."""
    found = []
    for place, record in enumerate(records):
        try:
            found.append(row_values(record, segments))
        except ValueError as error:
            raise AnswersError(f"row {place}: {error}") from None
    return make_rows(found, segments, 0)


def make_rows(
    values: list[list[Any]], segments: Sequence[str], bad: int, counts: Mapping[str, int] | None = None
) -> Rows:
    """Columns from rows of values in the order of `COLUMNS`, then of the segments."""
    columns = list(zip(*values, strict=True)) if values else [()] * (len(COLUMNS) + len(segments))
    kinds = [_dtype(default, read) for read, default in COLUMNS.values()]
    arrays: list[NDArray[Any]] = [np.asarray(column, dtype=kind) for column, kind in zip(columns, kinds, strict=False)]
    named = {
        name: np.asarray(column, dtype=np.str_) for name, column in zip(segments, columns[len(COLUMNS) :], strict=True)
    }
    return Rows(dict(zip(COLUMNS, arrays, strict=True)), named, bad, counts or {})


def _dtype(default: object, read: Callable[[object], Any]) -> type:
    if read is _text:
        return np.str_
    if isinstance(default, bool):
        return np.bool_
    return np.int64 if read is _whole else np.float64


def row_values(record: Mapping[str, object], segments: Sequence[str]) -> list[Any]:
    """A record's values in the order of `COLUMNS`, then of the segments; `ValueError` names the column at fault."""
    values = list(_DEFAULTS)
    for name, value in record.items():  # those that are there; most columns are absent from most logs
        if name not in _PLACES or value is None or value == "":
            continue
        place, read = _PLACES[name]
        try:
            values[place] = read(value)
        except (ValueError, OverflowError) as error:
            raise ValueError(f"{name}: {error}, got {str(value)[:60]!r}") from None
    for name, value in zip(_REQUIRED, values, strict=False):
        if value is ...:
            raise ValueError(f"{name}: missing")
    for name in segments:
        value = record.get(name)
        try:
            values.append(
                "" if value is None or value == "" else _text(value if isinstance(value, int) else str(value))
            )
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return values


def _records(path: Path) -> Iterator[tuple[int, Mapping[str, object]]]:
    with path.open(encoding="utf-8", newline="") as file:
        if path.suffix == ".csv":
            reader = csv.DictReader(file, restkey="")
            for record in reader:
                yield reader.line_num, record
            return
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, _decode(line)


def _decode(line: str) -> Mapping[str, object]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return {}  # a torn line: it lacks what is required, and is counted as a bad row
    return record if isinstance(record, dict) else {}
