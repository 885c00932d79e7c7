"""Traces of requests for an OpenTelemetry collector. Off unless `--traces` says where it is; else nothing imports this.

A request that comes with a sampled `traceparent` (W3C Trace Context) becomes a span under its caller's; of those that
come without one, the share `--trace-share` begins a trace of its own; one whose caller does not sample is left alone.
Spans are made once the answer is on its way, from the times that the metrics are made of anyway: the span of the
request, and under it decode, encode, queue, score and reply. They hold the names of route, model, experiment and arm,
counts, and the request's id: no feature and no unit.

What a caller may cost is bounded: `PER_SECOND` traces a worker and second, the others are counted. A thread sends them
in batches; a collector that is away costs spans, which are counted, and no request.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from time import monotonic, perf_counter, time_ns

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)

from service.http.asgi import Answer
from service.metrics import Metrics
from service.scoring.predict import Call

PER_SECOND = 100
_SPANS_A_TRACE = 6
_TIMEOUT_SECONDS = 5.0
_QUEUE = int(PER_SECOND * _SPANS_A_TRACE * _TIMEOUT_SECONDS * 3)
"""Spans that wait for the collector: more than can come while one batch is waited for."""

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
        if context is None:
            return
        now, now_ns = perf_counter(), time_ns()

        def at(moment: float) -> int:
            return now_ns - int((now - moment) * 1e9)

        span = self._tracer.start_span(
            call.target.route, context, SpanKind.SERVER, dict(_attributes(call, answer)), start_time=at(call.started)
        )
        within = set_span_in_context(span)
        for name, began, ended in _stages(call, now):
            self._tracer.start_span(name, within, start_time=at(began)).end(at(ended))
        _end(span, answer, now_ns)

    def record_inference(self, route: str, parent: bytes, started: float, answer: Answer) -> None:
        """The same of a request of the Open Inference Protocol: one span."""
        context = self._context(parent)
        if context is not None:
            elapsed = int((perf_counter() - started) * 1e9)
            now = time_ns()
            attributes = dict(_of_http(route, answer))
            span = self._tracer.start_span(route, context, SpanKind.SERVER, attributes, start_time=now - elapsed)
            _end(span, answer, now)

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


def _end(span: Span, answer: Answer, now_ns: int) -> None:
    if answer.status >= 500:
        span.set_status(StatusCode.ERROR)
    span.end(now_ns)


def _of_http(route: str, answer: Answer) -> Iterator[tuple[str, str | int]]:
    yield "http.request.method", "POST"
    yield "http.route", route
    yield "http.response.status_code", answer.status


def _attributes(call: Call, answer: Answer) -> Iterator[tuple[str, str | int]]:
    yield from _of_http(call.target.route, answer)
    request, chosen = getattr(call, "request", None), call.chosen
    if request is not None:
        yield "retort.request_id", request.request_id
        yield "retort.candidates", request.count
    if chosen is not None:
        exposed = chosen.served
        served = getattr(call, "served", exposed)
        yield "retort.model", served.scorer.bundle.name
        yield "retort.version", served.scorer.bundle.version
        if exposed.experiment is not None and exposed.arm is not None:
            yield "retort.experiment", exposed.experiment
            yield "retort.arm", exposed.arm
        if served.fallback is not None:
            yield "retort.fallback", served.fallback


def _stages(call: Call, now: float) -> Iterator[tuple[str, float, float]]:
    """(name, began, ended) of the stages of a request that was scored, in `perf_counter` seconds."""
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
