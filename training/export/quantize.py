"""A graph in smaller numbers beside the float32 one: int8 products in dense layers, float16 in embedding tables.

    q = clip(round(x / s) + z, 0, 255)      what goes into a layer: one s and z a layer
    v = round(w / t), |v| <= 63             its weights: one t an output
    x W ~ s t (q - z) v                     summed in int32, exactly

Three choices, each measured (docs/decisions.md):

- Ranges of activations are found once, on training rows. Taken anew in each run ("dynamic") they would depend on which
  candidates share it, and a score must not depend on the company it keeps.
- Weights have 7 bits. With 8, processors without VNNI add two products in 16 bits and cut off what does not fit.
- The nodes are ONNX Runtime's `MatMulIntegerToFloat`, written here. What its own quantizer writes for these graphs is
  slower than float32: it leaves products in float32 and unpacks the weights in every run.

Whether the result may ship is judged on test rows, which no network has learned from, by how much worse than the
float32 graph it is there: nothing is fitted to them, and there is one candidate only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, external_data_helper, helper, numpy_helper
from pydantic import BaseModel, ConfigDict, Field, model_validator

from models.golden import MAX_TOLERANCE
from models.graph import LOGIT, PCTR
from training.data.encoded_log import EncodedLog, Part
from training.data.golden_rows import spread_out
from training.errors import ExportError
from training.export.cost import session_options
from training.export.parity import Feed, log_feed
from training.export.serving_graph import EXTERNAL_BYTES, PAGE_BYTES, Wiring, drop_unused
from training.fit.metrics import evaluate

LARGEST_WEIGHT = 63
LARGEST_ACTIVATION = 255
LEAST_OUTPUTS = 8
"""A layer with fewer, such as the last, stays as it is: it costs nothing and rounding it costs most."""

GOLDEN_TOLERANCE = 1e-5
LEAST_INT8_TOLERANCE = 1e-3
"""Where no rounding fell to the other side on the rows at hand, it may on another machine."""

_LAST_BITS = 2e-7
"""What another processor's order of sums changes in a float32 number, of its size."""
_ROWS = 4096
_DATA = "model.onnx.data"
_CONTRIB = "com.microsoft"

Bounds = Mapping[str, float]


