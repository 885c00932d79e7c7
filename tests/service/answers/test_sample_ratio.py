"""The split against the plan: reference values, exactness under peeking, what a product of phases is."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.answers.sample_ratio import always_p, chi_squared_p, log_evidence

HALVES = (0.5, 0.5)


def test_the_reference_values_to_ten_digits():
    """[50000, 50700] at 1:1. ln E: forty digits of the formula; chi-squared: another library's figure."""
    assert float(log_evidence([50_000, 50_700], HALVES)) == pytest.approx(0.097827731571972566, rel=1e-12)
    assert chi_squared_p([50_000, 50_700], HALVES) == pytest.approx(0.027391897212245716, rel=1e-12)


@given(
    st.lists(st.integers(0, 10_000), min_size=3, max_size=3), st.sampled_from([(0.2, 0.3, 0.5), (0.9, 0.0999, 0.0001)])
)
def test_it_is_the_formula_of_log_gammas(units: list[int], shares: tuple[float, ...]):
    """The stable form equals the published one as far as the latter's digits go, small shares included."""
    a = [1000 * share for share in shares]
    g = math.lgamma
    slow = g(sum(a)) - sum(map(g, a)) + sum(g(x + n) for x, n in zip(a, units, strict=True)) - g(sum(a) + sum(units))
    slow -= sum(n * math.log(share) for n, share in zip(units, shares, strict=True))

    assert float(log_evidence(units, shares)) == pytest.approx(slow, abs=1e-8)


def test_peeking_a_thousand_times_at_a_fair_split_errs_within_alpha():
    """Exactly valid: at most alpha of 4000 splits ever reach 1/alpha, where chi-squared looked at as often errs."""
    rng = np.random.default_rng(1)
    first = np.cumsum(rng.binomial(20, 0.5, (4000, 500)), axis=1)
    units = np.stack([first, 20 * np.arange(1, 501) - first], axis=-1)

    ever = (log_evidence(units, HALVES) >= math.log(1 / 0.05)).any(axis=1).mean()
    statistic = ((units[..., 0] - units[..., 1]) ** 2 / units.sum(axis=-1))[:, 25:]
    chi_squared_ever = (statistic > 3.841459).any(axis=1).mean()

    assert ever <= 0.05
    assert chi_squared_ever > 0.2


def test_a_split_of_52_to_48_is_found():
    """In half of 500 runs by about 10,000 units, at alpha .001."""
    rng = np.random.default_rng(2)
    first = np.cumsum(rng.binomial(100, 0.52, (500, 200)), axis=1)
    units = np.stack([first, 100 * np.arange(1, 201) - first], axis=-1)

    found = log_evidence(units, HALVES) >= math.log(1000)
    first_look = np.where(found.any(axis=1), found.argmax(axis=1), 10**6)

    assert np.median(first_look) * 100 <= 10_500


@pytest.mark.parametrize(
    ("statistic_units", "freedom_shares"), [([30, 50, 40], (0.25, 0.5, 0.25)), ([9, 1, 5, 5], (0.25,) * 4)]
)
def test_chi_squared_tails_are_those_of_a_simulation(statistic_units: list[int], freedom_shares: tuple[float, ...]):
    """Two and three degrees of freedom: sums of squared normals fall beyond the statistic as often."""
    total = sum(statistic_units)
    statistic = sum((n - total * s) ** 2 / (total * s) for n, s in zip(statistic_units, freedom_shares, strict=True))
    squares = (np.random.default_rng(3).standard_normal((400_000, len(freedom_shares) - 1)) ** 2).sum(axis=1)

    assert chi_squared_p(statistic_units, freedom_shares) == pytest.approx((squares >= statistic).mean(), abs=0.004)


def test_no_units_are_no_evidence():
    assert float(log_evidence([0, 0], HALVES)) == 0.0
    assert always_p(0.0) == 1.0
    assert always_p(math.log(1000)) == pytest.approx(0.001)
    assert chi_squared_p([0, 0], HALVES) == 1.0


@pytest.mark.parametrize(
    ("units", "shares", "message"),
    [
        ([1, 2], (0.5, 0.4), "sum to 1"),
        ([1, 2], (1.0, 0.0), "positive"),
        ([1], (1.0,), "two or more"),
        ([-1, 2], HALVES, "from 0"),
    ],
)
def test_what_means_nothing_is_refused(units: list[float], shares: tuple[float, ...], message: str):
    with pytest.raises(ValueError, match=message):
        log_evidence(units, shares)
