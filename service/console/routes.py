"""GET /console, its two files, and an example for its form.

The page is public as `/metrics` and `/experiments` are: a browser that opens an address sends no token, and a cookie
would let any other page of the web act in its owner's name. What changes anything takes the token as a header, which no
other origin can have sent. `--no-console` closes all of it.

The headers hold a browser to what the page is: two files of ours by their hash, requests to this service alone, no
frame around it, nothing inline.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import hashlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
from fastapi import Request
from fastapi.responses import Response

from service.console.evidence import Evidence
from service.console.forms import skeleton
from service.console.gather import Facts, Gatherer
from service.console.view import Asset, Assets, render
from service.errors import Code, Refusal
from service.plan import RunningExperiment

if TYPE_CHECKING:
    from service.app import Service

logger = logging.getLogger(__name__)

ROUTE = "/console"
ASSET_ROUTE = "/console/assets/{name}"
EXAMPLE_ROUTE = "/console/example"

SECURITY = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types retort-console",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
PATIENCE_SECONDS = 2.0
"""How long the page waits for results before it is sent without them."""
RESULTS_AGE_SECONDS = 10.0
"""How long results are shown before they are asked for anew; whoever works them out keeps them for a minute."""
MOST_PAGES = 8
"""Pages and results that are remembered, one an experiment."""

ReadResults = Callable[[str], Awaitable[Mapping[str, Any]]]
"""Experiment -> its report (docs/answers.md), worked out elsewhere; `Refusal` where there is none."""

_HERE = Path(__file__).parent
_KINDS = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}


def add_routes(app: Service) -> None:
    """All three, or none where the console is off."""
    if not app.settings.console:
        return
    files, assets = load_assets()

    async def read_results(name: str) -> Mapping[str, Any]:
        plan = app.require_plan()
        computed = await app.results.get(plan.experiments[name].spec, plan.file)
        tree: Mapping[str, Any] = await asyncio.to_thread(orjson.loads, computed.json)
        return tree

    console = Console(Gatherer(app), functools.partial(_example, app), assets, read_results)

    @app.get(ROUTE, include_in_schema=False)
    async def page(request: Request) -> Response:
        text = await console.page(request.query_params.get("experiment"))
        headers = {**SECURITY, "cache-control": "no-store"}
        return Response(text, headers=headers, media_type="text/html; charset=utf-8")

    @app.get(ASSET_ROUTE, include_in_schema=False)
    async def asset(name: str) -> Response:
        if name not in files:
            raise Refusal(Code.NOT_FOUND, "there is no such route")
        kind, content = files[name]
        headers = {**SECURITY, "cache-control": "public, max-age=31536000, immutable", "content-type": kind}
        return Response(content, headers=headers)

    @app.get(EXAMPLE_ROUTE, include_in_schema=False)
    async def example(request: Request) -> Response:
        plan = app.require_plan()
        name, arm = request.query_params.get("experiment"), request.query_params.get("arm")
        served = plan.choose(name, arm, "").served
        golden = served.scorer.bundle.golden.requests
        first = max(golden, key=lambda one: sum(value is not None for value in one.context.values()))
        body = {"context": first.context, "candidates": first.candidates[:3]}
        return Response(
            orjson.dumps(body, option=orjson.OPT_INDENT_2),
            media_type="application/json",
            headers={"cache-control": "no-store"},
        )


def load_assets() -> tuple[dict[str, tuple[str, bytes]], Assets]:
    """The files by the names that they are served under, which say what is in them; and the page's view of them."""
    files: dict[str, tuple[str, bytes]] = {}
    found = {}
    for name in ("console.css", "console.js", "icon.svg"):
        path = _HERE / name
        content = path.read_bytes()
        digest = hashlib.sha384(content).digest()
        public = f"{path.stem}-{digest.hex()[:16]}{path.suffix}"
        files[public] = _KINDS[path.suffix], content
        found[name] = Asset(f"console/assets/{public}", f"sha384-{base64.b64encode(digest).decode()}")
    return files, Assets(found["console.css"], found["console.js"], found["icon.svg"].path)


def _example(app: Service, name: str) -> str:
    """What the form to try a request begins with: every field of the models of an experiment, and no value."""
    plan = app.plan
    running: RunningExperiment | None = None if plan is None else plan.experiments.get(name)
    if running is None:
        return ""
    context: dict[str, None] = {}
    candidate: dict[str, None] = {}
    for arm in running.arms:
        schema = arm.served.scorer.bundle.schema
        context |= dict.fromkeys(field.name for field in schema.context_fields)
        candidate |= dict.fromkeys(field.name for field in schema.candidate_fields)
    return skeleton(list(context), list(candidate))


@dataclass(slots=True)
class _Results:
    """What was read of an experiment, and the reading of it that is under way."""

    evidence: Evidence | None = None
    until: float = 0.0  # `monotonic`
    reading: asyncio.Task[None] | None = None


class Console:
    """The page of one worker: made at most once a second an experiment, however many look."""

    def __init__(
        self,
        gatherer: Gatherer,
        example: Callable[[str], str],
        assets: Assets,
        read_results: ReadResults,
    ) -> None:
        self._gatherer = gatherer
        self._example = example
        self._assets = assets
        self._read_results = read_results
        self._pages: dict[str | None, tuple[Facts, Evidence, str]] = {}
        self._results: dict[str, _Results] = {}

    async def page(self, wanted: str | None) -> str:
        """The page of an experiment, of the default one where none is named."""
        facts = await self._gatherer.facts()
        name = facts.default if wanted is None else wanted if wanted in facts.experiments else None
        evidence = Evidence() if name is None else await self._evidence(name)
        before = self._pages.get(name)
        if before is not None and before[0] is facts and before[1] is evidence:
            return before[2]
        example = "" if name is None else self._example(name)
        text = await asyncio.to_thread(render, facts, name, evidence, example, self._assets)
        while len(self._pages) >= MOST_PAGES:
            self._pages.pop(next(iter(self._pages)))
        self._pages[name] = (facts, evidence, text)
        return text

    async def _evidence(self, name: str) -> Evidence:
        """What an experiment has shown; what is old is shown until there is better."""
        found = self._results.get(name)
        if found is None:
            idle = [key for key, one in self._results.items() if one.reading is None]
            if len(self._results) >= MOST_PAGES:
                if not idle:
                    return _BUSY
                del self._results[idle[0]]
            found = self._results[name] = _Results()
        if found.reading is None and time.monotonic() >= found.until:
            found.reading = asyncio.create_task(_read(self._read_results, name, found))
        if found.reading is not None:
            await asyncio.wait([found.reading], timeout=PATIENCE_SECONDS)
        return found.evidence or _BUSY


async def _read(read: ReadResults, name: str, found: _Results) -> None:
    try:
        found.evidence = Evidence(await read(name))
    except Refusal as refusal:
        found.evidence = Evidence(missing=f"{refusal.detail[:1].upper()}{refusal.detail[1:]}.")
    except Exception:
        logger.exception("the results of experiment %s could not be read for the console", name)
        found.evidence = Evidence(missing="The results could not be worked out; the service's log says why.")
    finally:
        found.until = time.monotonic() + RESULTS_AGE_SECONDS
        found.reading = None


_BUSY = Evidence(
    missing="The results are being worked out from the log; they appear here by themselves, or look again."
)
