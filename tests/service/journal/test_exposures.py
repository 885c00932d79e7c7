"""Every scored request leaves one record, whichever way it was answered."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.errors import ConfigError
from service.journal import writer as writer_module
from service.scoring.predict import PREDICT
from tests.service.journal.reading import records
from tests.service.running import (
    CONTEXT,
    TOKEN,
    as_columns,
    ask,
    candidate,
    make_app,
    metric,
    request_of,
    started,
    wait_until_ready,
)
from tests.service.test_watch import arm, experiments_file


def test_a_record_holds_what_was_answered_and_why(client: TestClient, folder: Path):
    """To whom, by which arm of which experiment, and the very numbers of the answer."""
    before = time.time()
    answer = client.post("/predict", json=request_of(1, 2, 3, request_id="r-1", unit_id="user-831")).json()

    (record,) = records(folder)

    assert before <= record.pop("time") <= time.time()
    assert 0 < record.pop("latency_ms") < 60_000
    assert record == {
        "kind": "exposure",
        "request_id": "r-1",
        "unit": "user-831",
        "model": answer["model"],
        "version": answer["version"],
        "pctr": answer["pctr"],
        "experiment": answer["experiment"],
        "phase": 1,
        "arm": answer["arm"],
        "enrolled": True,
        "propensity": 0.5,
    }


def test_each_way_of_asking_leaves_one_record(repository: Path, folder: Path):
    """Rows, columns, known by their bytes, by FastAPI, straight from the protocol, and a model's own routes. What is
    refused leaves none."""
    rows = [candidate(1), candidate(2)]

    def body(name: str, candidates: Any = rows) -> bytes:
        return json.dumps({"request_id": name, "context": CONTEXT, "candidates": candidates}).encode()

    async def scenario() -> None:
        async with started(make_app(repository, log=folder)) as app:
            for way, path, name, candidates in (
                (app, "/predict", "rows", rows),
                (app, "/predict", "again", rows),
                (app, "/predict", "columns", as_columns(rows)),
                (app.serve_by_fastapi, "/predict", "FastAPI", rows),
                (app, "/models/student/predict", "model", rows),
                (app, "/models/student/versions/1/predict", "version", rows),
            ):
                reply = await ask(way, path, body(name, candidates))
                assert reply is not None
                assert reply.status == 200
            answered: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            app.predictor.begin(PREDICT, body("direct"), time.perf_counter(), answered.set_result)
            assert (await answered).status == 200
            for wrong in (b"{}", b"[", b'{"candidates": [{"price": "x"}]}'):
                reply = await ask(app, "/predict", wrong)
                assert reply is not None
                assert reply.status in (400, 422)

    asyncio.run(scenario())

    found = {record["request_id"]: record for record in records(folder)}
    assert list(found) == ["rows", "again", "columns", "FastAPI", "model", "version", "direct"]
    for name in ("model", "version"):
        assert found[name].keys().isdisjoint({"experiment", "arm", "enrolled", "propensity", "phase"})
    # Without a unit the request id is hashed, so that arms differ; one model answers all of its own alike.
    by_model: dict[str, set[str]] = {}
    for record in found.values():
        by_model.setdefault(record["model"], set()).add(json.dumps(record["pctr"]))
    assert {len(scores) for scores in by_model.values()} == {1}


def test_arms_forced_halted_and_not_enrolled_are_told_apart(repository: Path, folder: Path, tmp_path: Path):
    """Analysis is by the arm assigned, so what answered is said where it is another."""
    halted = experiments_file(tmp_path / "e.json", arm("ensemble"), arm("student"), halted=["student"], phase=7)
    outside = experiments_file(tmp_path / "f.json", arm("ensemble"), arm("student"), coverage=0.0)
    with TestClient(make_app(repository, halted, log=folder)) as client:
        wait_until_ready(client)
        arms = {client.post("/predict", json=request_of(1, unit_id=unit)).json()["arm"] for unit in range(20)}
        client.post("/predict", json=request_of(1, arm="student"))
    assert arms == {"ensemble"}
    *assigned, forced = records(folder)
    assert {(record["arm"], record.get("served")) for record in assigned} == {
        ("ensemble", None),
        ("student", "ensemble"),
    }
    assert {record["phase"] for record in assigned} == {7}
    assert forced["forced"] is True
    assert forced["arm"] == forced["model"] == "student"
    assert forced.keys().isdisjoint({"enrolled", "propensity", "served"})

    with TestClient(make_app(repository, outside, log=tmp_path / "other")) as client:
        wait_until_ready(client)
        client.post("/predict", json=request_of(1, unit_id=1))
    (record,) = records(tmp_path / "other")
    assert record["arm"] == "ensemble"
    assert record.keys().isdisjoint({"enrolled", "propensity"})


def test_a_candidate_that_the_catalogue_lacks_has_no_pctr(repository: Path, folder: Path, tmp_path: Path):
    """The record's list is as long as the request's, so that feedback's indexes mean the same; ids are kept."""
    settings = {"catalogue": tmp_path / "ads", "admin_token": TOKEN, "log": folder}
    with TestClient(make_app(repository, **settings)) as client:
        wait_until_ready(client)
        ads = json.dumps({"id": "a1", "candidate": candidate(1)})
        headers = {"authorization": f"Bearer {TOKEN}", "content-type": "application/x-ndjson"}
        assert client.put("/catalogue", content=ads, headers=headers).status_code == 200
        for ids in (["new", "a1"], ["new"]):
            answer = client.post("/predict", json={"candidate_ids": ids, "context": CONTEXT}).json()
            record = records(folder)[-1]
            assert record["pctr"] == answer["pctr"]
            assert record["pctr"][0] is None
            assert record["candidate_ids"] == ids


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_features_are_kept_as_they_were_sent_of_the_share_that_is_asked_for(
    repository: Path, folder: Path, rate: float
):
    """Raw, as rows or columns; and neither unit nor ignored members with them."""
    asked = [request_of(1, 2, extra=1), request_of(1, 2, extra=1)]
    asked.append({**asked[0], "candidates": as_columns(asked[0]["candidates"])})
    with TestClient(make_app(repository, log=folder, log_features=rate)) as client:
        wait_until_ready(client)
        for request in asked:
            assert client.post("/predict", json=request).status_code == 200

    for record, request in zip(records(folder), asked, strict=True):
        assert record.get("context") == (request["context"] if rate else None)
        assert record.get("candidates") == (request["candidates"] if rate else None)


