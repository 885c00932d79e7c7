"""A perceptron on a batch's vectors as one operator that goes through the batch piece by piece.

    a_0 = [v_1; ...; v_F]        a_i = ReLU(a_{i-1} W_i^T + b_i)        hint = a_L
    d_L = dL/dhint               g_i = d_i * [a_i > 0]                  d_{i-1} = g_i W_i
    dL/dW_i = g_i^T a_{i-1}      dL/db_i = sum of g_i over rows

The products are those of autograd, operand by operand, but for the rows of each, and for the first layer, which spares
itself some (`first_layer.py`): threads take pieces of the batch instead of meeting at the end of every operator
(`threads.py`), and gradients go from a product to the rows of the table. Under autocast products are made in bfloat16:
vectors are rounded as they are looked up, weights stay float32, and so do gradients of weights once a piece has made
its part, which are summed piece after piece. Pieces have `PIECE` rows whatever the machine, so the result does not
depend on its cores.

Letters: N rows, F fields, D embedding width, H width of the last layer, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from training.fit.precision import linear
from training.fit.threads import share_out
from training.zoo.embedding import Encoded, FieldEmbedding, Source, Wanted, have_kernels
from training.zoo.first_layer import FirstLayer

PIECE = 1024
"""Rows: few enough for a layer of a piece to stay in a core's cache, enough for products at their full speed."""

Layers = Sequence[tuple[Tensor, Tensor | None]]
"""W_i and b_i, in float32."""


def applies(embedding: FieldEmbedding, layers: Layers, batch: Encoded) -> bool:
    """Whether `hidden_layer` is for this batch: in training of all of these, on a CPU, in bfloat16 or, from a piece of
    rows on, in float32, where less is not worth what an operator of Python costs."""
    rounds = torch.is_autocast_enabled("cpu")
    if rounds and torch.get_autocast_dtype("cpu") != torch.bfloat16:
        return False
    if not (torch.is_grad_enabled() and batch.request_index is None and have_kernels(embedding.table)):
        return False
    if len(batch.candidates) < (1 if rounds else PIECE):
        return False
    weights = [embedding.table, *(weight for layer in layers for weight in layer if weight is not None)]
    return all(weight.requires_grad and weight.dtype == torch.float32 for weight in weights)


def hidden_layer(
    embedding: FieldEmbedding, layers: Layers, batch: Encoded, *, dots: bool = False
) -> tuple[Tensor, Tensor]:
    """The hint [N, H], bfloat16 under autocast; and, in float32, sum_{i<j} <v_i, v_j> [N], or nothing [0]."""
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
        ctx: Any, table: Tensor, source: Source, wanted: Wanted, dots: bool, *parameters: Any
    ) -> tuple[Tensor, Tensor]:
        dtype = torch.bfloat16 if torch.is_autocast_enabled("cpu") else torch.float32
        weights: list[Tensor] = [weight.detach() for weight in parameters[::2]]
        biases: list[Tensor | None] = [None if bias is None else bias.detach() for bias in parameters[1::2]]
        rows, layers = len(wanted.plain), len(weights)
        first = FirstLayer(weights[0], biases[0], source, wanted, len(table), dtype)
        transposed = list(weights)
        activations: list[list[Tensor]] = [[table] * layers for _ in range(_count(rows))]
        hint = table.new_empty(rows, len(weights[-1]), dtype=dtype)
        sums, squares = (table.new_zeros(rows if dots else 0, *width) for width in ((table.shape[1],), ()))

        def prepare(place: int) -> None:
            if place == 0:
                first.prepare()
            else:
                weights[place] = weights[place].to(dtype)
                transposed[place] = weights[place].T.contiguous()

        def work(number: int) -> None:
            piece, kept = _piece(number, rows), activations[number]
            kept[0] = first.forth(piece)
            if dots:
                first.add_up(piece, sums[piece], squares[piece])
            for place in range(1, layers):
                kept[place] = linear(kept[place - 1], weights[place], biases[place], relu=True)
            hint[piece] = kept[-1]

        with torch.autocast("cpu", enabled=False):
            share_out(prepare, layers)
            share_out(work, _count(rows))
        ctx.first, ctx.transposed, ctx.activations, ctx.biases = first, transposed, activations, biases
        ctx.sums = sums if dots else None
        return hint, (sums.square().sum(1) - squares) / 2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, above_hint: Tensor, above_dots: Tensor) -> tuple[Tensor | None, ...]:
        first, transposed, activations = ctx.first, ctx.transposed, ctx.activations
        rows, layers, count = len(above_hint), len(transposed), len(activations)
        above_hint, above_dots = above_hint.detach(), above_dots.detach().contiguous()
        dots = None if ctx.sums is None else (above_dots, ctx.sums)
        below = above_hint.new_empty(rows, len(first.by_field))
        of_vectors = torch.empty_like(first.vectors_of_rest)
        parts: list[list[Tensor]] = [[above_hint] * count for _ in range(2 * layers)]

        def work(number: int) -> None:
            piece, kept = _piece(number, rows), activations[number]
            above = above_hint[piece]
            for place in reversed(range(layers)):
                above = torch.ops.aten.threshold_backward(above, kept[place], 0)
                parts[2 * place + 1][number] = above.sum(0)
                if place:
                    parts[2 * place][number] = above.T @ kept[place - 1]
                    above = linear(above, transposed[place])
            below[piece] = above
            parts[0][number] = first.back(piece, above, of_vectors[piece])

        share_out(work, count)
        gradients: list[Tensor | None] = [None] * len(parts)
        shares = torch.get_num_threads() if count > 1 else 1

        def gather(number: int) -> None:
            if number < shares:
                first.fields_back(gradient, below, of_vectors, number, shares, dots)
                return
            one, *others = parts[number - shares]
            total = one.float()
            for other in others:
                total.add_(other)
            gradients[number - shares] = total

        gradient = first.source.gradient
        share_out(gather, shares + len(parts))
        gradients[0] = first.finish(gradient, of_vectors, gradients[0], dots)
        for place, bias in enumerate(ctx.biases):
            if bias is None:
                gradients[2 * place + 1] = None
        return first.source.whole_gradient, None, None, None, *gradients


def _count(rows: int) -> int:
    return -(-rows // PIECE)


def _piece(number: int, rows: int) -> slice:
    return slice(number * PIECE, min((number + 1) * PIECE, rows))
