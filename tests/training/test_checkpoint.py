"""A fit that is killed goes on where it stood and ends with the same bits, whatever is trained and however."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.training.small_log import write_small_log
from training.data.encoded_log import EncodedLog, Part
from training.distillation.distill import DistillOptions, EnsembleTargets, FineTune, fit_student
from training.distillation.together import Cotrain, Epochs, Mutual, TeacherSpec, TogetherResult, fit_together
from training.fit.checkpoint import Checkpoint
from training.fit.loop import FitOptions, FitResult, NetworkSpec, fit
from training.pipeline.plan import plan
from training.pipeline.stages import ROOT
from training.recipe import load_recipe

DNN = NetworkSpec(network="dnn", options={"dim": 4, "hidden": [8], "init_sd": 0.1, "dropout": 0.2})
DEEPFM = NetworkSpec(network="deepfm", options={"dim": 2, "hidden": [6], "init_sd": 0.1})
TEACHER = FitOptions(learning_rate=0.02, batch_rows=300, max_epochs=5, patience=2, averaged_steps=5)
STUDENT = DistillOptions(**TEACHER.model_dump(), kd_weight=0.5)

Fit = Callable[[EncodedLog, Any, Checkpoint | None], FitResult | TogetherResult]


class KilledError(Exception):
    """Stands for a kill: nothing after it is done."""


def targets(log: EncodedLog) -> EnsembleTargets:
    rng = np.random.default_rng(2)
    hints = (rng.normal(size=(len(log), 3)).astype(np.float32), rng.normal(size=(len(log), 4)).astype(np.float32))
    return EnsembleTargets(rng.normal(size=len(log)), np.full((len(log), 2), 0.5), hints)


def teacher(log: EncodedLog, progress: Any, checkpoint: Checkpoint | None) -> FitResult:
    return fit(
        log,
        DNN,
        TEACHER,
        seed=3,
        train=[Part.TRAIN],
        valid=[Part.VALID_A],
        progress=progress,
        checkpoint=checkpoint,
    )


def refit(log: EncodedLog, progress: Any, checkpoint: Checkpoint | None) -> FitResult:
    return fit(
        log, DNN, TEACHER, seed=3, train=[Part.TRAIN], valid=None, epochs=3, progress=progress, checkpoint=checkpoint
    )


def student(log: EncodedLog, progress: Any, checkpoint: Checkpoint | None) -> FitResult:
    options = STUDENT.model_copy(
        update={"losses": {"soft": 1.0, "hint": 0.1}, "fine_tune": FineTune(epochs=2, learning_rate=0.001)}
    )
    return fit_student(
        log,
        DNN,
        options,
        targets(log),
        seed=3,
        train=[Part.TRAIN],
        valid=[Part.VALID_A],
        progress=progress,
        checkpoint=checkpoint,
    )


def together(scheme: Cotrain | Mutual, **when: Any) -> Fit:
    losses = {"losses": {"soft": 1.0, "hint": 0.1}} if scheme.kind == "cotrain" else {}

    def run(log: EncodedLog, progress: Any, checkpoint: Checkpoint | None) -> TogetherResult:
        return fit_together(
            log,
            scheme,
            {"dnn": TeacherSpec(DNN, TEACHER), "deepfm": TeacherSpec(DEEPFM, TEACHER)},
            DNN,
            STUDENT.model_copy(update=losses),
            form="hints" if losses else "per_teacher",
            seed=3,
            train=[Part.TRAIN],
            **when,
            progress=progress,
            checkpoint=checkpoint,
        )

    return run


FITS: dict[str, Fit] = {
    "a teacher with dropout": teacher,
    "a refit": refit,
    "a student of hints, fine-tuned": student,
    "co-training": together(Cotrain(kind="cotrain"), valid=[Part.VALID_A]),
    "mutual learning": together(Mutual(kind="mutual"), valid=[Part.VALID_A]),
    "a refit of co-training": together(Cotrain(kind="cotrain"), valid=None, epochs=Epochs(2, 3)),
}


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> EncodedLog:
    return write_small_log(tmp_path_factory.mktemp("log"), rows=2500)


def eager(path: Path) -> Checkpoint:
    """Writes after every batch and every epoch."""
    return Checkpoint(path, share_of_time=1e9, within_epoch_seconds=0)


def kill_after(calls: int) -> Any:
    left = calls

    def progress(done: float, total: float, note: str = "") -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise KilledError

    return progress


def assert_same(one: Any, other: Any) -> None:
    """Equal to the last bit: weights, epochs, histories and gates."""
    if isinstance(one, TogetherResult):
        assert one.gate == other.gate
        assert list(one.teachers) == list(other.teachers)
        for name, found in one.teachers.items():
            assert_same(found, other.teachers[name])
        assert_same(one.student, other.student)
        return
    assert (one.epochs, one.history) == (other.epochs, other.history)
    assert one.state.keys() == other.state.keys()
    for name, tensor in one.state.items():
        assert torch.equal(tensor, other.state[name]), name


@pytest.mark.parametrize("kind", FITS)
def test_a_fit_killed_again_and_again_ends_as_one_that_was_left_alone(kind: str, log: EncodedLog, tmp_path: Path):
    """Within an epoch, between two, while fine-tuning: weights, history and epochs agree to the bit."""
    run, path = FITS[kind], tmp_path / "checkpoint.pt"
    unbroken = run(log, None, None)

    kills = 0
    while True:
        try:
            found = run(log, kill_after(7), eager(path))
            break
        except KilledError:
            kills += 1
            assert kills < 50

    assert kills >= 2
    assert_same(found, unbroken)


def test_writing_checkpoints_changes_nothing(log: EncodedLog, tmp_path: Path):
    assert_same(teacher(log, None, eager(tmp_path / "checkpoint.pt")), teacher(log, None, None))


def test_a_finished_fit_is_not_trained_again(log: EncodedLog, tmp_path: Path):
    """Who is killed while scoring, after the last epoch, has only that to do again."""
    checkpoint = eager(tmp_path / "checkpoint.pt")
    first = teacher(log, None, checkpoint)

    assert_same(teacher(log, kill_after(1), checkpoint), first)  # one call says that it has ended


@pytest.mark.parametrize("damage", ["cut off", "no checkpoint at all", "another fit's", "no state of ours"])
def test_a_checkpoint_that_is_no_use_is_passed_over_with_a_warning(
    damage: str, log: EncodedLog, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    path = tmp_path / "checkpoint.pt"
    teacher(log, None, eager(path))
    whole = path.read_bytes()
    if damage == "cut off":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "no checkpoint at all":
        path.write_text("hello")
    elif damage == "no state of ours":
        torch.save([1, 2], path)
    else:
        student(log, None, eager(path))

    found = teacher(log, None, Checkpoint(path))

    assert_same(found, teacher(log, None, None))
    assert "anew" in caplog.text


@pytest.mark.parametrize("fault", ["a file where a folder is wanted", "full"])
def test_a_disk_that_takes_no_more_ends_no_training(
    fault: str, log: EncodedLog, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    wanted = teacher(log, None, None)
    (tmp_path / "folder").mkdir() if fault == "full" else (tmp_path / "folder").write_text("in the way")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        if fault == "full":  # every file, here: writing fails after so many bytes
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        found = teacher(log, None, eager(tmp_path / "folder" / "checkpoint.pt"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    assert_same(found, wanted)
    assert "no checkpoint could be written" in caplog.text
    assert fault != "full" or not list((tmp_path / "folder").iterdir())


def test_writing_takes_a_bounded_share_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A write that took a second is followed by none for 50; within an epoch, by none for two minutes."""
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    checkpoint = Checkpoint(tmp_path / "checkpoint.pt", share_of_time=0.02, within_epoch_seconds=120)

    def slow_save(*arguments: Any) -> None:
        nonlocal now
        now += 1

    monkeypatch.setattr(torch, "save", slow_save)
    assert checkpoint.is_due(within_epoch=False)
    checkpoint.expect(400_000_000)  # two seconds, as long as nothing else is known
    now += 99
    assert not checkpoint.is_due(within_epoch=False)
    now += 2
    assert checkpoint.is_due(within_epoch=False)
    assert not checkpoint.is_due(within_epoch=True)
    checkpoint.save("", {})
    now += 49
    assert not checkpoint.is_due(within_epoch=False)
    now += 2
    assert checkpoint.is_due(within_epoch=False)
    assert not checkpoint.is_due(within_epoch=True)
    now += 70
    assert checkpoint.is_due(within_epoch=True)


