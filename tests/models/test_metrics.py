"""What both programs compute from parts: AUC from counts, ECE from bins. The rest: tests/training/test_metrics.py."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models import metrics


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 9)), min_size=1, max_size=60))
def test_auc_of_counts_is_the_auc_of_the_rows_counted(rows: list[tuple[int, int]]):
    label, score = np.array(rows).T
    clicked = np.bincount(score[label == 1], minlength=10)
    passed = np.bincount(score[label == 0], minlength=10)

    assert metrics.auc_of_counts(clicked, passed) == pytest.approx(metrics.auc(label, score), nan_ok=True)


def test_ece_of_bins_is_ece():
    rng = np.random.default_rng(1)
    pctr = rng.beta(2, 20, 997)
    label = (rng.random(997) < pctr).astype(float)

    assert metrics.ece_of_bins(metrics.reliability(label, pctr)) == metrics.ece(label, pctr)
    assert math.isnan(metrics.ece_of_bins([]))
