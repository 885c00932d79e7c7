"""Traces, as a collector gets them: OTLP over HTTP, decoded with the protocol's own messages."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from starlette.testclient import TestClient

from service.app import Service
from service.http import tracing
from service.http.direct import Direct
from service.oip.rpc.messages import methods
from tests.service.oip.calling import caller, infer_request, serving
from tests.service.oip.tensors import tensors_of
from tests.service.running import CONTEXT, candidate, make_app, metric, request_of, wait_until_ready

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED, UNSAMPLED = f"00-{TRACE}-{CALLER}-01", f"00-{TRACE}-{CALLER}-00"
STAGES = ["decode", "encode", "queue", "score", "reply"]


@dataclass
class Collector:
    """What an OpenTelemetry collector was sent."""

    url: str
    status: int = 200
    spans: list[Span] = field(default_factory=list)

    def roots(self) -> list[Span]:
        """The spans of whole requests."""
        return [span for span in self.spans if span.kind == Span.SPAN_KIND_SERVER]


@pytest.fixture
def collector() -> Iterator[Collector]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            message = ExportTraceServiceRequest.FromString(body)
            for resource in message.resource_spans:
                for scope in resource.scope_spans:
                    found.spans.extend(scope.spans)
            self.send_response(found.status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found = Collector(f"http://127.0.0.1:{server.server_address[1]}/v1/traces")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield found
    server.shutdown()
    thread.join()
    server.server_close()


def traced(repository: Path, collector: Collector, requests: list[dict[str, Any]], **settings: Any) -> Service:
    """A service that has answered these requests, and then sent its spans and ended."""
    app = make_app(repository, traces=collector.url, **{"trace_share": 0.0, **settings})
    with TestClient(app, raise_server_exceptions=False) as client:
        wait_until_ready(client)
        for request in requests:
            client.post(request.pop("url", "/predict"), **request)
    return app


def attributes(span: Span) -> dict[str, Any]:
    return {
        pair.key: getattr(pair.value, pair.value.WhichOneof("value"))  # type: ignore[arg-type]
        for pair in span.attributes
    }


def stages_of(collector: Collector, root: Span) -> list[str]:
    """The names of the spans under it, by when they began."""
    under = [span for span in collector.spans if span.parent_span_id == root.span_id]
    return [span.name for span in sorted(under, key=lambda span: span.start_time_unix_nano)]


def test_a_request_is_a_span_under_its_callers(repository: Path, collector: Collector):
    """With the stages under it, in their order and within its time; and with no feature and no unit."""
    body = request_of(1, 2, request_id="r-1", unit_id="somebody", arm="ensemble")
    traced(repository, collector, [{"json": body, "headers": {"traceparent": SAMPLED}}])

    (root,) = collector.roots()
    stages = sorted((span for span in collector.spans if span is not root), key=lambda span: span.start_time_unix_nano)
    assert (root.trace_id.hex(), root.parent_span_id.hex(), root.name) == (TRACE, CALLER, "/predict")
    assert [span.name for span in stages] == STAGES
    assert {span.parent_span_id for span in stages} == {root.span_id}
    moments = [moment for span in stages for moment in (span.start_time_unix_nano, span.end_time_unix_nano)]
    assert moments == sorted(moments)
    assert root.start_time_unix_nano <= moments[0]
    assert moments[-1] <= root.end_time_unix_nano
    found = attributes(root)
    assert isinstance(found.pop("retort.version"), int)
    assert found == {
        "http.request.method": "POST",
        "http.route": "/predict",
        "http.response.status_code": 200,
        "retort.request_id": "r-1",
        "retort.candidates": 2,
        "retort.model": "ensemble",
        "retort.experiment": "student-vs-ensemble",
        "retort.arm": "ensemble",
    }


@pytest.mark.parametrize(
    ("headers", "share", "is_traced", "is_own"),
    [
        ({}, 0.0, False, None),
        ({}, 1.0, True, True),
        ({"traceparent": SAMPLED}, 0.0, True, False),
        ({"traceparent": UNSAMPLED}, 1.0, False, None),
        ({"traceparent": "nonsense"}, 0.0, False, None),
        ({"traceparent": "nonsense"}, 1.0, True, True),
        ({"traceparent": f"ff-{TRACE}-{CALLER}-01"}, 1.0, True, True),
        ({"traceparent": f"00-{'0' * 32}-{CALLER}-01"}, 1.0, True, True),
        ({"traceparent": f"cc-{TRACE}-{CALLER}-01-of-a-later-version"}, 0.0, True, False),
    ],
)
def test_the_caller_decides_and_without_one_the_share(
    repository: Path, collector: Collector, headers: dict[str, str], share: float, is_traced: bool, is_own: bool | None
):
    """What is no traceparent begins a trace of its own, as without one."""
    traced(repository, collector, [{"json": request_of(1), "headers": headers}], trace_share=share)

    roots = collector.roots()
    assert bool(roots) is is_traced
    assert [root.trace_id.hex() != TRACE for root in roots] == ([] if is_own is None else [is_own])


def test_two_parents_are_none(repository: Path, collector: Collector):
    """Which one would be meant?"""
    headers = [("traceparent", SAMPLED), ("traceparent", SAMPLED)]

    traced(repository, collector, [{"json": request_of(1), "headers": headers}])

    assert collector.spans == []


def test_what_is_refused_is_traced_as_far_as_it_came(repository: Path, collector: Collector):
    """With its status; an error only where the service is to blame."""
    headers = {"traceparent": SAMPLED, "content-type": "application/json"}
    bad = {"context": {"hour": []}, "candidates": [{}]}
    late = request_of(1, deadline_ms=1e-6)

    traced(
        repository,
        collector,
        [
            {"content": b"{", "headers": headers},
            {"json": bad, "headers": headers},
            {"json": late, "headers": headers},
        ],
    )

    assert [
        (attributes(root)["http.response.status_code"], root.status.code == Status.STATUS_CODE_ERROR)
        for root in collector.roots()
    ] == [(400, False), (422, False), (504, True)]
    assert len(collector.spans) == 3  # nothing was scored


INPUTS = tensors_of(CONTEXT, [candidate(1), candidate(2)])


def test_the_open_inference_protocol_is_traced_too(repository: Path, collector: Collector):
    """With its stages, and as far as it came."""
    good = {"id": "r-1", "parameters": {"unit_id": "somebody"}, "inputs": INPUTS, "outputs": [{"name": "pctr"}]}
    bodies: list[dict[str, Any]] = [good, {"inputs": []}]
    requests = [
        {"url": "/v2/models/student/infer", "json": body, "headers": {"traceparent": SAMPLED}} for body in bodies
    ]

    traced(repository, collector, requests)

    scored, refused = collector.roots()
    assert {root.name for root in (scored, refused)} == {"/v2/models/{name}/infer"}
    assert stages_of(collector, scored) == STAGES
    assert stages_of(collector, refused) == ["decode"]
    assert attributes(scored) == {
        "http.request.method": "POST",
        "http.route": "/v2/models/{name}/infer",
        "http.response.status_code": 200,
        "retort.request_id": "r-1",
        "retort.candidates": 2,
        "retort.model": "student",
        "retort.version": 1,
    }
    assert attributes(refused)["http.response.status_code"] == 422


async def called(
    repository: Path, collector: Collector, calls: list[tuple[Any, list[tuple[str, str]]]], **settings: Any
) -> list[int]:
    """gRPC's status for each message, with its metadata, of a service that has then sent its spans and ended."""
    statuses = []
    async with serving(repository, traces=collector.url, **{"trace_share": 0.0, **settings}) as (_, channel):
        for message, metadata in calls:
            call = caller(channel, "ModelInfer")(message, metadata=metadata)
            with contextlib.suppress(grpc.aio.AioRpcError):
                await call
            statuses.append((await call.code()).value[0])
    return statuses


