"""The gate: what it may learn from, and when it is not used."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from training.distillation.calibrate import fit_platt
from training.distillation.gate import (
    Gate,
    GateModule,
    GateOptions,
    GateResult,
    LearningGate,
    average_of,
    cross_entropy,
    fit_gate,
)
from training.fit.metrics import sigmoid

ROWS = 12_000
B = np.arange(0, ROWS // 2)
C = np.arange(ROWS // 2, ROWS)


def clicks_of(logit: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return (rng.random(len(logit)) < sigmoid(logit)).astype(np.float32)


def per_teacher(weights: tuple[float, ...], biases: tuple[float, ...], scale: float, bias: float) -> Gate:
    matrix = tuple(map(tuple, np.diag(weights).tolist()))
    return Gate("per_teacher", matrix, biases, (1.0,) * len(biases), scale, bias, "gate")


def slow_ensemble(gate: Gate, z: list[float], hint: list[float] | None = None) -> float:
    """scale * sum_i s_i softmax(A x + b)_i z_i + bias, one row at a time."""
    x = z + (hint or [])
    scores = [
        math.exp(sum(a * value for a, value in zip(row, x, strict=True)) + b)
        for row, b in zip(gate.matrix, gate.biases, strict=True)
    ]
    mixed = sum(sign * s / sum(scores) * zi for sign, s, zi in zip(gate.signs, scores, z, strict=True))
    return gate.scale * mixed + gate.bias


FORMS = {
    "per_teacher": per_teacher((0.4, -1.2, 0.0), (0.3, 0.0, -0.9), 1.1, -0.2),
    "full": Gate(
        "full",
        ((0.4, -0.2, 0.1), (0.0, 0.3, -0.5), (0.2, 0.2, 0.2)),
        (0.1, 0.0, -0.1),
        (1.0,) * 3,
        0.9,
        0.1,
        "gate",
    ),
    "hints": Gate(
        "hints",
        ((0.4, -0.2, 0.1, 0.5, -0.6), (0.0, 0.3, -0.5, 0.2, 0.1), (0.2, 0.2, 0.2, -0.3, 0.4)),
        (0.1, 0.0, -0.1),
        (1.0,) * 3,
        0.9,
        0.1,
        "gate",
    ),
    "stacking": Gate("stacking", ((0.0,) * 3,) * 3, (0.1, 0.0, -0.1), (1.0, -1.0, 1.0), 1.5, 0.1, "gate"),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_ensemble_logit_is_its_formula_in_numpy_and_in_torch(form: str) -> None:
    """What is fitted, what is reported and what is exported are the same numbers."""
    gate, rng = FORMS[form], np.random.default_rng(0)
    z, hint = rng.normal(size=(50, 3)), rng.normal(size=(50, 2))
    hints = [hint] if gate.takes_hints else []
    inputs = torch.from_numpy(np.concatenate([z, *hints], axis=1).astype(np.float32))

    in_torch, alpha = GateModule(gate)(torch.from_numpy(z.astype(np.float32)), inputs)

    slow = [
        slow_ensemble(gate, row, v if gate.takes_hints else None)
        for row, v in zip(z.tolist(), hint.tolist(), strict=True)
    ]
    np.testing.assert_allclose(gate.ensemble_logit(z, hints), slow)
    np.testing.assert_allclose(in_torch.detach(), slow, atol=1e-5)
    np.testing.assert_allclose(alpha.detach(), gate.gate_weights(z, hints), atol=1e-6)
    np.testing.assert_allclose(gate.gate_weights(z, hints).sum(axis=1), 1.0)


def test_zero_weights_and_biases_are_the_plain_average() -> None:
    """Where the gate starts, and what it falls back to."""
    z = np.random.default_rng(1).normal(size=(20, 4))

    np.testing.assert_allclose(average_of(4).ensemble_logit(z), z.mean(axis=1))


def test_a_good_teacher_among_bad_ones_is_found() -> None:
    """One teacher knows the truth, two give noise: the gate beats the average on rows it was not fitted on."""
    rng = np.random.default_rng(2)
    truth = rng.normal(-1.5, 1, ROWS)
    z = np.stack([truth, rng.normal(-1.5, 1, ROWS), rng.normal(-1.5, 1, ROWS)], axis=1)
    label = clicks_of(truth, rng)

    result = fit_gate(z, label, rows_b=B, rows_c=C)

    assert result.gate.chosen == "gate"
    assert result.gate.gate_weights(z)[:, 0].mean() > 0.8
    assert result.evidence["gate_ce_c"] < result.evidence["average_ce_c"]


def test_equal_teachers_leave_the_average_unless_the_gate_wins_again() -> None:
    """The choice is made by part C alone: whichever has the lower cross-entropy there is returned."""
    rng = np.random.default_rng(3)
    truth = rng.normal(-1.5, 1, ROWS)
    label = clicks_of(truth, rng)
    chosen = set()
    for draw in range(8):
        noise = np.random.default_rng([4, draw])
        z = truth[:, None] + noise.normal(0, 0.7, (ROWS, 3))
        result = fit_gate(z, label, rows_b=B[:800], rows_c=C)
        won = result.evidence["gate_ce_c"] < result.evidence["average_ce_c"]
        assert result.gate.chosen == ("gate" if won else "average")
        assert result.evidence["gate_ce_b"] <= result.evidence["average_ce_b"] + 1e-9
        chosen.add(result.gate.chosen)

    assert "average" in chosen


@pytest.mark.parametrize("form", ["per_teacher", "full"])
def test_weights_stay_where_float32_agrees_with_itself(form: Any) -> None:
    """Clicks that a switch between teachers fits best, without bound, leave a gate of ordinary numbers."""
    rng = np.random.default_rng(3)
    right, wrong = rng.normal(size=4000), rng.normal(size=4000)
    # Wherever teacher 1 says more than 0, it alone is right; elsewhere teacher 2 alone is.
    teacher_logits = np.stack([np.where(right > 0, right, wrong), np.where(right > 0, wrong, right)], axis=1)
    teacher_logits[:, 0] = np.where(right > 0, np.abs(teacher_logits[:, 0]) + 0.5, -np.abs(teacher_logits[:, 0]))
    label = (rng.random(4000) < 1 / (1 + np.exp(-3 * right))).astype(np.float32)

    options, rows = GateOptions(form=form), np.arange(4000)
    gate = fit_gate(teacher_logits, label, rows_b=rows[:2000], rows_c=rows[2000:], options=options).gate

    assert gate.chosen == "gate"
    assert np.abs([*np.ravel(gate.matrix), *gate.biases]).max() < 10
    in_float32 = GateModule(gate)(torch.from_numpy(teacher_logits.astype(np.float32)))[0].detach().numpy()
    np.testing.assert_allclose(in_float32, gate.ensemble_logit(teacher_logits.astype(np.float32)), atol=1e-5)


def test_part_c_never_changes_the_fitted_numbers() -> None:
    """Rows C decide between two fits; they enter neither."""
    rng = np.random.default_rng(5)
    truth = rng.normal(-1.5, 1, ROWS)
    z = np.stack([truth, rng.normal(-1.5, 1, ROWS)], axis=1)
    label = clicks_of(truth, rng)
    other = label.copy()
    other[C[:3000]] = 1 - other[C[:3000]]

    first, second = fit_gate(z, label, rows_b=B, rows_c=C), fit_gate(z, other, rows_b=B, rows_c=C)

    assert first.average == second.average
    assert first.evidence["gate_ce_b"] == second.evidence["gate_ce_b"]


def test_scale_and_bias_mend_teachers_that_are_off_together() -> None:
    """Teachers twice too sure and shifted are brought back, gate or average."""
    rng = np.random.default_rng(6)
    truth = rng.normal(-1.5, 0.7, ROWS)
    z = np.stack([2 * truth + 1] * 3, axis=1)
    label = clicks_of(truth, rng)

    gate = fit_gate(z, label, rows_b=B, rows_c=C).gate

    assert gate.scale == pytest.approx(0.5, abs=0.05)
    assert sigmoid(gate.ensemble_logit(z[B])).mean() == pytest.approx(label[B].mean(), abs=1e-6)


def test_a_gate_survives_its_file() -> None:
    """JSON and back is the same gate."""
    for gate in (*FORMS.values(), average_of(2)):
        assert Gate.from_json(json.loads(json.dumps(gate.to_json()))) == gate


def test_an_untrained_gate_of_any_form_is_the_average() -> None:
    """Where every form starts, and with it co-training."""
    z, x = torch.randn(10, 3), torch.randn(10, 7)

    for form in ("average", "static", "per_teacher", "full", "hints"):
        logit, alpha = LearningGate(form, 3, 7)(z, x if form == "hints" else None)
        torch.testing.assert_close(logit, z.mean(dim=1))
        torch.testing.assert_close(alpha, torch.full((10, 3), 1 / 3))


def test_what_a_learning_gate_answers_is_what_it_hands_over() -> None:
    """`found` gives the same logits as the module it was learned in."""
    torch.manual_seed(3)
    z, x = torch.randn(20, 3, dtype=torch.float64), torch.randn(20, 5, dtype=torch.float64)
    for form in ("static", "per_teacher", "full", "hints"):
        gate = LearningGate(form, 3, 5).double()
        with torch.no_grad():
            for weight in gate.parameters():
                weight += torch.randn_like(weight)
        inputs = torch.cat([z, x[:, :2]], dim=1) if form == "hints" else None

        logit, alpha = gate(z, inputs)

        hints = [x[:, :2].numpy()] if form == "hints" else []
        np.testing.assert_allclose(gate.found().ensemble_logit(z.numpy(), hints), logit.detach())
        np.testing.assert_allclose(gate.found().gate_weights(z.numpy(), hints), alpha.detach())


def two_worlds(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two teachers, each right where the other is blind; a hidden layer tells where. Logits, hint, clicks."""
    truth, where = rng.normal(-1, 1.5, ROWS), rng.choice([-1.0, 1.0], ROWS)
    blind = rng.normal(-1, 1.5, (ROWS, 2))
    z = np.where(np.stack([where > 0, where < 0], axis=1), truth[:, None], blind)
    return z, np.stack([where * 3 + 7, rng.normal(size=ROWS)], axis=1), clicks_of(truth, rng)


