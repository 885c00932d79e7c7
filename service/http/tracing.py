"""Traces of requests for an OpenTelemetry collector. Off unless `--traces` says where it is; else nothing imports this.

A request that comes with a sampled `traceparent` (W3C Trace Context) becomes a span under its caller's; of those that
come without one, the share `--trace-share` begins a trace of its own; one whose caller does not sample is left alone.
Spans are made once the answer is on its way, from the times that the metrics are made of anyway: the span of the
request, and under it decode, encode, queue, score and reply. They hold the names of route, model, experiment and arm,
counts, and the request's id: no feature and no unit. So does one of the Open Inference Protocol, over HTTP or gRPC.

What a caller may cost is bounded: `PER_SECOND` traces a worker and second, the others are counted. A thread sends them
in batches; a collector that is away costs spans, which are counted, and no request.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator, Sequence
from time import monotonic, perf_counter, time_ns
from typing import TypeAlias

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)

from service.http.asgi import Answer
from service.metrics import Metrics
from service.oip.inference import Passage
from service.scoring.plan import Served
from service.scoring.predict import Call

PER_SECOND = 100
_SPANS_A_TRACE = 6
_TIMEOUT_SECONDS = 5.0
_QUEUE = int(PER_SECOND * _SPANS_A_TRACE * _TIMEOUT_SECONDS * 3)
"""Spans that wait for the collector: more than can come while one batch is waited for."""

Attributes: TypeAlias = dict[str, str | int]
Stage: TypeAlias = tuple[str, float, float]
"""(name, began, ended), in `perf_counter` seconds."""

_TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")


class Tracer:
    """Makes spans of answered requests and sends them."""

    def __init__(self, endpoint: str, share: float, metrics: Metrics) -> None:
        """`endpoint` is a collector's address for OTLP over HTTP; `share` that of requests without a caller's trace."""
        self._share = share
        self._recorded, self._limited = metrics.traces.labels("recorded"), metrics.traces.labels("limited")
        exporter = _Counted(OTLPSpanExporter(endpoint=endpoint, timeout=_TIMEOUT_SECONDS), metrics)
        self._provider = TracerProvider(
            sampler=ALWAYS_ON, resource=Resource.create({"service.name": "retort"}), shutdown_on_exit=False
        )
        self._provider.add_span_processor(
            BatchSpanProcessor(exporter, max_queue_size=_QUEUE, schedule_delay_millis=1000.0)
        )
        self._tracer = self._provider.get_tracer("retort")
        self._second, self._taken = 0, 0

    def close(self) -> None:
        """Sends what waits, for some seconds at most."""
        self._provider.shutdown()

    def record(self, call: Call, answer: Answer) -> None:
        """Takes note of a request that was answered, where it is to be traced."""
        context = self._context(call.parent)
        if context is not None:
            now = perf_counter()
            attributes = _of_http(call.target.route, answer.status) | _of_call(call)
            self._span(context, call.target.route, attributes, call.started, now, _stages(call, now), answer.status)

    def record_inference(self, route: str, parent: bytes, passage: Passage, status: int) -> None:
        """The same of a request of the Open Inference Protocol over HTTP."""
        context = self._context(parent)
        if context is not None:
            attributes = _of_http(route, status) | _of_passage(passage)
            self._span(context, route, attributes, passage.started, perf_counter(), passage.stages, status)

    def record_rpc(self, method: str, parent: bytes, passage: Passage, status: int, code: int) -> None:
        """The same of a call of a method, `/package.Service/Method`: answered with gRPC's status `code`, where HTTP has
        `status`."""
        context = self._context(parent)
        if context is not None:
            attributes = _of_rpc(method, code) | _of_passage(passage)
            self._span(context, method[1:], attributes, passage.started, perf_counter(), passage.stages, status)

    def _span(
        self,
        context: Context,
        name: str,
        attributes: Attributes,
        started: float,
        ended: float,
        stages: Iterable[Stage],
        status: int,
    ) -> None:
        now, now_ns = perf_counter(), time_ns()

        def at(moment: float) -> int:
            return now_ns - int((now - moment) * 1e9)

        span = self._tracer.start_span(name, context, SpanKind.SERVER, attributes, start_time=at(started))
        within = set_span_in_context(span)
        for stage, began, over in stages:
            self._tracer.start_span(stage, within, start_time=at(began)).end(at(over))
        if status >= 500:
            span.set_status(StatusCode.ERROR)
        span.end(at(ended))

    def _context(self, parent: bytes) -> Context | None:
        """Under what a trace goes; None where there is to be none."""
        match = _TRACEPARENT.fullmatch(parent)
        if match is None or not int(match[1], 16) or not int(match[2], 16):
            if random.random() >= self._share:
                return None
            context = Context()
        else:
            flags = TraceFlags(int(match[3], 16))
            if not flags.sampled:
                return None
            caller = SpanContext(int(match[1], 16), int(match[2], 16), is_remote=True, trace_flags=flags)
            context = set_span_in_context(NonRecordingSpan(caller), Context())
        second = int(monotonic())
        if second != self._second:
            self._second, self._taken = second, 0
        if self._taken >= PER_SECOND:
            self._limited.inc()
            return None
        self._taken += 1
        self._recorded.inc()
        return context


def _of_http(route: str, status: int) -> Attributes:
    return {"http.request.method": "POST", "http.route": route, "http.response.status_code": status}


def _of_rpc(method: str, code: int) -> Attributes:
    service, _, name = method[1:].rpartition("/")
    return {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name, "rpc.grpc.status_code": code}


def _of_call(call: Call) -> Attributes:
    found: Attributes = {}
    request, chosen = getattr(call, "request", None), call.chosen
    if request is not None:
        found |= {"retort.request_id": request.request_id, "retort.candidates": request.count}
    if chosen is not None:
        found |= _of_served(getattr(call, "served", chosen.served))
        found |= _of_arm(chosen.served)
    return found


def _of_passage(passage: Passage) -> Attributes:
    found: Attributes = {}
    if passage.request_id is not None:
        found["retort.request_id"] = passage.request_id
    if passage.candidates is not None:
        found["retort.candidates"] = passage.candidates
    if passage.served is not None:
        found |= _of_served(passage.served)
    if passage.exposure is not None and passage.exposure.chosen is not None:
        found |= _of_arm(passage.exposure.chosen.served)
    return found


def _of_served(served: Served) -> Attributes:
    bundle = served.scorer.bundle
    found: Attributes = {"retort.model": bundle.name, "retort.version": bundle.version}
    if served.fallback is not None:
        found["retort.fallback"] = served.fallback
    return found


def _of_arm(exposed: Served) -> Attributes:
    """Of what a unit was assigned to, which another model may have answered for."""
    if exposed.experiment is None or exposed.arm is None:
        return {}
    return {"retort.experiment": exposed.experiment, "retort.arm": exposed.arm}


def _stages(call: Call, now: float) -> Iterator[Stage]:
    """The stages of a request that was scored."""
    if call.pctr is None:
        return
    encoding = call.queued - call.encoding
    yield "decode", encoding - call.decoded, encoding
    yield "encode", encoding, call.queued
    yield "queue", call.queued, call.began
    yield "score", call.began, call.ended
    yield "reply", call.ended, now


class _Counted(SpanExporter):
    """An exporter that counts what it sent and what it could not."""

    def __init__(self, exporter: SpanExporter, metrics: Metrics) -> None:
        self._exporter = exporter
        self._exported, self._failed = metrics.spans.labels("exported"), metrics.spans.labels("failed")

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """As the exporter, which retries for a while."""
        try:
            result = self._exporter.export(spans)
        except Exception:
            self._failed.inc(len(spans))
            raise
        (self._exported if result is SpanExportResult.SUCCESS else self._failed).inc(len(spans))
        return result

    def shutdown(self) -> None:
        """As the exporter."""
        self._exporter.shutdown()
