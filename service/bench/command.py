"""`python -m service bench`: session.run alone and the whole service, from one bundle, taking turns on one core."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from models.bundle import Bundle, read_bundle
from models.errors import ModelsError
from models.graph import PCTR, graph_inputs
from models.versions import NONE, Repository
from service.bench.load import LoadError, ask_once, closed_loop, http_request
from service.bench.machine import cpu_seconds, pin, two_cores
from service.bench.workload import AdRequest, make_requests
from service.errors import ConfigError, ModelLoadError
from service.scoring.scorer import Scorer

TEACHING = """
examples:
  python -m service bench --models models/repository                         the only model, or the one called student
  python -m service bench --models models/repository --model ensemble --candidates 20 100
  python -m service bench --models models/repository --cold                  every ad is new: nothing is remembered
  python -m service bench --models models/repository --json > bench.json     for a script, or to compare two machines

what is measured, from the same files, on the same core, in turns:
  session.run     the graph alone on ready-made ids, one thread: no service around this graph can be faster
  the service     python -m service, one worker, asked over HTTP on this machine: JSON in, ids, scores, JSON out,
                  with its routing, limits and metrics; by one caller, and by several at once (its capacity)

Requests are made of the bundle alone: values as often as its manifest says they were in training, missing and unknown
ones among them, a few ads asked for often. Every answer is first held against session.run's.

how to read it: ratios travel between machines, milliseconds do not. `x session.run` is CPU time a request over that of
session.run: what the service adds. requests/s is of one worker, so of one core; a machine with more serves about so
many times more. p99 with one caller is what an idle service answers in; with several, what waits behind others. On a
busy machine (see `load`) only ratios mean something, and their spread says how much.

exit codes  0 measured, 1 what was measured is not right, 2 wrong option or file, 3 the model cannot be served
"""

REQUESTS = 100
READY = re.compile(r"listens on http://\S+?:(\d+)\b")
START_SECONDS = 120.0
SAME = 1e-5
FLOOR = "session.run"


@dataclass(frozen=True)
class Turn:
    """One contender's turn."""

    latency_ms: npt.NDArray[np.float64]
    requests_per_second: float
    cpu_ms: float | None
    """Processor time of a request, kernel time included; None where this system does not tell."""


class BenchError(Exception):
    """What would be measured is not right; nothing is reported."""


def make_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="python -m service bench",
        description="What your own model costs to serve on this machine, beside session.run alone.",
        epilog=TEACHING,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--models", type=Path, required=True, metavar="DIR", help="repository of bundles")
    parser.add_argument("--model", metavar="NAME", help="which; without, the only one, or `student`")
    parser.add_argument("--version", type=_positive, metavar="N", help="which version; without, the live one")
    parser.add_argument(
        "--candidates", type=_positive, nargs="+", default=[1, 50, 200], metavar="N", help="ads a request [1 50 200]"
    )
    parser.add_argument("--callers", type=_positive, default=8, metavar="N", help="callers at once, at capacity [8]")
    parser.add_argument("--rounds", type=_positive, default=5, metavar="N", help="turns of each [5]")
    parser.add_argument("--seconds", type=_seconds, default=1.0, metavar="S", help="of one turn [1]")
    parser.add_argument("--cold", action="store_true", help="without the cache of candidates: every ad is a new one")
    parser.add_argument("--json", action="store_true", help="JSON instead of a table")
    return parser


def main(arguments: Sequence[str]) -> int:
    """The program; returns its exit code."""
    options = make_parser().parse_args(arguments)
    try:
        if not hasattr(select, "epoll"):
            raise ConfigError("bench measures with epoll, which this system has not got: run it on Linux")
        bundle = find_bundle(options.models, options.model, options.version)
        found = run(
            bundle,
            options.candidates,
            callers=options.callers,
            rounds=options.rounds,
            seconds=options.seconds,
            cold=options.cold,
        )
    except ConfigError as error:
        print(f"retort: {error}", file=sys.stderr)
        return 2
    except (ModelsError, ModelLoadError) as error:
        print(f"retort: {error}", file=sys.stderr)
        return 3
    except (BenchError, LoadError) as error:
        print(f"retort: {error}", file=sys.stderr)
        return 1
    print(json.dumps(found, indent=1) if options.json else as_text(found))
    return 0


def find_bundle(models: Path, name: str | None, version: int | None) -> Bundle:
    """The bundle that is asked for. `ConfigError` lists what there is."""
    if not models.is_dir():
        raise ConfigError(f"--models: no folder {models}")
    repository = Repository(models)
    names = [one for one in repository.names() if repository.versions(one)]
    if name is None:
        name = names[0] if len(names) == 1 else "student"
    if name not in names:
        raise ConfigError(f"--model: expected one of {', '.join(names) or 'none, the folder is empty'}, got {name!r}")
    if version is None:
        version = repository.versions(name)[-1] if repository.wish(name) == NONE else repository.live(name)
    elif version not in repository.versions(name):
        there = ", ".join(map(str, repository.versions(name)))
        raise ConfigError(f"--version: expected one of {there} of model {name}, got {version}")
    return read_bundle(repository.path(name, version))


