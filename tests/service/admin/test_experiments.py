"""Changing experiments through the service: the file's own rules, a phase's promises, nobody's change lost."""

import asyncio
import contextlib
import http.client
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from service.admin.experiments import ExperimentControl, Precondition
from service.admin.gate import Admin
from service.experiments.file import read_experiments
from service.experiments.writing import change_experiment, exclusive
from service.http.asgi import ClientGoneError
from tests.models.tiny_bundle import write_tiny_bundle
from tests.service.admin.test_gate import BEARER, TOKEN, audited
from tests.service.bundles import write_wrong_golden
from tests.service.running import (
    Reply,
    ask,
    make_app,
    metric,
    request_of,
    running_service,
    started,
    wait_for,
    wait_until_ready,
)

YAML = """\
# Why there is an experiment at all.
format_version: 1
layers:
  - {name: ranking, salt: ranking-layer}
experiments:
  - name: main
    salt: main-1
    default: true
    coverage: 0.2
    arms:
      - {name: ensemble, model: ensemble, follow: true, weight: 0.5}
      - {name: student, model: student, follow: true, weight: 0.5}
"""
MAIN = yaml.safe_load(YAML)["experiments"][0]
OTHER = {"name": "other", "salt": "other-1", "arms": [{"name": "a", "model": "student", "follow": True, "weight": 1}]}


def with_(**more: Any) -> dict[str, Any]:
    return {**MAIN, **more}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "experiments"
    folder.mkdir()
    (folder / "e.yaml").write_text(YAML)
    return folder / "e.yaml"


@pytest.fixture
def admin(repository: Path, path: Path) -> Iterator[TestClient]:
    """A client that shows the token with every request."""
    app = make_app(repository, path, admin_token=TOKEN)
    with TestClient(app, headers=BEARER, raise_server_exceptions=False) as client:
        wait_until_ready(client)
        yield client


@pytest.fixture(scope="module")
def shared(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TestClient, Path]]:
    """The same and its file, for tests that find it and leave it as it is."""
    path = tmp_path_factory.mktemp("shared") / "e.yaml"
    path.write_text(YAML)
    app = make_app(repository, path, admin_token=TOKEN)
    with TestClient(app, headers=BEARER, raise_server_exceptions=False) as client:
        wait_until_ready(client)
        yield client, path


def put(client: TestClient, content: Any, name: str = "main", **headers: str) -> Any:
    return client.put(f"/experiments/{name}", content=json.dumps(content), headers=headers)


def code(reply: Any) -> tuple[int, str]:
    return reply.status_code, reply.json()["code"]


def test_a_change_is_in_force_when_it_is_answered_and_stands_in_the_file(admin: TestClient, path: Path):
    """And is answered as the experiment then runs. The file stays YAML with the comments at its top, the other keys
    stay as they were, and what stood there before is kept beside it."""
    reply = put(admin, with_(coverage=0.57))
    first = path.read_text()

    assert reply.status_code == 200
    assert reply.json() == admin.get("/experiments/main").json()
    assert [arm["buckets"] for arm in reply.json()["arms"]] == [[0, 2850], [5000, 7850]]
    assert yaml.safe_load(path.read_text()) == {**yaml.safe_load(YAML), "experiments": [with_(coverage=0.57)]}
    assert path.with_name("e.yaml.previous").read_text() == YAML
    assert put(admin, with_(coverage=0.58)).status_code == 200
    assert path.with_name("e.yaml.previous").read_text() == first
    for text in (first, path.read_text()):
        comments = [line for line in text.splitlines() if line.startswith("#")]
        assert [comments[0][:24], comments[1:]] == ["# Written by the service", YAML.splitlines()[:1]]
    assert sorted(p.name for p in path.parent.iterdir()) == ["e.yaml", "e.yaml.lock", "e.yaml.previous"]


def test_what_is_answered_may_be_sent_again(admin: TestClient):
    """`spec` is what PUT takes: the same changes nothing, not even the file."""
    found = admin.get("/experiments/main")

    reply = put(admin, found.json()["spec"], **{"if-match": found.headers["etag"]})

    assert found.json()["spec"] == MAIN
    assert (reply.status_code, reply.headers["etag"]) == (200, found.headers["etag"])


