"""The request of `/predict`: its members, checked; its values are the encoder's.

body -> PredictRequest -> ids
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from models.encoder import EncodedRows
from models.errors import EncodeError
from models.values import LARGEST_INTEGER, SMALLEST_INTEGER, describe
from service.errors import Code, Refusal
from service.scoring.candidates import Envelope
from service.scoring.json_body import decode_json
from service.scoring.scorer import Scorer

MAX_ID_BYTES = 256
MAX_DEADLINE_MS = 3_600_000.0

MEMBERS = frozenset(
    ("request_id", "unit_id", "context", "candidates", "candidate_ids", "experiment", "arm", "deadline_ms")
)
_BEYOND = describe(LARGEST_INTEGER + 1)


class PredictRequest:
    """A decoded request with `count` candidates, in `rows`, `columns` or `ids` of the catalogue; in none of them, and
    without `members`, where they are known by their bytes (`candidates.py`)."""

    __slots__ = (
        *("arm", "columns", "context", "count", "deadline_seconds"),
        *("experiment", "ids", "ignored", "members", "request_id", "rows", "unit"),
    )

    request_id: str
    unit: str
    context: dict[str, Any]
    rows: list[Any] | None
    columns: dict[str, list[Any]] | None
    ids: list[str] | None
    count: int
    experiment: str | None
    arm: str | None
    deadline_seconds: float | None
    ignored: int
    members: dict[str, Any] | None


def decode_request(body: bytes, max_candidates: int, new_id: Callable[[], str]) -> PredictRequest:
    """The request that a body holds, or `Refusal`. Feature values are checked later, by the encoder.

    Of two members with one name the last counts, as in every common JSON reader.
    """
    members = decode_json(body)
    if type(members) is not dict:
        raise Refusal(Code.INVALID_REQUEST, f"expected an object, got {describe(members)}")
    get = members.get
    request = PredictRequest()
    request.members = members
    request.ignored = len(members.keys() - MEMBERS)

    names = ("request_id", "unit_id", "context", "experiment", "arm", "deadline_ms")
    _take_members(request, new_id, *map(get, names))
    _take_candidates(request, get("candidates"), get("candidate_ids"), max_candidates)
    return request


def _take_members(
    request: PredictRequest,
    new_id: Callable[[], str],
    request_id: Any,
    unit: Any,
    context: Any,
    experiment: Any,
    arm: Any,
    deadline_ms: Any,
) -> None:
    """Checks every member but the candidates; None is absent."""
    request.request_id = new_id() if request_id is None else _checked_id(request_id, "request_id")
    if unit is None:
        request.unit = request.request_id
    elif type(unit) is int:
        if not SMALLEST_INTEGER <= unit <= LARGEST_INTEGER:
            raise _wrong_type("unit_id", "an integer of at most 64 bits", unit)
        request.unit = str(unit)
    else:
        request.unit = _checked_id(unit, "unit_id")
    request.experiment = _optional_string(experiment, "experiment")
    request.arm = _optional_string(arm, "arm")
    request.deadline_seconds = None if deadline_ms is None else _checked_deadline(deadline_ms)
    if context is not None and type(context) is not dict:
        raise _wrong_type("context", "an object", context)
    request.context = context or {}


def _take_candidates(request: PredictRequest, candidates: Any, ids: Any, max_candidates: int) -> None:
    request.rows = request.columns = request.ids = None
    if ids is not None:
        if type(ids) is not list or not {str}.issuperset(map(type, ids)):
            wrong = ids if type(ids) is not list else next(id_ for id_ in ids if type(id_) is not str)
            raise _wrong_type("candidate_ids", "a list of strings", wrong)
        if candidates is not None:
            detail = "expected `candidates` or `candidate_ids`, got both"
            raise Refusal(Code.INVALID_REQUEST, detail, field="candidate_ids")
        request.ids = ids
        count = len(ids)
    elif type(candidates) is list:
        request.rows = candidates
        count = len(candidates)
    elif type(candidates) is dict:
        request.columns = candidates
        count = _column_length(candidates)
    elif candidates is None:
        raise Refusal(Code.MISSING_CANDIDATES, "expected `candidates`", field="candidates")
    else:
        raise _wrong_type("candidates", "a list of objects or an object of lists", candidates)
    if count == 0:
        raise Refusal(Code.EMPTY_CANDIDATES, "expected at least one candidate", field="candidates")
    if count > max_candidates:
        raise Refusal(
            Code.TOO_MANY_CANDIDATES,
            f"expected at most {max_candidates} candidates, got {count}",
            field="candidates",
        )
    request.count = count


def _column_length(columns: dict[str, Any]) -> int:
    """The length all columns have; 0 for no column. Names of columns are the client's and are not repeated."""
    count = -1
    for column in columns.values():
        if type(column) is not list:
            raise _wrong_type("candidates", "a list in every column", column)
        if count not in (-1, len(column)):
            raise Refusal(
                Code.UNEQUAL_COLUMNS,
                f"expected columns of one length, got {count} and {len(column)}",
                field="candidates",
            )
        count = len(column)
    return max(count, 0)


