"""What switches an arm off: errors, fallbacks, slow answers, wrong calibration, lost clicks.

Every rail is one-sided and sequential: with an arm that is as good as its bound, it ever trips with probability at
most alpha (.01), however often it is asked. All but the last ask whether a sum over units has grown beyond what a mean
of zero allows, S = sum_u (events - bound * trials), against the one-sided boundary of `sequences.sum_boundary`, its
variance clustered by unit:

    errors, fallbacks, slow   requests that failed, were answered by another arm, took longer than the bound on p99
    calibration               clicks against predicted clicks, both ways at half of alpha each
    ctr_loss                  R_B - (1 - loss) R_A below zero by the one-sided confidence sequence (`lift.py`)

A rail is not judged on fewer than 50 events, and those about clicks not on fewer than 50 clicks an arm. One exception,
or an arm that earns nothing would stay for ever: where control's rate promised an arm 200 clicks and it has not even
50, it is judged.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from service.answers.lift import CLICKS, IMPRESSIONS
from service.answers.moments import Array, Moments
from service.answers.sequences import critical_value, sum_boundary

Flags = NDArray[np.bool_]

ALPHA = 0.01
ENOUGH_EVENTS = 50
PROMISED_CLICKS = 200.0
EXPECTED_IMPRESSIONS = 5000.0
"""Where the rails are sharpest: an arm that does harm should be off early."""

REQUESTS, ERRORS, FALLBACKS, SLOW, PREDICTED = "requests", "errors", "fallbacks", "slow", "predicted"


@dataclass(frozen=True, slots=True)
class Rail:
    """One rail of one arm, and the evidence."""

    name: str
    bound: float
    """What was stated: a rate, |ln(predicted/actual)|, or a relative loss."""
    found: float | None
    """What is seen, in the same terms; None of nothing."""
    crossed: bool
    evidence: float | None
    """How far the sum went, as a share of how far it may: the rail is crossed above 1. None: not judged."""
    reason: str | None = None
    """Why it is not judged."""


def rate_evidence(units: Moments, events: str, trials: str, bound: ArrayLike, *, alpha: float = ALPHA) -> Array:
    """S over its boundary, [...], for the claim events/trials <= bound; above 1, the claim is refuted."""
    bound = np.asarray(bound, dtype=np.float64)
    excess = units.total(events) - bound * units.total(trials)
    variance = units.spread({events: 1.0, trials: -bound})
    expected = float(np.max(np.maximum(bound * (1 - bound), 1e-6))) * EXPECTED_IMPRESSIONS
    return np.asarray(excess / sum_boundary(variance, expected, alpha, one_sided=True))


def calibration_evidence(units: Moments, bound: float, *, alpha: float = ALPHA) -> tuple[Array, Array]:
    """(for too few clicks, for too many), [...] each: S over its boundary for actual >= predicted / e^bound and for
    actual <= predicted * e^bound, at half of alpha each."""
    expected = 250.0  # the variance of 5,000 impressions at a click rate of 5%
    sides = []
    for factor, sign in ((np.exp(-bound), -1.0), (np.exp(bound), 1.0)):
        excess = sign * (units.total(CLICKS) - factor * units.total(PREDICTED))
        variance = units.spread({CLICKS: 1.0, PREDICTED: -factor})
        sides.append(np.asarray(excess / sum_boundary(variance, expected, alpha / 2, one_sided=True)))
    return sides[0], sides[1]


def ctr_loss_evidence(control: Moments, treatment: Moments, bound: float, *, alpha: float = ALPHA) -> Array:
    """How far R_B lies below (1 - bound) R_A, over how far it may, [...]; 0 where an arm has nothing to judge.

    Treatment's variance is the larger of that around its own rate and that around the claim's: an arm without a click
    has none around its own.
    """
    keep = 1 - bound
    with np.errstate(divide="ignore", invalid="ignore"):
        rate = control.ratio(CLICKS, IMPRESSIONS)
        claimed = keep * np.nan_to_num(rate)
        short = claimed - treatment.ratio(CLICKS, IMPRESSIONS)
        around_claim = treatment.spread({CLICKS: 1.0, IMPRESSIONS: -claimed}) / treatment.total(IMPRESSIONS) ** 2
        own = treatment.ratio_variance(CLICKS, IMPRESSIONS)
        few = treatment.total(CLICKS) < ENOUGH_EVENTS
        variance = keep**2 * control.ratio_variance(CLICKS, IMPRESSIONS) + np.where(
            few, np.maximum(own, around_claim), own
        )
        seen = control.total(IMPRESSIONS) + treatment.total(IMPRESSIONS)
        reach = critical_value(seen, EXPECTED_IMPRESSIONS, alpha, one_sided=True) * np.sqrt(variance)
        return np.asarray(np.nan_to_num(short / reach, nan=0.0, posinf=0.0, neginf=0.0))


def may_judge_clicks(control: Moments, treatment: Moments) -> Flags:
    """Whether both arms have 50 clicks; or control has, and its rate promised treatment 200, [...]."""
    enough = control.total(CLICKS) >= ENOUGH_EVENTS
    with np.errstate(invalid="ignore"):
        promised = np.nan_to_num(control.ratio(CLICKS, IMPRESSIONS)) * treatment.total(IMPRESSIONS)
    return np.asarray(enough & ((treatment.total(CLICKS) >= ENOUGH_EVENTS) | (promised >= PROMISED_CLICKS)))


def check_rate(name: str, units: Moments, events: str, bound: float, *, alpha: float = ALPHA) -> Rail:
    """A rate of requests against its bound."""
    count, trials = float(units.total(events)), float(units.total(REQUESTS))
    found = count / trials if trials else None
    if count < ENOUGH_EVENTS:
        return Rail(name, bound, found, False, None, f"{count:.0f} such requests, judged from {ENOUGH_EVENTS} on")
    evidence = float(rate_evidence(units, events, REQUESTS, bound, alpha=alpha))
    return Rail(name, bound, found, evidence > 1, evidence)


def check_calibration(units: Moments, bound: float, *, alpha: float = ALPHA) -> Rail:
    """|ln(predicted/actual)| against its bound. `units`: moments of clicks and predicted clicks."""
    clicks, predicted = float(units.total(CLICKS)), float(units.total(PREDICTED))
    found = abs(float(np.log(predicted / clicks))) if clicks > 0 and predicted > 0 else None
    if clicks < ENOUGH_EVENTS and predicted < PROMISED_CLICKS:
        return Rail("calibration", bound, found, False, None, f"{clicks:.0f} clicks, judged from {ENOUGH_EVENTS} on")
    evidence = max(float(side) for side in calibration_evidence(units, bound, alpha=alpha))
    return Rail("calibration", bound, found, evidence > 1, evidence)


def check_ctr_loss(control: Moments, treatment: Moments, bound: float, *, alpha: float = ALPHA) -> Rail:
    """The relative loss of click rate against its bound."""
    rates = [
        float(arm.ratio(CLICKS, IMPRESSIONS)) if float(arm.total(IMPRESSIONS)) else 0.0 for arm in (control, treatment)
    ]
    found = 1 - rates[1] / rates[0] if rates[0] > 0 else None
    if not bool(may_judge_clicks(control, treatment)):
        clicks = [float(arm.total(CLICKS)) for arm in (control, treatment)]
        reason = f"{clicks[0]:.0f} and {clicks[1]:.0f} clicks, judged from {ENOUGH_EVENTS} in each arm on"
        return Rail("ctr_loss", bound, found, False, None, reason)
    evidence = float(ctr_loss_evidence(control, treatment, bound, alpha=alpha))
    return Rail("ctr_loss", bound, found, evidence > 1, evidence)
