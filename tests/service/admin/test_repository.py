"""Loading and unloading models: for every worker, for good, golden-checked before, audited after."""

import json
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.admin.audit import record
from service.logs import configure_logging
from tests.models.tiny_bundle import write_tiny_bundle
from tests.service.admin.test_gate import BEARER, audited
from tests.service.bundles import write_wrong_golden
from tests.service.running import (
    TOKEN,
    expected_pctr,
    make_app,
    metric,
    request_of,
    running_service,
    wait_for,
    wait_until_ready,
)

REPOSITORY = "/v2/repository"


@pytest.fixture
def repository(own_repository: Path) -> Path:
    """student and ensemble, which the experiment needs, and three versions of control, which nobody does."""
    for version in (1, 2, 3):
        write_tiny_bundle(own_repository, "control", bias=-float(version))
    return own_repository


@pytest.fixture
def admin(repository: Path) -> Iterator[TestClient]:
    """A client that shows the token with every request."""
    app = make_app(repository, admin_token=TOKEN)
    with TestClient(app, headers=BEARER, raise_server_exceptions=False) as client:
        wait_until_ready(client)
        yield client


def load(client: TestClient, name: str, **parameters: Any) -> Any:
    content = {"json": {"parameters": parameters}} if parameters else {}
    return client.post(f"{REPOSITORY}/models/{name}/load", **content)


def unload(client: TestClient, name: str) -> Any:
    return client.post(f"{REPOSITORY}/models/{name}/unload")


def version_of(client: TestClient, name: str) -> int | None:
    """Which version answers."""
    version: int | None = client.post(f"/models/{name}/predict", json=request_of(1)).json().get("version")
    return version


def test_the_index_tells_every_version_and_whether_it_is_loaded(admin: TestClient, repository: Path):
    """A refused one with the reason."""
    write_wrong_golden(repository, "control")

    def states() -> list[tuple[str, ...]]:
        return [tuple(entry.values()) for entry in admin.post(f"{REPOSITORY}/index").json()]

    wait_for(lambda: any("golden" in state[3] for state in states()), "the new version is refused")
    assert states() == [
        ("control", "1", "UNAVAILABLE", "not loaded"),
        ("control", "2", "UNAVAILABLE", "not loaded"),
        ("control", "3", "READY", ""),
        ("control", "4", "UNAVAILABLE", "refused (golden)"),
        ("ensemble", "1", "READY", ""),
        ("student", "1", "READY", ""),
    ]
    ready = admin.post(f"{REPOSITORY}/index", json={"ready": True}).json()
    assert [(entry["name"], entry["version"]) for entry in ready] == [
        ("control", "3"),
        ("ensemble", "1"),
        ("student", "1"),
    ]


def test_loading_a_version_makes_it_the_live_one(admin: TestClient, repository: Path):
    """When the answer comes it is served; a restart keeps it, since the live file says so. Without a version: the
    newest."""
    request = request_of(1)

    assert (load(admin, "control", version="1").status_code, version_of(admin, "control")) == (200, 1)
    assert (repository / "control" / "live").read_text() == "1\n"
    answer = admin.post("/models/control/predict", json=request).json()
    assert answer["pctr"] == pytest.approx(expected_pctr(request, -1.0), rel=1e-5)
    assert (load(admin, "control", version=2).status_code, version_of(admin, "control")) == (200, 2)
    assert (load(admin, "control").status_code, version_of(admin, "control")) == (200, 3)
    assert (repository / "control" / "live").read_text() == "latest\n"
    assert sorted(path.name for path in (repository / "control").iterdir()) == ["1", "2", "3", "live"]


def test_tritons_way_to_name_a_version_is_understood(admin: TestClient):
    """A version policy in a config in a string."""
    for policy, version in (({"specific": {"versions": [2]}}, 2), ({"latest": {"num_versions": 1}}, 3)):
        config = json.dumps({"version_policy": policy})

        assert (load(admin, "control", config=config).status_code, version_of(admin, "control")) == (200, version)


