"""A student in smaller numbers: true to the float32 one within what was agreed, or it does not ship."""

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from models.bundle import Bundle, read_bundle
from models.graph import CONTEXT, LOGIT
from service.errors import ModelLoadError
from service.scoring.scorer import Scorer
from tests.models.tiny_bundle import tiny_graph, tiny_model
from tests.training.served import RECIPE, TEST_METRICS, head, network, prepared_log, read, silent
from training.data.encoded_log import EncodedLog, Part
from training.data.prepare import load_encoder
from training.errors import ExportError, RecipeError
from training.export import quantize as module
from training.export.bundles import About, build_cards, build_graph, publish, quantize, wiring_of
from training.export.cost import open_session
from training.export.parity import Feed, log_feed, random_feeds
from training.export.quantize import Quantize, judge, quantize_graph, summary
from training.export.serving_graph import Wiring
from training.recipe import load_recipe

ANYTHING = {"max_auc_loss": 1.0, "max_logloss_gain": 9.0, "max_ece_gain": 9.0, "max_ratio_shift": 9.0}
BOTH = {"layers": "int8", "tables": "float16"}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared_log(tmp_path_factory.mktemp("log"))


@pytest.fixture(scope="module")
def graph(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a student's graph step, in float32. Exporting takes seconds, so there is one."""
    log = EncodedLog.open(prepared / "log")
    student = network("dnn", log.fields)
    with torch.no_grad():
        for weight in student.parameters():
            weight *= 3  # logits that differ by more than a rounding
    folder = tmp_path_factory.mktemp("graph")
    build_graph(folder, {"student": student}, head(), prepared=prepared, report=silent)
    return folder


@pytest.fixture(scope="module")
def wiring(prepared: Path) -> Wiring:
    return wiring_of(load_encoder(prepared))


@pytest.fixture(scope="module")
def feeds(wiring: Wiring) -> list[Feed]:
    """Ids over all of each table, requests of one and of many candidates."""
    return list(random_feeds(wiring))


def made(graph: Path, folder: Path, options: Mapping[str, Any], feeds: list[Feed]) -> Path:
    """The folder of the graph in smaller numbers."""
    smaller = folder / "smaller"
    smaller.mkdir()
    quantize_graph(graph, smaller, Quantize(**options), lambda: iter(feeds))
    return smaller


def scores(folder: Path, feed: Feed) -> np.ndarray:
    return open_session(folder / "model.onnx").run([LOGIT], feed)[0]


def exported(prepared: Path, graph: Path, folder: Path, options: Mapping[str, Any]) -> Path:
    """What the steps quantize and export make of a student's graph."""
    smaller = folder / "quantize"
    smaller.mkdir(parents=True)
    quantize(smaller, silent, prepared=prepared, graph=graph, options=Quantize(**options).model_dump())
    return cards(prepared, graph, folder / "export", {"student": smaller})


def cards(prepared: Path, graph: Path, folder: Path, quantized: Mapping[str, Path]) -> Path:
    rows = len(EncodedLog.open(prepared / "log"))
    about = {"student": About(head(), np.linspace(-3, 1, rows).astype(np.float32))}
    rest = {"prepared": prepared, "recipe": RECIPE, "test": TEST_METRICS, "report": silent}
    build_cards(folder, about, {"student": graph}, quantized=quantized, **rest)
    return folder


def published(export: Path, prepared: Path, repository: Path) -> Bundle:
    publish(export, prepared, repository)
    return read_bundle(repository / "student" / "1")


# --- the graph --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"layers": "int8"}, {"tables": "float16"}, BOTH])
def test_a_smaller_graph_scores_nearly_as_the_float32_one(
    options: dict[str, str], graph: Path, feeds: list[Feed], tmp_path: Path
):
    """float16 tables to a hundredth, int8 layers to a tenth of the logit's spread."""
    smaller = made(graph, tmp_path, options, feeds)

    pairs = [(scores(graph, feed), scores(smaller, feed)) for feed in feeds]
    before, after = (np.concatenate(side) for side in zip(*pairs, strict=True))
    assert np.abs(after - before).max() > 0
    assert np.abs(after - before).max() < (0.1 if "layers" in options else 0.01) * before.std()


def test_a_layer_is_the_integer_formula(graph: Path, feeds: list[Feed], tmp_path: Path):
    """Every layer in int8, against the formula at the head of `quantize.py` written out in numpy."""
    model = onnx.load(made(graph, tmp_path, {"layers": "int8"}, feeds) / "model.onnx")
    products = [node for node in model.graph.node if node.op_type == "MatMulIntegerToFloat"]
    sources = {node.output[0]: node.input[0] for node in model.graph.node}
    names = [name for node in products for name in (sources[node.input[0]], node.output[0])]
    model.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names)
    (tmp_path / "watched").mkdir()
    onnx.save(model, tmp_path / "watched" / "model.onnx")
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}

    found = dict(zip(names, open_session(tmp_path / "watched" / "model.onnx").run(names, feeds[1]), strict=True))

    assert len(products) == 2  # the context's and the candidates' share of the first layer; the second has six outputs
    for node in products:
        x, got = found[sources[node.input[0]]], found[node.output[0]]
        weights, scale, steps, zero = (constants[node.input[place]].astype(np.float64) for place in (1, 2, 3, 4))
        rounded = np.clip(np.rint(x / np.float32(scale)) + zero, 0, 255)
        added = constants[node.input[6]] if len(node.input) == 7 else 0.0
        np.testing.assert_allclose(got, scale * steps * ((rounded - zero) @ weights) + added, rtol=1e-4, atol=1e-4)
        assert np.abs(weights).max() == 63  # seven bits: exact on processors that add in 16


