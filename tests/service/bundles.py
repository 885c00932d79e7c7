"""Bundles that are special: slow, wrong, unfit, distilled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from models.bundle import write_bundle
from models.golden import Golden
from tests.models.tiny_bundle import TinyModel, tiny_card, tiny_golden, tiny_graph, tiny_model

NOTHING = "own_nothing"
"""0, however long it took to come to that."""


def write_slow_ensemble(repository: Path, name: str = "ensemble", side: int = 1200, bias: float = 1.0) -> Path:
    """An ensemble that takes tens of milliseconds: the tiny one, plus 0 times the sum of a matrix product."""
    constants = {"own_side": np.array([side, side], np.int64), "own_zero": np.array(0, np.float32)}
    make = helper.make_node
    nodes = [
        make("Cast", ["request_index"], ["own_cast"], to=TensorProto.FLOAT),
        make("ReduceSum", ["own_cast"], ["own_seed"], keepdims=0),
        make("Expand", ["own_seed", "own_side"], ["own_matrix"]),
        make("MatMul", ["own_matrix", "own_matrix"], ["own_product"]),
        make("ReduceSum", ["own_product"], ["own_sum"], keepdims=0),
        make("Mul", ["own_sum", "own_zero"], [NOTHING]),
    ]
    return _write_with_more_to_do(repository, name, tiny_model(bias), nodes, constants)


SLOW_DEVICE, FAILING_DEVICE = "tablet", "desktop"


def write_moody_ensemble(repository: Path, name: str = "ensemble", side: int = 1500, bias: float = 1.0) -> Path:
    """An ensemble that scores as the tiny one, but takes a product of two matrices of that side where a request's
    device is `SLOW_DEVICE`, and fails where it is `FAILING_DEVICE`. Its golden rows know neither."""
    model = tiny_model(bias)
    fields = [field.name for field in model.encoder.schema.context_id_fields]
    ids = {
        device: model.encoder.encode_context({"device": device}).ids[0, fields.index("device")]
        for device in (SLOW_DEVICE, FAILING_DEVICE)
    }
    constants = {
        "own_column": np.array(fields.index("device"), np.int64),
        "own_slow_id": np.array(ids[SLOW_DEVICE], np.int32),
        "own_failing_id": np.array(ids[FAILING_DEVICE], np.int32),
        "own_side": np.array([side, side], np.int64),
        "own_one": np.array(1, np.int64),
        "own_zero": np.array(0, np.float32),
        "own_far": np.array(10**6, np.int64),
        "own_table": np.array([0], np.float32),
    }
    make = helper.make_node
    moods = [
        make("Gather", ["context", "own_column"], ["own_ids"], axis=1),
        make("Equal", ["own_ids", "own_slow_id"], ["own_are_slow"]),
        make("Cast", ["own_are_slow"], ["own_slow_ones"], to=TensorProto.INT64),
        make("ReduceMax", ["own_slow_ones"], ["own_is_slow"], keepdims=0),
        make("Mul", ["own_side", "own_is_slow"], ["own_extent"]),
        make("Max", ["own_extent", "own_one"], ["own_shape"]),
        make("Expand", ["own_zero", "own_shape"], ["own_matrix"]),
        make("MatMul", ["own_matrix", "own_matrix"], ["own_product"]),
        make("ReduceSum", ["own_product"], ["own_zeros"], keepdims=0),
        make("Equal", ["own_ids", "own_failing_id"], ["own_are_failing"]),
        make("Cast", ["own_are_failing"], ["own_failing_ones"], to=TensorProto.INT64),
        make("ReduceMax", ["own_failing_ones"], ["own_is_failing"], keepdims=0),
        make("Mul", ["own_is_failing", "own_far"], ["own_place"]),
        make("Gather", ["own_table", "own_place"], ["own_null"]),
        make("Add", ["own_zeros", "own_null"], [NOTHING]),
    ]
    return _write_with_more_to_do(repository, name, model, moods, constants)


def _write_with_more_to_do(
    repository: Path, name: str, model: TinyModel, nodes: Sequence[NodeProto], constants: Mapping[str, NDArray[Any]]
) -> Path:
    """The tiny ensemble with such nodes before its last one; what they call `NOTHING` is added to its bias."""
    graph = onnx.load_from_string(tiny_graph(model, teachers=3))
    there = graph.graph.node
    (last,) = (node for node in there if "logit" in node.output)
    last.input[1] = "own_bias"
    at = list(there).index(last)
    for offset, node in enumerate([*nodes, helper.make_node("Add", ["bias", NOTHING], ["own_bias"])]):
        there.insert(at + offset, node)
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
