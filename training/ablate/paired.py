"""Differences between two models over the same seeds: how large, how sure.

Seeds of training vary, the log does not: an interval says what another seed would give, not another day.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Literal

# Two-sided 95% points of Student's t by degrees of freedom 1, 2, ...
_T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)

Verdict = Literal["holds", "does not hold", "open"]

CONFIDENCE = 0.95
"""Of every interval: one means what it says nineteen times in twenty."""
UNTUNED = "untuned"
"""Stands in a verdict's place where one side had settings that nobody chose."""
LEAST_SEEDS = 3
"""A claim of fewer is not made."""
SURE_OF_A_GAP = 3.0
"""Paired standard errors that a gap must exceed before a share of it is worth a number."""


def paired(one: Sequence[float], other: Sequence[float]) -> dict[str, Any]:
    """one - other, seed by seed: `by_seed`, `mean`, `error` (standard error of the mean) and its 95% interval `low` to
    `high`; the last three are None for a single seed."""
    differences = [a - b for a, b in zip(one, other, strict=True)]
    mean = statistics.mean(differences)
    found: dict[str, Any] = {"by_seed": differences, "mean": mean, "error": None, "low": None, "high": None}
    if len(differences) > 1:
        error = statistics.stdev(differences) / math.sqrt(len(differences))
        reach = error * _T_95[min(len(differences) - 1, len(_T_95)) - 1]  # of more seeds still that of 16: too wide
        found |= {"error": error, "low": mean - reach, "high": mean + reach}
    return found


def verdict(difference: Mapping[str, Any]) -> Verdict | None:
    """Whether the first is higher: the 95% interval lies above zero, below zero, or on both sides; None where there are
    too few seeds to say."""
    if len(difference["by_seed"]) < LEAST_SEEDS:
        return None
    if difference["low"] > 0:
        return "holds"
    return "does not hold" if difference["high"] < 0 else "open"


def share_of_gap(part: Mapping[str, Any], gap: Mapping[str, Any]) -> float | None:
    """How much of a gap is closed; None where nobody can be sure that there is a gap. The one rule for every percentage
    of a gap that anything here prints: three seeds, and a gap beyond three paired standard errors."""
    if gap["error"] is None or len(gap["by_seed"]) < LEAST_SEEDS or gap["mean"] <= SURE_OF_A_GAP * gap["error"]:
        return None
    return float(part["mean"] / gap["mean"])
