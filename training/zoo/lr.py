"""Logistic regression on field ids, the first click model (Richardson et al., WWW 2007, section 4).

    logit = b + sum_i w_i

w_i [B, 1] is the weight of field i's id, one table [ids, 1] for all F fields; logit [B].

It has no hidden layer, so nothing to give as a hint.
"""

from __future__ import annotations

from torch import Tensor, nn

from training.zoo.embedding import Encoded, FieldEmbedding, Fields
from training.zoo.layers import FirstOrder


class LR(nn.Module):
    """One weight an id, and a bias. Options: `init_sd`."""

    def __init__(self, fields: Fields, *, init_sd: float = 0.0) -> None:
        super().__init__()
        self.first_order = FirstOrder(fields, init_sd=init_sd)

    @property
    def embedding(self) -> FieldEmbedding:
        """Its weights, of width 1: what `embedding_l2` is of."""
        return self.first_order.weights

    def forward(self, batch: Encoded) -> tuple[Tensor, Tensor | None]:
        """N encoded rows -> logit [N] and no hint."""
        return self.first_order(batch), None
