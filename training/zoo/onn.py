"""Operation-aware neural network, ONN, also known as NFFM (Yang et al., Neural Networks 121, 2020, arXiv:1904.12579).

    logit = w MLP([v_{1,1}; ...; v_{F,F}; <v_{i,j}, v_{j,i}> for i < j]) + b

v_{i,j} [B, D] of F fields; the perceptron meets [B, F * D + F (F - 1) / 2], its last layer
[B, H] is the hint; logit [B].

An id has a vector for each operation: v_{i,i} is copied to the perceptron, v_{i,j} meets field j in an inner product,
as in an FFM. A row of the table holds F * D numbers. The paper normalizes layers by batch statistics; left out here,
because the average of weights over steps that the training loop keeps would not fit them. The context's copies and the
pairs within the context go through the first layer once a request.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from training.zoo.embedding import Embedded, Encoded, FieldEmbedding, Fields
from training.zoo.layers import FieldPairs, PairLinear, Perceptron, SplitLinear


class ONN(nn.Module):
    """A perceptron on copies and field-aware products. Options: `dim` of one vector, `hidden`, `dropout`, `init_sd`."""

    def __init__(
        self, fields: Fields, *, dim: int, hidden: Sequence[int], dropout: float = 0.0, init_sd: float = 0.01
    ) -> None:
        super().__init__()
        self.embedding = FieldEmbedding(fields, len(fields) * dim, init_sd=init_sd)
        self.shape = (len(fields), dim)
        context_fields, candidate_fields = self.embedding.context_fields, self.embedding.candidate_fields
        self.pairs = FieldPairs(context_fields, candidate_fields)
        self.first = SplitLinear((context_fields * dim, candidate_fields * dim), hidden[0])
        self.products = PairLinear(self.pairs, hidden[0])
        self.hidden = Perceptron(hidden, dropout=dropout)
        self.last = nn.Linear(hidden[-1], 1)

    def forward(self, batch: Encoded) -> tuple[Tensor, Tensor | None]:
        """N encoded rows -> logit [N] and hint [N, hidden[-1]], the perceptron's last layer."""
        vectors: Embedded = self.embedding(batch).unflattened(self.shape)  # [R, Fc, F, D], [N, Fa, F, D]
        products = self.products(self.pairs.field_aware_dots(vectors))
        hint = self.hidden(self.first(self._copies(vectors)) + products)
        return self.last(hint).squeeze(1), hint

    def _copies(self, vectors: Embedded) -> Embedded:
        """v_{i,i} of every field i: [R, Fc, D], [N, Fa, D]."""
        fields = self.shape[0]
        context = vectors.context.flatten(1, 2)[:, :: fields + 1]
        candidates = vectors.candidates.flatten(1, 2)[:, self.pairs.context_fields :: fields + 1]
        return Embedded(context, candidates, vectors.request_index)
