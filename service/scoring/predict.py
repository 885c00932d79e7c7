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
import math
import random
import secrets
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import orjson
from starlette.types import Receive, Scope

from models.encoder import EncodedRows
from models.errors import EncodeError
from service.errors import PROBLEMS, Code, Refusal
from service.http.asgi import FIRST_BYTE, Answer, ClientGoneError, parent_of, read_body, refuse
from service.http.compression import expand
from service.metrics import Metrics, adder
from service.scoring.admission import Admission, places_of
from service.scoring.candidates import has_wide_integer, take_apart
from service.scoring.json_body import refuse_wide_integers
from service.scoring.plan import Chosen, Plan, Served, ShadowRoute, find_version
from service.scoring.registry import Version
from service.scoring.request import (
    PredictRequest,
    decode_request,
    encode_request,
    refuse_encoding,
    request_in,
)
from service.scoring.scorer import Floats, Job, Scorer, ScoringQueue

if TYPE_CHECKING:
    from service.http.tracing import Tracer

logger = logging.getLogger(__name__)

RETRY_AFTER = (b"retry-after", b"1")
RENEWAL_SECONDS = 1.0
"""The shortest time after which what a model takes is measured again, while it is not asked for being too slow."""
RENEWAL_SHARE = 0.02
"""Share of the time that may go into that."""
_NO_SCORES = np.zeros(0, dtype=np.float32)


class Target(NamedTuple):
    """What a request was posted to: the route's template, and the model and version it names, if any."""

    route: str
    model: str | None = None
    version: str | None = None


PREDICT = Target("/predict")


class Call(Job):
    """One admitted request, from its bytes to its answer."""

    __slots__ = (
        *("answer", "body", "chosen", "decoded", "encoding", "is_noted", "late", "logged"),
        *("parent", "pieces", "places", "plan", "reason", "request", "served", "started", "target", "unknown", "way"),
    )

    request: PredictRequest
    served: Served
    decoded: float
    """Seconds that decoding took."""
    encoding: float

    def __init__(
        self,
        finish: Callable[[Any], object],
        target: Target,
        body: bytes,
        started: float,
        answer: Callable[[Answer], object],
        plan: Plan,
        parent: bytes = b"",
    ) -> None:
        self.finish = finish
        self.pctr = self.error = None
        self.target = target
        self.body = body
        self.started = started
        self.answer = answer
        self.plan = plan
        self.places = 1
        """Of those that may be in flight, how many it takes."""
        self.parent = parent
        """The `traceparent` it came with, where somebody wants to know."""
        self.pieces: list[bytes] | None = None
        """Its candidates as `take_apart` cut them out, where it did."""
        self.chosen: Chosen | None = None
        self.unknown: list[int] = []
        """Places of candidates that the catalogue does not know."""
        self.way = 0
        """How many of the ways to answer, `chosen.served` and `chosen.fallback`, have been tried."""
        self.reason: Literal["deadline", "error", "circuit"] = "deadline"
        """Why it was not the first."""
        self.late: float | None = None
        """`perf_counter` time after which nothing is answered: the request's own deadline. `due`, of one way to answer,
        may be earlier."""
        self.logged: float | None = None
        """The time in its exposure, once that is logged."""
        self.is_noted = False
        """Whether the circuit knows that the arm's model was too slow for it."""
        self.is_abandoned = False


