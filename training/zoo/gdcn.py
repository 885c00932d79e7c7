"""Gated deep & cross network, GDCN-P (Wang et al., CIKM 2023, arXiv:2311.04635, section 3), the parallel structure.

    x_0 = [v_1; ...; v_F]        x_{l+1} = x_0 * (W_l x_l + b_l) * sigmoid(G_l x_l) + x_l
    logit = w [x_L; MLP(x_0)] + b

v_i [B, D] of F fields; x_l [B, F * D]; W_l, G_l [F * D, F * D], b_l [F * D];
the perceptron's last layer [B, H] is the hint; logit [B].

A cross of DCN-V2 whose terms pass a gate, so that depth does not add noise. Of the two recent heirs of DCN-V2 this one
is here because one logit and one loss train it; FCN (DCNv3) needs a loss for each of its two cross networks. The
paper's search for a dimension of its own for each field is left out: one `dim` serves all.

W_0, G_0 and the perceptron's first matrix meet x_0 itself, so their context share is computed once a request.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from training.zoo.embedding import Encoded, FieldEmbedding, Fields
from training.zoo.layers import Perceptron, SplitLinear


class GDCN(nn.Module):
    """Gated crosses beside a perceptron. Options: `dim`, `hidden`, `dropout`, `init_sd`; `cross_layers` L."""

    def __init__(
        self,
        fields: Fields,
        *,
        dim: int,
        hidden: Sequence[int],
        cross_layers: int = 3,
        dropout: float = 0.0,
        init_sd: float = 0.01,
    ) -> None:
        super().__init__()
        self.embedding = FieldEmbedding(fields, dim, init_sd=init_sd)
        width = len(fields) * dim
        self.first_cross = SplitLinear(self.embedding.widths, width)
        self.first_gate = SplitLinear(self.embedding.widths, width, bias=False)
        self.crosses = nn.ModuleList(nn.Linear(width, width) for _ in range(cross_layers - 1))
        self.gates = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(cross_layers - 1))
        self.first = SplitLinear(self.embedding.widths, hidden[0])
        self.hidden = Perceptron(hidden, dropout=dropout)
        self.last = nn.Linear(width + hidden[-1], 1)

    def forward(self, batch: Encoded) -> tuple[Tensor, Tensor | None]:
        """N encoded rows -> logit [N] and hint [N, hidden[-1]], the perceptron's last layer."""
        vectors = self.embedding(batch)
        start = vectors.joined().flatten(1)  # [N, F*D]
        crossed = start * self.first_cross(vectors) * self.first_gate(vectors).sigmoid() + start
        for cross, gate in zip(self.crosses, self.gates, strict=True):
            crossed = start * cross(crossed) * gate(crossed).sigmoid() + crossed
        hint = self.hidden(self.first(vectors))
        return self.last(torch.cat([crossed, hint], dim=1)).squeeze(1), hint
