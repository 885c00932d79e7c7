"""Metrics against their slow obvious definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.fit import metrics


def slow_xauc(truth: list[float], score: list[float]) -> float:
    """Every ordered pair, one at a time."""
    won = total = 0.0
    for p, s in zip(truth, score, strict=True):
        for q, t in zip(truth, score, strict=True):
            weight = p * (1 - q)
            total += weight
            won += weight * (1.0 if s > t else 0.5 if s == t else 0.0)
    return won / total if total else math.nan


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.integers(-3, 3)), min_size=1, max_size=25))
def test_xauc_is_the_weighted_share_of_pairs_in_order(rows: list[tuple[float, int]]) -> None:
    """Under the truth every row is a click of weight p and a non-click of weight 1 - p; ties count half."""
    truth, score = [p for p, _ in rows], [float(s) for _, s in rows]

    fast = metrics.xauc(truth, score)

    assert fast == pytest.approx(slow_xauc(truth, score), abs=1e-9, nan_ok=True)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(-3, 3)), min_size=1, max_size=25))
def test_auc_is_the_chance_of_a_click_above_a_non_click(rows: list[tuple[int, int]]) -> None:
    """Labels are probabilities of 0 or 1; without one of both kinds there is no AUC."""
    label, score = [float(y) for y, _ in rows], [float(s) for _, s in rows]

    assert metrics.auc(label, score) == pytest.approx(slow_xauc(label, score), abs=1e-9, nan_ok=True)


def test_metrics_under_the_truth_are_the_mean_over_many_labels() -> None:
    """Drawing clicks again and again from the truth averages to the x-metrics."""
    rng = np.random.default_rng(0)
    truth = rng.beta(1, 5, 4000)
    pctr = np.clip(truth * rng.lognormal(0, 0.4, 4000), 0.001, 0.999)
    draws = [(rng.random(4000) < truth).astype(float) for _ in range(60)]

    aucs = [metrics.auc(label, pctr) for label in draws]
    losses = [metrics.logloss(label, pctr) for label in draws]

    assert metrics.xauc(truth, pctr) == pytest.approx(np.mean(aucs), abs=4 * np.std(aucs) / math.sqrt(60))
    assert metrics.xlogloss(truth, pctr) == pytest.approx(np.mean(losses), abs=4 * np.std(losses) / math.sqrt(60))


def test_logloss_is_the_mean_negative_log_likelihood() -> None:
    """Two rows by hand; a prediction of 0 or 1 that is wrong costs much, not infinity."""
    assert metrics.logloss([1, 0], [0.8, 0.4]) == pytest.approx(-(math.log(0.8) + math.log(0.6)) / 2)
    assert math.isfinite(metrics.logloss([1, 0], [0.0, 1.0]))


def test_normalised_entropy_is_1_for_the_mean_click_rate() -> None:
    """Predicting the background rate for every row is the unit of the measure."""
    label = np.array([1, 0, 0, 0, 0])

    assert metrics.normalised_entropy(label, np.full(5, 0.2)) == pytest.approx(1.0)


def test_predicted_over_actual_is_a_ratio_of_sums() -> None:
    """Twice as many clicks predicted as seen is 2; no click seen has no ratio."""
    assert metrics.predicted_over_actual([1, 0, 0, 0], [0.5, 0.5, 0.5, 0.5]) == pytest.approx(2.0)
    assert math.isnan(metrics.predicted_over_actual([0, 0], [0.5, 0.5]))


def test_ece_is_the_weighted_gap_of_equal_count_bins() -> None:
    """Four rows in two bins, by hand."""
    label = [0, 1, 1, 1]
    pctr = [0.1, 0.2, 0.9, 0.7]

    assert metrics.ece(label, pctr, bins=2) == pytest.approx((abs(0.15 - 0.5) + abs(0.8 - 1.0)) / 2)


def test_a_perfect_model_shows_the_floor_and_a_biased_one_more() -> None:
    """Labels drawn from the predictions themselves give an ECE about the floor."""
    rng = np.random.default_rng(1)
    pctr = rng.beta(2, 8, 20_000)
    label = (rng.random(20_000) < pctr).astype(float)

    floor = metrics.ece_floor(pctr)

    assert 0.5 * floor < metrics.ece(label, pctr) < 2 * floor
    assert metrics.ece(label, np.minimum(pctr * 1.3, 1)) > 4 * floor
    assert metrics.ece(pctr, pctr) == 0.0


def test_gauc_averages_the_auc_of_each_unit_by_its_rows() -> None:
    """Units with one kind of row only have no AUC and do not count."""
    rng = np.random.default_rng(2)
    unit = rng.integers(0, 40, 400)
    label = (rng.random(400) < 0.3).astype(float)
    score = rng.integers(0, 5, 400).astype(float)  # with ties
    label[unit == 7] = 0.0

    fast = metrics.gauc(label, score, unit)

    aucs, weights = [], []
    for one in np.unique(unit):
        mine = unit == one
        if 0 < label[mine].sum() < mine.sum():
            aucs.append(slow_xauc(label[mine].tolist(), score[mine].tolist()))
            weights.append(mine.sum())
    assert len(weights) < 40
    assert fast == pytest.approx(np.average(aucs, weights=weights))


def test_sigmoid_does_not_overflow() -> None:
    """Logits far outside any model's range give 0 and 1 without a warning."""
    np.testing.assert_allclose(metrics.sigmoid([-1e4, 0.0, 1e4]), [0.0, 0.5, 1.0])


def test_evaluate_reports_the_truth_only_where_it_is_known() -> None:
    """Real logs have no x-metrics; synthetic ones have all."""
    label, logit = np.array([0, 1, 1, 0]), np.array([-1.0, 0.5, 2.0, 0.1])

    real = metrics.evaluate(label, logit)
    synthetic = metrics.evaluate(label, logit, truth=label * 0.8 + 0.1, unit=[1, 1, 2, 2])

    assert set(synthetic) - set(real) == {"xauc", "xlogloss", "xece", "gauc"}
    assert real["auc"] == 1.0