def test_a_json_file_stays_json_and_a_link_stays_a_link(repository: Path, tmp_path: Path):
    """And its permissions stay as they were."""
    real = tmp_path / "real.json"
    real.write_text(json.dumps(yaml.safe_load(YAML)))
    real.chmod(0o640)
    link = tmp_path / "link"
    link.symlink_to(real)

    change_experiment(link, "main", lambda content: {**content, "halted": ["student"]})

    assert link.is_symlink()
    assert json.loads(real.read_text())["experiments"] == [with_(halted=["student"])]
    assert real.stat().st_mode & 0o777 == 0o640


def test_an_experiment_is_added(admin: TestClient):
    """It answers at once, beside the others; a second one of the name is refused where none was expected."""
    reply = put(admin, OTHER, "other", **{"if-none-match": "*"})

    assert reply.status_code == 200
    assert admin.post("/predict", json=request_of(1, experiment="other")).json()["arm"] == "a"
    assert code(put(admin, OTHER, "other", **{"if-none-match": "*"})) == (412, "stale_write")
    assert [e["name"] for e in admin.get("/experiments").json()["experiments"]] == ["main", "other"]


WITHIN_A_PHASE: list[tuple[str, dict[str, Any], str]] = [
    ("less coverage", {"coverage": 0.1}, "coverage"),
    (
        "weights",
        {"arms": [{**MAIN["arms"][0], "weight": 0.4}, {**MAIN["arms"][1], "weight": 0.6}]},
        "arms[0].weight",
    ),
    ("another model", {"arms": [MAIN["arms"][0], {**MAIN["arms"][1], "model": "control"}]}, "arms[1].model"),
    (
        "an arm more",
        {
            "arms": [
                *(MAIN["arms"][:1]),
                {**MAIN["arms"][1], "weight": 0.25},
                {**MAIN["arms"][1], "name": "c", "weight": 0.25},
            ]
        },
        "arms",
    ),
    ("arms the other way round", {"arms": MAIN["arms"][::-1]}, "arms[0].name"),
    ("a layer", {"layer": {"name": "ranking"}}, "layer"),
    ("a salt", {"salt": "main-2"}, "salt"),
    ("another hash", {"hash": "growthbook"}, "hash"),
    ("guard-rails", {"guard_rails": {"max_error_rate": 0.1}}, "guard_rails"),
    ("what is asked", {"analysis": {"alpha": 0.2}}, "analysis"),
    ("a phase with the old salt", {"phase": 2}, "salt"),
]


@pytest.mark.parametrize(
    ("change", "field"), [case[1:] for case in WITHIN_A_PHASE], ids=[case[0] for case in WITHIN_A_PHASE]
)
def test_a_phase_keeps_what_it_promised(admin: TestClient, path: Path, change: dict[str, Any], field: str):
    """409 that names the key and says what to do; with a new phase and salt the same is taken."""
    reply = put(admin, with_(**change))

    assert (*code(reply), reply.json()["field"]) == (409, "needs_new_phase", field)
    assert "phase" in reply.json()["detail"]
    assert path.read_text() == YAML
    assert put(admin, with_(**{**change, "phase": 7, "salt": "new"})).status_code == 200
    assert code(put(admin, with_(**{**change, "phase": 6, "salt": "newer"}))) == (409, "needs_new_phase")


def test_within_a_phase_coverage_grows_and_arms_are_halted_and_go_on(admin: TestClient):
    """As often as one likes."""
    for change in ({"coverage": 0.3}, {"halted": ["student"]}, {"halted": [], "coverage": 0.4}, {"coverage": 1}):
        state = {**admin.get("/experiments/main").json()["spec"], **change}
        assert put(admin, state).status_code == 200
    assert admin.get("/experiments/main").json()["coverage"] == 1.0