PROGRAM = """
    import os
    import signal
    import sys
    from pathlib import Path
    from training.pipeline.plan import plan
    from training.recipe import load_recipe
    from training.pipeline.stages import run_steps

    class Watcher:
        def cached(self, step): pass
        def started(self, step): pass
        def advanced(self, step, done, total, note):
            if step.stage != "teachers": return
            print(done / total, note, flush=True)
            if "dies" in sys.argv and list(runs.glob("teachers/.building-*/under-way/checkpoint.pt")):
                os.kill(os.getpid(), signal.SIGKILL)  # from within: a parent that looks on may be too late or too early
        def finished(self, step, seconds): pass

    if __name__ == "__main__":
        runs = Path(sys.argv[1])
        steps = plan(load_recipe(sys.argv[2]), [1], runs=runs, data=None)
        run_steps([steps.seeds[0].fits["teachers.dnn"].first], runs, workers=1, watcher=Watcher())
"""
FIT = {"learning_rate": 0.01, "batch_rows": 64, "max_epochs": 40, "patience": 40}  # time for a checkpoint
SMALL = {"network": "dnn", "options": {"dim": 2, "hidden": [8], "init_sd": 0.1}}
RECIPE = {
    "name": "tiny",
    "source": {"kind": "synthetic", "seed": 0, "rows": 5000, "days": 4},
    "split": {"by": "time", "last_days": {"valid": 1, "test": 1}},
    "teachers": {"dnn": SMALL | {"fit": FIT}},
    "student": SMALL | {"fit": {"max_epochs": 8}},
    "control": SMALL | {"fit": {"max_epochs": 8}},
}


