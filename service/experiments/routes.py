"""The routes about experiments: how they run, what a change would do, and the change itself."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import orjson
from fastapi import Request
from fastapi.responses import Response

from service.admin import halts
from service.admin.experiments import Precondition
from service.admin.gate import BODY_BYTES, credentials
from service.errors import Code, ExperimentError, Refusal
from service.experiments.assignment import BUCKETS
from service.experiments.file import Experiment, validate_experiment
from service.experiments.preview import preview
from service.experiments.state import Halt
from service.http import page
from service.http.asgi import INPUT_ENDED, ClientGoneError, read_whole
from service.results.keeper import Computed
from service.scoring.plan import RunningExperiment

if TYPE_CHECKING:
    from service.app import Service

EXPERIMENT_ROUTE = "/experiments/{name}"
HALT_ROUTE = "/experiments/{name}/halts/{arm}"
PREVIEW_ROUTE = "/experiments/{name}/preview"
RESULTS_ROUTE = "/experiments/{name}/results"
PAGE_ROUTE = "/experiments/{name}/results.html"
RESULTS_PATIENCE_SECONDS = 20.0
"""What is not computed by then is answered with what there was before, or 503: proxies wait for half a minute."""

_SHARE = re.compile(r"[01]|[01]?\.[0-9]{1,17}")
_MAX_QUERY = 4096


def add_routes(app: Service) -> None:
    """Every one of them; `descriptions.py` says what they take and answer."""

    def find(name: str) -> RunningExperiment:
        running = app.require_plan().experiments.get(name)
        if running is None:
            raise Refusal(Code.UNKNOWN_EXPERIMENT, "no such experiment is running", field="name")
        return running

    @app.get("/experiments", tags=["experiments"], summary="Every running experiment")
    async def experiments() -> Response:
        running = app.require_plan().experiments.values()
        return _json({"experiments": [describe_experiment(experiment) for experiment in running]})

    @app.get(EXPERIMENT_ROUTE, tags=["experiments"], summary="One running experiment")
    async def experiment(name: str) -> Response:
        return _described(find(name))

    @app.put(
        EXPERIMENT_ROUTE,
        tags=["administration"],
        summary="Change an experiment, or add one; for every worker and for good",
    )
    async def put_experiment(name: str, request: Request) -> Response:
        app.require_plan()
        admin = app.gate.admit(*credentials(request))
        precondition = Precondition(_header(request, "if-match"), _header(request, "if-none-match"))
        try:
            body = await read_whole(request, BODY_BYTES)
            await app.experiment_control.put(admin, name, body, precondition, lambda: _is_gone(request))
        except ClientGoneError:
            return Response(status_code=499)
        return _described(find(name))

    @app.delete(HALT_ROUTE, tags=["administration"], summary="Lift what a guard-rail has halted")
    async def lift_halt(name: str, arm: str, request: Request) -> Response:
        running = find(name)
        admin = app.gate.admit(*credentials(request))
        await halts.lift(admin, running.spec, arm, app.settings.state_file, app.look_at_state)
        return _described(find(name))

    @app.get(PREVIEW_ROUTE, tags=["experiments"], summary="Whom a change would move, bucket by bucket")
    async def preview_experiment(name: str, request: Request) -> Response:
        running = find(name)
        after = changed(running.spec, request.query_params.multi_items())
        layer = running.assigner.layer
        share = 1.0 if layer is None else (layer.owned.stop - layer.owned.start) / BUCKETS
        halted = [arm.name for arm in running.arms if arm.halt is not None]
        return _json(preview(running.spec, after, share, halted))

    async def read_results(name: str) -> Computed:
        spec, file = find(name).spec, app.require_plan().file
        return await app.results.get(spec, file, patience_seconds=RESULTS_PATIENCE_SECONDS)

    @app.get(RESULTS_ROUTE, tags=["experiments"], summary="What an experiment has shown so far")
    async def results(name: str) -> Response:
        computed = await read_results(name)
        return Response(computed.json, media_type="application/json", headers=_freshness(computed))

    @app.get(PAGE_ROUTE, tags=["experiments"], summary="The same as a page")
    async def results_page(name: str) -> Response:
        computed = await read_results(name)
        headers = {**page.HEADERS, **_freshness(computed)}
        return Response(computed.html, media_type="text/html; charset=utf-8", headers=headers)


def _freshness(computed: Computed) -> dict[str, str]:
    age = int(computed.age)
    return {"cache-control": f"max-age={int(computed.fresh_seconds)}", "age": str(age)}


def changed(spec: Experiment, wanted: list[tuple[str, str]]) -> Experiment:
    """The experiment with what a query asks for in its place. Raises `Refusal`.

    coverage=0.2            a share
    weights=0.9,0.1         one for each arm, in their order
    halted=student          names, parted by commas; empty for none
    """
    content = spec.content()
    seen = set()
    for key, text in wanted:
        if key in seen or key not in ("coverage", "weights", "halted") or len(text) > _MAX_QUERY:
            detail = "expected coverage, weights or halted, each once and not for ever"
            raise Refusal(Code.INVALID_REQUEST, detail)
        seen.add(key)
        if key == "coverage":
            content["coverage"] = _share(text, key)
        elif key == "weights":
            weights = text.split(",")
            if len(weights) != len(spec.arms):
                detail = f"field 'weights': expected one for each of {len(spec.arms)} arms, got {len(weights)}"
                raise Refusal(Code.INVALID_REQUEST, detail, field="weights")
            for arm, weight in zip(content["arms"], weights, strict=True):
                arm["weight"] = _share(weight, key)
        else:
            content["halted"] = [name for name in text.split(",") if name]
            if not set(content["halted"]) <= {arm.name for arm in spec.arms}:
                raise Refusal(Code.UNKNOWN_ARM, "the experiment has no such arm", field="halted")
    try:
        return validate_experiment(content, "the change")
    except ExperimentError as error:
        raise Refusal(Code.INVALID_EXPERIMENT, str(error)) from None


async def _is_gone(request: Request) -> bool:
    """Whether nobody waits for the answer. Who has gone looks like who has closed its half of the connection, until one
    writes to it; the latter is not done by who changes an experiment."""
    return INPUT_ENDED in request.scope or await request.is_disconnected()


def _header(request: Request, name: str) -> str | None:
    """A header that is a list, however many lines it has; None where it was not sent."""
    lines = request.headers.getlist(name)
    return ", ".join(lines) if lines else None


def _share(text: str, key: str) -> float:
    if not _SHARE.fullmatch(text) or Decimal(text) > 1:
        detail = f"field '{key}': expected numbers from 0 to 1, as 0.05"
        raise Refusal(Code.INVALID_REQUEST, detail, field=key)
    return float(text)


def _described(running: RunningExperiment) -> Response:
    response = _json(describe_experiment(running))
    response.headers["etag"] = f'"{running.spec.tag()}"'
    return response


def _json(content: Any) -> Response:
    return Response(orjson.dumps(content), media_type="application/json")


def describe_experiment(running: RunningExperiment) -> dict[str, object]:
    """An experiment as it runs: versions resolved, the buckets that assign a unit to an arm; and `spec`, as stated."""
    spec = running.spec
    layer = None
    if spec.layer is not None and running.assigner.layer is not None:
        owned = running.assigner.layer.owned
        layer = {
            "name": spec.layer.name,
            "salt": running.assigner.layer.salt,
            "buckets": [owned.start, owned.stop],
        }
    arms = [
        {
            "name": arm.name,
            "model": arm.model,
            "version": running_arm.served.scorer.bundle.version,
            "follow": arm.follow,
            "weight": float(arm.weight),
            "buckets": [owned.start, owned.stop],
            "halted": running_arm.halted,
            "halt": None if running_arm.halt is None else _describe_halt(running_arm.halt),
            "deadline_ms": arm.deadline_ms,
        }
        for arm, running_arm, owned in zip(spec.arms, running.arms, running.assigner.ranges, strict=True)
    ]
    return {
        "name": spec.name,
        "salt": spec.salt,
        "hash": spec.hash,
        "phase": spec.phase,
        "coverage": float(spec.coverage),
        "default": spec.default,
        "layer": layer,
        "arms": arms,
        "spec": spec.content(),
    }


def _describe_halt(halt: Halt) -> dict[str, object]:
    """What a guard-rail halted an arm for."""
    return halt.model_dump(include={"time", "rail", "bound", "found", "evidence", "counts"})