@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.integers(0, 10**6), min_size=1, max_size=3).map(sorted), salt=st.text("ab\u00e9", min_size=1))
def test_growing_the_coverage_moves_nobody_out_of_an_arm(admin: TestClient, steps: list[int], salt: str):
    """Through the route, whatever the steps: who is in an arm is in it after each of them. The preview says the same,
    and so do the answers."""
    phase = admin.get("/experiments/main").json()["phase"] + 1
    arms = [{**MAIN["arms"][0], "weight": 0.7}, {**MAIN["arms"][1], "weight": 0.3}]
    state = with_(salt=f"{salt}-{phase}", phase=phase, coverage=0, arms=arms)
    assert put(admin, state).status_code == 200
    before: list[list[int]] = [[0, 0], [7000, 7000]]
    for step in steps:
        coverage = step / 10**6
        seen = admin.get("/experiments/main/preview", params={"coverage": f"{coverage:.6f}"}).json()
        reply = put(admin, {**state, "coverage": coverage})
        after = [arm["buckets"] for arm in reply.json()["arms"]]

        assert (seen["leaving"], seen["switching"], seen["needs_new_phase"]) == (0, 0, False)
        assert seen["joining"] == sum(new[1] - old[1] for old, new in zip(before, after, strict=True))
        assert all(old[0] == new[0] and old[1] <= new[1] for old, new in zip(before, after, strict=True))
        before = after


INVALID: list[tuple[str, Any, int, str, str]] = [
    (
        "weights below 1",
        with_(arms=[{**MAIN["arms"][0], "weight": 0.4}, MAIN["arms"][1]]),
        422,
        "invalid_experiment",
        "0.9",
    ),
    ("an unknown key", with_(wieghts=1), 422, "invalid_experiment", "unknown key"),
    ("another name", with_(name="else"), 422, "invalid_experiment", "expected 'main'"),
    ("no name", {key: MAIN[key] for key in MAIN if key != "name"}, 422, "invalid_experiment", "name: is missing"),
    ("no default left", with_(default=False, phase=2, salt="n"), 422, "invalid_experiment", "exactly one experiment"),
    ("a layer nobody declared", with_(layer={"name": "x"}, phase=2, salt="n"), 422, "invalid_experiment", "no layer"),
    ("the salt of a layer", with_(salt="ranking-layer", phase=2), 422, "invalid_experiment", "has the salt of"),
    ("a share as text", with_(coverage="0.5"), 422, "invalid_experiment", "expected a number"),
    ("a sign that YAML loses", with_(phase=2, salt="\u0085"), 422, "invalid_experiment", "does not come back"),
    ("a list", [MAIN], 422, "invalid_request", "an object"),
    ("nothing", None, 422, "invalid_request", "an object"),
    ("control halted", with_(halted=["ensemble"]), 422, "invalid_experiment", "cannot be halted"),
    (
        "a model that is not there",
        with_(phase=2, salt="n", arms=[MAIN["arms"][0], {**MAIN["arms"][1], "model": "nobody"}]),
        409,
        "experiment_refused",
        "needs model 'nobody'",
    ),
    (
        "a version that is not there",
        with_(
            phase=2, salt="n", arms=[MAIN["arms"][0], {"name": "s", "model": "student", "version": 9, "weight": 0.5}]
        ),
        409,
        "experiment_refused",
        "version 9",
    ),
]


@pytest.mark.parametrize(
    ("content", "status", "name", "message"), [case[1:] for case in INVALID], ids=[case[0] for case in INVALID]
)
def test_what_is_wrong_is_refused_and_nothing_is_written(
    shared: tuple[TestClient, Path], content: Any, status: int, name: str, message: str
):
    """Weights are never repaired. The message is the file's own, and does not say where the file is."""
    admin, path = shared
    before = admin.get("/experiments").json()

    reply = put(admin, content)

    assert code(reply) == (status, name)
    assert message in reply.json()["detail"]
    assert str(path.parent) not in reply.text
    assert path.read_text() == YAML
    assert admin.get("/experiments").json() == before


