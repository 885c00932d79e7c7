"""FinalMLP (Mao et al., AAAI 2023, arXiv:2304.00902): two perceptrons, told apart by gates, fused by a bilinear form.

    e = [v_1; ...; v_F]        g_1 = 2 sigmoid(gate_1(context's part of e))        g_2 = 2 sigmoid(gate_2(candidate's))
    o_1 = MLP_1(g_1 * e)       o_2 = MLP_2(g_2 * e)
    logit = b + <w_1, o_1> + <w_2, o_2> + sum_h o_{1,h}^T W_h o_{2,h}        o_{k,h}: the h-th of `heads` parts of o_k

e [B, F * D]; o_1 [B, H_1] and o_2 [B, H_2], joined [B, H_1 + H_2], are the hint; W_h
[H_1 / heads, H_2 / heads]; logit [B].

What a gate sees is for the user to choose in the paper; here the first sees the fields of the context, the second those
of the candidate, so that gate 1 and the context's share of MLP_1 are computed once a request. A side without fields has
a constant gate that is learned.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from training.errors import NetworkError
from training.zoo.embedding import Embedded, Encoded, FieldEmbedding, Fields
from training.zoo.layers import Perceptron, SplitLinear


class FinalMLP(nn.Module):
    """Two gated streams. Options: `dim`, `dropout`, `init_sd`; `hidden` of the first stream, `second_hidden` of the
    second (as the first where not given); `gate_hidden` of the gates' own perceptrons; `heads` of the fusion."""

    def __init__(
        self,
        fields: Fields,
        *,
        dim: int,
        hidden: Sequence[int],
        second_hidden: Sequence[int] | None = None,
        gate_hidden: Sequence[int] = (64,),
        heads: int = 1,
        dropout: float = 0.0,
        init_sd: float = 0.01,
    ) -> None:
        super().__init__()
        second_hidden = hidden if second_hidden is None else second_hidden
        if hidden[-1] % heads or second_hidden[-1] % heads:
            raise NetworkError(
                f"network 'finalmlp': heads: expected a divisor of the streams' last widths {hidden[-1]} and "
                f"{second_hidden[-1]}, got {heads}"
            )
        self.embedding = FieldEmbedding(fields, dim, init_sd=init_sd)
        context_width, candidate_width = self.embedding.widths
        self.gate_1 = Gate(context_width, gate_hidden, context_width + candidate_width)
        self.gate_2 = Gate(candidate_width, gate_hidden, context_width + candidate_width)
        self.first_1 = SplitLinear(self.embedding.widths, hidden[0])
        self.hidden_1 = Perceptron(hidden, dropout=dropout)
        self.first_2 = SplitLinear(self.embedding.widths, second_hidden[0])
        self.hidden_2 = Perceptron(second_hidden, dropout=dropout)
        self.last = nn.Linear(hidden[-1] + second_hidden[-1], 1)  # w_1, w_2, b
        # W_h: as many terms as o_{1,h} has times o_{2,h} has, all of size one together
        fusion = torch.randn(heads, hidden[-1] // heads, second_hidden[-1] // heads)
        self.fusion = nn.Parameter(fusion / math.sqrt(fusion.numel()))

    def forward(self, batch: Encoded) -> tuple[Tensor, Tensor | None]:
        """N encoded rows -> logit [N] and hint [N, hidden[-1] + second_hidden[-1]], both streams' last layers."""
        vectors = self.embedding(batch)
        out_1 = self.hidden_1(self.first_1(self._gated_by_context(vectors)))
        out_2 = self.hidden_2(self.first_2(self._gated_by_candidate(vectors)))
        hint = torch.cat([out_1, out_2], dim=1)
        return self.last(hint).squeeze(1) + self._fused(out_1, out_2), hint

    def _gated_by_context(self, vectors: Embedded) -> Embedded:
        context = vectors.context.flatten(1)  # [R, Fc*D]
        gate = self.gate_1(context)  # [R, F*D], or [1, F*D] where it is constant
        width = context.shape[1]
        of_candidate = gate if width == 0 else vectors.spread(gate[:, width:])
        return Embedded(context * gate[:, :width], vectors.candidates.flatten(1) * of_candidate, vectors.request_index)

    def _gated_by_candidate(self, vectors: Embedded) -> Embedded:
        rows = vectors.joined().flatten(1) * self.gate_2(vectors.candidates.flatten(1))  # [N, F*D]
        return Embedded(rows[:, :0], rows, None, rows)

    def _fused(self, out_1: Tensor, out_2: Tensor) -> Tensor:
        """sum_h o_{1,h}^T W_h o_{2,h}: [N]."""
        heads = len(self.fusion)
        left = torch.unflatten(out_1, 1, (heads, -1)).transpose(0, 1)  # o_{1,h}: [heads, N, hidden[-1] / heads]
        met = torch.bmm(left, self.fusion).transpose(0, 1).flatten(1)  # [N, second_hidden[-1]]
        return (met * out_2).sum(dim=1)


class Gate(nn.Module):
    """2 sigmoid(MLP(x)), about 1 at first: [S, width_in] -> [S, width]; learned, [1, width], where x has no numbers."""

    def __init__(self, width_in: int, hidden: Sequence[int], width: int) -> None:
        super().__init__()
        self.constant = None if width_in else nn.Parameter(torch.zeros(1, width))
        if width_in:
            self.layers = nn.Sequential(
                nn.Linear(width_in, hidden[0]), Perceptron(hidden), nn.Linear(hidden[-1], width)
            )

    def forward(self, x: Tensor) -> Tensor:
        logit: Tensor = self.layers(x) if self.constant is None else self.constant
        return 2 * logit.sigmoid()
