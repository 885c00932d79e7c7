"""Teachers and student in one run: whose loss reaches whom, and which epochs are kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from tests.training.small_log import write_small_log
from training.data.encoded_log import VALID, EncodedLog, Part
from training.distillation.distill import DistillOptions, kl_divergence
from training.distillation.together import (
    Cotrain,
    CoTraining,
    Epochs,
    Mutual,
    MutualLearning,
    Snapshots,
    TeacherSpec,
    TogetherResult,
    fit_together,
    mutual_loss,
)
from training.fit.loop import FitOptions, FitResult, NetworkSpec, copy_of_state, score
from training.fit.metrics import auc

SMALL = {"dim": 4, "hidden": [8, 6], "init_sd": 0.2}
DNN = NetworkSpec(network="dnn", options=SMALL)
TEACHERS = {
    "deepfm": TeacherSpec(NetworkSpec(network="deepfm", options=SMALL), FitOptions(learning_rate=0.01)),
    "dnn": TeacherSpec(DNN, FitOptions(learning_rate=0.02, embedding_l2=1e-3)),
}
QUICK = DistillOptions(learning_rate=0.02, batch_rows=256, max_epochs=4, averaged_steps=5)
LOSSES = {"soft": 1.0, "hint": 0.3, "mse": 0.2}


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> EncodedLog:
    return write_small_log(tmp_path_factory.mktemp("log"), rows=2000)


def cotraining(log: EncodedLog, *, form: Any = "full", teacher_weight: float = 1.0, **changes: Any) -> CoTraining:
    """The same start whatever the options, and a gate that is not at its start."""
    torch.manual_seed(0)
    options = DistillOptions(**(QUICK.model_dump() | {"losses": LOSSES} | changes))
    scheme = Cotrain(kind="cotrain", teacher_weight=teacher_weight)
    learner = CoTraining(log, TEACHERS, DNN, options, scheme=scheme, form=form)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in learner.gate.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator))
    return learner


def gradients(learner: CoTraining | MutualLearning, log: EncodedLog) -> dict[str, torch.Tensor]:
    rows = log.rows([Part.TRAIN])[:300]
    learner.train()
    learner.loss(log.batch(rows), rows).objective.backward()
    return {name: weight.grad for name, weight in learner.named_parameters() if weight.grad is not None}


# co-training


@pytest.mark.parametrize("form", ["static", "per_teacher", "full", "hints"])
@pytest.mark.parametrize("aggregate", ["logits", "probabilities"])
def test_the_students_loss_reaches_neither_teachers_nor_gate(log: EncodedLog, form: str, aggregate: str) -> None:
    """Their gradients are bit by bit those without any distillation, whatever is imitated."""
    with_kd = gradients(cotraining(log, form=form, aggregate=aggregate, kd_weight=0.9), log)
    without = gradients(cotraining(log, form=form, aggregate=aggregate, kd_weight=0.0), log)

    taught = {name for name in without if name.startswith(("teachers.", "gate."))}
    assert {name.split(".")[0] for name in taught} == {"teachers", "gate"}
    for name in taught:
        torch.testing.assert_close(with_kd[name], without[name], rtol=0, atol=0)
    assert not torch.equal(with_kd["network.last.weight"], without["network.last.weight"])
    assert with_kd["imitation.hint.matrices.0.weight"].abs().max() > 0


@pytest.mark.parametrize("teacher_weight", [0.0, 0.5])
def test_teachers_and_gate_learn_from_the_ensembles_loss_and_their_own(log: EncodedLog, teacher_weight: float) -> None:
    """CE(y, z_E) + weight * sum_i CE(y, z_i), and each teacher's L2; with a weight of 0 only z_E meets the labels."""
    learner = cotraining(log, teacher_weight=teacher_weight)
    found = gradients(learner, log)
    learner.zero_grad()
    rows = log.rows([Part.TRAIN])[:300]
    batch, label = log.batch(rows), log.labels(rows)

    z = torch.stack([teacher(batch)[0] for teacher in learner.teachers], dim=1)
    alpha = torch.softmax(z @ learner.gate.weights.T + learner.gate.biases, dim=1)
    loss = functional.binary_cross_entropy_with_logits((alpha * z).sum(dim=1), label)
    for i in range(2):
        loss = loss + teacher_weight * functional.binary_cross_entropy_with_logits(z[:, i], label)
    vectors = learner.teachers[1].embedding(batch).joined()
    (loss + 1e-3 * 0.5 * vectors.square().sum() / len(rows)).backward()

    for name, weight in learner.named_parameters():
        if name.startswith(("teachers.", "gate.")):
            torch.testing.assert_close(weight.grad, found[name], rtol=1e-4, atol=1e-7)


def test_in_training_too_the_teachers_are_those_of_no_distillation(log: EncodedLog) -> None:
    """Epochs of co-training leave the same teachers and gate, whatever the weight of distillation."""
    fits = [cotrained(log, kd_weight=weight) for weight in (0.9, 0.0)]

    for name in TEACHERS:
        for key, tensor in fits[0].teachers[name].state.items():
            torch.testing.assert_close(tensor, fits[1].teachers[name].state[key], rtol=0, atol=0)
    assert fits[0].gate == fits[1].gate
    assert not torch.equal(fits[0].student.state["last.weight"], fits[1].student.state["last.weight"])


