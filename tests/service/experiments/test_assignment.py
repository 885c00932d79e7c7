"""Unit -> bucket -> arm. The table beside this folder is the contract; here it is held against the code."""

import hashlib
import json
import math
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.experiments.assignment import BUCKETS, Assigner, Layer, Range, arm_ranges, bucket_of

TABLE = json.loads((Path(__file__).parents[1] / "assignment_cases.json").read_text(encoding="utf-8"))


def assigner_of(experiment: dict[str, Any]) -> Assigner:
    weights = [Decimal(weight) for _, weight in experiment["arms"]]
    place = experiment.get("layer")
    layer = Layer(place["salt"], Range(*place["buckets"])) if place else None
    return Assigner(experiment["salt"], tuple(arm_ranges(weights, Decimal(experiment["coverage"]))), layer)


EXPERIMENTS = {experiment["name"]: experiment for experiment in TABLE["experiments"]}


@pytest.mark.parametrize("case", TABLE["cases"], ids=lambda case: f"{case['experiment']}-{ascii(case['unit'])[:20]}")
def test_the_published_table_holds(case: dict[str, Any]):
    """Every (salt, unit) falls into the bucket and the arm that the table says; an integer is its decimal."""
    experiment = EXPERIMENTS[case["experiment"]]
    unit = str(case["unit"])

    assignment = assigner_of(experiment).assign(unit)

    assert bucket_of(case["salt"], unit) == case["bucket"]
    assert experiment["arms"][assignment.arm][0] == case["arm"]
    assert assignment.enrolled is case["enrolled"]


def test_the_table_covers_what_matters():
    """It holds unicode and integers, both ends of every arm's range, and units in no arm."""
    units = [case["unit"] for case in TABLE["cases"]]
    assert any(isinstance(unit, int) for unit in units)
    assert any(isinstance(unit, str) and not unit.isascii() for unit in units)
    assert {case["enrolled"] for case in TABLE["cases"]} == {True, False}
    buckets = {case["bucket"] for case in TABLE["cases"] if case["experiment"] == "half-half"}
    assert {0, 4999, 5000, 9999} <= buckets


@given(salt=st.text(max_size=20), unit=st.text(max_size=50))
def test_the_bucket_is_sixty_bits_of_sha256(salt: str, unit: str):
    """The formula, spelled out another way: the first seven and a half bytes, big endian."""
    digest = hashlib.sha256(f"{salt}:{unit}".encode(errors="surrogatepass")).digest()
    if any("\ud800" <= char <= "\udfff" for char in salt + unit):
        return
    assert bucket_of(salt, unit) == (int.from_bytes(digest[:8], "big") >> 4) % BUCKETS


shares = st.integers(0, BUCKETS).map(lambda n: Decimal(n) / BUCKETS)


@given(
    cuts=st.lists(st.integers(0, BUCKETS), max_size=5).map(sorted),
    low=shares,
    high=shares,
    unit=st.integers(),
)
def test_a_unit_keeps_its_arm_when_coverage_grows(cuts: list[int], low: Decimal, high: Decimal, unit: int):
    """Raising the coverage only adds units to an arm; nobody already inside moves or leaves."""
    low, high = sorted((low, high))
    edges = [0, *cuts, BUCKETS]
    weights = [Decimal(b - a) / BUCKETS for a, b in pairwise(edges)]

    before = Assigner("s", tuple(arm_ranges(weights, low))).assign(str(unit))
    after = Assigner("s", tuple(arm_ranges(weights, high))).assign(str(unit))

    if before.enrolled:
        assert after == before


@given(weight=st.integers(0, BUCKETS), coverage=shares)
def test_widths_are_floors_of_exact_decimals(weight: int, coverage: Decimal):
    """0.57 of 5000 buckets is 2850, as on paper, not 2849, as in binary floating point."""
    (owned,) = arm_ranges([Decimal(weight) / BUCKETS], coverage)

    assert owned.stop - owned.start == math.floor(Fraction(coverage) * weight)


def test_a_split_is_as_even_as_its_weights():
    """Over 20,000 units each arm gets its share, within what chance allows."""
    assigner = Assigner("even", tuple(arm_ranges([Decimal("0.5"), Decimal("0.3"), Decimal("0.2")], Decimal(1))))

    counts = [0, 0, 0]
    for number in range(20_000):
        counts[assigner.assign(f"user-{number}").arm] += 1

    for count, weight in zip(counts, (0.5, 0.3, 0.2), strict=True):
        sd = math.sqrt(20_000 * weight * (1 - weight))
        assert abs(count - 20_000 * weight) < 4 * sd


def test_nobody_is_in_two_experiments_of_one_layer():
    """Experiments with disjoint ranges of one layer never share a unit; together they have them all."""
    whole = tuple(arm_ranges([Decimal("0.5"), Decimal("0.5")], Decimal(1)))
    first = Assigner("first", whole, Layer("layer", Range(0, 4000)))
    second = Assigner("second", whole, Layer("layer", Range(4000, 10_000)))

    enrolled = [(first.assign(str(u)).enrolled, second.assign(str(u)).enrolled) for u in range(2000)]

    assert all(one != two for one, two in enrolled)
    assert 0.35 < sum(one for one, _ in enrolled) / 2000 < 0.45


def test_two_experiments_split_a_unit_independently():
    """The arm in one experiment says nothing of the arm in another: the four corners are alike."""
    halves = tuple(arm_ranges([Decimal("0.5"), Decimal("0.5")], Decimal(1)))
    one, two = Assigner("one", halves), Assigner("two", halves)

    both = sum(one.assign(str(u)).arm == two.assign(str(u)).arm for u in range(10_000))

    assert abs(both - 5000) < 4 * 50
