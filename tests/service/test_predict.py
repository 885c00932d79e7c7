"""POST /predict and its sisters: what is answered, to whom it is attributed, and that every way in agrees."""

import asyncio
import contextlib
import gzip
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from service.experiments.assignment import bucket_of
from service.scoring.predict import PREDICT
from tests.service.running import (
    as_columns,
    ask,
    expected_pctr,
    make_app,
    metric,
    request_of,
    started,
)

BIAS = {"student": 0.0, "ensemble": 1.0, "control": -1.0}


def test_scores_are_those_of_the_model_that_is_named(client: TestClient):
    """Whichever arm a unit falls into, the answer names the model, and the scores are that model's."""
    for unit in range(20):
        request = request_of(1, 2, 3, unit_id=unit)

        answer = client.post("/predict", json=request).json()

        assert answer["model"] == answer["arm"]
        assert answer["version"] == 1
        assert answer["experiment"] == "student-vs-ensemble"
        assert answer["pctr"] == pytest.approx(expected_pctr(request, BIAS[answer["model"]]), rel=1e-5)


def test_the_answer_has_its_members_in_order_and_no_spaces(client: TestClient):
    """Compact JSON, as the contract prints it."""
    reply = client.post("/predict", json=request_of(1, request_id="r-1", arm="student"))

    head = (
        b'{"request_id":"r-1","experiment":"student-vs-ensemble","arm":"student","model":"student","version":1,"pctr":['
    )
    assert reply.content.startswith(head)
    assert reply.content.endswith(b"]}")
    assert reply.headers["content-type"] == "application/json"


def test_every_pctr_is_the_shortest_decimal_of_its_float32(client: TestClient):
    """Reading the text as a float32 gives the very number that the model computed, in at most 9 digits and a sign."""
    request = request_of(*range(50), arm="student")

    body = client.post("/predict", json=request).text

    texts = body[body.index("[") + 1 : -2].split(",")
    for text in texts:
        digits = text.lower().split("e")[0].replace(".", "").lstrip("0-")
        assert len(digits) <= 9
        value = np.float32(text)
        assert float(np.format_float_positional(value, unique=True)) == float(text)


def test_columns_and_rows_are_two_spellings_of_one_request(client: TestClient):
    """The same candidates answer the same bytes either way."""
    rows = request_of(1, 2, 3, request_id="r", unit_id="u")
    columns = {**rows, "candidates": as_columns(rows["candidates"])}

    assert client.post("/predict", json=rows).content == client.post("/predict", json=columns).content


def test_a_field_that_is_absent_null_or_empty_is_missing(client: TestClient):
    """Three spellings of one thing; no context at all is one more."""
    full = request_of(1, request_id="r", arm="student")
    spellings = []
    for context in ({**full["context"], "device": None}, {**full["context"], "device": ""}):
        spellings.append({**full, "context": context})
    spellings.append({**full, "context": {k: v for k, v in full["context"].items() if k != "device"}})

    answers = {client.post("/predict", json=spelling).content for spelling in spellings}

    assert len(answers) == 1
    none = {k: v for k, v in full.items() if k != "context"}
    empty = client.post("/predict", json={**full, "context": {}}).content
    assert client.post("/predict", json=none).content == empty
    assert client.post("/predict", json={**full, "context": None}).content == empty


def test_a_request_id_is_made_where_none_is_given(client: TestClient):
    """Every request gets one of its own, to which feedback can refer."""
    ids = [client.post("/predict", json=request_of(1)).json()["request_id"] for _ in range(50)]

    assert len(set(ids)) == 50
    assert all(1 <= len(made.encode()) <= 256 for made in ids)


@pytest.mark.parametrize("given", ["r", "é" * 128, "x" * 256, "\u0000", '"quoted"\\', "用户"])
def test_a_request_id_comes_back_as_it_was(client: TestClient, given: str):
    """Any text of up to 256 bytes of UTF-8."""
    assert client.post("/predict", json=request_of(1, request_id=given)).json()["request_id"] == given


@pytest.mark.parametrize(
    ("unit", "hashed"),
    [("user-831", "user-831"), (831, "831"), (-1, "-1"), (2**64 - 1, str(2**64 - 1)), ("用户", "用户"), ("é", "é")],
)
def test_a_unit_gets_the_arm_of_its_bucket(client: TestClient, unit: str | int, hashed: str):
    """The published formula decides, over the text of the unit, an integer being its decimal."""
    arm = "ensemble" if bucket_of("student-vs-ensemble-1", hashed) < 5000 else "student"

    answers = [client.post("/predict", json=request_of(1, unit_id=unit)).json()["arm"] for _ in range(3)]

    assert answers == [arm] * 3


