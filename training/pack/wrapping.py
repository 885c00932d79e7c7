"""Nodes around a foreign graph, after which it has the contract's inputs and outputs (docs/bundle.md).

    ids      context by request_index beside candidates [N, F]; + each field's start; one look-up makes our ids theirs
    lists    ids and offsets -> [S, L], padded; the context's by request_index
    score    logit and pctr float32 [N], calibrated

Everything of theirs gets a prefix, so that a field may be called `context` and an output `logit`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
from numpy.typing import NDArray
from onnx import TensorProto, compose, helper, numpy_helper

from models.graph import CANDIDATES, CONTEXT, LOGIT, PCTR, REQUEST_INDEX, ids_input, offsets_input
from models.manifest import Calibration
from models.schema import FieldSchema
from training.export.serving_graph import drop_unused, name_plainly, set_apart
from training.pack.graph import SHAPES, Foreign, Input

PREFIX = "their/"
_LEAST_IR = 8
_DTYPES = {np.int32: TensorProto.INT32, np.int64: TensorProto.INT64}
# float32 has nothing between 1 - 2^-24 and 1; below 1e-30 a click never came.
_SMALLEST, _LARGEST = 1e-30, 1 - 2**-24


def wrap(foreign: Foreign, calibration: Calibration) -> onnx.ModelProto:
    """A new model of the contract's form that answers as the foreign one does, calibrated.

    A probability without a logit is its own pctr where calibration changes nothing; its logit is what the sigmoid took
    that made it, or else ln(p / (1 - p)), p from 1e-30 to 1 - 2^-24.
    """
    inner = compose.add_prefix(foreign.model, PREFIX)
    made = _Nodes()
    if foreign.is_ours:
        _feed_ours(made, foreign)
    else:
        _feed_rows(made, foreign)
    _score(made, foreign, inner, calibration)
    schema = foreign.encoder.schema
    inputs: list[tuple[str, list[str | int]]] = [
        (CONTEXT, ["requests", len(schema.context_id_fields)]),
        (CANDIDATES, ["rows", len(schema.candidate_id_fields)]),
        (REQUEST_INDEX, ["rows"]),
    ]
    for field in schema.sequence_fields:
        ends = "request_ends" if field.role == "context" else "row_ends"
        inputs += [(ids_input(field.name), [f"elements_{field.name}"]), (offsets_input(field.name), [ends])]
    constants = {tensor.name for tensor in inner.graph.initializer}
    graph = helper.make_graph(
        [*made.before, *inner.graph.node, *made.after],
        "retort",
        [
            *(helper.make_tensor_value_info(name, TensorProto.INT32, shape) for name, shape in inputs),
            *(value for value in inner.graph.input if value.name in constants),
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows"]) for name in (LOGIT, PCTR)],
        [*inner.graph.initializer, *made.constants],
        sparse_initializer=inner.graph.sparse_initializer,
    )
    model = helper.make_model(
        graph,
        opset_imports=inner.opset_import,
        functions=inner.functions,
        ir_version=max(inner.ir_version, _LEAST_IR),
    )
    drop_unused(model.graph)
    name_plainly(model)
    return model


def write(model: onnx.ModelProto, folder: Path) -> list[Path]:
    """model.onnx, and model.onnx.data where a tensor is large, as the exporter writes them; the files written."""
    path = folder / "model.onnx"
    held = onnx_ir.from_proto(model)
    files = [path, *set_apart(held, folder / "model.onnx.data")]
    path.write_bytes(onnx_ir.to_proto(held).SerializeToString(deterministic=True))
    return files


class _Nodes:
    """Nodes in front of the foreign graph and behind it, and their constants."""

    def __init__(self) -> None:
        self.before: list[onnx.NodeProto] = []
        self.after: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._into = self.before
        self._count = 0

    def go_behind(self) -> None:
        """What comes from now on stands behind the foreign graph."""
        self._into = self.after

    def add(self, kind: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """A node; the name of its output."""
        self._count += 1
        output = output or f"pack/{kind}_{self._count}"
        self._into.append(helper.make_node(kind, list(inputs), [output], f"pack/{self._count}", **attributes))
        return output

    def constant(self, value: NDArray[Any]) -> str:
        """An initializer; its name."""
        name = f"pack/constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value).reshape(value.shape), name))
        return name

    def ints(self, *numbers: int) -> str:
        """int64 [n]."""
        return self.constant(np.array(numbers, dtype=np.int64))


def _feed_rows(made: _Nodes, foreign: Foreign) -> None:
    """One input a field."""
    schema = foreign.encoder.schema
    plain = [*schema.context_id_fields, *schema.candidate_id_fields, *schema.training_only_fields]
    sides = []
    if schema.context_id_fields:
        sides.append(made.add("Gather", CONTEXT, REQUEST_INDEX, axis=0))
    if schema.candidate_id_fields:
        sides.append(CANDIDATES)
    if schema.training_only_fields:
        stand_in = made.constant(foreign.encoder.serving_ids().astype(np.int32)[None, :])
        shape = made.add(
            "Concat", made.add("Shape", REQUEST_INDEX), made.ints(len(schema.training_only_fields)), axis=0
        )
        sides.append(made.add("Expand", stand_in, shape))
    if sides:
        ids = sides[0] if len(sides) == 1 else made.add("Concat", *sides, axis=1)
        theirs, dtype = _their_ids(made, foreign, ids, plain)
        for place, field in enumerate(plain):
            column = made.add("Gather", theirs, made.constant(np.array(place, dtype=np.int64)), axis=1)  # [N]
            taken = foreign.inputs[field.name]
            if taken.rank == 2:
                column = made.add("Reshape", column, made.ints(-1, 1))
            _bind(made, taken, column, dtype)
    for field in schema.sequence_fields:
        _bind(made, foreign.inputs[field.name], _padded(made, foreign, field), np.int64)


def _their_ids(
    made: _Nodes, foreign: Foreign, ids: str, fields: list[FieldSchema]
) -> tuple[str, type[np.integer[Any]]]:
    """Our ids [n, F] -> theirs, and of which type: all fields by one look-up; as they are where they are the same."""
    if all(foreign.carried[field.name].ids is None for field in fields):
        return ids, np.int32
    sizes = foreign.encoder.sizes
    tables = [foreign.their_ids(field.name, np.arange(sizes[field.name])) for field in fields]
    starts = np.cumsum([0, *map(len, tables[:-1])]).astype(np.int32)
    moved = made.add("Add", ids, made.constant(starts[None, :]))
    return made.add("Gather", made.constant(np.concatenate(tables)), moved, axis=0), np.int64


def _padded(made: _Nodes, foreign: Foreign, field: FieldSchema) -> str:
    """A sequence as their ids [N, L]: elements from the front (`keep: first`) or up to the end, and missing's id."""
    assert field.max_length is not None
    length, ids, offsets = field.max_length, ids_input(field.name), offsets_input(field.name)
    starts = made.add("Unsqueeze", made.add("Slice", offsets, made.ints(0), made.ints(-1)), made.ints(1))
    ends = made.add("Unsqueeze", made.add("Slice", offsets, made.ints(1), made.ints(2**31)), made.ints(1))
    steps = np.arange(length, dtype=np.int32)[None, :]
    if field.keep == "first":
        at = made.add("Add", starts, made.constant(steps))
        inside = made.add("Less", at, ends)
    else:
        at = made.add("Add", ends, made.constant(steps - np.int32(length)))
        inside = made.add("Not", made.add("Less", at, starts))
    one_more = made.add("Concat", ids, made.constant(np.zeros(1, np.int32)), axis=0)  # so that there is an element 0
    safe = made.add("Where", inside, at, made.constant(np.array(0, dtype=np.int32)))
    ours = made.add("Where", inside, made.add("Gather", one_more, safe), made.constant(np.array(0, dtype=np.int32)))
    size = foreign.encoder.sizes[field.name]
    table = made.constant(foreign.their_ids(field.name, np.arange(size)))
    theirs = made.add("Gather", table, ours, axis=0)
    return made.add("Gather", theirs, REQUEST_INDEX, axis=0) if field.role == "context" else theirs


