"""Does an exported graph answer as the networks it came from? Checked at every export, on every kind of row.

The reference is the networks as they were trained: the row form, each candidate with its own copy of the context, gate
and calibration in numpy. So the split form, the wide table, the pooling of sequences and the calibration are all on
the other side of the comparison.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import nn

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
from training.data.encoded_log import EncodedLog
from training.errors import ExportError
from training.export.serving_graph import Head, Wiring
from training.fit.metrics import sigmoid
from training.zoo import Encoded

TOLERANCE = 1e-5
"""Largest difference allowed, absolute, or relative to outputs above 1: float32 has no more to give there."""

Feed = dict[str, NDArray[np.int32]]


@dataclass(frozen=True)
class Parity:
    """The largest differences met, as parts of max(1, |expected|), over so many candidates."""

    candidates: int
    logit: float
    pctr: float


def check_parity(
    session: onnxruntime.InferenceSession,
    feeds: Iterable[Feed],
    networks: Mapping[str, nn.Module],
    wiring: Wiring,
    head: Head,
    *,
    name: str = "model",
) -> Parity:
    """Compare every output on every feed; `ExportError` names the first output that differs by too much."""
    worst: dict[str, float] = {}
    candidates = 0
    for feed in feeds:
        wanted = expected_outputs(feed, networks, wiring, head)
        got = dict(zip(wanted, session.run(list(wanted), feed), strict=True))
        candidates += len(feed[REQUEST_INDEX])
        for output, value in wanted.items():
            if got[output].shape != value.shape:
                raise ExportError(
                    f"{name}: {output}: expected shape {value.shape}, got {got[output].shape} from ONNX Runtime"
                )
            gap = np.abs(got[output] - value) / np.maximum(1.0, np.abs(value))
            if not (gap <= TOLERANCE).all():
                at = np.unravel_index(np.argmax(np.where(np.isnan(gap), np.inf, gap)), gap.shape)
                raise ExportError(
                    f"{name}: {output}: expected {value[at]:.7g} as torch says, got {got[output][at]:.7g} from ONNX "
                    f"Runtime, which differs by more than {TOLERANCE:g}; the model was not exported"
                )
            worst[output] = max(worst.get(output, 0.0), float(gap.max(initial=0.0)))
    return Parity(candidates, max(worst.get(LOGIT, 0.0), worst.get(TEACHER_LOGITS, 0.0)), worst.get(PCTR, 0.0))


def expected_outputs(
    feed: Feed, networks: Mapping[str, nn.Module], wiring: Wiring, head: Head
) -> dict[str, NDArray[np.float64]]:
    """What the graph has to answer, from the networks as they were trained."""
    batch = as_rows(feed, wiring)
    with torch.inference_mode():
        answers = [network.eval()(batch) for network in networks.values()]
    teacher_logits = np.stack([logit.double().numpy() for logit, _ in answers], axis=1)
    hints = [hint.double().numpy() for _, hint in answers] if head.gate is not None and head.gate.takes_hints else []
    logit = teacher_logits[:, 0] if head.gate is None else head.gate.ensemble_logit(teacher_logits, hints)
    sampled = sigmoid(head.platt.apply(logit))
    outputs = {LOGIT: logit, PCTR: sampled / (sampled + (1 - sampled) / head.negative_keep_rate)}
    if head.gate is not None:
        outputs |= {TEACHER_LOGITS: teacher_logits, GATE_WEIGHTS: head.gate.gate_weights(teacher_logits, hints)}
    return outputs


def as_rows(feed: Feed, wiring: Wiring) -> Encoded:
    """A feed in the row form: every candidate with its request's context, training-only fields filled in."""
    index = feed[REQUEST_INDEX]
    context = feed[CONTEXT][index]
    constants = np.tile(np.array(list(wiring.serving_ids.values()), dtype=np.int32), (len(index), 1))
    sequences = {}
    for spec in wiring.fields:
        if spec.is_sequence:
            ids, offsets = feed[ids_input(spec.name)], feed[offsets_input(spec.name)]
            segments = [ids[start:end] for start, end in pairwise(offsets)]
            if spec.side == "context":
                segments = [segments[request] for request in index]
            ends = np.cumsum([0, *map(len, segments)])
            joined = np.concatenate([np.zeros(0, dtype=np.int32), *segments])
            sequences[spec.name] = torch.from_numpy(joined), torch.from_numpy(ends)
    return Encoded(
        torch.from_numpy(np.concatenate([context, constants], axis=1)),
        torch.from_numpy(feed[CANDIDATES]),
        None,
        sequences,
    )


def random_feeds(wiring: Wiring, seed: int = 0) -> Iterator[Feed]:
    """Ids drawn evenly over each table, its first and last rows among them: one candidate, one request of many,
    several requests of uneven size, a request without candidates, sequences of 0 to 6 elements."""
    rng = np.random.default_rng(seed)
    for sizes in ([1], [64], [3, 1, 17, 2], [2, 0, 5]):
        yield _random_feed(wiring, sizes, lambda size, shape: rng.integers(0, size, shape), rng)
    for ends in (lambda size, shape: np.zeros(shape), lambda size, shape: np.full(shape, size - 1)):
        yield _random_feed(wiring, [2, 3], ends, rng)


def _random_feed(wiring: Wiring, sizes: list[int], draw: Any, rng: np.random.Generator) -> Feed:
    count = {"context": len(sizes), "candidate": sum(sizes)}
    columns: dict[str, list[NDArray[np.int32]]] = {"context": [], "candidate": []}
    feed: Feed = {}
    for spec in wiring.fields:
        if spec.is_sequence:
            ends = np.cumsum([0, *rng.integers(0, 7, count[spec.side])])
            feed[ids_input(spec.name)] = draw(spec.size, ends[-1]).astype(np.int32)
            feed[offsets_input(spec.name)] = ends.astype(np.int32)
        elif spec.name not in wiring.serving_ids:
            columns[spec.side].append(draw(spec.size, count[spec.side]).astype(np.int32))
    for name, side in ((CONTEXT, "context"), (CANDIDATES, "candidate")):
        empty = np.zeros((count[side], 0), dtype=np.int32)
        feed[name] = np.concatenate([empty, *(column[:, None] for column in columns[side])], axis=1)
    feed[REQUEST_INDEX] = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    return feed


def log_feed(log: EncodedLog, wiring: Wiring, rows: NDArray[np.integer], *, one_request: bool = False) -> Feed:
    """Rows of a log as a feed: each its own request, or all of them candidates of the first row's context."""
    batch = log.batch(rows)
    requests = 1 if one_request else len(rows)
    feed: Feed = {
        CONTEXT: np.ascontiguousarray(batch.context.numpy()[:requests, : wiring.context_width]),
        CANDIDATES: np.ascontiguousarray(batch.candidates.numpy()),
        REQUEST_INDEX: np.zeros(len(rows), np.int32) if one_request else np.arange(len(rows), dtype=np.int32),
    }
    for spec in wiring.fields:
        if spec.is_sequence:
            ids, offsets = (part.numpy().astype(np.int32) for part in batch.sequences[spec.name])
            segments = requests if spec.side == "context" else len(rows)
            feed[ids_input(spec.name)] = ids[: offsets[segments]]
            feed[offsets_input(spec.name)] = offsets[: segments + 1]
    return feed
