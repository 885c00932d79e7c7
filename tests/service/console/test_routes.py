"""/console as it is answered: its headers, its two files, what it costs, and how it is turned off."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.console import routes as console
from service.console.gather import SHARE, Counted, Facts, Gatherer
from service.console.routes import MOST_PAGES, Console, load_assets
from service.errors import Code, Refusal
from service.settings import Settings
from tests.service.running import make_app, metric, request_of, wait_until_ready

TOKEN = "0123456789abcdef" * 2
BEARER = {"authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def guarded(repository: Path) -> Iterator[TestClient]:
    """An application with a token."""
    with TestClient(make_app(repository, admin_token=TOKEN), raise_server_exceptions=False) as client:
        wait_until_ready(client)
        yield client


def test_the_page_is_public_and_holds_the_browser_to_itself(guarded: TestClient):
    """No script but ours, no frame around it, no other host, nothing kept."""
    reply = guarded.get("/console")
    policy = dict(part.strip().split(" ", 1) for part in reply.headers["content-security-policy"].split(";"))

    assert reply.status_code == 200
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert "unsafe" not in reply.headers["content-security-policy"]
    assert reply.headers["x-frame-options"] == "DENY"
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["referrer-policy"] == "no-referrer"
    assert reply.headers["cache-control"] == "no-store"
    assert "set-cookie" not in reply.headers
    assert TOKEN not in reply.text


def test_every_file_that_the_page_names_is_there(guarded: TestClient):
    """By a name that says what is in it, so that it may be kept for ever; another name is nothing."""
    names = re.findall(r'"(console/assets/[^"]+)"', guarded.get("/console").text)

    assert len(names) == 3
    for name in names:
        reply = guarded.get(f"/{name}")
        assert reply.status_code == 200
        assert "immutable" in reply.headers["cache-control"]
        assert reply.headers["x-content-type-options"] == "nosniff"
    for name in ("console.js", "..%2f..%2fapp.py", "routes.py", "%00", "console-0000000000000000.js"):
        assert guarded.get(f"/console/assets/{name}").status_code == 404


def test_what_is_asked_for_is_never_echoed(guarded: TestClient):
    """A name that is no experiment makes a page that says so and does not repeat it."""
    for name in ("<script>alert(1)</script>", "x" * 8000, "\u0000", "ünï"):
        reply = guarded.get("/console", params={"experiment": name})

        assert reply.status_code == 200
        assert "There is no experiment of this name." in reply.text
        assert name not in reply.text
    assert guarded.get("/console", params={"experiment": "x" * 20_000}).status_code in (414, 431, 200)


def test_it_shows_what_runs(guarded: TestClient):
    """Arms, versions and requests as they are counted."""
    for number in range(5):
        assert guarded.post("/predict", json=request_of(number)).status_code == 200

    text = guarded.get("/console").text

    assert "student-vs-ensemble" in text
    assert "ensemble 1 (follows)" in text
    assert "This service keeps no exposure log: start it with --log FOLDER." in text
    assert re.search(r"phone|a1\b", text) is None


def test_the_form_begins_with_fields_and_no_values(guarded: TestClient):
    """What is shown to everybody names the fields of the schema; a row of data takes the token."""
    text = guarded.get("/console").text

    assert "&quot;device&quot;: null" in text
    assert "&quot;ad_id&quot;: null" in text
    assert guarded.get("/console/example").status_code == 401


def test_an_example_is_a_row_that_scores(guarded: TestClient):
    """With the token: a golden row of the arm's model; names that are not there are refused as everywhere."""
    query = {"experiment": "student-vs-ensemble", "arm": "ensemble"}
    body = guarded.get("/console/example", params=query, headers=BEARER).json()

    assert guarded.post("/explain", json={**body, **query}, headers=BEARER).status_code == 200
    unknown = guarded.get("/console/example", params={"experiment": "other"}, headers=BEARER)
    assert (unknown.status_code, unknown.json()["code"]) == (404, "unknown_experiment")


def test_without_a_token_nothing_is_offered(client: TestClient):
    """The page says how to appoint an administrator."""
    assert "--admin-token-file" in client.get("/console").text


def test_it_can_be_turned_off(repository: Path):
    """Then nothing of it is there, and the rest is."""
    with TestClient(make_app(repository, console=False)) as client:
        wait_until_ready(client)
        for path in ("/console", "/console/example", "/console/assets/console.js"):
            assert client.get(path).status_code == 404
        assert client.get("/experiments").status_code == 200
    assert Settings(repository=repository).console


def test_before_the_models_are_proven_there_is_a_page(tmp_path: Path):
    """An owner who opens it too early, or of a service that never gets ready, reads why."""
    app = make_app(tmp_path)
    client = TestClient(app)  # without its background tasks, nothing is ever loaded

    reply = client.get("/console")

    assert reply.status_code == 200
    assert "models are being loaded" in reply.text


def test_however_many_look_it_is_gathered_once(guarded: TestClient, monkeypatch: pytest.MonkeyPatch):
    """A hundred looks within its age cost one."""
    gathered: list[int] = []
    before = Gatherer._gather

    async def gather(self: Gatherer) -> Any:
        gathered.append(1)
        return await before(self)

    async def look_often() -> None:
        made = Gatherer(guarded.app)  # type: ignore[arg-type]
        made._until = float("inf")
        await asyncio.gather(*[made.facts() for _ in range(100)])
        made._until = float("inf")
        await asyncio.gather(*[made.facts() for _ in range(100)])

    monkeypatch.setattr(Gatherer, "_gather", gather)
    monkeypatch.setattr("service.console.gather.AGE_SECONDS", 3600.0)
    asyncio.run(look_often())

    assert gathered == [1]