def test_a_call_over_grpc_is_a_span_under_its_callers(repository: Path, collector: Collector):
    """As over HTTP, with the words for calls; `traceparent` is metadata."""
    message = infer_request(INPUTS, id="r-1", outputs=("pctr",))

    asyncio.run(called(repository, collector, [(message, [("traceparent", SAMPLED)])]))

    (root,) = collector.roots()
    assert (root.trace_id.hex(), root.parent_span_id.hex()) == (TRACE, CALLER)
    assert root.name == "inference.GRPCInferenceService/ModelInfer"
    assert stages_of(collector, root) == STAGES
    assert attributes(root) == {
        "rpc.system": "grpc",
        "rpc.service": "inference.GRPCInferenceService",
        "rpc.method": "ModelInfer",
        "rpc.grpc.status_code": 0,
        "retort.request_id": "r-1",
        "retort.candidates": 2,
        "retort.model": "student",
        "retort.version": 1,
    }


def test_over_grpc_too_the_caller_decides_and_without_one_the_share(repository: Path, collector: Collector):
    """What is no traceparent begins a trace of its own, where the share says so."""
    message = infer_request(INPUTS, outputs=("pctr",))
    metadata: list[list[tuple[str, str]]] = [
        [],
        [("traceparent", UNSAMPLED)],
        [("traceparent", "nonsense")],
        [("traceparent", f"ff-{TRACE}-{CALLER}-01")],
    ]
    calls = [(message, given) for given in metadata]

    asyncio.run(called(repository, collector, calls))
    assert collector.spans == []

    asyncio.run(called(repository, collector, calls, trace_share=1.0))
    assert len(collector.roots()) == 3
    assert TRACE not in {root.trace_id.hex() for root in collector.roots()}


