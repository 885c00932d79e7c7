"""Ids in, embedding vectors out: the one place that looks up and the one place that pools sequences.

Every field owns a range of rows of one fused table; ids are local to a field and the field's first row is
added here, so an exported graph does one Gather a side instead of one a field. A batch comes in one of two
forms:

- the row form, used in training: row i has context i (`request_index` is None, R == N);
- the split form, used in serving: R requests, N candidates, `request_index[i]` names the request of candidate
i,
  so that whatever depends on the context alone is computed once a request.

Both give the same numbers. Letters: R requests, N candidates, Fc context fields, Fa candidate fields, F = Fc
+ Fa, D embedding width, K sequence elements.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

MISSING_ID = 0


@dataclass(frozen=True)
class FieldSpec:
    """One field as a network sees it: ids 0..size-1, on the context's or on the candidate's side."""

    name: str
    size: int
    side: Literal["context", "candidate"]
    is_sequence: bool = False

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"field {self.name!r}: expected a size of at least 1, got {self.size}")
        if self.side not in ("context", "candidate"):
            raise ValueError(f"field {self.name!r}: expected side 'context' or 'candidate', got {self.side!r}")


Fields = tuple[FieldSpec, ...]
"""Context fields (training-only ones behind them), then candidate fields, each in schema order."""


@dataclass(frozen=True)
class Encoded:
    """A batch of local ids.

    `context` [R, Fc'] and `candidates` [N, Fa'] hold the fields that are not sequences, in the order of
    `Fields`; `sequences[name]` is (ids [K], offsets [R+1] or [N+1]): segment i is
    ids[offsets[i]:offsets[i+1]], and an empty one means the single id 0. `request_index` [N] is None in the
    row form.
    """

    context: Tensor
    candidates: Tensor
    request_index: Tensor | None = None
    sequences: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


@dataclass(frozen=True)
class Embedded:
    """Vectors of a batch: `context` [R, Fc, D], `candidates` [N, Fa, D]; plain fields, then sequences.

    Or what was made of them field by field, or pair by pair, where the context's part does not depend on candidates.
    """

    context: Tensor
    candidates: Tensor
    request_index: Tensor | None = None
    rows: Tensor | None = None  # [N, F, D] where a single look-up has already laid it out

    def spread(self, per_request: Tensor) -> Tensor:
        """Give every candidate its request's share: [R, ...] -> [N, ...]."""
        if self.request_index is None:
            return per_request
        return per_request.index_select(0, self.request_index)

    def joined(self) -> Tensor:
        """[N, F, D]: every candidate's context fields, then its own."""
        if self.rows is not None:
            return self.rows
        return torch.cat([self.spread(self.context), self.candidates], dim=1)

    def unflattened(self, shape: tuple[int, int]) -> Embedded:
        """The same with D taken apart: [R, Fc, *shape] and [N, Fa, *shape]."""
        context, candidates = (torch.unflatten(side, 2, shape) for side in (self.context, self.candidates))
        return Embedded(context, candidates, self.request_index)


