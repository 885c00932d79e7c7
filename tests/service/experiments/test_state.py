"""What `latest` means is settled once a phase, for every process of the machine."""

import errno
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from service.errors import ExperimentError
from service.experiments import state
from service.experiments.file import Experiment


def experiment(**more: Any) -> Experiment:
    arms = [
        {"name": "control", "model": "ensemble", "weight": 0.5},
        {"name": "b", "model": "student", "weight": 0.25},
        {"name": "pinned", "model": "student", "version": 2, "weight": 0.25},
    ]
    return Experiment.model_validate({"name": "e", "salt": "s", "arms": arms, **more})


LIVE = {"ensemble": 4, "student": 7}


def settle_latest(path: Path, one: Experiment, live: Callable[[str], int]) -> dict[str, int]:
    """Of one experiment, by arm."""
    return {arm: version for (_, arm), version in state.settle_latest(path, [one], live).items()}


def test_latest_is_settled_once(tmp_path: Path):
    """What was live when the phase started stays, whatever goes live later; numbers are not asked for."""
    path = tmp_path / "state.json"

    first = settle_latest(path, experiment(), LIVE.__getitem__)
    later = settle_latest(path, experiment(), {"ensemble": 5, "student": 8}.__getitem__)

    assert first == later == {"control": 4, "b": 7}


def test_a_new_phase_or_salt_settles_anew(tmp_path: Path):
    """A phase is an experiment's name, number and salt; the old one is remembered beside it."""
    path = tmp_path / "state.json"
    settle_latest(path, experiment(), LIVE.__getitem__)
    newer = {"ensemble": 5, "student": 8}.__getitem__

    assert settle_latest(path, experiment(phase=2), newer) == {"control": 5, "b": 8}
    assert settle_latest(path, experiment(salt="t"), newer) == {"control": 5, "b": 8}
    assert settle_latest(path, experiment(), newer) == {"control": 4, "b": 7}


def test_coverage_and_halting_settle_nothing_anew(tmp_path: Path):
    """They change within a phase."""
    path = tmp_path / "state.json"
    settle_latest(path, experiment(), LIVE.__getitem__)

    changed = experiment(coverage=0.5, halted=["b"])

    assert settle_latest(path, changed, {"ensemble": 9, "student": 9}.__getitem__) == {"control": 4, "b": 7}


def test_an_experiment_without_latest_needs_no_file(tmp_path: Path):
    """Numbers and `follow` leave nothing to remember, so a read-only folder is fine."""
    arms = [
        {"name": "a", "model": "m", "version": 1, "weight": 0.5},
        {"name": "b", "model": "m", "follow": True, "weight": 0.5},
    ]

    assert settle_latest(tmp_path / "none" / "state.json", experiment(arms=arms), LIVE.__getitem__) == {}


def test_a_file_that_is_not_ours_is_not_overwritten(tmp_path: Path):
    """Forgetting what `latest` meant would move units between versions in the middle of a phase."""
    path = tmp_path / "state.json"
    path.write_text("{")

    with pytest.raises(ExperimentError, match="not a state file") as caught:
        settle_latest(path, experiment(), LIVE.__getitem__)

    assert str(path) in str(caught.value)
    assert path.read_text() == "{"


def test_bytes_that_are_no_text_are_no_state(tmp_path: Path):
    """Named like any other file that is not ours."""
    path = tmp_path / "state.json"
    path.write_bytes(b"\xff\xfe")

    with pytest.raises(ExperimentError, match=r"state\.json: not a state file"):
        settle_latest(path, experiment(), lambda _: 1)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path):
    """And the option that chooses another."""
    with pytest.raises(ExperimentError, match="--state"):
        settle_latest(tmp_path / "none" / "state.json", experiment(), LIVE.__getitem__)


def test_workers_that_race_agree(tmp_path: Path):
    """Each of sixteen sees another live version; one of them decides for all, and the file stays whole."""
    path = tmp_path / "state.json"

    def settle(live: int) -> dict[str, int]:
        return settle_latest(path, experiment(), lambda _: live)

    with ThreadPoolExecutor(8) as pool:  # the lock is an open file's, so threads contend as processes do
        answers = list(pool.map(settle, range(1, 17)))

    assert all(answer == answers[0] for answer in answers)
    assert json.loads(path.read_text())["format_version"] == 1
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["state.json", "state.json.lock"]


def test_a_file_of_many_is_settled_in_one_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Read once and written once, however many experiments it has; and not at all where one cannot be settled."""
    path = tmp_path / "state.json"
    done: list[str] = []
    for name in ("_read", "_replace"):
        real = getattr(state, name)
        monkeypatch.setattr(state, name, lambda *given, name=name, real=real: (done.append(name), real(*given))[1])
    many = [experiment(name=f"e{number}", salt=f"s{number}") for number in range(50)]

    with pytest.raises(KeyError):
        state.settle_latest(path, many, {"ensemble": 4}.__getitem__)
    assert (done, path.exists()) == (["_read"], False)
    first = state.settle_latest(path, many, LIVE.__getitem__)
    again = state.settle_latest(path, many, {}.__getitem__)

    assert first == again
    assert first == {(f"e{number}", arm): LIVE[model] for number in range(50) for arm, model in ARMS_OF_LATEST}
    assert done == ["_read", "_read", "_replace", "_read"]


ARMS_OF_LATEST = (("control", "ensemble"), ("b", "student"))


def test_what_cannot_be_written_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Nor room that a full disk no longer has: tried again and again, it would be a file a process."""
    path = tmp_path / "state.json"

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ExperimentError, match="No space left on device"):
        settle_latest(path, experiment(), LIVE.__getitem__)

    assert [entry.name for entry in tmp_path.iterdir()] == ["state.json.lock"]
