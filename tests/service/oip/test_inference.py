"""POST /v2/models/{name}/infer: the scores of /predict, in another envelope; and every fault with its code."""

import asyncio
import gzip
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from models.errors import ModelsError
from service.errors import PROBLEMS, Code
from service.oip.tensors import DATATYPES, Tensor, raw_values
from tests.models.tiny_bundle import REQUESTS, tiny_model
from tests.service.bundles import write_slow_ensemble
from tests.service.oip.tensors import HEADER, as_binary, outputs_in, pack, tensor, tensors_of
from tests.service.running import CONTEXT, ask, candidate, make_app, metric, request_of, started

INFER = "/v2/models/student/infer"
SECRET = "s3cret-v4lue"


def pctr_of(client: TestClient, context: dict[str, Any], candidates: list[dict[str, Any]]) -> list[float]:
    """What /predict says of them."""
    reply = client.post("/models/student/predict", json={"context": context, "candidates": candidates})
    pctr: list[float] = reply.json()["pctr"]
    return pctr


def infer(client: TestClient, inputs: list[Any], path: str = INFER, **members: Any) -> Any:
    return client.post(path, json={"inputs": inputs, **members})


def pctr_in(reply: Any) -> list[float]:
    assert reply.status_code == 200, reply.text
    (data,) = [output["data"] for output in reply.json()["outputs"] if output["name"] == "pctr"]
    return data


@pytest.mark.parametrize("index", range(len(REQUESTS)))
def test_scores_are_those_of_predict(client: TestClient, index: int):
    """Missing, unknown and extreme values, sequences: the same float32, bit for bit."""
    context, candidates = REQUESTS[index]
    candidates = [{**row, "campaign": min(row.get("campaign") or 5, 2**63 - 1)} for row in candidates]

    reply = infer(client, tensors_of(context, candidates), outputs=[{"name": "pctr"}])

    assert pctr_in(reply) == pctr_of(client, context, candidates)


@pytest.mark.parametrize("index", range(len(REQUESTS)))
def test_bytes_score_as_predict_does(client: TestClient, index: int):
    """There is no null for integers and booleans among bytes: there a value is given, or no tensor."""
    context, candidates = REQUESTS[index]
    context = {name: value for name, value in context.items() if value is not None}
    candidates = [{**row, "campaign": min(row.get("campaign") or 5, 2**63 - 1)} for row in candidates]

    body, headers = as_binary({"inputs": tensors_of(context, candidates), "outputs": [{"name": "pctr"}]})

    assert pctr_in(client.post(INFER, content=body, headers=headers)) == pctr_of(client, context, candidates)


def test_the_largest_integers_are_unsigned(client: TestClient):
    """UINT64 reaches as far as JSON does."""
    inputs = [tensor("campaign", "UINT64", [0, 2**64 - 1])]
    body, headers = as_binary({"inputs": inputs})
    expected = pctr_of(client, {}, [{"campaign": 0}, {"campaign": 2**64 - 1}])

    assert pctr_in(infer(client, inputs)) == pctr_in(client.post(INFER, content=body, headers=headers)) == expected


def test_json_and_bytes_are_two_spellings_of_one_request(client: TestClient):
    """Whatever the data type: an FP32 in JSON is the float32, widened, as it is in bytes."""
    rows = [candidate(number) for number in range(5)]
    for datatype in ("FP64", "FP32", "FP16"):
        values = [0.1, 1.7, 3.3, None, 2.0]
        inputs = [given for given in tensors_of(CONTEXT, rows) if given["name"] != "price"]
        request = {"inputs": [*inputs, tensor("price", datatype, values)]}
        body, headers = as_binary(request)

        binary = client.post(INFER, content=body, headers=headers)
        plain = client.post(INFER, json=request)

        assert binary.status_code == 200, binary.text
        assert binary.content == plain.content


@pytest.mark.parametrize("datatype", [name for name in DATATYPES if name.startswith(("INT", "UINT", "FP"))])
def test_any_number_will_do_for_a_number(client: TestClient, datatype: str):
    """An integer field takes every width, and floats that are integral; a float field takes integers."""
    rows = [{"price": float(n), "campaign": n} for n in range(3)]
    inputs = [tensor(name, datatype, [0, 1, 2]) for name in ("price", "campaign")]
    body, headers = as_binary({"inputs": inputs})

    assert pctr_in(client.post(INFER, content=body, headers=headers)) == pctr_of(client, {}, rows)
    assert pctr_in(infer(client, inputs)) == pctr_of(client, {}, rows)


