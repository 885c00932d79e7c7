"""The confidence sequence: published values, its best place, and the one-sided form."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.answers.sequences import critical_value, fixed_value, mixture_rate, normal_quantile, sum_boundary

ALPHA = st.floats(1e-6, 0.2)


def test_rho_is_the_published_formula():
    """rho = sqrt((-2 ln alpha + ln(-2 ln alpha + 1)) / N*)."""
    assert mixture_rate(5000, 0.05) == pytest.approx(
        (5.991464547107982 + math.log(6.991464547107982)) / 5000, rel=1e-12
    )
    assert mixture_rate(5000, 0.025, one_sided=True) == mixture_rate(5000, 0.05)


@given(st.floats(1, 1e7), st.floats(10, 1e6), ALPHA)
def test_it_is_wider_than_one_look_and_never_undefined(clock: float, expected: float, alpha: float):
    """Looking always costs: the sequence reaches further than the interval for one look, on both forms."""
    assert critical_value(clock, expected, alpha) > fixed_value(alpha)
    assert critical_value(clock, expected, alpha, one_sided=True) > fixed_value(alpha, one_sided=True)
    assert critical_value(expected, expected, alpha, one_sided=True) < critical_value(expected, expected, alpha)


def test_it_is_narrowest_near_where_a_decision_is_expected():
    """Of sequences tuned to different places, the one tuned here is the narrowest here, to a percent."""
    here = 20_000.0
    tuned = float(critical_value(here, here, 0.05))

    assert tuned <= 1.01 * min(float(critical_value(here, at, 0.05)) for at in np.geomspace(100, 1e7, 200))
    assert critical_value(0, here, 0.05) == math.inf


@given(st.floats(1e-3, 1e6), st.floats(1, 1e6), ALPHA, st.booleans())
def test_the_boundary_of_a_sum_is_the_same_mixture(variance: float, expected: float, alpha: float, one_sided: bool):
    """With the variance itself as the clock: sqrt(v) c(v)."""
    by_clock = math.sqrt(variance) * float(critical_value(variance, expected, alpha, one_sided=one_sided))

    assert float(sum_boundary(variance, expected, alpha, one_sided=one_sided)) == pytest.approx(by_clock, rel=1e-9)


def test_normal_quantiles_are_those_of_the_tables():
    assert normal_quantile(0.975) == pytest.approx(1.959963984540054, abs=1e-12)
    assert fixed_value(0.05) == pytest.approx(1.959963984540054, abs=1e-12)


@pytest.mark.parametrize("alpha", [0.0, -0.1, 0.5, 1.0, math.nan])
def test_an_alpha_that_means_nothing_is_refused(alpha: float):
    with pytest.raises(ValueError, match=r"alpha: expected a number above 0 and below 0\.5"):
        mixture_rate(5000, alpha)


@pytest.mark.parametrize("expected", [0.0, -1.0, math.inf, math.nan])
def test_a_place_that_means_nothing_is_refused(expected: float):
    with pytest.raises(ValueError, match="expected: a positive number"):
        mixture_rate(expected, 0.05)
