"""Requests made from a bundle, and the naive service that must answer them like ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from starlette.testclient import TestClient

from benchmarks.naive_model import NaiveModel
from benchmarks.naive_service import create_app
from benchmarks.workload import make_requests
from models.bundle import Bundle, read_bundle
from models.graph import graph_inputs
from tests.models.tiny_bundle import tiny_model, write_tiny_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return read_bundle(write_tiny_bundle(tmp_path_factory.mktemp("repository"), "tiny"))


def test_the_same_bundle_and_seed_give_the_same_requests(bundle: Bundle):
    """Two runs ask the same questions; another seed asks others."""
    again = [request.body("x") for request in make_requests(bundle, 5, 10)]

    assert [request.body("x") for request in make_requests(bundle, 5, 10)] == again
    assert [request.body("x") for request in make_requests(bundle, 5, 10, seed=2)] != again
    assert len({bytes(body) for body in again}) == 10


def test_a_request_is_one_the_encoder_takes(bundle: Bundle):
    """Every value has the type of its field, none is ignored, and the body is plain JSON."""
    for request in make_requests(bundle, 20, 50):
        sent: dict[str, Any] = json.loads(request.body("student"))
        context = bundle.encoder.encode_context(sent["context"])
        candidates = bundle.encoder.encode_candidates(sent["candidates"])

        assert sent["experiment"] == "student"
        assert candidates.ids.shape == (20, len(bundle.schema.candidate_id_fields))
        assert context.ignored == candidates.ignored == 0


def test_values_occur_as_often_as_the_manifest_says(bundle: Bundle):
    """The tiny bundle's reference counts every id once: all are drawn alike, missing and unknown ones too."""
    requests = make_requests(bundle, 1, 4000)
    ids = np.concatenate([bundle.encoder.encode_context(request.context).ids for request in requests])
    field = [field.name for field in bundle.schema.context_id_fields].index("device")
    counts = np.bincount(ids[:, field], minlength=bundle.encoder.sizes["device"])

    assert counts.min() > 0
    np.testing.assert_allclose(counts, len(requests) / bundle.encoder.sizes["device"], rtol=0.2)


def test_a_few_ads_are_asked_for_often(bundle: Bundle):
    """Zipf over a pool, as in an ad server: what a cache of candidates would live on."""
    requests = make_requests(bundle, 50, 100)
    rows = [json.dumps(row) for request in requests for row in request.candidates]
    counts = np.sort(np.unique(rows, return_counts=True)[1])[::-1]

    assert len(counts) > 500
    assert counts[:10].sum() > 0.2 * len(rows)


def test_the_naive_service_answers_what_encoder_and_graph_answer(bundle: Bundle):
    """It is slow by its ways, not by being wrong."""
    client = TestClient(create_app(bundle.path))
    session = onnxruntime.InferenceSession(str(bundle.model_path))

    for candidates in (1, 7):
        for request in make_requests(bundle, candidates, 100):
            answer = client.post("/predict", content=request.body("tiny"), headers={"content-type": "application/json"})
            feeds = graph_inputs(
                [bundle.encoder.encode_context(request.context)], [bundle.encoder.encode_candidates(request.candidates)]
            )
            np.testing.assert_allclose(answer.json()["pctr"], session.run(["pctr"], feeds)[0], atol=1e-6)


def test_the_naive_service_looks_each_value_up_as_the_encoder_does():
    """Field by field over the values of the tiny bundle's vocabularies."""
    model = tiny_model()
    encoder = model.encoder

    peer = NaiveModel.__new__(NaiveModel)
    peer.tables = {
        name: values if isinstance(values[0], float) else {value: place + 2 for place, value in enumerate(values)}
        for name, values in encoder.to_vocabularies().items()
    }
    fields = {field.name: json.loads(field.model_dump_json()) for field in encoder.schema.fields}
    column = [field.name for field in encoder.schema.candidate_id_fields]
    for name, values in {
        "ad_id": ["a0", "a39", "none of these", "", None],
        "price": [0, 1, 2.5, 2.718281828459045, 1e308, None],
        "campaign": [0, 7, 2**64 - 1, -5, None],
    }.items():
        for value in values:
            ours = int(encoder.encode_candidates([{name: value}]).ids[0, column.index(name)])
            assert peer.encode_value(fields[name], value) == ours, (name, value)


def test_a_bundle_folder_is_all_that_the_naive_service_needs(bundle: Bundle, tmp_path: Path):
    """It reads the schema, the vocabularies and the graph, as anybody would, and verifies nothing."""
    model = NaiveModel(bundle.path, onnxruntime.InferenceSession(bundle.path / "model.onnx"))

    assert model.name == "tiny"
    assert model.predict({}, [{}]) == pytest.approx([model.predict({}, [{}, {}])[1]], abs=1e-6)
