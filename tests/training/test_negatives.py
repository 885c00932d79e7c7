"""Trained on a share of the non-clicks, every model speaks of all of them again: exactly, and inside its graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.graph import LOGIT, PCTR
from tests.training.served import silent
from tests.training.small_log import write_small_log
from tests.training.test_choices import planned, run
from training.data.chance import uniform
from training.data.encoded_log import EncodedLog, Part
from training.data.prepare import load_encoder
from training.distillation.calibrate import fit_platt
from training.distillation.distill import DistillOptions, EnsembleTargets, fit_student
from training.distillation.gate import GateOptions, fit_gate
from training.errors import SplitError
from training.export.bundles import graph, wiring_of
from training.export.parity import log_feed
from training.fit.loop import FitOptions, NetworkSpec, fit, score
from training.fit.metrics import sigmoid
from training.fit.negatives import EVERY_ROW, Negatives
from training.pipeline.steps import read_json

DNN = NetworkSpec(network="dnn", options={"dim": 4, "hidden": [16, 8], "init_sd": 0.1})
QUICK = FitOptions(learning_rate=0.02, batch_rows=64, max_epochs=8)
TENTH = Negatives(keep=0.1)

probabilities = st.floats(1e-6, 1 - 1e-6)
shares = st.floats(1e-3, 1.0)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> EncodedLog:
    return write_small_log(tmp_path_factory.mktemp("log"), rows=20_000)


@given(p=probabilities, w=shares)
def test_the_correction_undoes_what_sampling_does_to_a_probability(p: float, w: float):
    """Bayes among kept rows gives p' = p / (p + w (1 - p)); adding ln w to its logit gives p again, whatever p."""
    sampled = p / (p + w * (1 - p))

    corrected = sigmoid(np.log(sampled) - np.log1p(-sampled) + Negatives(keep=w).correction)

    assert corrected == pytest.approx(sampled / (sampled + (1 - sampled) / w), rel=1e-9)
    assert corrected == pytest.approx(p, rel=1e-6)


def test_every_click_is_kept_and_the_share_of_the_others(log: EncodedLog):
    rows = log.rows([Part.TRAIN])
    kept = TENTH.of(log, rows)

    clicks, others = log.label[rows] > 0, log.label[kept] == 0
    assert set(rows[clicks]) <= set(kept)
    assert others.sum() / (~clicks).sum() == pytest.approx(0.1, abs=4 * np.sqrt(0.09 / (~clicks).sum()))
    assert list(kept) == sorted(kept)


def test_a_share_that_leaves_no_row_without_a_click_is_refused_by_name(log: EncodedLog):
    with pytest.raises(SplitError, match=r"train, .* \(negatives\.keep\): expected clicks and non-clicks"):
        fit(log, DNN, QUICK, seed=1, train=[Part.TRAIN], valid=[Part.VALID_A], negatives=Negatives(keep=1e-12))


def test_a_row_is_kept_or_not_whoever_asks(log: EncodedLog):
    """By the hash of its number: of part of the rows, those of the whole; another seed keeps others."""
    rows = log.rows([Part.TRAIN])
    kept = TENTH.of(log, rows)

    assert list(TENTH.of(log, rows[5000:])) == [row for row in kept if row >= rows[5000]]
    assert EVERY_ROW.of(log, rows) is rows
    another = Negatives(keep=0.1, seed=1).of(log, rows)
    assert len(set(kept) & set(another) - set(rows[log.label[rows] > 0])) < 0.2 * len(kept)


def test_rows_that_a_share_of_training_kept_are_sampled_like_any(log: EncodedLog):
    """Drawn by one hash with one seed, those of `split.train_share` would all be kept: the correction would lie."""
    rows = log.rows([Part.TRAIN])
    others = rows[log.label[rows] == 0]
    shared = others[uniform(others.astype(np.uint64), 0) < 0.3]

    assert len(TENTH.of(log, shared)) / len(shared) == pytest.approx(0.1, abs=4 * np.sqrt(0.09 / len(shared)))


def test_a_network_is_calibrated_on_all_rows_though_it_saw_a_tenth(log: EncodedLog):
    """Without the correction it says three times too many clicks."""
    result = fit(log, DNN, QUICK, seed=1, train=[Part.TRAIN], valid=[Part.VALID_A], negatives=TENTH)
    network = DNN.build(log.fields)
    network.load_state_dict(result.state)
    rows = log.rows([Part.TEST])
    logit, truth = score(log, network, rows), log.truth[rows].mean()

    assert sigmoid(logit + TENTH.correction).mean() / truth == pytest.approx(1, abs=0.1)
    assert sigmoid(logit).mean() / truth > 2
    assert result.history[-1]["valid_logloss"] < 0.62, "measured as it serves"


