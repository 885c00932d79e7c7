"""Bundles that are special: slow, wrong, unfit, distilled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from models.bundle import write_bundle
from models.golden import Golden
from tests.models.tiny_bundle import tiny_card, tiny_golden, tiny_graph, tiny_model


def write_slow_ensemble(repository: Path, name: str = "ensemble", side: int = 1200, bias: float = 1.0) -> Path:
    """An ensemble that takes tens of milliseconds: the tiny one, plus 0 times the sum of a matrix product."""
    model = tiny_model(bias)
    graph = onnx.load_from_string(tiny_graph(model, teachers=3))
    nodes = graph.graph.node
    (last,) = (node for node in nodes if "logit" in node.output)
    last.input[1] = "slow_bias"
    at = list(nodes).index(last)
    constants = {"slow_side": np.array([side, side], np.int64), "slow_zero": np.array(0, np.float32)}
    slow = [
        helper.make_node("Cast", ["request_index"], ["slow_cast"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["slow_cast"], ["slow_seed"], keepdims=0),
        helper.make_node("Expand", ["slow_seed", "slow_side"], ["slow_matrix"]),
        helper.make_node("MatMul", ["slow_matrix", "slow_matrix"], ["slow_product"]),
        helper.make_node("ReduceSum", ["slow_product"], ["slow_sum"], keepdims=0),
        helper.make_node("Mul", ["slow_sum", "slow_zero"], ["slow_nothing"]),
        helper.make_node("Add", ["bias", "slow_nothing"], ["slow_bias"]),
    ]
    for offset, node in enumerate(slow):
        nodes.insert(at + offset, node)
    graph.graph.initializer.extend(numpy_helper.from_array(value, key) for key, value in constants.items())
    return write_bundle(
        repository,
        name,
        encoder=model.encoder,
        card=tiny_card(model, teachers=3),
        golden=tiny_golden(model),
        model=graph.SerializeToString(),
    )


SLOW_DEVICE, FAILING_DEVICE = "tablet", "desktop"


def write_moody_ensemble(repository: Path, name: str = "ensemble", side: int = 1500, bias: float = 1.0) -> Path:
    """An ensemble that scores as the tiny one, but takes a product of two matrices of that side where a request's
    device is `SLOW_DEVICE`, and fails where it is `FAILING_DEVICE`. Its golden rows know neither."""
    model = tiny_model(bias)
    graph = onnx.load_from_string(tiny_graph(model, teachers=3))
    fields = [field.name for field in model.encoder.schema.context_id_fields]
    ids = {
        device: model.encoder.encode_context({"device": device}).ids[0, fields.index("device")]
        for device in (SLOW_DEVICE, FAILING_DEVICE)
    }
    nodes = graph.graph.node
    (last,) = (node for node in nodes if "logit" in node.output)
    last.input[1] = "moody_bias"
    at = list(nodes).index(last)
    constants = {
        "moody_column": np.array(fields.index("device"), np.int64),
        "moody_slow_id": np.array(ids[SLOW_DEVICE], np.int32),
        "moody_failing_id": np.array(ids[FAILING_DEVICE], np.int32),
        "moody_side": np.array([side, side], np.int64),
        "moody_one": np.array(1, np.int64),
        "moody_zero": np.array(0, np.float32),
        "moody_far": np.array(10**6, np.int64),
        "moody_table": np.array([0], np.float32),
    }
    make = helper.make_node
    moods = [
        make("Gather", ["context", "moody_column"], ["moody_ids"], axis=1),
        make("Equal", ["moody_ids", "moody_slow_id"], ["moody_are_slow"]),
        make("Cast", ["moody_are_slow"], ["moody_slow_ones"], to=TensorProto.INT64),
        make("ReduceMax", ["moody_slow_ones"], ["moody_is_slow"], keepdims=0),
        make("Mul", ["moody_side", "moody_is_slow"], ["moody_extent"]),
        make("Max", ["moody_extent", "moody_one"], ["moody_shape"]),
        make("Expand", ["moody_zero", "moody_shape"], ["moody_matrix"]),
        make("MatMul", ["moody_matrix", "moody_matrix"], ["moody_product"]),
        make("ReduceSum", ["moody_product"], ["moody_nothing"], keepdims=0),
        make("Equal", ["moody_ids", "moody_failing_id"], ["moody_are_failing"]),
        make("Cast", ["moody_are_failing"], ["moody_failing_ones"], to=TensorProto.INT64),
        make("ReduceMax", ["moody_failing_ones"], ["moody_is_failing"], keepdims=0),
        make("Mul", ["moody_is_failing", "moody_far"], ["moody_place"]),
        make("Gather", ["moody_table", "moody_place"], ["moody_null"]),
        make("Add", ["moody_nothing", "moody_null"], ["moody_sum"]),
        make("Add", ["bias", "moody_sum"], ["moody_bias"]),
    ]
    for offset, node in enumerate(moods):
        nodes.insert(at + offset, node)
    graph.graph.initializer.extend(numpy_helper.from_array(value, key) for key, value in constants.items())
    return write_bundle(
        repository,
        name,
        encoder=model.encoder,
        card=tiny_card(model, teachers=3),
        golden=tiny_golden(model),
        model=graph.SerializeToString(),
    )


def write_wrong_golden(repository: Path, name: str, bias: float = 0.0) -> Path:
    """A whole, undamaged bundle whose graph does not score as its golden rows say."""
    model = tiny_model(bias)
    golden = tiny_golden(model)
    shifted = [
        request.model_copy(update={"logit": tuple(value + 0.001 for value in request.logit)})
        for request in golden.requests
    ]
    return write_bundle(
        repository,
        name,
        encoder=model.encoder,
        card=tiny_card(model),
        golden=Golden(requests=tuple(shifted)),
        model=tiny_graph(model),
    )


def write_other_inputs(repository: Path, name: str) -> Path:
    """A whole bundle whose graph takes an input that no schema gives."""
    model = tiny_model()
    graph = onnx.load_from_string(tiny_graph(model))
    graph.graph.input.append(helper.make_tensor_value_info("extra", TensorProto.INT32, ["N"]))
    return write_bundle(
        repository,
        name,
        encoder=model.encoder,
        card=tiny_card(model),
        golden=tiny_golden(model),
        model=graph.SerializeToString(),
    )


def write_distilled(repository: Path, name: str, bias: float = 0.0) -> Path:
    """A student as training exports it: no ensemble, but with teachers in its manifest."""
    model = tiny_model(bias)
    return write_bundle(
        repository,
        name,
        encoder=model.encoder,
        card=tiny_card(model, teachers=3),
        golden=tiny_golden(model),
        model=tiny_graph(model),
    )
