"""Compacts again and again, killed STRIDE steps later each time, and keeps what was left behind.

    python -m tests.service.journal.sinks.killed FOLDER OUT KEPT STRIDE

A step is a call of the operating system that changes names or makes bytes durable. Each attempt is a child of this
process, which has imported everything and started no thread; the last attempt gets through. Prints how many were
killed.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb  # noqa: F401  imported before the first child, so that no child pays for it

from service.journal.sinks.compact import compact

STEPS = ("mkdir", "fsync", "rename", "replace", "link", "unlink", "rmdir")


def die_before(step: int) -> None:
    """From here on, this process kills itself before its so many-th step."""
    left = step

    def watched(call: Callable[..., Any]) -> Callable[..., Any]:
        def instead(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **options)

        return instead

    for name in STEPS:
        setattr(os, name, watched(getattr(os, name)))


def main(folder: Path, out: Path, kept: Path, stride: int) -> None:
    """Every attempt begins with what was there at first."""
    before = kept / "before"
    shutil.copytree(out, before)
    step, killed = 1 - stride, 0
    while True:
        step += stride
        shutil.rmtree(out)
        shutil.copytree(before, out)
        child = os.fork()
        if child == 0:
            die_before(step)
            compact(folder, out, keep_seconds=1e9, now=1.8e9)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            assert os.waitstatus_to_exitcode(status) == 0
            break
        shutil.copytree(out, kept / f"{step:03d}")
        killed += 1
    print(killed)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]), int(sys.argv[4]))