def run(
    bundle: Bundle, candidates: Sequence[int], *, callers: int, rounds: int, seconds: float, cold: bool
) -> dict[str, Any]:
    """All that is reported, as JSON values."""
    load_before = os.getloadavg()[0]
    scorer = Scorer(bundle)
    workload = {count: make_requests(bundle, count, REQUESTS) for count in candidates}
    core, own = two_cores()
    rows = []
    with _where_it_was(), serve(bundle, core, cold, max(candidates)) as (process, port):
        for count, requests in workload.items():
            feeds = [_feed(bundle, request) for request in requests]
            raw = [http_request("/predict", request.body("bench")) for request in requests]
            _check(scorer, feeds, raw, port)
            turns: dict[str, list[Turn]] = {}
            for number in range(rounds + 1):  # the first fills caches
                order: list[tuple[str, int]] = [(FLOOR, 0), ("1 caller", 1)]
                order += [(f"{callers} callers", callers)] if callers > 1 else []
                for title, connections in order if number % 2 else reversed(order):
                    if connections:
                        pin(own)
                        turn = _ask(process.pid, port, raw, connections, seconds)
                    else:
                        pin(core)
                        turn = _score(scorer, feeds, seconds)
                    if number:
                        turns.setdefault(title, []).append(turn)
            rows += [_row(count, title, turns) for title in (FLOOR, *(title for title in turns if title != FLOOR))]
    smaller = bundle.manifest.quantization
    is_smaller = smaller is not None and smaller.ships == "quantized"
    return {
        "model": bundle.name,
        "version": bundle.version,
        "sha256": bundle.sha256,
        "graph": f"layers {smaller.layers}, tables {smaller.tables}" if smaller and is_smaller else "float32",
        "parameters_embedding": bundle.manifest.cost.parameters_embedding,
        "parameters_dense": bundle.manifest.cost.parameters_dense,
        "candidate_cache": not cold,
        "rounds": rounds,
        "seconds": seconds,
        "rows": rows,
        "machine": {
            "cpu": _cpu(),
            "cores": os.cpu_count(),
            "pinned": core is not None,
            "python": platform.python_version(),
            "onnxruntime": onnxruntime.__version__,
            "load_before": round(load_before, 2),
            "load_after": round(os.getloadavg()[0], 2),
        },
    }


def as_text(found: Mapping[str, Any]) -> str:
    """The same for a person."""
    machine = found["machine"]
    cached = "" if found["candidate_cache"] else "no cache of candidates, "
    load = f"load {machine['load_before']} before, {machine['load_after']} after"
    lines = [
        f"model {found['model']} version {found['version']} ({found['graph']}): "
        f"{found['parameters_embedding']:,} numbers in embeddings, {found['parameters_dense']:,} in layers",
        f"{machine['cpu']}, {machine['cores']} cores, Python {machine['python']}, "
        f"onnxruntime {machine['onnxruntime']}, {load}",
        f"one worker, {cached}medians of {found['rounds']} rounds of {found['seconds']:g} s, (least-greatest)",
        "",
        f"{'candidates':>10}  {'what':<14}{'requests/s':>11}{'p50 ms':>9}{'p99 ms':>9}{'CPU ms':>9}   x session.run",
    ]
    for row in found["rows"]:
        cpu = "-" if row["cpu_ms"] is None else f"{row['cpu_ms']:.3f}"
        times = row["times_session_run"]
        ratio = "" if times is None else f"{times['median']:.2f} ({times['least']:.2f}-{times['greatest']:.2f})"
        what = row["what"] if row["what"] == FLOOR else f"by {row['what']}"
        lines.append(
            f"{row['candidates']:>10}  {what:<14}{row['requests_per_second']:>11,.0f}{row['p50_ms']:>9.3f}"
            f"{row['p99_ms']:>9.3f}{cpu:>9}   {ratio}".rstrip()
        )
    if machine["load_before"] > (machine["cores"] or 1) / 2:
        lines += ["", "This machine was busy before the first request: read the ratios, not the milliseconds."]
    if not machine["pinned"]:
        lines += ["", "Only one core may be used here, so the one who asks takes time from the one who answers."]
    return "\n".join(lines)


@contextmanager
def _where_it_was() -> Iterator[None]:
    """Gives this process back the cores it had."""
    had = os.sched_getaffinity(0)
    try:
        yield
    finally:
        os.sched_setaffinity(0, had)