def test_shapes_of_one_column_and_data_that_is_nested_are_read(client: TestClient):
    """[N, 1], flat or as its rows; a context of [1], [1, 1], or N times the same."""
    rows = [candidate(1), candidate(2)]
    inputs = tensors_of(CONTEXT, rows)
    nested = [
        {**given, "shape": [len(given["data"]), 1], "data": [[value] for value in given["data"]]} for given in inputs
    ]
    flat = [{**given, "shape": [len(given["data"]), 1]} for given in inputs]
    repeated = [{**given, "shape": [2], "data": given["data"] * (2 // len(given["data"]))} for given in inputs]

    answers = {infer(client, form).content for form in (inputs, nested, flat, repeated)}

    assert len(answers) == 1


def test_rows_may_have_contexts_of_their_own(client: TestClient):
    """Each row is then a request of one candidate; missing and unknown values are counted for each."""
    rows = [candidate(number) for number in range(4)]
    devices, hours = ["phone", "tablet", None, "never seen"], [1, 2, 3, 23]
    inputs = [
        tensor("device", "BYTES", devices),
        tensor("hour", "INT64", hours, [4, 1]),
        tensor("premium", "BOOL", [True]),
        tensor("visited", "BYTES", ['["x.org"]', "", "[]", '["a", "b", "c", "d"]']),
        *tensors_of({}, rows),
    ]

    pctr = pctr_in(infer(client, inputs))

    visited = [["x.org"], None, [], ["a", "b", "c", "d"]]
    for row, own in enumerate(zip(devices, hours, visited, strict=True)):
        context = {**dict(zip(("device", "hour", "visited"), own, strict=True)), "premium": True}
        assert [pctr[row]] == pytest.approx(pctr_of(client, context, [rows[row]]), rel=1e-6)


def test_context_alone_is_a_row_too(client: TestClient):
    """One candidate of which nothing is known; or N of them."""
    assert pctr_in(infer(client, [tensor("hour", "INT64", [5])])) == pctr_of(client, {"hour": 5}, [{}])
    pctr = pctr_in(infer(client, [tensor("hour", "INT64", [5, 6])]))
    assert pctr == [*pctr_of(client, {"hour": 5}, [{}]), *pctr_of(client, {"hour": 6}, [{}])]


def test_all_outputs_are_answered_where_none_is_named(client: TestClient):
    """As the protocol has it: an ensemble adds each teacher's logit and its weight."""
    inputs = tensors_of(CONTEXT, [candidate(1), candidate(2)])

    student = outputs_in(infer(client, inputs).content, None)
    ensemble = outputs_in(infer(client, inputs, "/v2/models/ensemble/infer").content, None)

    assert list(student) == ["pctr", "logit"]
    assert list(ensemble) == ["pctr", "logit", "teacher_logits", "gate_weights"]
    assert ensemble["teacher_logits"].shape == ensemble["gate_weights"].shape == (2, 3)
    expected = (ensemble["teacher_logits"] * ensemble["gate_weights"]).sum(axis=1)
    np.testing.assert_allclose(ensemble["logit"], expected, rtol=1e-6)
    np.testing.assert_allclose(student["pctr"], 1 / (1 + np.exp(-(0.9 * student["logit"] - 0.1))), rtol=1e-6)


def test_outputs_come_in_the_order_asked_for_as_json_or_as_bytes(client: TestClient):
    """Each as it asks, or as the request does; bytes follow the JSON, whose length a header tells."""
    inputs = tensors_of(CONTEXT, [candidate(1), candidate(2)])
    wanted = [{"name": "logit", "parameters": {"binary_data": True}}, {"name": "pctr"}]

    mixed = infer(client, inputs, outputs=wanted)
    plain = infer(client, inputs, outputs=[{"name": "logit"}, {"name": "pctr"}])
    binary = infer(
        client, inputs, outputs=[{"name": "logit"}, {"name": "pctr"}], parameters={"binary_data_output": True}
    )

    assert HEADER not in plain.headers
    assert plain.headers["content-type"] == "application/json"
    assert mixed.headers["content-type"] == binary.headers["content-type"] == "application/octet-stream"
    first = outputs_in(plain.content, None)
    assert list(first) == ["logit", "pctr"]
    for reply in (mixed, binary):
        found = outputs_in(reply.content, reply.headers[HEADER])
        assert list(found) == ["logit", "pctr"]
        for name in first:
            np.testing.assert_array_equal(found[name], first[name])


def test_an_answer_names_the_model_its_version_and_the_request(client: TestClient):
    """An id comes back as it was, and none is made up."""
    inputs = [tensor("hour", "INT64", [5])]
    for path in (INFER, "/v2/models/student/versions/1/infer"):
        answer = infer(client, inputs, path, id="é-1", outputs=[{"name": "pctr"}]).json()
        assert list(answer) == ["model_name", "model_version", "id", "outputs"]
        assert (answer["model_name"], answer["model_version"], answer["id"]) == ("student", "1", "é-1")
    for given in (None, ""):
        assert "id" not in infer(client, inputs, id=given).json()


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_bodies_are_compressed_either_way(client: TestClient, coding: str):
    """A request, and a long answer whose client asks for it; the header's length counts what is expanded."""
    request = {"inputs": tensors_of(CONTEXT, [candidate(number) for number in range(900)])}
    body, headers = as_binary({**request, "parameters": {"binary_data_output": True}})
    packed = gzip.compress(body) if coding == "gzip" else zlib.compress(body)

    plain = client.post(INFER, content=body, headers={**headers, "accept-encoding": "identity"})
    both = client.post(
        INFER, content=packed, headers={**headers, "content-encoding": coding, "accept-encoding": coding}
    )
    short = infer(client, [tensor("hour", "INT64", [5])])

    assert both.headers["content-encoding"] == coding
    assert int(both.headers["content-length"]) < len(plain.content)
    assert both.headers[HEADER] == plain.headers[HEADER]
    assert both.content == plain.content  # which the client has expanded
    assert "content-encoding" not in short.headers


def test_what_has_the_ids_may_send_them(client: TestClient):
    """The graph's own inputs, for the fastest callers: the same scores, from one context, or several."""
    encoder = tiny_model().encoder
    contexts = [CONTEXT, {"device": "tablet"}]
    rows = [candidate(number) for number in range(5)]
    context, other = (encoder.encode_context(values) for values in contexts)
    candidates = encoder.encode_candidates(rows)

    def given(name: str, values: Any, datatype: str = "INT32") -> dict[str, Any]:
        return tensor(name, datatype, values.ravel().tolist(), list(values.shape))

    def ragged(field: str, ids: Any, offsets: Any) -> list[dict[str, Any]]:
        return [given(f"{field}_ids", ids), given(f"{field}_offsets", offsets, "INT64")]

    candidate_side = [given("candidates", candidates.ids), *ragged("tags", *candidates.sequences["tags"])]
    one = [given("context", context.ids), *ragged("visited", *context.sequences["visited"]), *candidate_side]
    ids = np.concatenate([context.ids, other.ids])
    visited = (
        np.concatenate([context.sequences["visited"][0], other.sequences["visited"][0]]),
        np.array([0, 2, 3]),
    )
    two = [given("context", ids), *ragged("visited", *visited), *candidate_side]
    index = given("request_index", np.array([0, 0, 0, 1, 1]))

    assert pctr_in(infer(client, one)) == pctr_of(client, contexts[0], rows)
    body, headers = as_binary({"inputs": one})
    assert pctr_in(client.post(INFER, content=body, headers=headers)) == pctr_of(client, contexts[0], rows)
    expected = [*pctr_of(client, contexts[0], rows[:3]), *pctr_of(client, contexts[1], rows[3:])]
    assert pctr_in(infer(client, [*two, index])) == pytest.approx(expected, rel=1e-6)
    assert infer(client, two).json()["code"] == "invalid_tensor"  # whose are they?


def ids_request(**replaced: Any) -> list[dict[str, Any]]:
    """A good request of two candidates in ids, some tensors replaced (None: left out)."""
    inputs = {
        "context": tensor("context", "INT32", [0, 0, 0, 0], [1, 4]),
        "visited_ids": tensor("visited_ids", "INT32", [0]),
        "visited_offsets": tensor("visited_offsets", "INT32", [0, 1]),
        "candidates": tensor("candidates", "INT32", [0, 0, 0, 2, 1, 2], [2, 3]),
        "tags_ids": tensor("tags_ids", "INT32", [0, 1]),
        "tags_offsets": tensor("tags_offsets", "INT32", [0, 1, 2]),
    }
    return [given for given in ({**inputs, **replaced}).values() if given is not None]


@pytest.mark.parametrize(
    ("replaced", "code"),
    [
        ({"candidates": tensor("candidates", "INT32", [0, 0, 0, 2, 1, -1], [2, 3])}, Code.NUMBER_OUT_OF_RANGE),
        ({"candidates": tensor("candidates", "INT32", [0, 0, 0, 2, 1, 10**6], [2, 3])}, Code.NUMBER_OUT_OF_RANGE),
        ({"candidates": tensor("candidates", "INT64", [0, 0, 0, 2, 1, 2**32], [2, 3])}, Code.NUMBER_OUT_OF_RANGE),
        ({"context": tensor("context", "UINT32", [2**32 - 1, 0, 0, 0], [1, 4])}, Code.NUMBER_OUT_OF_RANGE),
        ({"visited_ids": tensor("visited_ids", "INT32", [10])}, Code.NUMBER_OUT_OF_RANGE),
        ({"candidates": tensor("candidates", "INT32", [0, 0], [2, 1])}, Code.INVALID_TENSOR),
        ({"candidates": tensor("candidates", "INT32", [], [0, 3])}, Code.EMPTY_CANDIDATES),
        ({"candidates": tensor("candidates", "INT32", [], [10**12, 3])}, Code.TOO_MANY_CANDIDATES),
        ({"candidates": tensor("candidates", "INT32", [None] * 6, [2, 3])}, Code.WRONG_TYPE),
        ({"candidates": tensor("candidates", "FP32", [0] * 6, [2, 3])}, Code.INVALID_TENSOR),
        ({"context": None}, Code.INVALID_TENSOR),
        ({"tags_ids": None}, Code.INVALID_TENSOR),
        ({"tags_offsets": tensor("tags_offsets", "INT32", [0, 1])}, Code.INVALID_TENSOR),
        ({"tags_offsets": tensor("tags_offsets", "INT32", [0, 2, 1])}, Code.INVALID_TENSOR),
        ({"tags_offsets": tensor("tags_offsets", "INT32", [1, 1, 2])}, Code.INVALID_TENSOR),
        ({"tags_offsets": tensor("tags_offsets", "INT32", [0, 1, 3])}, Code.INVALID_TENSOR),
        ({"tags_offsets": tensor("tags_offsets", "INT32", [0, -1, 2])}, Code.INVALID_TENSOR),
        (
            {
                "tags_ids": tensor("tags_ids", "INT32", [0] * 5),
                "tags_offsets": tensor("tags_offsets", "INT32", [0, 5, 5]),
            },
            Code.INVALID_TENSOR,
        ),
        ({"index": tensor("request_index", "INT32", [0, 1])}, Code.INVALID_TENSOR),
        ({"index": tensor("request_index", "INT32", [-1, 0])}, Code.INVALID_TENSOR),
    ],
)
def test_an_id_beyond_its_table_never_reaches_the_graph(client: TestClient, replaced: dict[str, Any], code: Code):
    """Nor an offset beyond its ids: a negative one would answer with a wrong row's score."""
    assert infer(client, ids_request()).status_code == 200

    assert infer(client, ids_request(**replaced)).json()["code"] == code


GOOD = tensor("price", "FP64", [1.0, 2.0])

FAULTS: list[tuple[str, Any, Code, str | None, int | None]] = [
    # what, request, code, field, row
    ("a list", [GOOD], Code.INVALID_REQUEST, None, None),
    ("no inputs", {}, Code.MISSING_CANDIDATES, "inputs", None),
    ("no input", {"inputs": []}, Code.MISSING_CANDIDATES, "inputs", None),
    ("inputs of nobody", {"inputs": [tensor(SECRET, "FP32", [1])]}, Code.MISSING_CANDIDATES, "inputs", None),
    ("an object of inputs", {"inputs": {SECRET: GOOD}}, Code.WRONG_TYPE, "inputs", None),
    ("an input that is text", {"inputs": [SECRET]}, Code.WRONG_TYPE, "inputs", None),
    ("no name", {"inputs": [{**GOOD, "name": None}]}, Code.WRONG_TYPE, "inputs", None),
    ("two of one name", {"inputs": [GOOD, GOOD]}, Code.INVALID_TENSOR, "inputs", None),
    ("another datatype", {"inputs": [{**GOOD, "datatype": SECRET}]}, Code.INVALID_TENSOR, "inputs", None),
    ("a bfloat", {"inputs": [{**GOOD, "datatype": "BF16"}]}, Code.INVALID_TENSOR, "inputs", None),
    ("no shape", {"inputs": [{**GOOD, "shape": None}]}, Code.WRONG_TYPE, "inputs", None),
    ("an empty shape", {"inputs": [{**GOOD, "shape": []}]}, Code.INVALID_TENSOR, "inputs", None),
    ("a shape of nine", {"inputs": [{**GOOD, "shape": [1] * 9}]}, Code.INVALID_TENSOR, "inputs", None),
    ("a negative shape", {"inputs": [{**GOOD, "shape": [-1]}]}, Code.INVALID_TENSOR, "inputs", None),
    ("a shape of halves", {"inputs": [{**GOOD, "shape": [2.0]}]}, Code.INVALID_TENSOR, "inputs", None),
    ("a shape of true", {"inputs": [{**GOOD, "shape": [True]}]}, Code.INVALID_TENSOR, "inputs", None),
    ("a matrix", {"inputs": [{**GOOD, "shape": [1, 2]}]}, Code.INVALID_TENSOR, "price", None),
    ("too few values", {"inputs": [{**GOOD, "shape": [3]}]}, Code.INVALID_TENSOR, "price", None),
    ("ragged rows", {"inputs": [{**GOOD, "shape": [2, 1], "data": [[1], [2, 3]]}]}, Code.INVALID_TENSOR, "price", None),
    ("no data", {"inputs": [{**GOOD, "data": None}]}, Code.INVALID_TENSOR, "inputs", None),
    ("data that is text", {"inputs": [{**GOOD, "data": SECRET}]}, Code.WRONG_TYPE, "inputs", None),
    ("parameters that are text", {"inputs": [{**GOOD, "parameters": SECRET}]}, Code.WRONG_TYPE, "inputs", None),
    ("both kinds of data", {"inputs": [{**GOOD, "parameters": {"binary_data_size": 0}}]}, *(
        Code.INVALID_TENSOR, "inputs", None)),
    ("bytes that are not there", {"inputs": [{k: v for k, v in GOOD.items() if k != "data"} | {
        "parameters": {"binary_data_size": 8}}]}, Code.INVALID_TENSOR, "inputs", None),
    ("shared memory", {"inputs": [{**GOOD, "parameters": {"shared_memory_region": SECRET}}]}, *(
        Code.INVALID_TENSOR, "inputs", None)),
    ("an empty tensor", {"inputs": [tensor("price", "FP64", [])]}, Code.EMPTY_CANDIDATES, "inputs", None),
    ("a billion rows", {"inputs": [{**GOOD, "shape": [10**9]}]}, Code.TOO_MANY_CANDIDATES, "inputs", None),
    ("1001 rows", {"inputs": [tensor("price", "FP64", [1] * 1001)]}, Code.TOO_MANY_CANDIDATES, "inputs", None),
    ("a billion times a billion", {"inputs": [{**GOOD, "shape": [10**18, 10**18, 0]}]}, *(
        Code.INVALID_TENSOR, "price", None)),
    ("unequal rows", {"inputs": [GOOD, tensor("ad_id", "BYTES", ["a", "b", "c"])]}, *(
        Code.UNEQUAL_COLUMNS, "price", None)),
    ("a context of three", {"inputs": [GOOD, tensor("hour", "INT64", [1, 2, 3])]}, Code.UNEQUAL_COLUMNS, "hour", None),
    ("contexts of two and three", {"inputs": [tensor("age", "INT64", [1, 2]), tensor("hour", "INT64", [1, 2, 3])]}, *(
        Code.UNEQUAL_COLUMNS, "age", None)),
    ("text for a number", {"inputs": [tensor("price", "FP64", [1, SECRET])]}, Code.WRONG_TYPE, "price", 1),
    ("a half for an integer", {"inputs": [tensor("campaign", "INT64", [1, 0.5])]}, Code.WRONG_TYPE, "campaign", 1),
    ("true for an integer", {"inputs": [tensor("campaign", "INT64", [True])]}, Code.WRONG_TYPE, "campaign", 0),
    ("1 for a boolean", {"inputs": [tensor("premium", "BOOL", [1])]}, Code.WRONG_TYPE, "premium", 0),
    ("a number for text", {"inputs": [tensor("ad_id", "BYTES", ["a", 7])]}, Code.WRONG_TYPE, "ad_id", 1),
    ("BYTES for a number", {"inputs": [tensor("campaign", "BYTES", ["7"])]}, Code.WRONG_TYPE, "campaign", 0),
    ("numbers for a string", {"inputs": [tensor("ad_id", "INT64", [7])]}, Code.WRONG_TYPE, "ad_id", 0),
    ("numbers for a sequence", {"inputs": [tensor("tags", "INT64", [7])]}, Code.WRONG_TYPE, "tags", None),
    ("no list for a sequence", {"inputs": [tensor("tags", "BYTES", ["[]", '"film"'])]}, Code.WRONG_TYPE, "tags", 1),
    ("no JSON for a sequence", {"inputs": [tensor("tags", "BYTES", ["[]", SECRET])]}, Code.MALFORMED_JSON, "tags", 1),
    ("a deep sequence", {"inputs": [tensor("tags", "BYTES", ["[" * 5000])]}, Code.TOO_DEEP, "tags", 0),
    ("a half for an integer field", {"inputs": [tensor("campaign", "FP64", [0.5])]}, Code.WRONG_TYPE, "campaign", 0),
    ("300 in a byte", {"inputs": [tensor("campaign", "INT8", [300])]}, Code.NUMBER_OUT_OF_RANGE, "campaign", None),
    ("-1 unsigned", {"inputs": [tensor("campaign", "UINT64", [-1])]}, Code.NUMBER_OUT_OF_RANGE, "campaign", None),
    ("1e39 in an FP32", {"inputs": [tensor("price", "FP32", [1e39])]}, Code.NUMBER_OUT_OF_RANGE, "price", None),
    ("65 bits", {"inputs": [tensor("campaign", "UINT64", [2**64])]}, Code.NUMBER_OUT_OF_RANGE, None, None),
    ("65 bits that nobody reads", {"inputs": [GOOD], "x": [{"y": 2**64}]}, Code.NUMBER_OUT_OF_RANGE, None, None),
    ("an id that is a number", {"inputs": [GOOD], "id": 7}, Code.WRONG_TYPE, "id", None),
    ("a long id", {"inputs": [GOOD], "id": "é" * 129}, Code.INVALID_ID, "id", None),
    ("parameters that are a list", {"inputs": [GOOD], "parameters": []}, Code.WRONG_TYPE, "parameters", None),
    ("a flag that is text", {"inputs": [GOOD], "parameters": {"binary_data_output": "yes"}}, *(
        Code.WRONG_TYPE, "parameters", None)),
    ("a timeout that is text", {"inputs": [GOOD], "parameters": {"timeout": "1"}}, Code.WRONG_TYPE, "parameters", None),
    ("a timeout in the past", {"inputs": [GOOD], "parameters": {"timeout": -1}}, *(
        Code.INVALID_DEADLINE, "parameters", None)),
    ("a timeout of a microsecond", {"inputs": [GOOD], "parameters": {"timeout": 1}}, *(
        Code.DEADLINE_EXCEEDED, None, None)),
    ("another output", {"inputs": [GOOD], "outputs": [{"name": "pctr"}, {"name": SECRET}]}, *(
        Code.UNKNOWN_OUTPUT, "outputs", None)),
    ("an ensemble's output", {"inputs": [GOOD], "outputs": [{"name": "teacher_logits"}]}, *(
        Code.UNKNOWN_OUTPUT, "outputs", None)),
    ("outputs that are text", {"inputs": [GOOD], "outputs": SECRET}, Code.WRONG_TYPE, "outputs", None),
    ("an output without a name", {"inputs": [GOOD], "outputs": [{}]}, Code.WRONG_TYPE, "outputs", None),
    ("a class", {"inputs": [GOOD], "outputs": [{"name": "pctr", "parameters": {"classification": 1}}]}, *(
        Code.INVALID_TENSOR, "outputs", None)),
]  # fmt: skip


@pytest.mark.parametrize("case", FAULTS, ids=[case[0].replace(" ", "-") for case in FAULTS])
def test_each_fault_has_its_code_its_field_and_its_row(client: TestClient, case: Any):
    """The body of every other refusal, whose `error` the protocol's clients read; nothing of what came in it."""
    _, request, code, field, row = case

    reply = client.post(INFER, content=json.dumps(request).encode())

    problem = reply.json()
    assert (problem["code"], reply.status_code) == (code, PROBLEMS[code].status), problem["detail"]
    assert (problem.get("field"), problem.get("row")) == (field, row), problem["detail"]
    assert reply.headers["content-type"] == "application/problem+json"
    assert problem["error"] == problem["detail"]
    assert SECRET not in reply.text


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/v2/models/nobody/infer", Code.UNKNOWN_MODEL),
        (f"/v2/models/{SECRET}/infer", Code.UNKNOWN_MODEL),
        ("/v2/models/%2e%2e/infer", Code.UNKNOWN_MODEL),
        ("/v2/models/..%2f..%2fetc/infer", Code.NOT_FOUND),
        ("/v2/models/student/versions/9/infer", Code.UNKNOWN_VERSION),
        ("/v2/models/student/versions/01/infer", Code.UNKNOWN_VERSION),
        ("/v2/models/student/versions/x/infer", Code.UNKNOWN_VERSION),
        ("/v2/models/student/infer/", Code.NOT_FOUND),
        ("/v2/models/student/infer%0a", Code.NOT_FOUND),
        ("/v2/nonsense", Code.NOT_FOUND),
    ],
)
def test_what_is_not_there_is_refused_as_everywhere(client: TestClient, path: str, code: Code):
    """404 with `error`; the name is not repeated."""
    reply = infer(client, [GOOD], path)

    assert (reply.status_code, reply.json()["code"]) == (404, code)
    assert reply.json()["error"]
    assert SECRET not in reply.text


def binary_request(
    data: bytes, size: int | None = None, shape: Any = (2,), datatype: str = "FP64", name: str = "price"
) -> tuple[bytes, dict[str, str]]:
    """One tensor as bytes, with what is said of it."""
    given = {
        "name": name,
        "datatype": datatype,
        "shape": list(shape),
        "parameters": {"binary_data_size": len(data) if size is None else size},
    }
    head = json.dumps({"inputs": [given]}).encode()
    return head + data, {HEADER: str(len(head))}


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (binary_request(bytes(16)), None),
        (binary_request(bytes(15)), Code.INVALID_TENSOR),
        (binary_request(bytes(17)), Code.INVALID_TENSOR),
        (binary_request(bytes(16), size=8), Code.INVALID_TENSOR),
        (binary_request(bytes(16), size=17), Code.INVALID_TENSOR),
        (binary_request(bytes(16), size=-1), Code.INVALID_TENSOR),
        (binary_request(bytes(16), size=2**63), Code.INVALID_TENSOR),
        (binary_request(b"", shape=(2**62,)), Code.TOO_MANY_CANDIDATES),
        (binary_request(b"", shape=(500,)), Code.INVALID_TENSOR),
        (binary_request(np.array([np.inf, 1]).tobytes()), Code.WRONG_TYPE),
        (binary_request(np.array([np.nan, 1]).tobytes()), None),
        (binary_request(b"\x02", shape=(1,), datatype="BOOL", name="premium"), Code.INVALID_TENSOR),
        (binary_request(pack("BYTES", ["a", "b"]), datatype="BYTES", name="ad_id"), None),
        (binary_request(pack("BYTES", ["a"]), datatype="BYTES", name="ad_id"), Code.INVALID_TENSOR),
        (binary_request(pack("BYTES", ["a", "b", "c"]), datatype="BYTES", name="ad_id"), Code.INVALID_TENSOR),
        (binary_request(pack("BYTES", ["a", "b"])[:-1], datatype="BYTES", name="ad_id"), Code.INVALID_TENSOR),
        (binary_request(b"\xff\xff\xff\xff", shape=(1,), datatype="BYTES", name="ad_id"), Code.INVALID_TENSOR),
        (binary_request(b"\x01\x00\x00\x00\xff", shape=(1,), datatype="BYTES", name="ad_id"), Code.INVALID_TENSOR),
        (binary_request(b"\x01\x00", shape=(1,), datatype="BYTES", name="ad_id"), Code.INVALID_TENSOR),
        ((b"{}", {HEADER: "3"}), Code.INVALID_TENSOR),
        ((b"{}", {HEADER: "-1"}), Code.INVALID_TENSOR),
        ((b"{}", {HEADER: "9" * 5000}), Code.INVALID_TENSOR),
        ((b"{}", {HEADER: "0x1"}), Code.INVALID_TENSOR),
        ((b"{}", {HEADER: "\u00b2".encode().decode("latin-1")}), Code.INVALID_TENSOR),
        ((b'{"inputs":[]}xx', {HEADER: "13"}), Code.INVALID_TENSOR),
        ((b'{"inputs":[]}xx', {}), Code.MALFORMED_JSON),
        ((b"", {HEADER: "0"}), Code.MALFORMED_JSON),
        ((bytes(100), {"content-type": "application/octet-stream"}), Code.MALFORMED_JSON),
        ((b"{}", {"content-type": "text/plain"}), Code.UNSUPPORTED_MEDIA_TYPE),
    ],
)  # fmt: skip
def test_lengths_that_do_not_agree_are_refused(
    client: TestClient, request_: tuple[bytes, dict[str, str]], code: Code | None
):
    """Of the body, the JSON, the tensors, their elements; no arithmetic of a client's is trusted."""
    body, headers = request_

    reply = client.post(INFER, content=body, headers={name: value.encode("latin-1") for name, value in headers.items()})

    assert reply.status_code == (200 if code is None else PROBLEMS[code].status), reply.text
    assert code is None or reply.json()["code"] == code


