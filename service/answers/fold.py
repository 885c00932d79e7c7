"""Rows of the joined log -> sums that are added: a day's evidence to yesterday's.

Per arm a table of totals by unit (a unit that comes back is the same unit, so its totals are added before anything is
squared), histograms of scores and of latency, and counts of what was left out. `Evidence` of two parts of a log
adds up to that of the whole, provided no request is in both and none was too young when its part was folded. Knows no
statistics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from service.answers import guard_rails, lift, off_policy, paired
from service.answers.calibration import ScoreHistogram, row_losses
from service.answers.latency import BINS as LATENCY_BINS
from service.answers.latency import latency_counts
from service.answers.moments import Moments
from service.answers.rows import Rows

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

SCORED_CLICKS = "scored_clicks"
POLICY_PREFIX = "policy_"
UNIT_TOTALS = (
    guard_rails.REQUESTS,
    guard_rails.ERRORS,
    guard_rails.FALLBACKS,
    guard_rails.SLOW,
    lift.IMPRESSIONS,
    lift.CLICKS,
    SCORED_CLICKS,
    guard_rails.PREDICTED,
    lift.EARLIER_IMPRESSIONS,
    lift.EARLIER_CLICKS,
    *(POLICY_PREFIX + name for name in off_policy.NAMES),
)
"""What is kept of each unit of an arm."""

CARRIED = (lift.EARLIER_IMPRESSIONS, lift.EARLIER_CLICKS)
"""Facts about a unit, not sums: when tables are added, the larger stays."""


@dataclass(frozen=True, slots=True, eq=False)
class UnitTable:
    """Totals by unit: `units` [U] ascending, `totals` [U, K]."""

    names: tuple[str, ...]
    units: NDArray[np.str_]
    totals: Array

    @classmethod
    def none(cls, names: tuple[str, ...]) -> UnitTable:
        return cls(names, np.zeros(0, dtype=np.str_), np.zeros((0, len(names))))

    @classmethod
    def of_rows(cls, units: NDArray[np.str_], **columns: Array) -> UnitTable:
        """Sums by unit; of `CARRIED` columns the largest."""
        names = tuple(columns)
        distinct, place = np.unique(units, return_inverse=True)
        totals = np.zeros((len(distinct), len(names)))
        for k, (name, column) in enumerate(columns.items()):
            if name in CARRIED:
                np.maximum.at(totals[:, k], place, column)
            else:
                totals[:, k] = np.bincount(place, weights=column, minlength=len(distinct))
        return cls(names, distinct, totals)

    def __add__(self, other: UnitTable) -> UnitTable:
        """Both together; a unit that is in both has one row."""
        if self.names != other.names:
            raise ValueError(f"expected totals {self.names}, got {other.names}")
        totals = np.concatenate([self.totals, other.totals])
        return UnitTable.of_rows(
            np.concatenate([self.units, other.units]), **dict(zip(self.names, totals.T, strict=True))
        )

    def __getitem__(self, name: str) -> Array:
        return self.totals[:, self.names.index(name)]

    def moments(self, *names: str, prefix: str = "") -> Moments:
        """Moments of some of the totals (named without the prefix), over the units for which not all are 0."""
        picked = {name: self[prefix + name] for name in names}
        some = np.any([column != 0 for column in picked.values()], axis=0)
        return Moments.of_units(**{name: column[some] for name, column in picked.items()})


@dataclass(slots=True, eq=False)
class Evidence:
    """What one phase has shown so far."""

    arms: dict[str, UnitTable] = field(default_factory=dict)
    paired: dict[str, UnitTable] = field(default_factory=dict)
    """By treatment arm: totals of `paired.NAMES` by chooser, `<chooser>:<name>`."""
    scores: dict[tuple[str, str, str], ScoreHistogram] = field(default_factory=dict)
    """By arm, segment and its value; ("", "") is all."""
    latency: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    """Rows and what was left out of them, and why."""

    def __add__(self, other: Evidence) -> Evidence:
        return Evidence(
            {arm: table + other.arms[arm] for arm, table in self.arms.items()},
            {arm: table + other.paired[arm] for arm, table in self.paired.items()},
            {
                key: self.scores.get(key, ScoreHistogram.none()) + other.scores.get(key, ScoreHistogram.none())
                for key in sorted({*self.scores, *other.scores})
            },
            {arm: counts + other.latency[arm] for arm, counts in self.latency.items()},
            {
                name: self.counts.get(name, 0) + other.counts.get(name, 0)
                for name in sorted({*self.counts, *other.counts})
            },
        )


@dataclass(frozen=True, slots=True)
class Facts:
    """What folding must know of an experiment."""

    experiment: str
    arms: tuple[str, ...]
    """In order; the first is control."""
    as_of: float
    """Now, as far as the answer is concerned: seconds since 1970."""
    attribution_window_seconds: float
    slow_above_ms: float | None = None
    """The bound on p99, where one was stated."""


@dataclass(frozen=True, slots=True, eq=False)
class Counted:
    """The rows of one phase that belong to its evidence, and what each of them counts for."""

    rows: Rows
    first: Mask
    """Of an exposure's rows."""
    fell_back: Mask
    shown: Mask
    """Impressions whose attribution window has closed."""
    click: Array
    """1 where such an impression was clicked within its window."""
    counts: dict[str, int]
    """Rows and what was left out of them, and why."""
    outside: Counted | None = None
    """Of units that are not enrolled, what control answered and another arm's model scored too: no evidence of what an
    arm earns, and as good as any of which model predicts better."""

    @property
    def scored(self) -> Mask:
        """Impressions with the probability that their own arm's model gave them."""
        has_score: Mask = np.isfinite(self.rows["pctr"])
        return self.shown & ~self.fell_back & has_score