def test_without_a_unit_the_request_id_is_the_unit(client: TestClient):
    """So that a request that is sent again goes the same way."""
    for number in range(10):
        given = f"request-{number}"
        arm = "ensemble" if bucket_of("student-vs-ensemble-1", given) < 5000 else "student"

        assert client.post("/predict", json=request_of(1, request_id=given)).json()["arm"] == arm


def test_a_forced_arm_answers_whatever_the_unit(client: TestClient):
    """For looking at both sides of one request."""
    for arm in ("ensemble", "student"):
        request = request_of(1, unit_id="user-831", experiment="student-vs-ensemble", arm=arm)

        answer = client.post("/predict", json=request).json()

        assert (answer["arm"], answer["model"]) == (arm, arm)
        assert answer["pctr"] == pytest.approx(expected_pctr(request, BIAS[arm]), rel=1e-5)


def test_a_model_route_is_outside_any_experiment(client: TestClient):
    """The live version, or the one that is named; neither experiment nor arm."""
    request = request_of(1, 2, request_id="r")
    for path in ("/models/control/predict", "/models/control/versions/1/predict"):
        answer = client.post(path, json=request).json()

        assert answer == {
            "request_id": "r",
            "experiment": None,
            "arm": None,
            "model": "control",
            "version": 1,
            "pctr": pytest.approx(expected_pctr(request, BIAS["control"]), rel=1e-5),
        }


def test_of_two_members_with_one_name_the_last_counts(client: TestClient):
    """As in every common JSON reader."""
    body = b'{"arm": "ensemble", "arm": "student", "candidates": [{}]}'

    answer = client.post("/predict", content=body, headers={"content-type": "application/json"})

    assert answer.json()["arm"] == "student"


@pytest.mark.parametrize("header", ["application/json", "application/json; charset=utf-8", "Application/JSON", None])
def test_json_may_be_said_in_several_ways_or_not_at_all(client: TestClient, header: str | None):
    """A client that names no type is taken at its word."""
    headers = {} if header is None else {"content-type": header}

    assert client.post("/predict", content=json.dumps(request_of(1)).encode(), headers=headers).status_code == 200


BYTE_FOR_BYTE: list[tuple[str, Any]] = [
    ("/predict", request_of(1, 2, request_id="r", unit_id=7)),
    ("/predict", request_of(request_id="r")),
    ("/predict", request_of(1, request_id="r", arm="nobody")),
    ("/predict", {"candidates": [{"price": "x"}]}),
    ("/predict", [1]),
    ("/models/control/predict", request_of(1, request_id="r")),
    ("/models/nobody/predict", request_of(1, request_id="r")),
    ("/models/control/versions/1/predict", request_of(1, request_id="r")),
    ("/models/control/versions/2/predict", request_of(1, request_id="r")),
    ("/models/control/versions/x/predict", request_of(1, request_id="r")),
]


@pytest.mark.parametrize(("path", "content"), BYTE_FOR_BYTE, ids=lambda value: str(value)[:40])
def test_the_fast_path_answers_byte_for_byte_like_the_route(repository: Path, path: str, content: Any):
    """The shortcut in front of FastAPI is only ever a shortcut: status, headers and body are the same."""

    async def both() -> tuple[Any, Any]:
        async with started(make_app(repository)) as app:
            body = json.dumps(content).encode()
            return await ask(app, path, body), await ask(app.serve_by_fastapi, path, body)

    fast, slow = asyncio.run(both())

    assert (fast.status, fast.headers, fast.body) == (slow.status, slow.headers, slow.body)


def test_both_ways_refuse_a_broken_or_oversized_body_alike(repository: Path):
    """Also where no JSON ever comes to be."""

    async def both() -> list[tuple[Any, Any]]:
        async with started(make_app(repository, max_body_bytes=2000)) as app:
            pairs = []
            for body, headers in (
                (b"{", [("content-type", "application/json")]),
                (b"x" * 3000, [("content-type", "application/json")]),
                (b"x" * 3000, [("content-length", "3000")]),
                (b"{}", [("content-type", "text/plain")]),
                (b"{}", [("content-encoding", "br")]),
                (b"{}", [("content-encoding", "gzip")]),
                (gzip.compress(b" " * 3000 + b"{}"), [("content-encoding", "gzip")]),
            ):
                ways = (app, app.serve_by_fastapi)
                pairs.append(tuple([await ask(way, "/predict", body, headers=headers) for way in ways]))
            return pairs

    for fast, slow in asyncio.run(both()):
        assert fast.status >= 400
        assert (fast.status, fast.headers, fast.body) == (slow.status, slow.headers, slow.body)


