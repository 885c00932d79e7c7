"""Layers that several networks share: the split first layer, the perceptron, the terms of an FM."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.zoo.embedding import Embedded, Encoded, FieldEmbedding, Fields


class SplitLinear(nn.Module):
    """A dense layer on the concatenation of all fields whose context share is computed once a request.

        W [c; a] + b = (W_c c + b) + W_a a          [N, F*D] -> [N, width]

    The same weights serve the row form, where it is one matrix product.
    """

    def __init__(self, embedding: FieldEmbedding, width: int, *, bias: bool = True) -> None:
        super().__init__()
        self.context_width = embedding.context_fields * embedding.dim
        self.candidate_width = embedding.candidate_fields * embedding.dim
        fan_in = self.context_width + self.candidate_width
        self.weight = nn.Parameter(torch.empty(width, fan_in))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))  # as nn.Linear

    def forward(self, vectors: Embedded) -> Tensor:
        if vectors.request_index is None or self.context_width == 0:
            return functional.linear(vectors.joined().flatten(1), self.weight, self.bias)
        context_weight, candidate_weight = (
            self.weight[:, : self.context_width],
            self.weight[:, self.context_width :],
        )
        per_request = functional.linear(vectors.context.flatten(1), context_weight, self.bias)  # [R, width]
        if self.candidate_width == 0:
            return vectors.spread(per_request)
        # The sum rides in the product: one node of an exported graph where there would be two.
        return torch.addmm(vectors.spread(per_request), vectors.candidates.flatten(1), candidate_weight.T)


class Perceptron(nn.Module):
    """ReLU, then (Linear, ReLU) for each further width: what follows a first linear layer."""

    def __init__(self, widths: Sequence[int], *, dropout: float = 0.0) -> None:
        super().__init__()
        if not widths:
            raise ValueError("expected at least one hidden width, got none")
        layers: list[nn.Module] = [nn.ReLU(), nn.Dropout(dropout)]
        for width_in, width_out in pairwise(widths):
            layers += [nn.Linear(width_in, width_out), nn.ReLU(), nn.Dropout(dropout)]
        self.layers = nn.Sequential(*layers)

    def forward(self, first: Tensor) -> Tensor:
        hidden: Tensor = self.layers(first)
        return hidden


class FirstOrder(nn.Module):
    """b + sum_i w_i: logistic regression on the ids, [N]."""

    def __init__(self, fields: Fields, *, init_sd: float = 0.0) -> None:
        super().__init__()
        self.weights = FieldEmbedding(fields, 1, init_sd=init_sd)
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, batch: Encoded) -> Tensor:
        weights: Embedded = self.weights(batch)
        per_request = weights.context.sum(dim=(1, 2))  # [R]
        return self.bias + weights.spread(per_request) + weights.candidates.sum(dim=(1, 2))  # [N]


def pairwise_dots(vectors: Embedded) -> Tensor:
    """sum_{i<j} <v_i, v_j> by the identity (|sum_i v_i|^2 - sum_i |v_i|^2) / 2, [N]."""
    context, candidates = vectors.context, vectors.candidates
    sums = vectors.spread(context.sum(dim=1)) + candidates.sum(dim=1)  # [N, D]
    squares = vectors.spread(context.square().sum(dim=(1, 2))) + candidates.square().sum(dim=(1, 2))  # [N]
    return 0.5 * (sums.square().sum(dim=1) - squares)  # [N]
