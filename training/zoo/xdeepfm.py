"""xDeepFM (Lian et al., KDD 2018, arXiv:1803.05170, section 3).

    x^0 = [v_1, ..., v_F]  [F, D]        x^k_h = sum_{i,j} W^k_{h,i,j} x^{k-1}_i * x^0_j  [D]        (CIN, layer k)
    logit = b + sum_i w_i + <u, [sum_d x^k_h for each k, h]> + <w, MLP([v_1; ...; v_F])>

Of a row; of B rows x^0 is [B, F, D] and x^k [B, maps of layer k, D]; the perceptron's last
layer [B, H] is the hint; logit [B].

Feature maps x^k_h are products element by element, so each of the D places is on its own and the sum over j may go
first: with t_{h,i} = sum_j W_{h,i,j} x^0_j, a dense layer on the F fields, x^k_h = sum_i x^{k-1}_i * t_{h,i}. That is
never more numbers than the outer products x_i * x_j while a layer has fewer maps than there are fields, and the
context's share of t is computed once a request. No activation between layers, as the paper found best.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from training.fit.precision import in_float32
from training.zoo.embedding import Embedded, Encoded, FieldEmbedding, Fields
from training.zoo.layers import FirstOrder, Perceptron, SplitLinear

_CHUNK_BYTES = 1 << 20  # of t at a time in training: it stays in the cache of a core


class XDeepFM(nn.Module):
    """First order, a compressed interaction network and a perceptron, summed. Options: `dim`, `hidden`, `dropout`,
    `init_sd`; `cin_layers`, feature maps of each layer of the CIN."""

    def __init__(
        self,
        fields: Fields,
        *,
        dim: int,
        hidden: Sequence[int],
        cin_layers: Sequence[int] = (16, 16, 16),
        dropout: float = 0.0,
        init_sd: float = 0.01,
    ) -> None:
        super().__init__()
        self.first_order = FirstOrder(fields)
        self.embedding = FieldEmbedding(fields, dim, init_sd=init_sd)
        self.cin = CIN(self.embedding.context_fields, self.embedding.candidate_fields, cin_layers)
        self.last_cin = nn.Linear(sum(cin_layers), 1, bias=False)
        self.first = SplitLinear(self.embedding.widths, hidden[0])
        self.hidden = Perceptron(hidden, dropout=dropout)
        self.last = nn.Linear(hidden[-1], 1, bias=False)  # the first-order part holds the bias

    def forward(self, batch: Encoded) -> tuple[Tensor, Tensor | None]:
        """N encoded rows -> logit [N] and hint [N, hidden[-1]], the perceptron's last layer."""
        vectors = self.embedding(batch)
        hint = self.hidden(self.first(vectors))
        compressed = self.last_cin(self.cin(vectors))
        return self.first_order(batch) + (compressed + self.last(hint)).squeeze(1), hint


class CIN(nn.Module):
    """Compressed interaction network: vectors of F fields -> sums over D of all feature maps, [N, sum of maps].

    `weights[k]` is W^k, [maps of layer k, maps of the layer before (F for the first), F].
    """

    def __init__(self, context_fields: int, candidate_fields: int, maps: Sequence[int]) -> None:
        super().__init__()
        self.context_fields = context_fields
        fields = context_fields + candidate_fields
        self.weights = nn.ParameterList(
            # as nn.Linear, whose fan-in is every product a map sums
            (2 * torch.rand(count, before, fields) - 1) / (before * fields) ** 0.5
            for count, before in zip(maps, [fields, *maps[:-1]], strict=True)
        )

    def forward(self, vectors: Embedded) -> Tensor:
        start = vectors.joined().transpose(1, 2).contiguous()  # x^0, [N, D, F]
        maps, pooled = start, []
        for weight in self.weights:
            if vectors.request_index is None:
                flat = chunked_maps(maps.flatten(0, 1), start.flatten(0, 1), weight)
                maps = torch.unflatten(flat, 0, start.shape[:2])  # [N, D, H]
            else:
                maps = self._served(maps, vectors, weight)
            pooled.append(maps.sum(dim=1))
        return torch.cat(pooled, dim=1)

    def _served(self, maps: Tensor, vectors: Embedded, weight: Tensor) -> Tensor:
        """The next layer, [N, D, H], with the context's share of t made once a request."""
        flat = weight.flatten(0, 1).T  # [F, H * maps before]
        # Not of a side without fields: ONNX Runtime leaves a product over nothing as it found the memory.
        shares = []
        if self.context_fields:
            of_context = vectors.context.transpose(1, 2) @ flat[: self.context_fields]  # [R, D, H * maps before]
            shares.append(vectors.spread(of_context))
        if self.context_fields < len(flat):
            shares.append(vectors.candidates.transpose(1, 2) @ flat[self.context_fields :])
        t = torch.unflatten(sum(shares[1:], shares[0]), 2, weight.shape[:2])  # [N, D, H, maps before]
        return torch.matmul(t, maps.unsqueeze(3)).squeeze(3)


class _ChunkedMaps(torch.autograd.Function):
    """maps [M, I], start [M, F], weight [H, I, F] -> [M, H]: sum_{i,j} weight_{h,i,j} maps_i start_j, M = N * D.

    t, [M, H, I], is never whole: forward makes it chunk by chunk, backward makes it again. Kept, it would be read from
    memory several times, which takes longer than to compute it.
    """

    @staticmethod
    def forward(ctx: Any, maps: Tensor, start: Tensor, weight: Tensor) -> Tensor:
        flat, result = weight.flatten(0, 1), maps.new_empty(len(maps), len(weight))
        for chunk in _chunks(maps, weight):
            t = torch.unflatten(start[chunk] @ flat.T, 1, weight.shape[:2])
            torch.sum(t.mul_(maps[chunk].unsqueeze(1)), dim=2, out=result[chunk])
        ctx.save_for_backward(maps, start, weight)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        maps, start, weight = ctx.saved_tensors
        (gradient,) = gradients  # [M, H]
        flat = weight.flatten(0, 1)
        of_maps, of_start = torch.empty_like(maps), torch.empty_like(start)
        of_weight = torch.zeros_like(flat)
        for chunk in _chunks(maps, weight):
            above = gradient[chunk].unsqueeze(2)  # [m, H, 1]
            t = torch.unflatten(start[chunk] @ flat.T, 1, weight.shape[:2])
            torch.sum(t.mul_(above), dim=1, out=of_maps[chunk])
            of_t = torch.mul(above, maps[chunk].unsqueeze(1), out=t).flatten(1)
            torch.mm(of_t, flat, out=of_start[chunk])
            of_weight.addmm_(of_t.T, start[chunk])
        return of_maps, of_start, of_weight.view_as(weight)


def chunked_maps(maps: Tensor, start: Tensor, weight: Tensor) -> Tensor:
    """`_ChunkedMaps` as a function."""
    return in_float32(_ChunkedMaps.apply, maps, start, weight)


def _chunks(maps: Tensor, weight: Tensor) -> list[slice]:
    rows = max(1, _CHUNK_BYTES // (4 * weight.shape[0] * weight.shape[1]))
    return [slice(start, start + rows) for start in range(0, len(maps), rows)]
