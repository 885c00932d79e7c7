"""A graph that somebody else exported: what it takes and gives, and what is refused about it before anything is built.

Two forms are taken. One input a field: ids [B] or [B, 1], a sequence [B, L] padded behind (`keep: first`) or in front
(`keep: last`); every row its own copy of the context. Or the contract's inputs (docs/bundle.md). Ids are int64 or
int32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto

from models.encoder import Encoder
from models.graph import CANDIDATES, CONTEXT, LOGIT, PCTR, REQUEST_INDEX, ids_input, input_names, offsets_input
from models.schema import FeatureSchema, FieldSchema
from training.data.faults import closest
from training.errors import PackError
from training.export.cost import open_session
from training.export.parity import Feed
from training.pack.vocabularies import Carried

LEAST_OPSET = 13
_INTEGERS: dict[int, type[np.integer[Any]]] = {
    int(TensorProto.INT32): np.int32,
    int(TensorProto.INT64): np.int64,
}
_EXPORT = (
    "Export with the batch dimension free: torch.onnx.export(..., dynamic_shapes=...), or dynamic_axes={name: {0: "
    "'batch'}} for every input"
)
SHAPES = frozenset({"Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten"})
"""Nodes that leave the values as they are."""


@dataclass(frozen=True)
class Input:
    """An input of the graph: int32 or int64, of so many dimensions."""

    name: str
    dtype: type[np.integer[Any]]
    rank: int


@dataclass(frozen=True, eq=False)
class Foreign:
    """A graph with how it is to be fed: what their library calls by hand, `answers` does from a feed of ours."""

    path: Path
    model: onnx.ModelProto
    session: onnxruntime.InferenceSession
    encoder: Encoder
    carried: Mapping[str, Carried]
    inputs: Mapping[str, Input]
    """By field, or by the contract's name where `is_ours`."""
    is_ours: bool
    logit: str | None
    """The output that is a logit, if any."""
    probability: str | None
    """The output that is a probability, if any; one of both there is."""

    def their_ids(self, field: str, ids: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        """Their ids for ours."""
        table = self.carried[field].ids
        return ids.astype(np.int64) if table is None else table[ids]

    def answers(self, feed: Feed) -> dict[str, NDArray[np.float64]]:
        """`logit`, `probability`, those that there are, [N]: the graph as it came, fed by numpy.

        Raises `PackError` where ONNX Runtime cannot run it, or where the answer is not one number a row.
        """
        wanted = {name: output for name, output in (("logit", self.logit), ("probability", self.probability)) if output}
        count = len(feed[REQUEST_INDEX])
        given = self._ours(feed) if self.is_ours else self._rows(feed)
        try:
            found = self.session.run(list(wanted.values()), given, _quietly())
        except Exception as error:  # onnxruntime raises a dozen unrelated types
            raise PackError(
                f"{self.path}: cannot score {count} rows: {_first_line(error)}. Where it scores other numbers of rows, "
                f"theirs is fixed inside. {_EXPORT}"
            ) from None
        for output, value in zip(wanted.values(), found, strict=True):
            if value.size != count or value.shape[:1] != (count,):
                raise PackError(
                    f"{self.path}: output {output!r}: expected one number a row, [{count}] or [{count}, 1], got shape "
                    f"{list(value.shape)} of {count} rows. {_EXPORT}, and let the output be the score alone"
                )
        return {name: value.reshape(-1).astype(np.float64) for name, value in zip(wanted, found, strict=True)}

    def _rows(self, feed: Feed) -> dict[str, NDArray[Any]]:
        """One input a field: the context repeated for each candidate, sequences padded."""
        schema, index = self.encoder.schema, feed[REQUEST_INDEX]
        columns: dict[str, NDArray[np.integer[Any]]] = {}
        for name, fields in ((CONTEXT, schema.context_id_fields), (CANDIDATES, schema.candidate_id_fields)):
            for place, field in enumerate(fields):
                columns[field.name] = feed[name][:, place][index] if name == CONTEXT else feed[name][:, place]
        for field, id_ in zip(schema.training_only_fields, self.encoder.serving_ids(), strict=True):
            columns[field.name] = np.full(len(index), id_)
        given: dict[str, NDArray[Any]] = {}
        for name, ids in columns.items():
            taken = self.inputs[name]
            theirs = self.their_ids(name, ids).astype(taken.dtype)
            given[taken.name] = theirs[:, None] if taken.rank == 2 else theirs
        for field in schema.sequence_fields:
            padded = self._padded(field, feed[ids_input(field.name)], feed[offsets_input(field.name)])
            taken = self.inputs[field.name]
            given[taken.name] = (padded[index] if field.role == "context" else padded).astype(taken.dtype)
        return given

    def _padded(self, field: FieldSchema, ids: NDArray[np.int32], offsets: NDArray[np.int32]) -> NDArray[np.int64]:
        assert field.max_length is not None
        length, pad = field.max_length, self.their_ids(field.name, np.zeros(1, np.int32))[0]
        padded = np.full((len(offsets) - 1, length), pad)
        for row, (start, end) in enumerate(pairwise(offsets)):
            kept = self.their_ids(field.name, ids[start:end])
            if field.keep == "first":
                padded[row, : len(kept)] = kept[:length]
            elif len(kept):
                padded[row, -min(length, len(kept)) :] = kept[-length:]
        return padded

    def _ours(self, feed: Feed) -> dict[str, NDArray[Any]]:
        schema = self.encoder.schema
        given: dict[str, NDArray[Any]] = dict(feed)
        for name, fields in ((CONTEXT, schema.context_id_fields), (CANDIDATES, schema.candidate_id_fields)):
            if fields:
                columns = [self.their_ids(field.name, feed[name][:, place]) for place, field in enumerate(fields)]
                given[name] = np.stack(columns, axis=1)
        for field in schema.sequence_fields:
            given[ids_input(field.name)] = self.their_ids(field.name, feed[ids_input(field.name)])
        return {name: given[name].astype(taken.dtype) for name, taken in self.inputs.items()}


def read_graph(
    path: Path,
    encoder: Encoder,
    carried: Mapping[str, Carried],
    *,
    renamed: Mapping[str, str] | None = None,
    logit: str | None = None,
    probability: str | None = None,
) -> Foreign:
    """The graph, matched to the schema. `renamed` gives a field's input where that is not called as the field.

    Raises `PackError` for a file that is no whole graph or that ONNX Runtime cannot load, for inputs that are not the
    fields, of another type, shape or a fixed batch, and where it is not known which output is the score.
    """
    model = _load(path)
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    if opset < LEAST_OPSET:
        raise PackError(
            f"{path}: expected opset {LEAST_OPSET} or newer, got {opset}; export with opset_version={LEAST_OPSET} or "
            "more, or convert it: onnx.version_converter.convert_version"
        )
    try:
        session = open_session(path)
    except Exception as error:  # onnxruntime raises a dozen unrelated types
        raise PackError(
            f"{path}: ONNX Runtime {onnxruntime.__version__} cannot load it: {_first_line(error)}. Where it names an "
            "opset or IR version that is too new, export with a lower opset_version (18 is read everywhere); where it "
            "names an operator, export without operators of your own"
        ) from None
    given = {value.name: value for value in model.graph.input}
    constants = {tensor.name for tensor in model.graph.initializer}
    needed = [name for name in given if name not in constants]
    is_ours = {CANDIDATES, REQUEST_INDEX} <= set(needed)
    wanted = _inputs_wanted(path, encoder.schema, needed, renamed or {}, is_ours)
    inputs = {}
    for name, input_ in wanted.items():
        field = None if is_ours else encoder.schema.by_name[name]
        inputs[name] = _input(path, given[input_], field, name)
        rows = None if is_ours else table_rows(model, input_)
        stated = carried[name].table_rows if not is_ours else None
        if rows is not None and stated is not None and rows != stated:
            raise PackError(
                f"{path}: input {input_!r}: its embedding table has {rows} rows, and the vocabulary of field {name!r} "
                f"has {stated} ids; expected the vocabulary that the graph was trained with"
            )
    outputs = {value.name: value for value in model.graph.output}
    logit, probability = _outputs(path, list(outputs), logit, probability)
    for name in filter(None, (logit, probability)):
        kind = outputs[name].type.tensor_type.elem_type
        if kind not in (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16):
            raise PackError(f"{path}: output {name!r}: expected floats, got {_type_name(kind)}")
    return Foreign(path, model, session, encoder, carried, inputs, is_ours, logit, probability)


def table_rows(model: onnx.ModelProto, name: str) -> int | None:
    """Rows of the embedding table that an input is looked up in; None where it goes another way, or to several."""
    sizes = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    pending, rows = [name], set()
    while pending:
        value = pending.pop()
        for node in model.graph.node:
            if value not in node.input:
                continue
            if node.op_type in {*SHAPES, "Cast"} and node.input[0] == value:
                pending += node.output
            elif node.op_type == "Gather" and node.input[1] == value and len(sizes.get(node.input[0], [])) == 2:
                rows.add(sizes[node.input[0]][0])
    return rows.pop() if len(rows) == 1 else None


def _load(path: Path) -> onnx.ModelProto:
    try:
        if not path.stat().st_size:
            raise PackError(f"{path}: is empty; expected an ONNX graph")
        model = onnx.load(str(path))
    except OSError as error:
        raise PackError(f"{error.filename or path}: cannot be opened: {error.strerror or error}") from None
    except PackError:
        raise
    except Exception as error:  # protobuf's DecodeError, onnx's ValidationError, ValueError for a short data file
        raise PackError(
            f"{path}: expected a whole ONNX graph, with its external data files beside it: {_first_line(error)}. "
            "Export or copy it again"
        ) from None
    if not model.graph.output:
        raise PackError(f"{path}: expected a whole ONNX graph, got one without an output. Export or copy it again")
    return model


def _inputs_wanted(
    path: Path, schema: FeatureSchema, needed: list[str], renamed: Mapping[str, str], is_ours: bool
) -> dict[str, str]:
    """By field (or by the contract's name) the graph's input."""
    if is_ours:
        expected = list(input_names(schema))
        # A side without fields has an input of width 0, which other exporters may leave out.
        optional = {CONTEXT} if not schema.context_id_fields else set()
        if not set(expected) - optional <= set(needed) or set(needed) - set(expected):
            raise PackError(
                f"{path}: expected the contract's inputs {', '.join(expected)}, as this schema has them, got "
                f"{', '.join(needed)} (docs/bundle.md)"
            )
        return {name: name for name in expected if name in needed}
    for field, name in renamed.items():
        if field not in schema.by_name:
            raise PackError(f"--input {field}={name}: the schema has no field {field!r}")
        if name not in needed:
            raise PackError(f"--input {field}={name}: the graph has no input {name!r}.{closest(name, needed)}")
    wanted = {field.name: renamed.get(field.name, field.name) for field in schema.fields}
    listed = ", ".join(needed)
    for field_name, name in wanted.items():
        if name not in needed:
            raise PackError(
                f"{path}: field {field_name!r}: expected an input {name!r}, got {listed}.{closest(name, needed)} Say "
                f"--input {field_name}=NAME, or take the field out of the schema"
            )
    left = [name for name in needed if name not in wanted.values()]
    if left:
        raise PackError(
            f"{path}: input {left[0]!r}: expected a field of the schema for it, got fields {', '.join(wanted)}."
            f"{closest(left[0], list(wanted))} Add the field, or say --input FIELD={left[0]}"
        )
    if len(set(wanted.values())) < len(wanted):
        raise PackError(f"{path}: expected an input of its own for each field; --input names one for two fields")
    return wanted


def _input(path: Path, value: onnx.ValueInfoProto, field: FieldSchema | None, name: str) -> Input:
    place = f"{path}: input {value.name!r}"
    tensor = value.type.tensor_type
    if tensor.elem_type not in _INTEGERS:
        raise PackError(
            f"{place}: expected ids, int64 or int32, got {_type_name(tensor.elem_type)}. An input that takes a number "
            "itself cannot be fed: train the field as a category of ranges; one that takes ids, export with an example "
            "of int64"
        )
    sizes = [axis.dim_value if axis.HasField("dim_value") else None for axis in tensor.shape.dim]
    dtype = _INTEGERS[tensor.elem_type]
    if sizes and sizes[0] is not None:
        raise PackError(f"{place}: expected any number of rows, got exactly {sizes[0]}. {_EXPORT}")
    if field is None:
        return Input(value.name, dtype, len(sizes))
    if field.is_sequence:
        if len(sizes) != 2 or sizes[1] not in (None, field.max_length):
            raise PackError(
                f"{place}: expected [batch, {field.max_length}], the max_length of field {name!r}, got "
                f"{_shape(sizes)}; say that length in the schema"
            )
    elif not (len(sizes) in (0, 1) or (len(sizes) == 2 and sizes[1] in (None, 1))):
        raise PackError(
            f"{place}: expected [batch] or [batch, 1], as field {name!r} is {field.kind}, got "
            f"{_shape(sizes)}; if it is a list there, say kind: sequence"
        )
    return Input(value.name, dtype, max(1, len(sizes)))


def _outputs(
    path: Path, outputs: list[str], logit: str | None, probability: str | None
) -> tuple[str | None, str | None]:
    for option, name in (("--logit", logit), ("--probability", probability)):
        if name is not None and name not in outputs:
            raise PackError(f"{path}: {option} {name}: the graph has no such output, but {', '.join(outputs)}")
    if logit is None and probability is None:
        logit, probability = (name if name in outputs else None for name in (LOGIT, PCTR))
    if logit is None and probability is None:
        raise PackError(
            f"{path}: which output is the score, and is it a logit or a probability? Say --logit NAME, --probability "
            f"NAME or both; the graph gives {', '.join(outputs)}"
        )
    return logit, probability


def _quietly() -> Any:
    """Run options under which ONNX Runtime leaves it to the error to say what is wrong."""
    options = onnxruntime.RunOptions()
    options.log_severity_level = 4
    return options


def _shape(sizes: list[int | None]) -> str:
    return f"[{', '.join('any' if size is None else str(size) for size in sizes)}]"


def _type_name(kind: int) -> str:
    return str(TensorProto.DataType.Name(kind)).lower()


def _first_line(error: Exception) -> str:
    """The end of it, where it is long: ONNX Runtime begins with places in its own source."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return line if len(line) <= 300 else f"…{line[-300:]}"
