"""Unit -> bucket -> arm. The table beside this folder is the contract; here it is held against the code."""

import hashlib
import json
import math
from collections import Counter
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.experiments.assignment import (
    BUCKETS,
    HASHES,
    OUTSIDE,
    Assigner,
    HashName,
    Layer,
    Range,
    arm_ranges,
    bucket_of,
    growthbook_bucket_of,
)
from service.experiments.file import Arm, Experiment, parse_experiments
from service.experiments.preview import preview

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


PUBLISHED = json.loads((Path(__file__).parents[1] / "growthbook_cases.json").read_text(encoding="utf-8"))["cases"]


@pytest.mark.parametrize(("seed", "value", "share"), PUBLISHED)
def test_growthbooks_published_cases_hold(seed: str, value: str, share: float):
    """With `hash: growthbook` a unit has the bucket that GrowthBook's SDKs give it."""
    assert growthbook_bucket_of(seed, value) == round(10_000 * share)


def test_an_experiment_may_be_split_as_growthbook_splits_it():
    """The key changes the hash and nothing else: ranges, coverage and the layer are as ever."""
    arms = [{"name": name, "model": name, "weight": 0.5} for name in ("a", "b")]
    experiment = {"name": "e", "salt": "seed", "default": True, "coverage": 0.9, "hash": "growthbook", "arms": arms}
    file = parse_experiments(json.dumps({"format_version": 1, "experiments": [experiment]}), "f")

    assigner = file.assigner(file.default)

    assert [assigner.place(unit) for unit in ("a", "b", "user-831")] == [0, 0, 0]
    assert growthbook_bucket_of("seed", "user-831") == 2761
    assert {assigner.place(str(number)) for number in range(100)} == {OUTSIDE, 0, 1}


def test_growthbooks_hash_is_over_utf_16():
    """As its JavaScript SDK has it: a character beyond the first plane is two code units."""
    assert growthbook_bucket_of("s\u00e4", "\U0001f4f1") == growthbook_by_hand([0x73, 0xE4, 0xD83D, 0xDCF1])


def growthbook_by_hand(units: list[int]) -> int:
    """The formula, spelled out slowly."""

    def fnv(codes: list[int]) -> int:
        value = 2166136261
        for code in codes:
            value = (value ^ code) * 16777619 % 2**32
        return value

    return fnv([ord(digit) for digit in str(fnv(units))]) % 10_000


@pytest.mark.parametrize("name", ["sha256", "growthbook"])
def test_experiments_of_different_layers_are_independent(name: HashName):
    """Ten experiments, each in a layer of its own, and 50,000 units: of any two, neither the buckets nor being in
    treatment have anything to do with each other (|z| below 4.5 for each of the 45 pairs; crc32 reaches 224)."""
    layers = [{"name": f"layer-{number}", "salt": f"layer-{number}"} for number in range(10)]
    arms = [{"name": "a", "model": "a", "weight": 0.5}, {"name": "b", "model": "b", "weight": 0.5}]
    experiments = [
        {
            "name": f"e{n}",
            "salt": f"e{n}",
            "hash": name,
            "default": n == 0,
            "layer": {"name": f"layer-{n}"},
            "arms": arms,
        }
        for n in range(10)
    ]
    content = {"format_version": 1, "layers": layers, "experiments": experiments}
    file = parse_experiments(json.dumps(content), "f")
    units = [f"user-{number}" for number in range(50_000 if name == "sha256" else 10_000)]

    hashed = HASHES[name]
    buckets = np.array([[hashed(experiment.salt, unit) for unit in units] for experiment in file.experiments])
    halves = [file.assigner(experiment).ranges[1] for experiment in file.experiments]
    treated = np.array(
        [(row >= half.start) & (row < half.stop) for row, half in zip(buckets, halves, strict=True)], dtype=float
    )

    for found in (buckets.astype(float), treated):
        z = np.corrcoef(found)[np.triu_indices(10, 1)] * math.sqrt(len(units))
        assert np.abs(z).max() < 4.5
        assert np.abs(z).max() > 0.5, "as much as chance gives 45 pairs"


def test_layers_part_units_independently():
    """Who is let in by one layer says nothing of who is let in by another."""
    units = [f"user-{number}" for number in range(20_000)]
    inside = np.array([[bucket_of(f"layer-{layer}", unit) < 5000 for unit in units] for layer in range(4)], float)

    z = np.corrcoef(inside)[np.triu_indices(4, 1)] * math.sqrt(len(units))

    assert np.abs(z).max() < 4.5


weighted = st.lists(st.integers(0, BUCKETS), min_size=2, max_size=2).map(sorted)


@settings(max_examples=10)
@given(one=weighted, other=weighted, low=shares, high=shares, halted=st.sets(st.sampled_from(["b", "c"])))
def test_a_preview_is_what_every_bucket_says(
    one: list[int], other: list[int], low: Decimal, high: Decimal, halted: set[str]
):
    """Counted one by one: from where to where each bucket goes, and whether another arm answers it."""
    before, after = (
        Experiment(
            name="e",
            salt="s",
            coverage=coverage,
            arms=tuple(
                Arm(name=name, model="m", weight=Decimal(stop - start) / BUCKETS)
                for name, (start, stop) in zip("abc", pairwise([0, *cuts, BUCKETS]), strict=True)
            ),
            halted=off,
        )
        for cuts, coverage, off in ((one, low, ()), (other, high, tuple(halted)))
    )

    seen = preview(before, after)

    ranges = before.ranges(), after.ranges()
    moves: Counter[tuple[str | None, str | None]] = Counter()
    otherwise = 0
    for bucket in range(BUCKETS):
        left, right = (
            next((name for name, owned in zip("abc", side, strict=True) if bucket in owned), None) for side in ranges
        )
        moves[left, right] += 1
        otherwise += (left or "a") != ("a" if right in halted else right or "a")
    told = {(move["from"], move["to"]): move["buckets"] for move in seen["moves"]}
    assert told == {places: count for places, count in moves.items() if places[0] != places[1]}
    assert seen["answered_otherwise"] == otherwise


def test_two_experiments_split_a_unit_independently():
    """The arm in one experiment says nothing of the arm in another: the four corners are alike."""
    halves = tuple(arm_ranges([Decimal("0.5"), Decimal("0.5")], Decimal(1)))
    one, two = Assigner("one", halves), Assigner("two", halves)

    both = sum(one.assign(str(u)).arm == two.assign(str(u)).arm for u in range(10_000))

    assert abs(both - 5000) < 4 * 50