class Quantize(BaseModel):
    """What of the student is to be in smaller numbers, and how much that may cost."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    layers: Literal["float32", "int8"] = "float32"
    """What dense layers multiply."""
    tables: Literal["float32", "float16"] = "float32"
    """What embedding tables hold."""
    calibration_rows: int = Field(4096, ge=64)
    """Training rows that the ranges of activations are taken from."""
    max_auc_loss: float = Field(0.0005, ge=0, le=1)
    """Test AUC of the float32 graph less that of the smaller one, at most."""
    max_logloss_gain: float = Field(0.0005, ge=0)
    """Test logloss of the smaller graph less that of the float32 one, at most."""
    max_ece_gain: float = Field(0.002, ge=0)
    """The same of the expected calibration error."""
    max_ratio_shift: float = Field(0.01, ge=0)
    """How far predicted over actual clicks may move, either way."""

    @model_validator(mode="after")
    def _asks_for_something(self) -> Quantize:
        if (self.layers, self.tables) == ("float32", "float32"):
            raise ValueError("expected layers: int8, tables: float16, or both; drop the key to keep float32")
        return self

    @property
    def bounds(self) -> dict[str, float]:
        """The four, by name."""
        return {name: getattr(self, name) for name in type(self).model_fields if name.startswith("max_")}


@dataclass(frozen=True)
class Layer:
    """A product with constant weights [inputs, outputs] in a graph: `x @ weights`, and what is added."""

    node: onnx.NodeProto
    weights: NDArray[np.float32]
    added: str | None


def quantize_graph(
    source: Path, folder: Path, options: Quantize, feeds: Callable[[], Iterator[Feed]]
) -> Callable[[float], onnxruntime.InferenceSession]:
    """Write model.onnx (and its data) into `folder`, made of the one in `source`; `feeds` calibrate.

    What comes back opens the written graph with the scales of its activations multiplied by a number near 1.
    """
    model = onnx.load(source / "model.onnx", load_external_data=False)
    arrays = _Weights(model.graph, source)
    layers = _layers(model.graph, arrays) if options.layers == "int8" else []
    if options.layers == "int8" and not layers:
        raise ExportError(
            "quantize.layers: expected a network with dense layers, got none in its graph; say layers: float32"
        )
    ranges = _ranges(model, source, [layer.node.input[0] for layer in layers], feeds) if layers else {}
    replaced = {layer.node.output[0]: _integer_product(layer, ranges[layer.node.input[0]], arrays) for layer in layers}
    nodes = [new for node in model.graph.node for new in replaced.get(node.output[0], [node])]
    if options.tables == "float16":
        nodes = list(_half_tables(nodes, arrays))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    if layers:
        model.opset_import.append(helper.make_opsetid(_CONTRIB, 1))
    drop_unused(model.graph)
    arrays.write(folder)
    (folder / "model.onnx").write_bytes(model.SerializeToString(deterministic=True))
    onnx.checker.check_model(folder / "model.onnx")

    scales = {_name(layer.node, "scale") for layer in layers}

    def stretched(factor: float) -> onnxruntime.InferenceSession:
        changed = onnx.ModelProto()
        changed.CopyFrom(model)
        for tensor in changed.graph.initializer:
            if tensor.name in scales:
                value = numpy_helper.to_array(tensor).astype(np.float64) * factor
                tensor.CopyFrom(numpy_helper.from_array(value.astype(np.float32), tensor.name))
        return _session(changed, folder)

    return stretched


def measure_quantized(
    log: EncodedLog, wiring: Wiring, source: Path, options: Quantize, stretched: Callable[[float], Any]
) -> dict[str, Any]:
    """`ships`, `reasons`, and the figures of `models.manifest.Quantization` but for bytes and milliseconds."""
    rows = log.rows([Part.TEST])
    logit, pctr = _score(
        _session(onnx.load(source / "model.onnx", load_external_data=False), source), log, wiring, rows
    )
    smaller_logit, smaller_pctr = _score(stretched(1.0), log, wiring, rows)
    rounding = 0.0
    for factor in (1 - _LAST_BITS, 1 + _LAST_BITS):
        for got, expected in zip(
            _score(stretched(factor), log, wiring, rows), (smaller_logit, smaller_pctr), strict=True
        ):
            gaps = np.abs(got - expected) / np.maximum(1.0, np.abs(expected))
            rounding = max(rounding, float(gaps.max(initial=0.0)))
    label, truth = log.label[rows], None if log.truth is None else log.truth[rows]
    before, after = (_figures(label, z, p, truth) for z, p in ((logit, pctr), (smaller_logit, smaller_pctr)))
    spread = float(logit.std()) or 1.0
    reasons = judge(before, after, options.bounds)
    if not rounding <= MAX_TOLERANCE:
        reasons.append(f"another rounding moves a score by {rounding:.3g}, expected at most {MAX_TOLERANCE:g}")
    return {
        "ships": "float32" if reasons else "quantized",
        "reasons": reasons,
        "layers": options.layers,
        "tables": options.tables,
        "rows": len(rows),
        "calibration_rows": min(options.calibration_rows, len(log.rows([Part.TRAIN]))) * (options.layers == "int8"),
        "bounds": options.bounds,
        "logit_rmse": float(np.sqrt(np.mean((smaller_logit - logit) ** 2))) / spread,
        "rounding": rounding,
        "float32": before,
        "quantized": after,
    }


def judge(before: Mapping[str, float], after: Mapping[str, float], bounds: Bounds) -> list[str]:
    """Why figures `after` are too far behind those `before`, in words with both numbers; [] where they are not.

    A figure that the rows do not define (one kind of label alone) is a reason too: nothing was shown.
    """
    watched = (
        ("max_auc_loss", "AUC", "auc"),
        ("max_logloss_gain", "logloss", "logloss"),
        ("max_ece_gain", "ECE", "ece"),
        ("max_ratio_shift", "predicted over actual", "predicted_over_actual"),
    )
    reasons = []
    for bound, what, key in watched:
        was, got = before.get(key, math.nan), after.get(key, math.nan)
        worse = was - got if key == "auc" else got - was if key in ("logloss", "ece") else abs(got - was)
        if not worse <= bounds[bound]:
            reasons.append(f"{what}: {was:.5f} in float32, {got:.5f} in smaller numbers; {bound} is {bounds[bound]:g}")
    return reasons


def summary(found: Mapping[str, Any]) -> str:
    """One line for a person who watches: what was decided, with the numbers."""
    gaps = ", ".join(
        f"{name} {found['quantized'][key] - found['float32'][key]:+.5f}"
        for name, key in (("AUC", "auc"), ("logloss", "logloss"), ("ECE", "ece"))
        if key in found["quantized"] and key in found["float32"]
    )
    if found["ships"] == "quantized":
        return f"layers {found['layers']}, tables {found['tables']} ship: {gaps} on {found['rows']} test rows"
    return f"REFUSED, float32 ships: {'; '.join(found['reasons'])}"


def tolerance_of(found: Mapping[str, Any], gap: float) -> float:
    """Of the golden rows of the graph in smaller numbers: what another rounding was seen to do, but never more than
    half of `gap`, by which the two graphs differ on them; so that one in the other's place is found out."""
    least = LEAST_INT8_TOLERANCE if found["layers"] == "int8" else GOLDEN_TOLERANCE
    rounding = float(found["rounding"])
    return max(GOLDEN_TOLERANCE, min(max(least, rounding), gap / 2))