def test_hints_tell_a_gate_what_logits_cannot() -> None:
    """Which teacher is right stands in a hidden layer alone, whatever its scale: only one form sees it."""
    z, hint, label = two_worlds(np.random.default_rng(8))
    fits = {}
    for form in ("per_teacher", "full", "hints"):
        hints = [hint, hint[:, :1]] if form == "hints" else []
        options = GateOptions(form=form, hints_l2=0.01)
        fits[form] = fit_gate(z, label, rows_b=B, rows_c=C, options=options, hints=hints)

    losses = {form: fit.evidence["gate_ce_c"] for form, fit in fits.items()}
    assert losses["hints"] < min(losses["per_teacher"], losses["full"]) - 0.03
    assert fits["hints"].gate.form == "hints"
    right = fits["hints"].gate.gate_weights(z, [hint, hint[:, :1]])[:, 0]
    assert right[hint[:, 0] > 7].mean() > 0.8 > 0.2 > right[hint[:, 0] < 7].mean()


def test_a_stronger_l2_keeps_a_gate_of_hints_nearer_to_the_average() -> None:
    """Hundreds of numbers on a third of the validation rows would otherwise remember them."""
    z, hint, label = two_worlds(np.random.default_rng(8))

    def spread(l2: float) -> float:
        options = GateOptions(form="hints", hints_l2=l2)
        gate = fit_gate(z, label, rows_b=B, rows_c=C, options=options, hints=[hint, hint]).gate
        return float(gate.gate_weights(z, [hint, hint]).std())

    assert spread(0.0) > spread(0.1) > spread(10.0)


