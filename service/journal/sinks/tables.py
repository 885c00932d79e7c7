"""A record of the journal -> a row; the tables, the same in Parquet, DuckDB and PostgreSQL (a contract: stored data).

A record has a key of three columns for ever: `source`, the journal it was written to; `segment`, the file; `place`, the
byte in it. So a record that is handed on twice is known again, and two records that say the same stay two, to be
counted as the duplicates they are. Ordered by the key, records stand as they were written.

What is a member of a record and no column here is in `rest`, as JSON: nothing is lost to a table made before it was.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import msgspec

from service.errors import ConfigError

FORMAT_VERSION = 1
SOURCE_FILE = "source.id"
"""In a journal's folder: the random name by which its records are known elsewhere, whatever the folder is called."""
_SOURCE = re.compile(r"[!-~]{1,64}")
"""Ours has 16 hex digits; somebody may have written a name of his own."""

KEY: Mapping[str, str] = {"source": "text", "segment": "text", "place": "bigint"}

EXPOSURES: Mapping[str, str] = {
    **KEY,
    "request_id": "text",
    "time": "double precision",
    "unit": "text",
    "model": "text",
    "version": "bigint",
    "pctr": "double precision[]",
    "latency_ms": "double precision",
    "experiment": "text",
    "phase": "bigint",
    "arm": "text",
    "served": "text",
    "enrolled": "boolean",
    "forced": "boolean",
    "fallback": "text",
    "propensity": "double precision",
    "candidate_ids": "text[]",
    "context": "text",
    "candidates": "text",
    "rest": "text",
}
"""`records.Exposure` says what they mean. `context`, `candidates` and `rest` hold JSON."""

EVENTS: Mapping[str, str] = {
    **KEY,
    "request_id": "text",
    "event": "text",
    "received": "double precision",
    "time": "double precision",
    "candidate": "bigint",
    "event_id": "text",
    "rest": "text",
}

SHADOWS: Mapping[str, str] = {
    **KEY,
    "request_id": "text",
    "time": "double precision",
    "experiment": "text",
    "arm": "text",
    "model": "text",
    "version": "bigint",
    "pctr": "double precision[]",
    "rest": "text",
}

FAILURES: Mapping[str, str] = {
    **KEY,
    "request_id": "text",
    "time": "double precision",
    "unit": "text",
    "experiment": "text",
    "phase": "bigint",
    "arm": "text",
    "code": "text",
    "latency_ms": "double precision",
    "served": "text",
    "enrolled": "boolean",
    "forced": "boolean",
    "rest": "text",
}

SEGMENTS: Mapping[str, str] = {
    **KEY,
    "is_done": "boolean",
    "torn": "bigint",
    "damaged": "bigint",
    "unreadable": "bigint",
    "lost_bytes": "bigint",
}
"""How far each file was read (`place` is the first byte that was not), what of it could not be, and how many bytes
retention removed before anybody read them."""

WINDOWS: Mapping[str, str] = {"experiment": "text", "seconds": "double precision"}
"""The attribution window of each experiment; where an experiment has no row, it is a day."""

DATA = {"exposures": EXPOSURES, "events": EVENTS, "shadows": SHADOWS, "failures": FAILURES}
TABLES = {**DATA, "segments": SEGMENTS, "windows": WINDOWS}

Integer = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
Index = Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 2)]
"""What PostgreSQL takes for a place in a list."""


class _Exposure(msgspec.Struct, tag_field="kind", tag="exposure"):
    request_id: str
    time: float
    unit: str
    latency_ms: float
    pctr: list[float | None]
    model: str | None = None
    version: Integer | None = None
    experiment: str | None = None
    phase: Integer = 0
    arm: str | None = None
    served: str | None = None
    enrolled: bool = False
    forced: bool = False
    fallback: str | None = None
    propensity: float | None = None
    candidate_ids: list[str] | None = None
    context: dict[str, Any] | None = None
    candidates: msgspec.Raw = msgspec.Raw()


class _Event(msgspec.Struct, tag_field="kind", tag="event"):
    request_id: str
    event: str
    received: float
    time: float | None = None
    candidate: Index | None = None
    event_id: str | None = None


