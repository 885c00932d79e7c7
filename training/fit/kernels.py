"""Loops over rows of an embedding table that torch has no fast operator for, compiled by numba on first use.

`index_add` in torch takes 70 ns an element whatever its width, and the gradient of a look-up is nothing else: half of a
small network's step. Everything here is plain arithmetic in the order written, so the result does not depend on the
machine's cores. Arrays are numpy's, contiguous, of any floating type; nothing knows of torch or of networks. numpy has
no bfloat16: it comes as the uint16 of its bits, where a docstring says that it may.

How a loop is written decides whether the compiler makes vector code of it, four times faster: places reckoned in flat
arrays and without a sign, or rows taken as arrays of their own and one array written a loop; and divisions that do not
ask whether they divide by zero.

Letters: N rows of a batch, P plain fields, F fields of the result, D embedding width, K elements of a sequence. A field
owns the rows of the table from `first` on; `place` is where its vector stands among the F.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import types, uint64
from numba.core import cgutils as _cgutils
from numba.extending import intrinsic

AHEAD, LINE = 8, 16
"""Rows that a loop over rows of a large table asks for before it needs them; float32 numbers of a cache line."""

cgutils: Any = _cgutils  # it says nothing of its types
Array = Any  # of numpy; numba reads the types from the arrays themselves


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`numba.njit`, kept on disk between processes where there is a folder to keep it in."""
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}}
    try:
        found: Callable[..., Any] = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # neither beside this file nor in the user's cache: compiled again by each process
        found = numba.njit(**options)(function)
    return found


@intrinsic
def _widened(context: Any, number: Any) -> Any:
    """A bfloat16, given as the uint16 of its bits, as float32; a floating number as it is."""
    found = types.float32 if number == types.uint16 else number

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        if number != types.uint16:
            return values[0]
        bits = builder.zext(values[0], context.get_value_type(types.uint32))
        return builder.bitcast(builder.shl(bits, bits.type(16)), context.get_value_type(types.float32))

    return found(number), generate


@intrinsic
def _rounded(context: Any, number: Any, like: Any) -> Any:
    """A float32 as what `like` is: the nearest bfloat16, ties to even, where that is an uint16; else as it is."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        if like != types.uint16:
            return values[0]
        bits = builder.bitcast(values[0], context.get_value_type(types.uint32))
        half, is_odd = bits.type(0x7FFF), builder.and_(builder.lshr(bits, bits.type(16)), bits.type(1))
        nearest = builder.add(builder.add(bits, half), is_odd)
        return builder.trunc(builder.lshr(nearest, bits.type(16)), context.get_value_type(types.uint16))

    return (like if like == types.uint16 else number)(number, like), generate


@intrinsic
def _fetch(context: Any, flat: Any, place: Any) -> Any:
    """Ask for the cache line of flat[place], which need not be there by then, nor be a place of the array at all."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        numbers = context.make_array(flat)(context, builder, values[0])
        address = builder.bitcast(builder.gep(numbers.data, [values[1]]), cgutils.voidptr_t)
        flag = context.get_value_type(types.int32)
        kind = cgutils.ir.FunctionType(cgutils.ir.VoidType(), [address.type, flag, flag, flag])
        prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(prefetch, [address, flag(1), flag(3), flag(1)])  # to be written, kept near, data
        return context.get_dummy_value()

    return types.void(flat, place), generate


fetch: Any = _fetch
widened: Any = _widened  # numba hands the first argument itself
rounded: Any = _rounded


@compiled
def fetch_row(flat: Array, row: int, width: int) -> None:
    """Ask for a row of so many float32 numbers: 64 bytes a line, and memory a hundred times as far as the cache."""
    for line in range(uint64(0), width, uint64(LINE)):
        fetch(flat, row * width + line)


@compiled
def gather(table: Array, ids: Array, first: Array, size: Array, place: Array, out: Array) -> bool:
    """out[n, place[p]] = table[first[p] + ids[n, p]]: [rows, D], [N, P], [P], [P], [P] -> [N, F, D].

    False, and nothing more, at an id outside 0..size-1: nobody else would stop it from reading anywhere. `out` may be
    bfloat16.
    """
    weights, found = table.reshape(-1), out.reshape(-1)
    fields, dim = out.shape[1], uint64(table.shape[1])
    for n in range(ids.shape[0]):
        for p in range(ids.shape[1]):
            if not 0 <= ids[n, p] < size[p]:
                return False
            source = uint64(first[p] + ids[n, p]) * dim
            target = uint64(n * fields + place[p]) * dim
            for d in range(dim):
                found[target + d] = rounded(weights[source + d], found[target + d])
    return True


