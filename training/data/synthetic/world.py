"""The world itself: inhabitants and effects put together make true probabilities, clicks and the log."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from models.schema import FeatureSchema
from training.data.synthetic.columns import as_logged, log_schema
from training.data.synthetic.effects import EFFECTS, draw_tables, evaluate
from training.data.synthetic.inhabitants import Codes, Inhabitants
from training.data.synthetic.table_writer import TableWriter
from training.fit.metrics import auc, sigmoid, xauc, xlogloss
from training.pipeline.stages import Report

CHUNK_ROWS = 50_000
REFERENCE_ROWS = 60_000
"""Impressions over which effects are brought to their shares."""
DAY_SPREAD = 0.01
"""Relative standard deviation of the click rate from day to day, as far as time alone moves it."""


@dataclass(frozen=True)
class WorldReport:
    """What was written, and what a model that knew the truth would reach on it, on all rows and on the last day."""

    rows: int
    days: int
    ctr: float
    bayes_auc: float
    bayes_xauc: float
    bayes_logloss: float
    last_day: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


class World:
    """`rows` impressions over `days` days of the world with this seed."""

    def __init__(
        self,
        seed: int = 0,
        rows: int = 185_000,
        days: int = 8,
        *,
        ctr: float = 0.16,
        logit_sd: float = 1.42,
    ) -> None:
        if rows < days or days < 1:
            raise ValueError(f"expected at least one row a day, got {rows} rows over {days} days")
        self.seed = seed
        self.rows = rows
        self.days = days
        self._inhabitants = Inhabitants(self._rng(1), days)
        self._tables = [draw_tables(self._rng(2, k), effect, days) for k, effect in enumerate(EFFECTS)]
        # Every effect is brought to mean 0 and its share of the variance over the same reference impressions,
        # whatever the number of rows asked for.
        reference = self._reference()
        raw = list(self._raw_effects(reference))
        total = sum(effect.share for effect in EFFECTS)
        self._centres = [float(values.mean()) for values in raw]
        self._scales = [
            logit_sd * float(np.sqrt(effect.share / total) / values.std())
            for effect, values in zip(EFFECTS, raw, strict=True)
        ]
        logit = np.sum(list(self._scaled(raw)), axis=0)
        # Tastes drift, the level hardly does: each day has its own intercept, which brings it to about `ctr`.
        level = ctr * np.exp(DAY_SPREAD * self._rng(5).normal(size=days))
        self._intercept = np.array([_intercept_for(logit[reference["day"] == day], level[day]) for day in range(days)])

    def _rng(self, *keys: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *keys])

    def _reference(self) -> Codes:
        per_day = REFERENCE_ROWS // self.days + 1
        days = [self.impressions(self._rng(3, day), day, per_day) for day in range(self.days)]
        return {name: np.concatenate([codes[name] for codes in days]) for name in days[0]}

    def impressions(self, rng: np.random.Generator, day: int, rows: int) -> Codes:
        """Who met what on a day, in the order of time: visible and hidden columns, before any click."""
        return self._inhabitants.impressions(rng, day, rows)

    def effects(self, codes: Codes) -> Iterator[NDArray[np.float64]]:
        """Each of `EFFECTS` as it stands in the true logit, [n]: about mean 0, with its share of the variance."""
        return self._scaled(self._raw_effects(codes))

    def _raw_effects(self, codes: Codes) -> Iterator[NDArray[np.float64]]:
        for effect, tables in zip(EFFECTS, self._tables, strict=True):
            yield evaluate(effect, tables, self._inhabitants.traits, codes)

    def _scaled(self, raw: Iterable[NDArray[np.float64]]) -> Iterator[NDArray[np.float64]]:
        for values, centre, scale in zip(raw, self._centres, self._scales, strict=True):
            yield scale * (values - centre)

    def true_logit(self, codes: Codes) -> NDArray[np.float64]:
        """The sum of all effects and the day's level, [n]."""
        logit = self._intercept[codes["day"]]
        for values in self.effects(codes):
            logit += values
        return logit

    def as_logged(self, codes: Codes, click: NDArray[np.bool_], true_pctr: NDArray[np.float64]) -> pa.Table:
        """The visible columns of impressions [n], as the log has them."""
        return as_logged(codes, click, true_pctr, self._inhabitants)

    def chunks(self) -> Iterator[pa.Table]:
        """The log in the order of time, as tables of raw values."""
        per_day = np.diff(np.linspace(0, self.rows, self.days + 1).astype(int))
        for day, rows in enumerate(per_day):
            # A day is drawn whole, so that its rows come in the order of time; then it is handed on in pieces.
            rng = self._rng(4, day)
            codes = self.impressions(rng, day, int(rows))
            true_pctr = sigmoid(self.true_logit(codes))
            click = rng.random(len(true_pctr)) < true_pctr
            table = self.as_logged(codes, click, true_pctr)
            for start in range(0, len(table), CHUNK_ROWS):
                yield table.slice(start, CHUNK_ROWS)

    def write(self, path: Path, *, progress: Report | None = None) -> WorldReport:
        """Write the log to `path` (.parquet, .csv, .csv.gz, .tsv or .tsv.gz), whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".unfinished-{path.name}")
        clicks, truths, written = [], [], 0
        try:
            with TableWriter(unfinished, path.name) as writer:
                for table in self.chunks():
                    writer.write_table(table)
                    clicks.append(table["click"].to_numpy())
                    truths.append(table["true_pctr"].to_numpy())
                    written += len(table)
                    if progress is not None:
                        progress(written, self.rows, "rows")
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
        return self._report(np.concatenate(clicks), np.concatenate(truths))

    def _report(self, click: NDArray[np.integer], truth: NDArray[np.float64]) -> WorldReport:
        def bayes(rows: slice) -> dict[str, float]:
            label, p = click[rows], truth[rows]
            return {
                "ctr": float(label.mean()),
                "bayes_auc": auc(label, p),
                "bayes_xauc": xauc(p, p),
                "bayes_logloss": xlogloss(p, p),
            }

        last = int(np.linspace(0, self.rows, self.days + 1).astype(int)[-2])
        return WorldReport(self.rows, self.days, **bayes(slice(None)), last_day=bayes(slice(last, None)))

    @staticmethod
    def schema() -> FeatureSchema:
        """What the log's columns mean. `true_pctr` is the truth and never a feature."""
        return log_schema()


def _intercept_for(logit: NDArray[np.float64], ctr: float) -> float:
    """The constant that brings the mean probability to `ctr`, by bisection."""
    low, high = -20.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        if sigmoid(logit + middle).mean() < ctr:
            low = middle
        else:
            high = middle
    return (low + high) / 2
