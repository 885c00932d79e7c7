"""Triton's statistics of a model: how many inferences, and where their time went; all workers added up.

They are ordinary metrics (docs/api.md), so they are shared among workers and outlive them as those do. Requests over
/v2 count here and nothing else: /predict has histograms of its own, and is not to pay for these.
"""

from __future__ import annotations

from collections.abc import Iterable
from time import time
from weakref import WeakKeyDictionary

from service.metrics import Metrics, adder
from service.scoring.scorer import Scorer

PARTS = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")


class ModelCounts:
    """The children of the metrics of one model version."""

    def __init__(self, model: str, version: str, metrics: Metrics) -> None:
        self._add = {part: adder(metrics.inference_seconds.labels(model, version, part)) for part in PARTS}
        self._count_ok = adder(metrics.inferences.labels(model, version, "ok"))
        self._count_refused = adder(metrics.inferences.labels(model, version, "refused"))
        self._count_candidates = adder(metrics.inference_candidates.labels(model, version))
        self._last = metrics.inference_last.labels(model, version)

    def spend(self, reading: float, waiting: float, scoring: float) -> None:
        """Counts the seconds of a request up to its scores."""
        self._add["compute_input"](reading)
        self._add["queue"](waiting)
        self._add["compute_infer"](scoring)

    def succeed(self, rows: int, seconds: float, replying: float) -> None:
        """Counts an answered request."""
        self._add["compute_output"](replying)
        self._add["success"](seconds)
        self._count_ok(1)
        self._count_candidates(rows)
        self._last.set(time())

    def fail(self, seconds: float) -> None:
        """Counts a request that was refused after its model was found."""
        self._add["fail"](seconds)
        self._count_refused(1)


class Statistics:
    """The statistics of every model version that this worker has served."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._counts: WeakKeyDictionary[Scorer, ModelCounts] = WeakKeyDictionary()

    def of(self, scorer: Scorer) -> ModelCounts:
        """Where a model version's inferences are counted."""
        counts = self._counts.get(scorer)
        if counts is None:
            bundle = scorer.bundle
            counts = self._counts[scorer] = ModelCounts(bundle.name, str(bundle.version), self._metrics)
        return counts

    def describe(self, versions: Iterable[tuple[str, int]]) -> dict[str, object]:
        """The document for these model versions, in Triton's words. Reads files where workers share them."""
        totals: dict[tuple[str, ...], float] = {}
        for name, labels, value in self._metrics.samples("retort_inference"):
            # Each metric has model and version, and one label more at most.
            key = (name, labels["model"], labels["version"], labels.get("part") or labels.get("outcome") or "")
            totals[key] = value
        return {"model_stats": [_describe(model, str(version), totals) for model, version in versions]}


def _describe(model: str, version: str, totals: dict[tuple[str, ...], float]) -> dict[str, object]:
    def total(name: str, label: str = "") -> float:
        return totals.get((f"retort_inference{name}", model, version, label), 0.0)

    def duration(part: str, count: float) -> dict[str, int]:
        return {"count": int(count), "ns": int(1e9 * total("_seconds_total", part))}

    done = total("s_total", "ok")
    return {
        "name": model,
        "version": version,
        "last_inference": int(1000 * total("_last_timestamp_seconds")),
        "inference_count": int(total("_candidates_total")),
        "execution_count": int(done),
        "inference_stats": {
            "success": duration("success", done),
            "fail": duration("fail", total("s_total", "refused")),
            **{part: duration(part, done) for part in PARTS[2:]},
            "cache_hit": {"count": 0, "ns": 0},
            "cache_miss": {"count": 0, "ns": 0},
        },
        "batch_stats": [],
    }
