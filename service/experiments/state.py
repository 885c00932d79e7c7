"""What a phase has settled, remembered in one file for all workers of a machine: which version `latest` meant when it
started, and which arms a guard-rail has halted since.

An arm that says `latest` without `follow` must answer with one version for the whole phase, and with the same one in
every worker, also in those started later. So the first worker to see a phase writes down the live versions it found;
the others read them. A halt outlives restarts the same way, and ends with its phase, or when somebody lifts
it; evidence from before a lift is not judged again. One JSON file beside the experiment file, replaced atomically,
under a lock file. Machines that must agree with one another write numbers into the experiment file instead of `latest`.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from service.errors import ExperimentError
from service.experiments.file import Experiment
from service.experiments.writing import replace_text

PhaseKey = tuple[str, int, str]
"""A phase is known by its experiment's name, its number and its salt."""


def phase_key(experiment: Experiment) -> PhaseKey:
    """What the phase is known by that an experiment is in."""
    return experiment.name, experiment.phase, experiment.salt


class _Phase(BaseModel):
    model_config = ConfigDict(extra="forbid")
    experiment: str
    phase: int
    salt: str
    versions: dict[str, int]  # "<arm> <model>" -> version


class Halt(BaseModel):
    """An arm that is switched off for the rest of its phase, and the evidence it was switched off on."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    experiment: str
    phase: int
    salt: str
    arm: str
    time: float
    """Seconds since 1970."""
    rail: str
    bound: float
    found: float | None
    evidence: float
    """How far the sum went, as a share of how far it may."""
    counts: dict[str, dict[str, float]] = {}
    """By arm, what was counted until then."""

    @property
    def key(self) -> PhaseKey:
        """The phase it belongs to."""
        return self.experiment, self.phase, self.salt


class Lift(BaseModel):
    """When a halt was lifted: what the phase has shown until then is judged no more."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    experiment: str
    phase: int
    salt: str
    time: float


class _State(BaseModel):
    model_config = ConfigDict(extra="forbid")
    format_version: Literal[1] = 1
    phases: list[_Phase] = []
    halts: list[Halt] = []
    lifts: list[Lift] = []


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _read(path: Path) -> _State:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return _State()
    try:
        return _State.model_validate_json(content)
    except ValidationError:
        raise ExperimentError(
            f"{path}: not a state file of this service; it remembers what `latest` meant: restore it, "
            "or remove it to start every phase afresh"
        ) from None


def _replace(path: Path, state: _State) -> None:
    # What is empty is left out: without a halt an older release reads the file as it always did.
    tree = {name: value for name, value in state.model_dump().items() if value != []}
    replace_text(path, json.dumps(tree, indent=1) + "\n", 0o644)


def settle_latest(
    path: Path, experiments: Iterable[Experiment], live_version: Callable[[str], int]
) -> dict[tuple[str, str], int]:
    """(experiment, arm) -> version, for the arms that say `latest` without `follow`; the same answer in every process.

    `live_version(model)` is asked only for what a phase has not settled yet; where it raises, nothing is settled. A
    phase is known by the experiment's name, its number and its salt. The file is read once, and written once at most.
    Raises `ExperimentError` where that cannot be.
    """
    unsettled = [
        (experiment, arm)
        for experiment in experiments
        for arm in experiment.arms
        if arm.version == "latest" and not arm.follow
    ]
    if not unsettled:
        return {}
    try:
        with _locked(path):
            state = _read(path)
            phases = {(phase.experiment, phase.phase, phase.salt): phase for phase in state.phases}
            settled = {}
            is_new = False
            for experiment, arm in unsettled:
                key = phase_key(experiment)
                phase = phases.get(key)
                if phase is None:
                    phase = phases[key] = _Phase(experiment=key[0], phase=key[1], salt=key[2], versions={})
                    state.phases.append(phase)
                place = f"{arm.name} {arm.model}"
                if place not in phase.versions:
                    phase.versions[place] = live_version(arm.model)
                    is_new = True
                settled[experiment.name, arm.name] = phase.versions[place]
            if is_new:
                _replace(path, state)
            return settled
    except OSError as error:
        raise ExperimentError(
            f"{path}: what `latest` means cannot be kept there ({error.strerror}): name another file with "
            "--state, or give the arms a number or follow: true"
        ) from None


def read_halts(path: Path) -> dict[PhaseKey, dict[str, Halt]]:
    """By phase and arm, what is halted there. Raises `ExperimentError` where the file cannot be read."""
    found: dict[PhaseKey, dict[str, Halt]] = {}
    for halt in _read_safely(path).halts:
        found.setdefault(halt.key, {})[halt.arm] = halt
    return found


def read_lifts(path: Path) -> dict[PhaseKey, float]:
    """By phase, when a halt was last lifted there. Raises `ExperimentError` where the file cannot be read."""
    found: dict[PhaseKey, float] = {}
    for lift in _read_safely(path).lifts:
        key = (lift.experiment, lift.phase, lift.salt)
        found[key] = max(lift.time, found.get(key, 0.0))
    return found


def _read_safely(path: Path) -> _State:
    try:
        return _read(path)
    except OSError as error:
        raise ExperimentError(f"{path}: halted arms cannot be read there ({error.strerror})") from None


def halt_arm(path: Path, halt: Halt) -> bool:
    """Remembers a halt; whether it is new. Raises `ExperimentError` where it cannot be kept."""
    try:
        with _locked(path):
            state = _read(path)
            if any((other.key, other.arm) == (halt.key, halt.arm) for other in state.halts):
                return False
            state.halts.append(halt)
            _replace(path, state)
            return True
    except OSError as error:
        raise ExperimentError(f"{path}: a halted arm cannot be kept there ({error.strerror})") from None


def lift_halt(path: Path, experiment: Experiment, arm: str, now: float) -> Halt | None:
    """Forgets the halt of an arm in its present phase, and begins that phase's evidence anew; the halt that it was, or
    None where there is none. Raises `ExperimentError` where that cannot be kept."""
    key = phase_key(experiment)
    try:
        with _locked(path):
            state = _read(path)
            halt = next((halt for halt in state.halts if halt.key == key and halt.arm == arm), None)
            if halt is not None:
                state.halts.remove(halt)
                state.lifts.append(Lift(experiment=key[0], phase=key[1], salt=key[2], time=now))
                _replace(path, state)
            return halt
    except OSError as error:
        raise ExperimentError(f"{path}: a lifted halt cannot be kept there ({error.strerror})") from None
