"""A graph trained elsewhere, packed: from raw rows to /predict it answers as its own library did."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow.csv
import pyarrow.parquet
import pytest
from onnx import TensorProto

from models.bundle import read_bundle
from models.golden import check_golden
from models.graph import LOGIT, PCTR, graph_inputs
from models.manifest import Calibration
from tests.service.running import running_service
from tests.training.pack import foreign
from training.cli import main
from training.export.cost import open_session
from training.pack.pack import Order, pack


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with everything that is needed to pack: graph.onnx, schema.yaml, data/, rows.csv."""
    onnx.save(foreign.graph(), tmp_path / "graph.onnx")
    (tmp_path / "schema.yaml").write_text(foreign.SCHEMA)
    foreign.write_fuxictr(tmp_path / "data")
    foreign.write_rows(tmp_path / "rows.csv", foreign.raw_rows())
    return tmp_path


def order_of(place: Path, **changes: Any) -> Order:
    """What to pack there."""
    given: dict[str, Any] = {
        "graph": place / "graph.onnx",
        "schema": place / "schema.yaml",
        "rows": place / "rows.csv",
        "vocabularies": place / "data",
        "name": "student",
        "repository": place / "repository",
        "probability": "y_pred",
        "expect": "said",
    }
    return Order(**given | changes)


def scores(path: Path, rows: list[dict[str, Any]]) -> np.ndarray:
    """logit and pctr [2, n] of raw rows, each a request, by the bundle's own encoder and graph."""
    bundle, found = read_bundle(path), []
    session = open_session(bundle.model_path)
    for row in rows:
        body = foreign.request_of(row)
        context, candidates = bundle.encoder.encode_context(body["context"]), body["candidates"]
        feed = graph_inputs([context], [bundle.encoder.encode_candidates(candidates)])
        found.append([values.item() for values in session.run([LOGIT, PCTR], feed)])
    return np.array(found).T


def test_both_forms_answer_over_http_as_their_library_does_on_raw_rows(place: Path):
    """One input a field as `student`, the contract's inputs as `ensemble`; missing, unknown, empty and long lists."""
    onnx.save(foreign.contract_graph(), place / "ours.onnx")
    foreign.write_lists(place / "lists")
    foreign.write_rows(place / "ours.csv", foreign.raw_rows(), foreign.contract_predict)
    ours = {"graph": place / "ours.onnx", "vocabularies": place / "lists", "rows": place / "ours.csv"}
    pack(order_of(place))
    pack(order_of(place, **ours, name="ensemble", probability=None))
    rows = foreign.raw_rows(40, seed=1)

    with running_service(place / "log", "--repository", str(place / "repository")) as running:
        for arm, predict in (("student", foreign.predict), ("ensemble", foreign.contract_predict)):
            for start in range(0, len(rows), 4):
                first, *others = rows[start : start + 4]
                reply = running.request("POST", "/predict", foreign.request_of(first, others) | {"arm": arm})
                shared = {field.name: first[field.name] for field in foreign.schema().context_fields}
                expected = [predict({**row, **shared}) for row in (first, *others)]
                assert reply.status == 200, reply.body
                assert reply.json()["model"] == arm
                assert reply.json()["pctr"] == pytest.approx(expected, abs=1e-6)


def test_a_bundle_of_a_foreign_graph_is_a_bundle_like_any_other(place: Path):
    """Its golden rows, missing and unknown values among them, come out as the service checks them at load."""
    packed = pack(order_of(place))

    bundle = read_bundle(packed.published.path)
    session = open_session(bundle.model_path)

    def score(context: Any, candidates: Any) -> Any:
        rows = bundle.encoder.encode_context(context), bundle.encoder.encode_candidates(candidates)
        return session.run([LOGIT, PCTR], graph_inputs([rows[0]], [rows[1]]))

    check_golden(bundle.golden, score, bundle.path)
    candidates = [row for request in bundle.golden.requests for row in request.candidates]
    assert {} in candidates  # everything missing
    encoded = bundle.encoder.encode_candidates(candidates)
    assert encoded.missing["ad"]
    assert encoded.unknown["ad"]
    assert (encoded.ids[:, 0] > 1).any()


def test_the_manifest_says_what_was_packed_and_how_it_does(place: Path):
    packed = pack(order_of(place))

    manifest = read_bundle(packed.published.path).manifest
    assert manifest.data.source == "rows.csv"
    assert manifest.data.parts["test"].rows == 120
    assert manifest.recipe["packed"]["graph"] == "graph.onnx"
    assert manifest.recipe["packed"]["probability"] == "y_pred"
    assert set(manifest.test_metrics["student"]) >= {"auc", "logloss", "predicted_over_actual", "ece"}
    assert manifest.test_metrics["student"]["auc"] == pytest.approx(packed.metrics["auc"])
    assert manifest.parity_error <= 1e-6
    assert manifest.cost.parameters_embedding == sum(foreign.weights(name).size for name in foreign.NAMES)
    assert set(manifest.reference.fields) == set(foreign.NAMES) - {"position"}