def test_a_full_gate_sees_every_teachers_logit() -> None:
    """Where the second teacher's logit says whether to trust the first, the diagonal cannot know."""
    rng = np.random.default_rng(9)
    truth = rng.normal(-1, 1.5, ROWS)
    tells = rng.normal(0, 1, ROWS)
    z = np.stack([np.where(tells > 0, truth, rng.normal(-1, 1.5, ROWS)), tells, truth + rng.normal(0, 1.5, ROWS)], 1)
    label = clicks_of(truth, rng)

    losses = {
        form: fit_gate(z, label, rows_b=B, rows_c=C, options=GateOptions(form=form)).evidence["gate_ce_c"]
        for form in ("static", "per_teacher", "full")
    }

    assert losses["full"] < losses["per_teacher"] - 0.005
    assert losses["full"] < losses["static"] - 0.005


def test_a_static_gate_weighs_every_row_alike() -> None:
    """One weight a teacher, whatever its logit."""
    rng = np.random.default_rng(10)
    truth = rng.normal(-1, 1.5, ROWS)
    z = np.stack([truth + rng.normal(0, 0.3, ROWS), truth + rng.normal(0, 2, ROWS)], axis=1)

    gate = fit_gate(z, clicks_of(truth, rng), rows_b=B, rows_c=C, options=GateOptions(form="static")).gate

    alpha = gate.gate_weights(z)
    assert np.ptp(alpha, axis=0).max() < 1e-12
    assert alpha[0, 0] > alpha[0, 1]


