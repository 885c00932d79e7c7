"""The hot path, bytes to bytes: decode, choose, encode, score, reply.

    body -> PredictRequest -> experiment, arm, model -> ids -> queue -> pctr -> answer

The body is decoded once; the context is encoded once, however many candidates share it; all look-ups of a
side are one array; the answer is joined from bytes that were made with the plan. Numbers: every pctr is
written with the fewest digits that give the same float32 again (docs/api.md).

Runs on the event loop and holds nothing between requests but counts.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
import secrets
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any, NamedTuple

import msgspec
import orjson
from starlette.types import Receive, Scope

from models.encoder import EncodedRows
from models.errors import EncodeError
from models.values import LARGEST_INTEGER, SMALLEST_INTEGER, describe
from service.asgi import Answer, ClientGoneError, read_body, refuse
from service.compression import expand
from service.errors import Code, Refusal
from service.metrics import Metrics
from service.plan import Chosen, Plan, Served, find_version
from service.protocol import FIRST_BYTE
from service.scorer import Floats, Job, ScoringQueue

logger = logging.getLogger(__name__)

MAX_ID_BYTES = 256
MAX_DEADLINE_MS = 3_600_000.0
LONG_BODY = 1 << 15
"""Shorter bodies cost little whatever is in them."""
MANY_EXPONENTS = 3000
RETRY_AFTER = (b"retry-after", b"1")

_MEMBERS = frozenset(
    ("request_id", "unit_id", "context", "candidates", "candidate_ids", "experiment", "arm", "deadline_ms")
)
_DIGITS_TO_ZERO = bytes(
    ord("0") if ord("0") <= byte <= ord("9") else ord("e") if byte in b"eE" else ord(" ") for byte in range(256)
)
_DIGITS = re.compile(rb"[0-9]+")
_NO_WIDE_INTEGER = re.compile(
    rb"(?:[^\"0-9]++"
    rb"|\"[^\"\\]*+(?:\\.[^\"\\]*+)*+\""
    rb"|[0-9]++(?:\.[0-9]++(?:[eE][+-]?+[0-9]++)?+|[eE][+-]?+[0-9]++)"
    rb"|[0-9]{1,18}+(?![0-9]))*+",
    re.DOTALL,
)
"""JSON tokens up to the next integer of 19 digits or more; without backtracking, so in linear time."""
_WIDE = b"0" * 19
"""A JSON integer beyond 64 bits has at least 19 digits."""
_NO_HALF_PAIR = re.compile(rb"(?:[^\\]++|\\u[dD][89abAB]..\\u[dD][c-fC-F]..|\\(?!u[dD][89a-fA-F]).)*+", re.DOTALL)
"""Text up to the next escaped surrogate that is not part of a pair."""
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")
_BEYOND = describe(LARGEST_INTEGER + 1)


class Target(NamedTuple):
    """What a request was posted to: the route's template, and the model and version it names, if any."""

    route: str
    model: str | None = None
    version: str | None = None


PREDICT = Target("/predict")


class PredictRequest:
    """A decoded request. Exactly one of `rows` and `columns` is there, with `count` candidates."""

    __slots__ = (
        *("arm", "columns", "context", "count", "deadline_seconds"),
        *("experiment", "ignored", "members", "request_id", "rows", "unit"),
    )

    request_id: str
    unit: str
    context: dict[str, Any]
    rows: list[Any] | None
    columns: dict[str, list[Any]] | None
    count: int
    experiment: str | None
    arm: str | None
    deadline_seconds: float | None
    ignored: int
    members: dict[str, Any]


def _has_many_exponents(body: bytes) -> bool:
    return body.translate(_DIGITS_TO_ZERO).count(b"0e") > MANY_EXPONENTS


def _decode_exponents(body: bytes) -> Any:
    """What msgspec makes of a body, from another decoder: msgspec takes 7 us for 5e-324, which makes half a second
    of a megabyte. This one makes floats of integers beyond 64 bits, so they are looked for."""
    if _WIDE in body.translate(_DIGITS_TO_ZERO):
        place = 0
        while (place := _NO_WIDE_INTEGER.match(body, place).end()) < len(body):  # type: ignore[union-attr]
            digits = _DIGITS.match(body, place)
            if digits is None:
                break  # no JSON
            negative = body[place - 1 : place] == b"-"
            value = int(digits[0]) if len(digits[0]) <= 20 else 1 << 64
            if value > (-SMALLEST_INTEGER if negative else LARGEST_INTEGER):
                raise Refusal(Code.NUMBER_OUT_OF_RANGE, "an integer is beyond what 64 bits can hold")
            place = digits.end()
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        if "infinity" in error.msg:
            raise Refusal(Code.NUMBER_OUT_OF_RANGE, "a number is beyond what 64 bits can hold") from None
        if "depth" in error.msg:
            raise Refusal(Code.TOO_DEEP, "lists and objects are nested too deeply") from None
        raise _malformed(body, f"malformed at character {error.pos}") from None


