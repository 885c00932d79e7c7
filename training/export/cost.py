"""What a model costs to score with: milliseconds of one core for session.run, numbers and bytes of its weights.

Sessions are set up and asked as the service does it: one thread, no spinning, numpy in, `pctr` out. Parsing and
encoding cost the same whatever the model and are not in here; `make bench` measures whole requests.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from models.graph import PCTR

CANDIDATES = (1, 50, 200)
"""Candidates of a request that a cost is given for."""

Feed = Mapping[str, NDArray[np.int32]]


def session_options() -> onnxruntime.SessionOptions:
    """As a worker of the service opens a session: one thread that sleeps when there is nothing to do."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.log_severity_level = 3
    return options


def open_session(path: Path) -> onnxruntime.InferenceSession:
    """A session on a graph, with the options of a worker."""
    return onnxruntime.InferenceSession(str(path), session_options(), providers=["CPUExecutionProvider"])


def measure_costs(
    graphs: Mapping[str, Path],
    feeds: Callable[[int], Sequence[Feed]],
    *,
    candidates: Sequence[int] = CANDIDATES,
    rounds: int = 30,
    runs: int = 20,
    progress: Callable[[float, float, str], None] | None = None,
) -> dict[str, dict[str, dict[str, float]]]:
    """`{model: {"50": {"p50_ms": ..., "p99_ms": ...}, ...}, ...}` for the graphs at these paths.

    `feeds(n)` gives several requests of n candidates; they are taken in turn. Models take turns too, `runs` runs at
    a time for `rounds` rounds, so that whatever else the machine does meets them all alike.
    """
    sessions = {name: open_session(path) for name, path in graphs.items()}
    costs: dict[str, dict[str, dict[str, float]]] = {name: {} for name in sessions}
    for place, count in enumerate(candidates):
        requests = feeds(count)
        seconds: dict[str, list[float]] = {name: [] for name in sessions}
        for round_ in range(-1, rounds):  # the first round warms caches up and is not counted
            if progress is not None:
                done = (place * rounds + max(round_, 0)) / (len(candidates) * rounds)
                progress(done, 1.0, f"session.run at {count}")
            for name, session in sessions.items():
                for run in range(runs):
                    feed = requests[(round_ * runs + run) % len(requests)]
                    started = time.perf_counter()
                    session.run([PCTR], feed)
                    elapsed = time.perf_counter() - started
                    if round_ >= 0:
                        seconds[name].append(elapsed)
        for name, measured in seconds.items():
            p50, p99 = np.quantile(np.array(measured) * 1e3, [0.5, 0.99])
            costs[name][str(count)] = {"p50_ms": round(float(p50), 5), "p99_ms": round(float(p99), 5)}
    return costs


def bytes_of(folder: Path) -> int:
    """Bytes of the graph in a folder, external data included."""
    return sum(file.stat().st_size for file in folder.glob("model.onnx*"))


def conditions() -> dict[str, Any]:
    """What a latency means nothing without."""
    return {
        "cpu": _cpu(),
        "threads": 1,
        "onnxruntime": onnxruntime.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return platform.processor() or "unknown"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
