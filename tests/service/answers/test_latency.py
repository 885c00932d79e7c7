"""Latency quantiles from counts that are added."""

from __future__ import annotations

import numpy as np
import pytest

from service.answers.latency import latency_counts, quantile


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99, 0.999])
def test_a_quantile_is_within_half_a_percent(share: float):
    latency = np.random.default_rng(1).lognormal(0.5, 1.5, 50_001)

    found = quantile(latency_counts(latency), share)

    assert found == pytest.approx(np.quantile(latency, share, method="inverted_cdf"), rel=0.00501)


def test_counts_of_two_parts_are_those_of_the_whole():
    latency = np.random.default_rng(2).lognormal(0, 2, 1000)

    together = latency_counts(latency[:300]) + latency_counts(latency[300:])

    assert np.array_equal(together, latency_counts(latency))


def test_nothing_has_no_quantile_and_the_extremes_are_kept():
    assert quantile(latency_counts([]), 0.99) is None
    assert latency_counts([0.0, 1e-9, 1e12]).sum() == 3
