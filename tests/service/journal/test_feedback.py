"""POST /feedback: what is taken, what is refused and why, and what is kept once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from service.app import FEEDBACK_ROUTE
from service.errors import Refusal
from service.journal.feedback import MAX_EVENTS, decode_events
from tests.service.journal.reading import records
from tests.service.running import make_app, metric, wait_until_ready

CLICK: dict[str, Any] = {"request_id": "r", "candidate": 0, "event": "click"}


@pytest.fixture(scope="module")
def refusing(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TestClient, Path]]:
    """A client and its log, for bodies of which nothing is kept."""
    folder = tmp_path_factory.mktemp("refusing") / "log"
    with TestClient(make_app(repository, log=folder), raise_server_exceptions=False) as client:
        wait_until_ready(client)
        yield client, folder


def test_events_are_kept_before_they_are_acknowledged(client: TestClient, folder: Path):
    """One or many; before their exposure, out of order, and long after it: nothing is looked up."""
    many = [
        {**CLICK, "request_id": "never scored", "time": 1.0},
        {**CLICK, "event": "impression", "candidate": 7, "time": 4e9},
        {"request_id": "r", "event": "conversion", "event_id": "order-9"},
    ]
    one = client.post(FEEDBACK_ROUTE, json=CLICK)
    all_of_them = client.post(FEEDBACK_ROUTE, json=many)

    assert (one.status_code, one.json()) == (200, {"accepted": 1, "duplicates": 0})
    assert (all_of_them.status_code, all_of_them.json()) == (200, {"accepted": 3, "duplicates": 0})
    found = records(folder)
    assert all(record.pop("kind") == "event" and record.pop("received") > 1e9 for record in found)
    assert found == [CLICK, *many]


def test_an_event_sent_again_is_kept_once(client: TestClient, folder: Path):
    """The same request, candidate, kind and event id; its time may differ. Another of any of these is another event."""
    others = [
        {**CLICK, "candidate": 1},
        {**CLICK, "event": "impression"},
        {**CLICK, "event_id": "x"},
        {**CLICK, "request_id": "s"},
    ]
    assert client.post(FEEDBACK_ROUTE, json=[CLICK, {**CLICK, "time": 5.0}]).json() == {"accepted": 1, "duplicates": 1}
    assert client.post(FEEDBACK_ROUTE, json=[CLICK, *others]).json() == {"accepted": 4, "duplicates": 1}
    assert client.post(FEEDBACK_ROUTE, json=others).json() == {"accepted": 0, "duplicates": 4}

    assert len(records(folder)) == 5
    text = client.get("/metrics").text
    assert metric(text, "retort_events_total", event="click", outcome="accepted") == 4
    assert metric(text, "retort_events_total", event="impression", outcome="accepted") == 1
    assert metric(text, "retort_events_total", outcome="duplicate") == 6
    assert metric(text, "retort_log_records_total", kind="event") == 5


def test_a_clock_that_is_ahead_is_counted_and_any_name_is_one_label(client: TestClient, folder: Path):
    """The event is kept as it is: what to make of its time is decided where the log is read."""
    client.post(FEEDBACK_ROUTE, json=[{**CLICK, "time": 1e11}, *({**CLICK, "event": f"e{n}"} for n in range(50))])
    text = client.get("/metrics").text

    assert metric(text, "retort_events_total", event="click", outcome="skewed") == 1
    assert metric(text, "retort_events_total", event="other", outcome="accepted") == 50
    assert 'event="e' not in text
    assert len(records(folder)) == 51


SECRET = "s3cret-v4lue"
WRONG: list[tuple[str, Any, int, str, str | None]] = [
    ("no object", 1, 422, "invalid_request", None),
    ("a text", SECRET, 422, "invalid_request", None),
    ("no event", {**CLICK, "event": None}, 422, "wrong_type", "event"),
    ("an event that is no name", {**CLICK, "event": SECRET.upper()}, 422, "invalid_event", "event"),
    ("a name that is too long", {**CLICK, "event": "e" * 33}, 422, "invalid_event", "event"),
    ("a name with a line feed", {**CLICK, "event": "click\n"}, 422, "invalid_event", "event"),
    ("no request", {**CLICK, "request_id": None}, 422, "wrong_type", "request_id"),
    ("a number for a request", {**CLICK, "request_id": 7}, 422, "wrong_type", "request_id"),
    ("an empty request", {**CLICK, "request_id": ""}, 422, "invalid_id", "request_id"),
    ("a long request", {**CLICK, "request_id": "é" * 129}, 422, "invalid_id", "request_id"),
    ("a click on nothing", {"request_id": "r", "event": "click"}, 422, "invalid_event", "candidate"),
    ("an impression of nothing", {"request_id": "r", "event": "impression"}, 422, "invalid_event", "candidate"),
    ("a negative index", {**CLICK, "candidate": -1}, 422, "invalid_event", "candidate"),
    ("an index that none has", {**CLICK, "candidate": 100_000}, 422, "invalid_event", "candidate"),
    ("an index in words", {**CLICK, "candidate": SECRET}, 422, "wrong_type", "candidate"),
    ("a fraction of an index", {**CLICK, "candidate": 0.5}, 422, "wrong_type", "candidate"),
    ("a boolean for an index", {**CLICK, "candidate": True}, 422, "wrong_type", "candidate"),
    ("milliseconds", {**CLICK, "time": 1.7953e12}, 422, "invalid_event", "time"),
    ("before 1970", {**CLICK, "time": -1}, 422, "invalid_event", "time"),
    ("a time in words", {**CLICK, "time": SECRET}, 422, "wrong_type", "time"),
    ("a long event id", {**CLICK, "event_id": "x" * 257}, 422, "invalid_id", "event_id"),
    ("an event id that is a number", {**CLICK, "event_id": 1}, 422, "wrong_type", "event_id"),
]


@pytest.mark.parametrize(("what", "event", "status", "code", "field"), WRONG, ids=[case[0] for case in WRONG])
def test_one_wrong_event_refuses_all_and_says_which(
    refusing: tuple[TestClient, Path], what: str, event: Any, status: int, code: str, field: str | None
):
    """With the row at fault in a list, and never with what was sent; of the others none is kept."""
    client, folder = refusing
    for body, row in ((event, None), ([CLICK, event, CLICK], 1)):
        reply = client.post(FEEDBACK_ROUTE, json=body)
        problem = reply.json()

        assert (reply.status_code, problem["code"]) == (status, code)
        assert (problem.get("field"), problem.get("row")) == (field, row)
        assert reply.headers["content-type"] == "application/problem+json"
        assert SECRET not in reply.text.lower()
    assert records(folder) == []


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "malformed_json"),
        (b"{", 400, "malformed_json"),
        (b"[]", 422, "invalid_event"),
        (b'{"request_id":"\\ud800","event":"click","candidate":0}', 400, "malformed_json"),
        (b'{"request_id":"r","event":"click","candidate":1e999}', 400, "number_out_of_range"),
        (b'{"request_id":"r","event":"click","candidate":99999999999999999999}', 400, "number_out_of_range"),
        (b'{"request_id":"r","event":"click","candidate":0,"x":99999999999999999999}', 400, "number_out_of_range"),
        (b'{"request_id":"r","event":"click","candidate":0,"time":NaN}', 400, "malformed_json"),
        (b"[" * 5000, 400, "too_deep"),
        (b"[" + b"{}," * (MAX_EVENTS) + b"{}]", 422, "too_many_events"),
        (b" " * ((1 << 19) + 1), 413, "body_too_large"),
    ],
)
def test_bodies_that_are_none_are_refused_like_those_of_predict(
    refusing: tuple[TestClient, Path], body: bytes, status: int, code: str
):
    """By the same rules of JSON and of length."""
    client, folder = refusing
    reply = client.post(FEEDBACK_ROUTE, content=body, headers={"content-type": "application/json"})

    assert (reply.status_code, reply.json()["code"]) == (status, code)
    assert records(folder) == []


def test_what_nobody_reads_is_counted(client: TestClient):
    """As with /predict."""
    client.post(FEEDBACK_ROUTE, json=[{**CLICK, "a": 1, "b": [2]}, {**CLICK, "event": "impression", "c": None}])

    assert metric(client.get("/metrics").text, "retort_ignored_fields_total") == 3


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(st.sampled_from([*CLICK, "time", "event_id", "x"]), inner, max_size=6)
        ),
        max_leaves=12,
    )
)
def test_no_body_fails(body: Any):
    """Whatever JSON comes: events, or a refusal that knows its status."""
    status = 200
    try:
        assert decode_events(json.dumps(body).encode(), 1.0)[0]
    except Refusal as refusal:
        status = json.loads(refusal.body())["status"]
    assert status in (200, 400, 422)