def test_inputs_of_other_names_are_ignored_and_counted(client: TestClient):
    """As fields of /predict are; a wrong shape of theirs is nobody's fault."""
    before = metric(client.get("/metrics").text, "retort_ignored_fields_total")

    reply = infer(client, [GOOD, tensor("nonsense", "FP32", [1, 2, 3], [3]), tensor("position", "INT64", [1])], more=1)

    assert pctr_in(reply) == pctr_of(client, {}, [{"price": 1.0}, {"price": 2.0}])
    assert metric(client.get("/metrics").text, "retort_ignored_fields_total") == before + 3


def test_what_was_answered_is_counted_as_everywhere(repository: Path):
    """In the metrics of /predict: by route, model, outcome, stage, field; and in the statistics by version."""

    async def few() -> tuple[str, Any]:
        async with started(make_app(repository)) as app:
            good = {"inputs": [tensor("ad_id", "BYTES", ["a1", "never seen", None])], "outputs": [{"name": "pctr"}]}
            for request in (good, {**good, "outputs": None}, {"inputs": [GOOD], "outputs": [{"name": "x"}]}):
                await ask(app, INFER, json.dumps(request).encode())
            await ask(app, INFER, b"{")
            metrics = await ask(app, "/metrics", method="GET")
            stats = await ask(app, "/v2/models/student/versions/1/stats", method="GET")
            assert metrics is not None
            assert stats is not None
            return metrics.body.decode(), stats.json()

    text, stats = asyncio.run(few())

    route = "/v2/models/{name}/infer"
    assert metric(text, "retort_requests_total", route=route, code="200") == 2
    assert metric(text, "retort_requests_total", route=route, code="422") == 1
    assert metric(text, "retort_requests_total", route=route, code="400") == 1
    assert metric(text, "retort_refused_total", reason="unknown_output") == 1
    assert metric(text, "retort_request_duration_seconds_count", model="student", outcome="ok", arm="") == 2
    assert metric(text, "retort_request_duration_seconds_count", model="student", outcome="refused", arm="") == 1
    assert metric(text, "retort_candidates_sum") == metric(text, "retort_pctr_count") == 6
    assert metric(text, "retort_unknown_values_total", field="ad_id") == 2
    assert metric(text, "retort_missing_values_total", field="ad_id") == 2
    for stage in ("decode", "encode", "queue", "score", "reply"):
        assert metric(text, "retort_stage_duration_seconds_count", stage=stage) >= 2
    (model,) = stats["model_stats"]
    assert (model["name"], model["version"], model["inference_count"], model["execution_count"]) == (
        "student",
        "1",
        6,
        2,
    )
    assert model["last_inference"] > 1_700_000_000_000
    parts = model["inference_stats"]
    assert (parts["success"]["count"], parts["fail"]["count"]) == (2, 1)
    assert parts["success"]["ns"] > parts["compute_infer"]["ns"] > 0
    assert parts["fail"]["ns"] > 0