@compiled
def scatter(gradient: Array, ids: Array, first: Array, place: Array, above: Array, start: int, end: int) -> None:
    """gradient[first[p] + ids[n, p]] += above[n, place[p]] for start <= p < end: the gradient of `gather`.

    `above` may be bfloat16.
    """
    of_weights, given = gradient.reshape(-1), above.reshape(-1)
    fields, dim = above.shape[1], uint64(gradient.shape[1])
    for n in range(ids.shape[0]):
        for p in range(start, end):
            target = uint64(first[p] + ids[n, p]) * dim
            source = uint64(n * fields + place[p]) * dim
            for d in range(dim):
                of_weights[target + d] += widened(given[source + d])


@compiled
def pool(table: Array, ids: Array, offsets: Array, first: int, size: int, empty: int, place: int, out: Array) -> bool:
    """out[n, place] = mean of table[first + ids[k]] over segment n; table[empty] where there is none: [K], [N + 1].

    False at an id outside, as `gather`.
    """
    for k in range(len(ids)):
        if not 0 <= ids[k] < size:
            return False
    weights, found = table.reshape(-1), out.reshape(-1)
    fields, dim = out.shape[1], uint64(table.shape[1])
    for n in range(len(offsets) - 1):
        start, end = offsets[n], offsets[n + 1]
        target = uint64(n * fields + place) * dim
        source = uint64(first + ids[start] if end > start else empty) * dim
        for d in range(dim):
            found[target + d] = weights[source + d]
        for k in range(start + 1, end):
            source = uint64(first + ids[k]) * dim
            for d in range(dim):
                found[target + d] += weights[source + d]
        if end > start + 1:
            for d in range(dim):
                found[target + d] /= end - start
    return True


@compiled
def scatter_pooled(
    gradient: Array, ids: Array, offsets: Array, first: int, empty: int, place: int, above: Array
) -> None:
    """The gradient of `pool`, added to `gradient`."""
    of_weights, given = gradient.reshape(-1), above.reshape(-1)
    fields, dim = above.shape[1], uint64(gradient.shape[1])
    for n in range(len(offsets) - 1):
        start, end = offsets[n], offsets[n + 1]
        source = uint64(n * fields + place) * dim
        if end <= start:
            target = uint64(empty) * dim
            for d in range(dim):
                of_weights[target + d] += given[source + d]
        for k in range(start, end):
            target = uint64(first + ids[k]) * dim
            for d in range(dim):
                of_weights[target + d] += given[source + d] / (end - start)


@compiled
def add_shares(shares: Array, ids: Array, first: Array, size: Array, out: Array) -> bool:
    """out[n] = ReLU(out[n] + sum_p shares[first[p] + ids[n, p]]): [U, H], [N, P], [P], [P], [N, H].

    `out` may be bfloat16, which is rounded once. False at an id outside, as `gather`. Four are added at a time, because
    what is written costs as much as two that are read.
    """
    fields, total = ids.shape[1], np.empty(out.shape[1], shares.dtype)
    for n in range(ids.shape[0]):
        row = out[n]
        for p in range(fields):
            if not 0 <= ids[n, p] < size[p]:
                return False
        for h in range(len(row)):
            total[h] = widened(row[h])
        p = 0
        while p + 3 < fields:
            one, two = shares[first[p] + ids[n, p]], shares[first[p + 1] + ids[n, p + 1]]
            three, four = shares[first[p + 2] + ids[n, p + 2]], shares[first[p + 3] + ids[n, p + 3]]
            for h in range(len(total)):
                total[h] += (one[h] + two[h]) + (three[h] + four[h])
            p += 4
        while p < fields:
            one = shares[first[p] + ids[n, p]]
            for h in range(len(total)):
                total[h] += one[h]
            p += 1
        for h in range(len(row)):
            row[h] = rounded(np.float32(0) if total[h] < 0 else total[h], row[h])  # what is no number stays none
    return True