@pytest.mark.parametrize(
    ("body", "status", "name"),
    [
        (b"", 400, "malformed_json"),
        (b"{", 400, "malformed_json"),
        (b"\xff\xfe", 400, "malformed_json"),
        (b'{"name": "main", "name": "main"}', 400, "malformed_json"),
        (b'{"coverage": 1' + b"0" * 5000 + b"}", 400, "number_out_of_range"),
        (b'{"name": "main", "note": 18446744073709551616}', 400, "number_out_of_range"),
        (b"[" * 60_000, 400, "too_deep"),
        (b'{"name": "\\ud800"}', 400, "malformed_json"),
        (b'{"\\ud800": 1}', 400, "malformed_json"),
        (b'{"name": "main", "salt": "\\ud800", "arms": []}', 400, "malformed_json"),
        (b'{"name": "main", "salt": "s", "coverage": NaN, "arms": []}', 400, "malformed_json"),
        (b'{"name": "main", "salt": "s", "coverage": -Infinity, "arms": []}', 400, "malformed_json"),
        (b'{"name": "main", "salt": "s", "coverage": 1e999, "arms": []}', 400, "number_out_of_range"),
        (b" " * 70_000, 413, "body_too_large"),
    ],
)
def test_a_hostile_body_gets_a_clear_answer(shared: tuple[TestClient, Path], body: bytes, status: int, name: str):
    """As any other body (docs/api.md): numbers and texts that JSON or 64 bits do not have are 400."""
    admin, path = shared
    reply = admin.put("/experiments/main", content=body)

    assert code(reply) == (status, name)
    assert path.read_text() == YAML


@pytest.mark.parametrize("name", ["%2e%2e", "Main", "a" * 65, "..%2fe", "%00", "main%0a"])
def test_a_name_from_the_wire_never_becomes_a_path(shared: tuple[TestClient, Path], name: str):
    """Whatever it is, it is refused, and no file is made."""
    admin, path = shared
    reply = admin.put(f"/experiments/{name}", json=with_(default=False))

    assert reply.status_code in (404, 422)
    assert {p.name for p in path.parent.iterdir()} <= {"e.yaml", "e.yaml.lock"}


def test_a_change_of_something_else_by_now_is_refused(admin: TestClient, path: Path):
    """`If-Match`: whoever decided before another did decides again; weak tags and tags of nothing match nothing."""
    tag = admin.get("/experiments/main").headers["etag"]
    assert put(admin, with_(coverage=0.3), **{"if-match": tag}).status_code == 200

    for header in (tag, f"W/{tag}", '"nonsense"', "", tag.strip('"')):
        reply = put(admin, with_(coverage=0.4), **{"if-match": header})
        assert code(reply) == (412, "stale_write")
    now = reply.headers["etag"]
    assert now == admin.get("/experiments/main").headers["etag"] != tag
    assert put(admin, with_(coverage=0.4), **{"if-match": f'"x", {now}'}).status_code == 200
    assert put(admin, with_(coverage=0.5), **{"if-match": "*"}).status_code == 200
    assert code(put(admin, OTHER, "other", **{"if-match": "*"})) == (412, "stale_write")


def test_what_is_in_the_quotes_of_a_tag_is_a_tag_and_nothing_else(admin: TestClient):
    """Commas and stars among it; several lines of a header are one list."""
    tag = admin.get("/experiments/main").headers["etag"]

    for header in ('"a, *, b"', '"*"', f'"x{tag}', f'"x, {tag.strip(chr(34))}, y"', "*, *", tag + "x"):
        assert code(put(admin, with_(coverage=0.3), **{"if-match": header})) == (412, "stale_write")
    lines = [("if-match", '"x,*"'), ("if-match", tag)]
    assert admin.put("/experiments/main", content=json.dumps(with_(coverage=0.3)), headers=lines).status_code == 200


def test_a_weak_tag_says_as_well_as_a_strong_one_that_something_is_there(admin: TestClient):
    """`If-None-Match` compares weakly (RFC 9110, section 13.1.2), and is refused where it cannot be read: taken for
    nothing it would let the change pass."""
    tag = admin.get("/experiments/main").headers["etag"]

    for header in (tag, f"W/{tag}", f'"x", W/{tag}', "*"):
        assert code(put(admin, with_(coverage=0.3), **{"if-none-match": header})) == (412, "stale_write")
    for header in ("x", '"x', "W/*", "*, *"):
        assert code(put(admin, with_(coverage=0.3), **{"if-none-match": header})) == (422, "invalid_request")
    for header in ('"x"', 'W/"*"', ""):
        assert put(admin, with_(coverage=0.3), **{"if-none-match": header}).status_code == 200