def test_it_shares_admission_with_predict(repository: Path):
    """One count of requests in flight: beyond it 429 before the body is read, whichever route it is for."""

    async def beyond() -> tuple[Any, Any, int]:
        async with started(make_app(repository, max_in_flight=1)) as app:
            body = json.dumps({"inputs": [GOOD]}).encode()
            app.predictor.admission.in_flight = 1
            refused = await ask(app, INFER, b"no JSON")
            app.predictor.admission.in_flight = 0
            return refused, await ask(app, INFER, body), app.predictor.admission.in_flight

    refused, answered, left = asyncio.run(beyond())

    assert (refused.status, refused.json()["code"], refused.headers["retry-after"]) == (429, "overloaded", "1")
    assert answered.status == 200
    assert left == 0


@pytest.mark.parametrize(("rows", "places"), [(1, 1), (30, 3), (200, 5)])
def test_many_candidates_take_more_places_as_in_predict(repository: Path, rows: int, places: int):
    """Or whoever sends tensors would have five times as much scored before somebody is refused. They are given back
    whether it is scored or fails."""

    async def taken() -> tuple[list[int], list[int], int]:
        async with started(make_app(repository)) as app:
            predictor, seen = app.predictor, []
            score = predictor.queue.score

            async def watched(*arguments: Any) -> Any:
                seen.append(predictor.admission.in_flight)
                if len(seen) == 2:
                    raise RuntimeError("it failed")
                return await score(*arguments)

            predictor.queue.score = watched  # type: ignore[method-assign]
            content = {"inputs": tensors_of(CONTEXT, [candidate(at) for at in range(rows)])}
            body = json.dumps({**content, "outputs": [{"name": "pctr"}]}).encode()
            replies = [await ask(app, INFER, body) for _ in range(2)]
            return [reply.status for reply in replies if reply], seen, predictor.admission.in_flight

    assert asyncio.run(taken()) == ([200, 500], [places, places], 0)


