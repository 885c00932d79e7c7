"""Which cores a benchmark uses, what CPU time a process took, and what machine it ran on."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parent.parent


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


def threads(pid: int) -> int:
    """Threads of a process and its descendants."""
    return sum(len(list(Path(f"/proc/{process}/task").iterdir())) for process in (pid, *descendants(pid)))


def facts() -> dict[str, object]:
    """The machine and the versions that decide the numbers."""
    cpu = "unknown"
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            cpu = value.strip()
            break
    flags = {
        flag
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("flags")
        for flag in line.split()
    }
    told = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "vector_instructions": [flag for flag in told if flag in flags],
        "kernel": platform.release().split("-")[0],
        "python": platform.python_version(),
        **{name: version(name) for name in ("onnxruntime", "numpy", "fastapi", "uvicorn", "pydantic")},
        "load_before": os.getloadavg()[0],
    }


def commit() -> str:
    """The commit of the checkout, `+` after it where files differ; `unknown` outside of one."""
    try:
        found = subprocess.run(
            ["git", "rev-parse", "--short=10", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found + ("+" if changed else "")