@compiled
def sum_by_id(sums: Array, ids: Array, first: Array, above: Array, start: int, end: int) -> None:
    """sums[first[p] + ids[n, p]] += above[n] for start <= p < end: the gradient of the shares; [U, H] and [N, H].

    `above` may be bfloat16.
    """
    given = np.empty(above.shape[1], sums.dtype)
    for n in range(ids.shape[0]):
        row = above[n]
        for h in range(len(row)):
            given[h] = widened(row[h])
        for p in range(start, end):
            into = sums[first[p] + ids[n, p]]
            for h in range(len(given)):
                into[h] += given[h]


@compiled
def add_up(table: Array, ids: Array, first: Array, sums: Array, squares: Array) -> None:
    """sums[n] += v and squares[n] += |v|^2 for v = table[first[p] + ids[n, p]], all p: [rows, D] -> [N, D] and [N]."""
    square = np.empty(table.shape[1], table.dtype)
    for n in range(ids.shape[0]):
        total = sums[n]
        square[:] = 0
        for p in range(ids.shape[1]):
            vector = table[first[p] + ids[n, p]]
            for d in range(len(vector)):
                total[d] += vector[d]
            for d in range(len(vector)):
                square[d] += vector[d] * vector[d]
        for d in range(len(square)):
            squares[n] += square[d]


@compiled
def add_dots_gradient(
    gradient: Array, table: Array, ids: Array, first: Array, sums: Array, above: Array, start: int, end: int
) -> None:
    """gradient[first[p] + ids[n, p]] += above[n] (sums[n] - v), v as in `add_up`, for start <= p < end.

    That of sum_{i<j} <v_i, v_j> = (|sum_i v_i|^2 - sum_i |v_i|^2) / 2 for rows whose vectors have the `sums`.
    """
    for n in range(ids.shape[0]):
        total, by = sums[n], above[n]
        for p in range(start, end):
            vector, into = table[first[p] + ids[n, p]], gradient[first[p] + ids[n, p]]
            for d in range(len(vector)):
                into[d] += by * (total[d] - vector[d])


@compiled
def touch(
    ids: Array,
    first: Array,
    size: Array,
    step: int,
    marks: Array,
    touched: Array,
    since: Array,
    count: int,
    local: Array,
) -> int:
    """Number the distinct rows that a batch looks up, in the order met: local[n, p] = number of first[p] + ids[n, p].

    `marks` [rows, 2] holds the last step that met a row, and its number there; `touched[i]` becomes row number i,
    `since[i]` the step that had met it before. Numbers go on from `count`; how many there are then is returned, -1 at
    an id outside 0..size-1.
    """
    for n in range(ids.shape[0]):
        for p in range(ids.shape[1]):
            if not 0 <= ids[n, p] < size[p]:
                return -1
            row = uint64(first[p] + ids[n, p])
            if marks[row, 0] != step:
                touched[count], since[count] = row, marks[row, 0]
                marks[row, 0], marks[row, 1] = step, count
                count += 1
            local[n, p] = marks[row, 1]
    return count


