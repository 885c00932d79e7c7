"""Everything an experiment has shown, as one JSON-able tree: a pure function of what was stated and what was logged.

The same rows, in whatever order, give the same bytes: sums are taken over sorted units, and numbers are rounded to ten
digits. No clock is read: `as_of` is given, or is the time of the last row.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from models.journal.units import looks_hashed
from service.answers import guard_rails, lift, off_policy, paired, sample_ratio
from service.answers.calibration import ScoreHistogram, quality
from service.answers.decision import decide
from service.answers.fold import (
    POLICY_PREFIX,
    SCORED_CLICKS,
    Evidence,
    Facts,
    UnitTable,
    count,
    fold,
    fold_counted,
    phases_of,
    units_against_plan,
    units_in_two_arms,
)
from service.answers.guard_rails import Rail
from service.answers.history import Look, lifts_over_time, looks_at
from service.answers.latency import quantile
from service.answers.lift import CLICKS, ENOUGH_UNITS, IMPRESSIONS
from service.answers.moments import Moments
from service.answers.rows import Rows
from service.errors import AnswersError
from service.experiments.assignment import Assigner
from service.experiments.file import Analysis, Experiment

FORMAT_VERSION = 1
SPLIT_ALPHA = 0.001
"""The split is called broken with this chance of error, over all looks."""
HEAVY_SHARE = 0.1
"""A unit with more of an arm's impressions than this is pointed out."""
QUANTILES = (0.5, 0.9, 0.99, 0.999)


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of the evidence: the experiment as it was stated, and how units were assigned."""

    experiment: Experiment
    assigner: Assigner | None = None
    """Replays every unit's arm; None where the log holds keyed hashes of units."""
    as_of: float | None = None
    """Seconds since 1970; None: the time of the last row."""


def report(question: Question, rows: Rows) -> dict[str, Any]:
    """The whole answer from the rows of a joined log. Raises `AnswersError` where no row belongs to the experiment."""
    experiment = question.experiment
    ours = rows.take((rows["experiment"] == "") | (rows["experiment"] == experiment.name))
    if not len(ours):
        raise AnswersError(f"no row of experiment '{experiment.name}' among {len(rows)}")
    facts = facts_of(question, float(ours["time"].max()))
    now = count(rows, facts, experiment.phase)
    earlier = [phase for phase in phases_of(rows, experiment.name) if phase != experiment.phase]
    evidence = {phase: fold(rows, facts, phase) for phase in earlier}
    evidence[experiment.phase] = fold_counted(now, facts)
    return report_evidence(question, facts, evidence, looks_at(now, facts.arms))


def facts_of(question: Question, last: float) -> Facts:
    """What folding needs of the question; `last` is the time of the last row."""
    experiment = question.experiment
    rails = experiment.guard_rails
    return Facts(
        experiment.name,
        tuple(arm.name for arm in experiment.arms),
        last if question.as_of is None else question.as_of,
        experiment.analysis.attribution_window_seconds,
        None if rails is None else rails.max_p99_ms,
    )


def report_evidence(
    question: Question, facts: Facts, evidence: Mapping[int, Evidence], looks: Sequence[Look] = ()
) -> dict[str, Any]:
    """The same from evidence by phase, folded and added beforehand; `looks`: the past of this phase, where known."""
    experiment, stated = question.experiment, question.experiment.analysis
    now = evidence[experiment.phase]
    split = _split(question, now.arms)
    arms = [_arm(name, now, _rails(experiment, name, now.arms), stated) for name in facts.arms]
    comparisons = [
        {
            **_comparison(facts.arms[0], name, now, stated, len(facts.arms) - 1),
            "history": lifts_over_time(
                looks,
                *(facts.arms[0], name),
                alpha=_alpha(stated, len(facts.arms) - 1),
                expected=stated.expected_impressions,
            ),
        }
        for name in facts.arms[1:]
    ]
    broken = split["reasons"]
    decisions = []
    for name in facts.arms[1:]:
        _, relative = _lift(now, facts.arms[0], name, stated, len(facts.arms) - 1)
        rails = _rails(experiment, name, now.arms)
        decisions.append(asdict(decide(name, relative, rails, minimum_effect=stated.minimum_effect, broken=broken)))
    tree = {
        "format_version": FORMAT_VERSION,
        "experiment": experiment.name,
        "phase": experiment.phase,
        "as_of": facts.as_of,
        "stated": {
            **stated.model_dump(),
            "control": facts.arms[0],
            "alpha_an_arm": _alpha(stated, len(facts.arms) - 1),
        },
        "decisions": decisions,
        "split": split,
        "arms": arms,
        "comparisons": comparisons,
        "phases": [
            {"phase": phase, "arms": [_counts(name, found.arms[name]) for name in facts.arms]}
            for phase, found in sorted(evidence.items())
        ],
        "log": now.counts,
    }
    return rounded(tree)  # type: ignore[no-any-return]


