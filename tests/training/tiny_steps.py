"""Steps for the tests of the build graph: each writes what it was given, and counts how often it ran."""

import errno
import os
import signal
import time
from pathlib import Path

from models.errors import SchemaError
from training.errors import DataError
from training.pipeline.stages import IF_OUT_OF_MEMORY, UNDER_WAY, Report


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


def fill_up(folder: Path, report: Report) -> None:
    raise OSError(errno.ENOSPC, "No space left on device", str(folder / "logit.npy"))


def misread(folder: Path, report: Report) -> None:
    raise SchemaError("fields.price: expected a number, got none")


def die(folder: Path, report: Report) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def wait_for(folder: Path, report: Report, *, file: str) -> None:
    """Not done until another process makes `file`."""
    report(0, 1, "waiting")
    while not Path(file).exists():
        time.sleep(0.02)


def say_where(folder: Path, report: Report, *, device: str) -> None:
    """Writes the device it was given, and takes a moment for others to begin beside it."""
    time.sleep(0.2)
    (folder / "device").write_text(device)


def say_who(folder: Path, report: Report) -> None:
    """Writes its process id and never ends."""
    (folder / "pid").write_text(str(os.getpid()))
    while True:
        time.sleep(0.02)


def die_with_advice(folder: Path, report: Report, *, after: str) -> None:
    """Ends as the kernel's OOM killer ends a process; beside it, somebody waits."""
    (folder / UNDER_WAY).mkdir()
    (folder / UNDER_WAY / IF_OUT_OF_MEMORY).write_text("lower student.options.dim (it is 64)\n")
    while not Path(after).exists():
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGKILL)


def wait_after(folder: Path, report: Report, *, file: str) -> None:
    """Makes `file`, then is never done."""
    Path(file).touch()
    while True:
        time.sleep(0.02)


def demand(folder: Path, report: Report, *, kind: str) -> None:
    """Asks numpy, torch or Python for more memory than any machine has."""
    import numpy as np
    import torch

    if kind == "numpy":
        np.zeros(1 << 60, dtype=np.int8)
    elif kind == "cuda":  # as its allocator says it
        raise torch.cuda.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 139.00 GiB of which 1.50 "
            "GiB is free."
        )
    elif kind == "torch":
        torch.zeros(1 << 60, dtype=torch.int8)
    else:
        bytearray(1 << 60)


def go_on(folder: Path, report: Report, *, until: int) -> None:
    """Counts how often it was begun, in what outlives a kill, and fails before the last."""
    under_way = folder / UNDER_WAY
    under_way.mkdir(exist_ok=True)
    (under_way / "times").open("a").write("x")
    (folder / "half-done").touch()
    times = len((under_way / "times").read_text())
    if times < until:
        raise DataError(f"begun {times} times")
    (folder / "text").write_text(str(sorted(path.name for path in folder.iterdir())))
