"""A request of the protocol leaves an exposure where its parameters say whom it was for."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.journal.joined import read_journal
from tests.service.journal.reading import records
from tests.service.oip.tensors import tensors_of
from tests.service.running import CONTEXT, candidate, expected_pctr, make_app, metric, request_of, wait_until_ready
from tests.service.test_watch import arm, experiments_file

ROWS = [candidate(1), candidate(2)]
PCTR = [{"name": "pctr"}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "log"


@pytest.fixture
def client(repository: Path, folder: Path, tmp_path: Path) -> Iterator[TestClient]:
    path = experiments_file(tmp_path / "e.json", arm("ensemble"), arm("student"), phase=3)
    with TestClient(make_app(repository, path, log=folder), raise_server_exceptions=False) as client:
        wait_until_ready(client)
        yield client


def infer(client: TestClient, model: str = "student", **members: Any) -> Any:
    body = {"inputs": tensors_of(CONTEXT, ROWS), "outputs": PCTR, **members}
    return client.post(f"/v2/models/{model}/infer", json=body)


def test_without_a_unit_it_leaves_nothing(client: TestClient, folder: Path):
    """Who names a model has chosen already, and nobody knows for whom."""
    assert infer(client).status_code == 200
    assert infer(client, id="r").status_code == 200

    assert records(folder) == []


def test_a_unit_leaves_the_exposure_of_a_model_route(client: TestClient, folder: Path):
    """Under the request's own id, or one that the answer tells, so that feedback can refer to it."""
    named = infer(client, id="auction-1", parameters={"unit_id": "user-831"}).json()
    made = infer(client, parameters={"unit_id": 831}).json()

    assert named["id"] == "auction-1"
    one, other = records(folder, "exposure")
    assert one.pop("time") > 0
    assert one.pop("latency_ms") > 0
    assert one.pop("pctr") == named["outputs"][0]["data"] == pytest.approx(expected_pctr(request_of(1, 2)), abs=1e-5)
    assert one == {"kind": "exposure", "request_id": "auction-1", "unit": "user-831", "model": "student", "version": 1}
    assert (other["request_id"], other["unit"]) == (made["id"], "831")


def test_with_an_experiment_it_is_the_arms_where_the_unit_gets_that_model(client: TestClient, folder: Path):
    """As /predict would have assigned it; any other model is that of an arm that was forced."""
    arms = {}
    for unit in range(12):
        arms[str(unit)] = client.post("/predict", json=request_of(1, unit_id=unit)).json()["arm"]
        infer(client, "student", id=f"r-{unit}", parameters={"unit_id": unit, "experiment": "e"})
    assert set(arms.values()) == {"ensemble", "student"}

    found = {record["unit"]: record for record in records(folder, "exposure") if record["request_id"].startswith("r-")}

    for unit, record in found.items():
        assert (record["experiment"], record["phase"], record["arm"]) == ("e", 3, "student")
        if arms[unit] == "student":
            assert (record["enrolled"], record["propensity"]) == (True, 0.5)
            assert "forced" not in record
        else:
            assert record["forced"] is True
            assert "enrolled" not in record
    assert metric(client.get("/metrics").text, "retort_exposures_total", arm="student") >= 12

    client.post("/feedback", json={"request_id": "r-1", "candidate": 1, "event": "click"})
    rows = read_journal([folder], "e", 3600.0)
    assert rows["click"][rows["request_id"] == "r-1"].tolist() == [True]


@pytest.mark.parametrize(
    ("members", "status", "code"),
    [
        ({"parameters": {"experiment": "e"}}, 422, "invalid_request"),
        ({"parameters": {"unit_id": "u", "experiment": "nobody"}}, 404, "unknown_experiment"),
        ({"parameters": {"unit_id": "u", "experiment": 7}}, 422, "wrong_type"),
        ({"parameters": {"unit_id": 1.5}}, 422, "wrong_type"),
        ({"parameters": {"unit_id": True}}, 422, "wrong_type"),
        ({"parameters": {"unit_id": ""}}, 422, "invalid_id"),
        ({"parameters": {"unit_id": "u" * 257}}, 422, "invalid_id"),
        ({"parameters": {"unit_id": "u"}, "outputs": [{"name": "logit"}]}, 422, "invalid_request"),
    ],
)
def test_what_cannot_be_recorded_is_refused(
    client: TestClient, folder: Path, members: dict[str, Any], status: int, code: str
):
    """Rather than scored and lost; nothing of it is in the log."""
    reply = infer(client, **members)

    assert (reply.status_code, reply.json()["code"]) == (status, code)
    assert records(folder) == []


def test_a_model_that_no_arm_has_is_outside(repository: Path, folder: Path, tmp_path: Path):
    path = experiments_file(tmp_path / "e.json", arm("ensemble", 1.0))
    with TestClient(make_app(repository, path, log=folder)) as client:
        wait_until_ready(client)
        reply = infer(client, parameters={"unit_id": "u", "experiment": "e"})

    assert (reply.status_code, reply.json()["code"]) == (422, "outside_experiment")


def test_what_is_too_late_leaves_a_failure_of_its_arm(client: TestClient, folder: Path):
    """Only in an experiment: without one it belongs to no arm."""
    for unit in range(8):
        members = {"id": f"r-{unit}", "parameters": {"unit_id": unit, "experiment": "e", "timeout": 1}}
        assert infer(client, **members).status_code == 504
    assert infer(client, parameters={"unit_id": "u", "timeout": 1}).status_code == 504

    found = records(folder)

    assert len(found) == 8
    assert {(record["kind"], record["arm"], record["code"]) for record in found} == {
        ("failure", "student", "deadline_exceeded")
    }


def test_over_grpc_just_the_same(repository: Path, folder: Path, tmp_path: Path):
    """The same parameters, in another envelope."""
    grpc = pytest.importorskip("grpc")
    from service.oip.rpc.server import RpcServer
    from tests.service.oip.test_rpc import caller, infer_request
    from tests.service.running import started

    path = experiments_file(tmp_path / "e.json", arm("student", 1.0))
    request = infer_request(tensors_of(CONTEXT, ROWS), outputs=("pctr",), id="r")
    request.parameters["unit_id"].string_param = "user-831"
    request.parameters["experiment"].string_param = "e"

    async def scenario() -> Any:
        async with started(make_app(repository, path, log=folder)) as app:
            server = RpcServer(app)
            port = server._server.add_insecure_port("127.0.0.1:0")
            await server._server.start()
            try:
                async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                    return await caller(channel, "ModelInfer")(request)
            finally:
                await server.stop(0.0)

    answer = asyncio.run(scenario())

    (record,) = records(folder)
    assert answer.id == record["request_id"] == "r"
    assert (record["unit"], record["arm"], record["enrolled"]) == ("user-831", "student", True)
    assert json.dumps(record["pctr"])