def test_nothing_is_answered_before_the_models_are_proven(repository: Path):
    """503 on every route of a model; the server itself is alive."""

    async def early() -> dict[str, Any]:
        app = make_app(repository)
        paths = ["/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/student", "/v2/models/student/ready"]
        found = {path: await ask(app, path, method="GET") for path in [*paths, "/v2/models/stats"]}
        found[INFER] = await ask(app, INFER, b"{}")
        return {path: reply.status if reply else None for path, reply in found.items()}

    assert asyncio.run(early()) == {
        "/v2": 200,
        "/v2/health/live": 200,
        "/v2/health/ready": 503,
        "/v2/models/student": 503,
        "/v2/models/student/ready": 503,
        "/v2/models/stats": 503,
        INFER: 503,
    }


BYTE_FOR_BYTE: list[Any] = [
    {"inputs": tensors_of(CONTEXT, [candidate(1)]), "id": "x"},
    {"inputs": tensors_of(CONTEXT, [candidate(1)]), "parameters": {"binary_data_output": True}},
    {"inputs": []},
    [],
]


@pytest.mark.parametrize("path", [INFER, "/v2/models/student/versions/1/infer", "/v2/models/nobody/infer"])
@pytest.mark.parametrize("content", BYTE_FOR_BYTE, ids=range(len(BYTE_FOR_BYTE)))
def test_the_fast_path_answers_byte_for_byte_like_the_route(repository: Path, path: str, content: Any):
    """The shortcut in front of FastAPI is only ever a shortcut."""

    async def both() -> tuple[Any, Any]:
        async with started(make_app(repository)) as app:
            body = json.dumps(content).encode()
            return await ask(app, path, body), await ask(app.serve_by_fastapi, path, body)

    fast, slow = asyncio.run(both())

    assert (fast.status, fast.headers, fast.body) == (slow.status, slow.headers, slow.body)


