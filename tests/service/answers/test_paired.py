"""Two models on the same impressions, and why it matters who chose them."""

from __future__ import annotations

import numpy as np
import pytest

from service.answers.calibration import row_losses
from service.answers.lift import Estimate
from service.answers.moments import Moments
from service.answers.paired import NAMES, RANDOM, paired_difference, verdict
from service.answers.sequences import critical_value

ARMS = ("control", "treatment")


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def shown(rng: np.random.Generator, chooser: str, noise: tuple[float, float], requests: int = 20_000) -> Moments:
    """Candidates scored by two models with errors of their own; the best of 20 by the chooser is shown, or any."""
    truth = rng.normal(-2.0, 0.7, (requests, 20))
    logits = [truth + rng.normal(0, sd, truth.shape) for sd in noise]
    pick = rng.integers(0, 20, requests) if chooser == RANDOM else logits[ARMS.index(chooser)].argmax(axis=1)
    at = np.arange(requests), pick
    click = (rng.random(requests) < sigmoid(truth[at])).astype(float)
    more = row_losses(click, sigmoid(logits[1][at])) - row_losses(click, sigmoid(logits[0][at]))
    return Moments.of_units(impressions=np.ones(requests), clicks=click, loss=more)


def estimates(noise: tuple[float, float], seed: int) -> dict[str, Estimate]:
    rng = np.random.default_rng(seed)
    return {
        chooser: paired_difference(shown(rng, chooser, noise), alpha=0.05, expected=20_000)
        for chooser in (*ARMS, RANDOM)
    }


def test_the_one_who_chooses_looks_worse_of_two_equal_models():
    """Winner's curse: each chooser's impressions speak against it, the random ones for neither; so no winner."""
    found = estimates((0.5, 0.5), seed=1)

    control, treatment, random = (found[name].always for name in (*ARMS, RANDOM))
    assert control is not None
    assert treatment is not None
    assert random is not None
    assert control[1] < 0 < treatment[0]
    assert random[0] < 0 < random[1]
    assert verdict(found, ARMS)[0] is None
    assert "its own optimism" in verdict(found, ARMS)[1]


def test_a_better_model_is_named_where_what_was_shown_was_random():
    assert verdict(estimates((0.6, 0.3), seed=2), ARMS) == ("treatment", "on impressions that were drawn at random")
    assert verdict(estimates((0.3, 0.6), seed=2), ARMS)[0] == "control"


def test_without_random_traffic_both_choosers_must_agree():
    low, high, open_ = (Estimate(0.0, bounds, bounds) for bounds in ((-0.2, -0.1), (0.1, 0.2), (-0.1, 0.1)))

    assert verdict({"control": low, "treatment": low}, ARMS) == (
        "treatment",
        "on the impressions that either arm chose",
    )
    assert verdict({"control": high, "treatment": high}, ARMS)[0] == "control"
    assert verdict({"control": low, "treatment": open_}, ARMS) == (
        None,
        "only the impressions of one chooser are beyond doubt",
    )
    assert verdict({"control": open_, "treatment": open_}, ARMS)[1] == "the difference may still be nothing"
    assert verdict({}, ARMS)[0] is None


def test_nothing_seen_is_none_with_a_reason():
    found = paired_difference(Moments.none(NAMES), alpha=0.05, expected=5000)

    assert found.value is None
    assert found.reason == "0 units, an interval needs 50"


def test_the_sequence_of_a_paired_difference_keeps_its_promise():
    """300 streams of a difference that is 0, clustered by unit, 40 looks: at most alpha ever say otherwise."""
    rng = np.random.default_rng(5)
    habit, totals = rng.normal(0, 0.3, (300, 400)), np.zeros((300, 400))
    ever = np.zeros(300, dtype=bool)
    for look in range(1, 41):
        totals += habit + rng.standard_exponential((300, 400)) - 1  # skewed, as losses are
        streams = Moments.of_units(impressions=np.full((300, 400), float(look)), loss=totals)
        reach = critical_value(streams.total("impressions"), 5000, 0.05)
        ever |= np.abs(streams.ratio("loss", "impressions")) > reach * np.sqrt(
            streams.ratio_variance("loss", "impressions")
        )

    assert ever.mean() <= 0.05


@pytest.mark.parametrize("clicks", [0, 9])
def test_too_few_clicks_give_no_interval(clicks: int):
    rng = np.random.default_rng(1)
    moments = Moments.of_units(impressions=np.ones(500), clicks=np.arange(500) < clicks, loss=rng.normal(size=500))

    found = paired_difference(moments, alpha=0.05, expected=5000)

    assert found.value is not None
    assert found.always is None
    assert found.reason == f"{clicks} clicks, needed are 10"