def test_who_has_gone_while_waiting_for_a_turn_changes_nothing(
    repository: Path, path: Path, caplog: pytest.LogCaptureFixture
):
    """Somebody else changes the file; of those who wait for that, two stay and one goes. Told in the audit."""
    names = ("first", "stays", "goes")
    gone: set[str] = set()

    async def change(control: ExperimentControl, name: str) -> None:
        async def is_gone() -> bool:
            return name in gone

        body = json.dumps({**OTHER, "name": name, "salt": name}).encode()
        await control.put(Admin("test", "here"), name, body, Precondition(None, None), is_gone)

    async def play() -> list[BaseException | None]:
        async with started(make_app(repository, path, admin_token=TOKEN)) as app:
            with exclusive(path):
                waiting = [asyncio.create_task(change(app.experiment_control, name)) for name in names]
                await asyncio.sleep(0)
                gone.add("goes")
            return await asyncio.gather(*waiting, return_exceptions=True)

    with caplog.at_level(logging.INFO):
        found = asyncio.run(play())

    assert found[:2] == [None, None]
    assert isinstance(found[2], ClientGoneError)
    assert [one.name for one in read_experiments(path).experiments] == ["main", "first", "stays"]
    assert [(one["experiment"], one["result"]) for one in audited(caplog)] == [
        *(("first", "ok"), ("stays", "ok"), ("goes", "client_gone"))
    ]


def test_the_route_asks_whether_its_client_is_still_there(repository: Path, path: Path):
    """Here it goes as soon as its body is read."""
    headers = [("content-type", "application/json"), ("authorization", f"Bearer {TOKEN}")]

    async def play() -> Reply | None:
        async with started(make_app(repository, path, admin_token=TOKEN)) as app:
            body = json.dumps(with_(coverage=0.3)).encode()
            return await ask(app, "/experiments/main", body, method="PUT", headers=headers)

    reply = asyncio.run(play())

    assert reply is not None
    assert (reply.status, reply.body) == (499, b"")
    assert path.read_text() == YAML


def test_who_has_closed_the_connection_changes_nothing(repository: Path, path: Path, tmp_path: Path):
    """Over real connections: one waits for the file, one behind it has gone, one behind that waits and is served."""
    (tmp_path / "token").write_text(TOKEN)
    options = ["--repository", str(repository), "--experiments", str(path), "--workers", "1"]
    with running_service(tmp_path / "log", *options, "--admin-token-file", str(tmp_path / "token")) as service:

        def begin(name: str) -> http.client.HTTPConnection:
            connection = service.connection()
            body = json.dumps({**OTHER, "name": name, "salt": name})
            connection.request("PUT", f"/experiments/{name}", body, BEARER)
            for _ in range(5):  # what was sent before is read before these are answered
                service.request("GET", "/health/live")
            return connection

        with exclusive(path):
            first, gone = begin("first"), begin("gone")
            gone.close()
            last = begin("last")
        statuses = [connection.getresponse().status for connection in (first, last)]
        first.close()
        last.close()
        audit = service.log_text()

    assert statuses[1] == 200
    assert audit.count('"client_gone"') == 1
    assert "gone" not in {one.name for one in read_experiments(path).experiments}


