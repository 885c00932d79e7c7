"""What scored rows are measured by: one definition for report, manifest and an experiment's answers. Sums in float64.

`label` is 0 or 1, `truth` the known true probability of a synthetic log, `pctr` a probability, `score`
anything that orders rows. Metrics "under the truth" are what the label-based ones average to if the same rows
were drawn again and again, so they carry no label noise.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def sigmoid(logit: ArrayLike) -> Array:
    """1 / (1 + exp(-logit)), without overflow on either side."""
    z = np.asarray(logit, dtype=np.float64)
    small = np.exp(-np.abs(z))
    return np.asarray(np.where(z >= 0, 1.0, small) / (1.0 + small))


def auc(label: ArrayLike, score: ArrayLike) -> float:
    """Chance that a random click scores above a random non-click, ties half; NaN without both kinds."""
    return xauc(label, score)


def xauc(truth: ArrayLike, score: ArrayLike) -> float:
    """AUC in expectation under the truth: every row is a click of weight p and a non-click of weight 1 - p.

    sum_{i,j} p_i (1 - p_j) [s_i > s_j] / sum_{i,j} p_i (1 - p_j)      (ties, a row with itself included,
    count half)
    """
    positive = np.asarray(truth, dtype=np.float64)
    if positive.size == 0:
        return float("nan")
    _, rank = np.unique(np.asarray(score), return_inverse=True)
    return auc_of_counts(np.bincount(rank, weights=positive), np.bincount(rank, weights=1.0 - positive))


def auc_of_counts(positive_at: ArrayLike, negative_at: ArrayLike) -> float:
    """AUC from how many clicks and non-clicks have each score, scores ascending; NaN without both kinds."""
    positive_at = np.asarray(positive_at, dtype=np.float64)
    negative_at = np.asarray(negative_at, dtype=np.float64)
    negative_below = np.cumsum(negative_at) - negative_at
    pairs = positive_at.sum() * negative_at.sum()
    if pairs <= 0:
        return float("nan")
    return float(positive_at @ (negative_below + 0.5 * negative_at) / pairs)


def logloss(label: ArrayLike, pctr: ArrayLike) -> float:
    """Mean of -(y ln p + (1 - y) ln(1 - p)), in nats."""
    return xlogloss(label, pctr)


def xlogloss(truth: ArrayLike, pctr: ArrayLike) -> float:
    """Logloss in expectation under the truth: -(q ln p + (1 - q) ln(1 - p)), q the true probability."""
    q = np.asarray(truth, dtype=np.float64)
    p = np.clip(np.asarray(pctr, dtype=np.float64), 1e-12, 1.0 - 1e-12)
    return float(-np.mean(q * np.log(p) + (1.0 - q) * np.log1p(-p)))


def normalised_entropy(label: ArrayLike, pctr: ArrayLike) -> float:
    """Logloss over that of always predicting the mean click rate (He et al., ADKDD 2014, section 3)."""
    rate = float(np.mean(np.asarray(label, dtype=np.float64)))
    background = xlogloss(rate, rate)
    return logloss(label, pctr) / background if background > 0 else float("nan")


def predicted_over_actual(label: ArrayLike, pctr: ArrayLike) -> float:
    """Sum of pctr over sum of clicks (or of true probabilities); 1 when right on the whole."""
    clicks = float(np.sum(np.asarray(label, dtype=np.float64)))
    return float(np.sum(np.asarray(pctr, dtype=np.float64)) / clicks) if clicks > 0 else float("nan")


def reliability(label: ArrayLike, pctr: ArrayLike, bins: int = 20) -> list[dict[str, float]]:
    """Equal-count bins by pctr: `rows`, mean `pctr`, mean `label` (clicks, or true probabilities) of each."""
    y = np.asarray(label, dtype=np.float64)
    p = np.asarray(pctr, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    return [
        {"rows": len(part), "pctr": float(p[part].mean()), "label": float(y[part].mean())}
        for part in np.array_split(order, bins)
        if len(part)
    ]


def ece(label: ArrayLike, pctr: ArrayLike, bins: int = 20) -> float:
    """Expected calibration error over equal-count bins: mean |mean pctr - mean label|, weighted by rows.

    Given the truth instead of labels, the calibration error without label noise.
    """
    return ece_of_bins(reliability(label, pctr, bins))


def ece_of_bins(table: list[dict[str, float]]) -> float:
    """The same from bins that are already made, as `reliability` gives them; NaN where they hold no row."""
    rows = sum(entry["rows"] for entry in table)
    return sum(entry["rows"] * abs(entry["pctr"] - entry["label"]) for entry in table) / rows if rows else float("nan")


def ece_floor(pctr: ArrayLike, bins: int = 20, *, draws: int = 20, seed: int = 0) -> float:
    """The ECE a perfect model would show at this size: labels drawn from `pctr` itself, mean over `draws`."""
    p = np.sort(np.asarray(pctr, dtype=np.float64))
    rng = np.random.default_rng(seed)
    edges = np.unique(np.linspace(0, len(p), bins + 1).astype(np.int64)[:-1])
    gaps = [np.abs(np.add.reduceat((rng.random(len(p)) < p) - p, edges)).sum() / len(p) for _ in range(draws)]
    return float(np.mean(gaps))


def gauc(label: ArrayLike, score: ArrayLike, unit: ArrayLike) -> float:
    """AUC within each unit, weighted by its rows, over units with both kinds (Zhu et al., KDD 2017)."""
    units, index = np.unique(np.asarray(unit), return_inverse=True)
    y = np.asarray(label, dtype=np.float64)
    # Ranks within a unit, ties sharing their mean: the rank-sum form of the AUC for all units at once.
    order = np.lexsort((np.asarray(score), index))
    unit_of, value = index[order], np.asarray(score)[order]
    new = np.ones(len(order), dtype=bool)
    new[1:] = (unit_of[1:] != unit_of[:-1]) | (value[1:] != value[:-1])
    tie = np.cumsum(new) - 1
    position = np.arange(len(order), dtype=np.float64)
    rank = (np.bincount(tie, weights=position) / np.bincount(tie))[tie]
    rows = np.bincount(unit_of, minlength=len(units))
    rank -= (np.cumsum(rows) - rows)[unit_of]  # 0-based within the unit
    clicks = np.bincount(unit_of, weights=y[order], minlength=len(units))
    rank_sum = np.bincount(unit_of, weights=y[order] * rank, minlength=len(units))
    both = (clicks > 0) & (clicks < rows)
    if not both.any():
        return float("nan")
    clicks, rows = clicks[both], rows[both]
    aucs = (rank_sum[both] - clicks * (clicks - 1) / 2) / (clicks * (rows - clicks))
    return float(np.average(aucs, weights=rows))
