"""A model of another library, by hand: its vocabularies as FuxiCTR leaves them, its graph, what it says of raw rows.

The graph is a table of weights a field: logit = bias + the sum of its fields' weights, of a list the sum over its
elements. `predict` says the same in plain Python from raw cells, tokenized as FuxiCTR 2.3.10 does it (`Tokenizer` in
its preprocess/tokenizer.py); so a test compares an encoder, a table of ids, a graph and a service with a dict.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from models.graph import CANDIDATES, CONTEXT, REQUEST_INDEX, ids_input, input_names, offsets_input
from models.schema import FeatureSchema

SCHEMA = """
label: {column: click}
fields:
  - {name: context, type: string, role: context, kind: categorical, encoding: {method: vocabulary}}
  - {name: hour, type: integer, role: context, kind: categorical, encoding: {method: vocabulary}}
  - {name: visited, type: string, role: context, kind: sequence, separator: "^", max_length: 3, keep: last,
     encoding: {method: vocabulary}}
  - {name: ad, type: string, role: candidate, kind: categorical, encoding: {method: vocabulary}}
  - {name: price, type: float, role: candidate, kind: categorical, encoding: {method: vocabulary}}
  - {name: tags, type: string, role: candidate, kind: sequence, separator: "^", max_length: 2, keep: first,
     encoding: {method: vocabulary}}
  - {name: position, type: integer, role: training_only, serving_value: 1, kind: categorical,
     encoding: {method: vocabulary}}
"""
"""A field that is called as an input of the contract is among them."""

TOKENS: dict[str, list[Any]] = {
    "context": ["phone", "tv", "téléphone 📱"],
    "hour": [0, 3, 9, 12, 23],
    "visited": ["x.org", "y.org", "z.org"],
    "ad": [f"a{number}" for number in range(30)],
    "price": [0.5, 1.0, 2.5],
    "tags": ["news", "sport"],
    "position": [1, 2, 3],
}
FILLS: dict[str, Any] = {"hour": 0, "price": 0.0, "position": 0}
"""What stands in a missing value's place; elsewhere the empty text, which is in no vocabulary."""
LENGTHS = {"visited": (3, "pre"), "tags": (2, "post")}
NAMES = list(TOKENS)
COLUMNS = ["click", *NAMES]


def schema() -> FeatureSchema:
    return FeatureSchema.from_text(SCHEMA)


def vocabulary(name: str) -> dict[Any, int]:
    """Token -> id, as `Tokenizer.build_vocab` leaves it."""
    found = {token: id_ for id_, token in enumerate(TOKENS[name], 1)}
    return found | {"__PAD__": 0, "__OOV__": len(found) + 1}


def write_fuxictr(folder: Path) -> Path:
    """feature_map.json and feature_vocab.json."""
    features = []
    for name in NAMES:
        facts: dict[str, Any] = {"source": "", "type": "categorical", "padding_idx": 0}
        if name in LENGTHS:
            facts |= {"type": "sequence", "max_len": LENGTHS[name][0]}
        features.append({name: facts | {"vocab_size": len(TOKENS[name]) + 2}})
    folder.mkdir(parents=True)
    (folder / "feature_map.json").write_text(json.dumps({"dataset_id": "x", "labels": ["click"], "features": features}))
    (folder / "feature_vocab.json").write_text(json.dumps({name: vocabulary(name) for name in NAMES}))
    return folder


def write_lists(folder: Path) -> Path:
    """The same values as lists in canonical form, for a graph that takes our ids."""
    folder.mkdir(parents=True)
    for name in NAMES:
        texts = [token if isinstance(token, str) else f"{token:g}" for token in TOKENS[name]]
        (folder / f"{name}.json").write_text(json.dumps(texts))
    return folder


def their_ids(name: str, cell: Any) -> list[int]:
    """What FuxiCTR makes of a raw value: one id, or a padded list of them."""
    ids = vocabulary(name)
    if name not in LENGTHS:
        value = FILLS.get(name, "") if cell is None else cell
        return [ids.get(value, ids["__OOV__"])]
    length, padding = LENGTHS[name]
    text = "^".join(cell) if cell else ""
    found = [ids.get(part, ids["__OOV__"]) if part else 0 for part in text.split("^")]
    found = found[-length:] if padding == "pre" else found[:length]
    rest = [0] * (length - len(found))
    return rest + found if padding == "pre" else found + rest