def calibration_feeds(log: EncodedLog, wiring: Wiring, count: int) -> Iterator[Feed]:
    """Training rows, evenly from the first to the last, each a request of its own."""
    rows = spread_out(log.rows([Part.TRAIN]), count)
    for start in range(0, len(rows), _ROWS):
        yield log_feed(log, wiring, rows[start : start + _ROWS])


class _Weights:
    """The constants of a graph, wherever they lie; large ones are mapped, never copied whole."""

    def __init__(self, graph: onnx.GraphProto, folder: Path) -> None:
        self.graph, self.folder = graph, folder
        self.by_name = {tensor.name: tensor for tensor in graph.initializer}
        self._halved: dict[str, NDArray[np.float32]] = {}

    def get(self, name: str) -> NDArray[Any]:
        tensor = self.by_name[name]
        if not external_data_helper.uses_external_data(tensor):
            return numpy_helper.to_array(tensor)
        place = {entry.key: entry.value for entry in tensor.external_data}
        dtype, shape = helper.tensor_dtype_to_np_dtype(tensor.data_type), tuple(tensor.dims)
        return np.memmap(self.folder / place["location"], dtype, "r", int(place.get("offset", 0)), shape)

    def add(self, name: str, values: Any) -> str:
        tensor = numpy_helper.from_array(np.asarray(values), name)
        self.graph.initializer.append(tensor)
        return name

    def halve(self, name: str) -> None:
        """The constant in float16 from now on. Beyond what that holds it is cut off there."""
        self._halved[name] = self.get(name)

    def write(self, folder: Path) -> None:
        """Lay out what the graph still uses: large constants in a file beside it, each on a page of its own."""
        with (folder / _DATA).open("wb") as file:
            for tensor in self.graph.initializer:
                dtype = np.float16 if tensor.name in self._halved else helper.tensor_dtype_to_np_dtype(tensor.data_type)
                size = int(np.prod(tensor.dims, dtype=np.int64)) * np.dtype(dtype).itemsize
                was_outside = external_data_helper.uses_external_data(tensor)
                if tensor.name not in self._halved and not was_outside:
                    continue
                values = self.get(tensor.name)
                tensor.data_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
                if size <= EXTERNAL_BYTES:
                    tensor.CopyFrom(numpy_helper.from_array(_as(values, dtype), tensor.name))
                    continue
                file.write(bytes(-file.tell() % PAGE_BYTES))
                start = file.tell()
                for block in range(0, len(values), 1 << 16):
                    file.write(np.ascontiguousarray(_as(values[block : block + (1 << 16)], dtype)).data)
                tensor.ClearField("raw_data")
                tensor.ClearField("float_data")
                tensor.ClearField("external_data")
                tensor.data_location = TensorProto.EXTERNAL
                for key, value in (("location", _DATA), ("offset", start), ("length", size)):
                    entry = tensor.external_data.add()
                    entry.key, entry.value = key, str(value)
            is_empty = file.tell() == 0
        if is_empty:
            (folder / _DATA).unlink()


def _as(values: NDArray[Any], dtype: Any) -> NDArray[Any]:
    if dtype != np.float16:
        return np.asarray(values)
    largest = np.finfo(np.float16).max
    halved: NDArray[Any] = np.clip(values, -largest, largest).astype(np.float16)
    return halved


def _layers(graph: onnx.GraphProto, arrays: _Weights) -> list[Layer]:
    """Every product with constant weights that is wide enough to be worth it."""
    found = []
    for node in graph.node:
        is_plain = node.op_type == "MatMul" or (
            node.op_type == "Gemm"
            and all(
                (attribute.name, attribute.f, attribute.i)
                in (("alpha", 1.0, 0), ("beta", 1.0, 0), ("transA", 0.0, 0), ("transB", 0.0, 0), ("transB", 0.0, 1))
                for attribute in node.attribute
            )
        )
        tensor = arrays.by_name.get(node.input[1]) if is_plain else None
        if tensor is None or len(tensor.dims) != 2 or tensor.data_type != TensorProto.FLOAT:
            continue
        weights = np.asarray(arrays.get(tensor.name), dtype=np.float32)
        if any(attribute.name == "transB" and attribute.i for attribute in node.attribute):
            weights = weights.T
        if weights.shape[1] >= LEAST_OUTPUTS:
            found.append(Layer(node, weights, node.input[2] if len(node.input) == 3 else None))
    return found