class _NewError(Exception):
    """The candidates have to be decoded: the cache does not know them."""


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
        remembers: bool = True,
        record: Callable[[Call, bytes], object] | None = None,
        record_failure: Callable[[Call, Code], object] | None = None,
        shadow: Callable[[Call, ShadowRoute], object] | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        """`load_version(model, version)` brings a version that is not loaded, or raises `Refusal`. `remembers`:
        whether models keep encoded candidates by their raw bytes. `record(call, scores)`, where exposures are logged,
        is told of each request that is about to be answered with this JSON list; it may raise `Refusal`.
        `record_failure(call, code)` is told of those that were assigned and are not answered, through no fault of their
        own. `shadow(call, route)` takes a sample of what was answered, for another model to score."""
        self.plan: Plan | None = None
        self.max_body_bytes = max_body_bytes
        self._metrics = metrics
        self._max_candidates = max_candidates
        self._load_version = load_version
        self._remembers = remembers
        self._record = record
        self._record_failure = record_failure
        self._shadow = shadow
        self.tracer = tracer
        self._bringing: set[asyncio.Task[None]] = set()
        self._next_renewal: WeakKeyDictionary[Scorer, float] = WeakKeyDictionary()
        self.queue = ScoringQueue(max_run_rows)
        self.admission = Admission(max_in_flight, lambda: self.queue.runs)
        self._count_ignored = adder(metrics.ignored_fields)
        stages = metrics.stages
        self._observe_decode = stages["decode"].observe
        self._observe_encode = stages["encode"].observe
        self._observe_queue = stages["queue"].observe
        self._observe_score = stages["score"].observe
        self._observe_reply = stages["reply"].observe
        prefix = secrets.token_hex(8)
        numbers = itertools.count()
        self.new_id: Callable[[], str] = lambda: f"{prefix}-{next(numbers):x}"
        self._overloaded = refuse(
            Refusal(Code.OVERLOADED, "too many requests are in flight: try again", headers=(RETRY_AFTER,))
        )

    async def respond(self, target: Target, scope: Scope, receive: Receive) -> Answer | None:
        """The answer to a request; None when its client went away. Never raises for what a client sent."""
        started = scope.get("state", {}).get(FIRST_BYTE) or perf_counter()
        try:
            if self.admission.is_full:  # before the body is read, where that is known already
                return self.turn_away_from(target)
            if self.plan is None:
                raise Refusal(Code.NOT_READY, "models are being loaded: try again", headers=(RETRY_AFTER,))
            body, coding = await read_body(scope, receive, self.max_body_bytes)
            # Admitted only now: a place held by half a body would be one for nothing.
            if self.admission.is_full:
                return self.turn_away_from(target)
            if coding is not None:
                body = expand(body, coding, self.max_body_bytes)
        except Refusal as refusal:
            return self._refused(target, refusal)
        except ClientGoneError:
            return None
        answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

        def answer(given: Answer) -> None:
            if not answered.done():
                answered.set_result(given)

        parent = b"" if self.tracer is None else parent_of(scope["headers"])
        call = self.begin(target, body, started, answer, parent)
        try:
            return await answered
        finally:
            call.is_abandoned = True

    def turn_away(self) -> Answer:
        """The answer to a request beyond what is admitted; its refusal is counted."""
        self._metrics.count_refusal(Code.OVERLOADED)
        self.admission.note_refusal()
        return self._overloaded

    def turn_away_from(self, target: Target) -> Answer:
        """The same, counted as an answer of the route too."""
        self._metrics.count_request(target.route, self._overloaded.status)
        return self.turn_away()

    def decode(self, call: Call) -> PredictRequest:
        """A request as it was sent, its candidates too, which were not decoded where they were known by their bytes."""
        return decode_request(call.body, self._max_candidates, self.new_id)

    def begin(
        self,
        target: Target,
        body: bytes,
        started: float,
        answer: Callable[[Answer], object],
        parent: bytes = b"",
    ) -> Call:
        """Admits a whole request and takes it as far as the queue; nothing here waits. The plan must be there.

        `answer` is called once, with what is to be sent: before this returns where the request is refused, else in a
        later turn of the loop. Whoever no longer wants it sets `is_abandoned` of what is returned. `parent` is the
        `traceparent` it came with.
        """
        assert self.plan is not None
        call = Call(self.finish, target, body, started, answer, self.plan, parent)
        self.admission.take()
        answered = None
        try:
            if not (self._remembers and self._begin_quickly(call)):
                answered = self._begin(call)
        except Exception as error:
            answered = self._refusal_of(call, error)
        if answered is not None:
            self._end(call, answered)
        return call

    def _begin_quickly(self, call: Call) -> bool:
        """Queues a request whose candidates are known by their bytes; False, and nothing done, where it is not one.

        Refuses nothing: what cannot be answered this way goes the usual way, which says why.
        """
        began = perf_counter()
        taken = take_apart(call.body, self._max_candidates)
        if taken is None:
            return False
        envelope, text, call.pieces = taken
        try:
            call.request = request_in(envelope, len(call.pieces), self.new_id)
            call.decoded = perf_counter() - began
            chosen = choose(call.plan, call.target, call.request)
            if not isinstance(chosen, Chosen):
                return False
            call.chosen = chosen
            self._go_on(call, text)
        except (Refusal, _NewError):
            call.chosen, call.way, call.reason = None, 0, "deadline"
            return False
        return True

    def _begin(self, call: Call) -> Answer | None:
        """Queues a request, or its version's loading, or answers it at once. Raises `Refusal`."""
        began = perf_counter()
        call.request = decode_request(call.body, self._max_candidates, self.new_id)
        call.decoded = perf_counter() - began
        chosen = choose(call.plan, call.target, call.request)
        if isinstance(chosen, Chosen):
            call.chosen = chosen
            return self._go_on(call, call.body)
        task = asyncio.get_running_loop().create_task(self._bring(call, *chosen))
        self._bringing.add(task)
        task.add_done_callback(self._bringing.discard)
        return None

    async def _bring(self, call: Call, name: str, version: int) -> None:
        """Goes on with a request once the version that it names is loaded."""
        try:
            call.chosen = Chosen(await self._load_version(name, version))
            answered = self._go_on(call, call.body)
        except Exception as error:
            answered = self._refusal_of(call, error)
        if answered is not None:
            self._end(call, answered)

    def _go_on(self, call: Call, text: bytes) -> Answer | None:
        """Encodes and queues for the next way to answer that may be in time; `Refusal` where there is none. Where
        nothing is left to score, the answer.

        `text`: all that has been decoded of the body, where an integer beyond 64 bits may have passed.
        """
        chosen, request = call.chosen, call.request
        assert chosen is not None
        late = call.late = None if request.deadline_seconds is None else call.started + request.deadline_seconds
        call.rows = request.count
        while call.way < 2:
            call.way += 1
            served, due = chosen.served, late
            if call.way == 1:
                if chosen.fallback is not None:
                    if not self._may_ask(call, served.scorer):
                        call.reason = "circuit"
                        continue
                    if chosen.deadline_seconds is not None:
                        due = call.started + chosen.deadline_seconds
                        due = due if late is None else min(late, due)
            elif chosen.fallback is None:
                break
            else:
                served = getattr(chosen.fallback, call.reason)
            began = perf_counter()
            if due is not None and began + served.scorer.estimate.seconds(request.count) > due:
                if call.way == 1 and chosen.fallback is not None:
                    self._note_too_slow(call, served.scorer)
                continue
            call.due = due
            call.served, call.scorer = served, served.scorer
            self._encode(call, text)
            call.queued = perf_counter()
            call.encoding = call.queued - began
            if call.rows:
                places = places_of(call.rows)
                self.admission.take(places - call.places)
                call.places = places
                self.queue.submit(call)
                return None
            call.began = call.ended = call.queued  # the catalogue knows none of them
            return self._reply(call, _NO_SCORES)
        raise Refusal(Code.DEADLINE_EXCEEDED, "no model can answer before the deadline")

    def _may_ask(self, call: Call, scorer: Scorer) -> bool:
        """Whether an arm's model is to be asked. Where it is not, this request may be what it is tried with."""
        circuit = scorer.circuit
        if circuit is None or circuit.is_closed:
            return True
        if circuit.take_probe():

            def ended(rows: int, seconds: float | None, was_tried: bool) -> None:
                is_bad = seconds is None or scorer.is_late(rows, seconds)
                if seconds is not None:
                    scorer.estimate.renew(rows, seconds)
                circuit.end_probe(is_bad if was_tried else None)
                if circuit.is_closed:
                    scorer.estimate.forgive(circuit.limit_seconds)

            self._try_aside(call, scorer, ended)
        return False

    def _note_too_slow(self, call: Call, scorer: Scorer) -> None:
        """An arm's model was not asked, because by its last runs it would be late. The circuit counts that like a run
        that was, where waiting or the client's own haste are not to blame; and now and then the estimate is renewed,
        or a model that was slow for a moment would never be asked again."""
        rows, estimate = call.request.count, scorer.estimate
        if scorer.circuit is not None and not call.is_noted and scorer.is_late(rows, estimate.seconds(rows)):
            call.is_noted = True
            scorer.circuit.note(True)
        now = perf_counter()
        if now >= self._next_renewal.get(scorer, 0.0):
            self._next_renewal[scorer] = math.inf  # until this one has ended

            def ended(rows: int, seconds: float | None, was_tried: bool) -> None:
                if seconds is not None:
                    estimate.renew(rows, seconds)
                after = perf_counter()
                self._next_renewal[scorer] = after + max(RENEWAL_SECONDS, (after - now) / RENEWAL_SHARE)

            self._try_aside(call, scorer, ended)

    def _try_aside(self, call: Call, scorer: Scorer, ended: Callable[[int, float | None, bool], object]) -> None:
        """Scores a copy of a request in a thread, for nobody to wait for. `ended` is told, on the loop, the number of
        candidates, the seconds of the run (None: it failed), and whether it came to a run."""
        try:
            request = decode_request(call.body, self._max_candidates, self.new_id)
            context, candidates, unknown = encode_request(request, scorer)
        except (Refusal, EncodeError):
            ended(1, None, False)
            return
        rows = request.count - len(unknown)
        if candidates is None or rows == 0:
            ended(1, None, False)
            return
        bundle = scorer.bundle
        running = asyncio.get_running_loop().run_in_executor(None, scorer.measure, context, candidates)

        def done(future: asyncio.Future[float]) -> None:
            if future.cancelled():
                ended(rows, None, False)
            elif (error := future.exception()) is not None:
                logger.warning("model %s version %d failed again", bundle.name, bundle.version, exc_info=error)
                ended(rows, None, True)
            else:
                ended(rows, future.result(), True)

        running.add_done_callback(done)

    def _encode(self, call: Call, text: bytes) -> None:
        """Sets `context` and `candidates`. Raises `Refusal`, or `_NewError` where the candidates were not decoded and
        the cache does not know them either."""
        request, scorer = call.request, call.scorer
        candidates: EncodedRows | None
        try:
            if request.members is not None:
                context, candidates, call.unknown = encode_request(request, scorer)
                call.rows = request.count - len(call.unknown)
            else:
                assert call.pieces is not None
                context = scorer.bundle.encoder.encode_context(request.context)
                known = scorer.candidates.encode(call.pieces)
                if known is None:
                    raise _NewError
                candidates = known
        except EncodeError as error:
            raise refuse_encoding(error) from None
        ignored = request.ignored + context.ignored + (0 if candidates is None else candidates.ignored)
        if ignored:
            if request.members is not None:
                refuse_wide_integers(request.members, text)
            elif context.ignored and has_wide_integer(text):
                raise _NewError
            self._count_ignored(ignored)
        call.context = context
        if candidates is not None:
            if call.pieces is not None and request.rows is not None:
                scorer.candidates.learn(call.body, call.pieces, request.rows, candidates)
            call.candidates = candidates

    def finish(self, call: Call) -> None:
        """Answers a request that has left the queue, or sends it another way."""
        answered = None
        if not call.is_abandoned:
            try:
                if call.error is not None:
                    if call.way > 1 or call.chosen is None or call.chosen.fallback is None:
                        raise call.error
                    call.reason, call.error = "error", None  # the failure is logged with its run
                answered = self._try_another(call) if call.pctr is None else self._reply(call, call.pctr)
                if answered is None:  # it is in the queue again
                    return
            except Exception as error:
                answered = self._refusal_of(call, error)
        self._end(call, answered)
        if self._shadow is not None and answered is not None and answered.status == 200 and call.chosen is not None:
            route = call.chosen.shadow
            if route is not None and call.served.fallback is None and random.random() < route.share:
                self._shadow(call, route)

    def _try_another(self, call: Call) -> Answer | None:
        try:
            return self._go_on(call, b"" if call.request.members is None else call.body)
        except _NewError:
            before = call.request
            call.request = decode_request(call.body, self._max_candidates, self.new_id)
            call.request.request_id, call.request.unit = before.request_id, before.unit
            call.way -= 1
            return self._go_on(call, call.body)

    def _reply(self, call: Call, pctr: Floats) -> Answer:
        replying = perf_counter()
        if call.late is not None and replying > call.late:
            raise Refusal(Code.DEADLINE_EXCEEDED, "no model can answer before the deadline")
        served, metrics = call.served, self._metrics
        request_id = orjson.dumps(call.request.request_id)
        scores = orjson.dumps(pctr, option=orjson.OPT_SERIALIZE_NUMPY)
        unknown = b""
        if call.unknown:
            scores, unknown = with_unknown(scores, call.unknown, call.request.count)
        if self._record is not None:
            self._record(call, scores)
        body = b"".join((b'{"request_id":', request_id, served.tail, scores, unknown, b"}"))
        self._observe_decode(call.decoded)
        self._observe_encode(call.encoding)
        self._observe_queue(call.began - call.queued)
        self._observe_score(call.ended - call.began)
        metrics.candidate_bins.observe(call.rows)
        metrics.pctr_bins.observe_many(pctr)
        if served.expose is not None:
            served.expose(1)
        if served.count_fallback is not None:
            served.count_fallback(1)
        metrics.count_request(call.target.route, 200)
        ended = perf_counter()
        self._observe_reply(ended - replying)
        served.durations.observe(ended - call.started)
        return Answer(200, body)

    def _end(self, call: Call, answer: Answer | None) -> None:
        self.admission.free(call.places)
        if answer is not None and not call.is_abandoned:
            call.answer(answer)
            if self.tracer is not None:
                self.tracer.record(call, answer)

    def _refusal_of(self, call: Call, error: Exception) -> Answer:
        """The answer to a request that went wrong; counted."""
        if not isinstance(error, Refusal):
            if error is not call.error:  # that one is logged with its run
                logger.error("a request to %s failed", call.target.route, exc_info=error)
            error = Refusal(Code.INTERNAL, "the service failed; the failure is logged")
        elif call.chosen is not None:
            call.chosen.served.refused.observe(perf_counter() - call.started)
        self.record_refusal(call, error)
        return self._refused(call.target, error)

    def record_refusal(self, call: Call, error: Exception) -> None:
        """Records, where a log is kept, a request that is not answered though its arm was known, and through no fault
        of its own."""
        code = error.code if isinstance(error, Refusal) else Code.INTERNAL
        if call.chosen is not None and self._record_failure is not None and PROBLEMS[code].status >= 500:
            self._record_failure(call, code)

    def record_answer(self, call: Call, scores: bytes) -> None:
        """Records, where a log is kept, what was answered elsewhere than here. May raise `Refusal`."""
        if self._record is not None:
            self._record(call, scores)
        if call.served.expose is not None:
            call.served.expose(1)

    def _refused(self, target: Target, refusal: Refusal) -> Answer:
        self._metrics.count_refusal(refusal.code)
        answer = refuse(refusal)
        self._metrics.count_request(target.route, answer.status)
        return answer


def choose(plan: Plan, target: Target, request: PredictRequest) -> Chosen | Version:
    """Where a request goes, or the version that has to be loaded for it. Raises `Refusal`."""
    if target.model is None:
        return plan.choose(request.experiment, request.arm, request.unit)
    for name in ("experiment", "arm"):
        if getattr(request, name) is not None:
            raise Refusal(Code.OUTSIDE_EXPERIMENT, "a model's own route is outside any experiment", field=name)
    served = find_version(plan, target.model, target.version)
    return Chosen(served) if isinstance(served, Served) else served


def with_unknown(scores: bytes, unknown: list[int], count: int) -> tuple[bytes, bytes]:
    """The scores of the known candidates, `[…]`, as those of all, null for the unknown; and the member that lists
    these."""
    known = iter(scores[1:-1].split(b","))
    missing = frozenset(unknown)
    all_of_them = b",".join(b"null" if place in missing else next(known) for place in range(count))
    return b"[%b]" % all_of_them, b',"unknown_candidates":' + orjson.dumps(unknown)
