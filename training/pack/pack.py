"""A foreign graph, its vocabularies and some raw rows -> the next version of a model in a repository, or a refusal.

Nothing is written to the repository before everything was checked; what `write_bundle` then writes is whole or absent.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from models.checksums import hash_file
from models.graph import LOGIT, PCTR
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
)
from models.schema import FeatureSchema
from models.versions import is_model_name
from training.data.fingerprint import fingerprint
from training.data.golden_rows import golden_requests
from training.errors import PackError
from training.export.bundles import Published, encode_request, git_state, golden_of, publish_model, version
from training.export.cost import bytes_of, measure_costs, open_session
from training.export.parity import Feed
from training.fit.metrics import evaluate, sigmoid
from training.pack.checks import check_answers, drawn_feeds, refuse_ids_beyond, refuse_unexpected
from training.pack.graph import Foreign, read_graph
from training.pack.rows import Batch, Rows, refuse_strangers
from training.pack.vocabularies import encoder_of, read_vocabularies
from training.pack.wrapping import wrap, write

COST_ROUNDS, COST_RUNS = 10, 10


@dataclass(frozen=True)
class Order:
    """What is to be packed, and how."""

    graph: Path
    schema: Path
    rows: Path
    name: str
    repository: Path
    vocabularies: Path | None = None
    logit: str | None = None
    probability: str | None = None
    expect: str | None = None
    calibration: Calibration = field(default_factory=Calibration)
    renamed: Mapping[str, str] = field(default_factory=dict)
    fills: Mapping[str, str] = field(default_factory=dict)
    allow_unknown: Sequence[str] = ()


@dataclass(frozen=True)
class Packed:
    """What came of it."""

    published: Published
    rows: int
    parity_error: float
    expected_error: float | None
    """Largest difference to their own predictions, where those were given."""
    metrics: Mapping[str, float]
    missing: Mapping[str, float]
    unknown: Mapping[str, float]
    """Share of the rows' values, by field."""
    bad_cells: Mapping[str, int]
    bad_rows: int


def pack(order: Order, say: Callable[[str], None] = lambda line: None) -> Packed:
    """Check, wrap, score, publish. Raises `PackError`, `DataError` or a `ModelsError`; then nothing was written."""
    if not is_model_name(order.name):
        raise PackError(
            f"--name {order.name}: expected a-z, 0-9, '.', '_' and '-', at most 64, a letter or digit first"
        )
    schema = FeatureSchema.from_file(order.schema)
    for name in order.allow_unknown:
        if name not in schema.by_name:
            raise PackError(f"--allow-unknown {name}: the schema has no such field")
    carried = read_vocabularies(order.vocabularies, schema, order.fills)
    encoder = encoder_of(schema, carried, order.vocabularies)
    foreign = read_graph(
        order.graph, encoder, carried, renamed=order.renamed, logit=order.logit, probability=order.probability
    )
    say(f"{order.graph.name}: {'the inputs of the contract' if foreign.is_ours else 'one input a field'}")
    refuse_ids_beyond(foreign)
    rows = Rows(order.rows, schema, encoder, order.expect)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        files = {file.name: file for file in write(wrap(foreign, order.calibration), folder)}
        try:
            session = open_session(folder / "model.onnx")
        except Exception as error:  # onnxruntime raises a dozen unrelated types
            raise PackError(f"{order.graph}: ONNX Runtime cannot load it in the contract's form: {error}") from None
        scored = _Scored(order, foreign, session, rows)
        requests = golden_requests(schema, rows.sample)
        feeds = [encode_request(encoder, request) for request in requests]
        hard = [(f"golden row of request {place}", feed) for place, feed in enumerate(feeds)]
        drawn = [("ids drawn at random", feed) for feed in drawn_feeds(foreign)]
        parity = max(scored.parity, check_answers(foreign, session, order.calibration, [*hard, *drawn]))
        golden = golden_of(requests, [session.run([LOGIT, PCTR], feed) for feed in feeds])
        say(f"{scored.count} rows and {len(requests)} golden requests: within {parity:.1e} of the graph that came")
        costs = measure_costs(
            {order.name: folder / "model.onnx"},
            lambda count: [scored.request_of(count)],
            rounds=COST_ROUNDS,
            runs=COST_RUNS,
        )
        card = _card(order, foreign, rows, scored, parity, costs[order.name], bytes_of(folder))
        published = publish_model(order.repository, order.name, encoder=encoder, card=card, golden=golden, files=files)
    totals = {name: max(1, int(counts.sum())) for name, counts in rows.counts.items()}
    return Packed(
        published,
        scored.count,
        parity,
        scored.expected_error,
        card.test_metrics.get(order.name, {}),
        {name: int(counts[0]) / totals[name] for name, counts in rows.counts.items()},
        {name: int(counts[1]) / totals[name] for name, counts in rows.counts.items()},
        rows.bad_cells,
        rows.bad_rows,
    )


