"""Sums over units: merged, reordered, and against the slow obvious loop."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.answers.moments import Moments

UNITS = st.lists(st.tuples(st.integers(0, 50), st.integers(1, 50)), min_size=2, max_size=30)


def moments(units: list[tuple[int, int]]) -> Moments:
    clicks, impressions = np.array(units).T
    return Moments.of_units(clicks=clicks, impressions=impressions)


@given(UNITS)
def test_the_variance_of_a_ratio_is_the_slow_obvious_one(units: list[tuple[int, int]]):
    """(1 / (n mbar^2)) (1/n) sum_u (c_u - R m_u)^2."""
    n, total = len(units), sum(m for _, m in units)
    rate = sum(c for c, _ in units) / total
    expected = sum((c - rate * m) ** 2 for c, m in units) / n / (n * (total / n) ** 2)

    found = moments(units)

    assert float(found.ratio("clicks", "impressions")) == pytest.approx(rate, rel=1e-12)
    assert float(found.ratio_variance("clicks", "impressions")) == pytest.approx(expected, rel=1e-9, abs=1e-15)


@given(UNITS, st.randoms())
def test_the_order_of_units_does_not_matter_and_disjoint_groups_add(units: list[tuple[int, int]], random):
    """Counts are whole numbers, so the sums agree to the bit."""
    shuffled = random.sample(units, len(units))
    cut = random.randint(1, len(units) - 1)

    together = moments(units)

    assert np.array_equal(moments(shuffled).gram, together.gram)
    assert np.array_equal((moments(units[:cut]) + moments(units[cut:])).gram, together.gram)
    assert np.array_equal((together + Moments.none(together.names)).gram, together.gram)


def test_many_experiments_at_once_are_each_its_own():
    """A leading axis holds experiments; nothing leaks from one to another."""
    clicks = np.array([[1, 0, 2, 1], [0, 0, 3, 1]])
    impressions = np.array([[4, 1, 9, 2], [1, 5, 6, 2]])

    together = Moments.of_units(clicks=clicks, impressions=impressions)

    for row in range(2):
        alone = Moments.of_units(clicks=clicks[row], impressions=impressions[row])
        assert together.ratio_variance("clicks", "impressions")[row] == pytest.approx(
            float(alone.ratio_variance("clicks", "impressions")), rel=1e-12
        )


def test_moments_of_other_totals_do_not_add():
    """Clicks and errors are not the same column because they stand at the same place."""
    with pytest.raises(ValueError, match="expected moments of"):
        Moments.none(("clicks", "impressions")) + Moments.none(("errors", "requests"))