def _malformed(body: bytes, what: str) -> Refusal:
    """The refusal of what is no JSON. Decoders have many words for half of a surrogate pair, "truncated" among them."""
    place = _NO_HALF_PAIR.match(body).end()  # type: ignore[union-attr]
    if _SURROGATE.match(body, place):
        what = "a string holds half of a surrogate pair"
    return Refusal(Code.MALFORMED_JSON, f"expected JSON: {what}")


def decode_json(body: bytes) -> Any:
    """What a body says, or `Refusal`. Integers beyond 64 bits are let through: see `refuse_wide_integers`."""
    try:
        if len(body) > LONG_BODY and _has_many_exponents(body):
            return _decode_exponents(body)
        return msgspec.json.decode(body)
    except msgspec.ValidationError:
        raise Refusal(Code.NUMBER_OUT_OF_RANGE, "a number is beyond what 64 bits can hold") from None
    except UnicodeDecodeError:
        raise _malformed(body, "invalid UTF-8") from None
    except msgspec.DecodeError as error:
        what = str(error).removeprefix("JSON is malformed: ")
        raise _malformed(body, "it ends too early" if what == "Input data was truncated" else what) from None
    except RecursionError:
        raise Refusal(Code.TOO_DEEP, "lists and objects are nested too deeply") from None


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
    request.ignored = len(members.keys() - _MEMBERS)

    given = get("request_id")
    request.request_id = new_id() if given is None else _checked_id(given, "request_id")
    given = get("unit_id")
    if given is None:
        request.unit = request.request_id
    elif type(given) is int:
        if not SMALLEST_INTEGER <= given <= LARGEST_INTEGER:
            raise _wrong_type("unit_id", "an integer of at most 64 bits", given)
        request.unit = str(given)
    else:
        request.unit = _checked_id(given, "unit_id")
    request.experiment = _optional_string(get("experiment"), "experiment")
    request.arm = _optional_string(get("arm"), "arm")
    given = get("deadline_ms")
    request.deadline_seconds = None if given is None else _checked_deadline(given)
    given = get("context")
    if given is not None and type(given) is not dict:
        raise _wrong_type("context", "an object", given)
    request.context = given or {}
    _take_candidates(request, get("candidates"), get("candidate_ids"), max_candidates)
    return request


def _take_candidates(request: PredictRequest, candidates: Any, ids: Any, max_candidates: int) -> None:
    if ids is not None:
        raise Refusal(Code.NO_CATALOGUE, "no catalogue is registered: send `candidates`", field="candidate_ids")
    request.rows = request.columns = None
    if type(candidates) is list:
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


def refuse_encoding(error: EncodeError) -> Refusal:
    """What a value that does not fit its field is refused with."""
    code = Code.NUMBER_OUT_OF_RANGE if error.got == _BEYOND else Code.WRONG_TYPE
    return Refusal(code, str(error), field=error.field, row=error.row)


def refuse_wide_integers(members: Any, body: bytes) -> None:
    """Refuses integers beyond 64 bits in members that nobody reads, where the decoder lets them pass.

    Where a field does read them, the encoder refuses them itself, so only requests with ignored members come here.
    """
    if _WIDE not in body.translate(_DIGITS_TO_ZERO):
        return
    waiting: list[Any] = [members]
    while waiting:
        value = waiting.pop()
        if type(value) is dict:
            waiting.extend(value.values())
        elif type(value) is list:
            waiting.extend(value)
        elif type(value) is int and not SMALLEST_INTEGER <= value <= LARGEST_INTEGER:
            raise Refusal(Code.NUMBER_OUT_OF_RANGE, "an integer is beyond what 64 bits can hold")