def weights(name: str) -> np.ndarray:
    """[ids, 1]: the table of a field, drawn by its name; padding weighs nothing."""
    rng = np.random.default_rng(list(name.encode()))
    table = rng.normal(0, 0.7, (len(TOKENS[name]) + 2, 1)).astype(np.float32)
    if name in LENGTHS:
        table[0] = 0
    return table


def places(name: str) -> np.ndarray:
    """[length]: what an element weighs by its place in the padded list, so that padding on the wrong side shows."""
    return np.linspace(1.0, 2.0, LENGTHS[name][0]).astype(np.float32)


def logit_of(row: Mapping[str, Any]) -> float:
    """The logit of a raw row, context and candidate together; `position` is 1 when serving."""
    total = -0.5
    for name in NAMES:
        values = weights(name)[their_ids(name, 1 if name == "position" else row.get(name)), 0].astype(np.float64)
        total += float(values @ places(name) if name in LENGTHS else values[0])
    return total


def predict(row: Mapping[str, Any]) -> float:
    return float(1 / (1 + np.exp(-logit_of(row))))


def graph(
    *,
    outputs: Sequence[str] = ("y_pred",),
    batch: int | str = "batch",
    dtype: int = TensorProto.INT64,
    column: bool = False,
    opset: int = 18,
    ir_version: int = 10,
    renamed: Mapping[str, str] | None = None,
    bias: float = -0.5,
    mean_centred: bool = False,
) -> onnx.ModelProto:
    """One input a field: ids [batch] ([batch, 1] with `column`), lists [batch, length]. Outputs are [batch, 1].

    `mean_centred` makes a row's score depend on the company it keeps, as batch normalisation in training mode does.
    """
    renamed = renamed or {}
    nodes, constants, inputs = [], {"bias": np.array([bias], np.float32), "axis": np.array([1], np.int64)}, []
    parts = []
    for name in NAMES:
        taken = renamed.get(name, name)
        is_list = name in LENGTHS
        shape = [batch, LENGTHS[name][0]] if is_list else [batch, 1] if column else [batch]
        inputs.append(helper.make_tensor_value_info(taken, dtype, shape))
        constants[f"{name}.weight"] = weights(name)
        nodes.append(helper.make_node("Gather", [f"{name}.weight", taken], [f"{name}_vectors"]))
        if is_list:
            constants[f"{name}.places"] = places(name)[:, None]
            nodes.append(helper.make_node("Mul", [f"{name}_vectors", f"{name}.places"], [f"{name}_weighed"]))
            nodes.append(helper.make_node("ReduceSum", [f"{name}_weighed", "axis"], [f"{name}_sum"], keepdims=0))
        elif column:
            nodes.append(helper.make_node("Squeeze", [f"{name}_vectors", "axis"], [f"{name}_sum"]))
        parts.append(f"{name}_sum" if is_list or column else f"{name}_vectors")
    nodes.append(helper.make_node("Sum", [*parts, "bias"], ["raw"]))
    if mean_centred:
        nodes += [
            helper.make_node("ReduceMean", ["raw"], ["mean"], keepdims=1),
            helper.make_node("Sub", ["raw", "mean"], ["logit"]),
        ]
    else:
        nodes.append(helper.make_node("Identity", ["raw"], ["logit"]))
    nodes.append(helper.make_node("Sigmoid", ["logit"], ["y_pred"]))
    built = helper.make_graph(
        nodes,
        "elsewhere",
        inputs,
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, 1]) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(built, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)