class _Shadow(msgspec.Struct, tag_field="kind", tag="shadow"):
    request_id: str
    time: float
    arm: str
    pctr: list[float | None]
    experiment: str | None = None
    model: str | None = None
    version: Integer | None = None


class _Failure(msgspec.Struct, tag_field="kind", tag="failure"):
    request_id: str
    time: float
    unit: str
    experiment: str
    phase: Integer
    arm: str
    code: str
    latency_ms: float
    served: str | None = None
    enrolled: bool = False
    forced: bool = False


_Record = _Exposure | _Event | _Shadow | _Failure
_TABLE_OF: Mapping[type, str] = {_Exposure: "exposures", _Event: "events", _Shadow: "shadows", _Failure: "failures"}

_decoder: msgspec.json.Decoder[_Record] = msgspec.json.Decoder(_Record)
_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode
_KNOWN = {table: frozenset((*columns, "kind")) for table, columns in DATA.items()}


@dataclass(frozen=True, slots=True)
class Row:
    """One record: `values` by column, without `source`."""

    table: str
    """One of `DATA`."""
    at: float
    """When it was written, in seconds since 1970: the day it belongs to."""
    values: dict[str, Any]


def row_of(segment: str, place: int, payload: bytes) -> Row | None:
    """The row of one record, or None for one of a kind or a form that is not known here."""
    try:
        record = _decoder.decode(payload)
        members = _members(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    table = _TABLE_OF[type(record)]
    values: dict[str, Any] = {"segment": segment, "place": place}
    for name in record.__struct_fields__:
        values[name] = getattr(record, name)
    if isinstance(record, _Exposure):
        values["context"] = None if record.context is None else _text(members["context"])
        values["candidates"] = _text(record.candidates) if bytes(record.candidates) not in (b"", b"null") else None
    rest = {name: value for name, value in members.items() if name not in _KNOWN[table]}
    values["rest"] = _encode(rest).decode() if rest else None
    return Row(table, record.received if isinstance(record, _Event) else record.time, values)


def _text(raw: msgspec.Raw) -> str:
    return bytes(raw).decode()


def day_of(seconds: float) -> str:
    """The UTC day, as YYYY-MM-DD; the first or the last there is for a time beyond them."""
    return date.fromordinal(min(max(719_163 + int(seconds // 86_400), 1), date.max.toordinal())).isoformat()


def create_tables() -> Iterator[str]:
    """The statements that make the tables where they are not there yet."""
    for table, columns in TABLES.items():
        named = ", ".join(f"{name} {kind}{' NOT NULL' if name in KEY else ''}" for name, kind in columns.items())
        keys = {"segments": "source, segment", "windows": "experiment"}.get(table, "source, segment, place")
        yield f"CREATE TABLE IF NOT EXISTS {table} ({named}, PRIMARY KEY ({keys}))"


def view_statements() -> list[str]:
    """The statements of `views.sql`, one a view."""
    text = files(__package__).joinpath("views.sql").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("--")]
    return [statement for statement in "\n".join(lines).split(";") if statement.strip()]


def read_source(folder: Path) -> str:
    """The name by which this journal's records are known elsewhere; made when first asked for. Raises `ConfigError`
    where it is none any more: records of two journals without a name would be taken for one another, and one of each
    two be lost."""
    path = folder / SOURCE_FILE
    if not path.exists():
        temporary = folder / f"{SOURCE_FILE}.{os.getpid()}"
        try:
            with temporary.open("w", encoding="ascii") as file:
                file.write(secrets.token_hex(8))
                file.flush()
                os.fsync(file.fileno())  # or the power fails, and the name is there without what it says
            os.link(temporary, path)  # of two who do this at the same time one wins
        except FileExistsError:
            pass
        finally:
            temporary.unlink(missing_ok=True)
    name = path.read_bytes().strip().decode("ascii", "replace")
    if _SOURCE.fullmatch(name) is None:
        raise ConfigError(
            f"{path}: expected the name of this log, at most 64 signs without blanks, got something else: write there "
            "what stands as `source` beside its records elsewhere; removed, it is made anew, and everything is handed "
            "on once more under the new name"
        )
    return name
