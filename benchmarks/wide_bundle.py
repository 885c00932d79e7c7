"""python -m benchmarks.wide_bundle DIR: a student of the usual size of public benchmarks, with random weights.

The built-in log's student is small: its run takes as long as reading the request. How much of a core a service leaves
to the network shows beside one of common size: 39 fields (25 of context, 14 a candidate), a million ids, embeddings of
16, three layers of 400, as in the Criteo benchmarks. What it predicts means nothing; it costs what such a model costs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from models.bundle import write_bundle
from models.encoder import Encoder
from models.golden import Golden, GoldenRequest
from models.graph import CANDIDATES, CONTEXT, LOGIT, PCTR, REQUEST_INDEX, graph_inputs
from models.manifest import (
    Calibration,
    Cost,
    DataFacts,
    FieldReference,
    Histogram,
    ModelCard,
    PartFacts,
    Reference,
)
from models.schema import FeatureSchema

NAME = "wide"
DIM, HIDDEN = 16, 400
CONTEXT_SIZES = (400_000, 60_000, 20_000, 5_000, 1_000, *(100,) * 10, *(20,) * 10)
"""Values of the context's fields; the first is the user."""
CANDIDATE_SIZES = (400_000, 80_000, 20_000, 5_000, 1_000, 500, *(100,) * 4, *(20,) * 4)
"""Values of a candidate's fields; the first is the ad."""

Floats = NDArray[np.float32]


def encoder_of(context_sizes: Sequence[int], candidate_sizes: Sequence[int]) -> Encoder:
    """String fields c0, c1, ... and a0, a1, ... with so many values each."""
    sides = {"context": ("c", context_sizes), "candidate": ("a", candidate_sizes)}
    fields, values = [], {}
    for role, (letter, sizes) in sides.items():
        for number, size in enumerate(sizes):
            name = f"{letter}{number}"
            values[name] = [f"{name}-{value}" for value in range(size)]
            fields.append(
                {
                    "name": name,
                    "type": "string",
                    "role": role,
                    "kind": "categorical",
                    "encoding": {"method": "vocabulary"},
                }
            )
    schema = {
        "label": {"column": "click"},
        "timestamp": {"column": "time", "format": "epoch"},
        "unit": {"column": "user"},
        "fields": fields,
    }
    return Encoder(FeatureSchema.model_validate(schema), values)


