"""FiBiNET (Huang et al., RecSys 2019, arXiv:1905.09433, section 3): what a field matters, and how a pair interacts.

    z_i = mean of v_i        a = ReLU(W_2 ReLU(W_1 z))  [F]        u_i = a_i v_i                        (SENET)
    p_{ij} = (v_i W) * v_j        q_{ij} = (u_i W') * u_j        for i < j                           (bilinear)
    logit = b + sum_i w_i + w MLP([p_{1,2}; ...; q_{F-1,F}])

v_i, u_i, p_{ij}, q_{ij} [B, D], z and a [B, F], of F fields; the perceptron's last layer [B, H] is the hint; logit [B].

W and W' are one D x D matrix each (`bilinear: all`), one for each first field i (`each`), or one for each pair
(`interaction`). The perceptron's first layer meets F (F - 1) D numbers: with many fields it is most of the cost.
The pairs p within the context go through it once a request; a, and so every q, depends on the candidate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from training.errors import NetworkError
from training.zoo.embedding import Embedded, Encoded, FieldEmbedding, Fields
from training.zoo.layers import FieldPairs, FirstOrder, Perceptron, SplitLinear

Sharing = Literal["all", "each", "interaction"]


class FiBiNET(nn.Module):
    """First order beside a perceptron on bilinear pairs. Options: `dim`, `hidden`, `dropout`, `init_sd`; `bilinear`,
    what has a matrix of its own; `reduction`, how many times narrower than F the hidden layer of SENET is."""

    def __init__(
        self,
        fields: Fields,
        *,
        dim: int,
        hidden: Sequence[int],
        bilinear: Sharing = "interaction",
        reduction: int = 3,
        dropout: float = 0.0,
        init_sd: float = 0.01,
    ) -> None:
        super().__init__()
        if len(fields) < 2:
            raise NetworkError(f"network 'fibinet': expected at least two fields to make pairs of, got {len(fields)}")
        self.first_order = FirstOrder(fields)
        self.embedding = FieldEmbedding(fields, dim, init_sd=init_sd)
        sides = self.embedding.context_fields, self.embedding.candidate_fields
        squeezed = max(1, len(fields) // reduction)
        self.squeeze = SplitLinear(sides, squeezed, bias=False)
        self.excite = nn.Linear(squeezed, len(fields), bias=False)
        self.plain_pairs = BilinearPairs(*sides, dim, bilinear)
        self.weighted_pairs = BilinearPairs(*sides, dim, bilinear)
        self.first = SplitLinear(self.plain_pairs.widths, hidden[0])
        self.first_weighted = SplitLinear(self.weighted_pairs.widths, hidden[0], bias=False)
        self.hidden = Perceptron(hidden, dropout=dropout)
        self.last = nn.Linear(hidden[-1], 1, bias=False)  # the first-order part holds the bias

    def forward(self, batch: Encoded) -> tuple[Tensor, Tensor | None]:
        """N encoded rows -> logit [N] and hint [N, hidden[-1]], the perceptron's last layer."""
        vectors = self.embedding(batch)
        first = self.first(self.plain_pairs(vectors)) + self.first_weighted(
            self.weighted_pairs(self._weighted(vectors))
        )
        hint = self.hidden(first)
        return self.first_order(batch) + self.last(hint).squeeze(1), hint

    def _weighted(self, vectors: Embedded) -> Embedded:
        """u_i = a_i v_i, [N, F, D], in the row form: a depends on all fields of a row."""
        means = Embedded(vectors.context.mean(dim=2), vectors.candidates.mean(dim=2), vectors.request_index)
        weights = self.excite(self.squeeze(means).relu()).relu()  # [N, F]
        rows = vectors.joined() * weights.unsqueeze(2)
        context_fields = vectors.context.shape[1]
        return Embedded(rows[:, :context_fields], rows[:, context_fields:], None, rows)


class BilinearPairs(nn.Module):
    """(v_i W) * v_j of every pair i < j: [R, Fc, D], [N, Fa, D] -> [R, Pc, D], [N, Pa, D]."""

    def __init__(self, context_fields: int, candidate_fields: int, dim: int, sharing: Sharing) -> None:
        super().__init__()
        self.pairs = FieldPairs(context_fields, candidate_fields)
        in_context, others = self.pairs.widths
        self.widths = (in_context * dim, others * dim)
        self.sharing = sharing
        count = {"all": 1, "each": context_fields + candidate_fields, "interaction": sum(self.pairs.widths)}[sharing]
        self.weight = nn.Parameter(torch.randn(count, dim, dim) / math.sqrt(dim))

    def forward(self, vectors: Embedded) -> Embedded:
        left = vectors if self.sharing == "interaction" else self._turned(vectors, vectors.context.shape[1])
        first, second = self.pairs.both(left, vectors)
        if self.sharing == "interaction":
            first = self._turned(first, self.pairs.widths[0])
        return Embedded(first.context * second.context, first.candidates * second.candidates, vectors.request_index)

    def _turned(self, vectors: Embedded, in_context: int) -> Embedded:
        """Each vector times its matrix; the first `in_context` matrices are those of the context's part."""
        if self.sharing == "all":
            matrix = self.weight[0]
            return Embedded(vectors.context @ matrix, vectors.candidates @ matrix, vectors.request_index)
        return Embedded(
            torch.einsum("rfd,fde->rfe", vectors.context, self.weight[:in_context]),
            torch.einsum("nfd,fde->nfe", vectors.candidates, self.weight[in_context:]),
            vectors.request_index,
        )
