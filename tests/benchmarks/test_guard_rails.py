"""Guard-rails in short; the full counts are `python -m benchmarks.guard_rails`'s, in docs/answers.md."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.guard_rails import INDEPENDENT, TRIALS, Trial, ctr_loss, first_crossing, line
from benchmarks.peeking import upper_limit

RUNS = 2000


def test_half_the_click_rate_is_off_within_five_thousand_impressions():
    """The median over 300 experiments at CTR 5% and 50/50, with a loss of 10% allowed."""
    trial = Trial("CTR loss 10%", INDEPENDENT, -0.5, False, ctr_loss(0.1))

    assert np.median(first_crossing(trial, looks=240, experiments=300, seed=2)) <= 5000


@pytest.mark.soak
@pytest.mark.parametrize(
    "trial", [one for one in TRIALS if one.harmless], ids=lambda one: f"{one.rail}, {one.world.name}"
)
def test_a_harmless_arm_is_switched_off_in_under_two_percent_with_confidence(trial: Trial):
    found = first_crossing(trial, looks=240, experiments=RUNS, seed=3)

    assert upper_limit(int(np.isfinite(found).sum()), RUNS) <= 0.02


@pytest.mark.parametrize(
    "trial", [one for one in TRIALS if one.harmless], ids=lambda one: f"{one.rail}, {one.world.name}"
)
def test_a_harmless_arm_stays_on(trial: Trial):
    """In short: of 300 experiments, no more than 2% are switched off in 60 looks."""
    found = first_crossing(trial, looks=60, experiments=300, seed=4)

    assert np.isfinite(found).mean() <= 0.02


def test_a_line_of_the_table_has_what_its_header_says():
    text = line(TRIALS[0], looks=5, experiments=20, seed=1)

    assert text.startswith("| CTR loss 0 | independent | +0% | 0.00 | 13.91 |")
