"""What a ramp remembers, in `<experiment file>.ramp.json`: since when the coverage is what it is, and every step taken.

The experiment file says where a ramp is; this file only says since when, and why. So a ramp that is killed between the
two goes on rightly: a step is written down here before it is made, and counts once the experiment file has it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from service.errors import ExperimentError
from service.experiments.file import Experiment
from service.experiments.writing import replace_text


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Step(_Part):
    """One step, with what it rests on."""

    time: float
    """Seconds since 1970."""
    before: float
    """The coverage."""
    after: float
    reason: str
    evidence: dict[str, Any] = {}


class Progress(_Part):
    """One phase of one experiment."""

    experiment: str
    phase: int
    salt: str
    coverage: float
    """What the experiment file said when it was looked at last."""
    since: float
    """When that began, as far as is known."""
    steps: list[Step] = []
    intended: Step | None = None
    """Written before the experiment file is; taken where that has it."""
    holds: str = ""
    """Why it held at the last look, for whoever reads this file."""

    def follow(self, experiment: Experiment, now: float) -> None:
        """Takes in what the experiment file says now, whoever wrote it."""
        coverage = float(experiment.coverage)
        if self.intended is not None and self.intended.after == coverage:
            self.steps.append(self.intended)
            self.coverage, self.since = coverage, self.intended.time
        elif coverage != self.coverage:  # somebody else changed it
            self.coverage, self.since = coverage, now
        self.since = min(self.since, now)  # the clock was put back: the hold is not to last until it is there again
        self.intended = None


class State(_Part):
    """The whole file."""

    format_version: Literal[1] = 1
    experiments: list[Progress] = []

    def progress_of(self, experiment: Experiment, now: float) -> Progress:
        """That of this phase, begun now where there is none; what is known of its earlier phases stays."""
        key = (experiment.name, experiment.phase, experiment.salt)
        for progress in self.experiments:
            if (progress.experiment, progress.phase, progress.salt) == key:
                return progress
        coverage = float(experiment.coverage)
        progress = Progress(experiment=key[0], phase=key[1], salt=key[2], coverage=coverage, since=now)
        self.experiments.append(progress)
        return progress


def state_path(experiments: Path) -> Path:
    """Where it lies."""
    return experiments.with_name(experiments.name + ".ramp.json")


def read_state(path: Path) -> State:
    """What is remembered; nothing where the file is not there yet. Raises `ExperimentError`."""
    try:
        return State.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return State()
    except OSError as error:
        raise ExperimentError(f"{path}: {error.strerror or error}") from None
    except ValidationError:
        raise ExperimentError(
            f"{path}: not a state file of this program: restore it, or remove it, and every step's hold begins anew"
        ) from None


def write_state(path: Path, state: State) -> None:
    """Remembers it. Raises `ExperimentError`."""
    try:
        replace_text(path, state.model_dump_json(indent=1) + "\n", 0o644)
    except OSError as error:
        raise ExperimentError(f"{path}: it cannot be written ({error.strerror or error})") from None