def make_console(app: Any, read: console.ReadResults) -> Console:
    _, assets = load_assets()
    return Console(Gatherer(app), lambda _: "", assets, read)


def test_slow_results_do_not_keep_the_page(guarded: TestClient, monkeypatch: pytest.MonkeyPatch):
    """It is sent without them, and has them when they are there; meanwhile nobody asks twice."""
    monkeypatch.setattr(console, "PATIENCE_SECONDS", 0.01)
    asked: list[str] = []

    async def look() -> tuple[str, str]:
        done = asyncio.Event()

        async def read(name: str) -> dict[str, Any]:
            asked.append(name)
            await done.wait()
            raise Refusal(Code.NO_LOG, "this service keeps no exposure log: start it with --log FOLDER")

        made = make_console(guarded.app, read)
        early = await made.page(None)
        await made.page(None)
        done.set()
        while "keeps no exposure log" not in (late := await made.page(None)):
            await asyncio.sleep(0.001)
        return early, late

    early, late = asyncio.run(look())

    assert "being worked out" in early
    assert "This service keeps no exposure log: start it with --log FOLDER." in late
    assert asked == ["student-vs-ensemble"]


def test_results_that_fail_are_told_and_logged(guarded: TestClient, caplog: pytest.LogCaptureFixture):
    """The page stands; what went wrong is in the log and not on the page."""

    async def read(_: str) -> dict[str, Any]:
        raise RuntimeError("s3cret")

    text = asyncio.run(make_console(guarded.app, read).page(None))

    assert "the service&#x27;s log says why" in text
    assert "s3cret" not in text
    assert "s3cret" in caplog.text


def test_names_that_are_not_there_are_not_remembered(guarded: TestClient):
    """Whatever is asked for: one page for all of it, and no results are read for it."""

    async def ask() -> Console:
        async def read(_: str) -> dict[str, Any]:
            raise AssertionError("nobody has such results")

        made = make_console(guarded.app, read)
        for number in range(100):
            await made.page(f"none-{number}")
        return made

    made = asyncio.run(ask())

    assert len(made._pages) <= MOST_PAGES
    assert made._results == {}


def test_it_is_counted_by_its_route(guarded: TestClient):
    """As every route is."""
    before = metric(guarded.get("/metrics").text, "retort_requests_total", route="/console", code="200")
    guarded.get("/console")

    assert metric(guarded.get("/metrics").text, "retort_requests_total", route="/console", code="200") == before + 1


def test_who_changes_something_sees_it_changed(own_repository: Path, tmp_path: Path):
    """A new plan is shown at once, however young the page is."""
    file = tmp_path / "experiments.json"
    stated = {
        "format_version": 1,
        "experiments": [
            {"name": "one", "salt": "s", "default": True, "arms": [{"name": "a", "model": "student", "weight": 1}]}
        ],
    }
    file.write_text(json.dumps(stated))
    with TestClient(make_app(own_repository, file, admin_token=TOKEN)) as client:
        wait_until_ready(client)
        assert "phase 1." in client.get("/console").text
        changed = {**stated["experiments"][0], "phase": 2, "salt": "t"}  # type: ignore[index]

        assert client.put("/experiments/one", json=changed, headers=BEARER).status_code == 200

        assert "phase 2." in client.get("/console").text


def test_making_pages_takes_a_share_of_the_time_and_no_more(guarded: TestClient, monkeypatch: pytest.MonkeyPatch):
    """What took long is not done again soon; whoever comes meanwhile waits, and beyond those who may wait gets the page
    as it was, or 429."""

    async def no_results(_: str) -> dict[str, Any]:
        raise Refusal(Code.NO_LOG, "no log")

    async def look() -> tuple[float, str, Code, int]:
        made = make_console(guarded.app, no_results)
        monkeypatch.setattr(made, "_render", lambda *_: ("the page", 50.0))
        assert await made.page(None) == "the page"
        wait = made._next - time.monotonic()
        monkeypatch.setattr(console, "MOST_WAITING", 1)
        made._gatherer._until = 0.0
        waiting = asyncio.create_task(made.page("none"))
        while not made._turn.locked():
            await asyncio.sleep(0)
        as_it_was = await made.page(None)
        try:
            await made.page("another")
        except Refusal as refusal:
            return wait, as_it_was, refusal.code, refusal.status
        finally:
            waiting.cancel()
        raise AssertionError("made at once")

    wait, as_it_was, code, status = asyncio.run(look())

    assert wait > 50.0 / SHARE - 60.0
    assert as_it_was == "the page"
    assert (code, status) == (Code.OVERLOADED, 429)


def test_counting_takes_a_share_of_the_time_and_no_more(guarded: TestClient, monkeypatch: pytest.MonkeyPatch):
    """Hundreds of experiments have hundreds of thousands of counts: they are added up the more seldom, the longer it
    takes, and what else is so is told meanwhile."""
    made = Gatherer(guarded.app)  # type: ignore[arg-type]
    counted: list[int] = []

    def count() -> tuple[Counted, float]:
        counted.append(1)
        return Counted(), 50.0

    async def look() -> tuple[Facts, Facts]:
        before = await made.facts()
        made._until = 0.0
        return before, await made.facts()

    monkeypatch.setattr(made, "_count", count)
    before, after = asyncio.run(look())

    assert counted == [1]
    assert made._next_count - time.monotonic() > 50.0 / SHARE - 60.0
    assert after is not before
    assert after.counted is before.counted
