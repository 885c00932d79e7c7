"""Attention among the fields of a row, forth and back by hand: for training in float32 on a CPU.

torch's own is made for long sequences; of 39 fields, as many as Criteo has, forth and back take it three times as long
(docs/benchmarks.md). Here the sums of a tile of a product stay in registers, which numba's compiler does not find out
by itself: it is handed the vector code. Operands are read where the projections left them, and gradients are written
where those of the projections are expected, so that nothing is parted, joined or transposed but one matrix a head.

Letters: N rows, F fields, H heads, D width of a head, P = F rounded up to whole vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numba
import numpy as np
import torch
from numba import types, uint64
from numba.core import cgutils as _cgutils
from numba.extending import intrinsic
from torch import Tensor

from training.fit.kernels import Array, compiled
from training.fit.threads import share_out

cgutils: Any = _cgutils  # it says nothing of its types
ir: Any = cgutils.ir

ROWS, LANES, FEW_LANES = 4, 16, 8
"""Rows of a tile; numbers of a vector: one register of AVX-512 or two of AVX2; and where heads are no such vectors."""

PIECE, CHUNK = 32, 1024
"""Rows whose layers stay in the cache; rows that a thread takes, and whose gradients of weights are one sum."""


def reassociated(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled so that a sum may be added up in another order: in lanes, as vectors are."""
    found: Callable[..., Any] = numba.njit(nogil=True, error_model="numpy", fastmath={"contract", "reassoc"})(function)
    return found


def can_interact(rows: Tensor, head_dim: int) -> bool:
    """Whether `interact` knows rows [N, F, W]: on a CPU, of four fields at least and heads of whole vectors."""
    on_cpu = rows.device.type == "cpu" and rows.dtype in (torch.float32, torch.bfloat16)
    return on_cpu and rows.shape[1] >= ROWS and head_dim % FEW_LANES == 0


def interact(rows: Tensor, heads: int, projections: Sequence[Tensor], last: Tensor) -> Tensor:
    """The attention's share of the logit, [N, 1], of rows [N, F, W] after one interacting layer a projection.

    A layer is ReLU(softmax(Q K^T) V + R) of each head, where a projection [4 * H * D, W] makes Q, K, V and R, one after
    the other and each of all heads. `last` [1, F * H * D] weighs what the last layer gives. What is returned depends
    on no number of threads.
    """
    found: Tensor = _Interaction.apply(rows, heads, last, *projections)  # type: ignore[no-untyped-call]
    return found


