"""Looking every day, in short: the full counts are `python -m benchmarks.peeking`'s, in docs/answers.md."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import peeking
from benchmarks.peeking import ALWAYS, BY_IMPRESSIONS, FIXED, MISSED, MISSED_RELATIVE, RELATIVE, judge, upper_limit
from benchmarks.worlds import REGULARS, WORLDS, World, play
from service.answers.lift import CLICKS, IMPRESSIONS

ALPHA = 0.05
EVERY = pytest.mark.parametrize("world", [*WORLDS, REGULARS], ids=lambda world: world.name)


@EVERY
def test_with_no_effect_and_sixty_looks_at_most_alpha_of_experiments_ever_exclude_zero(world: World):
    """The sequence keeps its promise in every world; the interval for one look, beside it, breaks it threefold."""
    ever = judge(world, looks=60, experiments=300, seed=7, alpha=ALPHA, expected=5000)

    assert ever.share(ALWAYS) <= ALPHA
    assert ever.share(RELATIVE) <= ALPHA
    assert ever.share(FIXED) > 2 * ALPHA


@EVERY
def test_with_an_effect_the_truth_stays_inside_at_all_looks(world: World):
    ever = judge(world, looks=60, experiments=300, seed=8, effect=0.25, alpha=ALPHA, expected=5000)

    assert ever.share(MISSED) <= ALPHA
    assert ever.share(MISSED_RELATIVE) <= ALPHA


def test_taking_each_impression_for_a_unit_misleads_where_units_make_many():
    heavy = next(world for world in WORLDS if world.name == "heavy")

    ever = judge(heavy, looks=60, experiments=300, seed=9, alpha=ALPHA, expected=5000)

    assert ever.share(BY_IMPRESSIONS) > 4 * ALPHA


@EVERY
def test_a_world_has_the_click_rate_and_the_effect_it_says(world: World):
    """What is judged by is what was drawn; and late clicks only lack at the end."""
    *_, last = play(world, looks=60, experiments=200, seed=3, effect=0.3)
    rates = [float(arm.total(CLICKS).sum() / arm.total(IMPRESSIONS).sum()) for arm in last.arms]

    still_out = world.delay / 60 if world.delay else 0.0
    assert rates[0] == pytest.approx(last.true_rate * (1 - still_out), rel=0.06)
    assert rates[1] / rates[0] == pytest.approx(1.3, rel=0.06)


def test_the_moments_kept_up_to_date_are_those_of_the_units_totals():
    """What a look hands over was never computed from the units again; here it is."""
    clustered = next(world for world in WORLDS if world.name == "clustered")
    looks = list(play(clustered, looks=30, experiments=5, seed=4))

    for arm in looks[-1].arms:
        assert (arm.gram[:, 1, 1] >= arm.gram[:, 0, 1]).all()  # sum c^2 >= sum c for whole numbers
        assert (np.linalg.eigvalsh(arm.gram) > -1e-6).all()
        assert np.array_equal(arm.gram, np.swapaxes(arm.gram, 1, 2))
    assert (looks[-1].arms[0].units <= clustered.pool).all()


def test_a_sequence_tuned_to_where_one_decides_finds_more_and_less_than_one_look_does():
    """The price of looking every day, in short: +10% at CTR 2% within 400,000 impressions."""
    tuned, once = peeking.price(0.1, 400_000, experiments=200, seed=1)
    untuned, _ = peeking.price(0.1, 5000, experiments=200, seed=1)

    assert 0.8 < untuned < tuned < once


def test_the_upper_limit_is_clopper_pearsons():
    """No event in 59 runs: .05 ** (1/59); and the published 29 of 2000."""
    assert upper_limit(0, 59) == pytest.approx(1 - 0.05 ** (1 / 59), abs=1e-9)
    assert upper_limit(29, 2000) == pytest.approx(0.0197, abs=5e-4)
    assert upper_limit(10, 10) == 1.0


def test_the_command_prints_a_table_of_every_world(capsys: pytest.CaptureFixture[str]):
    assert peeking.main(["--experiments", "20", "--looks", "5"]) == 0

    printed = capsys.readouterr().out
    assert all(printed.count(f"| {world.name} |") == 2 for world in (*WORLDS, REGULARS))


@pytest.mark.soak
@EVERY
def test_two_thousand_looks_at_two_thousand_experiments(world: World):
    """The whole promise: at most alpha, and the chance of that many beyond it below 5%."""
    ever = judge(world, looks=2000, experiments=500 if world.delay else 2000, seed=1, alpha=ALPHA, expected=5000)

    assert ever.share(ALWAYS) <= ALPHA
    assert ever.share(RELATIVE) <= ALPHA
