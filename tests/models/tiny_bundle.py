"""A tiny real bundle: a few fields of every kind, a graph of a dozen nodes, no torch.

`write_tiny_bundle` is the collaborator of every test that needs a model on disk. The graph is logistic regression
over one fused table: logit = bias + the sum of its fields' weights (the mean of them, for a sequence). What it
answers is also computed here in plain numpy (`TinyModel.score`), which is where the golden scores come from; so a
test that runs the graph compares two implementations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from models.bundle import write_bundle
from models.encoder import EncodedRows, Encoder
from models.golden import Golden, GoldenRequest
from models.graph import (
    CANDIDATES,
    CONTEXT,
    GATE_WEIGHTS,
    LOGIT,
    PCTR,
    REQUEST_INDEX,
    TEACHER_LOGITS,
    ids_input,
    offsets_input,
)
from models.manifest import (
    Calibration,
    Cost,
    DataFacts,
    FieldReference,
    Histogram,
    Latency,
    ModelCard,
    PartFacts,
    Reference,
    Teacher,
)
from models.schema import FeatureSchema

SCHEMA = """
label: {column: click}
timestamp: {column: time, format: epoch}
unit: {column: user}
fields:
  - {name: device, type: string, role: context, kind: categorical, encoding: {method: vocabulary}}
  - {name: hour, derived_from: timestamp, derive: hour, type: integer, role: context, kind: categorical,
     encoding: {method: vocabulary}}
  - {name: age, type: integer, role: context, kind: numeric, encoding: {method: quantile, buckets: 4}}
  - {name: premium, type: boolean, role: context, kind: categorical, encoding: {method: vocabulary}}
  - {name: visited, type: string, role: context, kind: sequence, separator: "|", max_length: 3,
     encoding: {method: hash, buckets: 8, seed: 7}}
  - {name: ad_id, type: string, role: candidate, kind: categorical, encoding: {method: vocabulary, max_size: 50}}
  - {name: price, type: float, role: candidate, kind: numeric, encoding: {method: log_bucket, buckets: 16}}
  - {name: campaign, type: integer, role: candidate, kind: categorical, encoding: {method: hash, buckets: 16}}
  - {name: tags, type: string, role: candidate, kind: sequence, separator: "|", max_length: 4,
     encoding: {method: vocabulary}}
  - {name: position, type: integer, role: training_only, serving_value: 1, kind: categorical,
     encoding: {method: vocabulary}}