def test_stacking_is_logistic_regression_on_the_logits() -> None:
    """Its coefficients, one of them below 0, are those of Newton's method; its numbers are kept as a gate's."""
    rng = np.random.default_rng(11)
    truth, shared = rng.normal(-1, 1, ROWS), rng.normal(0, 1, ROWS)
    z = np.stack([truth + shared, shared + rng.normal(0, 0.2, ROWS), truth + rng.normal(0, 1, ROWS)], axis=1)
    label = clicks_of(truth, rng)

    gate = fit_gate(z, label, rows_b=B, rows_c=C, options=GateOptions(form="stacking")).gate

    x, start = np.concatenate([z[B], np.ones((len(B), 1))], axis=1), np.array([1 / 3, 1 / 3, 1 / 3, 0])
    theta = start
    for _ in range(30):
        p = sigmoid(x @ theta)
        curvature = (x * (p * (1 - p))[:, None]).T @ x + np.eye(4)  # the prior: as if each number had been seen once
        theta = theta - np.linalg.solve(curvature, x.T @ (p - label[B]) + theta - start)
    assert theta[1] < -0.1
    np.testing.assert_allclose(gate.ensemble_logit(z), np.c_[z, np.ones(ROWS)] @ theta, atol=1e-2)
    assert gate.signs == (1.0, -1.0, 1.0)
    np.testing.assert_allclose(gate.gate_weights(z)[0], np.abs(theta[:3]) / np.abs(theta[:3]).sum(), atol=1e-3)


def test_the_average_can_be_asked_for_and_the_fallback_forgone() -> None:
    """For comparisons: no gate at all, or the gate whatever part C says."""
    rng = np.random.default_rng(3)
    truth = rng.normal(-1.5, 1, ROWS)
    label = clicks_of(truth, rng)
    z = truth[:, None] + np.random.default_rng([4, 1]).normal(0, 0.7, (ROWS, 3))
    losing = next(
        draw
        for draw in range(20)
        if fit_gate(z[draw:], label[draw:], rows_b=B[:300], rows_c=C[: -draw or None]).gate.chosen == "average"
    )
    z, label, c = z[losing:], label[losing:], C[: -losing or None]

    average = fit_gate(z, label, rows_b=B[:300], rows_c=c, options=GateOptions(form="average"))
    kept = fit_gate(z, label, rows_b=B[:300], rows_c=c, options=GateOptions(fallback=False))

    assert (average.gate.form, average.gate.chosen) == ("average", "average")
    assert average.gate == average.average
    assert (kept.gate.form, kept.gate.chosen) == ("per_teacher", "gate")
    assert kept.evidence["gate_ce_c"] >= kept.evidence["average_ce_c"]


def test_a_gate_learned_on_training_rows_trusts_whoever_remembers_them() -> None:
    """What the paper probably did: a teacher that knows its training clicks by heart takes all the weight, and loses
    on part C. Scale and bias are still those of part B."""
    rng = np.random.default_rng(12)
    truth = rng.normal(-1, 1, ROWS + 4000)
    train, b, c = np.arange(4000), 4000 + B, 4000 + C
    label = clicks_of(truth, rng)
    honest = truth + rng.normal(0, 0.5, len(truth))
    remembers = np.where(np.arange(len(truth)) < 4000, np.where(label > 0, 3.0, -3.0), rng.normal(-1, 1, len(truth)))
    z = np.stack([honest, remembers], axis=1)

    def fitted(**options: Any) -> GateResult:
        return fit_gate(z, label, rows_b=b, rows_c=c, rows_train=train, options=GateOptions(**options))

    on_train = fitted(form="static", learns_on="train", fallback=False)

    assert on_train.gate.gate_weights(z)[0, 1] > 0.9
    assert fitted(form="static").gate.gate_weights(z)[0, 0] > 0.8
    assert on_train.evidence["gate_ce_c"] > on_train.evidence["average_ce_c"]
    assert fitted(form="static", learns_on="train").gate.chosen == "average"
    assert sigmoid(on_train.gate.ensemble_logit(z[b])).mean() == pytest.approx(label[b].mean(), abs=1e-6)
    unseen = np.stack([np.ones(len(truth), bool), np.arange(len(truth)) >= 4000], axis=1)
    told = fit_gate(
        z,
        label,
        rows_b=b,
        rows_c=c,
        rows_train=train,
        options=GateOptions(form="static", learns_on="train"),
        unseen=unseen,
    )
    assert told.evidence["gate_ce_b"] == pytest.approx(told.evidence["average_ce_b"])  # nobody to compare it with


