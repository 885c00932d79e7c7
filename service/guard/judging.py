"""The rails that an experiment states, held against what was counted.

Switching an arm off sends its units to control, which helps only where control does better. So the bounds on failures,
fallbacks, slow answers and calibration are those that are stated, or, where control itself is surely beyond them, what
control does: when the whole machine is slow, or the world has changed, or somebody sends requests that nobody can
answer in time, no arm is blamed for it.
"""

from __future__ import annotations

import math

from service.answers import guard_rails, lift
from service.answers.guard_rails import Rail, check_calibration, check_ctr_loss, check_rate
from service.answers.moments import Moments
from service.experiments.file import GuardRails
from service.guard.evidence import CLICKS, ERRORS, FALLBACKS, IMPRESSIONS, PREDICTED, REQUESTS, SCORED, SLOW, UnitSums

DEVIATIONS = 3.0
"""So many standard deviations above its estimate, control surely does no worse."""
SLOW_SHARE = 0.01
"""What may be above the bound on p99."""


def judge(stated: GuardRails, control: UnitSums, arm: UnitSums) -> list[Rail]:
    """Every stated rail of one arm."""
    rails = []
    for name, column, bound in (
        (guard_rails.ERRORS, ERRORS, stated.max_error_rate),
        (guard_rails.FALLBACKS, FALLBACKS, stated.max_fallback_rate),
        (guard_rails.SLOW, SLOW, None if stated.max_p99_ms is None else SLOW_SHARE),
    ):
        if bound is not None:
            ours, theirs = (_requests(units, name, column) for units in (arm, control))
            rails.append(check_rate(name, ours, name, max(float(bound), _surely_below(theirs, name))))
    if stated.max_calibration_error is not None:
        rails.append(_judge_calibration(_predictions(control), _predictions(arm), stated.max_calibration_error))
    if stated.max_ctr_loss is not None:
        before, after = (units.moments(clicks=CLICKS, impressions=IMPRESSIONS) for units in (control, arm))
        rails.append(check_ctr_loss(before, after, float(stated.max_ctr_loss)))
    return rails


def _requests(units: UnitSums, name: str, column: int) -> Moments:
    return units.moments(**{guard_rails.REQUESTS: REQUESTS, name: column})


def _predictions(units: UnitSums) -> Moments:
    return units.moments(**{lift.CLICKS: SCORED, guard_rails.PREDICTED: PREDICTED})


def _surely_below(units: Moments, events: str) -> float:
    """A rate that control's is surely not above; 0 where it had none."""
    if float(units.total(events)) < 1:
        return 0.0
    rate = float(units.ratio(events, guard_rails.REQUESTS))
    return min(1.0, rate + DEVIATIONS * math.sqrt(float(units.ratio_variance(events, guard_rails.REQUESTS))))


def _judge_calibration(control: Moments, arm: Moments, stated: float) -> Rail:
    """Not before control has its clicks: where none arrive at all, it is not the model that is wrong."""
    clicks = float(control.total(lift.CLICKS))
    if clicks < guard_rails.ENOUGH_EVENTS or not float(control.total(guard_rails.PREDICTED)):
        reason = f"{clicks:.0f} clicks of control, judged from {guard_rails.ENOUGH_EVENTS} on"
        return Rail("calibration", stated, None, False, None, reason)
    return check_calibration(arm, max(stated, _surely_nearer(control)))


def _surely_nearer(units: Moments) -> float:
    """A |ln(predicted/actual)| that control's is surely not above."""
    ratio = float(units.ratio(lift.CLICKS, guard_rails.PREDICTED))
    deviation = math.sqrt(float(units.ratio_variance(lift.CLICKS, guard_rails.PREDICTED))) / ratio
    return abs(math.log(ratio)) + DEVIATIONS * deviation
