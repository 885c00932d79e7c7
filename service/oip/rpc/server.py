"""The protocol's methods over gRPC, on the event loop of a worker.

Requests arrive as bytes and are parsed once they are admitted, in one count with HTTP's; refusals are statuses with our
words, and our code in the trailing metadata `retort-code`. A `traceparent` is metadata, where HTTP has headers. Every
worker listens on the one port (SO_REUSEPORT), and the kernel deals connections out.

    PUBLIC     methods for everybody; any other takes the admin token in the metadata `authorization`
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from service.admin.gate import HEAD_BYTES
from service.admin.repository import version_in
from service.errors import Code, Refusal
from service.http.protocol import MAX_ARRIVING, REQUEST_SECONDS
from service.oip.inference import INFER_ROUTE, INFER_VERSION_ROUTE, Passage
from service.oip.metadata import describe_model, describe_server
from service.oip.routes import MODEL, VERSION, find_loaded, find_model
from service.oip.rpc.convert import fill_answer, parameters_of, request_of
from service.oip.rpc.messages import SERVICE, methods
from service.scoring.predict import RETRY_AFTER, Target

if TYPE_CHECKING:
    from service.app import Service

logger = logging.getLogger(__name__)

PUBLIC = frozenset(
    ("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer", "ModelStatistics")
)
INFER = f"/{SERVICE}/ModelInfer"
WAITING = 4
"""So many times `--max-in-flight` calls, beside those that arrive, may be open before the library refuses more."""

_STATUSES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    409: grpc.StatusCode.FAILED_PRECONDITION,
    413: grpc.StatusCode.INVALID_ARGUMENT,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    500: grpc.StatusCode.INTERNAL,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}

Context = Any
Answer = Callable[[Any, Context], Awaitable[Any]]


class RpcServer:
    """The methods of one worker's application."""

    def __init__(self, app: Service) -> None:
        self._app = app
        settings = app.settings
        self._server = grpc.aio.server(
            options=[
                ("grpc.so_reuseport", 1),
                ("grpc.max_receive_message_length", settings.max_body_bytes),
                ("grpc.max_metadata_size", HEAD_BYTES),
                ("grpc.max_connection_idle_ms", 1000 * settings.keep_alive_seconds),
            ],
            maximum_concurrent_rpcs=MAX_ARRIVING + WAITING * settings.max_in_flight,
        )
        self._arriving: dict[asyncio.Future[Any], None] = {}  # longest first
        # As if requests were streams, which are the same on the wire: so it is we who wait for the message.
        handlers = {name: grpc.stream_unary_rpc_method_handler(self._handler(name)) for name in methods()}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))

    async def start(self, host: str, port: int) -> None:
        """Listens. Raises `OSError` where that cannot be."""
        try:
            self._server.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        except RuntimeError as error:
            raise OSError(str(error)) from None
        await self._server.start()

    async def stop(self, seconds: float) -> None:
        """Takes no more calls, and gives those that are open so long to end."""
        await self._server.stop(seconds)

    def _handler(self, name: str) -> Callable[[bytes, Context], Awaitable[bytes]]:
        taken, _ = methods()[name]
        answer: Answer = getattr(self, f"_{name}")
        route = f"/{SERVICE}/{name}"

        async def handle(_: object, context: Context) -> bytes:
            passage = Passage(perf_counter())
            try:
                body = await self._read(context)
                found = await self._admit(name, answer, taken, body, context, passage)
                self._app.metrics.count_request(route, 200)
                self._trace(route, context, passage, 200)
                return found
            except Refusal as error:
                refusal = error
            except Exception:
                logger.exception("a call of %s failed", name)
                refusal = Refusal(Code.INTERNAL, "the service failed; the failure is logged")
            self._app.metrics.count_refusal(refusal.code)
            self._app.metrics.count_request(route, refusal.status)
            self._trace(route, context, passage, refusal.status)
            trailing = [("retort-code", str(refusal.code))]
            if RETRY_AFTER in refusal.headers:
                trailing.append(("retry-after", RETRY_AFTER[1].decode()))
            await context.abort(_STATUSES[refusal.status], refusal.detail, tuple(trailing))
            raise AssertionError("abort raises")

        return handle

    async def _read(self, context: Context) -> bytes:
        """The call's message, waited for as long as HTTP's requests are; of very many the longest to arrive goes."""
        reading = asyncio.ensure_future(context.read())
        self._arriving[reading] = None
        if len(self._arriving) > MAX_ARRIVING:
            next(iter(self._arriving)).cancel()
        try:
            done, _ = await asyncio.wait((reading,), timeout=REQUEST_SECONDS)
        finally:
            del self._arriving[reading]
        if not done or reading.cancelled():
            reading.cancel()
            raise Refusal(Code.REQUEST_TIMEOUT, "the request did not arrive in time")
        body = reading.result()
        if body is grpc.aio.EOF:
            raise Refusal(Code.INVALID_REQUEST, "expected a message")
        assert isinstance(body, bytes)
        return body

    async def _admit(
        self, name: str, answer: Answer, taken: Any, body: bytes, context: Context, passage: Passage
    ) -> bytes:
        app = self._app
        if name not in PUBLIC:
            app.gate.check_token(_authorization(context), _address(context), name)
        if name != "ModelInfer":
            return _serialized(await answer(_parsed(taken, body), context))
        admission = app.predictor.admission
        if admission.is_full:
            admission.note_refusal()
            raise Refusal(Code.OVERLOADED, "too many requests are in flight: try again", headers=(RETRY_AFTER,))
        admission.take()
        try:
            return _serialized(await self._ModelInfer(_parsed(taken, body), context, passage))
        finally:
            admission.free()

    def _trace(self, route: str, context: Context, passage: Passage, status: int) -> None:
        """The trace of an inference that is being answered."""
        tracer = self._app.tracer
        if tracer is not None and route == INFER:
            code: int = _STATUSES.get(status, grpc.StatusCode.OK).value[0]
            tracer.record_rpc(route, _parent(context), passage, status, code)

    async def _ServerLive(self, message: Any, context: Context) -> Any:  # noqa: N802 - the methods' own names
        return _answer("ServerLive", live=True)

    async def _ServerReady(self, message: Any, context: Context) -> Any:  # noqa: N802
        return _answer("ServerReady", ready=not self._app.reasons_not_ready())

    async def _ModelReady(self, message: Any, context: Context) -> Any:  # noqa: N802
        try:
            find_loaded(self._app, _target(message.name, message.version))
        except Refusal as refusal:
            if refusal.status != 503:
                raise
            return _answer("ModelReady", ready=False)
        return _answer("ModelReady", ready=True)

    async def _ServerMetadata(self, message: Any, context: Context) -> Any:  # noqa: N802
        return _answer("ServerMetadata", **describe_server())

    async def _ModelMetadata(self, message: Any, context: Context) -> Any:  # noqa: N802
        app, target = self._app, _target(message.name, message.version)
        served = await app.inference.find(app.require_plan(), target)
        bundle = served.scorer.bundle
        versions = app.registry.versions(bundle.name) or [bundle.version]
        found = describe_model(served.scorer, versions if target.version is None else [bundle.version])
        return _answer("ModelMetadata", **found)

    async def _ModelInfer(self, message: Any, context: Context, passage: Passage) -> Any:  # noqa: N802
        app = self._app
        remaining = context.time_remaining()
        due = None if remaining is None else perf_counter() + remaining
        version = message.model_version or None
        route = INFER_ROUTE if version is None else INFER_VERSION_ROUTE
        _, given = methods()["ModelInfer"]
        return await app.inference.score(
            app.require_plan(),
            Target(route, message.model_name, version),
            passage,
            lambda: request_of(message),
            lambda served, request, outputs, found: fill_answer(given(), served, request, found),
            due,
        )

    async def _ModelStatistics(self, message: Any, context: Context) -> Any:  # noqa: N802
        app = self._app
        plan = app.require_plan()
        if message.name:
            found = [find_model(app, plan, _target(message.name, message.version))]
            if not message.version:
                found = sorted(key for key in app.registry.loaded if key[0] == message.name)
        else:
            found = sorted(app.registry.loaded)
        described = await asyncio.to_thread(app.statistics.describe, found)
        _, given = methods()["ModelStatistics"]
        answer = given()
        for model in described["model_stats"]:  # type: ignore[attr-defined]
            model.pop("batch_stats")
            answer.model_stats.add(**model)
        return answer

    async def _RepositoryIndex(self, message: Any, context: Context) -> Any:  # noqa: N802
        self._app.require_plan()
        return _answer("RepositoryIndex", models=self._app.model_control.index(message.ready))

    async def _RepositoryModelLoad(self, message: Any, context: Context) -> Any:  # noqa: N802
        admin = self._app.gate.admit(_authorization(context), _address(context))
        self._app.require_plan()
        version = version_in(parameters_of(message.parameters))
        await self._app.model_control.load(admin, message.model_name, version)
        return _answer("RepositoryModelLoad")

    async def _RepositoryModelUnload(self, message: Any, context: Context) -> Any:  # noqa: N802
        admin = self._app.gate.admit(_authorization(context), _address(context))
        self._app.require_plan()
        await self._app.model_control.unload(admin, message.model_name)
        return _answer("RepositoryModelUnload")


def _answer(method: str, **members: Any) -> Any:
    _, given = methods()[method]
    return given(**members)


def _target(name: str, version: str) -> Target:
    return Target(VERSION, name, version) if version else Target(MODEL, name)


def _parsed(taken: Any, body: bytes) -> Any:
    try:
        return taken.FromString(body)
    except DecodeError:
        raise Refusal(Code.INVALID_REQUEST, f"expected a {taken.DESCRIPTOR.name}") from None


def _serialized(message: Any) -> bytes:
    content: bytes = message.SerializeToString()
    return content


def _authorization(context: Context) -> str:
    for name, value in context.invocation_metadata() or ():
        if name == "authorization" and isinstance(value, str):
            return value
    return ""


def _parent(context: Context) -> bytes:
    """The call's `traceparent`; empty where it has none. (Of several the library leaves the last.)"""
    for name, value in context.invocation_metadata() or ():
        if name == "traceparent" and isinstance(value, str):
            return value.encode(errors="replace")
    return b""


def _address(context: Context) -> str | None:
    """`ipv4:10.0.0.7:51234` without the port."""
    peer: str = context.peer() or ""
    return peer.partition(":")[2].rpartition(":")[0] or None
