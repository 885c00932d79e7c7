"""DeepFM (Guo et al., IJCAI 2017, arXiv:1703.04247, section 2.1).

    logit = b + sum_i w_i + sum_{i<j} <v_i, v_j> + MLP([v_1; ...; v_F])

w_i [B, 1], v_i [B, D] of F fields, joined [B, F * D]; the perceptron's last layer [B, H] is the hint; logit [B].

The machine and the perceptron share one set of vectors.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from training.zoo.embedding import Encoded, FieldEmbedding, Fields
from training.zoo.layers import FirstOrder, Perceptron, SplitLinear, hidden_layer_and_dots


class DeepFM(nn.Module):
    """A factorization machine beside a perceptron. Options: `dim`, `hidden`, `dropout`, `init_sd`."""

    def __init__(
        self, fields: Fields, *, dim: int, hidden: Sequence[int], dropout: float = 0.0, init_sd: float = 0.01
    ) -> None:
        super().__init__()
        self.first_order = FirstOrder(fields)
        self.embedding = FieldEmbedding(fields, dim, init_sd=init_sd)
        self.first = SplitLinear(self.embedding.widths, hidden[0])
        self.hidden = Perceptron(hidden, dropout=dropout)
        self.last = nn.Linear(hidden[-1], 1, bias=False)  # the first-order part holds the bias

    def forward(self, batch: Encoded) -> tuple[Tensor, Tensor | None]:
        """N encoded rows -> logit [N] and hint [N, hidden[-1]], the perceptron's last layer."""
        hint, dots = hidden_layer_and_dots(self.embedding, self.first, self.hidden, batch)
        return self.first_order(batch) + dots + self.last(hint).squeeze(1), hint
