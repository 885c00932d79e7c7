"""Field-aware factorization machine, FFM (Juan et al., RecSys 2016, section 3).

    logit = b + sum_i w_i + sum_{i<j} <v_{i,j}, v_{j,i}>

w_i [B, 1] and v_{i,j} [B, D] of F fields, in tables [ids, 1] and [ids, F * D]; logit [B].

An id has a vector for each other field: v_{i,j} [D] is what field i's id shows to field j. With F fields a row of the
table holds F * D numbers, so D is small (the paper takes 4). The place of v_{i,i} is kept, unused, that a pair may be a
transposition. The paper leaves out bias and first order; they are here, as in an FM. Pairs within the context are made
once a request.

It has no hidden layer, so nothing to give as a hint.
"""

from __future__ import annotations

from torch import Tensor, nn

from training.zoo.embedding import Embedded, Encoded, FieldEmbedding, Fields
from training.zoo.layers import FieldPairs, FirstOrder


class FFM(nn.Module):
    """A weight an id, and a vector for each other field. Options: `dim` of one such vector, `init_sd`."""

    def __init__(self, fields: Fields, *, dim: int, init_sd: float = 0.01) -> None:
        super().__init__()
        self.first_order = FirstOrder(fields)
        self.embedding = FieldEmbedding(fields, len(fields) * dim, init_sd=init_sd)
        self.pairs = FieldPairs(self.embedding.context_fields, self.embedding.candidate_fields)
        self.shape = (len(fields), dim)

    def forward(self, batch: Encoded) -> tuple[Tensor, Tensor | None]:
        """N encoded rows -> logit [N] and no hint."""
        vectors: Embedded = self.embedding(batch)
        dots = self.pairs.field_aware_dots(vectors.unflattened(self.shape))  # [R, Fc, Fc], [N, F, Fa]
        logit = self.first_order(batch)
        within_context, others = self.pairs.widths
        if within_context:  # a graph cannot take the triangle of nothing
            logit = logit + dots.spread(dots.context.triu(1).sum(dim=(1, 2)))
        if others:
            logit = logit + dots.candidates.triu(1 - self.pairs.context_fields).sum(dim=(1, 2))
        return logit, None
