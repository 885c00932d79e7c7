"""Quantiles of a histogram, and of what was added to it lately."""

from __future__ import annotations

import math

import pytest

from service.console.durations import KEPT, WINDOW_SECONDS, Looks, quantile

KEY = ("e", "a", "ok")


@pytest.mark.parametrize(
    ("counts", "share", "expected"),
    [
        ([0, 0, 0, 0], 0.5, None),
        ([10, 0, 0, 0], 0.5, 0.5),
        ([0, 10, 0, 0], 0.5, 1.5),
        ([50, 40, 10, 0], 0.99, 3.8),
        ([0, 0, 0, 5], 0.5, math.inf),
        ([1, 0, 0, 0], 0.0, 0.0),
        ([3, 0, 0, 1], 0.75, 1.0),
    ],
)
def test_a_quantile_is_drawn_through_its_bucket(counts: list[float], share: float, expected: float | None):
    """Bounds 1, 2 and 4; the last count is above them."""
    assert quantile([1.0, 2.0, 4.0], counts, share) == pytest.approx(expected)


def test_the_first_look_has_nothing_to_compare_with():
    assert Looks().add(0.0, {KEY: [1.0]}) is None


def test_a_look_tells_what_was_counted_since_one_a_minute_ago():
    """Of the looks that are old enough, the newest."""
    looks = Looks()
    for second in range(0, 200, 10):
        window = looks.add(float(second), {KEY: [float(second)]})

    assert window is not None
    assert WINDOW_SECONDS <= window.seconds <= WINDOW_SECONDS + 10
    assert window.counts[KEY] == [window.seconds]


def test_what_was_not_there_before_began_at_nothing():
    looks = Looks()
    looks.add(0.0, {})
    window = looks.add(10.0, {KEY: [3.0]})

    assert window is not None
    assert window.counts[KEY] == [3.0]


def test_counts_that_fell_are_another_service():
    """Started anew: what came before says nothing."""
    looks = Looks()
    looks.add(0.0, {KEY: [10.0]})

    assert looks.add(10.0, {KEY: [2.0]}) is None


def test_a_look_of_yesterday_is_no_now():
    looks = Looks()
    looks.add(0.0, {KEY: [1.0]})

    assert looks.add(86_400.0, {KEY: [9.0]}) is None


def test_looks_are_few_however_often_somebody_looks():
    looks = Looks()
    for place in range(5000):
        looks.add(place * 0.1, {KEY: [float(place)]})

    assert len(looks._looks) <= KEPT
