"""Drawings put marks where values are, ticks at round numbers, and names beside one another."""

import re
from itertools import pairwise

import pytest

from training.report.charts import Axis, Line, Mark, bars, lines, padded, scatter


def test_an_axis_runs_from_least_to_most():
    axis = Axis(0.7, 0.8, 300, 20)

    assert [axis.at(0.7), axis.at(0.75), axis.at(0.8)] == pytest.approx([300, 160, 20])


def test_a_logarithmic_axis_gives_each_decade_the_same_room():
    axis = Axis(0.01, 1, 0, 100, logarithmic=True)

    assert [axis.at(0.01), axis.at(0.1), axis.at(1)] == pytest.approx([0, 50, 100])


@pytest.mark.parametrize(("least", "most"), [(0, 1), (0.6957, 0.7332), (0.0018, 0.0171), (-3, 41), (0.02, 0.39)])
def test_ticks_are_few_round_and_inside(least: float, most: float):
    ticks = Axis(least, most, 0, 1).ticks()

    assert 4 <= len(ticks) <= 11
    assert all(least - 1e-9 <= tick <= most + 1e-9 for tick in ticks)
    assert all(len(f"{tick:g}".lstrip("-").replace("0.", "").lstrip("0")) <= 4 for tick in ticks)


@pytest.mark.parametrize(("least", "most"), [(0.01, 1.5), (0.03, 0.09), (1, 90000)])
def test_ticks_of_a_logarithmic_axis_are_inside(least: float, most: float):
    ticks = Axis(least, most, 0, 1, logarithmic=True).ticks()

    assert 1 <= len(ticks) <= 8
    assert all(least <= tick <= most for tick in ticks)


def test_names_of_near_points_do_not_cover_one_another():
    marks = [Mark(f"name {i}", 0.05 + i * 1e-4, 0.72 + i * 1e-4, "rest") for i in range(4)]

    drawing = scatter(marks, x_title="ms", y_title="AUC", label="l")

    heights = sorted(float(y) for y in re.findall(r'class="name rest" x="[\d.]+" y="([\d.]+)"', drawing))
    assert len(heights) == 4
    assert all(after - before >= 14 for before, after in pairwise(heights))


def test_a_curve_marks_the_epoch_that_was_kept():
    drawing = lines([Line([(1, 0.5), (2, 0.7), (3, 0.6)], "s1", picked=1)], x_title="epoch", label="l")

    points = re.search(r'polyline[^>]*points="([^"]*)"', drawing)
    circle = re.search(r'<circle[^>]*cx="([\d.]+)" cy="([\d.]+)"', drawing)
    assert points is not None
    assert circle is not None
    assert points[1].split()[1] == f"{circle[1]},{circle[2]}"


def test_bars_are_as_long_as_their_values():
    drawing = bars([("a", 0.2, "20%"), ("b", 0.4, "40%")], label="l")

    short, long = (float(width) for width in re.findall(r'<rect[^>]*width="([\d.]+)"', drawing))
    assert long == pytest.approx(2 * short, abs=0.11)


def test_one_value_alone_still_has_a_range():
    """One seed, one epoch: nothing divides by zero."""
    low, high = padded([0.7])

    assert low < 0.7 < high
    assert "nan" not in lines([Line([(1, 0.7)], "s1", picked=0)], x_title="epoch", label="l")