def contract_graph() -> onnx.ModelProto:
    """The same scores in the contract's form with our ids, int64, and `logit` alone; training-only fields left out."""
    schema_ = schema()
    constants = {"bias": np.array([-0.5 + weights("position")[their_ids("position", 1), 0].item()], np.float32)}
    nodes: list[Any] = []

    def node(op: str, *given: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op, list(given), [f"v{len(nodes)}"], **attributes))
        return f"v{len(nodes) - 1}"

    def constant(value: Any, kind: Any = np.int64) -> str:
        constants[f"c{len(constants)}"] = np.array(value, kind)
        return f"c{len(constants) - 1}"

    terms = []
    for source, fields in ((CONTEXT, schema_.context_id_fields), (CANDIDATES, schema_.candidate_id_fields)):
        for place, field in enumerate(fields):
            ids = vocabulary(field.name)
            fill = FILLS.get(field.name, "")
            order = [ids.get(fill, ids["__OOV__"]), ids["__OOV__"], *(ids[token] for token in TOKENS[field.name])]
            table = constant(weights(field.name)[order, 0], np.float32)
            found = node("Gather", table, node("Gather", source, constant(place), axis=1))
            terms.append(node("Gather", found, REQUEST_INDEX) if source == CONTEXT else found)
    inputs = []
    for name in input_names(schema_):
        width = {CONTEXT: ["r", 2], CANDIDATES: ["n", 2]}.get(name, [f"any_{name}"])
        inputs.append(helper.make_tensor_value_info(name, TensorProto.INT64, width))
    for field in schema_.sequence_fields:  # a list's own length, so that both of its inputs are read
        starts = node("Slice", offsets_input(field.name), constant([0]), constant([-1]))
        first = node("Gather", ids_input(field.name), starts)
        order = [0, vocabulary(field.name)["__OOV__"], *range(1, len(TOKENS[field.name]) + 1)]
        found = node("Gather", constant(weights(field.name)[order, 0], np.float32), first)
        terms.append(node("Gather", found, REQUEST_INDEX) if field.role == "context" else found)
    nodes.append(helper.make_node("Sum", [*terms, "bias"], ["logit"]))
    built = helper.make_graph(
        nodes,
        "ours",
        inputs,
        [helper.make_tensor_value_info("logit", TensorProto.FLOAT, ["n"])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(built, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def contract_predict(row: Mapping[str, Any]) -> float:
    """What `contract_graph` says of a raw row: of a list the first element that is kept counts."""
    total = -0.5
    for name in NAMES:
        value = 1 if name == "position" else row.get(name)
        if name in LENGTHS:
            length, padding = LENGTHS[name]
            kept = [element for element in value or [] if element]
            kept = kept[-length:] if padding == "pre" else kept[:length]
            id_ = their_ids(name, [kept[0]])[-1 if padding == "pre" else 0] if kept else 0
            total += float(weights(name)[id_, 0])
        else:
            total += float(weights(name)[their_ids(name, value)[0], 0])
    return float(1 / (1 + np.exp(-total)))


def raw_rows(count: int = 120, seed: int = 0) -> list[dict[str, Any]]:
    """Rows with missing, unknown and known values, empty and long lists."""
    rng, rows = np.random.default_rng(seed), []
    for _ in range(count):
        row: dict[str, Any] = {}
        for name, tokens in TOKENS.items():
            odd = {"hour": 77, "price": 3.25, "position": 9}.get(name, "never seen")
            values = [*tokens, odd]
            if name in LENGTHS:
                row[name] = [str(part) for part in rng.choice(np.array(values, object), rng.integers(0, 6))] or None
            else:
                row[name] = None if rng.random() < 0.1 else values[rng.integers(len(values))]
        rows.append(row)
    return rows


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]], predict_: Any = predict, labels: bool = True) -> Path:
    """The rows as a CSV, with `said`, what their library predicts; the column `click` only with `labels`."""
    lines = [",".join([*(["click"] if labels else []), *NAMES, "said"])]
    for number, row in enumerate(rows):
        cells = ["^".join(v) if isinstance(v, list) else "" if v is None else str(v) for v in map(row.get, NAMES)]
        lines.append(",".join([*([str(number % 3 // 2)] if labels else []), *cells, repr(predict_(row))]))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def request_of(row: Mapping[str, Any], others: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """The body of a request: this row's context, it and others as candidates."""
    schema_ = schema()

    def side(fields: Sequence[Any], of: Mapping[str, Any]) -> dict[str, Any]:
        return {field.name: of[field.name] for field in fields if of.get(field.name) is not None}

    return {
        "context": side(schema_.context_fields, row),
        "candidates": [side(schema_.candidate_fields, each) for each in (row, *others)],
    }
