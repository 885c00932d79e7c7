"""Training that runs away is stopped in the step where it shows, with the setting at fault and a value to try."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training.small_log import write_small_log
from training.data.encoded_log import EncodedLog, Part
from training.distillation.distill import DistillOptions, EnsembleTargets, FineTune, fit_student
from training.distillation.together import Cotrain, TeacherSpec, fit_together
from training.errors import DivergedError
from training.fit.checkpoint import Checkpoint
from training.fit.divergence import Divergence, Setting
from training.fit.loop import FitOptions, NetworkSpec, fit
from training.zoo import NETWORKS, options_of

DNN = NetworkSpec(network="dnn", options={"dim": 4, "hidden": [16, 8], "init_sd": 0.1})
OPTIONS = FitOptions(learning_rate=0.01, batch_rows=128, max_epochs=2)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> EncodedLog:
    return write_small_log(tmp_path_factory.mktemp("log"), rows=8000)


def train(log: EncodedLog, spec: NetworkSpec = DNN, place: str = "teachers.dnn", **changes: Any) -> None:
    options = OPTIONS.model_copy(update=changes)
    fit(log, spec, options, seed=1, train=[Part.TRAIN], valid=[Part.VALID_A], place=place)


def test_a_loss_that_leaves_the_numbers_is_reported(log: EncodedLog) -> None:
    """Network, place, epoch, step, the setting, its value, and a value to try, as --set takes it."""
    with pytest.raises(DivergedError) as refusal:
        train(log, learning_rate=1e30)

    said = str(refusal.value)
    assert said.startswith("network 'dnn' (teachers.dnn): the loss became ")
    assert "in epoch 1, step 2; lower learning_rate: it is 1e+30, try --set teachers.dnn.fit.learning_rate=0.01" in said


def test_outside_a_recipe_the_advice_is_a_value(log: EncodedLog) -> None:
    with pytest.raises(DivergedError, match=r"^network 'dnn': .*lower learning_rate: it is 1e\+30, try 0\.01$"):
        train(log, place="", learning_rate=1e30)


@pytest.mark.parametrize("name", ["dnn", "dcn", "dcnv2", "deepfm", "ipnn"])
def test_a_loss_far_above_its_start_is_reported_though_it_is_a_number(name: str, log: EncodedLog) -> None:
    """Left alone, these would end with every unit dead, at an AUC of .5, or with far worse weights, and no word."""
    spec = NetworkSpec(network=name, options=DNN.options)

    with pytest.raises(DivergedError, match=r"ran away, from 0\.\d+ at first to [\d.]+.* lower learning_rate: it is 2"):
        train(log, spec, place="", learning_rate=2.0)


@pytest.mark.parametrize("learning_rate", [0.0001, 0.01, 0.1])
@pytest.mark.parametrize("name", NETWORKS)
def test_training_that_only_wavers_goes_on(name: str, learning_rate: float, log: EncodedLog) -> None:
    """Up to a rate ten times too high for most, no network here is stopped."""
    spec = NetworkSpec(network=name, options={k: v for k, v in DNN.options.items() if k in options_of(name)})

    train(log, spec, learning_rate=learning_rate)


def test_a_start_that_is_no_number_is_the_inits_fault(log: EncodedLog) -> None:
    """No step has been taken, so no learning rate is to blame."""
    spec = NetworkSpec(network="fm", options={"dim": 4, "init_sd": 1e30})

    with pytest.raises(
        DivergedError, match=r"step 1; lower init_sd: it is 1e\+30, try .*teachers.dnn.options.init_sd=0.01"
    ):
        train(log, spec)


def test_a_student_and_its_fine_tuning_name_their_own_settings(log: EncodedLog) -> None:
    targets = EnsembleTargets(np.zeros(len(log)))
    wild = DistillOptions(learning_rate=1e30, batch_rows=128)
    tuned = DistillOptions(batch_rows=128, fine_tune=FineTune(epochs=1, learning_rate=1e30))

    for options, setting in ((wild, "student.fit.learning_rate"), (tuned, "student.fit.fine_tune.learning_rate")):
        with pytest.raises(DivergedError, match=rf"try --set {setting}=0.01"):
            fit_student(log, DNN, options, targets, seed=1, train=[Part.TRAIN], valid=None, epochs=1, place="student")


def test_of_networks_that_train_together_the_one_at_fault_is_named(log: EncodedLog) -> None:
    """The student's loss is no number either, by then: it was shown one."""
    teachers = {
        "tame": TeacherSpec(DNN, OPTIONS, "teachers.tame"),
        "wild": TeacherSpec(DNN, OPTIONS.model_copy(update={"learning_rate": 1e30}), "teachers.wild"),
    }

    with pytest.raises(DivergedError, match=r"\(teachers\.wild\).*--set teachers\.wild\.fit\.learning_rate=0.01"):
        fit_together(
            log,
            Cotrain(kind="cotrain"),
            teachers,
            DNN,
            DistillOptions(batch_rows=128),
            form="static",
            seed=1,
            train=[Part.TRAIN],
            valid=[Part.VALID_A],
        )


def test_a_fit_that_ran_away_leaves_nothing_to_go_on_from(log: EncodedLog, tmp_path: Path) -> None:
    """From there it would run away again."""
    checkpoint = Checkpoint(tmp_path / "checkpoint.pt", share_of_time=1e9, within_epoch_seconds=0)

    with pytest.raises(DivergedError):
        fit(
            log,
            DNN,
            OPTIONS.model_copy(update={"learning_rate": 2.0}),
            seed=1,
            train=[Part.TRAIN],
            valid=[Part.VALID_A],
            checkpoint=checkpoint,
        )

    assert not list(tmp_path.iterdir())


def test_hints_may_grow_from_nothing() -> None:
    """Their loss begins near zero where hidden layers do, and no multiple of that means anything."""
    growing = Divergence(lambda figure: Setting("dnn", "student", 0.01))

    for step in range(1, 100):
        figures = {"train_loss": float(step), "train_hint": float(step)}
        assert growing.after_step(figures, 1, step) is None
    assert growing.after_step({"train_loss": float("nan"), "train_hint": 1.0}, 1, 100) is not None


def test_logits_to_be_met_may_grow_while_their_teachers_learn() -> None:
    """Finished teachers stand still: then a squared distance that grows has run away."""
    for figures, is_told in (({"train_mse": 1.0, "ensemble_loss": 0.5}, False), ({"train_mse": 1.0}, True)):
        growing = Divergence(lambda figure: Setting("dnn", "student", 0.01))
        told = [growing.after_step({"train_loss": 0.1 * step, **figures}, 1, step) for step in range(1, 100)]
        assert any(told) == is_told


def test_beside_hints_the_teachers_are_watched_all_the_same() -> None:
    """Hints excuse nobody but the loss that they are a part of."""
    for figure in ("teacher_loss_1", "ensemble_loss"):
        running = Divergence(lambda figure: Setting("dcn", "teachers.dcn", 0.01))
        told = [
            running.after_step({"train_loss": 1.0, "train_hint": 1.0, figure: 0.7 * 1.2**step}, 1, step)
            for step in range(1, 60)
        ]

        first = next(error for error in told if error is not None)
        assert "ran away" in str(first)
