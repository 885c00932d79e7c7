"""Differences over seeds: their intervals, what is judged from them, and what is not."""

from __future__ import annotations

import pytest

from training.ablate.paired import paired, share_of_gap, verdict


def test_an_interval_is_students_t_over_the_differences_of_each_seed():
    """By hand: mean .01333, standard deviation .0057735, over sqrt(3), times t = 4.303 of two degrees of freedom."""
    found = paired([0.75, 0.76, 0.77], [0.74, 0.74, 0.76])

    assert found["by_seed"] == pytest.approx([0.01, 0.02, 0.01])
    assert found["mean"] == pytest.approx(0.04 / 3)
    assert found["error"] == pytest.approx(0.01 / 3)
    assert (found["low"], found["high"]) == pytest.approx((0.04 / 3 - 0.01434, 0.04 / 3 + 0.01434), abs=1e-5)


@pytest.mark.parametrize(("seeds", "t"), [(2, 12.706), (3, 4.303), (10, 2.262), (16, 2.131), (17, 2.131), (30, 2.131)])
def test_an_interval_is_never_narrower_than_students_t(seeds: int, t: float):
    """Of more than 16 seeds that of 16 stands in, a little too wide."""
    found = paired([0.01, -0.01] * (seeds // 2) + [0.0] * (seeds % 2), [0.0] * seeds)

    assert (found["high"] - found["mean"]) / found["error"] == pytest.approx(t)


@pytest.mark.parametrize(
    ("differences", "said"),
    [
        ([0.010, 0.011, 0.012], "holds"),
        ([-0.010, -0.011, -0.012], "does not hold"),
        ([0.010, 0.020, -0.001], "open"),
        ([0.010, 0.011], None),
        ([0.010], None),
    ],
)
def test_a_claim_is_judged_by_its_interval_and_never_of_fewer_than_three_seeds(differences: list[float], said: str):
    assert verdict(paired(differences, [0.0] * len(differences))) == said


def test_a_share_of_a_gap_is_given_only_where_the_gap_is_sure():
    """Three paired standard errors, as a ratio of two small numbers says anything."""
    sure, unsure = paired([0.02, 0.021, 0.022], [0.0] * 3), paired([0.02, 0.0, 0.002], [0.0] * 3)
    part = paired([0.01, 0.0105, 0.011], [0.0] * 3)

    assert share_of_gap(part, sure) == pytest.approx(0.5)
    assert share_of_gap(part, unsure) is None
    for seeds in (1, 2):
        few = paired([0.02, 0.021][:seeds], [0.0] * seeds)
        assert share_of_gap(paired([0.01, 0.0105][:seeds], [0.0] * seeds), few) is None
    assert share_of_gap(part, paired([0.0] * 3, [0.02, 0.021, 0.022])) is None
