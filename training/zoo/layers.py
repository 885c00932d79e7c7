"""Layers that several networks share: the split first layer, the perceptron, the terms of an FM, pairs of fields.

Letters: R requests, N candidates, Fc context fields, Fa candidate fields, F = Fc + Fa, D embedding width. In the row
form every candidate has a context of its own and R = N (`embedding.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.zoo import pieces
from training.zoo.embedding import Embedded, Encoded, FieldEmbedding, Fields


class SplitLinear(nn.Module):
    """A dense layer on everything known of a row whose context share is computed once a request.

        W [c; a] + b = (W_c c + b) + W_a a          [R, Wc], [N, Wa] -> [N, width]

    The same weights serve the row form. Anything with a context's and a candidate's
    part goes in: vectors of fields, or what was made of pairs of them; axes behind the first are flattened.
    """

    def __init__(self, widths: tuple[int, int], width: int, *, bias: bool = True) -> None:
        """`widths` are (Wc, Wa), as `FieldEmbedding.widths` and `FieldPairs` give them."""
        super().__init__()
        self.context_width, self.candidate_width = widths
        self.weight = nn.Parameter(torch.empty(width, sum(widths)))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None
        if sum(widths):
            nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))  # as nn.Linear

    def forward(self, vectors: Embedded) -> Tensor:
        if vectors.rows is not None:
            return functional.linear(vectors.rows.flatten(1), self.weight, self.bias)
        return split_product(vectors, *self.shares(), self.bias)

    def shares(self) -> tuple[Tensor, Tensor]:
        """W_c and W_a: [width, Wc], [width, Wa]."""
        return self.weight[:, : self.context_width], self.weight[:, self.context_width :]


def split_product(vectors: Embedded, of_context: Tensor, of_candidate: Tensor, bias: Tensor | None = None) -> Tensor:
    """W_c c + W_a a + b, the first product once a request: weights [width, Wc] and [width, Wa] -> [N, width]."""
    if of_context.shape[1] == 0:
        return functional.linear(vectors.candidates.flatten(1), of_candidate, bias)
    per_request = functional.linear(vectors.context.flatten(1), of_context, bias)  # [R, width]
    if of_candidate.shape[1] == 0:
        return vectors.spread(per_request)
    # The sum rides in the product: one node of an exported graph where there would be two.
    return torch.addmm(vectors.spread(per_request), vectors.candidates.flatten(1), of_candidate.T)


class Perceptron(nn.Module):
    """ReLU, then (Linear, ReLU) for each further width: what follows a first linear layer."""

    def __init__(self, widths: Sequence[int], *, dropout: float = 0.0) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.ReLU(), nn.Dropout(dropout)]
        for width_in, width_out in pairwise(widths):
            layers += [nn.Linear(width_in, width_out), nn.ReLU(), nn.Dropout(dropout)]
        self.layers = nn.Sequential(*layers)

    def forward(self, first: Tensor) -> Tensor:
        hidden: Tensor = self.layers(first)
        return hidden

    def linears(self) -> list[tuple[Tensor, Tensor | None]]:
        """Weights and bias of each layer."""
        return [(layer.weight, layer.bias) for layer in self.layers if isinstance(layer, nn.Linear)]

    def drops(self) -> bool:
        """Whether hidden units are left out now."""
        return self.training and any(layer.p > 0 for layer in self.layers if isinstance(layer, nn.Dropout))


def hidden_layer(embedding: FieldEmbedding, first: SplitLinear, hidden: Perceptron, batch: Encoded) -> Tensor:
    """The last hidden layer on a batch's vectors, [N, H]: hidden(first(embedding(batch)))."""
    layers = _for_pieces(embedding, first, hidden, batch)
    if layers is None:
        found: Tensor = hidden(first(embedding(batch)))
        return found
    return pieces.hidden_layer(embedding, layers, batch)[0]


def hidden_layer_and_dots(
    embedding: FieldEmbedding, first: SplitLinear, hidden: Perceptron, batch: Encoded
) -> tuple[Tensor, Tensor]:
    """The same and sum_{i<j} <v_i, v_j> of the same vectors, [N]."""
    layers = _for_pieces(embedding, first, hidden, batch)
    if layers is None:
        vectors = embedding(batch)
        return hidden(first(vectors)), pairwise_dots(vectors)
    return pieces.hidden_layer(embedding, layers, batch, dots=True)


def _for_pieces(
    embedding: FieldEmbedding, first: SplitLinear, hidden: Perceptron, batch: Encoded
) -> pieces.Layers | None:
    """The layers, where this batch is to be taken piece by piece."""
    layers = [(first.weight, first.bias), *hidden.linears()]
    return None if hidden.drops() or not pieces.applies(embedding, layers, batch) else layers


class FirstOrder(nn.Module):
    """b + sum_i w_i: logistic regression on the ids, [N]."""

    def __init__(self, fields: Fields, *, init_sd: float = 0.0) -> None:
        super().__init__()
        self.weights = FieldEmbedding(fields, 1, init_sd=init_sd)
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, batch: Encoded) -> Tensor:
        weights: Embedded = self.weights(batch)
        if weights.rows is not None:
            return self.bias + weights.rows.sum(dim=(1, 2))
        per_request = weights.context.sum(dim=(1, 2))  # [R]
        return self.bias + weights.spread(per_request) + weights.candidates.sum(dim=(1, 2))  # [N]