def test_a_score_does_not_depend_on_the_company_it_keeps(
    graph: Path, feeds: list[Feed], wiring: Wiring, prepared: Path, tmp_path: Path
):
    """Ranges are found once: alone, or in a run with others, a candidate scores the same to the last bits."""
    smaller = made(graph, tmp_path, BOTH, feeds)
    log = EncodedLog.open(prepared / "log")
    rows = log.rows([Part.TEST])[:64]
    together = scores(smaller, log_feed(log, wiring, rows))

    alone = [scores(smaller, log_feed(log, wiring, rows[[place]]))[0] for place in range(0, 64, 7)]

    np.testing.assert_allclose(alone, together[::7], atol=1e-6)


def test_large_constants_stay_beside_the_graph(
    graph: Path, feeds: list[Feed], wiring: Wiring, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Where ONNX Runtime maps them, each on a page of its own."""
    monkeypatch.setattr(module, "EXTERNAL_BYTES", 100)

    smaller = made(graph, tmp_path, BOTH, feeds)

    constants = onnx.load(smaller / "model.onnx", load_external_data=False).graph.initializer
    (table,) = [tensor for tensor in constants if tensor.external_data]
    place = {entry.key: entry.value for entry in table.external_data}
    assert (table.data_type, place["location"]) == (onnx.TensorProto.FLOAT16, "model.onnx.data")
    assert table.dims[0] == sum(spec.size for spec in wiring.fields)
    assert int(place["length"]) == 2 * table.dims[0] * table.dims[1]
    assert int(place["offset"]) % 4096 == 0
    assert np.isfinite(scores(smaller, feeds[0])).all()


def test_a_constant_beside_the_graph_is_read_from_there(
    graph: Path, feeds: list[Feed], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A large table of a float32 graph lies in a file of its own: the result is that of the same table within."""
    model = onnx.load(graph / "model.onnx")
    outside = tmp_path / "outside"
    outside.mkdir()
    onnx.save_model(
        model, outside / "model.onnx", save_as_external_data=True, location="model.onnx.data", size_threshold=100
    )
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()

    within, beside = made(graph, tmp_path / "a", BOTH, feeds), made(outside, tmp_path / "b", BOTH, feeds)

    for feed in feeds:
        np.testing.assert_array_equal(scores(within, feed), scores(beside, feed))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"layers": "int8"}, r"quantize\.layers: expected a network with dense layers, got none"),
        ({"tables": "float16"}, r"quantize\.tables: expected a graph that looks up in a table, got none"),
    ],
)
def test_what_a_graph_has_not_got_is_refused(options: dict[str, str], says: str, tmp_path: Path):
    """Rather than shipped as it was under another name. Logistic regression has weights, no layer and no vectors."""
    (tmp_path / "model.onnx").write_bytes(tiny_graph(tiny_model()))

    with pytest.raises(ExportError, match=says):
        made(tmp_path, tmp_path, options, [])


