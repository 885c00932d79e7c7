"""Steps for the tests of the build graph: each writes what it was given, and counts how often it ran."""

import os
import signal
import time
from pathlib import Path

from training.errors import DataError
from training.stages import Report


def write(folder: Path, report: Report, *, text: str, **inputs: Path) -> None:
    """Join the texts of all inputs and this one's own."""
    before = "".join((inputs[name] / "text").read_text() for name in sorted(inputs))
    report(1, 1, text)
    (folder / "text").write_text(before + text)
    (folder / "when").write_text(str(time.time_ns()))


def refuse(folder: Path, report: Report, **inputs: Path) -> None:
    raise DataError("line 3 is bad")


def stumble(folder: Path, report: Report) -> None:
    raise ZeroDivisionError("a bug, not a fault of the input")


def die(folder: Path, report: Report) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def wait_for(folder: Path, report: Report, *, file: str) -> None:
    """Not done until another process makes `file`."""
    report(0, 1, "waiting")
    while not Path(file).exists():
        time.sleep(0.02)


def say_who(folder: Path, report: Report) -> None:
    """Writes its process id and never ends."""
    (folder / "pid").write_text(str(os.getpid()))
    while True:
        time.sleep(0.02)
