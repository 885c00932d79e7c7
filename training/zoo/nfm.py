"""Neural factorization machine, NFM (He & Chua, SIGIR 2017, arXiv:1708.05027, section 3).

    f = sum_{i<j} v_i * v_j  [D], element by element        logit = b + sum_i w_i + w MLP(f)

w_i [B, 1], v_i and f [B, D] of F fields; the perceptron's last layer [B, H] is the hint; logit [B].

The perceptron sees the pairs pooled into one vector, not the fields. The paper normalizes f and each layer by batch
statistics; left out here, because the average of weights over steps that the training loop keeps would not fit them.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from training.zoo.embedding import Encoded, FieldEmbedding, Fields
from training.zoo.layers import FirstOrder, Perceptron, pooled_products


class NFM(nn.Module):
    """First order beside a perceptron on the pooled pairs. Options: `dim`, `hidden`, `dropout`, `init_sd`."""

    def __init__(
        self, fields: Fields, *, dim: int, hidden: Sequence[int], dropout: float = 0.0, init_sd: float = 0.01
    ) -> None:
        super().__init__()
        self.first_order = FirstOrder(fields)
        self.embedding = FieldEmbedding(fields, dim, init_sd=init_sd)
        self.first = nn.Linear(dim, hidden[0])
        self.hidden = Perceptron(hidden, dropout=dropout)
        self.last = nn.Linear(hidden[-1], 1, bias=False)  # the first-order part holds the bias

    def forward(self, batch: Encoded) -> tuple[Tensor, Tensor | None]:
        """N encoded rows -> logit [N] and hint [N, hidden[-1]], the perceptron's last layer."""
        hint = self.hidden(self.first(pooled_products(self.embedding(batch))))
        return self.first_order(batch) + self.last(hint).squeeze(1), hint
