"""DCN-V2 (Wang et al., WWW 2021, arXiv:2008.13535, section 3), the parallel structure with full matrices.

    x_0 = [v_1; ...; v_F]        x_{l+1} = x_0 * (W_l x_l + b_l) + x_l        logit = w [x_L; MLP(x_0)] + b

v_i [B, D] of F fields; x_l [B, F * D]; W_l [F * D, F * D], b_l [F * D];
the perceptron's last layer [B, H] is the hint; logit [B].

W_0 and the perceptron's first matrix meet x_0 itself, so their context share is computed once a request.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from training.zoo.embedding import Encoded, FieldEmbedding, Fields
from training.zoo.layers import Perceptron, SplitLinear


class DCNV2(nn.Module):
    """Crosses by a matrix beside a perceptron. Options: `dim`, `hidden`, `dropout`, `init_sd`; `cross_layers` L."""

    def __init__(
        self,
        fields: Fields,
        *,
        dim: int,
        hidden: Sequence[int],
        cross_layers: int = 2,
        dropout: float = 0.0,
        init_sd: float = 0.01,
    ) -> None:
        super().__init__()
        self.embedding = FieldEmbedding(fields, dim, init_sd=init_sd)
        width = len(fields) * dim
        self.first_cross = SplitLinear(self.embedding.widths, width)
        self.crosses = nn.ModuleList(nn.Linear(width, width) for _ in range(cross_layers - 1))
        self.first = SplitLinear(self.embedding.widths, hidden[0])
        self.hidden = Perceptron(hidden, dropout=dropout)
        self.last = nn.Linear(width + hidden[-1], 1)

    def forward(self, batch: Encoded) -> tuple[Tensor, Tensor | None]:
        """N encoded rows -> logit [N] and hint [N, hidden[-1]], the perceptron's last layer."""
        vectors = self.embedding(batch)
        start = vectors.joined().flatten(1)  # [N, F*D]
        crossed = start * self.first_cross(vectors) + start
        for cross in self.crosses:
            crossed = start * cross(crossed) + crossed
        hint = self.hidden(self.first(vectors))
        return self.last(torch.cat([crossed, hint], dim=1)).squeeze(1), hint