def test_a_run_that_sigkill_ends_goes_on_where_its_fit_stood(tmp_path: Path):
    """Of a real process, through the steps of a run: the folder of the fit is, byte for byte, the same."""
    script, recipe, runs = tmp_path / "program.py", tmp_path / "tiny.json", tmp_path / "runs"
    script.write_text(textwrap.dedent(PROGRAM))
    recipe.write_text(json.dumps(RECIPE))

    def run(*how: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(script), str(runs), str(recipe), *how]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, timeout=200)

    assert run("dies").returncode == -signal.SIGKILL
    assert list(runs.glob("teachers/.building-*/under-way/checkpoint.pt"))

    again = run()

    assert again.returncode == 0
    first = float(again.stdout.split()[0])
    assert 1 / 40 < first < 1, "it went on after an epoch that was finished and written, not from the start"
    step = plan(load_recipe(str(recipe)), [1], runs=runs, data=None).seeds[0].fits["teachers.dnn"].first
    unbroken = tmp_path / "unbroken"
    unbroken.mkdir()
    prepared = step.needs["prepared"].folder(runs)
    step.run(unbroken, lambda done, total, note="": None, **step.arguments, prepared=prepared, places=step.places)
    for name in ("weights.npz", "fit.json", "logit.npy", "seen.npy"):
        assert (step.folder(runs) / name).read_bytes() == (unbroken / name).read_bytes(), name
    assert len(list(step.folder(runs).iterdir())) == 4
    assert not list(runs.glob("*/.building-*"))