"""

VOCABULARIES: dict[str, Sequence[Any]] = {
    "device": ["phone", "desktop", "tablet", "téléphone 📱"],
    "hour": [str(hour) for hour in range(24)],
    "age": [18.0, 30.0, 55.5],
    "premium": ["0", "1"],
    "ad_id": [f"a{number}" for number in range(40)],
    "price": [1.0, 2.718281828459045, 4.1132503787829275],
    "tags": ["sport", "news", "film"],
    "position": ["1", "2", "3"],
}

REQUESTS: list[tuple[dict[str, Any], list[dict[str, Any]]]] = [
    (
        {"device": "phone", "hour": 13, "age": 30, "premium": True, "visited": ["x.org", "y.org"]},
        [
            {"ad_id": "a1", "price": 2.5, "campaign": 7, "tags": ["sport", "film"]},
            {"ad_id": "a2", "price": 0, "campaign": 2**64 - 1, "tags": []},
            {"ad_id": "never seen", "price": 1e308, "campaign": -(2**63), "tags": ["none of these"]},
            {"ad_id": None, "price": -0.0, "campaign": None, "tags": None},
        ],
    ),
    ({}, [{}]),
    (
        {"device": "téléphone 📱", "hour": 23, "age": 2**53 + 1, "premium": None, "visited": [None, "", "a", "b", "c"]},
        [{"ad_id": "a39", "price": 5e-324, "tags": ["news", None, "sport", "film", "news", "news"]}, {"ad_id": ""}],
    ),
]
"""Raw golden requests: plain, empty and extreme."""


@dataclass(frozen=True)
class TinyModel:
    """Weights [T] of one fused table, where each field starts in it, and a bias."""

    encoder: Encoder
    weights: np.ndarray
    starts: Mapping[str, int]
    bias: float
    calibration: Calibration

    def score(self, context: EncodedRows, candidates: EncodedRows) -> tuple[np.ndarray, np.ndarray]:
        """logit [N] and pctr [N] of one request, in float64."""
        logit = np.full(len(candidates.ids), self.bias)
        for rows, fields in (
            (context, self.encoder.schema.context_id_fields),
            (candidates, self.encoder.schema.candidate_id_fields),
        ):
            for column, field in enumerate(fields):
                logit += self.weights[rows.ids[:, column] + self.starts[field.name]]
            for name, (ids, offsets) in rows.sequences.items():
                pooled = [self.weights[ids[start:end] + self.starts[name]].mean() for start, end in pairwise(offsets)]
                logit += np.array(pooled)
        pctr = 1 / (1 + np.exp(-(self.calibration.scale * logit + self.calibration.bias)))
        return logit, pctr


def tiny_model(bias: float = 0.0, seed: int = 0) -> TinyModel:
    """Weights drawn with `seed`; `bias` tells two models apart."""
    schema = FeatureSchema.from_text(SCHEMA)
    encoder = Encoder(schema, VOCABULARIES)
    served = [field.name for field in (*schema.context_fields, *schema.candidate_fields)]
    starts, total = {}, 0
    for name in served:
        starts[name] = total
        total += encoder.sizes[name]
    weights = np.random.default_rng(seed).normal(0, 0.5, total).astype(np.float32)
    return TinyModel(encoder, weights, starts, bias, Calibration(scale=0.9, bias=-0.1))


def tiny_golden(model: TinyModel) -> Golden:
    """REQUESTS with what the model answers in numpy."""
    requests = []
    for context, candidates in REQUESTS:
        logit, pctr = model.score(model.encoder.encode_context(context), model.encoder.encode_candidates(candidates))
        requests.append(
            GoldenRequest(
                context=context, candidates=tuple(candidates), logit=tuple(logit.tolist()), pctr=tuple(pctr.tolist())
            )
        )
    return Golden(requests=tuple(requests))


def tiny_graph(model: TinyModel, *, teachers: int = 0) -> bytes:
    """The ONNX graph; with `teachers` > 0 also teacher_logits (logit + i - mean) and gate_weights (equal)."""
    schema = model.encoder.schema
    nodes: list[Any] = []
    constants = {
        "weights": model.weights,
        "zero": np.array([0], np.int64),
        "one": np.array([1], np.int64),
        "end": np.array([np.iinfo(np.int64).max], np.int64),
        "bias": np.array([model.bias], np.float32),
        "scale": np.array([model.calibration.scale], np.float32),
        "shift": np.array([model.calibration.bias], np.float32),
        "no_sum": np.array([0], np.float32),
        "at_least": np.array([1], np.float32),
    }

    def node(op: str, *inputs: str, **attributes: Any) -> str:
        name = attributes.pop("output", f"{op.lower()}_{len(nodes)}")
        nodes.append(helper.make_node(op, list(inputs), [name], **attributes))
        return str(name)

    def side_sum(ids: str, fields: Sequence[Any]) -> str:
        constants[f"{ids}_starts"] = np.array([model.starts[field.name] for field in fields], np.int32)
        return node("ReduceSum", node("Gather", "weights", node("Add", ids, f"{ids}_starts")), "one", keepdims=0)

    def pooled(field: str) -> str:
        """The mean over each segment, from the running sum at its two ends; an empty one is id 0."""
        constants[f"{field}_start"] = np.array(model.starts[field], np.int32)
        constants[f"{field}_missing"] = model.weights[model.starts[field] : model.starts[field] + 1]
        looked_up = node("Gather", "weights", node("Add", ids_input(field), f"{field}_start"))
        running = node("Concat", "no_sum", node("CumSum", looked_up, "zero_axis"), axis=0)
        ends = node("Slice", offsets_input(field), "one", "end", "zero")
        starts = node("Slice", offsets_input(field), "zero", "minus_one", "zero")
        total = node("Sub", node("Gather", running, ends), node("Gather", running, starts))
        length = node("Cast", node("Sub", ends, starts), to=TensorProto.FLOAT)
        mean = node("Div", total, node("Max", length, "at_least"))
        return node("Where", node("Equal", ends, starts), f"{field}_missing", mean)

    constants["zero_axis"] = np.array(0, np.int64)
    constants["minus_one"] = np.array([-1], np.int64)
    per_request = side_sum(CONTEXT, schema.context_id_fields)
    per_candidate = side_sum(CANDIDATES, schema.candidate_id_fields)
    for field in schema.sequence_fields:
        if field.role == "context":
            per_request = node("Add", per_request, pooled(field.name))
        else:
            per_candidate = node("Add", per_candidate, pooled(field.name))
    both = node("Add", node("Gather", per_request, REQUEST_INDEX), per_candidate)
    logit = node("Add", both, "bias", output=LOGIT)
    node("Sigmoid", node("Add", node("Mul", logit, "scale"), "shift"), output=PCTR)
    outputs = [(LOGIT, ["N"]), (PCTR, ["N"])]
    if teachers:
        spread = np.arange(teachers, dtype=np.float32) - (teachers - 1) / 2
        constants["spread"] = spread[None, :]
        constants["gate"] = np.full((1, teachers), 1 / teachers, np.float32)
        column = node("Unsqueeze", logit, "one")
        node("Add", column, "spread", output=TEACHER_LOGITS)
        node("Add", node("Sub", column, column), "gate", output=GATE_WEIGHTS)
        outputs += [(TEACHER_LOGITS, ["N", teachers]), (GATE_WEIGHTS, ["N", teachers])]

    inputs = [
        (CONTEXT, ["R", len(schema.context_id_fields)]),
        (CANDIDATES, ["N", len(schema.candidate_id_fields)]),
        (REQUEST_INDEX, ["N"]),
    ]
    for field in schema.sequence_fields:
        rows = "R1" if field.role == "context" else "N1"
        inputs += [(ids_input(field.name), [f"K_{field.name}"]), (offsets_input(field.name), [rows])]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(name, TensorProto.INT32, shape) for name, shape in inputs],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs],
        [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in constants.items()],
    )
    built = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(built, full_check=True)
    return built.SerializeToString(deterministic=True)


def tiny_card(model: TinyModel, *, teachers: int = 0) -> ModelCard:
    """A manifest's facts, small but of every kind."""
    sizes = model.encoder.sizes
    return ModelCard(
        retort_version="0.1.0",
        git_commit=None,
        data=DataFacts(
            source="tiny",
            fingerprint="0" * 64,
            parts={"train": PartFacts(rows=1000), "valid": PartFacts(rows=100), "test": PartFacts(rows=100)},
        ),
        recipe={"name": "tiny", "seed": 0},
        teachers=tuple(Teacher(name=f"t{i}", mean_gate_weight=1 / teachers) for i in range(teachers)),
        temperature=1.0,
        calibration=model.calibration,
        reference=Reference(
            fields={
                name: FieldReference.from_ids(np.arange(size)) for name, size in sizes.items() if name in model.starts
            },
            pctr=Histogram.of_probabilities(np.linspace(0, 1, 1000)),
        ),
        test_metrics={"tiny": {"auc": 0.7, "logloss": 0.4}, "control_train_valid": {"auc": 0.69, "logloss": 0.41}},
        parity_error=0.0,
        cost=Cost(
            parameters_embedding=len(model.weights),
            parameters_dense=1,
            bytes=4 * len(model.weights),
            latency={"50": Latency(p50_ms=0.1, p99_ms=0.2)},
        ),
    )


def write_tiny_bundle(
    repository: Path, name: str = "tiny", *, bias: float = 0.0, seed: int = 0, teachers: int = 0
) -> Path:
    """The next version of `name` under `repository`: a student, or with `teachers` > 0 an ensemble."""
    model = tiny_model(bias, seed)
    return write_bundle(
        repository,
        name,
        encoder=model.encoder,
        card=tiny_card(model, teachers=teachers),
        golden=tiny_golden(model),
        model=tiny_graph(model, teachers=teachers),
    )
