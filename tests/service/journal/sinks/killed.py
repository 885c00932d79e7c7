"""Compacts again and again, killed STRIDE steps later each time, and keeps what was left behind.

    python -m tests.service.journal.sinks.killed FOLDER OUT KEPT STRIDE [CALL...]

A step is a call of the operating system that changes names or makes bytes durable, or one of those that are named. Each
attempt is a child of this process, which has imported everything and started no thread. Prints how many steps there
are.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import duckdb  # noqa: F401  imported before the first child, so that no child pays for it

from service.journal.sinks.compact import compact

STEPS = ("mkdir", "fsync", "rename", "replace", "link", "unlink", "rmdir")


def watch(die_before: int, calls: Sequence[str]) -> Callable[[], int]:
    """From here on, this process kills itself before its so many-th step; gives how many there were so far."""
    steps = 0

    def watched(call: Callable[..., Any]) -> Callable[..., Any]:
        def instead(*arguments: Any, **options: Any) -> Any:
            nonlocal steps
            steps += 1
            if steps == die_before:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **options)

        return instead

    for name in calls:
        setattr(os, name, watched(getattr(os, name)))
    return lambda: steps


def attempt(folder: Path, out: Path, die_before: int, report: Path, calls: Sequence[str]) -> bool:
    """In a child: whether it was killed. One that was not says how many steps there were."""
    child = os.fork()
    if child == 0:
        steps = watch(die_before, calls)
        compact(folder, out, keep_seconds=1e9, now=1.8e9)
        report.write_text(str(steps()))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0
    return os.WIFSIGNALED(status)


def main(folder: Path, out: Path, kept: Path, stride: int, calls: Sequence[str]) -> None:
    """Every attempt begins with what was there at first."""
    before, report = kept / "before", kept.parent / "steps"
    shutil.copytree(out, before)
    assert not attempt(folder, out, 0, report, calls)
    steps = int(report.read_text())
    for step in range(1, steps + 1):
        if step % stride and step <= steps - 5:  # the last ones are where the new part is there
            continue
        shutil.rmtree(out)
        shutil.copytree(before, out)
        assert attempt(folder, out, step, report, calls)
        shutil.copytree(out, kept / f"{step:03d}")
    print(steps)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]), int(sys.argv[4]), sys.argv[5:] or STEPS)
