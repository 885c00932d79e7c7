"""Soft labels: the loss as printed, what stops the student, and that it learns from the ensemble."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training.small_log import write_small_log
from training.distill import DistillOptions, distill_loss, fit_student, kl_divergence, student_loss
from training.encoded_log import VALID, Part
from training.loop import NetworkSpec
from training.metrics import sigmoid

DNN = NetworkSpec(network="dnn", options={"dim": 4, "hidden": [16, 8], "init_sd": 0.1})
QUICK = DistillOptions(learning_rate=0.005, batch_rows=256, max_epochs=4)


def slow_sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_the_loss_is_the_papers(temperature: float) -> None:
    """(1 - w) CE(y, s(z_S)) + w CE(s(z_E / tau), s(z_S / tau)), row by row; no tau^2, and labels are not tempered."""
    z_s, z_e, y, w = [0.3, -2.0, 1.5], [1.0, -1.0, -0.5], [1.0, 0.0, 1.0], 0.9

    fast = student_loss(torch.tensor(z_s), torch.tensor(y), torch.tensor(z_e), kd_weight=w, temperature=temperature)

    slow = 0.0
    for s, e, label in zip(z_s, z_e, y, strict=True):
        p, q = slow_sigmoid(s / temperature), slow_sigmoid(e / temperature)
        task = -(label * math.log(slow_sigmoid(s)) + (1 - label) * math.log(1 - slow_sigmoid(s)))
        slow += ((1 - w) * task + w * -(q * math.log(p) + (1 - q) * math.log(1 - p))) / 3
    assert fast.item() == pytest.approx(slow, rel=1e-5)


def test_the_gradient_pulls_the_student_towards_the_ensemble() -> None:
    """d L_KD / d z_S = (s(z_S / tau) - s(z_E / tau)) / tau, a row's mean share of it."""
    student = torch.tensor([0.5, -1.0], requires_grad=True)
    ensemble = torch.tensor([-0.5, 2.0])

    distill_loss(student, ensemble, 2.0).backward()

    expected = (torch.sigmoid(student / 2) - torch.sigmoid(ensemble / 2)) / 2 / 2
    torch.testing.assert_close(student.grad, expected.detach())


def test_a_hot_temperature_leaves_no_gradient() -> None:
    """As tau grows both tempered probabilities go to a half, and without tau^2 the pull vanishes."""
    student = torch.tensor([3.0], requires_grad=True)

    distill_loss(student, torch.tensor([-3.0]), 1e4).backward()

    assert student.grad.abs().item() < 1e-7


def test_kl_is_the_distillation_loss_less_the_ensembles_entropy() -> None:
    """Same minimum, but zero when the student answers as the ensemble does."""
    rng = np.random.default_rng(0)
    z_e, z_s = rng.normal(size=100), rng.normal(size=100)
    loss = distill_loss(torch.from_numpy(z_s), torch.from_numpy(z_e), 1.0).item()
    floor = distill_loss(torch.from_numpy(z_e), torch.from_numpy(z_e), 1.0).item()

    assert kl_divergence(z_e, z_s) == pytest.approx(loss - floor)
    assert kl_divergence(z_e, z_e) == 0.0
    assert kl_divergence([800.0, -800.0], [0.0, 0.0]) == pytest.approx(math.log(2))


def test_a_student_comes_to_answer_as_the_ensemble_does(tmp_path: Path) -> None:
    """With only soft labels the KL falls on rows it never saw, and those need no labels."""
    log = write_small_log(tmp_path, rows=4000)
    truth = np.clip(log.truth, 1e-6, 1 - 1e-6)
    ensemble_logit = (np.log(truth) - np.log1p(-truth)).astype(np.float32)
    options = QUICK.model_copy(update={"kd_weight": 1.0, "max_epochs": 10, "averaged_steps": 10, "learning_rate": 0.02})

    result = fit_student(log, DNN, options, ensemble_logit, seed=1, train=[Part.TRAIN], valid=[Part.VALID_A])

    kl = [row["valid_kl"] for row in result.history]
    constant = kl_divergence(ensemble_logit, np.full(len(log), np.log(0.3 / 0.7)))
    assert kl[result.epochs - 1] == min(kl)
    assert min(kl) < 0.5 * constant


def test_labels_of_validation_rows_never_reach_the_student(tmp_path: Path) -> None:
    """Scrambled labels outside the training part change nothing."""
    first = write_small_log(tmp_path / "first", rows=1500)
    second = write_small_log(tmp_path / "second", rows=1500, scramble_outside_train=True)
    target = np.random.default_rng(2).normal(-1, 1, 1500).astype(np.float32)

    states = [
        fit_student(log, DNN, QUICK, target, seed=1, train=[Part.TRAIN], valid=[Part.VALID_A]).state
        for log in (first, second)
    ]

    assert not np.array_equal(first.label, second.label)
    for name, tensor in states[0].items():
        torch.testing.assert_close(tensor, states[1][name], rtol=0, atol=0)


def test_a_refit_runs_the_epochs_it_is_told(tmp_path: Path) -> None:
    """On train + validation nothing is left to stop by."""
    log = write_small_log(tmp_path, rows=1000)
    target = sigmoid(log.truth).astype(np.float32)

    result = fit_student(log, DNN, QUICK, target, seed=1, train=[Part.TRAIN, *VALID], valid=None, epochs=2)

    assert result.epochs == 2
    assert [row["epoch"] for row in result.history] == [1, 2]


def test_one_target_a_row_is_expected(tmp_path: Path) -> None:
    """Logits of another log are refused."""
    log = write_small_log(tmp_path, rows=300)

    with pytest.raises(ValueError, match="expected one for each of 300 rows"):
        fit_student(log, DNN, QUICK, np.zeros(299), seed=1, train=[Part.TRAIN], valid=[Part.VALID_A])
