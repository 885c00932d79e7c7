"""Latency quantiles from histograms that are added: bins a hundredth apart, so every quantile is within half a percent.

The idea of DDSketch (Masson, Rim and Lee, VLDB 2019), with a fixed range: from a microsecond to twenty minutes.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

Counts = NDArray[np.int64]

GROWTH = math.log(1.01)
SHORTEST_MS = 0.001
BINS = 2100


def latency_counts(latency_ms: ArrayLike) -> Counts:
    """How many fall into each bin, [BINS]; what is below or beyond the range counts in the outermost. Counts of two
    parts of a log are added."""
    milliseconds = np.maximum(np.asarray(latency_ms, dtype=np.float64), SHORTEST_MS)
    place = np.floor(np.log(milliseconds / SHORTEST_MS) / GROWTH)
    return np.bincount(np.clip(place, 0, BINS - 1).astype(np.int64), minlength=BINS).astype(np.int64)


def quantile(counts: Counts, share: float) -> float | None:
    """The latency in ms that `share` of the requests did not exceed, within 0.5%; None of no requests."""
    total = int(counts.sum())
    if total == 0:
        return None
    rank = max(1, math.ceil(share * total - 1e-9))
    place = int(np.searchsorted(np.cumsum(counts), rank))
    return SHORTEST_MS * math.exp((place + 0.5) * GROWTH)
