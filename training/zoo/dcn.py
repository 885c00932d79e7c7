"""Deep & Cross network, DCN (Wang et al., ADKDD 2017, arXiv:1708.05123, section 2).

    x_0 = [v_1; ...; v_F]        x_{l+1} = x_0 <x_l, w_l> + b_l + x_l        logit = <u, x_L> + <w, MLP(x_0)> + b

v_i [B, D] of F fields; x_l [B, F * D]; w_l, b_l, u [F * D]; the perceptron's last layer [B, H] is the hint; logit [B].

Every x_l is s_l x_0 + c_l with one number s_l a row and a c_l = b_0 + ... + b_{l-1} that no row changes, so that

    s_0 = 1        s_{l+1} = s_l + s_l <x_0, w_l> + <c_l, w_l>        <u, x_L> = s_L <x_0, u> + <c_L, u>

and the crosses are computed as L + 1 dot products with x_0: one thin layer, its context share once a request.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from training.zoo.embedding import Encoded, FieldEmbedding, Fields
from training.zoo.layers import Perceptron, SplitLinear


class DCN(nn.Module):
    """Crosses by a vector beside a perceptron. Options: `dim`, `hidden`, `dropout`, `init_sd`; `cross_layers` L."""

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
        self.crosses = SplitLinear(self.embedding.widths, cross_layers + 1, bias=False)  # w_0 .. w_{L-1}, then u
        self.cross_biases = nn.Parameter(torch.zeros(cross_layers, len(fields) * dim))  # b_0 .. b_{L-1}
        self.first = SplitLinear(self.embedding.widths, hidden[0])
        self.hidden = Perceptron(hidden, dropout=dropout)
        self.last = nn.Linear(hidden[-1], 1)

    def forward(self, batch: Encoded) -> tuple[Tensor, Tensor | None]:
        """N encoded rows -> logit [N] and hint [N, hidden[-1]], the perceptron's last layer."""
        vectors = self.embedding(batch)
        hint = self.hidden(self.first(vectors))
        return self._crossed(self.crosses(vectors)) + self.last(hint).squeeze(1), hint

    def _crossed(self, dots: Tensor) -> Tensor:
        """<u, x_L> [N] from <x_0, w_0> .. <x_0, w_{L-1}>, <x_0, u> [N, L + 1]."""
        *crosses, last = dots.unbind(dim=1)
        # <c_l, w_l> for l = 0 .. L, where w_L is u and c_0 is zero
        constants = (self.cross_biases.cumsum(dim=0) * self.crosses.weight[1:]).sum(dim=1)  # [L]: l = 1 .. L
        scale = 1 + crosses[0]
        for dot, constant in zip(crosses[1:], constants, strict=False):
            scale = scale + scale * dot + constant
        return scale * last + constants[-1]
