"""Inner-product neural network, IPNN (Qu et al., ICDM 2016, arXiv:1611.00144, section III.B).

    h_1 = W_z [v_1; ...; v_F] + W_p [<v_i, v_j> for i < j] + b        logit = w MLP(h_1) + b'

v_i [B, D] of F fields; F (F - 1) / 2 products; h_1 [B, width of the first layer]; the last layer [B, H] is
the hint; logit [B].

The paper factorizes W_p to save memory on hundreds of fields; with tens of fields the products themselves are
small, so W_p is a full matrix here, as in the author's own later code. The context's vectors and the pairs within the
context go through the first layer once a request.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from training.zoo.embedding import Encoded, FieldEmbedding, Fields
from training.zoo.layers import FieldPairs, PairLinear, Perceptron, SplitLinear


class IPNN(nn.Module):
    """A perceptron on vectors and all their inner products. Options: `dim`, `hidden`, `dropout`, `init_sd`."""

    def __init__(
        self, fields: Fields, *, dim: int, hidden: Sequence[int], dropout: float = 0.0, init_sd: float = 0.01
    ) -> None:
        super().__init__()
        self.embedding = FieldEmbedding(fields, dim, init_sd=init_sd)
        self.pairs = FieldPairs(self.embedding.context_fields, self.embedding.candidate_fields)
        self.first = SplitLinear(self.embedding.widths, hidden[0])
        self.products = PairLinear(self.pairs, hidden[0])
        self.hidden = Perceptron(hidden, dropout=dropout)
        self.last = nn.Linear(hidden[-1], 1)

    def forward(self, batch: Encoded) -> tuple[Tensor, Tensor | None]:
        """N encoded rows -> logit [N] and hint [N, hidden[-1]], the perceptron's last layer."""
        vectors = self.embedding(batch)
        hint = self.hidden(self.first(vectors) + self.products(self.pairs.dots(vectors)))
        return self.last(hint).squeeze(1), hint