def test_a_row_weighs_only_the_teachers_that_it_may() -> None:
    """The others' share goes to them, in proportion; one alone speaks alone."""
    gate = FORMS["per_teacher"]
    z = np.random.default_rng(13).normal(size=(2, 3))
    unseen = np.array([[True, False, True], [False, True, False]])

    alpha = gate.gate_weights(z, unseen=unseen)

    of_all = gate.gate_weights(z)
    np.testing.assert_allclose(alpha[0], [of_all[0, 0] / (1 - of_all[0, 1]), 0, of_all[0, 2] / (1 - of_all[0, 1])])
    np.testing.assert_allclose(alpha[1], [0, 1, 0])
    np.testing.assert_allclose(gate.ensemble_logit(z, unseen=unseen)[1], gate.scale * z[1, 1] + gate.bias)


def test_labels_out_of_sample_have_a_scale_of_their_own() -> None:
    """One noisy teacher of three spreads wider than the mean of three: on the scale of all its labels would be too
    sure of themselves. Neither what all teachers say nor which gate is chosen is touched by it."""
    rng = np.random.default_rng(15)
    truth = rng.normal(-1, 1, ROWS + 12_000)
    train, b, c = np.arange(12_000), 12_000 + B, 12_000 + C
    label = clicks_of(truth, rng)
    z = truth[:, None] + rng.normal(0, 1.5, (len(truth), 3))
    unseen = np.ones(z.shape, dtype=bool)
    unseen[train] = np.eye(3, dtype=bool)[rng.integers(0, 3, len(train))]
    unseen[train[:2000]] = True  # rows that are new to everybody
    some = train[2000:]

    def fitted(rows_train: np.ndarray | None) -> GateResult:
        options = GateOptions(form="static")
        return fit_gate(z, label, rows_b=b, rows_c=c, rows_train=rows_train, unseen=unseen, options=options)

    gate, without = fitted(train).gate, fitted(None).gate

    before, after = (g.ensemble_logit(z[some], unseen=unseen[some]) for g in (without, gate))
    assert fit_platt(before, label[some]).scale < 0.7
    assert fit_platt(after, label[some]).scale == pytest.approx(1, abs=5e-3)  # the prior holds it near 1 twice
    assert sigmoid(after).mean() == pytest.approx(label[some].mean(), abs=1e-6)
    assert replace(gate, scale_of_some=None) == without
    for rows in (train[:2000], b):
        np.testing.assert_array_equal(
            gate.ensemble_logit(z[rows], unseen=unseen[rows]), without.ensemble_logit(z[rows])
        )
    assert Gate.from_json(json.loads(json.dumps(gate.to_json()))) == gate


def test_a_gate_learned_with_its_teachers_is_scaled_and_decided_on_like_any() -> None:
    """Its own numbers stay; scale and bias come from part B, the decision from part C."""
    rng = np.random.default_rng(14)
    truth = rng.normal(-1.5, 1, ROWS)
    z = np.stack([truth, rng.normal(-1.5, 1, ROWS)], axis=1)
    label = clicks_of(truth, rng)
    good, bad = per_teacher((0.0, 0.0), (2.0, -2.0), 1.0, 0.0), per_teacher((0.0, 0.0), (-2.0, 2.0), 1.0, 0.0)

    kept, dropped = (fit_gate(z, label, rows_b=B, rows_c=C, learned=gate).gate for gate in (good, bad))

    assert (kept.matrix, kept.biases, kept.chosen) == (good.matrix, good.biases, "gate")
    assert sigmoid(kept.ensemble_logit(z[B])).mean() == pytest.approx(label[B].mean(), abs=1e-6)
    assert dropped.chosen == "average"