class _Scored:
    """All rows, scored by the packed graph and compared on the way."""

    def __init__(self, order: Order, foreign: Foreign, session: Any, rows: Rows) -> None:
        self.parity, self.expected_error, self.count = 0.0, None if order.expect is None else 0.0, 0
        self._first: Batch | None = None
        labels: list[NDArray[np.float32]] = []
        logits: list[NDArray[np.float64]] = []
        for batch in rows.batches():
            self._first = self._first or batch
            self.parity = max(self.parity, check_answers(foreign, session, order.calibration, _feeds(batch)))
            logit = session.run([LOGIT], batch.feed)[0].astype(np.float64)
            if batch.expected is not None and order.expect is not None:
                gap = refuse_unexpected(foreign, batch, logit, batch.expected, order.expect)
                self.expected_error = max(self.expected_error or 0.0, gap)
            labels.append(batch.label)
            logits.append(logit)
            self.count += len(logit)
        refuse_strangers(rows, order.allow_unknown)
        self.label, self.logit = np.concatenate(labels), np.concatenate(logits)

    def request_of(self, count: int) -> Feed:
        """A request of so many candidates, rows of the file, repeated where it has fewer."""
        assert self._first is not None
        feed = self._first.as_one
        return _repeated(feed, count)


def _feeds(batch: Batch) -> Iterator[tuple[str, Feed]]:
    yield f"rows from {batch.place(0)} on", batch.feed
    yield f"rows from {batch.place(0)} on, as candidates of one request", batch.as_one


def _repeated(feed: Feed, count: int) -> Feed:
    """The first `count` candidates of a feed of one request, again and again where there are fewer."""
    rows = np.arange(count) % len(feed["request_index"])
    repeated = dict(feed) | {"candidates": feed["candidates"][rows], "request_index": np.zeros(count, np.int32)}
    for name in feed:
        offsets = feed[name]
        if name.endswith("_offsets") and len(offsets) != 2:  # a sequence of the candidates'
            ids = feed[f"{name.removesuffix('_offsets')}_ids"]
            parts = [ids[offsets[row] : offsets[row + 1]] for row in rows]
            repeated[f"{name.removesuffix('_offsets')}_ids"] = np.concatenate(parts)
            repeated[name] = np.cumsum([0, *map(len, parts)]).astype(np.int32)
    return repeated


def _card(
    order: Order,
    foreign: Foreign,
    rows: Rows,
    scored: _Scored,
    parity: float,
    latency: Mapping[str, Mapping[str, float]],
    size: int,
) -> ModelCard:
    commit, dirty = git_state()
    calibration, has_labels = order.calibration, rows.has_labels
    logit = calibration.scale * scored.logit + calibration.shift
    metrics: dict[str, dict[str, float]] = {}
    if has_labels:
        found = evaluate(scored.label, logit)
        metrics[order.name] = {name: float(value) for name, value in found.items() if np.isfinite(value)}
    embedding, dense = _parameters(foreign.model)
    served = [field.name for field in foreign.encoder.schema.fields if field.role != "training_only"]
    return ModelCard(
        retort_version=version(),
        git_commit=commit,
        git_dirty=dirty,
        data=DataFacts(
            source=order.rows.name,
            fingerprint=fingerprint([order.rows]),
            parts={"test": PartFacts(rows=scored.count)},
        ),
        recipe={
            "packed": {
                "graph": order.graph.name,
                "sha256": hash_file(order.graph),
                "producer": f"{foreign.model.producer_name} {foreign.model.producer_version}".strip(),
                "form": "contract" if foreign.is_ours else "one input a field",
                "inputs": {name: taken.name for name, taken in foreign.inputs.items()},
                "logit": order.logit or foreign.logit,
                "probability": order.probability or foreign.probability,
                "fill_na": dict(order.fills),
                "expected_error": scored.expected_error,
            }
        },
        calibration=calibration,
        reference=Reference(
            fields={name: FieldReference.from_counts(rows.counts[name]) for name in served},
            pctr=Histogram.of_probabilities(sigmoid(logit)),
        ),
        test_metrics=metrics,
        parity_error=parity,
        cost=Cost(
            parameters_embedding=embedding,
            parameters_dense=dense,
            bytes=size,
            latency={count: Latency(**value) for count, value in latency.items()},
        ),
    )


def _parameters(model: onnx.ModelProto) -> tuple[int, int]:
    """Weights in tables that are looked up by id, and all others."""
    tables = {node.input[0] for node in model.graph.node if node.op_type == "Gather"}
    floats = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16}
    embedding = dense = 0
    for tensor in model.graph.initializer:
        if tensor.data_type in floats:
            size = int(np.prod(list(tensor.dims), dtype=np.int64))
            if tensor.name in tables and len(tensor.dims) == 2:
                embedding += size
            else:
                dense += size
    return embedding, dense
