"""Factorization machine of degree two (Rendle, ICDM 2010, section III).

    logit = b + sum_i w_i + sum_{i<j} <v_i, v_j>

w_i [B, 1] and v_i [B, D] are looked up by field i's id, of F fields, in tables [ids, 1] and [ids, D]; logit [B].

It has no hidden layer, so nothing to give as a hint.
"""

from __future__ import annotations

from torch import Tensor, nn

from training.zoo.embedding import Encoded, FieldEmbedding, Fields
from training.zoo.layers import FirstOrder, pairwise_dots


class FM(nn.Module):
    """A weight and a vector an id. Options: `dim`, `init_sd`."""

    def __init__(self, fields: Fields, *, dim: int, init_sd: float = 0.01) -> None:
        super().__init__()
        self.first_order = FirstOrder(fields)
        self.embedding = FieldEmbedding(fields, dim, init_sd=init_sd)

    def forward(self, batch: Encoded) -> tuple[Tensor, Tensor | None]:
        """N encoded rows -> logit [N] and no hint."""
        return self.first_order(batch) + pairwise_dots(self.embedding(batch)), None
