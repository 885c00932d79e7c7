"""What a student imitates: the losses as printed, what stops it, and that nothing but the network is kept."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch.nn import functional

from tests.training.small_log import write_small_log
from training.data.encoded_log import VALID, EncodedLog, Part
from training.distillation.distill import (
    DistillOptions,
    EnsembleTargets,
    FineTune,
    HintRegression,
    Imitation,
    StudentLearner,
    Target,
    distill_loss,
    fit_student,
    kd_of,
    kl_divergence,
    mixed_logit,
)
from training.fit.loop import NetworkSpec, batches, score
from training.fit.metrics import sigmoid

DNN = NetworkSpec(network="dnn", options={"dim": 4, "hidden": [16, 8], "init_sd": 0.1})
QUICK = DistillOptions(learning_rate=0.005, batch_rows=256, max_epochs=4)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> EncodedLog:
    return write_small_log(tmp_path_factory.mktemp("log"), rows=1500)


def options(**changes: Any) -> DistillOptions:
    """Checked, which `model_copy` does not do."""
    return DistillOptions(**(QUICK.model_dump(exclude_unset=True) | changes))


def slow_sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def some_targets(log: EncodedLog, widths: tuple[int, ...] = ()) -> EnsembleTargets:
    """An ensemble that knows the truth, and hidden layers that are noise."""
    rng = np.random.default_rng(2)
    truth = np.clip(log.truth, 1e-6, 1 - 1e-6)
    weights = rng.dirichlet(np.ones(len(widths)), len(log)) if widths else None
    hints = tuple(rng.normal(size=(len(log), width)).astype(np.float16) for width in widths)
    return EnsembleTargets(np.log(truth) - np.log1p(-truth), weights, hints)


# soft labels


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_the_loss_is_the_papers(temperature: float) -> None:
    """(1 - w) CE(y, s(z_S)) + w CE(s(z_E / tau), s(z_S / tau)), row by row; no tau^2, and labels are not tempered."""
    z_s, z_e, y, w = [0.3, -2.0, 1.5], [1.0, -1.0, -0.5], [1.0, 0.0, 1.0], 0.9
    imitation = Imitation(options(kd_weight=w, temperature=temperature), None)

    fast, _ = imitation(torch.tensor(z_s), None, torch.tensor(y), Target(torch.tensor(z_e)))

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


def test_a_hot_temperature_leaves_no_gradient_unless_scaled_by_tau_squared() -> None:
    """As tau grows the pull vanishes like 1 / tau^2; scaled, it becomes that of logits, (z_S - z_E) / 4."""
    pulls = []
    for scale_by_tau_squared in (False, True):
        student = torch.tensor([3.0], requires_grad=True, dtype=torch.float64)
        ensemble = torch.tensor([-2.0], dtype=torch.float64)
        distill_loss(student, ensemble, 1e4, scale_by_tau_squared=scale_by_tau_squared).backward()
        assert student.grad is not None
        pulls.append(student.grad.item())

    assert abs(pulls[0]) < 1e-7
    assert pulls[1] == pytest.approx(5 / 4, rel=1e-6)


def test_kl_is_the_distillation_loss_less_the_ensembles_entropy() -> None:
    """Same minimum, but zero when the student answers as the ensemble does."""
    rng = np.random.default_rng(0)
    z_e, z_s = rng.normal(size=100), rng.normal(size=100)
    loss = distill_loss(torch.from_numpy(z_s), torch.from_numpy(z_e), 1.0).item()
    floor = distill_loss(torch.from_numpy(z_e), torch.from_numpy(z_e), 1.0).item()

    assert kl_divergence(z_e, z_s) == pytest.approx(loss - floor)
    assert kl_divergence(z_e, z_e) == 0.0
    assert kl_divergence([800.0, -800.0], [0.0, 0.0]) == pytest.approx(math.log(2))


logit = st.floats(-12, 12)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), teachers=st.integers(1, 5), tau=st.floats(0.2, 20))
def test_a_mean_of_probabilities_is_a_sum_of_single_losses(data: Any, teachers: int, tau: float) -> None:
    """L_KD against sum_i alpha_i s(z_i / tau) is sum_i alpha_i L_KD(S, T_i), and pulls alike, at any tau."""
    rows = 3
    drawn = st.lists(st.lists(logit, min_size=teachers, max_size=teachers), min_size=rows, max_size=rows)
    z = torch.tensor(data.draw(drawn), dtype=torch.float64)
    alpha = torch.softmax(torch.tensor(data.draw(drawn), dtype=torch.float64), dim=1)
    start = data.draw(st.lists(logit, min_size=rows, max_size=rows))

    losses, pulls = [], []
    for single in (False, True):
        student = torch.tensor(start, dtype=torch.float64, requires_grad=True)
        if single:
            each = [
                alpha[row, i] * distill_loss(student[row], z[row, i], tau) / rows
                for row in range(rows)
                for i in range(teachers)
            ]
            loss = torch.stack(each).sum()
        else:
            loss = distill_loss(student, mixed_logit(z, alpha, tau), tau)
        loss.backward()
        losses.append(loss.item())
        pulls.append(student.grad)

    assert losses[0] == pytest.approx(losses[1], rel=1e-9, abs=1e-12)
    torch.testing.assert_close(pulls[0], pulls[1], rtol=1e-7, atol=1e-12)


def test_a_mean_of_probabilities_of_very_sure_teachers_stays_finite() -> None:
    """Where sigmoid itself rounds to 0 or 1, and where a weight is nothing."""
    mixed = mixed_logit(torch.tensor([[200.0, 300.0], [-300.0, 5.0]]), torch.tensor([[0.5, 0.5], [1.0, 0.0]]), 1.0)

    torch.testing.assert_close(mixed, torch.tensor([200 + math.log(2), -300.0]))


# hints, logits, and both beside soft labels


def test_hint_regression_is_its_formula() -> None:
    """|sum_i alpha_i W_i v_i - v_S|^2, summed over the width, mean over rows, with teachers of any width."""
    torch.manual_seed(0)
    regression = HintRegression([3, 5], 4)
    hints = torch.randn(6, 3), torch.randn(6, 5)
    alpha, student = torch.softmax(torch.randn(6, 2), dim=1), torch.randn(6, 4)

    loss, norms = regression(student, Target(torch.zeros(6), alpha, hints))

    slow, teacher_norm = 0.0, 0.0
    for row in range(6):
        wanted = sum(
            alpha[row, i] * (matrix.weight.detach() @ hints[i][row]) for i, matrix in enumerate(regression.matrices)
        )
        slow += float(((wanted - student[row]) ** 2).sum()) / 6
        teacher_norm += float(wanted.norm()) / 6
    assert loss.item() == pytest.approx(slow, rel=1e-5)
    assert norms["teacher_hint_norm"].item() == pytest.approx(teacher_norm, rel=1e-5)
    assert norms["student_hint_norm"].item() == pytest.approx(float(student.norm(dim=1).mean()), rel=1e-5)


def test_of_one_teacher_hint_regression_is_as_printed() -> None:
    """|W v_T - v_S|^2; no gate is needed."""
    regression = HintRegression([3], 2)
    teacher, student = torch.randn(4, 3), torch.randn(4, 2)

    loss, _ = regression(student, Target(torch.zeros(4), None, (teacher,)))

    expected = functional.mse_loss(teacher @ regression.matrices[0].weight.T, student, reduction="sum") / 4
    torch.testing.assert_close(loss, expected)


def test_the_losses_add_up_with_their_weights() -> None:
    """(1 - w) CE + w (a soft + b mse + c hint)."""
    torch.manual_seed(1)
    given_ = options(kd_weight=0.7, temperature=2.0, losses={"soft": 0.5, "mse": 0.25, "hint": 3.0})
    imitation = Imitation(given_, 4, [3])
    z, hint, label = torch.randn(5), torch.randn(5, 4), torch.tensor([0.0, 1.0, 0.0, 0.0, 1.0])
    target = Target(torch.randn(5), None, (torch.randn(5, 3),))

    loss, shown = imitation(z, hint, label, target)

    assert imitation.hint is not None
    parts = {
        "soft": distill_loss(z, target.logit, 2.0),
        "mse": ((z - target.logit) ** 2).mean(),
        "hint": imitation.hint(hint, target)[0],
    }
    distilled = 0.5 * parts["soft"] + 0.25 * parts["mse"] + 3.0 * parts["hint"]
    task = functional.binary_cross_entropy_with_logits(z, label)
    torch.testing.assert_close(loss, 0.3 * task + 0.7 * distilled)
    assert {name: shown[f"train_{name}"].item() for name in parts} == pytest.approx(
        {name: part.item() for name, part in parts.items()}
    )


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"losses": {"hint": 1.0}, "kd_weight": 1.0}, r"losses.hint: expected kd_weight below 1.*say kd_weight: 0.9"),
        ({"losses": {}}, "at least 1"),
        ({"losses": {"soft": 0.0}}, r"losses.soft: expected a weight above 0, got 0.0; leave the loss out"),
        ({"losses": {"kl": 1.0}}, "'soft', 'hint' or 'mse'"),
        ({"auxiliary_head": True, "kd_weight": 1.0}, "auxiliary_head: expected kd_weight below 1"),
        ({"auxiliary_head": True, "losses": {"hint": 1.0}}, "auxiliary_head: expected soft or mse"),
        ({"scale_by_tau_squared": True, "losses": {"mse": 1.0}}, "scale_by_tau_squared: expected soft"),
        ({"fine_tune": {"epochs": 0, "learning_rate": 0.1}}, "greater than or equal to 1"),
    ],
)
def test_options_that_cannot_be_learned_are_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        options(**wrong)


# students


def test_a_student_of_soft_labels_is_what_a_plain_loop_makes(log: EncodedLog) -> None:
    """Bit by bit: network, Adam and shuffle from one seed, nothing else drawn. What other losses and schemes bring with
    them must not move the numbers of a recipe that asks for none of it."""
    plain = options(max_epochs=2, averaged_steps=1)
    targets = some_targets(log)
    torch.manual_seed(5)
    network = DNN.build(log.fields)
    adam = torch.optim.Adam(network.parameters(), lr=plain.learning_rate, fused=True)
    shuffler = np.random.default_rng([5, 1])
    for _ in range(2):
        for rows in batches(shuffler.permutation(log.rows([Part.TRAIN])), plain.batch_rows):
            z = network(log.batch(rows))[0]
            soft_label = torch.sigmoid(torch.from_numpy(targets.logit.astype(np.float32)[rows]))
            loss = (1 - 0.9) * functional.binary_cross_entropy_with_logits(z, log.labels(rows))
            loss = loss + 0.9 * functional.binary_cross_entropy_with_logits(z, soft_label)
            adam.zero_grad()
            loss.backward()
            adam.step()

    result = fit_student(log, DNN, plain, targets, seed=5, train=[Part.TRAIN], valid=None, epochs=2)

    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(result.state[name], tensor, rtol=0, atol=0)


def test_a_student_comes_to_answer_as_the_ensemble_does(tmp_path: Path) -> None:
    """With only soft labels the KL falls on rows it never saw, and those need no labels."""
    log = write_small_log(tmp_path, rows=4000)
    targets = some_targets(log)
    given_ = options(kd_weight=1.0, max_epochs=10, averaged_steps=10, learning_rate=0.02)

    result = fit_student(log, DNN, given_, targets, seed=1, train=[Part.TRAIN], valid=[Part.VALID_A])

    kl = [row["valid_kl"] for row in result.history]
    constant = kl_divergence(targets.logit, np.full(len(log), np.log(0.3 / 0.7)))
    assert kl[result.epochs - 1] == min(kl)
    assert min(kl) < 0.5 * constant


@pytest.mark.parametrize("losses", [{"mse": 0.3}, {"hint": 0.1}, {"soft": 1.0, "hint": 0.1, "mse": 0.1}])
def test_a_student_learns_by_every_loss(log: EncodedLog, losses: dict[str, float]) -> None:
    """What it is judged by falls on held-out rows, its best epoch is kept, and only the network is."""
    given_ = options(losses=losses, kd_weight=0.8, max_epochs=6, learning_rate=0.02, averaged_steps=5)
    targets = some_targets(log, (6, 3) if "hint" in losses else ())

    result = fit_student(log, DNN, given_, targets, seed=1, train=[Part.TRAIN], valid=[Part.VALID_A])

    kd = [kd_of(row) for row in result.history]
    assert kd[result.epochs - 1] == min(kd) < kd[0]
    assert set(result.state) == set(DNN.build(log.fields).state_dict())
    norms = {"teacher_hint_norm", "student_hint_norm"}
    assert all((norms <= set(row)) == ("hint" in losses) for row in result.history)


def test_what_stops_a_student_is_its_distillation_loss_on_those_rows(log: EncodedLog) -> None:
    """valid_kd = sum of weights times KL and squared gap of logits, on exactly the rows given. Hints have no say: both
    their sides are learned, and shrinking both would win."""
    losses = {"soft": 0.5, "mse": 0.25, "hint": 2.0}
    given_ = options(losses=losses, temperature=2.0, scale_by_tau_squared=True)
    targets = some_targets(log, (6, 3))
    torch.manual_seed(3)
    learner = StudentLearner(log, DNN, given_, targets)
    rows = log.rows([Part.VALID_A])

    found = learner.measure(log, rows)

    with torch.no_grad():
        logit, hint = learner.network(log.batch(rows))
        target = targets.of(rows)
        assert learner.imitation.hint is not None
        hint_loss = learner.imitation.hint(hint, target)[0].item()
    kl = kl_divergence(targets.logit[rows], logit.numpy(), 2.0)
    mse = float(np.mean((logit.numpy() - targets.logit[rows]) ** 2))
    assert found["valid_kl"] == pytest.approx(kl, rel=1e-4)
    assert found["valid_kd"] == pytest.approx(0.5 * 4 * kl + 0.25 * mse, rel=1e-4)
    assert found["valid_hint"] == pytest.approx(hint_loss, rel=1e-4)


def test_a_student_of_hints_alone_is_stopped_by_how_near_it_answers(log: EncodedLog) -> None:
    """KL to the ensemble needs no labels either."""
    torch.manual_seed(3)
    learner = StudentLearner(log, DNN, options(losses={"hint": 1.0}), some_targets(log, (6, 3)))

    found = learner.measure(log, log.rows([Part.VALID_A]))

    assert "valid_kd" not in found
    assert kd_of(found) == found["valid_kl"]


def test_a_student_can_be_stopped_by_auc_instead(log: EncodedLog) -> None:
    """For the comparison that the paper's early stopping deserves."""
    given_ = options(stop_by="valid_auc", max_epochs=6, learning_rate=0.03)

    result = fit_student(log, DNN, given_, some_targets(log), seed=1, train=[Part.TRAIN], valid=[Part.VALID_A])

    aucs = [row["valid_auc"] for row in result.history]
    assert result.epochs == int(np.argmax(aucs)) + 1