def test_requests_that_are_scored_together_get_their_own_answers(repository: Path):
    """Two hundred requests at once, each with other features and another number of candidates, for three models:
    every one gets its own scores."""
    paths = ["/predict", "/models/student/predict", "/models/control/predict", "/models/ensemble/predict"]

    async def all_at_once() -> list[tuple[dict[str, Any], Any]]:
        async with started(make_app(repository, max_in_flight=1000)) as app:
            requests = []
            for number in range(200):
                request = request_of(*range(number, number + 1 + number % 9), request_id=f"r{number}", unit_id=number)
                request["context"] = {**request["context"], "hour": number % 24, "visited": [f"{number}.org"]}
                requests.append((paths[number % 4], request))
            replies = await asyncio.gather(
                *(ask(app, path, json.dumps(request).encode()) for path, request in requests)
            )
            return [(request, reply) for (_, request), reply in zip(requests, replies, strict=True)]

    for request, reply in asyncio.run(all_at_once()):
        answer = reply.json()
        assert answer["request_id"] == request["request_id"]
        assert answer["pctr"] == pytest.approx(expected_pctr(request, BIAS[answer["model"]]), rel=1e-4)


def test_a_body_in_pieces_is_the_same_body(repository: Path):
    """Chunks of any size, empty ones too."""

    async def pieces() -> tuple[Any, Any]:
        async with started(make_app(repository)) as app:
            body = json.dumps(request_of(1, 2, request_id="r")).encode()
            chunks = [body[:1], b"", *(body[i : i + 7] for i in range(1, len(body), 7)), b""]
            return await ask(app, "/predict", body), await ask(app, "/predict", chunks=chunks)

    whole, chunked = asyncio.run(pieces())

    assert whole.body == chunked.body


def test_a_client_that_leaves_is_not_answered(repository: Path):
    """Half a body and then nobody: no answer, no failure, and its place is free again."""

    async def leave() -> tuple[Any, int]:
        async with started(make_app(repository)) as app:

            async def receive() -> dict[str, Any]:
                return messages.pop(0)

            messages = [{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}]
            sent: list[Any] = []

            async def send(message: Any) -> None:
                sent.append(message)

            scope = {"type": "http", "method": "POST", "path": "/predict", "headers": [], "state": {}}
            await app(scope, receive, send)
            return sent, app.predictor.admission.in_flight

    assert asyncio.run(leave()) == ([], 0)


def test_what_was_answered_is_counted(repository: Path):
    """By experiment, arm, model and outcome; candidates and probabilities; missing and unknown by field."""

    async def few() -> tuple[str, list[float]]:
        async with started(make_app(repository)) as app:
            request = request_of(1, 2, arm="student")
            request["candidates"][0] |= {"ad_id": "never seen", "price": None, "nonsense": 1}
            request["more nonsense"] = 1
            first = await ask(app, "/predict", json.dumps(request).encode())
            await ask(app, "/predict", json.dumps(request_of(3, arm="ensemble")).encode())
            await ask(app, "/predict", b"{")
            assert first is not None
            reply = await ask(app, "/metrics", method="GET")
            assert reply is not None
            return reply.body.decode(), first.json()["pctr"]

    text, pctr = asyncio.run(few())

    labels = {"experiment": "student-vs-ensemble", "arm": "student"}
    assert metric(text, "retort_exposures_total", **labels) == 1
    assert metric(text, "retort_request_duration_seconds_count", **labels, model="student", outcome="ok") == 1
    assert metric(text, "retort_requests_total", route="/predict", code="200") == 2
    assert metric(text, "retort_requests_total", route="/predict", code="400") == 1
    assert metric(text, "retort_refused_total", reason="malformed_json") == 1
    assert metric(text, "retort_candidates_count") == 2
    assert metric(text, "retort_candidates_sum") == 3
    assert metric(text, "retort_pctr_count") == 3
    assert metric(text, "retort_pctr_bucket", le="+Inf") == 3
    assert metric(text, "retort_pctr_sum") > sum(pctr)
    assert metric(text, "retort_unknown_values_total", field="ad_id") == 1
    assert metric(text, "retort_missing_values_total", field="price") == 1
    assert metric(text, "retort_ignored_fields_total") == 2
    for stage in ("decode", "encode", "queue", "score", "reply"):
        assert metric(text, "retort_stage_duration_seconds_count", stage=stage) >= 2


def test_a_client_whose_answer_cannot_be_sent_gives_its_place_back_once(repository: Path):
    """Whatever goes wrong in sending, for a scored request as for a refused one: nothing is in flight afterwards."""

    async def send() -> tuple[int, list[int]]:
        async with started(make_app(repository)) as app:
            tried: list[int] = []

            def fail(answer: Any) -> None:
                tried.append(answer.status)
                raise RuntimeError("the connection broke")

            for body in (json.dumps(request_of(1)).encode(), b"{}"):
                with contextlib.suppress(RuntimeError):
                    app.predictor.begin(PREDICT, body, time.perf_counter(), fail)
            while len(tried) < 2:
                await asyncio.sleep(0)
            return app.predictor.admission.in_flight, sorted(tried)

    assert asyncio.run(send()) == (0, [200, 422])
