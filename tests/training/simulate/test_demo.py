"""The demonstration's own part: which world it plays, and a service that does not start."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.experiments.file import parse_experiments
from training.errors import TrainingError
from training.simulate.demo import EXPERIMENTS, serving, world_of

ROOT = Path(__file__).parents[3]


def repository(folder: Path, recipe: dict[str, Any]) -> Path:
    """With a student of that recipe, as far as is looked at."""
    (folder / "student" / "1").mkdir(parents=True)
    (folder / "student" / "1" / "manifest.json").write_text(json.dumps({"recipe": recipe}))
    return folder


def test_the_world_is_the_one_that_the_student_learned(tmp_path: Path):
    """Its last day: the one that the recipe tests on."""
    source = {"kind": "synthetic", "seed": 3, "rows": 5000, "days": 6}

    assert world_of(repository(tmp_path, {"source": source})) == {"world_seed": 3, "days": 6, "day": 5}


@pytest.mark.parametrize("recipe", [{"source": {"kind": "files", "paths": ["log.csv"]}}, {}])
def test_a_student_of_another_log_is_refused(recipe: dict[str, Any], tmp_path: Path):
    with pytest.raises(TrainingError, match="expected a student of the recipe synthetic"):
        world_of(repository(tmp_path, recipe))


def test_a_service_that_does_not_start_is_told_in_its_own_words(tmp_path: Path):
    with (
        pytest.raises(TrainingError, match=r"the service did not start:\n.*no folder"),
        serving(tmp_path / "service.txt", ["--repository", tmp_path / "nowhere"]),
    ):
        pass


def test_the_experiment_is_valid_and_its_window_is_closed_when_it_is_asked():
    """Every click comes within ten medians of a second."""
    (experiment,) = parse_experiments(EXPERIMENTS, "demo").experiments

    assert yaml.safe_load(EXPERIMENTS)["format_version"] == 1
    assert experiment.analysis.attribution_window_seconds > 10
    assert experiment.guard_rails is not None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_who_stays_ends_in_order_however_it_is_told(number: signal.Signals):
    """SIGTERM as Ctrl-C: a service that outlives its demonstration would hold the port."""
    program = "from training.simulate.demo import stay; stay('http://it'); print('the service is stopped next')"
    with subprocess.Popen([sys.executable, "-c", program], stdout=-1, stderr=-1, text=True, cwd=ROOT) as process:
        try:
            assert process.stderr is not None
            assert process.stdout is not None
            assert "the service goes on at http://it" in process.stderr.readline()
            process.send_signal(number)
            assert process.stdout.read() == "the service is stopped next\n"
            assert process.wait(60) == 0
        finally:
            process.kill()
