"""POST /feedback: bytes -> events, checked like a request to /predict, whole or not at all.

    {"request_id": "…", "candidate": 0, "event": "impression" | "click" | …, "time": 1795300000.5, "event_id": "…"}

or a list of these. Nothing is looked up: an event may come before its exposure is visible, late, and twice. Two events
are the same where request, candidate, kind and `event_id` are.
"""

from __future__ import annotations

import re
from typing import Any

from models.journal.attribution import CLICK, IMPRESSION
from models.values import LARGEST_INTEGER, describe
from service.errors import Code, Refusal
from service.journal.records import Event
from service.scoring.candidates import holds_wide_integer
from service.scoring.json_body import decode_json
from service.scoring.request import MAX_ID_BYTES

MAX_EVENTS = 1000
"""In one request."""
MAX_CANDIDATES = 100_000
"""More than this `--max-candidates` cannot be."""
LATEST_TIME = 1e11
"""The year 5138: a time beyond it is in milliseconds."""

_NAME = re.compile(r"[a-z][a-z0-9_.-]{0,31}")
_MEMBERS = frozenset(("request_id", "candidate", "event", "time", "event_id"))
_BEYOND = describe(LARGEST_INTEGER + 1)
_NEEDS_CANDIDATE = frozenset((IMPRESSION, CLICK))


def decode_events(body: bytes, received: float) -> tuple[list[Event], int]:
    """(the events in a body, how many members nobody reads), or `Refusal` with the row at fault."""
    given = decode_json(body)
    many = type(given) is list
    rows: list[Any] = given if many else [given]
    if not rows:
        raise Refusal(Code.INVALID_EVENT, "expected at least one event")
    if len(rows) > MAX_EVENTS:
        raise Refusal(Code.TOO_MANY_EVENTS, f"expected at most {MAX_EVENTS} events, got {len(rows)}")
    events = []
    ignored = 0
    for place, row in enumerate(rows):
        at = place if many else None
        if type(row) is not dict:
            raise Refusal(Code.INVALID_REQUEST, f"expected an event as an object, got {describe(row)}", row=at)
        try:
            events.append(_event_of(row, received))
        except Refusal as refusal:
            refusal.row = at
            raise
        ignored += len(row.keys() - _MEMBERS)
    if ignored and holds_wide_integer(given, body):
        raise Refusal(Code.NUMBER_OUT_OF_RANGE, "an integer is beyond what 64 bits can hold")
    return events, ignored


def _event_of(row: dict[str, Any], received: float) -> Event:
    get = row.get
    request_id = _text(get("request_id"), "request_id")
    event = get("event")
    if type(event) is not str:
        raise _wrong("event", "a string", event)
    if _NAME.fullmatch(event) is None:
        detail = "field 'event': expected impression, click, or a name of lower-case letters, digits, `_`, `.` and `-`"
        raise Refusal(Code.INVALID_EVENT, detail, field="event")
    candidate = get("candidate")
    if candidate is None:
        if event in _NEEDS_CANDIDATE:
            detail = "field 'candidate': expected the index of the candidate, got none"
            raise Refusal(Code.INVALID_EVENT, detail, field="candidate")
    elif type(candidate) is not int:
        raise _wrong("candidate", "an integer", candidate)
    elif not 0 <= candidate < MAX_CANDIDATES:
        raise _out_of_bounds("candidate", f"an index from 0, below {MAX_CANDIDATES}", candidate)
    time = get("time")
    if time is not None:
        if type(time) is not float and type(time) is not int:
            raise _wrong("time", "a number", time)
        if not 0 <= time <= LATEST_TIME:
            raise _out_of_bounds("time", "seconds since 1970 (milliseconds are a thousand times that)", time)
        time = float(time)
    event_id = get("event_id")
    return Event(
        request_id=request_id,
        event=event,
        received=received,
        time=time,
        candidate=candidate,
        event_id=None if event_id is None else _text(event_id, "event_id"),
    )


def _text(value: Any, field: str) -> str:
    if type(value) is not str:
        raise _wrong(field, "a string", value)
    size = len(value) if value.isascii() else len(value.encode())
    if not 1 <= size <= MAX_ID_BYTES:
        detail = f"field '{field}': expected 1 to {MAX_ID_BYTES} bytes of UTF-8, got {size}"
        raise Refusal(Code.INVALID_ID, detail, field=field)
    return value


def _wrong(field: str, expected: str, got: object) -> Refusal:
    kind = describe(got)
    code = Code.NUMBER_OUT_OF_RANGE if kind == _BEYOND else Code.WRONG_TYPE
    return Refusal(code, f"field '{field}': expected {expected}, got {kind}", field=field)


def _out_of_bounds(field: str, expected: str, got: object) -> Refusal:
    code = Code.NUMBER_OUT_OF_RANGE if describe(got) == _BEYOND else Code.INVALID_EVENT
    return Refusal(code, f"field '{field}': expected {expected}", field=field)