def to_json(tree: Mapping[str, Any]) -> str:
    """The tree as text, one way only; ends in a line break."""
    return json.dumps(tree, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def rounded(value: Any) -> Any:
    """Floats to ten significant digits, arrays and tuples as lists; refuses what JSON cannot say."""
    if isinstance(value, bool) or value is None or isinstance(value, (int, str)):
        return str(value) if isinstance(value, str) else value
    if isinstance(value, (float, np.floating)):
        if not math.isfinite(value):
            raise ValueError(f"expected a finite number, got {value}")
        return float(f"{float(value):.10g}") + 0.0  # no -0.0
    if isinstance(value, Mapping):
        return {str(name): rounded(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(part) for part in value]
    raise TypeError(f"expected what JSON can say, got {type(value).__name__}")


def _alpha(stated: Analysis, comparisons: int) -> float:
    """Each arm's share of alpha, so that all arms together keep to it (Bonferroni)."""
    return stated.alpha / max(1, comparisons)


def _counts(name: str, units: UnitTable) -> dict[str, Any]:
    impressions, clicks = float(units[IMPRESSIONS].sum()), float(units[CLICKS].sum())
    return {
        "arm": name,
        "units": len(units.units),
        "exposures": int(units[guard_rails.REQUESTS].sum()),
        "impressions": int(impressions),
        "clicks": int(clicks),
        "ctr": clicks / impressions if impressions else None,
    }


def _arm(name: str, evidence: Evidence, rails: Sequence[Rail], stated: Analysis) -> dict[str, Any]:
    units = evidence.arms[name]
    requests, impressions = float(units[guard_rails.REQUESTS].sum()), float(units[IMPRESSIONS].sum())
    segments: dict[str, dict[str, Any]] = {}
    for (arm, segment, value), scores in sorted(evidence.scores.items(), key=lambda item: item[0]):
        if arm == name and segment:
            segments.setdefault(segment, {})[value] = asdict(quality(scores))
    return {
        **_counts(name, units),
        "errors": int(units[guard_rails.ERRORS].sum()),
        "fallbacks": int(units[guard_rails.FALLBACKS].sum()),
        "error_rate": float(units[guard_rails.ERRORS].sum()) / requests if requests else None,
        "fallback_rate": float(units[guard_rails.FALLBACKS].sum()) / requests if requests else None,
        "heaviest_unit_share": float(units[IMPRESSIONS].max()) / impressions if impressions else None,
        "latency_ms": {f"p{100 * share:g}": quantile(evidence.latency[name], share) for share in QUANTILES},
        "quality": asdict(quality(evidence.scores.get((name, "", ""), ScoreHistogram.none()))),
        "segments": segments,
        "guard_rails": [asdict(rail) for rail in rails],
        "off_policy": _off_policy(units, stated),
    }


def _rails(experiment: Experiment, name: str, arms: Mapping[str, UnitTable]) -> list[Rail]:
    """The stated rails of an arm; control has none, since there is nothing to send its units to."""
    stated, control = experiment.guard_rails, experiment.control.name
    if stated is None or name == control:
        return []
    units = arms[name]
    rails = []
    for label, events, bound in (
        ("errors", guard_rails.ERRORS, stated.max_error_rate),
        ("fallbacks", guard_rails.FALLBACKS, stated.max_fallback_rate),
        ("slow", guard_rails.SLOW, None if stated.max_p99_ms is None else 0.01),
    ):
        if bound is not None:
            moments = units.moments(guard_rails.REQUESTS, events)
            rails.append(guard_rails.check_rate(label, moments, events, float(bound)))
    if stated.max_calibration_error is not None:
        scored = units.moments(SCORED_CLICKS, guard_rails.PREDICTED)
        moments = Moments((CLICKS, guard_rails.PREDICTED), scored.gram)
        rails.append(guard_rails.check_calibration(moments, stated.max_calibration_error))
    if stated.max_ctr_loss is not None:
        before, after = (arms[arm].moments(CLICKS, IMPRESSIONS) for arm in (control, name))
        rails.append(guard_rails.check_ctr_loss(before, after, float(stated.max_ctr_loss)))
    return rails


def _lift(
    evidence: Evidence, control: str, treatment: str, stated: Analysis, comparisons: int
) -> tuple[lift.Lift, lift.Estimate]:
    both = (evidence.arms[arm].moments(CLICKS, IMPRESSIONS) for arm in (control, treatment))
    found = lift.lift(*both, alpha=_alpha(stated, comparisons), expected=stated.expected_impressions)
    return found, found.relative


def _comparison(control: str, treatment: str, evidence: Evidence, stated: Analysis, comparisons: int) -> dict[str, Any]:
    alpha, expected = _alpha(stated, comparisons), float(stated.expected_impressions)
    found, _ = _lift(evidence, control, treatment, stated, comparisons)
    names = (CLICKS, IMPRESSIONS, lift.EARLIER_CLICKS, lift.EARLIER_IMPRESSIONS)
    histories = (_with_impressions(evidence.arms[arm]).moments(*names) for arm in (control, treatment))
    adjusted, saved = lift.cuped(*histories, alpha=alpha, expected=expected)
    table = evidence.paired[treatment]
    choosers = {
        chooser: paired.paired_difference(
            table.moments(*paired.NAMES, prefix=f"{chooser}:"), alpha=alpha, expected=expected
        )
        for chooser in (control, treatment, paired.RANDOM)
    }
    better, why = paired.verdict(choosers, (control, treatment))
    return {
        "arm": treatment,
        "control": control,
        "difference": asdict(found.difference),
        "relative": asdict(found.relative),
        "design_effect": found.design_effect,
        "cuped": {**asdict(adjusted), "variance_saved": saved},
        "paired": {
            "by_chooser": {
                chooser: {"impressions": int(table[f"{chooser}:{IMPRESSIONS}"].sum()), **asdict(estimate)}
                for chooser, estimate in choosers.items()
            },
            "better": better,
            "why": why,
        },
    }


def _with_impressions(units: UnitTable) -> UnitTable:
    some = units[IMPRESSIONS] > 0
    return UnitTable(units.names, units.units[some], units.totals[some])


def _off_policy(units: UnitTable, stated: Analysis) -> dict[str, Any] | None:
    moments = units.moments(*off_policy.NAMES, prefix=POLICY_PREFIX)
    if not float(moments.units):
        return None
    return asdict(off_policy.off_policy(moments, alpha=stated.alpha, expected=float(stated.expected_impressions)))


def _split(question: Question, arms: Mapping[str, UnitTable]) -> dict[str, Any]:
    """Units against the plan, and every reason to disbelieve them."""
    experiment = question.experiment
    # Buckets, not weights: under a small coverage, whole buckets are a coarser split than the weights.
    widths = [owned.stop - owned.start for owned in experiment.ranges()]
    planned = [arm for arm, width in zip(experiment.arms, widths, strict=True) if width]
    units = [len(arms[arm.name].units) for arm in planned]
    shares = [width / sum(widths) for width in widths if width]
    reasons = []
    log_e, p = 0.0, 1.0
    if len(planned) > 1:
        log_e, p = float(sample_ratio.log_evidence(units, shares)), sample_ratio.chi_squared_p(units, shares)
        if log_e >= -math.log(SPLIT_ALPHA):
            counted = ", ".join(f"{arm.name} {n}" for arm, n in zip(planned, units, strict=True))
            reasons.append(
                f"the split of units is not the planned one: {counted} (p {sample_ratio.always_p(log_e):.2g})"
            )
    for arm in experiment.arms:
        if arm not in planned and len(arms[arm.name].units):
            reasons.append(f"arm {arm.name} owns no bucket and has {len(arms[arm.name].units)} units")
    twice = units_in_two_arms(arms)
    if twice:
        reasons.append(f"{twice} units occur in more than one arm")
    misplaced = None
    if question.assigner is not None:
        misplaced = _misplaced(question, arms)
        if misplaced:
            hashed = all(looks_hashed(str(unit)) for table in arms.values() for unit in table.units[:1])
            hint = "; their ids look hashed by --log-unit-key-file: read such a log with --no-replay" if hashed else ""
            reasons.append(f"{misplaced} units are not in the arm that the published hash gives them{hint}")
    heavy = [
        name
        for name, table in arms.items()
        if len(table.units) >= ENOUGH_UNITS and table[IMPRESSIONS].max() > HEAVY_SHARE * table[IMPRESSIONS].sum()
    ]
    return {
        "planned": dict(zip([arm.name for arm in planned], shares, strict=True)),
        "units": dict(zip([arm.name for arm in planned], units, strict=True)),
        "log_evidence": log_e,
        "always_p": sample_ratio.always_p(log_e),
        "chi_squared_p": p,
        "units_in_two_arms": twice,
        "units_misplaced": misplaced,
        "arms_with_a_heavy_unit": heavy,
        "reasons": reasons,
    }


def _misplaced(question: Question, arms: Mapping[str, UnitTable]) -> int:
    assert question.assigner is not None
    names = [arm.name for arm in question.experiment.arms]
    units = sorted({str(unit) for table in arms.values() for unit in table.units})
    assigned = [question.assigner.assign(unit) for unit in units]
    return units_against_plan(arms, [names[one.arm] if one.enrolled else None for one in assigned], units)
