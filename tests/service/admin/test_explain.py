"""What a score is made of: how each field was read, what each teacher said. For administrators, of a live service."""

import gzip
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from tests.models.tiny_bundle import write_tiny_bundle
from tests.service.admin.test_gate import BEARER
from tests.service.running import (
    CONTEXT,
    TOKEN,
    Running,
    as_columns,
    candidate,
    make_app,
    metric,
    request_of,
    running_service,
    wait_for,
    wait_until_ready,
)

ARMED = {"experiment": "student-vs-ensemble"}
MODEL_ROUTES = ("/models/ensemble", "/models/ensemble/versions/1")
SECRET = "s3cret-value-of-a-user"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The real program, with an administrator; the first version of `student` is not live."""
    folder = tmp_path_factory.mktemp("explain")
    write_tiny_bundle(folder / "repository", "student", bias=0.0)
    write_tiny_bundle(folder / "repository", "student", bias=0.5)
    write_tiny_bundle(folder / "repository", "ensemble", bias=1.0, teachers=3)
    catalogue = str(folder / "catalogue.ndjson")
    options = ("--repository", str(folder / "repository"), "--catalogue", catalogue)
    with running_service(folder / "log", *options, RETORT_ADMIN_TOKEN=TOKEN) as running:
        yield running


def post(service: Running, path: str, body: Any, headers: dict[str, str] = BEARER) -> tuple[int, dict[str, Any]]:
    """(status, what came), over a connection of its own."""
    connection = service.connection()
    try:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request("POST", path, data, {"content-type": "application/json", **headers})
        response = connection.getresponse()
        text = response.read()
        assert SECRET.encode() not in text
        return response.status, json.loads(text)
    finally:
        connection.close()


@pytest.mark.parametrize("arm", ["student", "ensemble"])
def test_it_explains_what_predict_answers(service: Running, arm: str):
    """The same body, the same model, the same numbers: rows and columns alike."""
    rows = request_of(1, 2, 3, unit_id="user-1", arm=arm, **ARMED)
    columns = {**rows, "candidates": as_columns(rows["candidates"])}

    for body in (rows, columns):
        _, answer = post(service, "/predict", body)
        status, explained = post(service, "/explain", body)

        assert status == 200
        same = ("experiment", "arm", "model", "version")
        assert {name: explained[name] for name in same} == {name: answer[name] for name in same}
        assert explained["pctr"] == pytest.approx(answer["pctr"], rel=1e-6)
        assert explained["forced"]
        assert explained["assigned_arm"] == arm


def test_a_units_own_arm_explains_it(service: Running):
    """As many units as it takes to have met both arms."""
    met = set()
    for number in range(40):
        body = request_of(1, unit_id=f"user-{number}")
        _, answer = post(service, "/predict", body)
        _, explained = post(service, "/explain", body)

        assert explained["arm"] == explained["assigned_arm"] == answer["arm"]
        assert explained["enrolled"]
        met.add(explained["arm"])
    assert met == {"student", "ensemble"}


def test_it_says_of_every_field_whether_it_was_known(service: Running):
    """Of both sides, and of each element of a sequence; nothing of the values is repeated."""
    context = {"device": SECRET, "hour": 13, "age": None, "visited": ["x.org", SECRET], SECRET: SECRET}
    candidates = [{**candidate(1), "tags": []}, {"ad_id": SECRET, "tags": ["sport", SECRET, "film"]}]

    _, explained = post(service, "/models/student/explain", {"context": context, "candidates": candidates, SECRET: 1})

    assert explained["context"]["device"] == "unknown"
    assert explained["context"]["hour"] == "known"
    assert explained["context"]["age"] == "missing"
    assert explained["context"]["premium"] == "missing"
    assert explained["context"]["visited"] == ["known", "known"]  # hashed: nothing is unknown
    assert explained["candidates"]["ad_id"] == ["known", "unknown"]
    assert explained["candidates"]["price"] == ["known", "missing"]
    assert explained["candidates"]["tags"] == [["missing"], ["known", "unknown", "known"]]
    assert explained["ignored_fields"] == 2
    assert set(explained["context"]) == set(CONTEXT)
    assert set(explained["candidates"]) == set(candidate(1))


@pytest.mark.parametrize("route", MODEL_ROUTES)
def test_an_ensemble_shows_its_teachers(service: Running, route: str):
    """Every teacher's logit and the gate's weights, by candidate, under the teachers' names."""
    _, explained = post(service, f"{route}/explain", request_of(1, 2, 3, 4))

    logits, weights = np.array(explained["teacher_logits"]), np.array(explained["gate_weights"])
    assert explained["teachers"] == ["t0", "t1", "t2"]
    assert logits.shape == weights.shape == (4, 3)
    assert np.allclose(weights.sum(axis=1), 1.0)
    assert np.allclose((logits * weights).sum(axis=1), explained["logit"], atol=1e-5)


def test_a_student_has_none(service: Running):
    _, explained = post(service, "/models/student/explain", request_of(1))

    assert "teachers" not in explained
    assert len(explained["logit"]) == len(explained["pctr"]) == 1


def test_a_version_that_is_not_live_can_be_asked(service: Running):
    """What would yesterday's model have said?"""
    live = post(service, "/models/student/explain", request_of(1))[1]
    before = post(service, "/models/student/versions/1/explain", request_of(1))[1]

    assert (live["version"], before["version"]) == (2, 1)
    assert live["logit"][0] - before["logit"][0] == pytest.approx(0.5, abs=1e-5)