def _ranges(
    model: onnx.ModelProto, folder: Path, names: Sequence[str], feeds: Callable[[], Iterator[Feed]]
) -> dict[str, tuple[float, float]]:
    """Least and greatest value of each tensor over the feeds; 0 is always within."""
    names = list(dict.fromkeys(names))
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    given = {one.name for one in (*watched.graph.input, *watched.graph.output)}
    watched.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names if name not in given
    )
    session = _session(watched, folder)
    found = dict.fromkeys(names, (0.0, 0.0))
    for feed in feeds():
        for name, values in zip(names, session.run(names, feed), strict=True):
            if values.size:
                least, greatest = found[name]
                found[name] = min(least, float(values.min())), max(greatest, float(values.max()))
    for name, (least, greatest) in found.items():
        if not math.isfinite(greatest - least):
            raise ExportError(
                f"quantize: expected finite activations on training rows, got {least}..{greatest} in {name}"
            )
    return found


def _integer_product(layer: Layer, limits: tuple[float, float], arrays: _Weights) -> list[onnx.NodeProto]:
    """The nodes that stand for a layer."""
    node = layer.node
    least, greatest = limits
    scale = np.float32((greatest - least) / LARGEST_ACTIVATION) or np.float32(1)
    zero = np.uint8(np.clip(np.rint(-least / scale), 0, LARGEST_ACTIVATION))
    steps = (np.abs(layer.weights).max(axis=0) / LARGEST_WEIGHT).astype(np.float32)  # [outputs]
    steps[steps == 0] = 1
    rounded = np.clip(np.rint(layer.weights / steps), -LARGEST_WEIGHT, LARGEST_WEIGHT).astype(np.int8)
    inputs = [
        _name(node, "quantized"),
        arrays.add(_name(node, "weights"), np.ascontiguousarray(rounded)),
        arrays.add(_name(node, "scale"), scale),
        arrays.add(_name(node, "steps"), steps),
        arrays.add(_name(node, "zero"), zero),
        arrays.add(_name(node, "no_shift"), np.zeros(len(steps), dtype=np.int8)),
    ]
    made = [helper.make_node("QuantizeLinear", [node.input[0], inputs[2], inputs[4]], [inputs[0]])]
    if layer.added is None:
        return [*made, helper.make_node("MatMulIntegerToFloat", inputs, [node.output[0]], domain=_CONTRIB)]
    if layer.added in arrays.by_name and len(arrays.by_name[layer.added].dims) == 1:
        product = helper.make_node("MatMulIntegerToFloat", [*inputs, layer.added], [node.output[0]], domain=_CONTRIB)
        return [*made, product]
    product = helper.make_node("MatMulIntegerToFloat", inputs, [_name(node, "product")], domain=_CONTRIB)
    return [*made, product, helper.make_node("Add", [product.output[0], layer.added], [node.output[0]])]


def _half_tables(nodes: Sequence[onnx.NodeProto], arrays: _Weights) -> Iterator[onnx.NodeProto]:
    """The same nodes, tables that are only looked up in in float16, and what is found there made float32 again."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in nodes:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    tables = {
        name
        for name, tensor in arrays.by_name.items()
        if len(tensor.dims) == 2
        and tensor.data_type == TensorProto.FLOAT
        and readers.get(name)
        and all(node.op_type == "Gather" and node.input[0] == name for node in readers[name])
    }
    if not tables:
        raise ExportError("quantize.tables: expected a graph that looks up in a table, got none; say tables: float32")
    for name in tables:
        arrays.halve(name)
    for node in nodes:
        if node.op_type == "Gather" and node.input[0] in tables:
            found = node.output[0]
            node.output[0] = f"{found}_half"
            yield node
            yield helper.make_node("Cast", [node.output[0]], [found], to=TensorProto.FLOAT)
        else:
            yield node


def _name(node: onnx.NodeProto, part: str) -> str:
    return f"{node.output[0]}_{part}"


def _session(model: onnx.ModelProto, folder: Path) -> onnxruntime.InferenceSession:
    """A session on a model in memory whose external data lie in `folder`."""
    options = session_options()
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _score(
    session: onnxruntime.InferenceSession, log: EncodedLog, wiring: Wiring, rows: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """logit and pctr of rows of the log."""
    found = [
        session.run([LOGIT, PCTR], log_feed(log, wiring, rows[start : start + _ROWS]))
        for start in range(0, len(rows), _ROWS)
    ]
    empty = np.zeros(0, dtype=np.float32)
    return np.concatenate([empty, *(one[0] for one in found)]), np.concatenate([empty, *(one[1] for one in found)])


def _figures(label: Any, logit: Any, pctr: Any, truth: Any) -> dict[str, float]:
    """What a graph is measured by; what the rows do not define is left out."""
    if len(label) == 0:
        return {}
    p = np.clip(pctr.astype(np.float64), 1e-12, 1 - 1e-12)
    found = evaluate(label, np.log(p) - np.log1p(-p), truth=truth)
    return {name: float(value) for name, value in found.items() if np.isfinite(value)}
