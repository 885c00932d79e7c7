"""Which version `latest` meant when a phase started, remembered in one file for all workers of a machine.

An arm that says `latest` without `follow` must answer with one version for the whole phase, and with the same one in
every worker, also in those started later. So the first worker to see a phase writes down the live versions it found;
the others read them. One JSON file beside the experiment file, replaced atomically, under a lock file. Machines that
must agree with one another write numbers into the experiment file instead of `latest`.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from service.errors import ExperimentError
from service.experiments.file import Experiment


class _Phase(BaseModel):
    model_config = ConfigDict(extra="forbid")
    experiment: str
    phase: int
    salt: str
    versions: dict[str, int]  # "<arm> <model>" -> version


class _State(BaseModel):
    model_config = ConfigDict(extra="forbid")
    format_version: Literal[1] = 1
    phases: list[_Phase] = []


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
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(json.dumps(state.model_dump(), indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def settle_latest(path: Path, experiment: Experiment, live_version: Callable[[str], int]) -> dict[str, int]:
    """Arm name -> version, for the arms that say `latest` without `follow`; the same answer in every process.

    `live_version(model)` is asked only for what the phase has not settled yet. A phase is known by the experiment's
    name, its number and its salt. Raises `ExperimentError` where the file cannot be read or written.
    """
    unsettled = [arm for arm in experiment.arms if arm.version == "latest" and not arm.follow]
    if not unsettled:
        return {}
    try:
        with _locked(path):
            state = _read(path)
            key = (experiment.name, experiment.phase, experiment.salt)
            phase = next((p for p in state.phases if (p.experiment, p.phase, p.salt) == key), None)
            if phase is None:
                phase = _Phase(experiment=key[0], phase=key[1], salt=key[2], versions={})
                state.phases.append(phase)
            settled = {}
            for arm in unsettled:
                place = f"{arm.name} {arm.model}"
                if place not in phase.versions:
                    phase.versions[place] = live_version(arm.model)
                    _replace(path, state)
                settled[arm.name] = phase.versions[place]
            return settled
    except OSError as error:
        raise ExperimentError(
            f"{path}: what `latest` means cannot be kept there ({error.strerror}): name another file with "
            "--state, or give the arms a number or follow: true"
        ) from None
