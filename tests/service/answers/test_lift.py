"""Lift of an arm: the published reference values, clustering, CUPED, and what is not said."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.answers.lift import (
    ENOUGH_CLICKS,
    ENOUGH_CLICKS_ONCE,
    ENOUGH_UNITS,
    Estimate,
    cuped,
    cuped_difference,
    difference,
    lift,
)
from service.answers.moments import Moments
from tests.service.answers.reference import independent


def test_the_reference_values_to_ten_digits():
    """1000/50000 against 1085/50100, alpha .05, N* 5000: gbstats 0.8.0 and confseq 0.0.11 agree on these."""
    found = lift(independent(50_000, 1000), independent(50_100, 1085), alpha=0.05, expected=5000).difference

    assert found.value == pytest.approx(0.0016566866267465, abs=1e-12)
    assert found.always is not None
    assert (found.always[1] - found.always[0]) / 2 == pytest.approx(0.0030123817127530, rel=1e-10)


def test_impressions_of_one_unit_count_as_one_observation():
    """Every unit twenty times over: the same rates from twenty times the impressions, and no more certainty."""
    rng = np.random.default_rng(1)
    clicks = rng.integers(0, 2, (2, 400))
    once = [Moments.of_units(clicks=arm, impressions=np.full(400, 2)) for arm in clicks]
    often = [Moments.of_units(clicks=20 * arm, impressions=np.full(400, 40)) for arm in clicks]

    few, many = (lift(*arms, alpha=0.05, expected=5000) for arms in (once, often))

    assert few.difference.fixed is not None
    assert many.difference.fixed == pytest.approx(few.difference.fixed)
    assert few.design_effect is not None
    assert many.design_effect == pytest.approx(20 * few.design_effect)


def test_both_intervals_of_a_ratio_are_around_it_and_cannot_pass_minus_one():
    """A rate cannot fall by more than all of it: the log scale sees to that."""
    found = lift(independent(4000, 800), independent(4000, 60), alpha=0.05, expected=5000).relative

    assert found.value == pytest.approx(60 / 800 - 1)
    assert found.always is not None
    assert found.fixed is not None
    assert -1 < found.always[0] < found.fixed[0] < found.value < found.fixed[1] < found.always[1]


@given(st.integers(0, 200), st.integers(0, 200), st.integers(1, 200), st.integers(0, 5))
def test_nothing_is_ever_nan(clicks_a: int, clicks_b: int, units: int, each: int):
    """Whatever was counted: a number, or None with a reason."""
    arms = [
        Moments.of_units(clicks=np.arange(units) < clicks, impressions=np.full(units, float(each)))
        for clicks in (clicks_a, clicks_b)
    ]

    found = lift(*arms, alpha=0.05, expected=5000)
    adjusted, _ = cuped(
        *(
            Moments(("clicks", "impressions", "earlier_clicks", "earlier_impressions"), np.pad(a.gram, (0, 2)))
            for a in arms
        ),
        alpha=0.05,
        expected=5000,
    )

    for estimate in (found.difference, found.relative, adjusted):
        check_whole(estimate)


def check_whole(estimate: Estimate) -> None:
    numbers = [estimate.value, *(estimate.always or ()), *(estimate.fixed or ())]
    assert all(number is None or math.isfinite(number) for number in numbers)
    assert estimate.reason or (estimate.value is not None and estimate.always and estimate.fixed)


@pytest.mark.parametrize(
    ("units", "clicks", "reason"),
    [
        (ENOUGH_UNITS - 1, 30, "control has 49 units, an interval needs 50"),
        (500, ENOUGH_CLICKS_ONCE - 1, "control has 9 clicks, needed are 10"),
        (500, 500, "all units have the same click rate"),
    ],
)
def test_too_little_gives_no_interval_and_says_why(units: int, clicks: int, reason: str):
    found = lift(independent(units, clicks), independent(5000, 300), alpha=0.05, expected=5000).difference

    assert found.always is None
    assert found.fixed is None
    assert reason in (found.reason or "")


def test_few_clicks_have_an_interval_for_one_look_and_no_sequence_yet():
    found = lift(independent(5000, ENOUGH_CLICKS - 1), independent(5000, 90), alpha=0.05, expected=5000).relative

    assert found.always is None
    assert found.fixed is not None
    assert found.reason == "control has 49 clicks, needed are 50"


def with_history(seed: int, *, units: int = 4000, effect: float = 0.0, link: float = 1.0) -> Moments:
    """Units whose click rate before tells their click rate now (`link` 1) or tells nothing (0)."""
    rng = np.random.default_rng(seed)
    habit, other = rng.beta(1, 19, (2, units))
    now = link * habit + (1 - link) * other
    before, after = rng.poisson(20, (2, units))
    return Moments.of_units(
        clicks=rng.binomial(after, now * (1 + effect)),
        impressions=after,
        earlier_clicks=rng.binomial(before, habit),
        earlier_impressions=before,
    )


def test_cuped_narrows_the_interval_when_the_past_tells_something_and_only_then():
    told, share = cuped(with_history(1), with_history(2), alpha=0.05, expected=5000)
    plain = lift(with_history(1), with_history(2), alpha=0.05, expected=5000).difference
    _, nothing = cuped(with_history(1, link=0), with_history(2, link=0), alpha=0.05, expected=5000)

    assert share is not None
    assert nothing is not None
    assert share > 0.2
    assert nothing < 0.01
    assert told.always is not None
    assert plain.always is not None
    assert told.always[1] - told.always[0] < 0.9 * (plain.always[1] - plain.always[0])


def test_cuped_is_the_regression_on_units_residuals():
    """Slope and variance are those of least squares through each arm's own mean, computed unit by unit."""
    rng = np.random.default_rng(3)
    arms, now, before = [], [], []
    for _ in range(2):
        m, m_before = rng.poisson(10, 500) + 1, rng.poisson(8, 500)
        c, c_before = rng.binomial(m, 0.1), rng.binomial(m_before, 0.1)
        arms.append(Moments.of_units(clicks=c, impressions=m, earlier_clicks=c_before, earlier_impressions=m_before))
        now.append((c - c.sum() / m.sum() * m) / m.sum())
        before.append((c_before - c_before.sum() / m_before.sum() * m_before) / m_before.sum())
    slope = sum(y @ x for y, x in zip(now, before, strict=True)) / sum(x @ x for x in before)
    variance = sum(np.sum((y - slope * x) ** 2) for y, x in zip(now, before, strict=True))

    _, found, found_slope = cuped_difference(*arms)

    assert float(found_slope) == pytest.approx(slope, rel=1e-9)
    assert float(found) == pytest.approx(variance, rel=1e-9)
    assert float(found) <= float(difference(*arms)[1])


def test_cuped_without_a_past_says_so():
    arms = [with_history(seed) for seed in (1, 2)]
    gram = arms[0].gram.copy()
    gram[3:, :], gram[:, 3:] = 0, 0

    found, share = cuped(Moments(arms[0].names, gram), arms[1], alpha=0.05, expected=5000)

    assert found.value is None
    assert share is None
    assert found.reason == "no impressions from before the experiment in both arms"
