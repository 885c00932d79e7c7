"""A perceptron on concatenated embeddings, the deep part of Wide & Deep (Cheng et al., DLRS 2016).

    h = ReLU(W_L ... ReLU(W_1 [v_1; ...; v_F] + b_1) ... + b_L)          logit = w h + b

v_i [B, D] of F fields, joined [B, F * D]; each layer [B, width of `hidden`], the last h [B, H] is the hint; logit [B].

The usual student: two or three matrix products, the first of them mostly once a request.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from training.zoo.embedding import Encoded, FieldEmbedding, Fields
from training.zoo.layers import Perceptron, SplitLinear, hidden_layer


class DNN(nn.Module):
    """Embeddings, hidden layers, one logit. Options: `dim`, `hidden`, `dropout`, `init_sd`."""

    def __init__(
        self, fields: Fields, *, dim: int, hidden: Sequence[int], dropout: float = 0.0, init_sd: float = 0.01
    ) -> None:
        super().__init__()
        self.embedding = FieldEmbedding(fields, dim, init_sd=init_sd)
        self.first = SplitLinear(self.embedding.widths, hidden[0])
        self.hidden = Perceptron(hidden, dropout=dropout)
        self.last = nn.Linear(hidden[-1], 1)

    def forward(self, batch: Encoded) -> tuple[Tensor, Tensor | None]:
        """N encoded rows -> logit [N] and hint [N, hidden[-1]], the last hidden layer."""
        hint = hidden_layer(self.embedding, self.first, self.hidden, batch)
        return self.last(hint).squeeze(1), hint