def test_the_auxiliary_head_takes_the_ensembles_part_and_is_dropped(log: EncodedLog) -> None:
    """The served logit's own weights feel the clicks alone; the layers below feel both; no head is left in the fit."""
    targets = some_targets(log)
    rows = log.rows([Part.TRAIN])[:200]

    def gradients(kd_weight: float, **changes: Any) -> dict[str, torch.Tensor]:
        torch.manual_seed(4)
        learner = StudentLearner(log, DNN, options(kd_weight=kd_weight, **changes), targets)
        learner.loss(log.batch(rows), rows).objective.backward()
        return {name: weight.grad for name, weight in learner.network.named_parameters() if weight.grad is not None}

    with_head, clicks = gradients(0.6, auxiliary_head=True), gradients(0.0)

    torch.testing.assert_close(with_head["last.weight"], 0.4 * clicks["last.weight"])
    assert not torch.allclose(with_head["first.weight"], 0.4 * clicks["first.weight"], rtol=1e-2, atol=0)
    given_ = options(auxiliary_head=True, kd_weight=0.5)
    result = fit_student(log, DNN, given_, targets, seed=1, train=[Part.TRAIN], valid=[Part.VALID_A])
    assert set(result.state) == set(DNN.build(log.fields).state_dict())


def test_a_student_with_an_auxiliary_head_is_stopped_by_what_it_serves(log: EncodedLog) -> None:
    """The head goes on learning long after the served logit has begun to remember clicks, so it has no say."""
    given_ = options(auxiliary_head=True, kd_weight=0.5, losses={"mse": 1.0}, max_epochs=6, learning_rate=0.03)
    targets = some_targets(log)

    result = fit_student(log, DNN, given_, targets, seed=1, train=[Part.TRAIN], valid=[Part.VALID_A])

    kd = [row["valid_kd"] for row in result.history]
    rows = log.rows([Part.VALID_A])
    network = DNN.build(log.fields)
    network.load_state_dict(result.state)
    assert kd[result.epochs - 1] == min(kd)
    assert min(kd) == pytest.approx(np.mean((targets.logit[rows] - score(log, network, rows)) ** 2), rel=1e-4)


