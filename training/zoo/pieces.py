"""A perceptron on a batch's vectors in bfloat16 as one operator that goes through the batch piece by piece.

    a_0 = [v_1; ...; v_F]        a_i = ReLU(a_{i-1} W_i^T + b_i)        hint = a_L
    d_L = dL/dhint               g_i = d_i * [a_i > 0]                  d_{i-1} = g_i W_i
    dL/dW_i = g_i^T a_{i-1}      dL/db_i = sum of g_i over rows

The products are those of autograd under autocast, operand by operand, but for the rows of each: threads take pieces of
the batch instead of meeting at the end of every operator (`threads.py`), vectors are rounded as they are looked up, and
gradients go from a product to the rows of the table. Weights stay float32, and so do gradients of weights once a piece
has made its part, which are summed piece after piece. Pieces have `PIECE` rows whatever the machine, so the result does
not depend on its cores. In float32 this is not faster than autograd and not used.

Letters: N rows, F fields, D embedding width, H width of the last layer, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from training import kernels
from training.threads import share_out
from training.zoo.embedding import Encoded, FieldEmbedding, Source, Wanted, have_kernels

PIECE = 1024
"""Rows: few enough for a layer of a piece to stay in a core's cache, enough for products at their full speed."""

Layers = Sequence[tuple[Tensor, Tensor | None]]
"""W_i and b_i, in float32."""


def applies(embedding: FieldEmbedding, layers: Layers, batch: Encoded) -> bool:
    """Whether `hidden_layer` is for this batch: in training of all of these, on a CPU, in bfloat16."""
    if not (torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16):
        return False
    if not (torch.is_grad_enabled() and batch.request_index is None and have_kernels(embedding.table)):
        return False
    if len(batch.candidates) == 0:
        return False
    weights = [embedding.table, *(weight for layer in layers for weight in layer if weight is not None)]
    return all(weight.requires_grad and weight.dtype == torch.float32 for weight in weights)


def hidden_layer(
    embedding: FieldEmbedding, layers: Layers, batch: Encoded, *, dots: bool = False
) -> tuple[Tensor, Tensor]:
    """The hint, bfloat16 [N, H]; and, in float32, sum_{i<j} <v_i, v_j> [N], or nothing [0]."""
    found: tuple[Tensor, Tensor] = _HiddenLayer.apply(  # type: ignore[no-untyped-call]
        embedding.table,
        embedding.source(),
        embedding.wanted(batch),
        dots,
        *(weight for layer in layers for weight in layer),
    )
    return found


class _HiddenLayer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, table: Tensor, source: Source, wanted: Wanted, dots: bool, *parameters: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        local = source.locate(wanted)
        looked_up, rows, dim = source.weights, len(local.plain), table.shape[1]
        rounded = [
            None if weight is None else weight.new_empty(weight.shape, dtype=torch.bfloat16) for weight in parameters
        ]
        weights, biases = rounded[::2], rounded[1::2]
        widths = [local.fields * dim, *(len(weight) for weight in weights if weight is not None)]
        layers = [table.new_empty(rows, width, dtype=torch.bfloat16) for width in widths]
        sums = table.new_empty(rows if dots else 0, dim)
        products = table.new_empty(len(sums))

        def round_weight(number: int) -> None:
            given, into = parameters[number], rounded[number]
            if given is not None and into is not None:
                into.copy_(given.detach())

        def work(number: int) -> None:
            piece = _piece(number, rows)
            into = layers[0][piece].view(-1, local.fields, dim)
            if dots:
                vectors = looked_up.new_empty(into.shape)
                local.gather_piece(looked_up, piece, vectors)
                kernels.pair_dots(vectors.numpy(), sums[piece].numpy(), products[piece].numpy())
                into.copy_(vectors)
            else:
                local.gather_piece(looked_up, piece, into)
            for place, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
                before, after = layers[place][piece], layers[place + 1][piece]
                if bias is None:
                    torch.mm(before, weight.T, out=after)  # type: ignore[union-attr]
                else:
                    torch.addmm(bias, before, weight.T, out=after)  # type: ignore[union-attr]
                after.relu_()

        with torch.autocast("cpu", enabled=False):
            share_out(round_weight, len(rounded))
            share_out(work, _count(rows))
        ctx.source, ctx.local, ctx.dots, ctx.sums = source, local, dots, sums
        ctx.layers, ctx.weights, ctx.biases = layers, weights, biases
        return layers[-1].view_as(layers[-1]), products

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, above: Tensor, above_dots: Tensor) -> tuple[Tensor | None, ...]:
        source, local, layers, weights = ctx.source, ctx.local, ctx.layers, ctx.weights
        looked_up, rows = source.weights, len(layers[0])
        shape = rows, local.fields, looked_up.shape[1]
        of_vectors = torch.empty(shape, dtype=torch.float32 if ctx.dots else torch.bfloat16)
        parts = [
            weight.new_empty(_count(rows), *size) for weight in weights for size in (weight.shape, weight.shape[:1])
        ]
        above, above_dots = above.detach(), above_dots.detach().contiguous()

        def work(number: int) -> None:
            piece = _piece(number, rows)
            gradient = above[piece]
            for place in reversed(range(len(weights))):
                gradient = torch.ops.aten.threshold_backward(gradient, layers[place + 1][piece], 0)
                torch.mm(gradient.T, layers[place][piece], out=parts[2 * place][number])
                torch.sum(gradient, 0, out=parts[2 * place + 1][number])
                if place or ctx.dots:
                    gradient = torch.mm(gradient, weights[place])
                else:
                    torch.mm(gradient, weights[place], out=of_vectors[piece].flatten(1))
            if ctx.dots:
                of_vectors[piece].flatten(1).copy_(gradient)
                vectors = torch.empty_like(of_vectors[piece])
                local.gather_piece(looked_up, piece, vectors)
                kernels.add_pair_dots_gradient(
                    vectors.numpy(), ctx.sums[piece].numpy(), above_dots[piece].numpy(), of_vectors[piece].numpy()
                )

        share_out(work, _count(rows))
        gradients: list[Tensor | None] = [None] * len(parts)

        def add_up(number: int) -> None:
            total = parts[number][0].float()
            for part in parts[number][1:]:
                total.add_(part)
            gradients[number] = total

        share_out(add_up, len(parts))
        local.scatter(source.gradient, of_vectors)
        for place, bias in enumerate(ctx.biases):
            if bias is None:
                gradients[2 * place + 1] = None
        return source.whole_gradient, None, None, None, *gradients


def _count(rows: int) -> int:
    return -(-rows // PIECE)


def _piece(number: int, rows: int) -> slice:
    return slice(number * PIECE, min((number + 1) * PIECE, rows))
