"""The first dense layer on a batch's look-ups, where ids that many rows share are multiplied once.

    W a = sum_f W_f v_f        a = [v_1; ...; v_F], one vector a field

A field of few ids (`FEW`) has few shares W_f v, so they are made once an id, and a row adds up the shares of its ids.
Back, the gradient g of the layer is summed by id, and the products with these sums are as small:

    P_f = V_f W_f^T        S_f[id] = sum of g over the id's rows        dL/dW_f = S_f^T V_f        dL/dV_f = S_f W_f

V_f are the field's vectors. The same sums as with products of rows, in another order: of 4,096 rows and 39 fields, 16
of them of at most 512 ids, two fifths of the layer's products for a sixth of their time in float32, a third in
bfloat16. Shares and what is summed by id are float32; vectors of other fields are rounded to what products are made of
as they are looked up.

Letters: N rows, F fields, S of them of few ids, R others, Q pooled sequences, D embedding width, H width of the layer,
U ids of the S fields.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from training.fit import kernels
from training.fit.precision import linear
from training.zoo.embedding import Source, Wanted, as_numpy, unknown_id

FEW = 8
"""A field has few ids where a batch has at least so many rows an id."""


@dataclass(frozen=True)
class LookUps:
    """What a batch looks up, parted by how it reaches the layer."""

    few: Wanted
    """Fields of few ids [N, S], as places among `every`."""
    every: Wanted
    """Every id of those fields, field after field: [U, 1]."""
    rest: Wanted
    """The other plain fields [N, R], which stand before sequences among R + Q."""
    pooled: Wanted
    """Sequences alone."""
    of_few: Tensor
    """Where the S stand among the F."""
    of_rest: Tensor
    """Where the R + Q do."""

    @classmethod
    def of(cls, wanted: Wanted, table_rows: int) -> LookUps:
        """Of a batch in a table of so many rows."""
        first, size, place = wanted.where
        is_few = size * FEW <= len(wanted.plain)
        starts = size[is_few].cumsum() - size[is_few]
        ids = np.arange(size[is_few].sum()) + np.repeat(first[is_few] - starts, size[is_few])
        others = np.count_nonzero(~is_few)
        places = [*place[~is_few], *(one.place for one in wanted.segments)]
        return cls(
            Wanted(
                len(starts),
                wanted.plain.compress(is_few, axis=1),
                np.stack([starts, size[is_few], np.arange(len(starts))]),
            ),
            Wanted(1, ids[:, None], np.array([[0], [table_rows], [0]])),
            Wanted(
                len(places),
                wanted.plain.compress(~is_few, axis=1),
                np.stack([first[~is_few], size[~is_few], np.arange(others)]),
            ),
            wanted.sequences_alone(),
            torch.from_numpy(place[is_few]),
            torch.tensor(places, dtype=torch.int64),
        )

    def located(self, source: Source) -> LookUps:
        """The same in rows of the source."""
        every, rest, pooled = (source.locate(wanted) for wanted in (self.every, self.rest, self.pooled))
        return LookUps(self.few, every, rest, pooled, self.of_few, self.of_rest)

    def blocks(self) -> list[tuple[int, slice]]:
        """Of each field of few ids: where it stands among the F, and its ids among the U."""
        starts, sizes, _ = self.few.where.tolist()
        return [
            (place, slice(start, start + size))
            for place, start, size in zip(self.of_few.tolist(), starts, sizes, strict=True)
        ]


class FirstLayer:
    """ReLU(W a + b) on one batch: `prepare` once, `forth` for every piece of its rows; then `back` for every piece,
    `fields_back` for every part of its fields, `finish` once. These two add to a `gradient` that
    the source is asked for once, before threads share it: it may make it then.

    `dtype` is what the dense products are made of. With `dots`, sum_{i<j} <v_i, v_j> of the same vectors too.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, source: Source, wanted: Wanted, table_rows: int, dtype: torch.dtype
    ) -> None:
        self.source, self.dtype = source, dtype
        self.local = local = LookUps.of(wanted, table_rows).located(source)
        self.table = source.weights
        rows, dim = len(wanted.plain), self.table.shape[1]
        self.by_field = weight.view(len(weight), wanted.fields, dim)  # [H, F, D]
        self.bias = bias
        self.vectors = local.every.gather(self.table).squeeze(1)  # [U, D]
        self.shares = weight.new_empty(len(self.vectors), len(weight))  # P, [U, H]
        self.weight_of_rest = weight.new_empty(len(weight), local.rest.fields, dim, dtype=dtype)
        self.vectors_of_rest = weight.new_empty(rows, local.rest.fields, dim, dtype=dtype)
        self.pooled = weight.new_empty(rows, local.pooled.fields, dim)
        self.summed = torch.zeros_like(self.shares)  # S, [U, H]
        self.of_every = torch.empty_like(self.vectors)
        self.of_weight = torch.empty_like(self.by_field)

    def prepare(self) -> None:
        """What rows have in common."""
        self.weight_of_rest.copy_(self.by_field.index_select(1, self.local.of_rest))
        for place, block in self.local.blocks():
            torch.mm(self.vectors[block], self.by_field[:, place].T, out=self.shares[block])

    def forth(self, piece: slice) -> Tensor:
        """Of some rows, [n, H]."""
        local, vectors = self.local, self.vectors_of_rest[piece]
        local.rest.gather_piece(self.table, piece, vectors)
        if local.pooled.segments:
            local.pooled.gather_piece(self.table, piece, self.pooled[piece])
            vectors[:, -local.pooled.fields :] = self.pooled[piece]
        has_shares = len(self.shares) > 0
        found = linear(vectors.flatten(1), self.weight_of_rest.flatten(1), self.bias, relu=not has_shares)
        ids, where = local.few.plain[piece], local.few.where[:2]
        if has_shares and not kernels.add_shares(self.shares.numpy(), ids, *where, as_numpy(found)):
            raise unknown_id()
        return found

    def back(self, piece: slice, above: Tensor, of_vectors: Tensor) -> Tensor:
        """`above` is what comes down to W a + b, [n, H]: the gradient of the R + Q vectors, into [n, R + Q, D]; and
        these rows' part in that of their weights, [H, (R + Q) * D]."""
        torch.mm(above, self.weight_of_rest.flatten(1), out=of_vectors.flatten(1))
        return above.T @ self.vectors_of_rest[piece].flatten(1)

    def fields_back(
        self,
        gradient: Tensor,
        above: Tensor,
        of_vectors: Tensor,
        part: int,
        parts: int,
        dots: tuple[Tensor, Tensor] | None,
    ) -> None:
        """What is left for one of so many parts of the plain fields, once all rows are back: [N, H], [N, R + Q, D].

        With the gradient of the sums over pairs, [N], and what `add_up` gave for these rows, [N, D].
        """
        few, rest = self.local.few, self.local.rest
        own, others = (
            (part * len(ids.T) // parts, (part + 1) * len(ids.T) // parts) for ids in (few.plain, rest.plain)
        )
        kernels.sum_by_id(self.summed.numpy(), few.plain, few.where[0], as_numpy(above), *own)
        for place, block in self.local.blocks()[slice(*own)]:
            self.of_weight[:, place] = self.summed[block].T @ self.vectors[block]
            torch.mm(self.summed[block], self.by_field[:, place], out=self.of_every[block])
        rest.scatter_fields(gradient, of_vectors, *others)
        if dots is not None:
            by, sums = (given.numpy() for given in dots)
            of_every, into = self.of_every.numpy(), gradient.numpy()
            kernels.add_dots_gradient(of_every, self.vectors.numpy(), few.plain, few.where[0], sums, by, *own)
            kernels.add_dots_gradient(into, self.table.numpy(), rest.plain, rest.where[0], sums, by, *others)

    def finish(
        self, gradient: Tensor, of_vectors: Tensor, of_rest: Tensor, dots: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        """The gradient of W, [H, F * D], given what rows gave for the weights of the R + Q; ids that several parts
        share have theirs."""
        pooled = self.local.pooled
        self.local.every.scatter(gradient, self.of_every.unsqueeze(1))
        if pooled.segments:
            of_pooled = of_vectors[:, -pooled.fields :].float()
            if dots is not None:
                by, sums = (given.unsqueeze(1) for given in dots)
                of_pooled += by.unsqueeze(2) * (sums - self.pooled)
            pooled.scatter(gradient, of_pooled)
        self.of_weight[:, self.local.of_rest] = of_rest.view(len(of_rest), -1, self.vectors.shape[1])
        return self.of_weight.flatten(1)

    def add_up(self, piece: slice, sums: Tensor, squares: Tensor) -> None:
        """For rows that are through: sum_f v_f into [n, D], and sum_f |v_f|^2 into [n]; zeros before."""
        few, rest, pooled = self.local.few, self.local.rest, self.pooled[piece].flatten(0, 1)
        places = np.arange(len(pooled)).reshape(len(sums), -1)
        for table, ids, first in (
            (self.vectors, few.plain[piece], few.where[0]),
            (self.table, rest.plain[piece], rest.where[0]),
            (pooled, places, np.zeros(places.shape[1], dtype=np.int64)),
        ):
            kernels.add_up(table.numpy(), ids, first, sums.numpy(), squares.numpy())
