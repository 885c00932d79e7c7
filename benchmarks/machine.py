"""Which cores a benchmark uses, what CPU time a process took, and what machine it ran on."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

from service.bench.machine import cpu_seconds, descendants, pin, siblings, two_cores

__all__ = [
    "FIRST",
    "commit",
    "cpu_seconds",
    "descendants",
    "facts",
    "pin",
    "put_first",
    "put_process_first",
    "put_workers_first",
    "siblings",
    "threads",
    "two_cores",
]

FIRST = 10
"""The real-time priority of what comes before all other work."""

ROOT = Path(__file__).parent.parent


def threads(pid: int) -> int:
    """Threads of a process and its descendants."""
    return sum(len(list(Path(f"/proc/{process}/task").iterdir())) for process in (pid, *descendants(pid)))


def put_first(thread: int, priority: int = FIRST) -> None:
    """Lets a thread come before all other work; not the threads and children that it starts. Takes root."""
    os.sched_setscheduler(thread, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(priority))


def put_workers_first(supervisor: int) -> None:
    """The same for the processes of a service that score: their event loops, and behind these their other threads."""
    for worker in descendants(supervisor):
        if "onnxruntime" in Path(f"/proc/{worker}/maps").read_text(encoding="utf-8"):
            put_process_first(worker)


def put_process_first(process: int) -> None:
    """The same for one process: its first thread, and behind that its others."""
    for task in Path(f"/proc/{process}/task").iterdir():
        put_first(int(task.name), FIRST if int(task.name) == process else FIRST // 2)


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