def test_two_changes_at_once_are_both_kept(repository: Path, path: Path):
    """Of two applications over one file, each adding its own: none is lost, and both applications run them all."""
    names = [[f"{side}{number}" for number in range(8)] for side in ("left-", "right-")]
    clients = [TestClient(make_app(repository, path, admin_token=TOKEN), headers=BEARER) for _ in names]
    replies: list[int] = []

    def add(client: TestClient, mine: list[str]) -> None:
        for name in mine:
            replies.append(put(client, {**OTHER, "name": name, "salt": name}, name).status_code)

    with clients[0], clients[1]:
        for client in clients:
            wait_until_ready(client)
        threads = [threading.Thread(target=add, args=pair) for pair in zip(clients, names, strict=True)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        everybody = {"main", *names[0], *names[1]}
        for client in clients:
            wait_for(
                lambda client=client: (
                    {e["name"] for e in client.get("/experiments").json()["experiments"]} == everybody
                ),
                "everything is in force",
            )

    assert set(replies) == {200}
    assert {experiment.name for experiment in read_experiments(path).experiments} == everybody


def test_while_somebody_else_changes_the_file_a_command_waits_and_then_gives_up(path: Path):
    """And nothing is written."""
    with exclusive(path), pytest.raises(Exception, match="somebody else is changing it"):
        change_experiment(path, "main", lambda content: {**content, "coverage": 1}, patience_seconds=0)

    assert path.read_text() == YAML


def test_a_file_that_somebody_broke_is_not_overwritten(admin: TestClient, path: Path):
    """What runs goes on running; the change waits until the file is mended."""
    path.write_text("format_version: 1\nexperiments: []\n")

    reply = put(admin, with_(coverage=0.5))

    assert code(reply) == (409, "experiment_refused")
    assert "the experiment file: experiments: expected at least 1" in reply.json()["detail"]
    assert path.read_text() == "format_version: 1\nexperiments: []\n"
    assert admin.get("/experiments/main").json()["coverage"] == 0.2


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_cannot_be_written_says_so(admin: TestClient, path: Path):
    """409, and what runs goes on."""
    path.parent.chmod(0o500)
    try:
        reply = put(admin, with_(coverage=0.5))
    finally:
        path.parent.chmod(0o700)

    assert code(reply) == (409, "experiment_refused")
    assert "cannot be written" in reply.json()["detail"]


def test_a_write_that_fails_changes_nothing(admin: TestClient, path: Path, monkeypatch: pytest.MonkeyPatch):
    """A full disk: the old file stands whole, no half of a new one lies about, and requests go by the old one."""

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        reply = put(admin, with_(coverage=0.5))

    assert code(reply) == (409, "experiment_refused")
    assert "No space left on device" in reply.json()["detail"]
    assert path.read_text() == YAML
    assert sorted(p.name for p in path.parent.iterdir()) == ["e.yaml", "e.yaml.lock"]
    assert admin.get("/experiments/main").json()["coverage"] == 0.2
    assert put(admin, with_(coverage=0.5)).status_code == 200


def test_a_model_that_scores_otherwise_is_not_brought_in(own_repository: Path, path: Path):
    """Its golden rows are scored before anything is written."""
    write_tiny_bundle(own_repository, "control")
    write_wrong_golden(own_repository, "control")
    arms = [MAIN["arms"][0], {"name": "c", "model": "control", "version": 2, "weight": 0.5}]
    with TestClient(make_app(own_repository, path, admin_token=TOKEN), headers=BEARER) as admin:
        wait_until_ready(admin)

        reply = put(admin, with_(phase=2, salt="n", arms=arms))

        assert code(reply) == (409, "experiment_refused")
        arms[1]["version"] = 1
        assert put(admin, with_(phase=2, salt="n", arms=arms)).json()["arms"][1]["version"] == 1


def test_without_a_file_there_is_nothing_to_change(repository: Path):
    """409 that names the option; without a token 401 or 403 as everywhere."""
    with TestClient(make_app(repository, admin_token=TOKEN)) as client:
        wait_until_ready(client)
        reply = client.put("/experiments/main", json=MAIN, headers=BEARER)
        denied = client.put("/experiments/main", json=MAIN)

    assert code(reply) == (409, "no_experiment_file")
    assert "--experiments" in reply.json()["detail"]
    assert code(denied) == (401, "unauthorized")


def test_every_change_is_audited(admin: TestClient, caplog: pytest.LogCaptureFixture):
    """What changed, by key, with the numbers; a refusal with its code; no salt, no token, no body."""
    with caplog.at_level(logging.INFO):
        put(admin, with_(coverage=0.3, halted=["student"]))
        put(admin, with_(coverage=0.1))
        put(admin, with_(phase=2, salt="s3cret", coverage=0.1))
        put(admin, {**OTHER, "name": "S3CRET"}, "S3CRET")

    lines = [line for line in audited(caplog) if line["audit"] == "experiment"]
    assert [(line["experiment"], line.get("changes"), line["result"]) for line in lines] == [
        ("main", "coverage 0.2 -> 0.3; halted [] -> [student]", "ok"),
        ("main", None, "needs_new_phase"),
        ("main", "salt; phase 1 -> 2; coverage 0.3 -> 0.1; halted [student] -> []", "ok"),
        (None, None, "invalid_experiment"),
    ]
    assert not any("s3cret" in json.dumps(line).lower() for line in lines)
    assert {line["who"] for line in lines} == {f"token-{lines[0]['who'][6:]}"}


def test_the_preview_counts_every_bucket(shared: tuple[TestClient, Path]):
    """Moves by arm, whom another arm would answer, and whether the phase allows it; nothing changes by asking."""
    admin, _ = shared

    def ask(**query: str) -> dict[str, Any]:
        reply = admin.get("/experiments/main/preview", params=query)
        assert reply.status_code == 200
        seen: dict[str, Any] = reply.json()
        return seen

    more, other, halted, none = ask(coverage="0.5"), ask(weights="0.9,0.1"), ask(halted="student"), ask()

    assert more["moves"] == [
        {"from": None, "to": "ensemble", "buckets": 1500},
        {"from": None, "to": "student", "buckets": 1500},
    ]
    assert (more["enrolled"], more["joining"]) == ({"before": 2000, "after": 5000}, 3000)
    assert (more["answered_otherwise"], more["needs_new_phase"]) == (1500, False)
    assert other["moves"] == [
        {"from": None, "to": "ensemble", "buckets": 800},
        {"from": None, "to": "student", "buckets": 200},
        {"from": "student", "to": None, "buckets": 1000},
    ]
    assert other["needs_new_phase"]
    assert other["reason"].startswith("arms[0].weight (and arms[1].weight) may not change within phase 1")
    assert (halted["moves"], halted["answered_otherwise"]) == ([], 1000)
    assert (none["moves"], none["changes"]) == ([], [])


@pytest.mark.parametrize(
    ("query", "status", "name"),
    [
        ("coverage=2", 422, "invalid_request"),
        ("coverage=-1", 422, "invalid_request"),
        ("coverage=nan", 422, "invalid_request"),
        ("coverage=0.1&coverage=0.2", 422, "invalid_request"),
        ("coverage=1e999", 422, "invalid_request"),
        ("coverage=\u0660", 422, "invalid_request"),
        ("coverage=0.5%0a", 422, "invalid_request"),
        ("weights=1", 422, "invalid_request"),
        ("weights=0.5,0.4", 422, "invalid_experiment"),
        ("weights=0.00001,0.99999", 422, "invalid_experiment"),
        ("halted=nobody", 404, "unknown_arm"),
        ("halted=ensemble", 422, "invalid_experiment"),
        ("secret=1", 422, "invalid_request"),
        ("coverage=0." + "1" * 5000, 422, "invalid_request"),
    ],
)
def test_a_preview_of_nonsense_is_refused(shared: tuple[TestClient, Path], query: str, status: int, name: str):
    """By the same rules as a change."""
    admin, _ = shared
    assert code(admin.get(f"/experiments/main/preview?{query}")) == (status, name)
    assert code(admin.get("/experiments/nobody/preview")) == (404, "unknown_experiment")


@pytest.mark.soak
def test_every_worker_follows(repository: Path, path: Path, tmp_path: Path):
    """The real program with two workers: whichever is asked, the change is there, and scoring never stopped."""
    (tmp_path / "token").write_text(TOKEN)
    options = ["--repository", str(repository), "--experiments", str(path), "--workers", "2"]
    with running_service(tmp_path / "log", *options, "--admin-token-file", str(tmp_path / "token")) as service:
        with contextlib.closing(service.connection()) as connection:
            connection.request("PUT", "/experiments/main", json.dumps(with_(coverage=1)), BEARER)
            assert connection.getresponse().status == 200

        def all_follow() -> bool:
            found = [service.request("GET", "/experiments/main").json()["coverage"] for _ in range(20)]
            return set(found) == {1.0}

        wait_for(all_follow, "every worker follows")
        assert metric(service.metrics(), "retort_experiment_reload_failures_total") == 0
        assert service.stop() == 0


def test_a_change_by_a_program_is_of_what_it_saw(path: Path):
    """`expected_tag`: as `If-Match`."""
    tag = read_experiments(path).default.tag()
    grow: Callable[[dict[str, Any]], dict[str, Any]] = lambda content: {**content, "coverage": 0.4}  # noqa: E731

    made = change_experiment(path, "main", grow, expected_tag=tag)

    assert (made.is_needed, made.after.tag()) == (True, read_experiments(path).default.tag())
    with pytest.raises(Exception, match="has changed meanwhile"):
        change_experiment(path, "main", grow, expected_tag=tag)
    with pytest.raises(Exception, match="no experiment 'x'"):
        change_experiment(path, "x", grow)
