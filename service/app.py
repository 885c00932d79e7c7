"""create_app(settings): puts the rooms together, nothing else.

One FastAPI application with every route in its OpenAPI. Requests to the predict routes are answered in front of it,
from the ASGI call itself: FastAPI's routing and middleware would cost more than the model. The routes exist all the
same, call the same function and answer byte for byte the same, so the shortcut is only ever a shortcut.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import math
import re
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from fastapi import Depends, FastAPI, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope, Send

from models.errors import ModelNotFoundError
from service.admin import audit
from service.admin.experiments import ExperimentControl
from service.admin.gate import Gate, credentials, guard
from service.admin.repository import ModelControl
from service.admin.token import read_token
from service.catalogue.keeper import CatalogueKeeper
from service.catalogue.lines import Catalogue, no_catalogue
from service.console import routes as console
from service.errors import Code, LoadDeferredError, ModelLoadError, Refusal
from service.experiments import routes as experiment_routes
from service.http import descriptions, page
from service.http.asgi import CLOSE, JSON, Answer, ClientGoneError, read_whole, refuse, send_answer
from service.journal.keeper import Journal
from service.journal.units import read_unit_key
from service.journal.writer import Bounds
from service.metrics import CONTENT_TYPE, Metrics
from service.oip import routes as oip
from service.oip.descriptions import OPERATIONS as OIP_OPERATIONS
from service.oip.inference import INFER_ROUTE, INFER_VERSION_ROUTE, Inference
from service.oip.statistics import Statistics
from service.results.keeper import Results
from service.scoring.drift import Drift
from service.scoring.explain import EXPLAIN_MODEL_ROUTE, EXPLAIN_ROUTE, EXPLAIN_VERSION_ROUTE, explain
from service.scoring.plan import Plan, Served
from service.scoring.predict import PREDICT, RETRY_AFTER, Predictor, Target
from service.scoring.registry import Registry
from service.scoring.scorer import FEW_ROWS, Scorer
from service.scoring.shadow import ShadowLane
from service.scoring.watch import Watcher
from service.settings import Settings

if TYPE_CHECKING:
    from service.http.tracing import Tracer

logger = logging.getLogger(__name__)

MODEL_ROUTE = "/models/{name}/predict"
CATALOGUE_ROUTE = "/catalogue"
FEEDBACK_ROUTE = "/feedback"
NDJSON = b"application/x-ndjson"
VERSION_ROUTE = "/models/{name}/versions/{version}/predict"
_NO_ROUTE = Refusal(Code.NOT_FOUND, "there is no such route")
_NO_LOG = Refusal(Code.NO_LOG, "this service keeps no exposure log: start it with --log FOLDER")
_SCORED_ROUTES = (PREDICT.route, MODEL_ROUTE, VERSION_ROUTE, INFER_ROUTE, INFER_VERSION_ROUTE)
_INFER_PATH = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?/infer")
_MODEL_PATH = re.compile(r"/models/([^/]+)(?:/versions/([^/]+))?/predict")


class Service(FastAPI):
    """The application of one worker, and what its process needs to know: ready, failed, draining."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        super().__init__(
            title="Retort",
            summary="Calibrated click probabilities for raw ad requests, A/B tested.",
            version="1",
            docs_url=None,  # a page of our own
            redoc_url=None,
            openapi_url=None,  # a route like any other, behind the gate
            dependencies=[Depends(guard)],
            redirect_slashes=False,  # a redirect would repeat the host and the query that a client sent
            lifespan=type(self)._lifespan,
            default_response_class=Response,
        )
        self.settings = settings
        self.metrics = metrics
        self.failure: BaseException | None = None
        """What stopped the models from being loaded, once that is certain."""
        self.on_failure: Callable[[], object] = lambda: None
        self.loads_first = False
        """Whether connections are accepted only once the models are proven: where others serve meanwhile."""
        self.draining = False
        self._ready = asyncio.Event()
        self._settled = asyncio.Event()  # ready, or failed
        explained = (EXPLAIN_ROUTE, EXPLAIN_MODEL_ROUTE, EXPLAIN_VERSION_ROUTE)
        long_bodies = dict.fromkeys(explained, settings.max_body_bytes)
        self.gate = Gate(read_token(settings), {CATALOGUE_ROUTE: settings.max_catalogue_bytes, **long_bodies})
        share_bytes = 0 if settings.catalogue is None else settings.catalogue_share_bytes
        self._registry = Registry(
            settings.repository, metrics, settings.max_loaded_extra, settings.candidate_cache_bytes, share_bytes
        )
        self.catalogue = CatalogueKeeper(
            settings.catalogue, metrics, lambda: [scorer.catalogue for scorer in self._registry.loaded.values()]
        )
        self._registry.prepare = lambda scorer: self.catalogue.prepare(scorer.catalogue)
        self.journal = _open_journal(settings, metrics)
        self._served: WeakKeyDictionary[Scorer, Served] = WeakKeyDictionary()
        self.tracer = _open_tracer(settings, metrics)
        self.predictor = Predictor(
            metrics,
            max_body_bytes=settings.max_body_bytes,
            max_candidates=settings.max_candidates,
            max_in_flight=settings.max_in_flight,
            max_run_rows=settings.max_run_rows,
            load_version=self._load_version,
            remembers=settings.candidate_cache_bytes > 0,
            record=None if self.journal is None else self.journal.record,
            record_failure=None if self.journal is None else self.journal.record_failure,
            shadow=lambda call, route: self.shadow.offer(call, route),
            tracer=self.tracer,
        )
        self.drift = Drift(metrics)
        self._registry.build_more = self.drift.prepare
        self.shadow = ShadowLane(
            self.predictor,
            metrics,
            max_rows=min(settings.max_run_rows, FEW_ROWS),
            record=None if self.journal is None else self.journal.record_shadow,
            note_kl=self.drift.note_kl,
        )
        self.statistics = Statistics(metrics)
        self.inference = Inference(
            self.predictor,
            metrics,
            self.statistics,
            max_candidates=settings.max_candidates,
            load_version=self._load_version,
            tracer=self.tracer,
        )
        self._watcher = Watcher(settings, self._registry, metrics, self._publish)
        self.look_at_state = self._watcher.look_at_state
        self.model_control = ModelControl(self._registry, self._watcher.look_at_repository)
        self.results = Results(
            settings.log, replay=settings.log_unit_key_file is None, timeout_seconds=settings.results_seconds
        )
        self.experiment_control = ExperimentControl(settings.experiments, self._watcher.bring_into_force)
        _add_routes(self)
        experiment_routes.add_routes(self)
        oip.add_routes(self)
        console.add_routes(self)
        _add_error_handlers(self)

    @property
    def plan(self) -> Plan | None:
        """What is served right now; None until the first models are proven."""
        return self.predictor.plan

    @property
    def registry(self) -> Registry:
        """What is loaded, and what could be."""
        return self._registry

    async def until_ready(self) -> None:
        """Returns when requests can be answered."""
        await self._ready.wait()

    def drain(self) -> None:
        """Readiness falls; requests are still answered, each asking its client to connect elsewhere next."""
        if not self.draining:
            self.draining = True
            self.results.stop()
            logger.info("draining: readiness is down, what arrives is still answered")

    def show_admission(self) -> None:
        """Says in the metrics how full this worker is now."""
        admission = self.predictor.admission
        self.metrics.show_admission(admission.in_flight, admission.is_overloaded)

    def reasons_not_ready(self) -> tuple[str, ...]:
        """Why a balancer should send requests elsewhere; empty when it should not."""
        reasons = []
        if self.draining:
            reasons.append("shutting down")
        if self.failure is not None:
            reasons.append("the models cannot be served; the log says why")
        elif self.predictor.plan is None:
            reasons.append("models are being loaded and golden-checked")
        if self.journal is not None and self.journal.is_required:
            reasons += self.reasons_degraded()
        return tuple(reasons)

    def reasons_degraded(self) -> tuple[str, ...]:
        """What does not work though requests are answered; empty where all is well."""
        failure = None if self.journal is None else self.journal.failure
        return () if failure is None else (failure,)

    def require_ready(self) -> None:
        """Raises `Refusal` with the reasons where requests should be sent elsewhere."""
        reasons = self.reasons_not_ready()
        if reasons:
            raise Refusal(Code.NOT_READY, "not ready to serve", reasons=reasons)

    def require_plan(self) -> Plan:
        """What is served; `Refusal` until there is anything."""
        if self.plan is None:
            raise Refusal(Code.NOT_READY, "not ready to serve", reasons=self.reasons_not_ready())
        return self.plan

    async def answer_inference(self, target: Target, request: Request) -> Response:
        """The slow way to what `__call__` answers at once."""
        return _response(await self.inference.respond(target, request.scope, request.receive))

    async def answer_explain(self, target: Target, request: Request) -> Response:
        """How a request to the predict route beside it would be read and scored."""
        plan, limit = self.require_plan(), self.settings.max_body_bytes
        if self.predictor.admission.is_full:
            return _response(self.predictor.turn_away())
        try:
            body = await read_whole(request, limit)
        except ClientGoneError:
            return _response(None)
        explained = await explain(
            plan,
            target,
            body,
            max_candidates=self.settings.max_candidates,
            new_id=self.predictor.new_id,
            load_version=self._load_version,
        )
        return _json(explained)

    def openapi(self) -> dict[str, Any]:
        """FastAPI's description of the routes, with what their requests and answers really are."""
        if self.openapi_schema is None:
            schema = super().openapi()
            for (method, path), described in (descriptions.OPERATIONS | OIP_OPERATIONS).items():
                schema["paths"][path][method] |= described
            schema.pop("components", None)  # FastAPI's own validation errors, which no route here answers with
            self.openapi_schema = schema
        return self.openapi_schema

    def _publish(self, plan: Plan) -> None:
        self.predictor.plan = plan
        self.drift.watch(plan.scorers())
        self._ready.set()
        self._settled.set()

    async def _load_version(self, name: str, version: int) -> Served:
        """A version that is not live, for the one request that names it."""
        try:
            scorer = await self._registry.load_extra(name, version)
        except ModelNotFoundError:
            detail = "the model has no such version"
            raise Refusal(Code.UNKNOWN_VERSION, detail, field="version") from None
        except ModelLoadError:
            detail = "this version was refused at load"
            raise Refusal(Code.NOT_READY, detail, field="version", headers=(RETRY_AFTER,)) from None
        except LoadDeferredError as error:
            detail = "versions that are not live are loaded one after the other: try again"
            wait = (b"retry-after", b"%d" % math.ceil(error.seconds))
            raise Refusal(Code.VERSION_DEFERRED, detail, field="version", headers=(wait,)) from None
        served = self._served.get(scorer)
        if served is None:
            served = self._served[scorer] = Served(scorer, self.metrics)
        return served

    @contextlib.asynccontextmanager
    async def _lifespan(self) -> AsyncIterator[None]:
        """Loads and watches in the background: the process is alive at once and ready when golden rows passed."""
        watching = asyncio.create_task(self._watch())
        rpc = None
        try:
            if self.loads_first:
                await self._settled.wait()
            if self.settings.grpc_port is not None:
                from service.oip.rpc.server import RpcServer

                rpc = RpcServer(self)
                await rpc.start(self.settings.host, self.settings.grpc_port)
            yield
        finally:
            if rpc is not None:
                await rpc.stop(self.settings.shutdown_seconds)
            await self.results.close()
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching
            self._registry.close()
            await asyncio.to_thread(self.shadow.close)
            if self.tracer is not None:
                await asyncio.to_thread(self.tracer.close)
            if self.journal is not None:
                await asyncio.to_thread(self.journal.close)

    async def _watch(self) -> None:
        try:
            if self.journal is not None:
                await self.journal.start()
            await self.catalogue.start()
            await self._watcher.start()
        except asyncio.CancelledError:
            raise
        except Exception as error:
            self.failure = error
            self.on_failure()
            self._settled.set()
            return
        await asyncio.gather(
            self._watcher.follow(), self.drift.follow(), self.catalogue.follow(self.settings.poll_seconds)
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers the predict routes at once; leaves everything else to FastAPI and counts it."""
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        if scope["method"] == "POST":
            target = find_target(scope["path"])
            if target is not None:
                answer = await self.predictor.respond(target, scope, receive)
                if answer is not None:
                    await send_answer(send, receive, answer, self.draining)
                return
            target = find_inference(scope["path"])
            if target is not None:
                answer = await self.inference.respond(target, scope, receive)
                if answer is not None:
                    await send_answer(send, receive, answer, self.draining)
                return
        if scope["path"].isprintable():
            await self.serve_by_fastapi(scope, receive, send)
        else:  # Starlette's patterns end in `$`, which would take a line feed for the end
            self.metrics.count_refusal(_NO_ROUTE.code)
            self.metrics.count_request("other", _NO_ROUTE.status)
            await send_answer(send, receive, refuse(_NO_ROUTE), self.draining)

    async def serve_by_fastapi(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Any route, through FastAPI; the predict routes, too, answer the same here, only slower."""
        status = 500

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if self.draining:
                    message["headers"] = [*message.get("headers", []), CLOSE]
            await send(message)

        try:
            await super().__call__(scope, receive, watch)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            if route not in _SCORED_ROUTES or scope["method"] != "POST":
                self.metrics.count_request(route, status)  # what scores has counted its own


def find_target(path: str) -> Target | None:
    """Which predict route a path is, if any."""
    if path == "/predict":
        return PREDICT
    match = _MODEL_PATH.fullmatch(path) if path.startswith("/models/") else None
    if match is None:
        return None
    name, version = match.groups()
    return Target(MODEL_ROUTE if version is None else VERSION_ROUTE, name, version)


def find_inference(path: str) -> Target | None:
    """Which route of the Open Inference Protocol a path is, if it is one that scores."""
    match = _INFER_PATH.fullmatch(path) if path.startswith("/v2/") else None
    if match is None:
        return None
    name, version = match.groups()
    return Target(INFER_ROUTE if version is None else INFER_VERSION_ROUTE, name, version)


def create_app(settings: Settings, metrics: Metrics | None = None) -> Service:
    """The application for these settings; `metrics` is given by a worker that shares them with others."""
    return Service(settings, metrics if metrics is not None else Metrics())


class _AnswerResponse(Response):
    """An answer as FastAPI hands it on; sent as the fast path sends it."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        super().__init__(answer.body, answer.status)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_answer(send, receive, self.answer, closing=False)


def _response(answer: Answer | None) -> Response:
    if answer is None:  # the client is gone; nobody will read this
        return Response(status_code=499)
    return _AnswerResponse(answer)


def _json(content: Any) -> Response:
    import orjson

    return Response(orjson.dumps(content), media_type="application/json")


def _add_routes(app: Service) -> None:
    """Every route; the schemas and examples of their requests and answers are in `descriptions.py`."""
    respond = app.predictor.respond

    @app.post(
        PREDICT.route,
        tags=["predict"],
        summary="Score candidates in the default or a named experiment",
    )
    async def predict(request: Request) -> Response:
        return _response(await respond(PREDICT, request.scope, request.receive))

    @app.post(
        MODEL_ROUTE,
        tags=["predict"],
        summary="Score candidates with a model's live version, outside any experiment",
    )
    async def predict_by_model(name: str, request: Request) -> Response:
        return _response(await respond(Target(MODEL_ROUTE, name), request.scope, request.receive))

    @app.post(
        VERSION_ROUTE,
        tags=["predict"],
        summary="Score candidates with one version of a model, outside any experiment",
    )
    async def predict_by_version(name: str, version: str, request: Request) -> Response:
        target = Target(VERSION_ROUTE, name, version)
        return _response(await respond(target, request.scope, request.receive))

    @app.post(EXPLAIN_ROUTE, tags=["administration"], summary="What the scores of a request are made of")
    async def explain_request(request: Request) -> Response:
        return await app.answer_explain(Target(EXPLAIN_ROUTE), request)

    @app.post(EXPLAIN_MODEL_ROUTE, tags=["administration"], summary="The same, by a model's live version")
    async def explain_by_model(name: str, request: Request) -> Response:
        return await app.answer_explain(Target(EXPLAIN_MODEL_ROUTE, name), request)

    @app.post(EXPLAIN_VERSION_ROUTE, tags=["administration"], summary="The same, by one version of a model")
    async def explain_by_version(name: str, version: str, request: Request) -> Response:
        return await app.answer_explain(Target(EXPLAIN_VERSION_ROUTE, name, version), request)

    @app.get(
        "/health/live",
        tags=["health"],
        summary="Does the process answer?",
    )
    async def live() -> Response:
        return _json({"status": "alive"})

    @app.get(
        "/health/ready",
        tags=["health"],
        summary="Should requests be sent here?",
    )
    async def ready() -> Response:
        app.require_ready()
        reasons = app.reasons_degraded()
        return _json({"status": "degraded", "reasons": reasons} if reasons else {"status": "ready"})

    @app.get(
        "/metrics",
        tags=["operations"],
        summary="Metrics for Prometheus",
    )
    async def metrics() -> Response:
        app.show_admission()
        # In a thread: adding up many workers' files takes milliseconds that requests need not wait for.
        text = await asyncio.to_thread(app.metrics.exposition)
        return Response(text, headers={"content-type": CONTENT_TYPE})

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi() -> Response:
        return _json(app.openapi())

    docs_page = functools.cache(lambda: page.render(app.openapi()))

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return Response(docs_page(), headers=page.HEADERS, media_type="text/html; charset=utf-8")

    @app.post(FEEDBACK_ROUTE, tags=["feedback"], summary="Say what came of scored candidates: shown, clicked, …")
    async def feedback(request: Request) -> Response:
        if app.journal is None:
            raise _NO_LOG.with_traceback(None)
        try:
            body = await read_whole(request, app.settings.max_body_bytes)
        except ClientGoneError:
            return _response(None)
        return _json(app.journal.take_feedback(body))

    @app.put(
        CATALOGUE_ROUTE, tags=["administration"], summary="Register every candidate, for every worker and for good"
    )
    async def put_catalogue(request: Request) -> Response:
        app.require_plan()
        admin = app.gate.admit(*credentials(request))
        limit = app.settings.max_catalogue_bytes
        result, facts = str(Code.INTERNAL), {}
        try:
            catalogue = await app.catalogue.put(await read_whole(request, limit, (NDJSON, JSON)))
            result, facts = "ok", describe_catalogue(catalogue)
        except Refusal as refusal:
            result = str(refusal.code)
            raise
        finally:
            audit.record(admin.name, admin.address, "catalogue", None, result, **facts)
        return _json(facts)

    @app.get(
        CATALOGUE_ROUTE,
        tags=["administration"],
        summary="Which catalogue is in force",
    )
    async def get_catalogue() -> Response:
        if app.catalogue.current is None:
            raise no_catalogue()
        return _json(describe_catalogue(app.catalogue.current))


def _open_tracer(settings: Settings, metrics: Metrics) -> Tracer | None:
    """What makes traces, where somebody takes them; only then is OpenTelemetry imported."""
    if settings.traces is None:
        return None
    from service.http.tracing import Tracer

    return Tracer(settings.traces, settings.trace_share, metrics)


def _open_journal(settings: Settings, metrics: Metrics) -> Journal | None:
    """The exposure log of this worker, where one is kept. Raises `ConfigError` where it cannot be."""
    if settings.log is None:
        return None
    bounds = Bounds(
        segment_bytes=settings.log_segment_bytes,
        segment_seconds=settings.log_segment_seconds,
        sync_seconds=settings.log_sync_seconds,
        keep_seconds=86400.0 * settings.log_keep_days,
        keep_bytes=settings.log_keep_bytes,
    )
    key = None if settings.log_unit_key_file is None else read_unit_key(settings.log_unit_key_file)
    return Journal(
        *(settings.log, bounds, metrics),
        feature_rate=settings.log_features,
        is_required=settings.log_required,
        unit_key=key,
    )


def describe_catalogue(catalogue: Catalogue) -> dict[str, int | str | None]:
    """Its version and its size."""
    return {"version": catalogue.version, "candidates": len(catalogue.lines)}


def _add_error_handlers(app: Service) -> None:
    """Refusals outside the hot path: the same body, the same table."""

    async def on_refusal(_: Request, error: Exception) -> Response:
        assert isinstance(error, Refusal)
        app.metrics.count_refusal(error.code)
        return _response(refuse(error))

    async def on_http_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        refusal = _NO_ROUTE
        if error.status_code == 405:
            headers = tuple((k.lower().encode(), v.encode()) for k, v in (error.headers or {}).items())
            refusal = Refusal(Code.METHOD_NOT_ALLOWED, "this route takes another method", headers=headers)
        app.metrics.count_refusal(refusal.code)
        return _response(refuse(refusal))

    async def on_failure(_: Request, error: Exception) -> Response:
        app.metrics.count_refusal(Code.INTERNAL)
        return _response(refuse(Refusal(Code.INTERNAL, "the service failed; the failure is logged")))

    app.add_exception_handler(Refusal, on_refusal)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(Exception, on_failure)