def test_requests_that_are_scored_together_get_their_own_answers(repository: Path):
    """A hundred at once, with /predict between them: every one gets its own scores, to the last bits of float32, which
    depend on how many rows a run has."""

    async def all_at_once() -> list[tuple[list[float], list[float]]]:
        async with started(make_app(repository, max_in_flight=1000)) as app:
            rows = [[candidate(number + at) for at in range(1 + number % 7)] for number in range(100)]
            asked = []
            for number, own in enumerate(rows):
                outputs = [{"name": "pctr"}] if number % 2 else None
                request = {"inputs": tensors_of({**CONTEXT, "hour": number % 24}, own), "outputs": outputs}
                asked.append(ask(app, INFER, json.dumps(request).encode()))
                plain = {"context": {**CONTEXT, "hour": number % 24}, "candidates": own}
                asked.append(ask(app, "/models/student/predict", json.dumps(plain).encode()))
            replies = await asyncio.gather(*asked)
            pairs = zip(replies[::2], replies[1::2], strict=True)
            return [(one.json()["outputs"][0]["data"], other.json()["pctr"]) for one, other in pairs if one and other]

    pairs = asyncio.run(all_at_once())

    assert len(pairs) == 100
    for one, other in pairs:
        assert one == pytest.approx(other, rel=1e-5)