def graph_of(encoder: Encoder, random: np.random.Generator) -> bytes:
    """Embeddings, three layers of ReLU, a sigmoid; the context's share of the first layer once a request, as the
    exporter writes a student (`benchmarks.graphs` holds the two side by side)."""
    sizes, schema = encoder.sizes, encoder.schema
    starts = dict(zip(sizes, np.cumsum([0, *sizes.values()]), strict=False))
    split, rest = DIM * len(schema.context_fields), DIM * len(schema.candidate_fields)

    def weight(rows: int, columns: int) -> Floats:
        return random.normal(0, (2 / rows) ** 0.5, (rows, columns)).astype(np.float32)

    tensors = {
        "table": random.normal(0, 0.5, (sum(sizes.values()), DIM)).astype(np.float32),
        "first_context": np.array([starts[field.name] for field in schema.context_fields], np.int32),
        "first_candidate": np.array([starts[field.name] for field in schema.candidate_fields], np.int32),
        "context_width": np.array([-1, split], np.int64),
        "candidate_width": np.array([-1, rest], np.int64),
        "weight_context": weight(split, HIDDEN),
        "weight_candidate": weight(rest, HIDDEN),
        "weight_2": weight(HIDDEN, HIDDEN),
        "weight_3": weight(HIDDEN, HIDDEN),
        "weight_4": weight(HIDDEN, 1),
        "bias": np.zeros(HIDDEN, np.float32),
        "bias_4": np.array([-2.0], np.float32),
        "one": np.array([1], np.int64),
    }
    nodes = [
        ("Add", [CONTEXT, "first_context"], "context_rows"),
        ("Add", [CANDIDATES, "first_candidate"], "candidate_rows"),
        ("Gather", ["table", "context_rows"], "context_vectors"),
        ("Gather", ["table", "candidate_rows"], "candidate_vectors"),
        ("Reshape", ["context_vectors", "context_width"], "context_flat"),
        ("Reshape", ["candidate_vectors", "candidate_width"], "candidate_flat"),
        ("Gemm", ["context_flat", "weight_context", "bias"], "per_request"),
        ("Gather", ["per_request", REQUEST_INDEX], "spread"),
        ("Gemm", ["candidate_flat", "weight_candidate", "spread"], "first"),
        ("Relu", ["first"], "first_relu"),
        ("Gemm", ["first_relu", "weight_2", "bias"], "second"),
        ("Relu", ["second"], "second_relu"),
        ("Gemm", ["second_relu", "weight_3", "bias"], "third"),
        ("Relu", ["third"], "third_relu"),
        ("Gemm", ["third_relu", "weight_4", "bias_4"], "fourth"),
        ("Squeeze", ["fourth", "one"], LOGIT),
        ("Sigmoid", [LOGIT], PCTR),
    ]
    integer, real = onnx.TensorProto.INT32, onnx.TensorProto.FLOAT
    inputs = [
        helper.make_tensor_value_info(CONTEXT, integer, ["R", len(schema.context_fields)]),
        helper.make_tensor_value_info(CANDIDATES, integer, ["N", len(schema.candidate_fields)]),
        helper.make_tensor_value_info(REQUEST_INDEX, integer, ["N"]),
    ]
    graph = helper.make_graph(
        [helper.make_node(kind, taken, [given]) for kind, taken, given in nodes],
        NAME,
        inputs,
        [helper.make_tensor_value_info(name, real, ["N"]) for name in (LOGIT, PCTR)],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    written: bytes = model.SerializeToString()
    return written


def write_wide_bundle(
    repository: Path,
    context_sizes: Sequence[int] = CONTEXT_SIZES,
    candidate_sizes: Sequence[int] = CANDIDATE_SIZES,
) -> Path:
    """Writes it as the next version of `wide`, and returns its folder."""
    random = np.random.default_rng(1)
    encoder = encoder_of(context_sizes, candidate_sizes)
    model = graph_of(encoder, random)
    session = onnxruntime.InferenceSession(model)
    context = {name: f"{name}-1" for name in (f"c{number}" for number in range(len(context_sizes)))}
    rows = [{f"a{number}": f"a{number}-{row}" for number in range(len(candidate_sizes))} for row in range(3)]
    inputs = graph_inputs([encoder.encode_context(context)], [encoder.encode_candidates([*rows, {}])])
    logit, pctr = session.run([LOGIT, PCTR], inputs)
    golden = GoldenRequest(
        context=context, candidates=(*rows, {}), logit=tuple(logit.tolist()), pctr=tuple(pctr.tolist())
    )
    frequencies = {
        name: FieldReference.from_ids(np.minimum(random.zipf(1.3, 20_000) + 1, size - 1))
        for name, size in encoder.sizes.items()
    }
    in_table = DIM * sum(encoder.sizes.values())
    card = ModelCard(
        retort_version="0.1.0",
        data=DataFacts(
            source="random weights, for benchmarks",
            fingerprint="0" * 64,
            parts={part: PartFacts(rows=1) for part in ("train", "valid", "test")},
        ),
        recipe={"name": NAME},
        calibration=Calibration(),
        reference=Reference(fields=frequencies, pctr=Histogram.of_probabilities(np.linspace(0, 1, 100))),
        test_metrics={},
        parity_error=0.0,
        cost=Cost(
            parameters_embedding=in_table,
            parameters_dense=DIM * len(encoder.sizes) * HIDDEN + 2 * HIDDEN * HIDDEN + HIDDEN,
            bytes=len(model),
            latency={},
        ),
    )
    return write_bundle(repository, NAME, encoder=encoder, card=card, golden=Golden(requests=(golden,)), model=model)


def main(arguments: Sequence[str]) -> int:
    """Writes the bundle into a repository of bundles."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.wide_bundle", description=__doc__.split("\n\n")[0])
    parser.add_argument("repository", type=Path, metavar="DIR", help="where <DIR>/wide/1/ is written; 90 MB")
    options = parser.parse_args(arguments)
    options.repository.mkdir(parents=True, exist_ok=True)
    print(write_wide_bundle(options.repository))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
