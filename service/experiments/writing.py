"""Changing the experiment file from a program: one change at a time, all or nothing, for good.

    with exclusive(path):                    a lock file beside it; every worker and command of this machine keeps to it
        draft = Draft.read(path)             what stands there now
        change = draft.change(name, content) valid as a whole, and within the rules of a phase; nothing is written yet
        change.write()                       temporary file, fsync, rename, fsync of the folder

What stood there before is kept beside it as `<file>.previous`: of a YAML file's comments only those at its top outlive
being written here.
A program that is killed leaves the old file or the new one, and no lock: the kernel lets go of it.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import itertools
import json
import os
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from service.errors import ExperimentError, StaleError
from service.experiments.file import (
    Experiment,
    ExperimentFile,
    decode_experiments,
    is_json,
    read_text,
    validate_experiment,
    validate_experiments,
)
from service.experiments.phases import check_change, replaced

PREVIOUS = ".previous"
PATIENCE_SECONDS = 10.0


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:
        return True  # the file's reader refuses them


def _target(path: Path) -> Path:
    """Where the file really is: a link to it stays a link."""
    return Path(os.path.realpath(path))


@contextlib.contextmanager
def exclusive(path: Path, patience_seconds: float = PATIENCE_SECONDS) -> Iterator[None]:
    """Inside, no other program that asks changes the file. `ExperimentError` where somebody else does for so long, or
    nothing can be written beside it."""
    target = _target(path)
    try:
        descriptor = os.open(target.with_name(target.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise _cannot_write(path, error) from None
    try:
        until = time.monotonic() + patience_seconds
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() >= until:
                    raise ExperimentError(f"{path}: somebody else is changing it: try again") from None
                time.sleep(0.01)
        yield
    finally:
        os.close(descriptor)


@dataclass(frozen=True, slots=True)
class Change:
    """A change that may be made: the experiment before (None: it is new) and after, and the whole file to be."""

    path: Path
    text: str
    """What the file is to say."""
    old_text: str
    before: Experiment | None
    after: Experiment
    file: ExperimentFile

    @property
    def is_needed(self) -> bool:
        """Whether anything would be different."""
        return self.before != self.after

    def write(self) -> None:
        """Puts it on the disk; `ExperimentError` where that fails, and then the old file stands."""
        target = _target(self.path)
        try:
            mode = stat.S_IMODE(target.stat().st_mode)
            replace_text(target.with_name(target.name + PREVIOUS), self.old_text, mode)
            replace_text(target, self.text, mode)
        except OSError as error:
            raise _cannot_write(self.path, error) from None


@functools.lru_cache(maxsize=2)
def _parsed(text: str, source: str) -> tuple[dict[str, Any], ExperimentFile]:
    """What a file says, as it stands there and valid; `ExperimentError`. Kept, for nobody to change: whoever changes a
    file again finds what was read when it was written, and YAML takes long to read."""
    data = decode_experiments(text, source)
    return data, validate_experiments(data, source)


@dataclass(frozen=True, slots=True)
class Draft:
    """The file as it stands."""

    path: Path
    text: str
    data: dict[str, Any]
    file: ExperimentFile

    @classmethod
    def read(cls, path: Path) -> Draft:
        """`ExperimentError` where what stands there is not valid: mend it first."""
        text = read_text(path)
        return cls(path, text, *_parsed(text, str(path)))

    def find(self, name: str) -> Experiment | None:
        """One of its experiments."""
        return next((experiment for experiment in self.file.experiments if experiment.name == name), None)

    def change(self, name: str, content: dict[str, Any]) -> Change:
        """This experiment with that object in its place, or added. Raises `ExperimentError` where the file would not be
        valid, `PhaseError` where the phase does not allow it."""
        before = self.find(name)
        after = validate_experiment(content, f"experiment '{name}'")
        if after.name != name:
            raise ExperimentError(f"experiment '{name}': name: expected '{name}', got '{after.name}'")
        check_change(before, after)
        data = replaced(self.data, name, content)
        file = validate_experiments(data, self.path.name)
        text = self._text(data)
        if _parsed(text, str(self.path))[1] != file:  # YAML cannot say U+0085, a line's end to it
            raise ExperimentError(
                f"experiment '{name}': a text in it does not come back from the file as it was sent; leave out signs "
                "that end lines, as U+0085, or keep the experiments in a JSON file"
            )
        return Change(self.path, text, self.text, before, after, file)

    def _text(self, data: dict[str, Any]) -> str:
        """In the language that the file has."""
        if is_json(self.text):
            return json.dumps(data, indent=2, ensure_ascii=False) + "\n"
        head = f"# Written by the service; what stood here before is in {self.path.name}{PREVIOUS}\n"
        top = [line for line in _top_comments(self.text) if line != head.rstrip("\n")]
        body = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
        return head + "".join(f"{line}\n" for line in top) + body


def _top_comments(text: str) -> list[str]:
    """The comments before anything else."""
    return list(itertools.takewhile(lambda line: line.startswith("#"), text.split("\n")))


def change_experiment(
    path: Path,
    name: str,
    change: Callable[[dict[str, Any]], dict[str, Any]],
    *,
    expected_tag: str | None = None,
    patience_seconds: float = PATIENCE_SECONDS,
) -> Change:
    """Changes one experiment of the file: `change` is given what stands there and returns what is to stand there.

    `expected_tag`: the tag of the experiment that the change was thought of; `StaleError` where it is another by now.
    Raises `ExperimentError` where the experiment is not there, the file would not be valid or cannot be written, and
    `PhaseError` where the phase does not allow it. The services that follow the file do so within a second.
    """
    with exclusive(path, patience_seconds):
        draft = Draft.read(path)
        before = draft.find(name)
        if before is None:
            raise ExperimentError(f"{path}: no experiment '{name}' stands there")
        if expected_tag is not None and before.tag() != expected_tag:
            raise StaleError(f"experiment '{name}' has changed meanwhile: look at it again")
        made = draft.change(name, change(before.content()))
        if made.is_needed:
            made.write()
        return made


def replace_text(path: Path, text: str, mode: int) -> None:
    """Puts a text in the place of a file, whole or not at all, so that a power failure leaves one of the two. `OSError`
    where it cannot be."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            os.fchmod(file.fileno(), mode)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)  # or the power fails, and the old name is back
    finally:
        os.close(folder)


def _cannot_write(path: Path, error: OSError) -> ExperimentError:
    why = error.strerror or error
    return ExperimentError(f"{path}: it cannot be written ({why}): give the service a folder it may write, or edit it")
