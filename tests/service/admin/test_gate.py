"""Who may do what: every route is closed unless it is listed, and the token opens the rest."""

import asyncio
import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
from fastapi.routing import APIRoute
from starlette.testclient import TestClient

from service.__main__ import main, read_settings
from service.admin.gate import BODY_BYTES, HEAD_BYTES, PUBLIC
from service.admin.token import read_token
from service.app import Service, find_inference, find_target
from service.errors import ConfigError
from service.settings import Settings
from tests.service.running import ROOT, TOKEN, ask, make_app, metric, started, wait_until_ready

BEARER = {"authorization": f"Bearer {TOKEN}"}
CLOSED = {
    ("GET", "/catalogue"),
    ("GET", "/console/example"),
    ("PUT", "/catalogue"),
    ("DELETE", "/experiments/{name}/halts/{arm}"),
    ("PUT", "/experiments/{name}"),
    ("POST", "/explain"),
    ("POST", "/models/{name}/explain"),
    ("POST", "/models/{name}/versions/{version}/explain"),
    ("POST", "/v2/repository/index"),
    ("POST", "/v2/repository/models/{name}/load"),
    ("POST", "/v2/repository/models/{name}/unload"),
}


def routes(app: Service) -> list[tuple[str, str]]:
    """(method, path) of everything the router knows; all of it by routes that the gate is before."""
    assert all(isinstance(route, APIRoute) for route in app.routes), "no mount, no plain route: the gate is not there"
    return [(method, route.path) for route in app.routes if isinstance(route, APIRoute) for method in route.methods]


def concrete(path: str) -> str:
    return path.format(name="student", version="1", arm="student")


def audited(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """The lines of the audit."""
    return [json.loads(record.getMessage()) for record in caplog.records if record.name == "service.admin.audit"]


def test_every_route_is_public_by_name_or_closed(app: Service, client: TestClient):
    """Walks the router. Without a token nobody gets in, and the list names no route that is not there."""
    found = routes(app)

    assert set(found) - PUBLIC == CLOSED
    assert PUBLIC - set(found) == set()
    for method, path in found:
        reply = client.request(method, concrete(path))
        is_denied = reply.status_code in (401, 403)
        assert is_denied == ((method, path) not in PUBLIC), path


def test_a_route_that_is_added_is_closed(repository: Path):
    """Nobody has to remember it."""
    app = make_app(repository)

    @app.get("/secrets")
    async def secrets() -> str:
        return "s3cret"

    with TestClient(app) as client:
        reply = client.get("/secrets")
    assert (reply.status_code, reply.json()["code"]) == (403, "admin_off")


def test_what_is_answered_in_front_of_the_gate_is_public(app: Service):
    """Predict and infer pass it by: they are on the list, and nothing else is answered there."""
    for method, path in routes(app):
        if find_target(concrete(path)) or find_inference(concrete(path)):
            assert ("POST", path) in PUBLIC
            assert method == "POST"


def test_without_a_token_administration_is_off(client: TestClient):
    """Whoever asks, and with whatever: 403, saying how to turn it on."""
    for headers in ({}, BEARER, {"authorization": "Bearer "}):
        reply = client.post("/v2/repository/index", headers=headers)

        assert (reply.status_code, reply.json()["code"]) == (403, "admin_off")
        assert "--admin-token-file" in reply.json()["error"]
        assert "RETORT_ADMIN_TOKEN" in reply.json()["error"]


@pytest.fixture(scope="module")
def guarded(repository: Path) -> Any:
    with TestClient(make_app(repository, admin_token=TOKEN), raise_server_exceptions=False) as client:
        wait_until_ready(client)
        yield client


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        TOKEN,
        "Bearer",
        "Bearer ",
        f"Basic {TOKEN}",
        f"Bearer {TOKEN[:-1]}",
        f"Bearer {TOKEN}0",
        f"Bearer {TOKEN.upper()}",
        f"Bearer {TOKEN} {TOKEN}",
        f"Bearer Bearer {TOKEN}",
        "Bearer \xe9\xff",
    ],
)
def test_another_token_is_none(guarded: TestClient, authorization: str | None):
    """401 with the challenge, counted; what was sent is not repeated."""
    before = metric(guarded.get("/metrics").text, "retort_refused_total", reason="unauthorized")
    headers = {} if authorization is None else {"authorization": authorization.encode("latin-1")}

    reply = guarded.post("/v2/repository/index", headers=headers)

    assert (reply.status_code, reply.json()["code"]) == (401, "unauthorized")
    assert reply.headers["www-authenticate"] == 'Bearer realm="retort"'
    assert TOKEN[:8] not in reply.text
    assert metric(guarded.get("/metrics").text, "retort_refused_total", reason="unauthorized") == before + 1


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_token_opens_what_is_closed(guarded: TestClient, scheme: str):
    """And changes nothing for the rest."""
    assert guarded.post("/v2/repository/index", headers={"authorization": f"{scheme} {TOKEN}"}).status_code == 200
    assert guarded.get("/v2/models/student", headers={"authorization": "Bearer nonsense"}).status_code == 200