class FieldEmbedding(nn.Module):
    """One vector of width `dim` for each id of each field, N(0, init_sd^2) at first.

    Sequence fields in `unpooled` are not among the vectors that come out; `elements` gives theirs one by one.
    """

    first_context: Tensor
    first_candidate: Tensor

    def __init__(self, fields: Fields, dim: int, *, init_sd: float = 0.01, unpooled: Sequence[str] = ()) -> None:
        super().__init__()
        sides = [spec.side for spec in fields]
        if sides != sorted(sides, key=("context", "candidate").index):
            raise ValueError(f"expected context fields before candidate fields, got sides {sides}")
        first_row: dict[str, int] = {}
        rows = 0
        for spec in fields:
            first_row[spec.name] = rows
            rows += spec.size
        if len(first_row) != len(fields):
            raise ValueError(f"expected distinct field names, got {[spec.name for spec in fields]}")

        self.dim = dim
        self.unpooled = tuple(unpooled)
        given = [spec for spec in fields if spec.name not in self.unpooled]
        self.context_fields = sum(spec.side == "context" for spec in given)
        self.candidate_fields = len(given) - self.context_fields
        self.table = nn.Parameter(torch.randn(rows, dim) * init_sd)  # [sum of sizes, D]
        self._sequences = {
            side: tuple((spec.name, first_row[spec.name]) for spec in given if spec.is_sequence and spec.side == side)
            for side in ("context", "candidate")
        }
        self._first_unpooled = {name: first_row[name] for name in self.unpooled}
        order = [spec for side in ("context", "candidate") for spec in _plain_first(given, side)]
        found = [(spec, first_row[spec.name], place) for place, spec in enumerate(order)]
        plain = [(first, spec.size, place) for spec, first, place in found if not spec.is_sequence]
        self._places = Places(
            fields=len(order),
            plain=np.array(plain, dtype=np.int64).reshape(-1, 3).T.copy(),
            sequences=tuple((spec.name, (first, spec.size, place)) for spec, first, place in found if spec.is_sequence),
        )
        for side in ("context", "candidate"):
            first = [first_row[spec.name] for spec in fields if not spec.is_sequence and spec.side == side]
            self.register_buffer(f"first_{side}", torch.tensor(first, dtype=torch.int32), persistent=False)

    @property
    def widths(self) -> tuple[int, int]:
        """Numbers a row has on the context's and on the candidate's side: (Fc * D, Fa * D)."""
        return self.context_fields * self.dim, self.candidate_fields * self.dim

    def forward(self, batch: Encoded) -> Embedded:
        if batch.request_index is None:
            rows = self._rows(batch)
            return Embedded(rows[:, : self.context_fields], rows[:, self.context_fields :], None, rows)
        context = self._look_up(batch.context + self.first_context)  # [R, Fc', D]
        candidates = self._look_up(batch.candidates + self.first_candidate)  # [N, Fa', D]
        if self._sequences["context"] or self._sequences["candidate"]:
            context = torch.cat([context, *self._pooled("context", batch)], dim=1)
            candidates = torch.cat([candidates, *self._pooled("candidate", batch)], dim=1)
        return Embedded(context, candidates, batch.request_index)

    def _rows(self, batch: Encoded) -> Tensor:
        """The row form: every vector of every row, [N, F, D]."""
        if self.table.device.type == "cpu":
            plain = torch.cat([batch.context, batch.candidates], dim=1)
            pairs = [batch.sequences[name] for name, _ in self._places.sequences]
            return look_up_rows(self.table, self._places, plain, pairs)
        sides = {"context": batch.context + self.first_context, "candidate": batch.candidates + self.first_candidate}
        vectors: list[Tensor] = []
        for side, ids in sides.items():
            vectors += [self._look_up(ids), *self._pooled(side, batch)]
        return torch.cat(vectors, dim=1)

    def elements(self, batch: Encoded, name: str) -> Tensor:
        """The vector of a missing value, then of every element of an unpooled sequence: [1 + K, D]."""
        first = self._first_unpooled[name]
        ids, _ = batch.sequences[name]
        return self._look_up(torch.cat([ids.new_full((1,), first + MISSING_ID), ids + first]))

    def _look_up(self, rows: Tensor) -> Tensor:
        # index_select, whose gradient takes half the time of functional.embedding's
        vectors = self.table.index_select(0, rows.flatten())
        return vectors.reshape(*rows.shape, self.dim)

    def _pooled(self, side: str, batch: Encoded) -> list[Tensor]:
        """The mean vector of every segment, [S, 1, D] for each sequence field of a side."""
        return [
            segment_mean(self._look_up(ids + first), offsets, self.table[first + MISSING_ID]).unsqueeze(1)
            for name, first in self._sequences[side]
            for ids, offsets in [batch.sequences[name]]
        ]