def test_a_call_that_is_refused_is_traced_as_far_as_it_came(repository: Path, collector: Collector):
    """An error only where the service is to blame."""
    late = infer_request(INPUTS)
    late.parameters["timeout"].int64_param = 1
    messages = [infer_request(INPUTS, model_name="another"), infer_request([]), late]

    statuses = asyncio.run(called(repository, collector, [(each, [("traceparent", SAMPLED)]) for each in messages]))

    assert statuses == [5, 3, 4]
    assert [
        (attributes(root)["rpc.grpc.status_code"], root.status.code == Status.STATUS_CODE_ERROR)
        for root in collector.roots()
    ] == [(5, False), (3, False), (4, True)]
    assert [attributes(root).get("retort.model") for root in collector.roots()] == [None, "student", "student"]


def test_health_and_metadata_over_grpc_leave_no_trace(repository: Path, collector: Collector):
    """Only inferences do, as over HTTP."""

    async def ask() -> None:
        async with serving(repository, traces=collector.url, trace_share=1.0) as (_, channel):
            await caller(channel, "ServerReady")(methods()["ServerReady"][0](), metadata=[("traceparent", SAMPLED)])

    asyncio.run(ask())

    assert collector.spans == []


def test_what_a_caller_may_cost_is_bounded(repository: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch):
    """So many a second, and the others counted: everybody's requests may say that they are sampled."""
    monkeypatch.setattr(tracing, "PER_SECOND", 1)
    monkeypatch.setattr(tracing, "monotonic", lambda: 7.0)

    app = traced(
        repository, collector, [{"json": request_of(1), "headers": {"traceparent": SAMPLED}} for _ in range(3)]
    )

    text = app.metrics.exposition().decode()
    assert len(collector.roots()) == 1
    assert metric(text, "retort_traces_total", outcome="recorded") == 1
    assert metric(text, "retort_traces_total", outcome="limited") == 2
    assert metric(text, "retort_spans_total", outcome="exported") == len(collector.spans) == 6


def test_what_the_collector_refuses_is_counted(repository: Path, collector: Collector):
    """And costs no request anything."""
    collector.status = 400

    app = traced(repository, collector, [{"json": request_of(1), "headers": {"traceparent": SAMPLED}}])

    text = app.metrics.exposition().decode()
    assert metric(text, "retort_spans_total", outcome="failed") == 6
    assert metric(text, "retort_spans_total", outcome="exported") == 0
    assert metric(text, "retort_requests_total", route="/predict", code="200") == 1


def test_a_request_with_a_parent_goes_where_headers_are_known(repository: Path, collector: Collector):
    """The direct way knows a head by its bytes only. Without traces it takes any."""
    headers = [(b"content-length", b"9"), (b"traceparent", SAMPLED.encode())]
    for settings, length in (({"traces": collector.url}, None), ({}, 9)):
        app = make_app(repository, **settings)
        with TestClient(app) as client:
            wait_until_ready(client)
            assert Direct(app.predictor, lambda: False).length_of(b"/predict", headers) == length