@contextmanager
def serve(
    bundle: Bundle, core: int | None, cold: bool, candidates: int
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The service with one worker on a free port, ready: its process and port. It scores this version alone."""
    arm = {"name": "only", "model": bundle.name, "version": bundle.version, "weight": 1}
    experiment = {"name": "bench", "salt": "bench", "default": True, "arms": [arm]}
    with tempfile.TemporaryDirectory(prefix="retort-bench-") as place:
        file, log = Path(place) / "experiments.json", Path(place) / "log"
        file.write_text(json.dumps({"format_version": 1, "experiments": [experiment]}), encoding="utf-8")
        room = Path(__file__).parents[2]
        variables = {name: value for name, value in os.environ.items() if not name.startswith("RETORT_")}
        variables["PYTHONPATH"] = os.pathsep.join(filter(None, (str(room), variables.get("PYTHONPATH"))))
        repository = bundle.path.parent.parent.resolve()
        command = [sys.executable, "-m", "service", "--repository", str(repository), "--experiments", str(file)]
        command += ["--port", "0", "--max-candidates", str(max(1000, candidates)), "--max-body-bytes", str(1 << 24)]
        command += ["--candidate-cache-bytes", "0"] if cold else []
        with (
            log.open("wb") as output,
            subprocess.Popen(
                command, env=variables, cwd=place, stdout=output, stderr=output, preexec_fn=lambda: pin(core)
            ) as process,
        ):
            try:
                yield process, _port(process, log)
            finally:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(timeout=15)
                except subprocess.TimeoutExpired:
                    process.kill()


def _port(process: subprocess.Popen[bytes], log: Path) -> int:
    """The port, once the service says that it listens on it."""
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        text = log.read_text(encoding="utf-8", errors="replace")
        found = READY.search(text)
        if found:
            return int(found[1])
        if process.poll() is not None:
            raise BenchError(f"the service ended with exit code {process.returncode} before it was ready:\n{text}")
        time.sleep(0.05)
    raise BenchError(f"the service was not ready within {START_SECONDS:.0f} s:\n{text}")


def _feed(bundle: Bundle, request: AdRequest) -> dict[str, npt.NDArray[np.int32]]:
    encoder = bundle.encoder
    return graph_inputs([encoder.encode_context(request.context)], [encoder.encode_candidates(request.candidates)])


def _check(scorer: Scorer, feeds: Sequence[Mapping[str, Any]], raw: Sequence[bytes], port: int) -> None:
    """The service's answers are the graph's, or nothing is measured."""
    for number, (feed, request) in enumerate(zip(feeds, raw, strict=True)):
        got = np.array(json.loads(ask_once(port, request))["pctr"])
        (expected,) = scorer.run([PCTR], feed)
        if got.shape != expected.shape or not np.allclose(got, expected, rtol=0, atol=SAME):
            raise BenchError(f"request {number}: the service answers otherwise than session.run; nothing was measured")


def _ask(pid: int, port: int, raw: Sequence[bytes], connections: int, seconds: float) -> Turn:
    before = _cpu_seconds(pid)
    load = closed_loop(port, raw, connections, seconds)
    after = _cpu_seconds(pid)
    cpu = None if before is None or after is None else 1e3 * (after - before) / len(load.latency_ms)
    return Turn(load.latency_ms, load.requests_per_second, cpu)


def _score(scorer: Scorer, feeds: Sequence[Mapping[str, Any]], seconds: float) -> Turn:
    """session.run on one request after the other."""
    clock, place = time.perf_counter_ns, 0
    taken: list[int] = []
    outputs = [PCTR]
    cpu, began = time.process_time(), clock()
    until, now = began + int(seconds * 1e9), began
    while now < until or not taken:
        started = clock()
        scorer.run(outputs, feeds[place])
        now = clock()
        taken.append(now - started)
        place = (place + 1) % len(feeds)
    cpu = time.process_time() - cpu
    return Turn(np.array(taken) / 1e6, 1e9 * len(taken) / (now - began), 1e3 * cpu / len(taken))


def _row(count: int, title: str, turns: Mapping[str, Sequence[Turn]]) -> dict[str, Any]:
    own, floor = turns[title], turns[FLOOR]
    latency = np.concatenate([turn.latency_ms for turn in own])
    cpu = [turn.cpu_ms for turn in own]
    ratio = None
    if title != FLOOR:
        times = [a.cpu_ms / b.cpu_ms for a, b in zip(own, floor, strict=True) if a.cpu_ms is not None and b.cpu_ms]
        ratio = {"median": median(times), "least": min(times), "greatest": max(times)} if times else None
    return {
        "candidates": count,
        "what": title,
        "requests": len(latency),
        "requests_per_second": median(turn.requests_per_second for turn in own),
        "p50_ms": float(np.percentile(latency, 50)),
        "p99_ms": float(np.percentile(latency, 99)),
        "cpu_ms": None if None in cpu else median(value for value in cpu if value is not None),
        "times_session_run": ratio,
    }


def _cpu_seconds(pid: int) -> float | None:
    try:
        return cpu_seconds(pid)
    except OSError:
        return None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown processor"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got {text}")
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not 0.01 <= value <= 3600:
        raise argparse.ArgumentTypeError(f"expected seconds from .01 to 3600, got {text}")
    return value