# --- the gate ---------------------------------------------------------------------------------------------------------


def test_what_stays_within_the_bounds_ships(prepared: Path, graph: Path, tmp_path: Path):
    """The bundle holds the smaller graph, the figures of both, the bounds, and golden rows that it answers."""
    bundle = published(exported(prepared, graph, tmp_path, BOTH | ANYTHING), prepared, tmp_path / "repository")

    found = bundle.manifest.quantization
    assert found is not None
    assert (found.ships, found.reasons, found.layers, found.tables) == ("quantized", (), "int8", "float16")
    assert found.bounds == ANYTHING
    assert found.float32.bytes > found.quantized.bytes == bundle.manifest.cost.bytes
    assert found.quantized.latency == bundle.manifest.cost.latency
    assert set(found.float32.metrics) == set(found.quantized.metrics) >= {"auc", "logloss", "ece"}
    assert found.rows == 75
    assert found.calibration_rows == 150  # all there are: training rows alone
    assert bundle.model_path.read_bytes() == (tmp_path / "quantize" / "model.onnx").read_bytes()
    Scorer(bundle)  # the service loads it and scores its golden rows


def test_a_quantisation_that_is_really_bad_is_refused(prepared: Path, graph: Path, wiring: Wiring, tmp_path: Path):
    """One user's values a hundred thousand times the others': in 256 steps nothing is left of those. The float32 graph
    ships, and bundle and log say what was lost."""
    log = EncodedLog.open(prepared / "log")
    user = int(log_feed(log, wiring, log.rows([Part.TRAIN])[:1])[CONTEXT][0, 0])
    names = [spec.name for spec in log.fields]
    model = onnx.load(graph / "model.onnx")
    table = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("table"))
    values = onnx.numpy_helper.to_array(table).copy()
    values[sum(spec.size for spec in log.fields[: names.index("user")]) + user] *= 1e5
    table.CopyFrom(onnx.numpy_helper.from_array(values, table.name))
    spoilt = tmp_path / "graph"
    shutil.copytree(graph, spoilt)
    onnx.save(model, spoilt / "model.onnx")

    bundle = published(exported(prepared, spoilt, tmp_path, {"layers": "int8"}), prepared, tmp_path / "repository")

    found = bundle.manifest.quantization
    assert found is not None
    assert found.ships == "float32"
    assert found.reasons
    assert bundle.model_path.read_bytes() == (tmp_path / "graph" / "model.onnx").read_bytes()
    assert bundle.manifest.cost.bytes == found.float32.bytes
    assert bundle.golden.tolerance == 1e-5
    said = summary(read(tmp_path / "quantize" / "quantized.json"))
    assert said.startswith("REFUSED, float32 ships: ")
    assert found.reasons[0] in said


@pytest.mark.parametrize(
    ("key", "before", "after", "says"),
    [
        ("auc", 0.75, 0.7489, "AUC: 0.75000 in float32, 0.74890 in smaller numbers; max_auc_loss is 0.001"),
        ("logloss", 0.4, 0.4011, "logloss: 0.40000 in float32, 0.40110"),
        ("ece", 0.01, 0.0111, "ECE: 0.01000 in float32"),
        ("predicted_over_actual", 1.0, 0.9989, "predicted over actual: 1.00000"),
        ("predicted_over_actual", 1.0, 1.0011, "predicted over actual: 1.00000"),
        ("auc", 0.75, None, "AUC: 0.75000 in float32, nan"),
    ],
)
def test_each_bound_refuses_by_itself(key: str, before: float, after: float | None, says: str):
    """And what the rows do not define shows nothing, so it refuses too."""
    good = {"auc": 0.75, "logloss": 0.4, "ece": 0.01, "predicted_over_actual": 1.0}
    bounds = dict.fromkeys(ANYTHING, 0.001)
    figures = good | {key: after} if after is not None else {k: v for k, v in good.items() if k != key}

    assert judge(good, good, bounds) == []
    (reason,) = judge(good | {key: before}, figures, bounds)
    assert reason.startswith(says)