def _wrong_type(field: str, expected: str, got: object) -> Refusal:
    kind = describe(got)
    code = Code.NUMBER_OUT_OF_RANGE if kind == _BEYOND else Code.WRONG_TYPE
    return Refusal(code, f"field '{field}': expected {expected}, got {kind}", field=field)


def _optional_string(value: Any, field: str) -> str | None:
    if value is not None and type(value) is not str:
        raise _wrong_type(field, "a string", value)
    return value


def _checked_id(value: Any, field: str) -> str:
    if type(value) is not str:
        expected = "a string" if field == "request_id" else "a string or an integer"
        raise _wrong_type(field, expected, value)
    size = len(value) if value.isascii() else len(value.encode())
    if not 1 <= size <= MAX_ID_BYTES:
        raise Refusal(
            Code.INVALID_ID,
            f"field '{field}': expected 1 to {MAX_ID_BYTES} bytes of UTF-8, got {size}",
            field=field,
        )
    return value


def _checked_deadline(value: Any) -> float:
    if type(value) is not float and type(value) is not int:
        raise _wrong_type("deadline_ms", "a number", value)
    if not 0 < value <= MAX_DEADLINE_MS:
        if describe(value) == _BEYOND:
            raise _wrong_type("deadline_ms", "a number", value)
        raise Refusal(
            Code.INVALID_DEADLINE,
            f"field 'deadline_ms': expected more than 0 and at most {MAX_DEADLINE_MS:.0f}",
            field="deadline_ms",
        )
    return value / 1000.0


def request_in(envelope: Envelope, count: int, new_id: Callable[[], str]) -> PredictRequest:
    """The request of an envelope whose candidates are known by their bytes; the same checks as `decode_request`."""
    request = PredictRequest()
    request.members = request.rows = request.columns = request.ids = None
    request.ignored = 0
    request.count = count
    _take_members(
        request,
        new_id,
        envelope.request_id,
        envelope.unit_id,
        envelope.context,
        envelope.experiment,
        envelope.arm,
        envelope.deadline_ms,
    )
    return request


def refuse_encoding(error: EncodeError) -> Refusal:
    """What a value that does not fit its field is refused with."""
    code = Code.NUMBER_OUT_OF_RANGE if error.got == _BEYOND else Code.WRONG_TYPE
    return Refusal(code, str(error), field=error.field, row=error.row)


def encode_request(request: PredictRequest, scorer: Scorer) -> tuple[EncodedRows, EncodedRows | None, list[int]]:
    """(context, candidates, places of those that the catalogue does not know) of a decoded request, in a model's ids.

    The candidates are None where the catalogue knows none of them. Raises `EncodeError`, or `Refusal`.
    """
    encoder = scorer.bundle.encoder
    context = encoder.encode_context(request.context)
    if request.rows is not None:
        return context, encoder.encode_candidates(request.rows), []
    if request.columns is not None:
        return context, encoder.encode_candidate_columns(request.columns, request.count), []
    assert request.ids is not None
    return context, *scorer.catalogue.find(request.ids)
