"""POST /v2/models/{name}[/versions/{version}]/infer, bytes to bytes.

Admitted, refused and counted by the same rules as /predict, and scored by the same runs: what asks for `pctr` alone
and shares one context joins the queue of the worker; anything else is a run of its own.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import numpy as np
import orjson
from starlette.types import Receive, Scope

from models.graph import GATE_WEIGHTS, LOGIT, PCTR, TEACHER_LOGITS
from service.errors import Code, Refusal
from service.http.asgi import JSON, Answer, ClientGoneError, parent_of, read_body, refuse
from service.http.compression import SHORT_ANSWER, accepted_coding, compress, expand
from service.http.protocol import FIRST_BYTE
from service.metrics import Metrics
from service.oip.exposures import begin_exposure
from service.oip.features import encode_features
from service.oip.request import InferenceRequest, decode_inference, header_length
from service.oip.statistics import ModelCounts, Statistics
from service.scoring.plan import Plan, Served, find_version
from service.scoring.predict import RETRY_AFTER, Call, Predictor, Target
from service.scoring.scorer import Floats, Scorer

if TYPE_CHECKING:
    from service.http.tracing import Tracer

logger = logging.getLogger(__name__)

INFER_ROUTE = "/v2/models/{name}/infer"
INFER_VERSION_ROUTE = "/v2/models/{name}/versions/{version}/infer"
OCTETS = b"application/octet-stream"
HEADER_LENGTH = b"inference-header-content-length"

T = TypeVar("T")
Outputs: TypeAlias = Mapping[str, bool]
"""Output -> whether as bytes."""
Scores: TypeAlias = Mapping[str, Floats]
"""Output -> [N] or [N, M]."""


@dataclass(slots=True)
class Passage:
    """How far a request came and when, whatever its envelope: what its trace tells of it."""

    started: float
    """`perf_counter` seconds, as all times here."""
    request_id: str | None = None
    candidates: int | None = None
    """Of a request that was read."""
    served: Served | None = None
    """The version it named, once that is found."""
    exposure: Call | None = None
    """Where its parameters say whom it was for."""
    stages: list[tuple[str, float, float]] = field(default_factory=list)
    """(name, began, ended) of those behind it, in their order."""


def outputs_of(scorer: Scorer) -> tuple[str, ...]:
    """What a model can answer, in the order of its answers."""
    return (PCTR, LOGIT, TEACHER_LOGITS, GATE_WEIGHTS) if scorer.is_ensemble else (PCTR, LOGIT)


class Inference:
    """Answers the infer routes of one worker; shares admission, queue and plan with its `Predictor`."""

    def __init__(
        self,
        predictor: Predictor,
        metrics: Metrics,
        statistics: Statistics,
        *,
        max_candidates: int,
        load_version: Callable[[str, int], Awaitable[Served]],
        tracer: Tracer | None = None,
    ) -> None:
        """`load_version(model, version)` brings a version that is not loaded, or raises `Refusal`."""
        self._predictor = predictor
        self._metrics = metrics
        self._statistics = statistics
        self._max_candidates = max_candidates
        self._load_version = load_version
        self._tracer = tracer

    async def respond(self, target: Target, scope: Scope, receive: Receive) -> Answer | None:
        """The answer to a request; None when its client went away. Never raises for what a client sent."""
        passage = Passage(scope.get("state", {}).get(FIRST_BYTE) or perf_counter())
        try:
            answer = await self._admit(target, scope, receive, passage)
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
        if self._tracer is not None:
            self._tracer.record_inference(target.route, parent_of(scope["headers"]), passage, answer.status)
        return answer

    async def _admit(self, target: Target, scope: Scope, receive: Receive, passage: Passage) -> Answer:
        """As /predict, in one count with it: before the body is read where that is known, else once it is there."""
        predictor = self._predictor
        if predictor.admission.is_full:
            return predictor.turn_away()
        if predictor.plan is None:
            raise Refusal(Code.NOT_READY, "models are being loaded: try again", headers=(RETRY_AFTER,))
        body, coding = await read_body(scope, receive, predictor.max_body_bytes, (JSON, OCTETS))
        if predictor.admission.is_full:
            return predictor.turn_away()
        predictor.admission.take()
        try:
            if coding is not None:
                body = expand(body, coding, predictor.max_body_bytes)
            return await self._infer(target, scope, body, passage, predictor.plan)
        finally:
            predictor.admission.free()

    async def find(self, plan: Plan, target: Target) -> Served:
        """The version that a path names, brought where it is not loaded; or `Refusal`."""
        assert target.model is not None
        served = find_version(plan, target.model, target.version)
        return served if isinstance(served, Served) else await self._load_version(*served)

    async def _infer(self, target: Target, scope: Scope, body: bytes, passage: Passage, plan: Plan) -> Answer:
        told, accepts = None, b""
        for name, value in scope["headers"]:
            if name == HEADER_LENGTH:
                told = value
            elif name == b"accept-encoding":
                accepts = value

        def read() -> InferenceRequest:
            return decode_inference(body, header_length(told, len(body)))

        def reply(served: Served, request: InferenceRequest, outputs: Outputs, found: Scores) -> Answer:
            return _reply(served, request, outputs, found, accepts)

        return await self.score(plan, target, passage, read, reply)

    async def score(
        self,
        plan: Plan,
        target: Target,
        passage: Passage,
        read: Callable[[], InferenceRequest],
        reply: Callable[[Served, InferenceRequest, Outputs, Scores], T],
        due: float | None = None,
    ) -> T:
        """What `reply` makes of the scores of the request that `read` gives: the work, whatever the envelope. Both are
        measured, and noted in `passage`. Answers by `due`, in `perf_counter` seconds, and by the request's own timeout,
        or raises `Refusal`."""
        started = passage.started
        began = perf_counter()
        request = read()
        decoded = perf_counter()
        passage.stages.append(("decode", began, decoded))
        passage.request_id = request.id
        self._metrics.stages["decode"].observe(decoded - began)
        served = passage.served = await self.find(plan, target)
        counts = self._statistics.of(served.scorer)
        if request.timeout_seconds is not None:
            due = min(started + request.timeout_seconds, math.inf if due is None else due)
        call = None
        try:
            outputs = _wanted(request, served.scorer)
            call = passage.exposure = begin_exposure(self._predictor, plan, target, request, served, started)
            if call is not None and PCTR not in outputs:
                detail = "parameter 'unit_id': an exposure needs the output pctr"
                raise Refusal(Code.INVALID_REQUEST, detail, field="parameters")
            passage.request_id = request.id  # one that is logged has got one
            found = await self._score(request, served, outputs, due, counts, passage)
            if call is not None:
                self._predictor.record_answer(call, orjson.dumps(found[PCTR], option=orjson.OPT_SERIALIZE_NUMPY))
        except Exception as error:
            if call is not None:
                self._predictor.record_refusal(call, error)
            if not isinstance(error, Refusal):
                raise
            seconds = perf_counter() - started
            served.refused.observe(seconds)
            counts.fail(seconds)
            raise
        replying = perf_counter()
        answer = reply(served, request, outputs, found)
        self._metrics.candidate_bins.observe(len(next(iter(found.values()))))
        if PCTR in found:
            self._metrics.pctr_bins.observe_many(found[PCTR])
        ended = perf_counter()
        self._metrics.stages["reply"].observe(ended - replying)
        passage.stages.append(("reply", replying, ended))
        served.durations.observe(ended - started)
        counts.succeed(len(next(iter(found.values()))), ended - started, ended - replying)
        return answer

    async def _score(
        self,
        request: InferenceRequest,
        served: Served,
        outputs: Outputs,
        due: float | None,
        counts: ModelCounts,
        passage: Passage,
    ) -> Scores:
        """By output, [N] or [N, M]; in time, or `Refusal`."""
        began = perf_counter()
        scorer = served.scorer
        features = encode_features(scorer.bundle, request, self._max_candidates)
        passage.candidates = features.count
        queued = perf_counter()
        if due is not None and queued + scorer.estimate.seconds(features.count) > due:
            raise _TOO_LATE.with_traceback(None)
        if features.ignored:
            self._metrics.ignored_fields.inc(features.ignored)
        if outputs.keys() == {PCTR} and features.request_index is None:
            with self._predictor.admission.taking(features.count):
                queue = self._predictor.queue
                job = await queue.score(scorer, features.context, features.candidates, features.count, due)
            if job.error is not None:
                raise job.error
            if job.pctr is None:
                raise _TOO_LATE.with_traceback(None)
            found: Scores = {PCTR: job.pctr}
            starting = job.began
        else:
            starting = perf_counter()
            values = scorer.run(tuple(outputs), features.feeds())
            found = dict(zip(outputs, values, strict=True))
        now = perf_counter()
        if due is not None and now > due:
            raise _TOO_LATE.with_traceback(None)
        stages = self._metrics.stages
        stages["encode"].observe(queued - began)
        stages["queue"].observe(starting - queued)
        stages["score"].observe(now - starting)
        passage.stages += (("encode", began, queued), ("queue", queued, starting), ("score", starting, now))
        (_, decoding, decoded), *_ = passage.stages
        counts.spend(decoded - decoding + queued - began, starting - queued, now - starting)
        return found


_TOO_LATE = Refusal(Code.DEADLINE_EXCEEDED, "the model cannot answer before the timeout")


def _wanted(request: InferenceRequest, scorer: Scorer) -> dict[str, bool]:
    """Output -> whether as bytes; every output where none was named."""
    offered = outputs_of(scorer)
    if request.outputs is None:
        return dict.fromkeys(offered, request.as_bytes)
    for index, name in enumerate(request.outputs):
        if name not in offered:
            detail = f"outputs[{index}]: expected one of {', '.join(offered)}"
            raise Refusal(Code.UNKNOWN_OUTPUT, detail, field="outputs")
    return request.outputs


def _reply(served: Served, request: InferenceRequest, outputs: Outputs, found: Scores, accepts: bytes) -> Answer:
    bundle = served.scorer.bundle
    head: dict[str, object] = {"model_name": bundle.name, "model_version": str(bundle.version)}
    if request.id:
        head["id"] = request.id
    tensors: list[dict[str, object]] = []
    binary = []
    for name, as_bytes in outputs.items():
        values = np.ascontiguousarray(found[name], "<f4")
        tensor: dict[str, object] = {"name": name, "datatype": "FP32", "shape": list(values.shape)}
        if as_bytes:
            data = values.tobytes()
            tensor["parameters"] = {"binary_data_size": len(data)}
            binary.append(data)
        else:
            tensor["data"] = values.ravel()
        tensors.append(tensor)
    head["outputs"] = tensors
    text = orjson.dumps(head, option=orjson.OPT_SERIALIZE_NUMPY)
    headers: list[tuple[bytes, bytes]] = []
    body, kind = text, JSON
    if binary:
        body, kind = b"".join((text, *binary)), OCTETS
        headers.append((HEADER_LENGTH, b"%d" % len(text)))  # counted before compression, as Triton's clients read it
    if accepts and len(body) >= SHORT_ANSWER:
        coding = accepted_coding(accepts)
        if coding is not None:
            body = compress(body, coding)
            headers.append((b"content-encoding", coding))
    return Answer(200, body, kind, tuple(headers))