def test_candidates_of_the_catalogue_are_explained_in_their_places(service: Running):
    """Those that it lacks are null everywhere, as in an answer."""
    lines = b"".join(json.dumps({"id": f"a{n}", "candidate": candidate(n)}).encode() + b"\n" for n in (1, 2))
    connection = service.connection()
    connection.request("PUT", "/catalogue", lines, {"content-type": "application/x-ndjson", **BEARER})
    assert connection.getresponse().status == 200
    connection.close()
    body = {"context": CONTEXT, "candidate_ids": ["a1", SECRET, "a2"]}

    _, explained = post(service, "/models/ensemble/explain", body)
    _, whole = post(service, "/models/ensemble/explain", request_of(1, 2))

    assert explained["unknown_candidates"] == [1]
    for name in ("logit", "pctr", "teacher_logits", "gate_weights"):
        assert explained[name][1] is None
        assert [explained[name][0], explained[name][2]] == whole[name]
    assert explained["candidates"]["ad_id"] == ["known", None, "known"]
    _, nobody = post(service, "/models/ensemble/explain", {"candidate_ids": [SECRET]})
    assert (nobody["pctr"], nobody["candidates"], nobody["unknown_candidates"]) == ([None], {}, [0])


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "malformed_json"),
        (b"[]", 422, "invalid_request"),
        ({"candidates": []}, 422, "empty_candidates"),
        ({"candidates": [{"price": SECRET}]}, 422, "wrong_type"),
        ({"candidates": [{}], "colour": 1 << 70}, 400, "number_out_of_range"),
        ({"candidates": [{}], "experiment": SECRET}, 404, "unknown_experiment"),
        ({"candidates": [{}], "arm": SECRET}, 404, "unknown_arm"),
        (b" " * (1 << 20), 413, "body_too_large"),
    ],
)
def test_it_refuses_what_predict_refuses(service: Running, body: Any, status: int, code: str):
    """With the same code and the same words."""
    explained = post(service, "/explain", body)

    assert (explained[0], explained[1]["code"]) == (status, code)
    assert explained == post(service, "/predict", body)


def test_a_model_that_is_not_there_and_an_arm_where_there_is_none(service: Running):
    assert post(service, "/models/nobody/explain", request_of(1))[1]["code"] == "unknown_model"
    assert post(service, "/models/student/versions/9/explain", request_of(1))[1]["code"] == "unknown_version"
    assert post(service, "/models/student/explain", request_of(1, arm="student"))[1]["code"] == "outside_experiment"


def test_bodies_as_long_and_compressed_as_predicts_are_taken(service: Running):
    """Not only the 64 KiB of other routes for administrators."""
    many = request_of(*range(1000))
    assert len(json.dumps(many)) > 1 << 16

    status, explained = post(
        service, "/explain", gzip.compress(json.dumps(many).encode()), {**BEARER, "content-encoding": "gzip"}
    )
    assert (status, len(explained["pctr"])) == (200, 1000)
    assert post(service, "/explain", many)[0] == 200


@pytest.mark.parametrize("path", ["/explain", *(f"{route}/explain" for route in MODEL_ROUTES)])
def test_without_the_token_nothing_is_explained(service: Running, path: str):
    """Denied before the body is looked at, and counted."""
    before = metric(service.metrics(), "retort_refused_total", reason="unauthorized")

    status, answer = post(service, path, request_of(1), {})

    assert (status, answer["code"]) == (401, "unauthorized")
    assert metric(service.metrics(), "retort_refused_total", reason="unauthorized") == before + 1


def test_it_is_counted_as_an_answer_and_as_nothing_else(service: Running):
    """A diagnosis is no exposure, no served probability and no missing value of a caller."""
    names = ("retort_exposures_total", "retort_pctr_count", "retort_candidates_count", "retort_missing_values_total")
    before = service.metrics()

    def answered(text: str) -> float:
        return metric(text, "retort_requests_total", route="/explain", code="200")

    post(service, "/explain", {"candidates": [{}]})

    wait_for(lambda: answered(service.metrics()) == answered(before) + 1, "the answer is counted")
    after = service.metrics()
    for name in (*names, "retort_unknown_values_total", "retort_ignored_fields_total"):
        assert metric(after, name) == metric(before, name), name


def test_before_models_are_loaded_it_says_so(repository: Path, tmp_path: Path):
    """As every route that needs one."""
    shutil.copytree(repository, tmp_path / "repository")
    app = make_app(tmp_path / "repository", admin_token=TOKEN)
    with TestClient(app, headers=BEARER) as client:
        wait_until_ready(client)
        app.predictor.plan = None

        reply = client.post("/explain", json=request_of(1))

    assert (reply.status_code, reply.json()["code"]) == (503, "not_ready")


def test_a_full_service_explains_nothing(repository: Path):
    """Callers' requests come first."""
    app = make_app(repository, admin_token=TOKEN, max_in_flight=1)
    with TestClient(app, headers=BEARER) as client:
        wait_until_ready(client)
        app.predictor.admission.in_flight = 1

        reply = client.post("/explain", json=request_of(1))

        app.predictor.admission.in_flight = 0
    assert (reply.status_code, reply.json()["code"]) == (429, "overloaded")
    assert reply.headers["retry-after"] == "1"