def _feed_ours(made: _Nodes, foreign: Foreign) -> None:
    """The contract's own inputs: ids made theirs, types as they want them."""
    schema = foreign.encoder.schema
    sources: dict[str, tuple[str, type[np.integer[Any]]]] = {name: (name, np.int32) for name in foreign.inputs}
    for name, fields in ((CONTEXT, schema.context_id_fields), (CANDIDATES, schema.candidate_id_fields)):
        if fields and name in sources:
            sources[name] = _their_ids(made, foreign, name, list(fields))
    for field in schema.sequence_fields:
        if foreign.carried[field.name].ids is not None:
            table = made.constant(foreign.their_ids(field.name, np.arange(foreign.encoder.sizes[field.name])))
            sources[ids_input(field.name)] = made.add("Gather", table, ids_input(field.name), axis=0), np.int64
    for name, taken in foreign.inputs.items():
        _bind(made, taken, *sources[name])


def _bind(made: _Nodes, taken: Input, value: str, dtype: type[np.integer[Any]]) -> None:
    """`value` becomes what the foreign graph reads as this input."""
    name = PREFIX + taken.name
    if taken.dtype is dtype:
        made.add("Identity", value, output=name)
    else:
        made.add("Cast", value, output=name, to=_DTYPES[taken.dtype])


def _score(made: _Nodes, foreign: Foreign, inner: onnx.ModelProto, calibration: Calibration) -> None:
    made.go_behind()

    def flat(name: str, output: str | None = None) -> str:
        return made.add("Reshape", made.add("Cast", name, to=TensorProto.FLOAT), made.ints(-1), output=output)

    scale, bias = calibration.scale, calibration.shift
    probability = None if foreign.probability is None else PREFIX + foreign.probability
    if foreign.logit is not None:
        logit = flat(PREFIX + foreign.logit, output=LOGIT)
    else:
        assert probability is not None
        before = _before_sigmoid(inner.graph, probability)
        if before is not None:
            logit = flat(before, output=LOGIT)
        else:
            p = made.add("Max", flat(probability), made.constant(np.array(_SMALLEST, np.float32)))
            p = made.add("Min", p, made.constant(np.array(_LARGEST, np.float32)))
            rest = made.add("Sub", made.constant(np.array(1, np.float32)), p)
            logit = made.add("Sub", made.add("Log", p), made.add("Log", rest), output=LOGIT)
    if probability is not None and (scale, bias) == (1.0, 0.0):
        flat(probability, output=PCTR)
        return
    if scale != 1.0:
        logit = made.add("Mul", logit, made.constant(np.array(scale, np.float32)))
    if bias != 0.0:
        logit = made.add("Add", logit, made.constant(np.array(bias, np.float32)))
    made.add("Sigmoid", logit, output=PCTR)


def _before_sigmoid(graph: onnx.GraphProto, name: str) -> str | None:
    """The value whose sigmoid this one is, but for its shape; None where none of the kind makes it."""
    makers = {output: node for node in graph.node for output in node.output}
    while (node := makers.get(name)) is not None:
        if node.op_type == "Sigmoid":
            return str(node.input[0])
        if node.op_type not in SHAPES:
            return None
        name = node.input[0]
    return None
