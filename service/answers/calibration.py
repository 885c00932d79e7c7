"""How good an arm's probabilities were, over impressions: from histograms of scores, which are added.

The definitions are those of training (`models/metrics.py`). Logloss, normalised entropy and predicted/actual come out
the same to rounding; AUC and ECE see scores as fine as the histogram's bins, 1/128 of a logit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from models.metrics import auc_of_counts, ece_of_bins, xlogloss

Array = NDArray[np.float64]

BINS = 4096
WIDEST_LOGIT = 16.0
"""Scores beyond +-16 (1e-7) share the outermost bins."""

ROWS, CLICKS, PCTR, LOSS = range(4)


@dataclass(frozen=True, slots=True, eq=False)
class ScoreHistogram:
    """[4, BINS]: rows, clicks, sum of pctr and sum of logloss of the impressions whose logit falls into each bin."""

    sums: Array

    @classmethod
    def of_rows(cls, click: ArrayLike, pctr: ArrayLike) -> ScoreHistogram:
        """From impressions: whether clicked, 0 or 1, and the probability predicted."""
        y, p = np.asarray(click, dtype=np.float64), np.asarray(pctr, dtype=np.float64)
        place = _bin_of(p)
        columns = (np.ones_like(y), y, p, row_losses(y, p))
        return cls(np.stack([np.bincount(place, weights=column, minlength=BINS) for column in columns]))

    @classmethod
    def none(cls) -> ScoreHistogram:
        """Of no impressions."""
        return cls(np.zeros((4, BINS)))

    def __add__(self, other: ScoreHistogram) -> ScoreHistogram:
        return ScoreHistogram(self.sums + other.sums)


@dataclass(frozen=True, slots=True)
class Quality:
    """None where it is not defined: no impressions, or not both clicks and non-clicks."""

    impressions: int
    clicks: int
    auc: float | None
    logloss: float | None
    normalised_entropy: float | None
    """Logloss over that of always predicting the mean click rate: 1 is knowing nothing."""
    predicted_over_actual: float | None
    """1 is right on the whole; 1.2 promises a fifth more clicks than came."""
    ece: float | None
    reliability: tuple[dict[str, float], ...]
    """Up to 20 bins of about equal count: `rows`, mean `pctr`, mean `label`."""


def quality(histogram: ScoreHistogram) -> Quality:
    """Every figure of a histogram."""
    rows, clicks, pctr, loss = (math.fsum(column) for column in histogram.sums)
    bins = reliability_bins(histogram)
    logloss = loss / rows if rows else None
    background = xlogloss(clicks / rows, clicks / rows) if 0 < clicks < rows else None
    return Quality(
        impressions=round(rows),
        clicks=round(clicks),
        auc=_number(auc_of_counts(histogram.sums[CLICKS], histogram.sums[ROWS] - histogram.sums[CLICKS])),
        logloss=logloss,
        normalised_entropy=None if logloss is None or background is None else logloss / background,
        predicted_over_actual=pctr / clicks if clicks else None,
        ece=_number(ece_of_bins(bins)),
        reliability=tuple(bins),
    )


def reliability_bins(histogram: ScoreHistogram, bins: int = 20) -> list[dict[str, float]]:
    """Neighbouring histogram bins joined to about equal counts: each goes where the middle of its rows falls."""
    rows = histogram.sums[ROWS]
    total = rows.sum()
    if total == 0:
        return []
    middle = np.cumsum(rows) - rows / 2
    place = np.minimum((middle / total * bins).astype(np.int64), bins - 1)
    joined = [np.bincount(place, weights=column, minlength=bins) for column in histogram.sums[:3]]
    return [
        {"rows": float(n), "pctr": float(p / n), "label": float(y / n)} for n, y, p in zip(*joined, strict=True) if n
    ]


def row_losses(click: Array, pctr: Array) -> Array:
    """-(y ln p + (1 - y) ln(1 - p)) of each impression, p clipped as `models.metrics.logloss` does."""
    p = np.clip(pctr, 1e-12, 1.0 - 1e-12)
    return np.asarray(-(click * np.log(p) + (1.0 - click) * np.log1p(-p)))


def _bin_of(pctr: Array) -> NDArray[np.int64]:
    p = np.clip(pctr, 1e-12, 1.0 - 1e-12)
    logit = np.log(p) - np.log1p(-p)
    place = np.floor((logit + WIDEST_LOGIT) * (BINS / (2 * WIDEST_LOGIT)))
    return np.clip(place, 0, BINS - 1).astype(np.int64)


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