def test_a_model_that_is_too_slow_for_the_timeout_is_refused(tmp_path: Path):
    """504, in time; the deadline counts from the first byte, as deadline_ms does."""
    write_slow_ensemble(tmp_path, "ensemble")

    async def late() -> tuple[Any, Any]:
        async with started(make_app(tmp_path)) as app:
            path = "/v2/models/ensemble/infer"
            body = {"inputs": [GOOD], "parameters": {"timeout": 2000}}
            first = await ask(app, path, json.dumps(body).encode())
            named = await ask(app, path, json.dumps({**body, "outputs": [{"name": "pctr"}]}).encode())
            return first, named

    for reply in asyncio.run(late()):
        assert (reply.status, reply.json()["code"]) == (504, "deadline_exceeded")


def test_an_error_of_ours_tells_nothing(repository: Path, caplog: pytest.LogCaptureFixture):
    """500 with the usual body; the log has the failure, and the place is free again."""

    async def broken() -> tuple[Any, int]:
        async with started(make_app(repository)) as app:

            def fail(*_: Any) -> None:
                raise ModelsError(SECRET)

            for scorer in app.registry.loaded.values():
                scorer.run = fail  # type: ignore[method-assign,assignment]
            return await ask(app, INFER, json.dumps({"inputs": [GOOD]}).encode()), app.predictor.admission.in_flight

    reply, left = asyncio.run(broken())

    assert (reply.status, reply.json()["code"], left) == (500, "internal", 0)
    assert SECRET not in reply.body.decode()
    assert SECRET in caplog.text