def pooled_products(vectors: Embedded) -> Tensor:
    """sum_{i<j} v_i * v_j, element by element, by the identity ((sum_i v_i)^2 - sum_i v_i^2) / 2: [N, D]."""
    if vectors.rows is not None:
        return 0.5 * (vectors.rows.sum(dim=1).square() - vectors.rows.square().sum(dim=1))
    context, candidates = vectors.context, vectors.candidates
    sums = vectors.spread(context.sum(dim=1)) + candidates.sum(dim=1)  # [N, D]
    squares = vectors.spread(context.square().sum(dim=1)) + candidates.square().sum(dim=1)  # [N, D]
    return 0.5 * (sums.square() - squares)


def pairwise_dots(vectors: Embedded) -> Tensor:
    """sum_{i<j} <v_i, v_j>: [N]."""
    return pooled_products(vectors).sum(dim=1)


class FieldPairs(nn.Module):
    """Fields two at a time, i < j: first the Pc pairs within the context, made once a request, then the Pa others.

    Pair p joins the fields `first[p]` and `second[p]`; what is not within the context ends with a candidate's field.
    """

    first: Tensor
    second: Tensor

    def __init__(self, context_fields: int, candidate_fields: int) -> None:
        super().__init__()
        self.context_fields, self.candidate_fields = context_fields, candidate_fields
        count = context_fields + candidate_fields
        i, j = torch.triu_indices(count, count, offset=1, device="cpu")
        order = torch.cat([torch.nonzero(j < context_fields), torch.nonzero(j >= context_fields)]).flatten()
        self.register_buffer("first", i[order], persistent=False)
        self.register_buffer("second", j[order], persistent=False)
        in_context = context_fields * (context_fields - 1) // 2
        self.widths = (in_context, len(order) - in_context)  # Pc, Pa

    def both(self, left: Embedded, right: Embedded) -> tuple[Embedded, Embedded]:
        """left_i and right_j of every pair: [R, Pc, D] and [N, Pa, D] each."""
        (first, second), (other_first, other_second) = self._within_context(), self._others()
        return (
            Embedded(
                left.context.index_select(1, first), left.joined().index_select(1, other_first), left.request_index
            ),
            Embedded(
                right.context.index_select(1, second),
                right.candidates.index_select(1, other_second - self.context_fields),
                right.request_index,
            ),
        )

    def dots(self, vectors: Embedded) -> Embedded:
        """<v_i, v_j> in tables that hold more than each pair once: [R, Fc, Fc] and [N, F, Fa]."""
        context, candidates = vectors.context, vectors.candidates
        within_context = torch.bmm(context, context.transpose(1, 2))
        others = torch.bmm(vectors.joined(), candidates.transpose(1, 2))
        return Embedded(within_context, others, vectors.request_index)

    def field_aware_dots(self, vectors: Embedded) -> Embedded:
        """<v_{i,j}, v_{j,i}> of vectors that each field has for each other one, [R, Fc, F, D] and [N, Fa, F, D], in
        tables as of `dots`."""
        context, candidates = vectors.context, vectors.candidates
        for_context, for_candidate = context[:, :, : self.context_fields], context[:, :, self.context_fields :]
        within_context = (for_context * for_context.transpose(1, 2)).sum(dim=3)
        among_candidate = candidates[:, :, self.context_fields :]  # [N, Fa, Fa, D]
        left = torch.cat([vectors.spread(for_candidate), among_candidate], dim=1)  # [N, F, Fa, D]
        others = (left * candidates.transpose(1, 2)).sum(dim=3)
        return Embedded(within_context, others, vectors.request_index)

    def places(self) -> tuple[Tensor, Tensor]:
        """Where each pair is in the flattened tables of `dots`: [Pc] of Fc * Fc, [Pa] of F * Fa."""
        (first, second), (other_first, other_second) = self._within_context(), self._others()
        return (
            first * self.context_fields + second,
            other_first * self.candidate_fields + other_second - self.context_fields,
        )

    def _within_context(self) -> tuple[Tensor, Tensor]:
        return self.first[: self.widths[0]], self.second[: self.widths[0]]

    def _others(self) -> tuple[Tensor, Tensor]:
        return self.first[self.widths[0] :], self.second[self.widths[0] :]


class PairLinear(nn.Module):
    """A dense layer, without bias, on one number a pair of fields: tables as of `FieldPairs.dots` -> [N, width]."""

    context_places: Tensor
    candidate_places: Tensor
    pair_at_context_place: Tensor
    pair_at_candidate_place: Tensor

    def __init__(self, pairs: FieldPairs, width: int) -> None:
        super().__init__()
        self.linear = SplitLinear(pairs.widths, width, bias=False)
        for side, places, size in zip(("context", "candidate"), pairs.places(), _table_sizes(pairs), strict=True):
            self.register_buffer(f"{side}_places", places, persistent=False)
            pair_at = torch.full((size,), len(places))  # behind the pairs, where there is none
            pair_at[places] = torch.arange(len(places))
            self.register_buffer(f"pair_at_{side}_place", pair_at, persistent=False)

    def forward(self, tables: Embedded) -> Tensor:
        if tables.request_index is None:
            context = tables.context.flatten(1).index_select(1, self.context_places)
            candidates = tables.candidates.flatten(1).index_select(1, self.candidate_places)
            result: Tensor = self.linear(Embedded(context, candidates))
            return result
        # Served, a product with zeros is faster than picking columns; the weights are constants of an exported graph.
        of_context, of_candidate = (functional.pad(share, (0, 1)) for share in self.linear.shares())
        return split_product(
            tables,
            of_context.index_select(1, self.pair_at_context_place),
            of_candidate.index_select(1, self.pair_at_candidate_place),
        )


def _table_sizes(pairs: FieldPairs) -> tuple[int, int]:
    fields = pairs.context_fields + pairs.candidate_fields
    return pairs.context_fields**2, fields * pairs.candidate_fields