def test_better_is_never_refused():
    """But for a shift of predicted over actual, which is no better in either direction."""
    before = {"auc": 0.7, "logloss": 0.4, "ece": 0.02, "predicted_over_actual": 1.1}

    assert judge(before, before | {"auc": 0.9, "logloss": 0.1, "ece": 0.0}, dict.fromkeys(ANYTHING, 0.0)) == []


# --- the bundle -------------------------------------------------------------------------------------------------------


def test_golden_rows_catch_the_other_graph(prepared: Path, graph: Path, tmp_path: Path):
    """The float32 graph in the place of the smaller one, its checksum made to fit: every byte is sound, and the scores
    are not those of this bundle."""
    bundle = published(exported(prepared, graph, tmp_path, BOTH | ANYTHING), prepared, tmp_path / "repository")
    assert bundle.golden.tolerance >= 1e-5
    flipped = (graph / "model.onnx").read_bytes()
    bundle.model_path.chmod(0o644)
    bundle.model_path.write_bytes(flipped)
    sums = bundle.path / "SHA256SUMS"
    sums.chmod(0o644)
    lines = [
        f"{hashlib.sha256(flipped).hexdigest()}  model.onnx" if line.endswith("  model.onnx") else line
        for line in sums.read_text().splitlines()
    ]
    sums.write_text("\n".join(lines) + "\n")

    with pytest.raises(ModelLoadError, match=r"golden\.json.*logit") as refused:
        Scorer(read_bundle(bundle.path))
    assert refused.value.reason == "golden"


def test_only_a_bundle_that_says_so_needs_the_second_format(prepared: Path, graph: Path, tmp_path: Path):
    """Without a quantisation a bundle is of format 1 and has no such key: releases before this one read it."""
    quantized = published(exported(prepared, graph, tmp_path, BOTH | ANYTHING), prepared, tmp_path / "repository")
    plain = published(cards(prepared, graph, tmp_path / "plain", {}), prepared, tmp_path / "other")

    with_it, without_it = (read(bundle.path / "manifest.json") for bundle in (quantized, plain))
    assert (with_it["format_version"], with_it["quantization"]["ships"]) == (2, "quantized")
    assert (without_it["format_version"], "quantization" in without_it) == (1, False)


def test_publishing_again_makes_no_new_version(prepared: Path, graph: Path, tmp_path: Path):
    """Other milliseconds are no reason; another decision is."""
    first, again = (exported(prepared, graph, tmp_path / which, BOTH | ANYTHING) for which in ("first", "again"))
    publish(first, prepared, tmp_path / "repository")

    assert not publish(again, prepared, tmp_path / "repository")[0].is_new
    refused = exported(prepared, graph, tmp_path / "refused", BOTH | ANYTHING | {"max_ratio_shift": 0.0})
    assert publish(refused, prepared, tmp_path / "repository")[0].is_new


# --- the recipe -------------------------------------------------------------------------------------------------------


def test_a_recipe_keeps_float32_unless_it_says_otherwise():
    assert load_recipe("synthetic").recipe.quantize is None
    asked = load_recipe("synthetic", ["quantize.layers=int8", "quantize.max_auc_loss=0.001"]).recipe.quantize
    assert asked is not None
    assert (asked.layers, asked.tables, asked.max_auc_loss) == ("int8", "float32", 0.001)


def test_a_quantisation_of_nothing_is_refused():
    with pytest.raises(RecipeError, match="expected layers: int8, tables: float16, or both"):
        load_recipe("synthetic", ["quantize.layers=float32"])