def cotrained(log: EncodedLog, **changes: Any) -> TogetherResult:
    options = DistillOptions(**(QUICK.model_dump() | changes))
    scheme = Cotrain(kind="cotrain")
    parts: dict[str, Any] = {"train": [Part.TRAIN], "valid": [Part.VALID_A]}
    return fit_together(log, scheme, TEACHERS, DNN, options, form="per_teacher", seed=3, **parts)


def network_of(log: EncodedLog, spec: NetworkSpec, fit: FitResult) -> torch.nn.Module:
    network = spec.build(log.fields)
    network.load_state_dict(fit.state)
    return network


def test_the_kept_student_is_the_nearest_to_the_kept_teachers(log: EncodedLog) -> None:
    """Its KL in the history is against exactly the teachers and gate that are returned, and the least of all epochs."""
    found = cotrained(log, max_epochs=5, patience=5)
    rows = log.rows([Part.VALID_A])
    z = [score(log, network_of(log, TEACHERS[name].network, fit), rows) for name, fit in found.teachers.items()]
    assert found.gate is not None
    ensemble = found.gate.ensemble_logit(np.stack(z, axis=1))

    student = score(log, network_of(log, DNN, found.student), rows)

    kl = [row["valid_kl"] for row in found.student.history]
    assert len(kl) == 5
    assert kl[found.student.epochs - 1] == min(kl)
    assert min(kl) == pytest.approx(kl_divergence(ensemble, student), rel=1e-3)
    aucs = [row["ensemble_valid_auc"] for row in found.student.history]
    teachers_epoch = {fit.epochs for fit in found.teachers.values()}
    assert teachers_epoch == {int(np.argmax(aucs)) + 1}
    assert max(aucs) == pytest.approx(auc(log.label[rows], ensemble), abs=1e-6)
    for name, fit in found.teachers.items():
        own = score(log, network_of(log, TEACHERS[name].network, fit), rows)
        assert fit.history[fit.epochs - 1]["valid_auc"] == pytest.approx(auc(log.label[rows], own))


def test_epochs_are_compared_against_one_snapshot_also_after_it_has_moved(log: EncodedLog) -> None:
    """A better ensemble replaces the snapshot, and every earlier student is measured again against the new one; a worse
    one does not."""
    learner = cotraining(log)
    start = copy_of_state(learner.teachers)
    rows = log.rows([Part.VALID_A])
    keeper = Snapshots(learner, log, rows)

    keeper({"epoch": 1.0})
    first = dict(keeper.student_measures)
    trained = cotrained(log)
    for teacher, fit in zip(learner.teachers, trained.teachers.values(), strict=True):
        teacher.load_state_dict(fit.state)
    keeper({"epoch": 2.0})
    second = dict(keeper.student_measures)
    learner.teachers.load_state_dict(start)
    keeper({"epoch": 3.0})

    assert keeper.epochs.teachers == 2
    assert set(second) == {1, 2}
    assert first[1] != second[1]
    assert second[1] == second[2]  # the student has not moved
    assert keeper.student_measures == second | {3: second[2]}
    assert keeper.epochs.student == 1  # the first of equals


def test_measuring_earlier_students_leaves_the_training_one_alone(log: EncodedLog) -> None:
    """They are loaded into its place and out again."""
    learner = cotraining(log)
    keeper = Snapshots(learner, log, log.rows([Part.VALID_A]))
    keeper({"epoch": 1.0})
    with torch.no_grad():
        learner.network.last.bias += 1.0
        for teacher in learner.teachers:
            teacher.last.weight *= -1.0
    before = copy_of_state(learner)

    keeper({"epoch": 2.0})

    for name, tensor in copy_of_state(learner).items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)
    assert not torch.equal(keeper.students[1][0]["last.bias"], keeper.students[2][0]["last.bias"])


def test_a_refit_keeps_each_side_at_its_own_epoch_and_the_gate_as_it_was(log: EncodedLog) -> None:
    """It runs as long as the later side; each side is what a run of exactly its epochs leaves."""
    scheme, form = Cotrain(kind="cotrain"), "per_teacher"
    gate = cotrained(log).gate
    assert gate is not None

    def refit(epochs: Epochs) -> TogetherResult:
        return fit_together(
            log,
            scheme,
            TEACHERS,
            DNN,
            QUICK,
            form=form,
            seed=3,
            train=[Part.TRAIN, *VALID],
            valid=None,
            epochs=epochs,
            gate=gate,
        )

    found, short = refit(Epochs(teachers=1, student=3)), refit(Epochs(teachers=1, student=1))

    assert [len(fit.history) for fit in (found.student, found.teachers["dnn"])] == [3, 3]
    assert (found.student.epochs, found.teachers["dnn"].epochs) == (3, 1)
    for key, tensor in short.teachers["dnn"].state.items():
        torch.testing.assert_close(found.teachers["dnn"].state[key], tensor, rtol=0, atol=0)
    assert not torch.equal(found.student.state["last.weight"], short.student.state["last.weight"])
    assert found.gate is None


