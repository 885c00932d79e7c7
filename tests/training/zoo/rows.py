"""Fields of every kind, options for every network, and batches in both forms: what tests of the zoo start from."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from training.zoo import NETWORKS, Encoded, FieldSpec, options_of

FIELDS = (
    FieldSpec("user", 50, "context"),
    FieldSpec("device", 7, "context"),
    FieldSpec("history", 30, "context", is_sequence=True),
    FieldSpec("ad", 40, "candidate"),
    FieldSpec("size", 9, "candidate"),
    FieldSpec("tags", 30, "candidate", is_sequence=True),
)

SMALL: dict[str, Any] = {
    "dim": 5,
    "hidden": (12, 6),
    "init_sd": 0.5,
    "cross_layers": 3,
    "cin_layers": (4, 3),
    "reduction": 1,
    "attention_layers": 2,
    "heads": 2,
    "head_dim": 3,
    "second_hidden": (7, 8),
    "gate_hidden": (4,),
    "attention_hidden": (5, 4),
}
"""Vectors large enough that every term of a formula shows."""

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in NETWORKS},
    "dcn, one cross": ("dcn", {"cross_layers": 1}),
    "dcnv2, one cross": ("dcnv2", {"cross_layers": 1}),
    "fibinet, one matrix": ("fibinet", {"bilinear": "all"}),
    "fibinet, one a field": ("fibinet", {"bilinear": "each"}),
    "finalmlp, one head": ("finalmlp", {"heads": 1, "second_hidden": None}),
    "din, one field attends": ("din", {"targets": {"history": "ad"}}),
    "din, tags attend to two": ("din", {"targets": {"history": "tags"}, "max_length": 2}),
}
"""Every network, and once more where an option changes its formula."""

NEEDS_HISTORY = {"din"}
"""Networks that a log without a sequence in the context is refused by."""


def options(name: str) -> dict[str, Any]:
    """The small options that a network takes."""
    return {option: value for option, value in SMALL.items() if option in options_of(name)}


def random_batch(requests: int, candidates: int, *, seed: int = 0, longest: int = 3) -> Encoded:
    """A batch in the split form; segments of 0 to `longest` elements."""
    rng = np.random.default_rng(seed)

    def ids(rows: int, side: str) -> Tensor:
        sizes = [spec.size for spec in FIELDS if spec.side == side and not spec.is_sequence]
        return torch.from_numpy(rng.integers(0, sizes, (rows, len(sizes))).astype(np.int32))

    def sequence(rows: int) -> tuple[Tensor, Tensor]:
        offsets = np.concatenate([[0], rng.integers(0, longest + 1, rows).cumsum()]).astype(np.int32)
        values = rng.integers(0, 30, offsets[-1]).astype(np.int32)
        return torch.from_numpy(values), torch.from_numpy(offsets)

    index = torch.from_numpy(np.sort(rng.integers(0, requests, candidates)).astype(np.int32))
    sequences = {"history": sequence(requests), "tags": sequence(candidates)}
    return Encoded(ids(requests, "context"), ids(candidates, "candidate"), index, sequences)


def in_row_form(batch: Encoded) -> Encoded:
    """The same rows with every context repeated for each of its candidates."""
    values, offsets = batch.sequences["history"]
    segments = [values[offsets[i] : offsets[i + 1]] for i in batch.request_index]
    ends = torch.tensor([0] + [len(segment) for segment in segments]).cumsum(0)
    sequences = {"history": (torch.cat(segments), ends), "tags": batch.sequences["tags"]}
    return Encoded(batch.context[batch.request_index], batch.candidates, None, sequences)
