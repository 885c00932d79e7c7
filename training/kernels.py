"""Loops over rows of an embedding table that torch has no fast operator for, compiled by numba on first use.

`index_add` in torch takes 70 ns an element whatever its width, and the gradient of a look-up is nothing else: half of a
small network's step. Everything here is plain arithmetic in the order written, so the result does not depend on the
machine's cores. Arrays are numpy's, contiguous, of any floating type; nothing knows of torch, steps or networks. Places
are reckoned in flat arrays and without a sign, because then the compiler makes vector code: four times faster.

Letters: N rows of a batch, P plain fields, F fields of the result, D embedding width, K elements of a sequence. A field
owns the rows of the table from `first` on; `place` is where its vector stands among the F.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
from numba import uint64

Array = Any  # of numpy; numba reads the types from the arrays themselves


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`numba.njit`, kept on disk between processes where there is a folder to keep it in."""
    try:
        return numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # neither beside this file nor in the user's cache: compiled again by each process
        return numba.njit(nogil=True)(function)


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
def scatter(gradient: Array, ids: Array, first: Array, place: Array, above: Array) -> None:
    """gradient[first[p] + ids[n, p]] += above[n, place[p]], the gradient of `gather`."""
    of_weights, given = gradient.reshape(-1), above.reshape(-1)
    fields, dim = above.shape[1], uint64(gradient.shape[1])
    for n in range(ids.shape[0]):
        for p in range(ids.shape[1]):
            target = uint64(first[p] + ids[n, p]) * dim
            source = uint64(n * fields + place[p]) * dim
            for d in range(dim):
                of_weights[target + d] += given[source + d]


@compiled
def pool(table: Array, ids: Array, offsets: Array, first: int, size: int, place: int, out: Array) -> bool:
    """out[n, place] = mean of table[first + ids[k]] over segment n; table[first] where it is empty: [K], [N + 1].

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
        source = uint64(first + (ids[start] if end > start else 0)) * dim
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
def scatter_pooled(gradient: Array, ids: Array, offsets: Array, first: int, place: int, above: Array) -> None:
    """The gradient of `pool`, added to `gradient`."""
    of_weights, given = gradient.reshape(-1), above.reshape(-1)
    fields, dim = above.shape[1], uint64(gradient.shape[1])
    for n in range(len(offsets) - 1):
        start, end = offsets[n], offsets[n + 1]
        source = uint64(n * fields + place) * dim
        if end <= start:
            target = uint64(first) * dim
            for d in range(dim):
                of_weights[target + d] += given[source + d]
        for k in range(start, end):
            target = uint64(first + ids[k]) * dim
            for d in range(dim):
                of_weights[target + d] += given[source + d] / (end - start)