def test_without_the_option_nothing_is_kept(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """And feedback is told so."""
    monkeypatch.chdir(tmp_path)
    with TestClient(make_app(repository)) as client:
        wait_until_ready(client)
        client.post("/predict", json=request_of(1))
        reply = client.post("/feedback", json={"request_id": "r", "event": "click", "candidate": 0})

    assert (reply.status_code, reply.json()["code"]) == (404, "no_log")
    assert list(tmp_path.iterdir()) == []


def break_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def write(descriptor: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(writer_module.os, "write", write)


def test_scoring_goes_on_while_the_disk_is_full(client: TestClient, folder: Path, monkeypatch: pytest.MonkeyPatch):
    """What was not logged is counted, readiness says degraded; afterwards everything is as before."""
    with monkeypatch.context() as context:
        break_disk(context)
        assert client.post("/predict", json=request_of(1, request_id="lost")).status_code == 200
        ready = client.get("/health/ready")
        refused = client.post("/feedback", json={"request_id": "lost", "event": "click", "candidate": 0})
        text = client.get("/metrics").text

        assert (ready.status_code, ready.json()["status"]) == (200, "degraded")
        assert ready.json()["reasons"] == ["the exposure log cannot be written: No space left on device"]
        assert (refused.status_code, refused.json()["code"]) == (503, "log_unavailable")
        assert refused.headers["retry-after"] == "1"
        assert metric(text, "retort_log_dropped_total", reason="disk_full") == 2
        assert metric(text, "retort_events_total", event="click", outcome="dropped") == 1

    assert client.post("/predict", json=request_of(1, request_id="kept")).status_code == 200
    assert client.get("/health/ready").json() == {"status": "ready"}
    assert [record["request_id"] for record in records(folder)] == ["kept"]


def test_where_the_log_is_required_nothing_is_answered_without_it(
    repository: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    """Fail closed: 503, readiness too; and it comes back though nobody is sent here any more."""
    app = make_app(repository, log=folder, log_required=True, log_sync_seconds=0.02)
    with TestClient(app, raise_server_exceptions=False) as client:
        wait_until_ready(client)
        with monkeypatch.context() as context:
            break_disk(context)
            reply = client.post("/predict", json=request_of(1))
            ready = client.get("/health/ready")
            assert (reply.status_code, reply.json()["code"]) == (503, "log_unavailable")
            assert (ready.status_code, ready.json()["code"]) == (503, "not_ready")
            assert "No space left" in ready.json()["reasons"][0]
            assert metric(client.get("/metrics").text, "retort_exposures_total") == 0

        wait_until_ready(client)
        assert client.post("/predict", json=request_of(1)).status_code == 200
        assert len(records(folder)) == 1


def test_a_folder_that_cannot_be_written_stops_the_start(repository: Path, tmp_path: Path):
    """With the option at fault."""
    (tmp_path / "file").write_text("")

    with pytest.raises(ConfigError, match=r"--log \(RETORT_LOG\)"):
        make_app(repository, log=tmp_path / "file" / "log")
