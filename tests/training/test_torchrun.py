"""A run of several processes is the run of one: the same answers, one writer, and an end when one of them dies."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from tests.training.test_stages import Notes
from training.pipeline.plan import Plan, plan
from training.pipeline.stages import ROOT, Step, in_order, run_steps
from training.recipe import load_recipe

SMALL = {"dim": 2, "hidden": [8], "init_sd": 0.1}
FIT = {"learning_rate": 0.01, "batch_rows": 100, "max_epochs": 2}
RECIPE = {
    "name": "tiny",
    "source": {"kind": "synthetic", "seed": 0, "rows": 3000, "days": 4},
    "split": {"by": "time", "last_days": {"valid": 1, "test": 1}},
    "teachers": {
        "deepfm": {"network": "deepfm", "options": SMALL, "fit": FIT | {"embedding_l2": 1e-3}},
        "lr": {"network": "lr", "fit": FIT},
    },
    "student": {"network": "dnn", "options": SMALL, "fit": FIT | {"losses": {"soft": 1.0, "mse": 0.2}}},
    "control": {"network": "dnn", "options": SMALL, "fit": FIT | {"max_epochs": 3, "patience": 3}},
}
PROGRAM = """
    import os, signal, sys
    from pathlib import Path
    from training import parallel, torchrun
    from training.cli import listen_to_signals, main
    from training.pipeline.plan import plan
    from training.recipe import load_recipe
    from training.pipeline.stages import run_steps
    from tests.training.test_stages import Notes
    from training.errors import TrainingError

    runs, recipe, target, *how = sys.argv[1:]
    if torchrun.is_follower():
        if "dies" in how:
            calls, really = [], parallel.sum_gradients
            def sum_gradients(weights):
                calls.append(1)
                if len(calls) == 30:  # in the second epoch
                    os.kill(os.getpid(), signal.SIGKILL)
                really(weights)
            parallel.sum_gradients = sum_gradients
        sys.exit(torchrun.follow())
    if __name__ == "__main__":
        listen_to_signals()
        with torchrun.leading():
            fit = plan(load_recipe(recipe), [1], runs=Path(runs), data=None).seeds[0].fits[target].first
            try:
                run_steps([fit], Path(runs), workers=2, watcher=Notes())
            except TrainingError as error:
                print(f"refused: {error}", file=sys.stderr, flush=True)
                sys.exit(1)
"""


def torchrun(*program: str, processes: int = 2) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run([*command, *program], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=800)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(RECIPE))
    return path


def laid_out(recipe: Path, runs: Path) -> Plan:
    return plan(load_recipe(str(recipe)), [1], runs=runs, data=None)


def fits_of(plan_: Plan) -> dict[str, Step]:
    """Every fit and refit."""
    fits = plan_.seeds[0].fits.items()
    both = [(f"{name}.{when}", getattr(fit, when)) for name, fit in fits for when in ("first", "again")]
    return {name: step for name, step in both if step.is_shared}


def same_fits(steps: dict[str, Step], ours: Path, theirs: Path) -> None:
    """Every row's logit, to rounding, and as many epochs."""
    for name, step in steps.items():
        for file in step.folder(theirs).rglob("logit.npy"):
            own = ours / file.relative_to(theirs)
            np.testing.assert_allclose(np.load(own), np.load(file), atol=1e-4, err_msg=name)
            facts = [json.loads((path.parent / "fit.json").read_text()) for path in (own, file)]
            assert facts[0]["epochs"] == facts[1]["epochs"]
            assert len(facts[0]["history"]) == len(facts[1]["history"])


@pytest.mark.soak
def test_a_run_of_two_processes_is_that_of_one(recipe: Path, tmp_path: Path) -> None:
    """`torchrun -m training run`: the numbers of one process under the same keys, one report, one path printed."""
    by_two, by_one = tmp_path / "by-two", tmp_path / "by-one"
    measure = laid_out(recipe, by_one).seeds[0].measure

    done = torchrun("-m", "training", "run", str(recipe), "--out", str(by_two))
    run_steps([measure], by_one, workers=2, watcher=Notes())

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(by_two / "report.json")]
    assert sorted(path.name for path in (by_two / "repository").iterdir()) == ["control", "ensemble", "student"]
    plan_ = laid_out(recipe, by_two)
    assert all(step.is_done(by_two) for step in in_order([plan_.seeds[0].measure]))
    assert not list(by_two.glob("*/.building-*"))
    assert len(fits_of(plan_)) == 8
    same_fits(fits_of(plan_), by_two, by_one)


@pytest.mark.soak
def test_teachers_and_a_student_at_once_are_shared_too(recipe: Path, tmp_path: Path) -> None:
    recipe.write_text(json.dumps(RECIPE | {"scheme": "cotrain"}))
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(PROGRAM))
    by_two, by_one = tmp_path / "by-two", tmp_path / "by-one"
    step = laid_out(recipe, by_one).seeds[0].fits["student"].first

    done = torchrun(str(program), str(by_two), str(recipe), "student")
    run_steps([step], by_one, workers=1, watcher=Notes())

    assert done.returncode == 0, done.stderr
    assert step.is_done(by_two)
    same_fits({"together": step.needs["source"]}, by_two, by_one)


def test_a_refusal_is_said_once_and_ends_every_process(recipe: Path, tmp_path: Path) -> None:
    done = torchrun("-m", "training", "run", str(recipe), "--out", str(tmp_path / "out"), "--set", "device=cuda:99")

    assert done.returncode != 0
    assert done.stderr.count("error: device: cuda:99: expected") == 1
    assert done.stdout == ""


@pytest.mark.soak
def test_a_process_that_dies_ends_the_run_which_then_goes_on(recipe: Path, tmp_path: Path) -> None:
    """Nobody waits for it for ever; what was done stays done."""
    program, runs = tmp_path / "program.py", tmp_path / "runs"
    program.write_text(textwrap.dedent(PROGRAM))

    done = torchrun(str(program), str(runs), str(recipe), "teachers.deepfm", "dies")

    assert done.returncode != 0
    assert "exitcode  : -9" in done.stderr  # torchrun's own report
    step = laid_out(recipe, runs).seeds[0].fits["teachers.deepfm"].first
    assert step.needs["prepared"].is_done(runs)
    assert not step.is_done(runs)

    again = torchrun(str(program), str(runs), str(recipe), "teachers.deepfm")

    assert again.returncode == 0, again.stderr
    assert step.is_done(runs)
