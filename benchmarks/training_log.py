"""A log of the shape that training speed is measured on: 39 fields, a million ids by Zipf's law, clicks to be learned.

Half a batch's look-ups go to a few hundred ids and the rest to a long tail, as in the logs of advertisers. The click
probability is a sum of an effect an id and of effects of some pairs of fields, so that logloss tells a network that
learns from one that does not. Every contender reads the same arrays.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FIELDS, IDS = 39, 1_000_000
ZIPF = 1.1
BASE_LOGIT, EFFECT_SD, PAIR_SD, PAIRS, PAIR_CELLS = -1.2, 0.18, 0.35, 12, 64


def field_sizes(fields: int = FIELDS, ids: int = IDS) -> NDArray[np.int64]:
    """How many ids each field has: from ten to a third of them all, evenly on a logarithmic scale."""
    sizes = np.geomspace(10, ids / 3, fields)
    sizes *= ids / sizes.sum()
    return np.maximum(sizes.astype(np.int64), 4)


def draw(rows: int, sizes: NDArray[np.int64], seed: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Ids [rows, fields], local to their field, and clicks [rows]."""
    world, chance = np.random.default_rng(0), np.random.default_rng([seed, 1])
    ids = np.empty((rows, len(sizes)), dtype=np.int32)
    logit = np.full(rows, BASE_LOGIT)
    for field, size in enumerate(sizes):
        weights = np.arange(1, size + 1) ** -ZIPF
        ends = np.cumsum(weights / weights.sum())
        ids[:, field] = np.minimum(np.searchsorted(ends, chance.random(rows)), size - 1)
        logit += world.normal(0, EFFECT_SD, size)[ids[:, field]]
    for _ in range(PAIRS):
        one, other = world.choice(len(sizes), 2, replace=False)
        effects = world.normal(0, PAIR_SD, (PAIR_CELLS, PAIR_CELLS))
        logit += effects[ids[:, one] % PAIR_CELLS, ids[:, other] % PAIR_CELLS]
    return ids, (chance.random(rows) < 1 / (1 + np.exp(-logit))).astype(np.float32)


def write(path: Path, train_rows: int, valid_rows: int, seed: int = 0) -> None:
    """One .npz: `sizes`, `ids`, `label`; the first `train_rows` rows train, the others judge."""
    sizes = field_sizes()
    ids, label = draw(train_rows + valid_rows, sizes, seed)
    np.savez(path, sizes=sizes, ids=ids, label=label, train_rows=np.array(train_rows))