def test_packing_the_same_again_makes_no_new_version_and_another_graph_makes_the_next(place: Path):
    first, again = pack(order_of(place)), pack(order_of(place))
    onnx.save(foreign.graph(bias=0.25), place / "graph.onnx")
    other = pack(order_of(place, expect=None))

    assert (first.published.version, first.published.is_new) == (1, True)
    assert (again.published.version, again.published.is_new) == (1, False)
    assert (other.published.version, other.published.is_new) == (2, True)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ({"outputs": ["logit"]}, {"logit": "logit", "probability": None}),
        ({"outputs": ["logit", "y_pred"]}, {"logit": "logit"}),
        ({"dtype": TensorProto.INT32}, {}),
        ({"column": True}, {}),
        ({"opset": 13, "ir_version": 7}, {}),
        ({"renamed": {"ad": "item.id"}}, {"renamed": {"ad": "item.id"}}),
    ],
)
def test_whatever_form_its_inputs_and_outputs_have_the_scores_are_the_same(made: Any, said: Any, place: Path):
    """A logit, a probability or both; int32, [batch, 1], an old opset, another name."""
    onnx.save(foreign.graph(**made), place / "graph.onnx")
    rows = foreign.raw_rows(10, seed=2)

    packed = pack(order_of(place, **said))

    logit, pctr = scores(packed.published.path, rows)
    assert logit == pytest.approx([foreign.logit_of(row) for row in rows], abs=1e-5)
    assert pctr == pytest.approx([foreign.predict(row) for row in rows], abs=1e-6)
    assert packed.expected_error is not None
    assert packed.expected_error <= 1e-6


def test_calibration_and_negatives_that_were_left_out_end_the_graph(place: Path):
    """pctr = sigmoid(scale * logit + bias + ln(share of negatives kept)); the logit stays theirs."""
    rows = foreign.raw_rows(10, seed=3)

    packed = pack(order_of(place, calibration=Calibration(scale=0.8, bias=-0.2, negative_sampling_rate=0.1)))

    logit, pctr = scores(packed.published.path, rows)
    wanted = np.array([foreign.logit_of(row) for row in rows])
    assert logit == pytest.approx(wanted, abs=1e-5)
    assert pctr == pytest.approx(1 / (1 + np.exp(-(0.8 * wanted - 0.2 + np.log(0.1)))), abs=1e-6)


def test_large_weights_lie_beside_the_graph_wherever_they_lay_before(place: Path):
    """External data of any name comes in, and is model.onnx.data where it is large."""
    model = foreign.graph()
    wide = np.random.default_rng(0).normal(size=(32, 20_000)).astype(np.float32)
    for value, name in ((wide, "wide"), (np.zeros(1, np.float32), "zero")):
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    identity = next(place for place, node in enumerate(model.graph.node) if node.op_type == "Identity")
    del model.graph.node[identity]
    for node in (
        onnx.helper.make_node("Add", ["raw", "nothing"], ["logit"]),
        onnx.helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
        onnx.helper.make_node("ReduceMean", ["vectors", "axis"], ["mean"], keepdims=1),
        onnx.helper.make_node("Gather", ["wide", "ad"], ["vectors"]),
    ):
        model.graph.node.insert(identity, node)
    onnx.save(model, place / "graph.onnx", save_as_external_data=True, location="weights.bin", size_threshold=64)

    packed = pack(order_of(place))

    assert packed.expected_error is not None
    assert packed.expected_error <= 1e-6
    files = {file.name: file.stat().st_size for file in packed.published.path.glob("model.onnx*")}
    assert set(files) == {"model.onnx", "model.onnx.data"}
    assert files["model.onnx.data"] >= wide.nbytes > files["model.onnx"]


