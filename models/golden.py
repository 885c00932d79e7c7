"""Golden rows: raw requests with the scores the exporter saw. Whoever loads the graph must see the same.

The service scores them when it loads a version, which is warm-up, parity check and readiness in one. The raw
rows hold missing, unknown and extreme values and sequences, so encoder, graph and runtime are all under test.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from models.errors import BundleError

GOLDEN_FILE = "golden.json"

FLOAT32_TOLERANCE = 1e-3
"""The most that a graph in float32 may ask for; it needs 1e-5."""

MAX_TOLERANCE = 0.05
"""The most that one in smaller numbers may: a rounding that falls to the other side moves a logit by about .01."""


class _Part(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class GoldenRequest(_Part):
    """One request as a client sends it, and the scores of its N candidates."""

    context: dict[str, JsonValue]
    candidates: tuple[dict[str, JsonValue], ...] = Field(min_length=1)
    logit: tuple[float, ...]
    pctr: tuple[float, ...]

    @model_validator(mode="after")
    def _check(self) -> GoldenRequest:
        if not len(self.candidates) == len(self.logit) == len(self.pctr):
            raise ValueError(
                f"expected a logit and a pctr for each of {len(self.candidates)} candidates, "
                f"got {len(self.logit)} and {len(self.pctr)}"
            )
        if not all(0 <= pctr <= 1 for pctr in self.pctr):
            raise ValueError("expected every pctr from 0 to 1")
        return self


class Golden(_Part):
    """golden.json."""

    tolerance: float = Field(default=1e-5, gt=0, le=MAX_TOLERANCE)
    """A score may differ by this much, times |expected| where that is above 1."""
    requests: tuple[GoldenRequest, ...] = Field(min_length=1)


Score = Callable[
    [Mapping[str, JsonValue], Sequence[Mapping[str, JsonValue]]],
    tuple[NDArray[np.floating[Any]], NDArray[np.floating[Any]]],
]
"""Context and candidates, raw -> logit [N] and pctr [N]."""


def check_golden(golden: Golden, score: Score, bundle: Path) -> None:
    """Score every golden request; raise `BundleError` at the first score that is not the expected one."""
    for index, request in enumerate(golden.requests):
        got = score(request.context, request.candidates)
        for output, values, expected in zip(("logit", "pctr"), got, (request.logit, request.pctr), strict=True):
            problem = golden_mismatch(values, expected, golden.tolerance)
            if problem:
                raise BundleError(bundle / GOLDEN_FILE, f"request {index}: {output}: {problem}")


def golden_mismatch(got: NDArray[np.floating[Any]], expected: Sequence[float], tolerance: float) -> str | None:
    """What is wrong with the scores of one request; None where each is within the tolerance."""
    wanted = np.array(expected, dtype=np.float64)
    if got.shape != wanted.shape:
        return f"expected shape {wanted.shape}, got {got.shape}"
    difference = np.abs(got.astype(np.float64) - wanted)
    wrong = ~(difference <= tolerance * np.maximum(1.0, np.abs(wanted)))  # NaN is wrong too
    if not wrong.any():
        return None
    row = int(wrong.argmax())
    return (
        f"candidate {row}: expected {wanted[row]:.9g}, got {float(got[row]):.9g}; "
        f"{int(wrong.sum())} of {len(wanted)} candidates differ by more than {tolerance:g}"
    )