def test_scale_and_bias_see_logits_as_they_serve():
    """They are those of plain Platt scaling, less the constant: behind it stands the correction."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=5000)
    y = (rng.random(5000) < sigmoid(0.7 * z - 2)).astype(float)

    plain, corrected = fit_platt(z, y), fit_platt(z, y, correction=TENTH.correction)

    assert corrected.scale == pytest.approx(plain.scale, abs=1e-6)
    assert corrected.bias + TENTH.correction == pytest.approx(plain.bias, abs=1e-6)


@pytest.mark.parametrize("form", ["average", "static", "per_teacher", "full", "stacking"])
def test_a_gate_of_sampled_teachers_is_fitted_on_rows_that_were_not(form: Any):
    """Its ensemble, corrected, is calibrated on validation rows, and it is sober enough to be its teachers' mean."""
    rng = np.random.default_rng(1)
    truth = rng.normal(-2, 1, size=8000)
    label = (rng.random(8000) < sigmoid(truth)).astype(np.float32)
    noisy = truth[:, None] + rng.normal(0, 0.5, size=(8000, 3)) - TENTH.correction  # among kept rows
    b, c = np.arange(4000), np.arange(4000, 8000)

    found = fit_gate(noisy, label, rows_b=b, rows_c=c, options=GateOptions(form=form), correction=TENTH.correction)

    served = found.gate.ensemble_logit(noisy) + TENTH.correction
    assert sigmoid(served[b]).sum() / label[b].sum() == pytest.approx(1, abs=1e-3)
    assert found.gate.scale == pytest.approx(1, abs=0.15)
    assert abs(found.average.bias) < 0.5, "the sampling is undone by the correction, not by the bias"


@pytest.mark.parametrize("form", ["static", "per_teacher", "full", "stacking"])
def test_a_gate_that_learns_on_training_rows_learns_among_kept_ones(form: Any):
    """Those are sampled as its teachers' were: only what is fitted on validation rows knows of the correction."""
    rng = np.random.default_rng(2)
    truth = rng.normal(-2, 1, size=6000)
    label = (rng.random(6000) < sigmoid(truth)).astype(np.float32)
    z = truth[:, None] + rng.normal(0, [0.3, 1.5], size=(6000, 2))
    train, b, c = np.arange(2000), np.arange(2000, 4000), np.arange(4000, 6000)
    options = GateOptions(form=form, learns_on="train", fallback=False)

    plain, corrected = (
        fit_gate(z, label, rows_b=b, rows_c=c, rows_train=train, options=options, correction=correction).gate
        for correction in (0.0, TENTH.correction)
    )

    assert (plain.matrix, plain.biases) == (corrected.matrix, corrected.biases)
    assert plain.bias != corrected.bias


def test_a_student_meets_its_teacher_in_one_world(log: EncodedLog):
    """Of a teacher that knows the truth, a student among kept rows learns the truth about all."""
    truth = log.truth.astype(np.float64)
    among_kept = np.log(truth) - np.log1p(-truth) - TENTH.correction
    options = DistillOptions(learning_rate=0.02, batch_rows=64, max_epochs=20, kd_weight=0.9)

    result = fit_student(
        log,
        DNN,
        options,
        EnsembleTargets(among_kept),
        seed=1,
        train=[Part.TRAIN],
        valid=[Part.VALID_A],
        negatives=TENTH,
    )

    assert min(row["valid_kl"] for row in result.history) < 0.01


@pytest.mark.parametrize("scheme", ["pretrain", "cotrain", "mutual"])
def test_every_model_of_a_run_is_calibrated_on_traffic_that_was_not_sampled(scheme: str, runs: Path):
    """Teachers, ensemble, student and controls, stopped and refitted; a fifth of the non-clicks trained them."""
    steps, facts = run(runs, "negatives.keep=0.2", f"scheme={scheme}")

    flat = {name: found for name, found in facts["test"].items() if name != "teachers"} | facts["test"]["teachers"]
    ratios = {name: found["predicted_over_actual"] for name, found in flat.items()}
    assert set(ratios) >= {"student", "ensemble", "average", "control_train", "control_train_valid", "deepfm", "dnn"}
    assert all(0.7 < ratio < 1.4 for ratio in ratios.values()), ratios  # sampled: near 3
    scales = [facts["platt"][name] for name in ("student", "ensemble", "control_train")]
    assert all(abs(bias) < 1 for _, bias in scales), scales
    log = EncodedLog.open(steps.gate.needs["prepared"].folder(runs) / "log")
    for step in (step for teacher in steps.teachers.values() for step in (teacher.first, teacher.again)):
        seen = np.load(step.folder(runs) / "seen.npy")
        assert log.label[seen].mean() > 2 * log.label.mean()


def test_the_exported_graph_ends_with_the_correction(runs: Path, tmp_path: Path):
    """p = p' / (p' + (1 - p') / w) of the calibrated p', by ONNX Runtime, on rows of the log."""
    steps, _ = run(runs, "negatives.keep=0.2")
    prepared = steps.gate.needs["prepared"].folder(runs)

    graph(
        tmp_path,
        silent,
        prepared=prepared,
        calibration="student",
        keep=0.2,
        platt=steps.platt.folder(runs),
        **{"network:student": steps.fits["student"].again.folder(runs)},
    )

    log = EncodedLog.open(prepared / "log")
    rows = log.rows([Part.TEST])
    feed = log_feed(log, wiring_of(load_encoder(prepared)), rows)
    logit, pctr = onnxruntime.InferenceSession(tmp_path / "model.onnx").run([LOGIT, PCTR], feed)
    scale, bias = read_json(steps.platt.folder(runs) / "platt.json")["student"]
    sampled = sigmoid(scale * logit.astype(np.float64) + bias)
    np.testing.assert_allclose(pctr, sampled / (sampled + (1 - sampled) / 0.2), atol=1e-6)
    np.testing.assert_allclose(logit, np.load(steps.fits["student"].again.folder(runs) / "logit.npy")[rows], atol=1e-5)


def test_who_keeps_every_row_has_the_steps_of_before(tmp_path: Path):
    """Nothing cached is lost to an option that is not used."""
    assert planned(tmp_path, "negatives.keep=1.0").export.key == planned(tmp_path).export.key
    assert planned(tmp_path, "negatives.keep=0.5").seeds[0].gate.key != planned(tmp_path).seeds[0].gate.key


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")
