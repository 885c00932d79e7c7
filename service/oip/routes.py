"""The protocol's routes. `descriptions.py` says what they answer, `service/admin/gate.py` who may use them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import orjson
from fastapi import Request
from fastapi.responses import Response

from service.admin.gate import BODY_BYTES, credentials
from service.admin.repository import wanted_version, wants_ready_only
from service.errors import Code, Refusal
from service.http.asgi import JSON, read_whole
from service.oip.inference import INFER_ROUTE, INFER_VERSION_ROUTE, OCTETS
from service.oip.metadata import describe_model, describe_server
from service.scoring.plan import Plan, Served, find_version
from service.scoring.predict import Target

if TYPE_CHECKING:
    from service.app import Service

MODEL = "/v2/models/{name}"
VERSION = "/v2/models/{name}/versions/{version}"
REPOSITORY = "/v2/repository"


def add_routes(app: Service) -> None:
    """Every route of /v2."""
    _add_server_routes(app)
    _add_model_routes(app)
    _add_repository_routes(app)


def _json(content: Any) -> Response:
    return Response(orjson.dumps(content), media_type="application/json")


def _add_server_routes(app: Service) -> None:
    @app.get("/v2", tags=["open inference protocol"], summary="The server and its extensions")
    async def server() -> Response:
        return _json(describe_server())

    @app.get("/v2/health/live", tags=["open inference protocol"], summary="Does the server answer?")
    async def server_live() -> Response:
        return _json({"live": True})

    @app.get("/v2/health/ready", tags=["open inference protocol"], summary="Should requests be sent here?")
    async def server_ready() -> Response:
        app.require_ready()
        return _json({"ready": True})


def _add_model_routes(app: Service) -> None:
    @app.get("/v2/models/stats", tags=["open inference protocol"], summary="Statistics of every loaded model")
    async def all_statistics() -> Response:
        app.require_plan()
        return await _statistics(app, sorted(app.registry.loaded))

    @app.get(MODEL, tags=["open inference protocol"], summary="A model's tensors and versions")
    async def model(name: str) -> Response:
        return await _metadata(app, Target(MODEL, name))

    @app.get(VERSION, tags=["open inference protocol"], summary="A version's tensors")
    async def version(name: str, version: str) -> Response:
        return await _metadata(app, Target(VERSION, name, version))

    @app.get(MODEL + "/ready", tags=["open inference protocol"], summary="Is the model served?")
    async def model_ready(name: str) -> Response:
        return _ready(app, Target(MODEL, name))

    @app.get(VERSION + "/ready", tags=["open inference protocol"], summary="Is the version loaded?")
    async def version_ready(name: str, version: str) -> Response:
        return _ready(app, Target(VERSION, name, version))

    @app.get(MODEL + "/stats", tags=["open inference protocol"], summary="Statistics of a model's loaded versions")
    async def model_statistics(name: str) -> Response:
        find_version(app.require_plan(), name, None)
        return await _statistics(app, sorted(key for key in app.registry.loaded if key[0] == name))

    @app.get(VERSION + "/stats", tags=["open inference protocol"], summary="Statistics of a version")
    async def version_statistics(name: str, version: str) -> Response:
        found = find_model(app, app.require_plan(), Target(VERSION, name, version))
        return await _statistics(app, [found])

    @app.post(INFER_ROUTE, tags=["open inference protocol"], summary="Score rows with a model's live version")
    async def infer(name: str, request: Request) -> Response:
        return await app.answer_inference(Target(INFER_ROUTE, name), request)

    @app.post(INFER_VERSION_ROUTE, tags=["open inference protocol"], summary="Score rows with one version of a model")
    async def infer_by_version(name: str, version: str, request: Request) -> Response:
        return await app.answer_inference(Target(INFER_VERSION_ROUTE, name, version), request)


def _add_repository_routes(app: Service) -> None:
    @app.post(REPOSITORY + "/index", tags=["administration"], summary="Every version in the repository")
    async def index(request: Request) -> Response:
        ready_only = wants_ready_only(await _small_body(request))
        app.require_plan()
        return _json(app.model_control.index(ready_only))

    @app.post(
        REPOSITORY + "/models/{name}/load",
        tags=["administration"],
        summary="Make a version the live one, for every worker and for good",
    )
    async def load(name: str, request: Request) -> Response:
        version = wanted_version(await _small_body(request))
        app.require_plan()
        await app.model_control.load(app.gate.admit(*credentials(request)), name, version)
        return _json({})

    @app.post(
        REPOSITORY + "/models/{name}/unload",
        tags=["administration"],
        summary="Take a model out of service, for every worker and for good",
    )
    async def unload(name: str, request: Request) -> Response:
        await _small_body(request)
        app.require_plan()
        await app.model_control.unload(app.gate.admit(*credentials(request)), name)
        return _json({})


async def _small_body(request: Request) -> bytes:
    return await read_whole(request, BODY_BYTES, (JSON, OCTETS))


def find_model(app: Service, plan: Plan, target: Target) -> tuple[str, int]:
    """The model and version that a path names; `Refusal` where the repository has none such."""
    assert target.model is not None
    found = find_version(plan, target.model, target.version)
    if isinstance(found, Served):
        return found.scorer.bundle.name, found.scorer.bundle.version
    if found[1] not in app.registry.versions(found[0]):
        raise Refusal(Code.UNKNOWN_VERSION, "the model has no such version", field="version")
    return found


def find_loaded(app: Service, target: Target) -> tuple[str, int]:
    """As `find_model`; `Refusal` where it is there and not loaded."""
    found = find_model(app, app.require_plan(), target)
    if found not in app.registry.loaded:
        detail = "this version is not loaded: the first request that names it may load it"
        raise Refusal(Code.NOT_READY, detail, field="version")
    return found


def _ready(app: Service, target: Target) -> Response:
    return _json({"name": find_loaded(app, target)[0], "ready": True})


async def _metadata(app: Service, target: Target) -> Response:
    served = await app.inference.find(app.require_plan(), target)
    bundle = served.scorer.bundle
    versions = app.registry.versions(bundle.name) or [bundle.version]
    return _json(describe_model(served.scorer, versions if target.version is None else [bundle.version]))


async def _statistics(app: Service, versions: list[tuple[str, int]]) -> Response:
    # In a thread: adding up many workers' files takes milliseconds that requests need not wait for.
    return _json(await asyncio.to_thread(app.statistics.describe, versions))