def test_unloading_takes_a_model_out_of_service(admin: TestClient, repository: Path):
    """404 from then on, also after a restart; loading brings it back. Twice is no fault."""
    for _ in range(2):
        assert unload(admin, "control").status_code == 200
        reply = admin.post("/models/control/predict", json=request_of(1))
        assert (reply.status_code, reply.json()["code"]) == (404, "unknown_model")
        assert admin.get("/v2/models/control/ready").status_code == 404
    assert (repository / "control" / "live").read_text() == "none\n"
    with TestClient(make_app(repository)) as restarted:
        wait_until_ready(restarted)
        assert version_of(restarted, "control") is None
    assert (load(admin, "control").status_code, version_of(admin, "control")) == (200, 3)


def test_a_model_that_an_experiment_needs_stays(admin: TestClient, repository: Path):
    """409, and nothing is written; nor does a live file of `none` take it away, which is logged and counted."""
    reply = unload(admin, "student")

    assert (reply.status_code, reply.json()["code"]) == (409, "model_in_use")
    assert not (repository / "student" / "live").exists()
    (repository / "student" / "live").write_text("none\n")
    wait_for(
        lambda: metric(admin.get("/metrics").text, "retort_model_load_failures_total", model="student") == 1,
        "the edit is counted",
    )
    assert version_of(admin, "student") == 1


def test_a_version_that_scores_otherwise_is_not_loaded(admin: TestClient, repository: Path):
    """409 before anything is written: what was live stays, also after a restart."""
    write_wrong_golden(repository, "control")

    reply = load(admin, "control", version="4")

    assert (reply.status_code, reply.json()["code"], reply.json()["field"]) == (409, "load_refused", "version")
    assert "golden" in reply.json()["error"]
    assert str(repository) not in reply.text
    assert version_of(admin, "control") == 3
    assert not (repository / "control" / "live").exists()


@pytest.mark.parametrize(
    ("name", "parameters", "status", "code"),
    [
        ("nobody", {}, 404, "unknown_model"),
        ("nobody", {"version": "1"}, 404, "unknown_model"),
        ("control", {"version": "9"}, 404, "unknown_version"),
        ("control", {"version": "x"}, 404, "unknown_version"),
        ("control", {"version": "²"}, 404, "unknown_version"),
        ("control", {"version": "../../etc"}, 404, "unknown_version"),
        ("control", {"version": 0}, 404, "unknown_version"),
        ("control", {"version": -1}, 404, "unknown_version"),
        ("control", {"version": 2**70}, 404, "unknown_version"),
        ("control", {"version": True}, 404, "unknown_version"),
        ("control", {"version": [1]}, 404, "unknown_version"),
        ("control", {"config": 7}, 422, "wrong_type"),
        ("control", {"config": "{"}, 400, "malformed_json"),
        ("control", {"config": "{}"}, 422, "invalid_request"),
        ("control", {"config": '{"version_policy": {"specific": {"versions": [1, 2]}}}'}, 422, "invalid_request"),
        ("control", {"config": '{"version_policy": {"all": {}}}'}, 422, "invalid_request"),
        ("%2e%2e", {}, 404, "unknown_model"),
        ("Control", {}, 404, "unknown_model"),
        ("%00", {}, 404, "not_found"),
        ("a" * 65, {}, 404, "unknown_model"),
        (".hidden", {}, 404, "unknown_model"),
        ("..%2fstudent", {}, 404, "not_found"),
    ],
)
def test_what_cannot_be_loaded_is_refused(
    admin: TestClient, repository: Path, name: str, parameters: dict[str, Any], status: int, code: str
):
    """A name from the wire never becomes a path; nothing is written."""
    before = sorted(repository.parent.rglob("*"))

    reply = load(admin, name, **parameters)

    assert (reply.status_code, reply.json()["code"]) == (status, code)
    assert sorted(repository.parent.rglob("*")) == before
    assert name.startswith("..") or unload(admin, name).status_code in (404, 200)


