"""Which cores a measurement uses, and what processor time a process took. Linux, or nothing is known."""

from __future__ import annotations

import os
import time
from pathlib import Path


def two_cores() -> tuple[int | None, int | None]:
    """(server's core, generator's core), apart; (None, None) where only one may be used, and nothing is pinned."""
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:
        return None, None
    server = allowed[-1]
    apart = [core for core in allowed if core not in siblings(server)]
    return server, (apart or allowed)[0]


def siblings(core: int) -> set[int]:
    """The logical cores that share `core`'s physical one, itself among them; itself alone where that is not told."""
    path = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")
    try:
        text = path.read_text(encoding="ascii")
    except OSError:
        return {core}
    found: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found


def pin(core: int | None) -> None:
    """Keeps this process and its children to come on one core."""
    if core is not None:
        os.sched_setaffinity(0, {core})


def cpu_seconds(pid: int) -> float:
    """CPU time that a process and its living descendants have taken so far, all their threads, in and out of the
    kernel."""
    total = 0.0
    for process in (pid, *descendants(pid)):
        # The kernel's CPU clock of another process: nanoseconds where /proc/<pid>/stat counts hundredths of a second.
        total += time.clock_gettime((~process << 3) | 2)
    return total


def descendants(pid: int) -> list[int]:
    """Processes that a process has started, and they."""
    found: list[int] = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, children.read_text(encoding="ascii").split()):
            found += [child, *descendants(child)]
    return found