def test_the_examples_of_the_description_are_answered(client: TestClient):
    """With members in the order of the example answers."""
    paths = client.get("/openapi.json").json()["paths"]
    for path in ("/v2/models/{name}/infer", "/v2/models/{name}/versions/{version}/infer"):
        operation = paths[path]["post"]
        examples = operation["requestBody"]["content"]["application/json"]["examples"]
        shown = operation["responses"]["200"]["content"]["application/json"]["examples"]
        for example, answer in zip(examples.values(), shown.values(), strict=True):
            reply = client.post(path.format(name="student", version=1), json=example["value"])

            assert reply.status_code == 200
            assert list(reply.json()) == list(answer["value"])
            assert [o.keys() for o in reply.json()["outputs"]] == [o.keys() for o in answer["value"]["outputs"]]


def test_request_of_predict_is_refused_by_name(client: TestClient):
    """Whoever sends it here is told what was expected."""
    reply = client.post(INFER, json=request_of(1))

    assert (reply.status_code, reply.json()["detail"]) == (422, "expected `inputs`")


@pytest.mark.parametrize("texts", [["a", "", "é", "a\0b"], ["\0"], [""], ["", "\0\0", ""], ["é" * 100, "phone"]])
def test_elements_of_bytes_may_be_any_text(texts: list[str]):
    """Empty ones, and such as hold a NUL."""
    read = Tensor("ad_id", "BYTES", (len(texts),), memoryview(pack("BYTES", texts)))

    assert raw_values(read, "ad_id") == texts


def test_the_element_at_fault_is_named(client: TestClient):
    """The row whose bytes are no UTF-8, or end too early."""
    good = pack("BYTES", ["a", "b"])
    bad = (good + b"\x01\0\0\0\xff", good + b"\x02\0\0\0x", good + b"\x02\0", good)
    for data, row in (*((data, 2) for data in bad), (b"\x09\0\0\0x" + good, 1), (b"\x99\0\0\0" + good, 0)):
        body, headers = binary_request(data, shape=(3,), datatype="BYTES", name="ad_id")

        problem = client.post(INFER, content=body, headers=headers).json()

        assert (problem["code"], problem["field"], problem["row"]) == ("invalid_tensor", "ad_id", row)


def test_integers_sent_as_floats_are_the_integers_they_are(client: TestClient):
    """With NaN for those that are missing; -0.0 and the greatest among them."""
    values = [0.0, -0.0, 7.0, float(2**53), float(2**62), -(2.0**63), None]
    rows = [{"campaign": None if value is None else int(value)} for value in values]
    inputs = [tensor("campaign", "FP64", values)]
    body, headers = as_binary({"inputs": inputs})

    assert pctr_in(client.post(INFER, content=body, headers=headers)) == pctr_of(client, {}, rows)
    assert pctr_in(infer(client, inputs)) == pctr_of(client, {}, rows)
