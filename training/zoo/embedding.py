"""Ids in, embedding vectors out: the one place that looks up and the one place that pools sequences.

Every field owns a range of rows of one fused table; ids are local to a field and the field's first row is
added here, so an exported graph does one Gather a side instead of one a field. A batch comes in one of two
forms:

- the row form, used in training: row i has context i (`request_index` is None, R == N);
- the split form, used in serving: R requests, N candidates, `request_index[i]` names the request of candidate i,
  so that whatever depends on the context alone is computed once a request.

Both give the same numbers. Letters: R requests, N candidates, Fc context fields, Fa candidate fields, F = Fc + Fa,
D embedding width, K sequence elements.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from training.fit.threads import share_out

MISSING_ID = 0
SCATTER_ROWS = 1024
"""Gradients of a batch of so many rows are worth sharing out among threads."""


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


@dataclass(frozen=True)
class Segments:
    """A sequence's part in `Wanted`."""

    ids: NDArray[np.integer]
    """[K]"""
    offsets: NDArray[np.integer]
    """[N + 1]"""
    first: int
    """Row of the table that is this field's id 0."""
    size: int
    """How many ids it has."""
    empty: int
    """Row of the table that stands for an empty segment."""
    place: int
    """Where its vector stands among the F."""


@dataclass(frozen=True)
class Wanted:
    """Which rows of a table make up the vectors of a batch in the row form, [N, F, D]."""

    fields: int
    """F"""
    plain: NDArray[np.integer]
    """Ids, [N, P]."""
    where: NDArray[np.int64]
    """First row, number of ids and place of each plain field, [3, P]."""
    segments: tuple[Segments, ...] = ()

    def sequences_alone(self) -> Wanted:
        """[N, Q, D] of the same batch."""
        segments = tuple(replace(one, place=place) for place, one in enumerate(self.segments))
        return Wanted(len(segments), self.plain[:, :0], self.where[:, :0], segments)

    def gather(self, table: Tensor) -> Tensor:
        """[rows, D] -> [N, F, D]; IndexError at an id that its field has not."""
        vectors = table.new_empty(len(self.plain), self.fields, table.shape[1])
        self.gather_piece(table, slice(0, len(vectors)), vectors)
        return vectors

    def gather_piece(self, table: Tensor, piece: slice, vectors: Tensor) -> None:
        """Those of some rows of the batch, into `vectors`, which may be bfloat16 where no sequence is wanted."""
        from training.fit import kernels

        weights, out = table.numpy(), as_numpy(vectors)
        are_known = [kernels.gather(weights, self.plain[piece], *self.where, out)]
        for one in self.segments:
            offsets = one.offsets[piece.start : piece.stop + 1]
            numbers = one.first, one.size, one.empty, one.place
            ids = one.ids[offsets[0] : offsets[-1]]
            are_known.append(kernels.pool(weights, ids, offsets - offsets[0], *numbers, out))
        if not all(are_known):
            raise unknown_id()

    def scatter(self, gradient: Tensor, above: Tensor) -> None:
        """The gradient of `gather`: adds what is `above`, [N, F, D], to a table's, [rows, D].

        Fields have rows of their own, so threads take fields, and a row's sum is in the batch's order.
        """
        from training.fit import kernels

        count, given = self.plain.shape[1], above.contiguous()
        parts = max(1, min(torch.get_num_threads(), count)) if len(self.plain) >= SCATTER_ROWS else 1
        share_out(
            lambda part: self.scatter_fields(gradient, given, part * count // parts, (part + 1) * count // parts), parts
        )
        for one in self.segments:
            kernels.scatter_pooled(
                gradient.numpy(), one.ids, one.offsets, one.first, one.empty, one.place, given.numpy()
            )

    def scatter_fields(self, gradient: Tensor, above: Tensor, start: int, end: int) -> None:
        """The part of plain fields start..end-1; what is `above` may be bfloat16."""
        from training.fit import kernels

        first, _, place = self.where
        kernels.scatter(gradient.numpy(), self.plain, first, place, as_numpy(above), start, end)


def as_numpy(numbers: Tensor) -> NDArray[Any]:
    """The same memory; bfloat16, which numpy has not, as the uint16 of its bits."""
    return (numbers.view(torch.uint16) if numbers.dtype == torch.bfloat16 else numbers).numpy()


class Source(Protocol):
    """Where look-ups of a step go: a table itself, or whoever trains it."""

    def locate(self, wanted: Wanted) -> Wanted:
        """The same in rows of `weights`."""

    @property
    def weights(self) -> Tensor:
        """[rows, D]"""

    @property
    def gradient(self) -> Tensor:
        """Where gradients of its rows are summed, [rows, D]."""

    @property
    def whole_gradient(self) -> Tensor | None:
        """The table's, for autograd; None where the source sees to it."""


class _WholeTable:
    """A table that is ready as it stands."""

    def __init__(self, table: Tensor) -> None:
        self.weights = table.detach()
        self.whole_gradient: Tensor | None = None

    def locate(self, wanted: Wanted) -> Wanted:
        return wanted

    @property
    def gradient(self) -> Tensor:
        if self.whole_gradient is None:
            self.whole_gradient = torch.zeros_like(self.weights)
        return self.whole_gradient


def have_kernels(table: Tensor) -> bool:
    """Whether the compiled look-ups of `kernels.py` reach a table: where they do not, torch's operators do the same."""
    return table.device.type == "cpu"


def unknown_id() -> IndexError:
    """What to raise at an id that its field has not."""
    return IndexError("expected every id in 0..size-1 of its field, got one outside; prepare the log again")


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
        self._unpooled = {spec.name: (first_row[spec.name], spec.size) for spec in fields if spec.name in self.unpooled}
        order = [spec for side in ("context", "candidate") for spec in _plain_first(given, side)]
        where = [(spec, (first_row[spec.name], spec.size, place)) for place, spec in enumerate(order)]
        plain = [numbers for spec, numbers in where if not spec.is_sequence]
        self._plain_places = np.array(plain, dtype=np.int64).reshape(-1, 3).T.copy()  # first, size and place: [3, P]
        self._sequence_places = [(spec.name, numbers) for spec, numbers in where if spec.is_sequence]
        self.trained_by: Source | None = None
        """Who has the rows in training where not all of the table is ready: see `optimizer.py`."""
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
        if have_kernels(self.table):
            return self._wanted_rows(self.wanted(batch))
        sides = {"context": batch.context + self.first_context, "candidate": batch.candidates + self.first_candidate}
        vectors: list[Tensor] = []
        for side, ids in sides.items():
            vectors += [self._look_up(ids), *self._pooled(side, batch)]
        return torch.cat(vectors, dim=1)

    def elements(self, batch: Encoded, name: str) -> Tensor:
        """The vector of a missing value, then of every element of an unpooled sequence: [1 + K, D]."""
        first, size = self._unpooled[name]
        ids, _ = batch.sequences[name]
        with_missing = torch.cat([ids.new_full((1,), MISSING_ID), ids])
        if batch.request_index is None and have_kernels(self.table):
            where = np.array([[first], [size], [0]])
            return self._wanted_rows(Wanted(1, with_missing.unsqueeze(1).numpy(), where)).squeeze(1)
        return self._look_up(with_missing + first)

    def wanted(self, batch: Encoded) -> Wanted:
        """What a batch in the row form looks up."""
        plain = torch.cat([batch.context, batch.candidates], dim=1)
        segments = tuple(
            Segments(ids.numpy(), offsets.numpy(), first, size, first + MISSING_ID, place)
            for name, (first, size, place) in self._sequence_places
            for ids, offsets in [batch.sequences[name]]
        )
        return Wanted(self.context_fields + self.candidate_fields, plain.numpy(), self._plain_places, segments)

    def source(self) -> Source:
        """Where vectors are to be looked up now."""
        if self.trained_by is not None and torch.is_grad_enabled():
            return self.trained_by
        return _WholeTable(self.table)

    def _wanted_rows(self, wanted: Wanted) -> Tensor:
        result: Tensor = _RowLookUp.apply(self.table, self.source(), wanted)  # type: ignore[no-untyped-call]
        return result

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


class _RowLookUp(torch.autograd.Function):
    """A table, where its rows are and what is wanted -> [N, F, D], sequences pooled."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, source: Source, wanted: Wanted) -> Tensor:
        ctx.source, ctx.local = source, source.locate(wanted)
        found: Tensor = ctx.local.gather(source.weights)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor | None, None, None]:
        ctx.local.scatter(ctx.source.gradient, above)
        return ctx.source.whole_gradient, None, None


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
