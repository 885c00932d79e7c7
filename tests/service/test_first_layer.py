"""The first layer's share of an ad, computed ahead: the same scores to the bit, or the graph as it is."""

import asyncio
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from models.bundle import Bundle, read_bundle, write_bundle
from models.encoder import EncodedRows, Encoder
from models.golden import Golden, GoldenRequest
from models.graph import LOGIT, PCTR, graph_inputs
from models.manifest import Calibration
from models.schema import FeatureSchema
from service.catalogue.lines import read_catalogue
from service.scoring.first_layer import CatalogueRows, FirstLayer, Parts, shares_of, split
from service.scoring.scorer import Scorer
from tests.models.tiny_bundle import TinyModel, tiny_card
from tests.service.running import ask, make_app, started

WIDTH, ROWS = 5, 40
RANDOM = np.random.default_rng(7)
WEIGHTS = {
    "table": RANDOM.normal(size=(ROWS, 3)).astype(np.float32),
    "flat": np.array([-1, 6], np.int64),
    "from_context": RANDOM.normal(size=(6, WIDTH)).astype(np.float32),
    "from_candidate": RANDOM.normal(size=(6, WIDTH)).astype(np.float32),
    "last": RANDOM.normal(size=(WIDTH,)).astype(np.float32),
}


def graph(**changes: Any) -> onnx.ModelProto:
    """A student of two fields a side. `changes`: nodes by their output, other ones in their place; None: left out."""
    nodes = {
        "context_vectors": ("Gather", ["table", "context"], {}),
        "context_flat": ("Reshape", ["context_vectors", "flat"], {}),
        "per_request": ("MatMul", ["context_flat", "from_context"], {}),
        "spread": ("Gather", ["per_request", "request_index"], {}),
        "candidate_vectors": ("Gather", ["table", "candidates"], {}),
        "candidate_flat": ("Reshape", ["candidate_vectors", "flat"], {}),
        "first": ("Gemm", ["candidate_flat", "from_candidate", "spread"], {"alpha": 0.5}),
        "relu": ("Relu", ["first"], {}),
        "logit": ("MatMul", ["relu", "last"], {}),
        "pctr": ("Sigmoid", ["logit"], {}),
    }
    order = [name for name in changes if name not in nodes]  # what is new stands before what first takes it
    made = [
        helper.make_node(op, inputs, [name], **attributes)
        for name, (op, inputs, attributes) in {
            **{name: nodes[name] for name in list(nodes)[:6]},
            **{name: changes[name] for name in order},
            **{name: changes.get(name, nodes[name]) for name in list(nodes)[6:]},
        }.items()
    ]
    kinds = {"context": ["R", 2], "candidates": ["N", 2], "request_index": ["N"]}
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT32, shape) for name, shape in kinds.items()]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N"]) for name in (LOGIT, PCTR)]
    weights = [numpy_helper.from_array(values, name) for name, values in WEIGHTS.items()]
    model = helper.make_graph(made, "student", inputs, outputs, weights)
    return helper.make_model(model, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


ADDED = {"product": ("MatMul", ["candidate_flat", "from_candidate"], {})}
FORMS = {
    "Gemm": {},
    "Gemm with a beta of one": {
        "first": ("Gemm", ["candidate_flat", "from_candidate", "spread"], {"alpha": 0.5, "beta": 1.0})
    },
    "Add": {**ADDED, "first": ("Add", ["product", "spread"], {})},
    "Add, the other way round": {**ADDED, "first": ("Add", ["spread", "product"], {})},
}
OTHERS = {
    "what is added is scaled": {"first": ("Gemm", ["candidate_flat", "from_candidate", "spread"], {"beta": 2.0})},
    "they meet in a product": {**ADDED, "first": ("Mul", ["product", "spread"], {})},
    "they meet twice": {**ADDED, "sum": ("Add", ["product", "spread"], {}), "first": ("Add", ["sum", "spread"], {})},
    "the context is added to itself": {"first": ("Add", ["spread", "spread"], {})},
    "a share that knows the context": {**ADDED, "more": ("Mul", ["product", "per_request"], {}),
                                       "first": ("Add", ["more", "spread"], {})},
    "the candidate is asked again": {
        "wide": ("ReduceMean", ["candidate_vectors"], {"keepdims": 0}), "logit": ("Add", ["wide", "wide"], {}),
    },
    "nothing is spread": {"first": ("Gemm", ["candidate_flat", "from_candidate"], {})},
}  # fmt: skip


def session(model: bytes, folder: Path | None = None) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if folder is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def scores(layer: FirstLayer, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """logit and pctr by shares that were computed one by one, in a table in another order."""
    ids = feeds["candidates"]
    order = np.random.default_rng(3).permutation(len(ids))
    table = np.concatenate([layer.shares(ids[place : place + 1]) for place in order])
    return list(layer.run([LOGIT, PCTR], feeds, table, np.argsort(order).astype(np.int32)))


@pytest.mark.parametrize("form", FORMS)
def test_the_parts_score_as_the_whole(form: str):
    """To the bit, of several requests in one run."""
    model = graph(**FORMS[form]).SerializeToString()
    parts = split(model)
    assert parts is not None
    for part in parts:
        onnx.checker.check_model(onnx.load_model_from_string(part))
    feeds = {
        "context": RANDOM.integers(0, ROWS, (3, 2), np.int32),
        "candidates": RANDOM.integers(0, ROWS, (30, 2), np.int32),
        "request_index": np.repeat(np.arange(3, dtype=np.int32), 10),
    }

    found = scores(FirstLayer(parts, session), feeds)

    for got, expected in zip(found, session(model).run([LOGIT, PCTR], feeds), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_weights_may_lie_beside_the_graph(tmp_path: Path):
    """As a bundle's external data do."""
    path = tmp_path / "model.onnx"
    onnx.save(graph(), path, save_as_external_data=True, location="model.onnx.data", size_threshold=100)
    parts = split(path.read_bytes())
    assert parts is not None
    feeds = {
        "context": np.array([[1, 2]], np.int32),
        "candidates": np.array([[3, 4], [5, 6]], np.int32),
        "request_index": np.zeros(2, np.int32),
    }

    found = scores(FirstLayer(parts, lambda part: session(part, tmp_path)), feeds)

    np.testing.assert_array_equal(found[1], session(str(path)).run([PCTR], feeds)[0])  # type: ignore[arg-type]


@pytest.mark.parametrize("other", OTHERS)
def test_a_graph_of_another_form_has_no_parts(other: str):
    assert split(graph(**OTHERS[other]).SerializeToString()) is None


def test_what_is_cut_short_is_refused():
    """Anywhere in the graph."""
    model = graph().SerializeToString()
    began = model.index(b"table") - 8
    for end in range(began, len(model) - 20, 7):
        with pytest.raises(ValueError, match="cut short"):
            split(model[:end])


def test_a_run_has_shares_where_all_its_candidates_have_them_of_one_catalogue():
    """A request that came before a new catalogue is still of the old one."""

    def rows(table: np.ndarray | None, *places: int) -> EncodedRows:
        ids = np.zeros((len(places), 2), np.int32)
        if table is None:
            return EncodedRows(ids, {}, {}, {}, 0)
        return CatalogueRows(ids, {}, {}, {}, 0, table, np.array(places, np.int32))

    old, new = np.zeros((9, 3), np.float32), np.zeros((9, 3), np.float32)

    found = shares_of([rows(old, 1, 2), rows(old, 8)])
    assert found is not None
    assert found[0] is old
    assert found[1].tolist() == [1, 2, 8]
    assert shares_of([rows(old, 1), rows(new, 2)]) is None
    assert shares_of([rows(old, 1), rows(None, 2)]) is None
    assert shares_of([rows(None, 1), rows(old, 2)]) is None


SCHEMA = """
label: {column: click}
timestamp: {column: time, format: epoch}
unit: {column: user}
fields:
  - {name: device, type: string, role: context, kind: categorical, encoding: {method: vocabulary}}
  - {name: slot, type: integer, role: context, kind: categorical, encoding: {method: hash, buckets: 16}}
  - {name: ad_id, type: string, role: candidate, kind: categorical, encoding: {method: vocabulary, max_size: 50}}
  - {name: campaign, type: integer, role: candidate, kind: categorical, encoding: {method: hash, buckets: 16}}
"""
ADS = [{"ad_id": f"a{number}", "campaign": number} for number in range(30)]
REQUESTS = [({"device": "phone", "slot": 3}, ADS[:7]), ({}, ADS[3:]), ({"device": "desktop"}, ADS[5:6])]


def bundle_of(root: Path, model: onnx.ModelProto, schema_text: str, requests: Any) -> Bundle:
    """A bundle of this graph in a repository; the golden rows are the requests."""
    schema = FeatureSchema.from_text(schema_text)
    encoder = Encoder(schema, {"device": ["phone", "desktop"], "ad_id": [ad["ad_id"] for ad in ADS[:25]]})
    run = session(model.SerializeToString()).run
    golden = []
    for context, candidates in requests:
        feeds = graph_inputs([encoder.encode_context(context)], [encoder.encode_candidates(candidates)])
        logit, pctr = (tuple(values.tolist()) for values in run([LOGIT, PCTR], feeds))
        golden.append(GoldenRequest(context=context, candidates=tuple(candidates), logit=logit, pctr=pctr))
    starts = dict.fromkeys((field.name for field in schema.fields), 0)
    card = tiny_card(TinyModel(encoder, WEIGHTS["last"], starts, 0.0, Calibration(scale=1.0, bias=0.0)))
    facts = {"encoder": encoder, "card": card, "golden": Golden(requests=tuple(golden))}
    return read_bundle(write_bundle(root, "student", model=model.SerializeToString(), **facts))


@pytest.fixture
def student(tmp_path: Path) -> Bundle:
    """A student whose graph has the form, in a repository of its own."""
    return bundle_of(tmp_path / "repository", graph(), SCHEMA, REQUESTS)


UNSCALED = ("Gemm", ["candidate_flat", "from_candidate", "spread"], {})


@pytest.mark.parametrize(
    "broken",
    [
        lambda parts: Parts(parts.then, parts.ahead),
        lambda parts: Parts(parts.ahead, parts.then[:-9]),
        lambda parts: split(
            graph(first=("Gemm", ["candidate_flat", "from_candidate", "spread"], {})).SerializeToString()
        ),
    ],
    ids=["swapped", "cut", "another"],
)
def test_parts_that_do_not_give_the_golden_scores_are_not_used(
    student: Bundle,
    broken: Callable[[Parts], Parts],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    """The log says why, and the graph itself serves."""
    bundle = student
    assert Scorer(bundle, share_bytes=1 << 20)._first_layer is not None
    monkeypatch.setattr("service.scoring.scorer.split", lambda model: broken(split(model)))  # type: ignore[arg-type]

    with caplog.at_level(logging.WARNING):
        scorer = Scorer(bundle, share_bytes=1 << 20)

    assert scorer._first_layer is None
    assert "not computed ahead" in caplog.text
    golden = bundle.golden.requests[0]
    inputs = [bundle.encoder.encode_context(golden.context)], [bundle.encoder.encode_candidates(golden.candidates)]
    np.testing.assert_allclose(scorer.score(*inputs), golden.pctr, atol=1e-6)
    np.testing.assert_allclose(scorer.run([PCTR], graph_inputs(*inputs))[0], golden.pctr, atol=1e-6)


@pytest.mark.parametrize(("allowed", "has_shares"), [(1 << 20, True), (0, False), (4 * WIDTH * 29, False)])
def test_by_ids_the_answer_is_that_of_the_candidates(student: Bundle, tmp_path: Path, allowed: int, has_shares: bool):
    """To the byte, alone and where both share a run; within the memory that is allowed, or without shares."""
    experiment = {"name": "one", "salt": "s", "default": True, "arms": [{"name": "a", "model": "student", "weight": 1}]}
    (tmp_path / "experiments.json").write_text(json.dumps({"format_version": 1, "experiments": [experiment]}))
    requests = student.golden.requests
    lines = "".join(json.dumps({"id": f"id-{place}", "candidate": ad}) + "\n" for place, ad in enumerate(ADS))
    (tmp_path / "ads.ndjson").write_text(f'{{"retort_catalogue":1}}\n{lines}')
    bodies = []
    for number, request in enumerate(requests):
        named = {"candidate_ids": [f"id-{ADS.index(candidate)}" for candidate in request.candidates]}
        for said in (named, {"candidates": list(request.candidates)}):
            bodies.append(json.dumps({"request_id": f"r-{number}", "context": request.context, **said}).encode())

    async def answers() -> tuple[list[bytes], list[bytes], int]:
        app = make_app(
            tmp_path / "repository",
            experiments=tmp_path / "experiments.json",
            catalogue=tmp_path / "ads.ndjson",
            catalogue_share_bytes=allowed,
        )
        async with started(app):
            alone = [(await ask(app, "/predict", body)).body for body in bodies]  # type: ignore[union-attr]
            together = await asyncio.gather(*(ask(app, "/predict", body) for body in bodies))
            (scorer,) = app.registry.loaded.values()
            return alone, [reply.body for reply in together if reply is not None], scorer.catalogue.share_bytes

    alone, together, share_bytes = asyncio.run(answers())

    assert alone[0::2] == alone[1::2]
    assert [json.loads(answer)["pctr"] for answer in together] == [
        pytest.approx(json.loads(answer)["pctr"], abs=1e-6) for answer in alone
    ]
    assert (0 < share_bytes <= allowed) is has_shares


def with_sequences() -> onnx.ModelProto:
    """The same student, to whose logit the number of an ad's tags is added."""
    model = graph()
    names = ("tags_ids", "tags_offsets")
    model.graph.input.extend(helper.make_tensor_value_info(name, TensorProto.INT32, [f"{name}_n"]) for name in names)
    bounds = {"zero": [0], "one": [1], "end": [2**40], "last_but_one": [-1]}
    model.graph.initializer.extend(numpy_helper.from_array(np.array(at, np.int64), name) for name, at in bounds.items())
    nodes = [node for node in model.graph.node if node.output[0] not in (LOGIT, PCTR)]
    nodes += [
        helper.make_node("MatMul", ["relu", "last"], ["of_the_layers"]),
        helper.make_node("Slice", ["tags_offsets", "one", "end"], ["ends"]),
        helper.make_node("Slice", ["tags_offsets", "zero", "last_but_one"], ["starts"]),
        helper.make_node("Sub", ["ends", "starts"], ["counts"]),
        helper.make_node("Size", ["tags_ids"], ["in_all"]),  # so that every input is asked for
        helper.make_node("Mul", ["in_all", "zero"], ["nothing"]),
        helper.make_node("Cast", ["counts"], ["whole_counts"], to=TensorProto.INT64),
        helper.make_node("Add", ["whole_counts", "nothing"], ["same_counts"]),
        helper.make_node("Cast", ["same_counts"], ["count"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["of_the_layers", "count"], [LOGIT]),
        helper.make_node("Sigmoid", [LOGIT], [PCTR]),
    ]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def test_ads_with_sequences_have_no_shares(tmp_path: Path):
    """Not even where the graph has the form and asks for them behind the first layer: a table has no room for them."""
    tags = "{name: tags, type: string, role: candidate, kind: sequence, max_length: 4, encoding: "
    tags += "{method: hash, buckets: 9}}"
    ads = [{**ad, "tags": ["old", "new"][: number % 3]} for number, ad in enumerate(ADS)]
    model = with_sequences()
    assert split(model.SerializeToString()) is not None
    bundle = bundle_of(tmp_path / "repository", model, SCHEMA + f"  - {tags}\n", [({"device": "phone"}, ads)])
    scorer = Scorer(bundle, share_bytes=1 << 20)
    lines = b"".join(
        json.dumps({"id": f"id-{place}", "candidate": ad}).encode() + b"\n" for place, ad in enumerate(ads)
    )

    async def encode() -> None:
        (await scorer.catalogue.encode(await read_catalogue(lines), is_strict=True))()

    asyncio.run(encode())
    rows, unknown = scorer.catalogue.find([f"id-{place}" for place in range(len(ads))])

    assert rows is not None
    assert (unknown, scorer.catalogue.share_bytes) == ([], 0)
    found = scorer.score([bundle.encoder.encode_context({"device": "phone"})], [rows])
    np.testing.assert_allclose(found, bundle.golden.requests[0].pctr, atol=1e-6)