class Predictor:
    """Answers the predict routes of one worker, from whatever plan is current when a request arrives."""

    def __init__(
        self,
        metrics: Metrics,
        *,
        max_body_bytes: int,
        max_candidates: int,
        max_in_flight: int,
        max_run_rows: int,
        load_version: Callable[[str, int], Awaitable[Served]],
    ) -> None:
        """`load_version(model, version)` brings a version that is not loaded, or raises `Refusal`."""
        self.plan: Plan | None = None
        self.in_flight = 0
        self._metrics = metrics
        self.max_body_bytes = max_body_bytes
        self._max_candidates = max_candidates
        self._max_in_flight = max_in_flight
        self._load_version = load_version
        self.queue = ScoringQueue(max_run_rows)
        prefix = secrets.token_hex(8)
        numbers = itertools.count()
        self._new_id = lambda: f"{prefix}-{next(numbers):x}"
        self._overloaded = refuse(
            Refusal(Code.OVERLOADED, f"{max_in_flight} requests are in flight: try again", headers=(RETRY_AFTER,))
        )

    async def respond(self, target: Target, scope: Scope, receive: Receive) -> Answer | None:
        """The answer to a request; None when its client went away. Never raises for what a client sent."""
        started = scope.get("state", {}).get(FIRST_BYTE) or perf_counter()
        try:
            answer = await self._admit(target, scope, receive, started)
        except Refusal as refusal:
            self._metrics.count_refusal(refusal.code)
            answer = refuse(refusal)
        except ClientGoneError:
            return None
        except Exception:
            logger.exception("a request to %s failed", target.route)
            self._metrics.count_refusal(Code.INTERNAL)
            answer = refuse(Refusal(Code.INTERNAL, "the service failed; the failure is logged"))
        self._metrics.count_request(target.route, answer.status)
        return answer

    async def _admit(self, target: Target, scope: Scope, receive: Receive, started: float) -> Answer:
        """Admits a request once its body is there: a place held by half a body would be one for nothing."""
        if self.is_full:  # before the body is read, where that is known already
            return self.turn_away()
        if self.plan is None:
            raise Refusal(Code.NOT_READY, "models are being loaded: try again", headers=(RETRY_AFTER,))
        body, coding = await read_body(scope, receive, self.max_body_bytes)
        if self.is_full:
            return self.turn_away()
        self.in_flight += 1
        try:
            if coding is not None:
                body = expand(body, coding, self.max_body_bytes)
            return Answer(200, await self._predict(target, body, started, self.plan))
        finally:
            self.in_flight -= 1

    @property
    def is_full(self) -> bool:
        """Whether a request that comes now is turned away."""
        return self.in_flight >= self._max_in_flight

    def turn_away(self) -> Answer:
        """The answer to a request beyond what is admitted; its refusal is counted."""
        self._metrics.count_refusal(Code.OVERLOADED)
        return self._overloaded

    async def _predict(self, target: Target, body: bytes, started: float, plan: Plan) -> bytes:
        began = perf_counter()
        request = decode_request(body, self._max_candidates, self._new_id)
        decoded = perf_counter()
        stages = self._metrics.stages
        stages["decode"].observe(decoded - began)
        chosen = await self._choose(target, request, plan)
        served = chosen.served
        try:
            served, pctr, replying = await self._score(request, chosen, body, started)
        except Refusal:
            served.refused.observe(perf_counter() - started)
            raise
        request_id = orjson.dumps(request.request_id)
        scores = orjson.dumps(pctr, option=orjson.OPT_SERIALIZE_NUMPY)
        reply = b'{"request_id":' + request_id + served.tail + scores + b"}"
        self._metrics.candidate_bins.observe(request.count)
        self._metrics.pctr_bins.observe_many(pctr)
        if served.exposures is not None:
            served.exposures.inc()
        if served.fallback is not None:
            self._metrics.deadline_fallbacks.inc()
        ended = perf_counter()
        stages["reply"].observe(ended - replying)
        served.durations.observe(ended - started)
        return reply

    async def _choose(self, target: Target, request: PredictRequest, plan: Plan) -> Chosen:
        if target.model is None:
            return plan.choose(request.experiment, request.arm, request.unit)
        for name in ("experiment", "arm"):
            if getattr(request, name) is not None:
                raise Refusal(Code.OUTSIDE_EXPERIMENT, "a model's own route is outside any experiment", field=name)
        served = find_version(plan, target.model, target.version)
        if isinstance(served, Served):
            return Chosen(served)
        name, version = served
        return Chosen(await self._load_version(name, version))

    async def _score(
        self, request: PredictRequest, chosen: Chosen, body: bytes, started: float
    ) -> tuple[Served, Floats, float]:
        """(what answered, pctr [count], when the scores were there); in time, or `Refusal`."""
        due = None if request.deadline_seconds is None else started + request.deadline_seconds
        stages = self._metrics.stages
        count = request.count
        for served in (chosen.served, chosen.fallback):
            if served is None:
                continue
            scorer = served.scorer
            began = perf_counter()
            if due is not None and began + scorer.estimate.seconds(count) > due:
                continue
            context, candidates = self._encode(served, request, body)
            queued = perf_counter()
            stages["encode"].observe(queued - began)
            job = Job(scorer, context, candidates, count, due, asyncio.get_running_loop().create_future(), queued)
            self.queue.submit(job)
            pctr = await job.done
            if pctr is None:
                continue
            stages["queue"].observe(job.began - queued)
            stages["score"].observe(job.ended - job.began)
            now = perf_counter()
            if due is not None and now > due:
                break
            return served, pctr, now
        raise Refusal(Code.DEADLINE_EXCEEDED, "no model can answer before the deadline")

    def _encode(self, served: Served, request: PredictRequest, body: bytes) -> tuple[EncodedRows, EncodedRows]:
        encoder = served.scorer.bundle.encoder
        try:
            context = encoder.encode_context(request.context)
            if request.rows is not None:
                candidates = encoder.encode_candidates(request.rows)
            else:
                assert request.columns is not None
                candidates = encoder.encode_candidate_columns(request.columns, request.count)
        except EncodeError as error:
            raise refuse_encoding(error) from None
        ignored = request.ignored + context.ignored + candidates.ignored
        if ignored:
            refuse_wide_integers(request.members, body)
            self._metrics.ignored_fields.inc(ignored)
        for side in (context, candidates):
            if side.missing or side.unknown:
                served.fields.add(side.missing, side.unknown)
        return context, candidates