def test_heads_and_bodies_have_bounds_of_their_own(guarded: TestClient):
    """A route that scores nothing needs no long ones; judged before anything is read, and before the token."""
    for method, path in (("GET", "/v2"), ("GET", "/metrics"), ("POST", "/v2/repository/index")):
        long_head = guarded.request(method, path, headers={"x": "a" * HEAD_BYTES, **BEARER})
        long_body = guarded.request(method, path, content=bytes(BODY_BYTES + 1), headers=BEARER)

        assert (long_head.status_code, long_head.json()["code"]) == (431, "headers_too_large")
        assert (long_body.status_code, long_body.json()["code"]) == (413, "body_too_large")
    assert guarded.post("/predict", content=b"[]", headers={"x": "a" * HEAD_BYTES}).json()["code"] == "invalid_request"


def test_a_body_without_a_length_is_bounded_too(repository: Path):
    """Chunks are counted as they come."""

    async def chunks() -> Any:
        async with started(make_app(repository, admin_token=TOKEN)) as app:
            headers = list(BEARER.items())
            return await ask(app, "/v2/repository/index", headers=headers, chunks=[bytes(40_000)] * 3)

    assert asyncio.run(chunks()).json()["code"] == "body_too_large"


def test_who_was_denied_is_told_once_a_second(repository: Path, caplog: pytest.LogCaptureFixture):
    """One line with the number so far: whoever floods us does not flood the log; nor is a token in it."""
    with TestClient(make_app(repository, admin_token=TOKEN)) as client, caplog.at_level(logging.INFO):
        for _ in range(20):
            client.post("/v2/repository/models/s3cret/load", headers={"authorization": "Bearer s3cret"})

    lines = audited(caplog)
    assert 1 <= len(lines) < 20
    assert lines[0]["audit"] == "POST /v2/repository/models/{name}/load"
    assert (lines[0]["who"], lines[0]["result"], lines[0]["denied"]) == (None, "unauthorized", 1)
    assert "s3cret" not in json.dumps(lines)


def test_a_token_comes_from_a_file_or_a_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """One line end in the file is none of it; both at once is a mistake."""
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")

    assert read_token(Settings(repository=tmp_path)) is None
    assert read_token(Settings(repository=tmp_path, admin_token_file=file)) == TOKEN
    monkeypatch.setenv("RETORT_ADMIN_TOKEN", TOKEN)
    settings = read_settings(["--repository", str(tmp_path)])
    assert read_token(settings) == TOKEN
    assert TOKEN not in repr(settings)
    with pytest.raises(ConfigError, match="one of the two"):
        read_token(Settings(repository=tmp_path, admin_token_file=file))


@pytest.mark.parametrize("token", ["", "short", "a" * 31, "a" * 31 + " ", "a b" * 20, "é" * 40, "a" * 40 + "\n\n"])
def test_a_token_that_is_easy_to_guess_stops_the_program(
    tmp_path: Path, token: str, capsys: pytest.CaptureFixture[str]
):
    """At its start, with exit code 2 and the way to make a better one; never showing it."""
    file = tmp_path / "token"
    file.write_text(token, encoding="utf-8")

    code = main(["--repository", str(tmp_path), "--admin-token-file", str(file)])

    told = capsys.readouterr().err
    assert code == 2
    assert "openssl rand -hex 32" in told
    assert not token or token not in told


def test_a_token_file_that_is_not_there_stops_the_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Rather than leave administration off in silence."""
    assert main(["--repository", str(tmp_path), "--admin-token-file", str(tmp_path / "nothing")]) == 2
    assert "No such file" in capsys.readouterr().err


def test_the_document_says_where_a_token_comes_from():
    """Both ways, by the names they have."""
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")

    assert re.search(r"`--admin-token-file` or `RETORT_ADMIN_TOKEN`", text)