def test_fine_tuning_goes_on_from_the_kept_epoch_on_clicks_alone(log: EncodedLog) -> None:
    """As many epochs as asked for, behind the history; distillation's own epochs are what a refit takes over."""
    tuned = options(fine_tune=FineTune(epochs=2, learning_rate=1e-4))
    targets = some_targets(log)

    before = fit_student(log, DNN, QUICK, targets, seed=1, train=[Part.TRAIN], valid=[Part.VALID_A])
    after = fit_student(log, DNN, tuned, targets, seed=1, train=[Part.TRAIN], valid=[Part.VALID_A])

    assert after.epochs == before.epochs
    assert after.history[: len(before.history)] == before.history
    assert [row["fine_tune"] for row in after.history[len(before.history) :]] == [1, 2]
    assert all("valid_kl" in row for row in after.history)
    moved = (after.state["last.weight"] - before.state["last.weight"]).abs().max()
    assert 0 < moved < 2 * 1e-4 * 2 * math.ceil(len(log.rows([Part.TRAIN])) / 256)


def test_labels_of_validation_rows_never_reach_the_student(tmp_path: Path) -> None:
    """Scrambled labels outside the training part change nothing."""
    first = write_small_log(tmp_path / "first", rows=1500)
    second = write_small_log(tmp_path / "second", rows=1500, scramble_outside_train=True)
    targets = EnsembleTargets(np.random.default_rng(2).normal(-1, 1, 1500).astype(np.float32))

    states = [
        fit_student(log, DNN, QUICK, targets, seed=1, train=[Part.TRAIN], valid=[Part.VALID_A]).state
        for log in (first, second)
    ]

    assert not np.array_equal(first.label, second.label)
    for name, tensor in states[0].items():
        torch.testing.assert_close(tensor, states[1][name], rtol=0, atol=0)


