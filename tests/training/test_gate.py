"""The gate: what it may learn from, and when it is not used."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from training.calibrate import fit_platt
from training.gate import Gate, GateModule, average_of, cross_entropy, fit_gate
from training.metrics import sigmoid

ROWS = 12_000
B = np.arange(0, ROWS // 2)
C = np.arange(ROWS // 2, ROWS)


def clicks_of(logit: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return (rng.random(len(logit)) < sigmoid(logit)).astype(np.float32)


def slow_ensemble(gate: Gate, z: list[float]) -> float:
    """scale * sum_i softmax(w_i z_i + b_i) z_i + bias, one row at a time."""
    scores = [np.exp(w * zi + b) for w, b, zi in zip(gate.weights, gate.biases, z, strict=True)]
    return gate.scale * sum(s / sum(scores) * zi for s, zi in zip(scores, z, strict=True)) + gate.bias


def test_the_ensemble_logit_is_its_formula_in_numpy_and_in_torch() -> None:
    """What is fitted, what is reported and what is exported are the same numbers."""
    gate = Gate((0.4, -1.2, 0.0), (0.3, 0.0, -0.9), 1.1, -0.2, "gate")
    z = np.random.default_rng(0).normal(size=(50, 3))

    in_torch, alpha = GateModule(gate)(torch.from_numpy(z.astype(np.float32)))

    np.testing.assert_allclose(gate.ensemble_logit(z), [slow_ensemble(gate, row) for row in z.tolist()])
    np.testing.assert_allclose(in_torch.detach(), gate.ensemble_logit(z), atol=1e-5)
    np.testing.assert_allclose(alpha.detach(), gate.gate_weights(z), atol=1e-6)
    np.testing.assert_allclose(gate.gate_weights(z).sum(axis=1), 1.0)


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


def test_weights_stay_where_float32_agrees_with_itself() -> None:
    """Clicks that a switch between teachers fits best, without bound, leave a gate of ordinary numbers."""
    rng = np.random.default_rng(3)
    right, wrong = rng.normal(size=4000), rng.normal(size=4000)
    # Wherever teacher 1 says more than 0, it alone is right; elsewhere teacher 2 alone is.
    teacher_logits = np.stack([np.where(right > 0, right, wrong), np.where(right > 0, wrong, right)], axis=1)
    teacher_logits[:, 0] = np.where(right > 0, np.abs(teacher_logits[:, 0]) + 0.5, -np.abs(teacher_logits[:, 0]))
    label = (rng.random(4000) < 1 / (1 + np.exp(-3 * right))).astype(np.float32)

    gate = fit_gate(teacher_logits, label, rows_b=np.arange(2000), rows_c=np.arange(2000, 4000)).gate

    assert gate.chosen == "gate"
    assert max(np.abs([*gate.weights, *gate.biases])) < 10
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
    gate = Gate((0.25, -1.5), (0.1, 0.2), 0.9, -0.01, "gate")

    assert Gate.from_json(gate.to_json()) == gate


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


def test_platt_needs_clicks_and_non_clicks() -> None:
    """A part with one kind of row says so instead of dividing by zero."""
    from training.errors import SplitError

    with pytest.raises(SplitError, match="clicks and non-clicks"):
        fit_platt([0.1, 0.2], [0, 0])