def _plain_first(fields: Sequence[FieldSpec], side: str) -> list[FieldSpec]:
    """Fields of a side in the order of `Embedded`."""
    return sorted((spec for spec in fields if spec.side == side), key=lambda spec: spec.is_sequence)


@dataclass(frozen=True)
class Places:
    """Where the fields of the row form begin in the table, how many ids each has, where it stands in [N, F, D]."""

    fields: int
    plain: NDArray[np.int64]
    """[3, P], of the plain fields."""
    sequences: tuple[tuple[str, tuple[int, int, int]], ...]
    """Name, and the three numbers, of each sequence."""


class _RowLookUp(torch.autograd.Function):
    """[rows, D] and a batch's ids -> [N, F, D], sequences pooled; the gradient of the table is whole."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, places: Places, plain: Tensor, *pairs: Tensor) -> Tensor:
        from training import kernels

        ctx.places, ctx.like, ctx.arrays = places, table, [ids.numpy() for ids in (plain, *pairs)]
        weights, (ids, *sequences) = table.detach().numpy(), ctx.arrays
        vectors = table.new_empty(len(plain), places.fields, table.shape[1])
        out = vectors.numpy()
        are_known = [kernels.gather(weights, ids, *places.plain, out)]
        for (_, where), elements, offsets in zip(places.sequences, sequences[::2], sequences[1::2], strict=True):
            are_known.append(kernels.pool(weights, elements, offsets, *where, out))
        if not all(are_known):
            raise IndexError("expected every id in 0..size-1 of its field, got one outside; prepare the log again")
        return vectors

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor | None, ...]:
        from training import kernels

        places, (ids, *sequences) = ctx.places, ctx.arrays
        gradient = torch.zeros_like(ctx.like)
        into, given = gradient.numpy(), above.contiguous().numpy()
        first, _, place = places.plain
        kernels.scatter(into, ids, first, place, given)
        for (_, where), elements, offsets in zip(places.sequences, sequences[::2], sequences[1::2], strict=True):
            kernels.scatter_pooled(into, elements, offsets, where[0], where[2], given)
        return (gradient, *[None] * (2 + len(sequences)))


def look_up_rows(table: Tensor, places: Places, plain: Tensor, pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """`_RowLookUp` as a function: `plain` ids [N, P], (ids, offsets) of each sequence -> [N, F, D]."""
    tensors = [tensor for pair in pairs for tensor in pair]
    result: Tensor = _RowLookUp.apply(table, places, plain, *tensors)  # type: ignore[no-untyped-call]
    return result


def segment_mean(vectors: Tensor, offsets: Tensor, if_empty: Tensor) -> Tensor:
    """Mean of vectors[offsets[i]:offsets[i+1]] for each i: [K, D], [S+1] -> [S, D]; `if_empty` where empty.

    Written in operators that ONNX has (it has neither searchsorted nor embedding_bag). Sums are taken within
    a segment, not as differences of a running sum, which would lose the 1e-5 that torch and ONNX must agree
    to.
    """
    offsets = offsets.long()
    ends = offsets[1:]  # [S]
    counts = ends - offsets[:-1]  # [S]
    # Element k lies in the segment numbered by how many segments end at or before it.
    ends_at = torch.zeros(vectors.shape[0] + 1, dtype=torch.long, device=vectors.device)
    ends_at = ends_at.scatter_add(0, ends, torch.ones_like(ends))  # [K + 1]
    segment = ends_at.cumsum(0)[: vectors.shape[0]]  # [K]
    sums = torch.zeros(counts.shape[0], vectors.shape[1], dtype=vectors.dtype, device=vectors.device)
    sums = sums.index_add(0, segment, vectors)  # [S, D]; the gradient of scatter_add is 20 times slower
    means = sums / counts.clamp(min=1).unsqueeze(1).to(vectors.dtype)
    return torch.where((counts > 0).unsqueeze(1), means, if_empty)
