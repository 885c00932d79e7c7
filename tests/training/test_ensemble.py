"""Stored answers of teachers: what a student is shown of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training.small_log import write_small_log
from training.distillation.ensemble import TeacherOutputs, store_hints
from training.distillation.gate import Gate
from training.fit.loop import NetworkSpec
from training.fit.metrics import sigmoid

ROWS = 200
GATE = Gate(
    "per_teacher", ((0.4, 0.0, 0.0), (0.0, -0.5, 0.0), (0.0, 0.0, 0.2)), (0.3, 0.0, -0.3), (1.0,) * 3, 1.3, -0.2, "gate"
)


@pytest.fixture
def outputs() -> TeacherOutputs:
    """Three teachers; of the first half of the rows, each is new to one of them."""
    rng = np.random.default_rng(0)
    new = np.ones((ROWS, 3), dtype=bool)
    new[: ROWS // 2] = np.eye(3, dtype=bool)[rng.integers(0, 3, ROWS // 2)]
    hints = tuple(rng.normal(size=(ROWS, width)).astype(np.float16) for width in (4, 2, 3))
    return TeacherOutputs(rng.normal(-1, 1, (ROWS, 3)).astype(np.float32), hints, new)


def targets(outputs: TeacherOutputs, **changes: object):
    default = {"aggregate": "logits", "temperature": 1.0, "out_of_sample": False, "with_hints": False}
    return outputs.targets(GATE, **(default | changes))


def test_a_student_imitates_the_ensembles_logit_after_its_scale_and_bias(outputs: TeacherOutputs):
    found = targets(outputs)

    np.testing.assert_array_equal(found.logit, GATE.ensemble_logit(outputs.logits).astype(np.float32))
    assert found.hints == ()


def test_out_of_sample_each_row_is_labelled_by_those_it_is_new_to(outputs: TeacherOutputs):
    """One teacher alone says its own logit, scaled; rows new to all are labelled as ever."""
    found = targets(outputs, out_of_sample=True)

    assert outputs.unseen is not None
    alone = outputs.logits[: ROWS // 2][outputs.unseen[: ROWS // 2]]
    np.testing.assert_allclose(found.logit[: ROWS // 2], 1.3 * alone - 0.2, rtol=1e-5)
    np.testing.assert_array_equal(found.logit[ROWS // 2 :], targets(outputs).logit[ROWS // 2 :])


def test_out_of_sample_labels_of_some_have_their_own_scale_and_bias(outputs: TeacherOutputs):
    """As logits, and as a mean of probabilities."""
    gate = replace(GATE, scale_of_some=(0.7, 0.1))
    assert outputs.unseen is not None
    alone = outputs.logits[: ROWS // 2][outputs.unseen[: ROWS // 2]]

    for aggregate in ("logits", "probabilities"):
        found, all_of_them = (
            outputs.targets(gate, aggregate=aggregate, temperature=1.0, out_of_sample=new, with_hints=False).logit
            for new in (True, False)
        )
        np.testing.assert_allclose(found[: ROWS // 2], 0.7 * alone + 0.1, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(found[ROWS // 2 :], all_of_them[ROWS // 2 :])


@pytest.mark.parametrize("tau", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("out_of_sample", [False, True])
def test_a_mean_of_probabilities_is_taken_after_scale_and_bias(
    outputs: TeacherOutputs, tau: float, out_of_sample: bool
):
    """sigmoid(target / tau) = sum_i alpha_i sigmoid((scale z_i + bias) / tau)."""
    found = targets(outputs, aggregate="probabilities", temperature=tau, out_of_sample=out_of_sample)

    alpha = GATE.gate_weights(outputs.logits, unseen=outputs.unseen if out_of_sample else None)
    mean = (alpha * sigmoid((1.3 * outputs.logits - 0.2) / tau)).sum(axis=1)
    np.testing.assert_allclose(sigmoid(found.logit / tau), mean, rtol=1e-5)


def test_hints_come_with_the_weights_of_their_teachers(outputs: TeacherOutputs):
    """Of the rows asked for, in float32, as the loss wants them."""
    found = targets(outputs, with_hints=True, out_of_sample=True).of(np.array([5, 150]))

    alpha = GATE.gate_weights(outputs.logits, unseen=outputs.unseen)[[5, 150]]
    assert found.gate_weights is not None
    np.testing.assert_allclose(found.gate_weights, alpha, rtol=1e-6)
    assert [hint.dtype for hint in found.hints] == [torch.float32] * 3
    np.testing.assert_array_equal(found.hints[2], outputs.hints[2][[5, 150]])


def test_pieces_are_put_together_as_the_whole(outputs: TeacherOutputs, monkeypatch: pytest.MonkeyPatch):
    """Logs larger than memory are weighed chunk by chunk."""
    whole = outputs.gate_weights(GATE, out_of_sample=True), outputs.ensemble_logit(GATE, out_of_sample=True)
    monkeypatch.setattr("training.distillation.ensemble.CHUNK_ROWS", 37)

    np.testing.assert_array_equal(outputs.gate_weights(GATE, out_of_sample=True), whole[0])
    np.testing.assert_array_equal(outputs.ensemble_logit(GATE, out_of_sample=True), whole[1])


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_hints_are_stored_by_row_and_read_from_the_disk(tmp_path: Path, dtype: str):
    """What the network gives for each row, to the precision asked for; read back without being loaded."""
    log = write_small_log(tmp_path / "log", rows=300)
    torch.manual_seed(0)
    network = NetworkSpec(network="dnn", options={"dim": 4, "hidden": [8, 5], "init_sd": 0.5}).build(log.fields)
    for folder in ("teacher", "hints"):
        (tmp_path / folder).mkdir()
    np.save(tmp_path / "teacher" / "logit.npy", np.zeros(300, dtype=np.float32))
    np.save(tmp_path / "teacher" / "seen.npy", np.zeros(300, dtype=bool))

    assert store_hints(tmp_path / "hints" / "hint.npy", log, network, dtype) == 5
    found = TeacherOutputs.read({"dnn": tmp_path / "teacher"}, {"dnn": tmp_path / "hints"})

    with torch.no_grad():
        hint = network(log.batch(np.arange(300)))[1]
    (stored,) = found.hints
    assert isinstance(stored, np.memmap)
    assert stored.dtype == dtype
    np.testing.assert_allclose(stored, hint, rtol=1e-3 if dtype == "float16" else 1e-5, atol=1e-6)


def test_a_hint_beyond_float16_is_cut_off_there(tmp_path: Path):
    """Infinity would make the student's loss infinite."""
    log = write_small_log(tmp_path / "log", rows=50)
    network = NetworkSpec(network="dnn", options={"dim": 2, "hidden": [3]}).build(log.fields)
    with torch.no_grad():
        network.first.bias.fill_(1e6)

    store_hints(tmp_path / "hint.npy", log, network, "float16")

    np.testing.assert_array_equal(np.load(tmp_path / "hint.npy"), np.full((50, 3), 65504, dtype=np.float16))


def test_a_network_without_a_hidden_layer_has_no_hints_to_store(tmp_path: Path):
    log = write_small_log(tmp_path / "log", rows=50)

    with pytest.raises(ValueError, match="expected a network with a hidden layer"):
        store_hints(tmp_path / "hint.npy", log, NetworkSpec(network="lr").build(log.fields), "float16")