class _Interaction(torch.autograd.Function):
    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)  # type: ignore[untyped-decorator]
    def forward(ctx: Any, rows: Tensor, heads: int, last: Tensor, *projections: Tensor) -> Tensor:
        pieces = torch.split(rows.contiguous(), PIECE)
        kept: list[list[_Kept]] = [[] for _ in pieces]
        shares = rows.new_empty(len(rows), 1)

        def work(chunk: int) -> None:
            for number in _pieces_of(chunk, len(pieces)):
                layer = pieces[number]
                for projection in projections:
                    made = _layer(layer, projection, heads)
                    kept[number].append((layer, *made))
                    layer = made[-1]
                torch.mm(layer.flatten(1), last.T, out=shares[number * PIECE : number * PIECE + len(layer)])

        share_out(work, -(-len(pieces) * PIECE // CHUNK))
        ctx.kept = kept
        ctx.save_for_backward(last, *projections)
        return shares

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")  # type: ignore[untyped-decorator]
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor | None, ...]:
        last, *projections = ctx.saved_tensors
        kept: list[list[_Kept]] = ctx.kept
        chunks = -(-len(kept) * PIECE // CHUNK)
        inputs: list[Tensor] = [above] * len(kept)
        sums = [[torch.zeros_like(weight) for weight in ctx.saved_tensors] for _ in range(chunks)]
        of_pieces = torch.split(above, PIECE)

        def work(chunk: int) -> None:
            of_last, *of_projections = sums[chunk]
            for number in _pieces_of(chunk, len(kept)):
                gradient = of_pieces[number]
                of_last.addmm_(gradient.T, kept[number][-1][-1].flatten(1))
                gradient = (gradient @ last).view_as(kept[number][-1][-1])
                for of_weight, weight, of_layer in zip(
                    reversed(of_projections), reversed(projections), reversed(kept[number]), strict=True
                ):
                    gradient = _layer_back(gradient, weight, of_weight, of_layer)
                inputs[number] = gradient

        share_out(work, chunks)
        of_last, *of_projections = (torch.stack(of_chunks).sum(dim=0) for of_chunks in zip(*sums, strict=True))
        return torch.cat(inputs), None, of_last, *of_projections


_Kept = tuple[Tensor, Tensor, Tensor, Tensor]
"""Of a layer, for its gradient: what went in, its projections, the weights of the attention, what came out."""


def _pieces_of(chunk: int, pieces: int) -> range:
    return range(chunk * CHUNK // PIECE, min((chunk + 1) * CHUNK // PIECE, pieces))


def _layer(rows: Tensor, projection: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """[n, F, W] -> projections [n, F, 4HD], weights [n, H, F, P] and the layer [n, F, HD]."""
    count, fields, _ = rows.shape
    projected = (rows.flatten(0, 1) @ projection.T).view(count, fields, -1)
    scores = rows.new_empty(count, heads, fields, -(-fields // LANES) * LANES)
    _score(projected.numpy(), scores.numpy())
    weights = scores.softmax(dim=3)
    found = rows.new_empty(count, fields, len(projection) // 4)
    _attend(projected.numpy(), weights.numpy(), found.numpy())
    return projected, weights, found


def _layer_back(above: Tensor, projection: Tensor, of_projection: Tensor, kept: _Kept) -> Tensor:
    """The gradient by what went in, [n, F, W]; that by the projection is added to `of_projection`."""
    rows, projected, weights, found = kept
    gradient = torch.empty_like(projected)
    _attend_back(projected.numpy(), weights.numpy(), found.numpy(), above.numpy(), gradient.numpy())
    of_rows = gradient.flatten(0, 1)
    of_projection.addmm_(of_rows.T, rows.flatten(0, 1))
    return (of_rows @ projection).view_as(rows)


def _tile_of(lanes: int) -> Any:
    """A product of ROWS rows by one vector of so many numbers; arguments as of `_multiply`."""
    vector = ir.VectorType(ir.FloatType(), lanes)

    @intrinsic
    def made(
        context: Any,
        left: Any,
        at: Any,
        across: Any,
        along: Any,
        right: Any,
        start: Any,
        stride: Any,
        inner: Any,
        out: Any,
        to: Any,
        step: Any,
    ) -> Any:
        index = types.int64
        signature = types.void(left, index, index, index, right, index, index, index, out, index, index)

        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            lefts, at, across, along, rights, start, stride, inner, outs, to, step = values

            def address(array: Any, kind: Any, of: Any) -> Any:
                return builder.gep(context.make_array(kind)(context, builder, array).data, [of])

            def vector_at(pointer: Any) -> Any:
                return builder.bitcast(pointer, vector.as_pointer())

            def times(count: Any, stride: Any) -> Any:
                return builder.mul(count, stride)

            nothing = ir.Constant(vector, ir.Undefined)
            everywhere = ir.Constant(
                ir.VectorType(ir.IntType(32), lanes), None
            )  # zeros: the first number, in all lanes
            sums = [cgutils.alloca_once_value(builder, ir.Constant(vector, None)) for _ in range(ROWS)]
            with cgutils.for_range(builder, inner) as loop:
                place = builder.add(start, times(loop.index, stride))
                row = builder.load(vector_at(address(rights, signature.args[4], place)), align=4)
                corner = builder.add(at, times(loop.index, along))
                for r, total in enumerate(sums):
                    place = builder.add(corner, times(at.type(r), across))
                    factor = builder.load(address(lefts, signature.args[0], place))
                    first = builder.insert_element(nothing, factor, ir.IntType(32)(0))
                    factors = builder.shuffle_vector(first, nothing, everywhere)
                    product = builder.fmul(factors, row, flags=["contract"])
                    builder.store(builder.fadd(builder.load(total), product, flags=["contract"]), total)
            for r, total in enumerate(sums):
                place = builder.add(to, times(at.type(r), step))
                builder.store(builder.load(total), vector_at(address(outs, signature.args[8], place)), align=4)
            return context.get_dummy_value()

        return signature, generate

    return made


_tile, _short_tile = _tile_of(LANES), _tile_of(FEW_LANES)


@compiled
def _score(projected: Array, scores: Array) -> None:
    """scores[n, h, i, k] = <Q_h x_i, K_h x_k>, and -inf for k >= F: [N, F, 4HD] -> [N, H, F, P]."""
    given, found = projected.reshape(-1), scores.reshape(-1)
    fields, width = projected.shape[1:]
    heads, padded = scores.shape[1], scores.shape[3]
    dim = width // (4 * heads)
    keys = np.zeros(dim * padded, given.dtype)
    for n in range(len(projected)):
        for h in range(heads):
            query = n * fields * width + h * dim
            target = (n * heads + h) * fields * padded
            _transpose(given, query + heads * dim, width, fields, dim, keys, padded)
            _multiply(given, query, width, 1, keys, 0, padded, dim, found, target, padded, fields, padded)
            for i in range(fields):
                for k in range(fields, padded):
                    found[target + i * padded + k] = -np.inf


@compiled
def _attend(projected: Array, weights: Array, out: Array) -> None:
    """out = ReLU(weights V + R): [N, F, 4HD], [N, H, F, P] -> [N, F, HD]."""
    given, shares, found = projected.reshape(-1), weights.reshape(-1), out.reshape(-1)
    fields, width = projected.shape[1:]
    heads, padded = weights.shape[1], weights.shape[3]
    dim = width // (4 * heads)
    joined = uint64(heads * dim)
    for n in range(len(projected)):
        for h in range(heads):
            value = n * fields * width + (2 * heads + h) * dim
            share, target = (n * heads + h) * fields * padded, n * fields * heads * dim + h * dim
            _multiply(shares, share, padded, 1, given, value, width, fields, found, target, heads * dim, fields, dim)
        for i in range(fields):
            residual, target_ = uint64((n * fields + i) * width) + 3 * joined, uint64(n * fields + i) * joined
            for c in range(joined):
                found[target_ + c] = max(found[target_ + c] + given[residual + c], np.float32(0))


@compiled
def _attend_back(projected: Array, weights: Array, out: Array, above: Array, gradient: Array) -> None:
    """The gradient of `_attend` of `_score`'s softmax, by `projected`: [N, F, 4HD] from `above` [N, F, HD]."""
    given, shares, made = projected.reshape(-1), weights.reshape(-1), out.reshape(-1)
    over, found = above.reshape(-1), gradient.reshape(-1)
    fields, width = projected.shape[1:]
    heads, padded = weights.shape[1], weights.shape[3]
    dim = width // (4 * heads)
    joined = uint64(heads * dim)
    values = np.zeros(dim * padded, given.dtype)
    by_score = np.zeros(fields * padded, given.dtype)
    for n in range(len(projected)):
        for i in range(fields):  # R's, which all others start from
            residual, source = uint64((n * fields + i) * width) + 3 * joined, uint64(n * fields + i) * joined
            for c in range(joined):
                found[residual + c] = over[source + c] if made[source + c] > 0 else np.float32(0)
        for h in range(heads):
            query = n * fields * width + h * dim
            key, value, residual_ = query + heads * dim, query + 2 * heads * dim, query + 3 * heads * dim
            share = (n * heads + h) * fields * padded
            _transpose(given, value, width, fields, dim, values, padded)
            _multiply(found, residual_, width, 1, values, 0, padded, dim, by_score, 0, padded, fields, padded)
            _softmax_back(shares, share, by_score, fields, padded)
            _multiply(by_score, 0, padded, 1, given, key, width, fields, found, query, width, fields, dim)
            _multiply(by_score, 0, 1, padded, given, query, width, fields, found, key, width, fields, dim)
            _multiply(shares, share, 1, padded, found, residual_, width, fields, found, value, width, fields, dim)


@compiled
def _softmax_back(weights: Array, at: int, gradient: Array, rows: int, width: int) -> None:
    """gradient = weights * (gradient - <weights, gradient>) of each row, in place."""
    for i in range(uint64(rows)):
        here, there = i * uint64(width), uint64(at) + i * uint64(width)
        mean = _inner(weights, there, gradient, here, uint64(width))
        for k in range(uint64(width)):
            gradient[here + k] = weights[there + k] * (gradient[here + k] - mean)


@reassociated
def _inner(left: Array, at: int, right: Array, to: int, width: int) -> Any:
    total = np.float32(0)
    for k in range(width):
        total += left[at + k] * right[to + k]
    return total


@compiled
def _transpose(source: Array, at: int, stride: int, rows: int, columns: int, out: Array, step: int) -> None:
    """out[c * step + r] = source[at + r * stride + c]."""
    for r in range(uint64(rows)):
        for c in range(uint64(columns)):
            out[c * uint64(step) + r] = source[uint64(at) + r * uint64(stride) + c]


@compiled
def _multiply(
    left: Array,
    at: int,
    across: int,
    along: int,
    right: Array,
    start: int,
    stride: int,
    inner: int,
    out: Array,
    to: int,
    step: int,
    height: int,
    width: int,
) -> None:
    """out[to + r * step + c] = sum over j < inner of left[at + r * across + j * along] right[start + j * stride + c].

    r < height, c < width: at least ROWS rows, of which the last may be made twice; the width is of whole vectors.
    """
    lanes = LANES if width % LANES == 0 else FEW_LANES
    for column in range(0, width, lanes):
        for row in range(0, height, ROWS):
            r = min(row, height - ROWS)
            corner, source, target = at + r * across, start + column, to + r * step + column
            if lanes == LANES:
                _tile(left, corner, across, along, right, source, stride, inner, out, target, step)
            else:
                _short_tile(left, corner, across, along, right, source, stride, inner, out, target, step)
