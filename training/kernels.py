"""Loops over rows of an embedding table that torch has no fast operator for, compiled by numba on first use.

`index_add` in torch takes 70 ns an element whatever its width, and the gradient of a look-up is nothing else: half of a
small network's step. Everything here is plain arithmetic in the order written, so the result does not depend on the
machine's cores. Arrays are numpy's, contiguous, of any floating type; nothing knows of torch or of networks.

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
from numba import types, uint32, uint64
from numba.extending import intrinsic

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
def _float_of_bits(context: Any, bits: Any) -> Any:
    """The float32 whose bits these are, an uint32."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.bitcast(values[0], context.get_value_type(types.float32))

    return types.float32(types.uint32), generate


float_of_bits: Any = _float_of_bits  # numba hands the first argument itself


@compiled
def gather(table: Array, ids: Array, first: Array, size: Array, place: Array, out: Array) -> bool:
    """out[n, place[p]] = table[first[p] + ids[n, p]]: [rows, D], [N, P], [P], [P], [P] -> [N, F, D].

    False, and nothing more, at an id outside 0..size-1: nobody else would stop it from reading anywhere.
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
                found[target + d] = weights[source + d]
    return True


@compiled
def scatter(gradient: Array, ids: Array, first: Array, place: Array, above: Array, start: int, end: int) -> None:
    """gradient[first[p] + ids[n, p]] += above[n, place[p]] for start <= p < end: the gradient of `gather`."""
    of_weights, given = gradient.reshape(-1), above.reshape(-1)
    fields, dim = above.shape[1], uint64(gradient.shape[1])
    for n in range(ids.shape[0]):
        for p in range(start, end):
            target = uint64(first[p] + ids[n, p]) * dim
            source = uint64(n * fields + place[p]) * dim
            for d in range(dim):
                of_weights[target + d] += given[source + d]


@compiled
def gather_rounded(table: Array, ids: Array, first: Array, size: Array, place: Array, out: Array) -> bool:
    """`gather` of float32 into bfloat16, the nearest, ties to even; both as the unsigned integers of their bits."""
    weights, found = table.reshape(-1), out.reshape(-1)
    fields, dim = out.shape[1], uint64(table.shape[1])
    for n in range(ids.shape[0]):
        for p in range(ids.shape[1]):
            if not 0 <= ids[n, p] < size[p]:
                return False
            source = uint64(first[p] + ids[n, p]) * dim
            target = uint64(n * fields + place[p]) * dim
            for d in range(dim):
                bits = weights[source + d]
                found[target + d] = (bits + uint32(0x7FFF) + ((bits >> uint32(16)) & uint32(1))) >> uint32(16)
    return True


@compiled
def scatter_rounded(
    gradient: Array, ids: Array, first: Array, place: Array, above: Array, start: int, end: int
) -> None:
    """`scatter` of what is above in bfloat16, given as unsigned integers of its bits, to a float32 gradient."""
    of_weights, given = gradient.reshape(-1), above.reshape(-1)
    fields, dim = above.shape[1], uint64(gradient.shape[1])
    for n in range(ids.shape[0]):
        for p in range(start, end):
            target = uint64(first[p] + ids[n, p]) * dim
            source = uint64(n * fields + place[p]) * dim
            for d in range(dim):
                of_weights[target + d] += float_of_bits(uint32(given[source + d]) << uint32(16))


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
def pair_dots(vectors: Array, sums: Array, out: Array) -> None:
    """out[n] = sum_{i<j} <v_i, v_j> of vectors [N, F, D], by the identity (|sum_i v_i|^2 - sum_i |v_i|^2) / 2.

    sums [N, D] becomes sum_i v_i, which the gradient needs.
    """
    squares = np.empty(vectors.shape[2], vectors.dtype)
    for n in range(vectors.shape[0]):
        total = sums[n]
        total[:], squares[:] = 0, 0
        for f in range(vectors.shape[1]):
            vector = vectors[n, f]
            for d in range(len(vector)):
                total[d] += vector[d]
            for d in range(len(vector)):
                squares[d] += vector[d] * vector[d]
        both = vectors.dtype.type(0)
        for d in range(len(total)):
            both += total[d] * total[d] - squares[d]
        out[n] = both / 2


@compiled
def add_pair_dots_gradient(vectors: Array, sums: Array, above: Array, gradient: Array) -> None:
    """gradient[n, f] += above[n] (sums[n] - v_f): that of `pair_dots`."""
    for n in range(vectors.shape[0]):
        total, by = sums[n], above[n]
        for f in range(vectors.shape[1]):
            vector, into = vectors[n, f], gradient[n, f]
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
    for i in range(len(touched)):
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
    for i in range(len(touched)):
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
