"""A killed preparation goes on with the reading it was in: what was finished before is not read again."""

import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from tests.training.data.logs import criteo_text, write
from training.data.kaggle import CRITEO
from training.data.prepare import PrepareReport
from training.errors import StepError
from training.pipeline.plan import plan
from training.pipeline.stages import Step, run_steps
from training.recipe import load_recipe


class KillOnce:
    """A watcher that kills every worker when a step of `stage` has been given to one, and notes what was done."""

    def __init__(self, stage: str) -> None:
        self.stage: str | None = stage
        self.was_cached: list[str] = []
        self.was_finished: list[str] = []

    def cached(self, step: Step) -> None:
        self.was_cached.append(step.stage)

    def started(self, step: Step) -> None:
        if step.stage == self.stage:
            self.stage = None
            for child in multiprocessing.active_children():
                if child.name.startswith("SpawnProcess") and child.pid:
                    os.kill(child.pid, signal.SIGKILL)

    def advanced(self, step: Step, done: float, total: float, note: str) -> None: ...

    def finished(self, step: Step, seconds: float) -> None:
        self.was_finished.append(step.stage)


def test_a_preparation_killed_while_it_encodes_keeps_the_survey_and_the_encoder(tmp_path: Path):
    """kill -9, as when memory runs out: the next run reads the log once more, not three times."""
    (tmp_path / CRITEO).mkdir()
    write(tmp_path / CRITEO / "train.txt", criteo_text(1500))
    loaded, runs = load_recipe("criteo_x4", ["source.rows=null"]), tmp_path / "runs"
    prepare = plan(loaded, [1], runs=runs, data=tmp_path).prepare

    first, second = KillOnce("prepare"), KillOnce("")
    with pytest.raises(StepError, match="step prepare/criteo_x4: its process died"):
        run_steps([prepare], runs, workers=1, watcher=first)
    run_steps([prepare], runs, workers=1, watcher=second)

    assert first.was_finished == ["survey", "encoder"]
    assert sorted(second.was_cached) == ["encoder", "survey"]
    assert second.was_finished == ["prepare"]
    assert sum(PrepareReport.read(prepare.folder(runs)).rows.values()) == 1500