def count(rows: Rows, facts: Facts, phase: int) -> Counted:
    """What of these rows counts. Rows of an arm that the experiment lacks are left out, as much else is."""
    counts = {**rows.counts, "rows": len(rows), "unreadable": rows.bad}
    rows = rows.take(
        np.lexsort((rows["time"], rows["candidate"], rows["request_id"], rows["unit"]))
    )  # sums do not depend on order

    def leave_out(name: str, keep: Mask) -> None:
        nonlocal rows
        counts[name] = int(len(rows) - keep.sum())
        rows = rows.take(keep)

    leave_out("other_experiment", (rows["experiment"] == "") | (rows["experiment"] == facts.experiment))
    leave_out("other_phase", rows["phase"] == phase)
    leave_out("forced", ~rows["forced"])
    outside = rows.take(~rows["enrolled"] & (rows["arm"] == facts.arms[0]) & np.isfinite(rows["shadow_pctr"]))
    outside = outside.take(_first_of(outside["request_id"], outside["candidate"]))
    leave_out("not_enrolled", rows["enrolled"])
    leave_out("unknown_arm", np.isin(rows["arm"], np.asarray(facts.arms)))
    leave_out("duplicate", _first_of(rows["request_id"], rows["candidate"]))
    return replace(_count(rows, facts, counts), outside=_count(outside, facts, {}))


def _count(rows: Rows, facts: Facts, counts: dict[str, int]) -> Counted:
    """What of rows that are evidence counts; adds to `counts` what does not."""
    first = _first_of(rows["request_id"])  # of an exposure's rows
    served_other = (rows["served"] != "") & (rows["served"] != rows["arm"])
    fell_back = rows["fallback"] != ""
    after_halt = served_other & ~fell_back
    shown = (rows["candidate"] >= 0) & ~after_halt
    counts["click_without_candidate"] = int((rows["click"] & (rows["candidate"] < 0)).sum())
    counts["after_halt"] = int(after_halt.sum())
    mature = rows["time"] + facts.attribution_window_seconds <= facts.as_of
    counts["too_young"] = int((shown & ~mature).sum())
    shown &= mature
    late = rows["click_time"] - rows["time"] > facts.attribution_window_seconds
    counts["late_clicks"] = int((shown & rows["click"] & late).sum())
    click = (rows["click"] & ~late & shown).astype(np.float64)
    return Counted(rows, first, fell_back, shown, click, counts)


def fold(rows: Rows, facts: Facts, phase: int) -> Evidence:
    """The evidence of one phase in these rows."""
    return fold_counted(count(rows, facts, phase), facts)