def test_every_network_takes_its_own_learning_rate(log: EncodedLog) -> None:
    """As its recipe says; the gate and what helps the student take the student's."""
    learner = cotraining(log)

    groups = learner.parameter_groups()

    assert [group["lr"] for group in groups] == [0.01, 0.02, 0.02]
    grouped = [id(weight) for group in groups for weight in group["params"]]
    assert sorted(grouped) == sorted(id(weight) for weight in learner.parameters())


def test_teachers_without_a_hidden_layer_cannot_be_imitated_by_it(log: EncodedLog) -> None:
    teachers = TEACHERS | {"lr": TeacherSpec(NetworkSpec(network="lr"), FitOptions())}
    options = DistillOptions(losses={"hint": 1.0})

    with pytest.raises(ValueError, match=r"teachers \['lr'\]: expected networks with a hidden layer"):
        CoTraining(log, teachers, DNN, options, scheme=Cotrain(kind="cotrain"), form="static")


# mutual learning


def slow_mutual(z: np.ndarray, y: np.ndarray, weight: float) -> tuple[float, np.ndarray]:
    """L and dL/dz of the formulas, peer by peer and row by row."""
    rows, peers = z.shape
    p = 1 / (1 + np.exp(-z))
    p_t = 1 / (1 + np.exp(-z.mean(axis=1)))
    exam = [np.mean([1 - abs(y[r] - p[r, i]) for r in range(rows)]) for i in range(peers)]
    u = np.exp([-s for s in exam]) / np.exp([-s for s in exam]).sum()
    loss, grad = 0.0, np.zeros_like(z)
    for i in range(peers):
        others = [j for j in range(peers) if j != i]
        v = np.exp([exam[j] - exam[i] for j in others])
        v /= v.sum()
        for r in range(rows):
            slope = p[r, i] * (1 - p[r, i])
            loss -= (1 - weight) * (y[r] * np.log(p[r, i]) + (1 - y[r]) * np.log(1 - p[r, i])) / rows / peers
            grad[r, i] += (1 - weight) * (p[r, i] - y[r]) / rows / peers
            loss += weight * u[i] * (p[r, i] - p_t[r]) ** 2 / rows
            grad[r, i] += weight * u[i] * 2 * (p[r, i] - p_t[r]) * slope / rows
            for share, j in zip(v, others, strict=True):
                loss += weight * share * (p[r, i] - p[r, j]) ** 2 / rows / peers
                grad[r, i] += weight * share * 2 * (p[r, i] - p[r, j]) * slope / rows / peers
    return loss, grad


@pytest.mark.parametrize("peers", [2, 4])
def test_mutual_learning_is_its_formula(peers: int) -> None:
    """Loss and gradient: no gradient through the abstract teacher, the peers imitated, or the examination."""
    rng = np.random.default_rng(peers)
    z, y = rng.normal(-1, 1.5, (7, peers)), (rng.random(7) < 0.4).astype(np.float64)
    logits = torch.from_numpy(z).requires_grad_()

    loss = mutual_loss(logits, torch.from_numpy(y), 0.3)
    loss.backward()

    expected, slope = slow_mutual(z, y, 0.3)
    assert loss.item() == pytest.approx(expected)
    assert logits.grad is not None
    np.testing.assert_allclose(logits.grad, slope, rtol=1e-9)


def test_peers_learn_from_clicks_and_from_each_other(log: EncodedLog) -> None:
    """Every network gets a gradient, teachers from the student too; without distillation each learns for itself."""
    torch.manual_seed(0)
    learner = MutualLearning(log, TEACHERS, DNN, DistillOptions(kd_weight=0.5))

    found = gradients(learner, log)

    assert {name.split(".")[0] for name in found} == {"teachers", "network"}
    assert all(gradient.abs().max() > 0 for name, gradient in found.items() if "last" in name)


def test_mutual_learning_keeps_teachers_and_student_as_co_training_does(log: EncodedLog) -> None:
    """The snapshot is the plain average of the teachers; no gate is learned."""
    options = DistillOptions(**(QUICK.model_dump() | {"kd_weight": 0.5, "max_epochs": 5}))
    parts: dict[str, Any] = {"train": [Part.TRAIN], "valid": [Part.VALID_A]}

    found = fit_together(log, Mutual(kind="mutual"), TEACHERS, DNN, options, form="static", seed=1, **parts)

    assert found.gate is None
    rows = log.rows([Part.VALID_A])
    z = [score(log, network_of(log, TEACHERS[name].network, fit), rows) for name, fit in found.teachers.items()]
    student = score(log, network_of(log, DNN, found.student), rows)
    kept = found.student.history[found.student.epochs - 1]
    assert kept["valid_kl"] == pytest.approx(kl_divergence(np.mean(z, axis=0), student), rel=1e-3, abs=1e-7)
    assert auc(log.label[rows], student) > 0.6
    assert set(found.student.state) == set(DNN.build(log.fields).state_dict())
