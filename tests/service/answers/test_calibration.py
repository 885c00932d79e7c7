"""Score histograms: the definitions of training, added instead of recomputed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models import metrics
from service.answers.calibration import ScoreHistogram, quality
from training.fit import metrics as training_metrics


def scored(seed: int = 1, rows: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    logit = rng.normal(-3, 1.2, rows)
    pctr = 1 / (1 + np.exp(-logit))
    return (rng.random(rows) < 1.2 * pctr).astype(float), pctr


def test_every_figure_is_the_one_training_reports():
    """Exactly where sums suffice; within the histogram's fineness for AUC and ECE."""
    click, pctr = scored()

    found = quality(ScoreHistogram.of_rows(click, pctr))

    assert found.logloss == pytest.approx(metrics.logloss(click, pctr), rel=1e-12)
    assert found.normalised_entropy == pytest.approx(metrics.normalised_entropy(click, pctr), rel=1e-12)
    assert found.predicted_over_actual == pytest.approx(metrics.predicted_over_actual(click, pctr), rel=1e-12)
    assert found.auc == pytest.approx(metrics.auc(click, pctr), abs=1e-5)
    assert found.ece == pytest.approx(metrics.ece(click, pctr), abs=3e-4)
    assert [entry["rows"] for entry in found.reliability] == pytest.approx([1000] * 20, rel=0.1)


def test_training_and_service_share_one_definition():
    """Not two that happen to agree: the same functions."""
    for name in ("auc", "logloss", "normalised_entropy", "ece", "predicted_over_actual", "reliability", "gauc"):
        assert getattr(training_metrics, name) is getattr(metrics, name)


@given(st.integers(0, 100), st.integers(2, 60), st.randoms())
def test_parts_add_up_and_order_does_not_matter(seed: int, rows: int, random):
    click, pctr = scored(seed, rows)
    cut = random.randint(0, rows)
    order = np.array(random.sample(range(rows), rows))

    whole = ScoreHistogram.of_rows(click, pctr).sums
    parts = ScoreHistogram.of_rows(click[:cut], pctr[:cut]) + ScoreHistogram.of_rows(click[cut:], pctr[cut:])

    np.testing.assert_allclose(parts.sums, whole, rtol=1e-12)
    np.testing.assert_allclose(ScoreHistogram.of_rows(click[order], pctr[order]).sums, whole, rtol=1e-12)


@pytest.mark.parametrize("clicks", [[], [0.0, 0.0], [1.0, 1.0]])
def test_what_is_not_defined_is_none(clicks: list[float]):
    """No impressions, no clicks, nothing but clicks: never NaN."""
    found = quality(ScoreHistogram.of_rows(clicks, [0.2] * len(clicks)))

    assert found.auc is None
    assert found.normalised_entropy is None
    assert (found.predicted_over_actual is None) == (sum(clicks) == 0)
    assert (found.logloss is None) == (found.ece is None) == (not clicks)