def test_bodies_of_another_kind_are_refused(admin: TestClient):
    """As everywhere."""
    for content, code in ((b"[]", "invalid_request"), (b"{", "malformed_json"), (b'{"ready": 1}', "wrong_type")):
        assert admin.post(f"{REPOSITORY}/index", content=content).json()["code"] == code
    assert admin.post(f"{REPOSITORY}/models/control/load", json={"parameters": 7}).json()["code"] == "wrong_type"


def test_a_repository_that_cannot_be_written_says_so(
    admin: TestClient, repository: Path, monkeypatch: pytest.MonkeyPatch
):
    """409 with what to do: in a container it is often mounted read-only."""

    def refuse(*_: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("models.versions.Repository.write_live", refuse)

    reply = unload(admin, "control")

    assert (reply.status_code, reply.json()["code"]) == (409, "load_refused")
    assert "Read-only file system" in reply.json()["error"]


def test_every_change_is_audited(admin: TestClient, caplog: pytest.LogCaptureFixture):
    """Who, what, when and with what result, also what was refused; the token and a name that is none are not there."""
    with caplog.at_level(logging.INFO):
        load(admin, "control", version="2")
        unload(admin, "control")
        unload(admin, "student")
        load(admin, "S3CRET")

    lines = audited(caplog)
    told = [(line["audit"], line["model"], line["version"], line["live"], line["result"]) for line in lines]
    assert told == [
        ("load", "control", 2, 2, "ok"),
        ("unload", "control", None, None, "ok"),
        ("unload", "student", None, 1, "model_in_use"),
        ("load", None, None, None, "unknown_model"),
    ]
    assert all(line["who"].startswith("token-") and line["address"] and line["time"] for line in lines)
    ours = "".join(record.getMessage() for record in caplog.records if record.name.startswith("service"))
    assert TOKEN not in ours
    assert "S3CRET" not in ours


def test_the_audit_is_written_at_every_log_level(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Also where only errors are."""
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)
    configure_logging("error", "text")

    record("token-1", "10.0.0.7", "unload", "control", "ok")
    logging.getLogger("service.scoring.registry").info("something else")

    (line,) = capsys.readouterr().err.splitlines()
    assert '"audit": "unload"' in line


def test_changes_at_once_take_turns(admin: TestClient, repository: Path):
    """Whatever the order, files and service agree in the end."""
    replies: list[int] = []

    def change(version: int) -> None:
        replies.append(load(admin, "control", version=version).status_code)

    threads = [threading.Thread(target=change, args=(1 + number % 3,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert replies == [200] * 12
    assert (repository / "control" / "live").read_text() == f"{version_of(admin, 'control')}\n"


def test_every_worker_follows(repository: Path, tmp_path: Path):
    """The one that is asked writes a file; the others see it. In a JSON log the audit is members, not text in text."""
    options = ["--repository", str(repository), "--workers", "2", "--log-format", "json"]
    with running_service(tmp_path / "log", *options, RETORT_ADMIN_TOKEN=TOKEN) as running:
        connection = running.connection()
        connection.request("POST", f"{REPOSITORY}/models/control/load", b'{"parameters":{"version":"1"}}', BEARER)
        assert connection.getresponse().read() == b"{}"
        connection.close()

        def versions() -> set[int]:
            path = "/models/control/predict"
            return {running.request("POST", path, request_of(1)).json()["version"] for _ in range(20)}

        wait_for(lambda: versions() == {1}, "both workers serve version 1")
        text = running.log_text()
    records = [json.loads(line) for line in text.splitlines()]
    (line,) = [record for record in records if record["logger"] == "service.admin.audit"]
    assert (line["audit"], line["model"], line["version"], line["result"]) == ("load", "control", 1, "ok")
    assert (line["message"], line["level"]) == ("audit", "info")
    assert TOKEN not in text