def test_by_the_distillation_loss_a_gate_picks_whoever_is_lowest_where_clicks_are_rare() -> None:
    """d CE(p_E, p_S) / d p_E = -z_S: where z_S < 0 a lower ensemble has a lower loss, right or wrong. Less the entropy
    it picks whoever the student is like. By clicks it picks who is right."""
    rng = np.random.default_rng(5)
    right = rng.normal(-2, 0.5, 6000)
    low, imitated = right - 1 + rng.normal(0, 0.2, 6000), right + rng.normal(0, 1, 6000)
    z = np.stack([right, low, imitated], axis=1)
    clicks = clicks_of(right, rng)

    def weights(learns_by: Any) -> np.ndarray:
        found = fit_gate(
            z,
            clicks,
            rows_b=np.arange(3000),
            rows_c=np.arange(3000, 6000),
            options=GateOptions(form="static", learns_by=learns_by, fallback=False),
            student_logit=imitated,
        )
        return found.gate.gate_weights(z)[0]

    assert weights("clicks").argmax() == 0
    assert weights("distillation").argmax() == 1
    assert weights("divergence").argmax() == 2


@pytest.mark.parametrize("form", ["average", "stacking"])
def test_a_gate_that_learns_nothing_learns_nothing_by_distillation(form: Any) -> None:
    with pytest.raises(ValueError, match=f"expected a softmax with weights to learn, got form {form}"):
        GateOptions(form=form, learns_by="divergence")


def test_a_gate_without_what_it_learns_from_says_so() -> None:
    z, label = np.zeros((10, 2)), np.array([0, 1] * 5, dtype=np.float32)
    with pytest.raises(ValueError, match="hints: expected those of each of 2 teachers, got 0"):
        fit_gate(z, label, rows_b=B[:10], rows_c=B[:10], options=GateOptions(form="hints"))
    with pytest.raises(ValueError, match="rows_train: expected"):
        fit_gate(z, label, rows_b=B[:10], rows_c=B[:10], options=GateOptions(learns_on="train"))
    with pytest.raises(ValueError, match="student_logit: expected what a gate imitates that learns by divergence"):
        fit_gate(z, label, rows_b=B[:10], rows_c=B[:10], options=GateOptions(learns_by="divergence"))


def test_platt_finds_the_scale_and_bias_that_made_the_clicks() -> None:
    """Known distortion, many rows: recovered; the mean prediction is the click rate."""
    rng = np.random.default_rng(7)
    z = rng.normal(-1, 1, 60_000)
    label = clicks_of(0.6 * z - 0.4, rng)

    platt = fit_platt(z, label)

    assert platt.scale == pytest.approx(0.6, abs=0.03)
    assert platt.bias == pytest.approx(-0.4, abs=0.04)
    assert sigmoid(platt.apply(z)).mean() == pytest.approx(label.mean(), abs=1e-6)
    assert cross_entropy(platt.apply(z), label) < cross_entropy(z, label)


def test_platt_on_separable_rows_stays_finite() -> None:
    """A tiny part whose clicks all score above its non-clicks must not give an infinite scale."""
    platt = fit_platt([-2.0, -1.0, 1.0, 2.0], [0, 0, 1, 1])

    assert np.isfinite([platt.scale, platt.bias]).all()
    assert platt.scale > 1


def test_platt_on_a_handful_of_clicks_does_not_believe_their_scale() -> None:
    """Ten clicks in 2,000 rows whose logits hardly differ: some samples alone say scale 5, or -5, and with it pctr far
    from the click rate on rows a little off. Held near 1, and right on the mean all the same."""
    rng = np.random.default_rng(3)
    scales = []
    for _ in range(20):
        z = rng.normal(-5.2, 0.2, 2000)
        label = np.zeros(2000)
        label[rng.permutation(2000)[:10]] = 1

        platt = fit_platt(z, label)

        scales.append(platt.scale)
        assert sigmoid(platt.apply(z)).mean() == pytest.approx(0.005, abs=1e-7)
        assert 0.5 < sigmoid(platt.apply(z + 0.5)).mean() / 0.005 < 3
    assert 0.4 < min(scales) < max(scales) < 1.6


def test_platt_needs_clicks_and_non_clicks() -> None:
    """A part with one kind of row says so instead of dividing by zero."""
    from training.errors import SplitError

    with pytest.raises(SplitError, match="clicks and non-clicks"):
        fit_platt([0.1, 0.2], [0, 0])