@pytest.mark.parametrize(
    ("form", "labels"), [("csv", False), ("tsv", True), ("parquet", True), ("jsonl", True), ("jsonl", False)]
)
def test_rows_come_in_any_form_and_without_labels_too(form: str, labels: bool, place: Path):
    """Without the label's column nothing is measured, and all else is the same."""
    rows = foreign.raw_rows(40)
    path = foreign.write_rows(place / "rows.csv", rows, labels=labels)
    if form == "tsv":
        path = place / "rows.tsv"
        path.write_text((place / "rows.csv").read_text(encoding="utf-8").replace(",", "\t"), encoding="utf-8")
    elif form == "parquet":
        path = place / "rows.parquet"
        pyarrow.parquet.write_table(pyarrow.csv.read_csv(place / "rows.csv"), path)
    elif form == "jsonl":
        path = place / "rows.jsonl"
        click = {"click": False} if labels else {}
        lines = [json.dumps({**click, **row, "said": foreign.predict(row)}) for row in rows]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")

    packed = pack(order_of(place, rows=path))

    assert packed.rows == 40
    assert packed.expected_error is not None
    assert bool(packed.metrics) is labels


def test_the_command_prints_the_folder_last_and_says_what_it_proved(place: Path, capsys: pytest.CaptureFixture[str]):
    arguments = [str(place / "graph.onnx"), "--schema", str(place / "schema.yaml"), "--rows", str(place / "rows.csv")]
    arguments += ["--vocabularies", str(place / "data"), "--probability", "y_pred", "--repository", str(place / "out")]

    code = main(["pack", *arguments, "--expect", "said"])
    proven = capsys.readouterr()
    unproven_code = main(["pack", *arguments])
    unproven = capsys.readouterr()

    assert (code, unproven_code) == (0, 0)
    assert proven.out == f"{place}/out/graph/1\n"
    assert "of the predictions expected" in proven.err
    assert "no --expect" in unproven.err


@pytest.mark.parametrize("role", ["context", "candidate"])
def test_a_model_of_one_side_alone_is_packed_too(role: str, tmp_path: Path):
    """The other side's input has width 0 and is read by nothing."""
    weights = np.array([[0.0], [1.0], [2.0], [-1.0]], np.float32)
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Gather", ["table", "x"], ["vectors"]),
            onnx.helper.make_node("Squeeze", ["vectors", "axis"], ["logit"]),
        ],
        "one",
        [onnx.helper.make_tensor_value_info("x", TensorProto.INT64, ["b"])],
        [onnx.helper.make_tensor_value_info("logit", TensorProto.FLOAT, ["b"])],
        [
            onnx.numpy_helper.from_array(weights, "table"),
            onnx.numpy_helper.from_array(np.array([1], np.int64), "axis"),
        ],
    )
    opsets = [onnx.helper.make_opsetid("", 18)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "graph.onnx")
    (tmp_path / "schema.yaml").write_text(
        "label: {column: click}\n"
        f"fields: [{{name: x, type: string, role: {role}, kind: categorical, encoding: {{method: vocabulary}}}}]\n"
    )
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "x.json").write_text('{"ids": {"a": 1, "b": 2}, "missing": 0, "unknown": 3}')
    (tmp_path / "rows.csv").write_text('x\na\nb\n""\nz\n')
    said = {"vocabularies": tmp_path / "lists", "probability": None, "expect": None}

    packed = pack(order_of(tmp_path, **said))

    bundle = read_bundle(packed.published.path)
    session = open_session(bundle.model_path)
    found = {}
    for value in ("a", "b", None, "z"):
        context, candidates = ({"x": value}, [{}, {}]) if role == "context" else ({}, [{"x": value}, {"x": value}])
        encoded = bundle.encoder.encode_context(context), bundle.encoder.encode_candidates(candidates)
        found[value] = session.run([LOGIT], graph_inputs([encoded[0]], [encoded[1]]))[0].tolist()
    assert found == {"a": [1, 1], "b": [2, 2], None: [0, 0], "z": [-1, -1]}


def test_a_branch_of_a_graph_that_reads_from_outside_stays_whole(place: Path):
    """What only the inside of an If reads is not taken out as unused."""
    model = foreign.graph()
    inside = onnx.helper.make_graph(
        [onnx.helper.make_node("Add", ["raw", "outer"], ["result"])],
        "branch",
        [],
        [onnx.helper.make_tensor_value_info("result", TensorProto.FLOAT, None)],
    )
    identity = next(number for number, node in enumerate(model.graph.node) if node.op_type == "Identity")
    del model.graph.node[identity]
    choice = onnx.helper.make_node("If", ["always"], ["logit"], then_branch=inside, else_branch=inside)
    model.graph.node.insert(identity, choice)
    model.graph.node.insert(identity, onnx.helper.make_node("Identity", ["nothing"], ["outer"]))
    for value, name in ((np.array([0], np.float32), "nothing"), (np.array(True), "always")):
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    onnx.save(model, place / "graph.onnx")

    packed = pack(order_of(place))

    assert packed.expected_error is not None
    assert packed.expected_error <= 1e-6
