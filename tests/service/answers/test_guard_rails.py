"""What switches an arm off, how soon, and what does not. The full counts are `python -m benchmarks.guard_rails`'s."""

from __future__ import annotations

import numpy as np
import pytest

from service.answers.guard_rails import (
    ENOUGH_EVENTS,
    check_calibration,
    check_ctr_loss,
    check_rate,
)
from service.answers.moments import Moments
from tests.service.answers.reference import independent


def predicted(impressions: int, clicks: int, pctr: float) -> Moments:
    return Moments.of_units(clicks=np.arange(impressions) < clicks, predicted=np.full(impressions, pctr))


def requests(count: int, failed: int) -> Moments:
    return Moments.of_units(requests=np.ones(count), errors=np.arange(count) < failed)


def test_an_arm_at_half_the_click_rate_is_crossed_and_an_equal_one_is_not():
    control = independent(2500, 125)

    assert check_ctr_loss(control, independent(2500, 62), 0.1).crossed
    assert not check_ctr_loss(control, independent(2500, 125), 0.0).crossed
    assert not check_ctr_loss(control, independent(2500, 250), 0.0).crossed  # one-sided: a gain is no harm


def test_it_is_never_judged_on_fewer_than_fifty_clicks_an_arm():
    """However bad it looks: 49 clicks beside 180 are not evidence yet."""
    for control, treatment in (((3600, 180), (3600, 49)), ((980, 49), (980, 1000 - 900))):
        rail = check_ctr_loss(independent(*control), independent(*treatment), 0.0)

        assert not rail.crossed
        assert rail.evidence is None
        assert rail.reason is not None
        assert f"judged from {ENOUGH_EVENTS}" in rail.reason


def test_an_arm_that_earns_nothing_does_not_hide_behind_its_lack_of_clicks():
    """Where control's rate promised it 200 clicks, an arm with none, or with ten, is off."""
    control = independent(4000, 200)

    for clicks in (0, 10):
        rail = check_ctr_loss(control, independent(4000, clicks), 0.1)
        assert rail.crossed
        assert rail.found == pytest.approx(1 - clicks / 200)


def test_calibration_is_crossed_both_ways_and_held_within_its_bound():
    """|ln(predicted/actual)|: a fifth off is allowed by .2 and crossed by .05 once enough is seen."""
    assert check_calibration(predicted(20_000, 500, 0.05), 0.2).crossed  # predicts twice the clicks
    assert check_calibration(predicted(20_000, 2000, 0.05), 0.2).crossed  # predicts half
    assert not check_calibration(predicted(20_000, 1000, 0.05), 0.05).crossed
    assert not check_calibration(predicted(20_000, 1150, 0.05), 0.2).crossed
    assert check_calibration(predicted(40_000, 2400, 0.05), 0.05).crossed
    assert check_calibration(predicted(20_000, 0, 0.05), 0.2).crossed  # 1000 promised, none came
    assert check_calibration(predicted(100, 20, 0.05), 0.2).reason == "20 clicks, judged from 50 on"


def test_rates_of_requests_are_held_against_their_bound():
    assert check_rate("errors", requests(2000, 100), "errors", 0.01).crossed
    assert not check_rate("errors", requests(10_000, 100), "errors", 0.01).crossed
    assert check_rate("errors", requests(60, 60), "errors", 0.01).crossed  # everything fails
    assert check_rate("errors", requests(2000, 49), "errors", 0.01).reason == "49 such requests, judged from 50 on"
    assert check_rate("errors", requests(0, 0), "errors", 0.01).found is None


def test_one_unit_with_all_the_errors_is_not_an_arm_that_fails():
    """A single broken client sends 200 failing requests: 2% of the arm's, and no evidence against the arm."""
    failed = np.zeros(1000)
    failed[0] = 200
    units = Moments.of_units(requests=np.full(1000, 10.0) + failed, errors=failed)

    rail = check_rate("errors", units, "errors", 0.01)

    assert rail.found is not None
    assert rail.found > 0.01
    assert not rail.crossed


def test_a_bound_of_zero_can_be_stated():
    """No error is allowed: fifty are more than that."""
    assert check_rate("errors", requests(5000, 60), "errors", 0.0).crossed
