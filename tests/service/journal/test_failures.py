"""A request that was assigned to an arm and not answered leaves a record, so that the arm's rail can see it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np

from service.journal.erase import erase_unit
from tests.models.tiny_bundle import write_tiny_bundle
from tests.service.bundles import FAILING_DEVICE, write_moody_ensemble
from tests.service.journal.reading import records
from tests.service.journal.test_joined import event, exposure, join
from tests.service.journal.test_units import KEY, key_file
from tests.service.running import CONTEXT, ask, make_app, request_of, started
from tests.service.test_watch import arm, experiments_file

FAILING = {**CONTEXT, "device": FAILING_DEVICE}


def failure(request_id: str = "r", **members: Any) -> dict[str, Any]:
    record = exposure(request_id)
    kept = {name: record[name] for name in ("request_id", "time", "unit", "latency_ms", "experiment", "phase", "arm")}
    return {"kind": "failure", **kept, "enrolled": True, "code": "internal", **members}


def test_what_fails_or_is_too_late_after_its_arm_was_known_is_recorded(tmp_path: Path):
    """With the arm, the unit and the stable code; what the request itself got wrong is not, nor what has no arm."""
    root, folder = tmp_path / "repository", tmp_path / "log"
    root.mkdir()
    write_tiny_bundle(root, "student")
    write_moody_ensemble(root, side=2)
    path = experiments_file(tmp_path / "e.json", arm("student"), arm("ensemble", 0.5), phase=4)

    async def run() -> list[int]:
        app = make_app(root, path, log=folder)
        async with started(app):
            statuses = []
            for body in (
                request_of(1, request_id="late", unit_id="u", arm="student", deadline_ms=1e-6),
                {**request_of(1, request_id="wrong"), "context": {"age": "x"}},
                {**request_of(1), "experiment": "nobody"},
            ):
                reply = await ask(app, "/predict", json.dumps(body).encode())
                assert reply is not None
                statuses.append(reply.status)
            for arm_of in app.plan.experiments["e"].routes:  # type: ignore[union-attr]
                object.__setattr__(arm_of, "fallback", None)
            for unit in range(30):
                body = {**request_of(1, request_id=f"f-{unit}", unit_id=unit), "context": FAILING}
                reply = await ask(app, "/predict", json.dumps(body).encode())
                assert reply is not None
                statuses.append(reply.status)
            await ask(app, "/models/ensemble/predict", json.dumps({**request_of(1), "context": FAILING}).encode())
            return statuses

    statuses = asyncio.run(run())

    assert statuses[:3] == [504, 422, 404]
    late, *failed = records(folder, "failure")
    assert 0 < late.pop("latency_ms") < 60_000
    assert late.pop("time") > 0
    assert late == {
        "kind": "failure",
        "request_id": "late",
        "unit": "u",
        "experiment": "e",
        "phase": 4,
        "arm": "student",
        "code": "deadline_exceeded",
        "forced": True,
    }
    assert {(record["arm"], record["code"], record["enrolled"]) for record in failed} == {
        ("ensemble", "internal", True)
    }
    assert len(failed) == statuses.count(500) > 0


def test_a_failure_is_a_row_with_an_error(tmp_path: Path):
    """Of its unit and its arm, with nothing shown; those of other experiments are none."""
    rows, counts = join(tmp_path, exposure("a"), failure("b", unit="u"), failure("c", experiment="other"))

    assert counts == {"exposures": 1, "failures": 1}
    assert rows["request_id"][rows["error"]].tolist() == ["b"]
    assert rows["unit"][rows["error"]].tolist() == ["u"]
    assert np.all(rows["candidate"] == -1)


def test_shadow_scores_and_failures_of_a_unit_are_erased_with_it(tmp_path: Path):
    """A shadow's record names no unit: it goes with its request."""
    shadow = {"kind": "shadow", "experiment": "e", "arm": "control", "model": "m", "version": 1, "pctr": [0.1]}
    for name in ("ours", "theirs"):
        join(
            tmp_path,
            exposure(name, unit=name),
            {**shadow, "request_id": name, "time": 5.0},
            failure(f"failed {name}", unit=name),
            event("click", request_id=name),
        )

    assert erase_unit(tmp_path, "ours") == (4, 0)
    assert {record["request_id"] for record in records(tmp_path)} == {"theirs", "failed theirs"}


def test_the_unit_of_a_failure_is_hashed_where_units_are(repository: Path, tmp_path: Path):
    folder = tmp_path / "log"

    async def run() -> None:
        async with started(make_app(repository, log=folder, log_unit_key_file=key_file(tmp_path, KEY))) as app:
            body = request_of(1, unit_id="user-831", deadline_ms=1e-6)
            await ask(app, "/predict", json.dumps(body).encode())

    asyncio.run(run())
    (record,) = records(folder)
    assert record["kind"] == "failure"
    assert "user-831" not in json.dumps(record)


def test_a_shadows_scores_join_the_exposure_they_were_made_of(tmp_path: Path):
    """Of two with one request id, by the time; a score that is not there or says never is none."""
    shadow = {"kind": "shadow", "request_id": "r", "experiment": "e", "arm": "control", "model": "m", "version": 1}
    first = exposure()
    events = [event("impression", number) for number in range(3)]
    rows, counts = join(tmp_path / "a", first, {**shadow, "time": first["time"], "pctr": [0.4, None, 0.0]}, *events)
    assert counts == {"exposures": 1, "events": 3, "shadow_scores": 1}
    assert dict(zip(rows["candidate"].tolist(), rows["shadow_arm"].tolist(), strict=True)) == {
        0: "control",
        1: "",
        2: "",
    }
    assert rows["shadow_pctr"][rows["candidate"] == 0].tolist() == [0.4]

    rows, counts = join(tmp_path / "b", first, {**shadow, "time": first["time"] + 1, "pctr": [0.4] * 3}, *events)
    assert counts == {"exposures": 1, "events": 3}
    assert set(rows["shadow_arm"].tolist()) == {""}