def fold_counted(counted: Counted, facts: Facts) -> Evidence:
    """The same, of rows that were looked through."""
    rows, first, fell_back = counted.rows, counted.first, counted.fell_back
    shown, click = counted.shown, counted.click
    slow = np.zeros(len(rows), dtype=bool)
    if facts.slow_above_ms is not None:
        slow = np.nan_to_num(rows["latency_ms"]) > facts.slow_above_ms
    scored = counted.scored
    weighed = shown & np.isfinite(rows["propensity"]) & np.isfinite(rows["target_propensity"])
    with np.errstate(invalid="ignore"):
        weight = np.where(weighed, rows["target_propensity"] / rows["propensity"], 0.0)
    totals = dict(
        zip(
            UNIT_TOTALS,
            (
                first * 1.0,
                (first & rows["error"]) * 1.0,
                (first & fell_back) * 1.0,
                (first & slow) * 1.0,
                shown * 1.0,
                click,
                click * scored,
                np.where(scored, rows["pctr"], 0.0),
                np.nan_to_num(rows["earlier_impressions"]),
                np.nan_to_num(rows["earlier_clicks"]),
                weighed * 1.0,
                click * weighed,
                weight,
                click * weight,
            ),
            strict=True,
        )
    )
    evidence = Evidence(counts=dict(counted.counts))
    timed = first & np.isfinite(rows["latency_ms"])
    for arm in facts.arms:
        here = rows["arm"] == arm
        evidence.arms[arm] = UnitTable.of_rows(rows["unit"][here], **{name: v[here] for name, v in totals.items()})
        evidence.latency[arm] = (
            latency_counts(rows["latency_ms"][here & timed])
            if (here & timed).any()
            else np.zeros(LATENCY_BINS, dtype=np.int64)
        )
        _fold_scores(evidence.scores, arm, rows.take(here & scored), click[here & scored])
    for arm in facts.arms[1:]:
        evidence.paired[arm] = _fold_paired(counted, facts.arms[0], arm)
        if counted.outside is not None:
            evidence.paired[arm] += _fold_paired(counted.outside, facts.arms[0], arm)
    return evidence


def phases_of(rows: Rows, experiment: str) -> tuple[int, ...]:
    """The phases of the experiment that occur, ascending."""
    ours = (rows["experiment"] == "") | (rows["experiment"] == experiment)
    return tuple(int(phase) for phase in np.unique(rows["phase"][ours]))


def _fold_scores(scores: dict[tuple[str, str, str], ScoreHistogram], arm: str, rows: Rows, click: Array) -> None:
    if not len(rows):
        return
    scores[arm, "", ""] = ScoreHistogram.of_rows(click, rows["pctr"])
    for segment, values in rows.segments.items():
        for value in np.unique(values):
            which = values == value
            scores[arm, segment, str(value)] = ScoreHistogram.of_rows(click[which], rows["pctr"][which])


def _fold_paired(counted: Counted, control: str, treatment: str) -> UnitTable:
    """Treatment's minus control's logloss on impressions that both scored, in a column a chooser."""
    rows, click = counted.rows, counted.click
    both = counted.scored & np.isfinite(rows["shadow_pctr"])
    by_control = both & (rows["arm"] == control) & (rows["shadow_arm"] == treatment)
    by_treatment = both & (rows["arm"] == treatment) & (rows["shadow_arm"] == control)
    used = by_control | by_treatment
    part, y = rows.take(used), click[used]
    more = row_losses(y, part["shadow_pctr"]) - row_losses(y, part["pctr"])  # of the shadow over the served
    more = np.where(by_control[used], more, -more)
    choosers = {
        control: by_control[used] & ~part["random"],
        treatment: by_treatment[used] & ~part["random"],
        paired.RANDOM: part["random"],
    }
    columns = {}
    for chooser, which in choosers.items():
        for name, column in zip(paired.NAMES, (np.ones_like(y), y, more), strict=True):
            columns[f"{chooser}:{name}"] = np.where(which, column, 0.0)
    return UnitTable.of_rows(part["unit"], **columns)


def _first_of(*keys: NDArray[np.generic]) -> Mask:
    """Which rows are the first with their keys."""
    places = [np.unique(key, return_inverse=True)[1] for key in keys]
    _, first = np.unique(np.stack(places, axis=1), axis=0, return_index=True)
    found = np.zeros(len(keys[0]), dtype=bool)
    found[first] = True
    return found


def units_in_two_arms(tables: Mapping[str, UnitTable]) -> int:
    """How many units occur in more than one arm, which the assignment makes impossible."""
    every = np.concatenate([table.units for table in tables.values()])
    return len(every) - len(np.unique(every))


def units_against_plan(tables: Mapping[str, UnitTable], planned: Sequence[str | None], units: Sequence[str]) -> int:
    """How many of `units` are not (only) in the arm `planned` for them."""
    where = dict(zip(units, planned, strict=True))
    return sum(where.get(str(unit)) != arm for arm, table in tables.items() for unit in table.units)
