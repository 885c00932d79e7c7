"""Whatever is sent to the protocol's routes: scores, or a named refusal. Never a 5xx, never nothing."""

import json
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from service.errors import PROBLEMS
from service.oip.tensors import DATATYPES
from tests.service.oip.tensors import FIELDS, HEADER, outputs_in

INFER = "/v2/models/student/infer"
FUZZ = settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])

names = st.sampled_from([*FIELDS.by_name, "candidates", "context", "request_index", "tags_ids", "tags_offsets", "x"])
numbers = st.one_of(
    st.integers(-3, 3),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([0, 1, 2**31, 2**32, 2**53 + 1, 2**63, -(2**63), 2**64 - 1, 1e308, -0.0, 5e-324]),
)
texts = st.one_of(
    st.text(max_size=8), st.sampled_from(["", "a1", "[]", '["film"]', "[1e999]", "[[[", '["\\ud800"]', "null"])
)
scalars = st.one_of(st.none(), st.booleans(), numbers, texts)
junk = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4), max_leaves=8
)
shapes = st.one_of(
    st.lists(st.integers(0, 4), min_size=1, max_size=3),
    st.lists(st.sampled_from([0, 1, 2, 3, 1000, 1001, 2**31, 2**63, -1]), max_size=9),
    junk,
)
sizes = st.one_of(st.integers(0, 40), st.sampled_from([-1, 2**31, 2**63, 2**64 - 1]), junk)
parameters = st.one_of(
    st.none(),
    st.fixed_dictionaries({"binary_data_size": sizes}),
    st.fixed_dictionaries({}, optional={"binary_data_output": junk, "timeout": junk, "shared_memory_region": junk}),
    junk,
)
tensors = st.one_of(
    st.fixed_dictionaries(
        {"name": names, "datatype": st.sampled_from(DATATYPES), "shape": shapes},
        optional={"data": st.lists(scalars, max_size=4) | junk, "parameters": parameters},
    ),
    junk,
)
outputs = st.one_of(
    st.none(),
    st.lists(
        st.fixed_dictionaries(
            {"name": st.sampled_from(["pctr", "logit", "teacher_logits"])},
            optional={"parameters": st.fixed_dictionaries({}, optional={"binary_data": junk, "classification": junk})},
        ),
        max_size=3,
    ),
    junk,
)
requests = st.one_of(
    st.fixed_dictionaries(
        {"inputs": st.lists(tensors, max_size=4)},
        optional={"outputs": outputs, "parameters": parameters, "id": junk, "x": junk},
    ),
    junk,
)


def check(client: TestClient, body: bytes, headers: dict[str, str]) -> None:
    """The promise of this file."""
    reply = client.post(INFER, content=body, headers=headers)

    if reply.status_code == 200:
        found = outputs_in(reply.content, reply.headers.get(HEADER))
        assert all(values.shape[0] >= 1 for values in found.values())
    else:
        problem = reply.json()
        assert 400 <= reply.status_code < 500, (reply.text, body)
        assert PROBLEMS[problem["code"]].status == reply.status_code
        assert problem["error"] == problem["detail"]


@FUZZ
@given(request=requests, binary=st.binary(max_size=60))
@example(request={"inputs": [{"name": "price", "datatype": "FP64", "shape": [1], "data": [1]}]}, binary=b"")
def test_whatever_the_tensors(client: TestClient, request: Any, binary: bytes):
    """Shapes and sizes that do not agree, datatypes that do not fit, numbers beyond any."""
    text = json.dumps(request).encode()

    check(client, text + binary, {HEADER: str(len(text))})


@FUZZ
@given(
    name=names,
    datatype=st.sampled_from(DATATYPES),
    rows=st.integers(0, 4),
    data=st.binary(max_size=40),
    size=st.one_of(st.none(), sizes),
    told=st.one_of(st.none(), st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20)),
)
def test_whatever_the_bytes(
    client: TestClient, name: str, datatype: str, rows: int, data: bytes, size: Any, told: str | None
):
    """Lengths of the JSON, of a tensor and of its elements, each wrong in every way."""
    entry = {"name": name, "datatype": datatype, "shape": [rows]}
    entry["parameters"] = {"binary_data_size": len(data) if size is None else size}
    head = json.dumps({"inputs": [entry]}).encode()

    check(client, head + data, {HEADER: str(len(head)) if told is None else told})


@FUZZ
@given(body=st.binary(max_size=200), headers=st.dictionaries(
    st.sampled_from([HEADER, "content-type", "content-encoding", "accept-encoding"]),
    st.sampled_from(["0", "1", "200", "application/octet-stream", "gzip", "deflate", "zstd", "identity", "*;q=0", ""]),
))  # fmt: skip
def test_whatever_the_body(client: TestClient, body: bytes, headers: dict[str, str]):
    """No JSON at all, or none that a decoder survives."""
    check(client, body, headers)