def test_rows_that_stop_a_student_need_no_labels(log: EncodedLog) -> None:
    """Not even to be told whether they were clicked: it learns, stops and is fine-tuned as beside labels."""
    unlabelled = replace(log, label=np.where(log.part == Part.TRAIN, log.label, np.nan).astype(np.float32))
    given_ = options(losses={"soft": 1.0, "mse": 0.1}, fine_tune={"epochs": 1, "learning_rate": 1e-4})
    parts: dict[str, Any] = {"train": [Part.TRAIN], "valid": [Part.VALID_A]}

    labelled, found = (fit_student(each, DNN, given_, some_targets(log), seed=1, **parts) for each in (log, unlabelled))

    assert found.history == labelled.history
    assert found.epochs == labelled.epochs


def test_a_refit_runs_the_epochs_it_is_told(log: EncodedLog) -> None:
    """On train + validation nothing is left to stop by."""
    targets = EnsembleTargets(sigmoid(log.truth).astype(np.float32))

    result = fit_student(log, DNN, QUICK, targets, seed=1, train=[Part.TRAIN, *VALID], valid=None, epochs=2)

    assert result.epochs == 2
    assert [row["epoch"] for row in result.history] == [1, 2]


def test_targets_of_another_log_or_another_loss_are_refused(log: EncodedLog) -> None:
    """One target a row; hints where hints are to be imitated; a student that has a hidden layer."""
    with pytest.raises(ValueError, match="expected a logit for each of 1500 rows"):
        fit_student(log, DNN, QUICK, EnsembleTargets(np.zeros(299)), seed=1, train=[Part.TRAIN], valid=None, epochs=1)
    by_hint = options(losses={"hint": 1.0})
    with pytest.raises(ValueError, match="expected hints where losses has hint"):
        fit_student(log, DNN, by_hint, some_targets(log), seed=1, train=[Part.TRAIN], valid=None, epochs=1)
    lr = NetworkSpec(network="lr")
    with pytest.raises(ValueError, match="student: expected a network with a hidden layer"):
        fit_student(log, lr, by_hint, some_targets(log, (4,)), seed=1, train=[Part.TRAIN], valid=None, epochs=1)