@compiled
def catch_up(
    state: Array,
    touched: Array,
    since: Array,
    done: int,
    steps: Array,
    forgotten: Array,
    decays: Array,
    epsilon: float,
    found: Array,
) -> None:
    """Replay what dense Adam does to rows while their gradient is zero: the steps since[i] + 1 to `done`.

    state [rows, 4, D], float32, holds w, m, v and the mean of w; it changes in place, and found[i] = w where `found`
    has rows. `steps` [3, T] holds of step t: learning rate / (1 - b1^t), 1 / sqrt(1 - b2^t) and the share of w in the
    mean; `forgotten` [T] the running sum of ln(1 - share); `decays` [3, K + 1] b1^k, b2^(k/2) and b2^k. After K steps w
    has stopped for float32: what is left of a longer wait is m and v fading and the mean going its way to w, which is
    one product. Four steps are taken at a time: the loop over D is short, and beginning it costs as much as a step.
    """
    dim, most = state.shape[2], decays.shape[1] - 1
    root, tiny = np.empty(dim, np.float32), np.float32(epsilon)
    flat, width = state.reshape(-1), uint64(state.shape[1] * dim)
    for i in range(len(touched)):
        if i + AHEAD < len(touched):
            fetch_row(flat, uint64(touched[i + AHEAD]), width)
        row = state[touched[i]]
        w, m, v, mean = row[0], row[1], row[2], row[3]
        waited = done - since[i]
        if since[i] > 0 and waited > 0:  # 0: not met before, so nothing moves
            replayed = min(waited, most)
            for d in range(dim):
                root[d] = np.sqrt(v[d])
            k = 1
            while k + 3 <= replayed:
                t = since[i] + k
                rate_0, scale_0, share_0 = steps[0, t] * decays[0, k], steps[1, t] * decays[1, k], steps[2, t]
                rate_1, scale_1, share_1 = (
                    steps[0, t + 1] * decays[0, k + 1],
                    steps[1, t + 1] * decays[1, k + 1],
                    steps[2, t + 1],
                )
                rate_2, scale_2, share_2 = (
                    steps[0, t + 2] * decays[0, k + 2],
                    steps[1, t + 2] * decays[1, k + 2],
                    steps[2, t + 2],
                )
                rate_3, scale_3, share_3 = (
                    steps[0, t + 3] * decays[0, k + 3],
                    steps[1, t + 3] * decays[1, k + 3],
                    steps[2, t + 3],
                )
                for d in range(dim):
                    weight, average = w[d], mean[d]
                    weight -= rate_0 * m[d] / (root[d] * scale_0 + tiny)
                    average += share_0 * (weight - average)
                    weight -= rate_1 * m[d] / (root[d] * scale_1 + tiny)
                    average += share_1 * (weight - average)
                    weight -= rate_2 * m[d] / (root[d] * scale_2 + tiny)
                    average += share_2 * (weight - average)
                    weight -= rate_3 * m[d] / (root[d] * scale_3 + tiny)
                    average += share_3 * (weight - average)
                    w[d], mean[d] = weight, average
                k += 4
            while k <= replayed:
                t = since[i] + k
                rate, scale, share = steps[0, t] * decays[0, k], steps[1, t] * decays[1, k], steps[2, t]
                for d in range(dim):
                    weight = w[d] - rate * m[d] / (root[d] * scale + tiny)
                    w[d] = weight
                    mean[d] += share * (weight - mean[d])
                k += 1
            fade, shrink = decays[0, replayed], decays[2, replayed]
            if waited > most:
                fade, shrink = np.float32(0), np.float32(np.exp(np.log(np.float64(decays[2, 1])) * waited))
                behind = np.float32(np.exp(forgotten[done] - forgotten[since[i] + most]))
                for d in range(dim):
                    mean[d] = w[d] + behind * (mean[d] - w[d])
            for d in range(dim):
                m[d] *= fade
            for d in range(dim):
                v[d] *= shrink
        if len(found) > 0:
            out = found[i]
            for d in range(dim):
                out[d] = w[d]


@compiled
def update(
    state: Array,
    touched: Array,
    gradient: Array,
    rate: float,
    scale: float,
    share: float,
    b1: float,
    b2: float,
    epsilon: float,
) -> None:
    """One step of Adam for rows that are caught up, and of the mean of w: `gradient[i]` is that of row touched[i]."""
    dim = state.shape[2]
    new_m, old_v, new_v = np.float32(1 - b1), np.float32(b2), np.float32(1 - b2)
    by, times, part, tiny = np.float32(rate), np.float32(scale), np.float32(share), np.float32(epsilon)
    flat, width = state.reshape(-1), uint64(state.shape[1] * dim)
    for i in range(len(touched)):
        if i + AHEAD < len(touched):
            fetch_row(flat, uint64(touched[i + AHEAD]), width)
        row, g = state[touched[i]], gradient[i]
        w, m, v, mean = row[0], row[1], row[2], row[3]
        for d in range(dim):
            m[d] += new_m * (g[d] - m[d])
        for d in range(dim):
            v[d] = old_v * v[d] + new_v * g[d] * g[d]
        for d in range(dim):
            w[d] -= by * m[d] / (np.sqrt(v[d]) * times + tiny)
        for d in range(dim):
            mean[d] += part * (w[d] - mean[d])
