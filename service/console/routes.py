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
from service.console.gather import SHARE, Facts, Gatherer
from service.console.view import Asset, Assets, render
from service.errors import Code, Refusal
from service.scoring.plan import RunningExperiment

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
PAUSE_SECONDS = 0.0005
MOST_WAITING = 16
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


@dataclass(frozen=True, slots=True)
class _Page:
    """A page as it was made."""

    facts: Facts
    evidence: Evidence
    text: str


class Console:
    """The pages of one worker: at most one a second of an experiment, however many look, and whatever is looked at, at
    most `SHARE` of a core."""

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
        self._pages: dict[str | None, _Page] = {}
        self._results: dict[str, _Results] = {}
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._next = 0.0  # `monotonic` time from which on another page may be made

    async def page(self, wanted: str | None) -> str:
        """The page of an experiment, of the default one where none is named. Raises `Refusal` where too many wait."""
        name = self._gatherer.find(wanted)
        evidence = Evidence() if name is None else await self._evidence(name)
        known = self._pages.get(name)
        if self._waiting >= MOST_WAITING:
            if known is None:
                raise _TOO_MANY.with_traceback(None)
            return known.text
        self._waiting += 1
        try:
            async with self._turn:
                return await self._make(name, evidence)
        finally:
            self._waiting -= 1

    async def _make(self, name: str | None, evidence: Evidence) -> str:
        known = self._pages.get(name)
        if known is not None and self._gatherer.is_young(known.facts) and known.evidence is evidence:
            return known.text
        await asyncio.sleep(self._next - time.monotonic())
        facts = await self._gatherer.facts()
        example = "" if name is None else self._example(name)
        text, seconds = await asyncio.to_thread(self._render, facts, name, evidence, example)
        self._next = time.monotonic() + seconds / SHARE
        self._pages.pop(name, None)
        while len(self._pages) >= MOST_PAGES:
            self._pages.pop(next(iter(self._pages)))
        self._pages[name] = _Page(facts, evidence, text)
        return text

    def _render(self, facts: Facts, name: str | None, evidence: Evidence, example: str) -> tuple[str, float]:
        """The page, and the seconds of a core that it took."""
        began = time.thread_time()
        # Between two parts the interpreter is let go of: a thread that computes would keep scoring waiting for 5 ms.
        text = render(facts, name, evidence, example, self._assets, pause=functools.partial(time.sleep, PAUSE_SECONDS))
        return text, time.thread_time() - began

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


_TOO_MANY = Refusal(Code.OVERLOADED, "too many want to see the console: try again", headers=((b"retry-after", b"5"),))
_BUSY = Evidence(
    missing="The results are being worked out from the log; they appear here by themselves, or look again."
)
