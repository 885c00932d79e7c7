"""What the simulator counted: the line a person watches, and the truth by arm that results are held against."""

from __future__ import annotations

import time
from array import array
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

RECENT = 2000
"""Answers that the live line's latencies are of."""
QUANTILES = (0.5, 0.9, 0.99, 0.999)


@dataclass(slots=True, eq=False)
class ArmTally:
    """Of the answers that named one arm of one experiment."""

    answers: int = 0
    fallbacks: int = 0
    clicks: int = 0
    """That were drawn; a click whose feedback was lost is among them."""
    expected_clicks: float = 0.0
    """The sum of the true click probabilities of what was shown."""
    units: set[str] = field(default_factory=set)
    models: Counter[str] = field(default_factory=Counter)
    """Answers by `model/version`."""
    latency_ms: array[float] = field(default_factory=lambda: array("d"))


@dataclass(slots=True, eq=False)
class Tally:
    """Everything that was sent, and what came of it."""

    began: float | None = None
    """When the first was waited for, by the monotonic clock; None: the world is still being made."""
    arrived: int = 0
    answered: int = 0
    """In time: each of these has one impression."""
    late: int = 0
    """Answered, but after the caller's patience: nothing was shown."""
    unsent: int = 0
    """Arrived, and found no free connection within the patience: this program, or the service, was too slow."""
    refused: int = 0
    """429: too busy."""
    deadline: int = 0
    """504: the request's own deadline could not be met."""
    errors: Counter[str] = field(default_factory=Counter)
    """Anything else, by status or kind."""
    first_error: str = ""
    impressions: int = 0
    clicks: int = 0
    """Events that were handed to feedback, each once."""
    duplicates: int = 0
    """Events that were sent once more on purpose,"""
    retried: int = 0
    """and because a batch was refused or its answer did not come: the service may have had them."""
    orphans: int = 0
    """Clicks on requests that never were, sent on purpose."""
    accepted: int = 0
    """What the service answered to feedback: events that it kept,"""
    known: int = 0
    """and events that it had."""
    lost: int = 0
    """Events that could not be brought to the service, or were not due before the end."""
    unordered: float = 0.0
    """Expected clicks, had a candidate been shown at random,"""
    best: float = 0.0
    """and had the truly best one been."""
    arms: dict[tuple[str, str], ArmTally] = field(default_factory=dict)
    _recent: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))

    def answer(
        self,
        *,
        experiment: str,
        arm: str,
        model: str,
        fallback: bool,
        unit: str,
        latency_ms: float,
        truth: NDArray[np.float64],
        shown: int,
        clicked: bool,
    ) -> None:
        """One answer in time, of which candidate `shown` was shown."""
        self.answered += 1
        self.impressions += 1
        self.clicks += clicked
        self.unordered += float(truth.mean())
        self.best += float(truth.max())
        self._recent.append(latency_ms)
        one = self.arms.setdefault((experiment, arm), ArmTally())
        one.answers += 1
        one.fallbacks += fallback
        one.clicks += clicked
        one.expected_clicks += float(truth[shown])
        one.units.add(unit)
        one.models[model] += 1
        one.latency_ms.append(latency_ms)

    def error(self, kind: str, detail: str) -> None:
        """A request that came to nothing."""
        self.errors[kind] += 1
        self.first_error = self.first_error or f"{kind}: {detail}"

    def line(self) -> str:
        """What a person watches."""
        if self.began is None:
            return "the world is being made"
        seconds = time.monotonic() - self.began
        p50, p99 = _quantiles(np.fromiter(self._recent, float), (0.5, 0.99))
        ctr = f"{self.clicks / self.impressions:.1%}" if self.impressions else "-"
        parts = [
            f"{seconds:5.0f} s",
            f"{self.arrived} requests ({self.arrived / max(seconds, 1e-9):.0f}/s)",
            f"{self.clicks} clicks ({ctr})",
            "p50 -  p99 -" if p50 is None else f"p50 {p50:.1f}  p99 {p99:.1f} ms",
            *(f"{name} {count}" for name, count in self._trouble().items() if count),
            f"errors {sum(self.errors.values())}",
        ]
        return "  ".join(parts)

    def _trouble(self) -> dict[str, int]:
        return {
            "refused": self.refused,
            "deadline": self.deadline,
            "late": self.late,
            "unsent": self.unsent,
            "lost events": self.lost,
        }

    def to_json(self, controls: dict[str, str]) -> dict[str, Any]:
        """Plain values. `controls`: the control of each experiment, where it is known."""
        every = np.concatenate([np.frombuffer(arm.latency_ms) for arm in self.arms.values()] or [np.empty(0)])
        return {
            "requests": {
                "arrived": self.arrived,
                "answered": self.answered,
                "refused": self.refused,
                "deadline": self.deadline,
                "late": self.late,
                "unsent": self.unsent,
                "errors": dict(sorted(self.errors.items())),
                "first_error": self.first_error or None,
            },
            "feedback": {
                "impressions": self.impressions,
                "clicks": self.clicks,
                "duplicates": self.duplicates,
                "retried": self.retried,
                "orphans": self.orphans,
                "accepted": self.accepted,
                "known": self.known,
                "lost": self.lost,
            },
            "latency_ms": _latency(every),
            "expected_ctr": {
                "shown": _share(sum(arm.expected_clicks for arm in self.arms.values()), self.answered),
                "at_random": _share(self.unordered, self.answered),
                "best": _share(self.best, self.answered),
            },
            "arms": [
                {
                    "experiment": experiment,
                    "arm": arm,
                    "units": len(one.units),
                    "impressions": one.answers,
                    "clicks": one.clicks,
                    "ctr": _share(one.clicks, one.answers),
                    "expected_ctr": _share(one.expected_clicks, one.answers),
                    "expected_lift": self._lift(experiment, arm, controls.get(experiment)),
                    "fallbacks": one.fallbacks,
                    "models": dict(sorted(one.models.items())),
                    "latency_ms": _latency(np.frombuffer(one.latency_ms)),
                }
                for (experiment, arm), one in sorted(self.arms.items())
            ],
        }

    def _lift(self, experiment: str, arm: str, control: str | None) -> float | None:
        """The true relative lift of CTR over control; None of control itself, and where either showed nothing."""
        before, after = self.arms.get((experiment, control or "")), self.arms[experiment, arm]
        if before is None or arm == control or not before.expected_clicks:
            return None
        return (after.expected_clicks / after.answers) / (before.expected_clicks / before.answers) - 1


def _share(part: float, whole: int) -> float | None:
    return part / whole if whole else None


def _quantiles(values: NDArray[np.float64], shares: tuple[float, ...]) -> list[float | None]:
    return [float(value) for value in np.quantile(values, shares)] if len(values) else [None] * len(shares)


def _latency(values: NDArray[np.float64]) -> dict[str, float | None]:
    found = zip(QUANTILES, _quantiles(values, QUANTILES), strict=True)
    return {f"p{100 * share:g}": None if value is None else round(value, 3) for share, value in found}
