"""What a guard-rail has halted: every worker follows, restarts do not forget, and an administrator can lift it."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.experiments.file import read_experiments
from service.experiments.state import Halt, halt_arm, phase_key, read_lifts
from tests.service.running import make_app, metric, request_of, wait_for, wait_until_ready
from tests.service.test_watch import arm, experiments_file

TOKEN = "t" * 32
HEADERS = {"authorization": f"Bearer {TOKEN}"}
ARMS = (arm("ensemble"), arm("student"))


def state_of(path: Path) -> Path:
    return path.with_name(path.name + ".state.json")


def halt(path: Path, name: str = "student", **members: Any) -> Halt:
    """Halts an arm, as the process that judges does."""
    (experiment,) = read_experiments(path).experiments
    key = dict(zip(("experiment", "phase", "salt"), phase_key(experiment), strict=True))
    facts = {"rail": "ctr_loss", "bound": 0.1, "found": 0.5, "evidence": 1.25, "time": 1_795_300_000.0}
    given = Halt(**{**key, "arm": name, **facts, "counts": {name: {"clicks": 51.0}}, **members})
    assert halt_arm(state_of(path), given)
    return given


def arms(client: TestClient) -> set[str]:
    return {client.post("/predict", json=request_of(1, unit_id=unit)).json()["arm"] for unit in range(20)}


def described(client: TestClient) -> dict[str, Any]:
    return {found["name"]: found for found in client.get("/experiments/e").json()["arms"]}


def test_its_units_get_control_and_everybody_can_see_why(repository: Path, tmp_path: Path):
    """At once, and after a restart; a new phase starts with all its arms."""
    path = experiments_file(tmp_path / "e.json", *ARMS)
    with TestClient(make_app(repository, path)) as client:
        wait_until_ready(client)
        assert arms(client) == {"ensemble", "student"}
        assert described(client)["student"]["halt"] is None

        halt(path)

        wait_for(lambda: described(client)["student"]["halted"], "the halt is in force")
        assert arms(client) == {"ensemble"}
        assert described(client)["student"]["halt"] == {
            **{"time": 1_795_300_000.0, "rail": "ctr_loss", "bound": 0.1, "found": 0.5, "evidence": 1.25},
            "counts": {"student": {"clicks": 51.0}},
        }
        assert metric(client.get("/metrics").text, "retort_arm_halted", experiment="e", arm="student") == 1
        forced = client.post("/predict", json=request_of(1, arm="student")).json()
        assert forced["arm"] == "student"

    with TestClient(make_app(repository, path)) as client:
        wait_until_ready(client)
        assert arms(client) == {"ensemble"}

        experiments_file(path, *ARMS, phase=2, salt="t")

        wait_for(lambda: not described(client)["student"]["halted"], "the new phase is in force")
        assert arms(client) == {"ensemble", "student"}
        assert metric(client.get("/metrics").text, "retort_arm_halted", arm="student") == 0


def test_an_administrator_lifts_a_halt(repository: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """In force when the answer comes, audited, and remembered as where the evidence begins anew."""
    path = experiments_file(tmp_path / "e.json", *ARMS)
    halt(path)
    with TestClient(make_app(repository, path, admin_token=TOKEN)) as client:
        wait_until_ready(client)
        assert arms(client) == {"ensemble"}

        with caplog.at_level(logging.INFO):
            reply = client.delete("/experiments/e/halts/student", headers=HEADERS)

        assert reply.status_code == 200
        assert [found["halted"] for found in reply.json()["arms"]] == [False, False]
        assert arms(client) == {"ensemble", "student"}
        (line,) = [json.loads(record.message) for record in caplog.records if record.name == "service.admin.audit"]
        assert {name: line[name] for name in ("audit", "experiment", "arm", "result")} == {
            **{"audit": "lift", "experiment": "e", "arm": "student", "result": "ok"}
        }
    ((key, since),) = read_lifts(state_of(path)).items()
    assert key == ("e", 1, "s")
    assert since > 1_795_300_000.0


@pytest.mark.parametrize(
    ("route", "status", "code"),
    [
        ("/experiments/nobody/halts/student", 404, "unknown_experiment"),
        ("/experiments/e/halts/nobody", 404, "unknown_arm"),
        ("/experiments/e/halts/student", 409, "not_halted"),
    ],
)
def test_what_is_not_halted_is_not_lifted(repository: Path, tmp_path: Path, route: str, status: int, code: str):
    """An arm that is halted in the experiment file is let go there."""
    path = experiments_file(tmp_path / "e.json", *ARMS, halted=["student"])
    with TestClient(make_app(repository, path, admin_token=TOKEN)) as client:
        wait_until_ready(client)
        assert client.delete(route).status_code == 401
        reply = client.delete(route, headers=HEADERS)

        assert (reply.status_code, reply.json()["code"]) == (status, code)
        assert arms(client) == {"ensemble"}


def test_a_halt_that_cannot_be_lifted_is_a_503(repository: Path, tmp_path: Path):
    """Its file cannot be written; the arm stays off."""
    path = experiments_file(tmp_path / "e.json", *ARMS)
    halt(path)
    with TestClient(make_app(repository, path, admin_token=TOKEN)) as client:
        wait_until_ready(client)
        lock = state_of(path).with_name(state_of(path).name + ".lock")
        lock.unlink()
        lock.mkdir()

        reply = client.delete("/experiments/e/halts/student", headers=HEADERS)

        assert (reply.status_code, reply.json()["code"]) == (503, "state_unavailable")
        assert arms(client) == {"ensemble"}


def test_control_is_never_halted_whatever_the_file_says(repository: Path, tmp_path: Path):
    """There is nothing to send its units to."""
    path = experiments_file(tmp_path / "e.json", *ARMS)
    halt(path, "ensemble")
    with TestClient(make_app(repository, path)) as client:
        wait_until_ready(client)
        assert arms(client) == {"ensemble", "student"}
        assert described(client)["ensemble"]["halt"] is None


def test_a_damaged_state_file_changes_nothing(repository: Path, tmp_path: Path):
    """It is refused and counted, and what was halted stays so."""
    path = experiments_file(tmp_path / "e.json", *ARMS)
    halt(path)
    with TestClient(make_app(repository, path)) as client:
        wait_until_ready(client)
        temporary = tmp_path / "damaged"
        temporary.write_text('{"halts": [')
        temporary.replace(state_of(path))

        wait_for(
            lambda: metric(client.get("/metrics").text, "retort_experiment_reload_failures_total") >= 1, "it is refused"
        )
        assert arms(client) == {"ensemble"}
