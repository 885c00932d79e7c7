"""What is measured side by side: our service, the naive one, and session.run alone.

Each runs on the server's core, and each answers the same requests from the same bundle files. A contender is started
once and measured many times; between two of its turns it is idle.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from benchmarks.load import answer_nothing, ask_once, closed_loop, http_request
from benchmarks.machine import ROOT, cpu_seconds, pin, threads
from benchmarks.workload import AdRequest
from models.bundle import Bundle, read_bundle
from models.graph import PCTR, graph_inputs

START_SECONDS = 60.0
RETORT, NAIVE, FLOOR = "retort", "naive", "session.run"


class BenchmarkError(Exception):
    """The benchmark cannot be run, or what it would measure is not the same work."""


@dataclass(frozen=True)
class Cell:
    """One thing to measure: a model, a number of candidates, a number of callers."""

    model: str
    candidates: int
    connections: int


@dataclass(frozen=True)
class Sample:
    """One turn of one contender."""

    requests_per_second: float
    cpu_ms: float
    """CPU time of the server for one request, all its processes and threads."""
    latency_ms: NDArray[np.float64]
    generator_share: float | None
    """Share of its core that the generator took; near 1 it would be the bottleneck. None where there is none."""


@dataclass(frozen=True)
class Contender:
    """A name, and how to take its turn."""

    name: str
    measure: Callable[[Cell, float], Sample]
    score: Callable[[str, AdRequest], list[float]]
    """What it answers to one request of one model."""
    threads: int
    servers: Mapping[str, tuple[subprocess.Popen[bytes], int]] = field(default_factory=dict)
    """By model: its process and its port. None where nothing listens."""


Workload = Mapping[int, Sequence[AdRequest]]
"""Requests by number of candidates."""


@contextmanager
def contenders(
    bundles: Mapping[str, Bundle], workload: Workload, core: int | None, folder: Path
) -> Iterator[list[Contender]]:
    """All three, started and ready; stopped on the way out."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(_retort(bundles, workload, core, folder)),
            stack.enter_context(_naive(bundles, workload, core, folder)),
            stack.enter_context(floor(bundles, workload, core)),
        ]


@contextmanager
def _retort(bundles: Mapping[str, Bundle], workload: Workload, core: int | None, folder: Path) -> Iterator[Contender]:
    """Our service with one worker and one experiment a model, so that every request is assigned to an arm."""
    repository = next(iter(bundles.values())).path.parent.parent
    with serve(repository, list(bundles.values()), core, folder) as server:
        yield over_http(RETORT, dict.fromkeys(bundles, server), workload)


@contextmanager
def serve(
    repository: Path,
    bundles: Sequence[Bundle],
    core: int | None,
    folder: Path,
    options: Sequence[str] = (),
    experiments: Sequence[Mapping[str, object]] = (),
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Our service with one worker, ready: its process and its port. Each model has an experiment of its name, unless
    experiments are given."""
    own = Path(tempfile.mkdtemp(prefix="retort-", dir=folder))
    file = experiment_file(bundles, own, experiments)
    command = ["-m", "service", "--repository", str(repository), "--experiments", str(file), "--workers", "1", *options]
    with server_of(command, core, "/health/ready", own / "log") as server:
        yield server


def experiment_file(bundles: Sequence[Bundle], folder: Path, experiments: Sequence[Mapping[str, object]] = ()) -> Path:
    """A file of these experiments, or where none are given of one a bundle, of its name and with one arm."""
    experiments = experiments or [
        {"name": bundle.name, "salt": f"benchmark-{bundle.name}", "default": place == 0, "arms": [_arm(bundle)]}
        for place, bundle in enumerate(bundles)
    ]
    file = folder / "experiments.json"
    file.write_text(json.dumps({"format_version": 1, "experiments": experiments}), encoding="utf-8")
    return file


def _arm(bundle: Bundle) -> dict[str, object]:
    return {"name": bundle.name, "model": bundle.name, "version": bundle.version, "weight": 1}


@contextmanager
def _naive(bundles: Mapping[str, Bundle], workload: Workload, core: int | None, folder: Path) -> Iterator[Contender]:
    """The naive service, one program a model."""
    with ExitStack() as stack:
        servers = {
            name: stack.enter_context(
                server_of(
                    ["-m", "benchmarks.naive_service", "--bundle", str(bundle.path)],
                    core,
                    "/health",
                    folder / f"naive-{name}.log",
                )
            )
            for name, bundle in bundles.items()
        }
        yield over_http(NAIVE, servers, workload)


def over_http(name: str, servers: Mapping[str, tuple[subprocess.Popen[bytes], int]], workload: Workload) -> Contender:
    """A service that is running, by model: its process and its port. It is sent the same bytes in every turn."""
    ready = {
        (model, count): [http_request("/predict", request.body(model)) for request in requests]
        for model in servers
        for count, requests in workload.items()
    }

    def measure(cell: Cell, seconds: float) -> Sample:
        process, port = servers[cell.model]
        before = cpu_seconds(process.pid)
        load = closed_loop(port, ready[cell.model, cell.candidates], cell.connections, seconds)
        cpu = cpu_seconds(process.pid) - before
        answered = len(load.latency_ms)
        share = load.generator_cpu_seconds / load.seconds
        return Sample(load.requests_per_second, 1e3 * cpu / answered, load.latency_ms, share)

    def score(model: str, request: AdRequest) -> list[float]:
        _, port = servers[model]
        answer = json.loads(ask_once(port, http_request("/predict", request.body(model))))
        if answer["model"] != model:
            raise BenchmarkError(f"{name}: expected model {model} to answer, got {answer['model']}")
        pctr: list[float] = answer["pctr"]
        return pctr

    running = max(threads(process.pid) for process, _ in servers.values())
    return Contender(name, measure, score, running, servers)


@contextmanager
def server_of(
    arguments: Sequence[str], core: int | None, ready: str, log: Path
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A Python program that serves on a port of its own, pinned from its first instruction on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RETORT_")}
    command = [sys.executable, *arguments, "--port", str(port)]
    with (
        log.open("wb") as output,
        subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=output, preexec_fn=lambda: pin(core)
        ) as process,
    ):
        try:
            wait_for(process, port, ready, log)
            yield process, port
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                process.kill()


def wait_for(process: subprocess.Popen[bytes], port: int, path: str, log: Path, seconds: float = START_SECONDS) -> None:
    """Returns once a server answers 200 there; `BenchmarkError` with the end of its log where it does not, or ends."""
    request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if process.poll() is not None:
            raise BenchmarkError(f"a server ended with {process.returncode} before it was ready:\n{_end_of(log)}")
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1.0) as connection:
                connection.sendall(request)
                if connection.recv(64).startswith(b"HTTP/1.1 200"):
                    return
        except OSError:
            pass
        time.sleep(0.05)
    raise BenchmarkError(f"a server was not ready within {seconds:g} s:\n{_end_of(log)}")


def _end_of(log: Path) -> str:
    return log.read_text(errors="replace")[-3000:]


@contextmanager
def floor(bundles: Mapping[str, Bundle], workload: Workload, core: int | None) -> Iterator[Contender]:
    """session.run alone, on inputs that were made beforehand: what no service around this graph can undercut."""
    with _process(_run_sessions, core, {name: bundle.path for name, bundle in bundles.items()}, workload) as line:
        line.recv()  # the sessions stand

        def measure(cell: Cell, seconds: float) -> Sample:
            line.send(("measure", cell.model, cell.candidates, seconds))
            latency_ms, cpu, elapsed = line.recv()
            return Sample(len(latency_ms) / elapsed, 1e3 * cpu / len(latency_ms), latency_ms, None)

        def score(model: str, request: AdRequest) -> list[float]:
            line.send(("score", model, request))
            pctr: list[float] = line.recv()
            return pctr

        yield Contender(FLOOR, measure, score, 1)


def _run_sessions(core: int | None, line: Connection, paths: Mapping[str, Path], workload: Workload) -> None:
    """The floor's process: one thread, no spinning, as our service runs its sessions too."""
    pin(core)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    bundles = {name: read_bundle(path) for name, path in paths.items()}
    sessions = {
        name: onnxruntime.InferenceSession(bundle.model_path, options, providers=["CPUExecutionProvider"])
        for name, bundle in bundles.items()
    }

    def inputs(model: str, request: AdRequest) -> dict[str, NDArray[np.int32]]:
        encoder = bundles[model].encoder
        return graph_inputs([encoder.encode_context(request.context)], [encoder.encode_candidates(request.candidates)])

    feeds = {
        (name, count): [inputs(name, request) for request in requests]
        for name in bundles
        for count, requests in workload.items()
    }
    line.send("ready")
    while True:
        match line.recv():
            case ("measure", model, candidates, seconds):
                line.send(_run_for(sessions[model].run, feeds[model, candidates], seconds))
            case ("score", model, request):
                line.send(sessions[model].run([PCTR], inputs(model, request))[0].tolist())
            case _:
                return


def _run_for(
    run: Callable[..., object], feeds: Sequence[Mapping[str, object]], seconds: float
) -> tuple[NDArray[np.float64], float, float]:
    """(latency of each run in ms, CPU seconds, seconds)."""
    clock, latencies = time.perf_counter_ns, []
    outputs = [PCTR]
    cpu, began = time.process_time(), clock()
    until = began + int(seconds * 1e9)
    place, now = 0, began
    while now < until:
        started = clock()
        run(outputs, feeds[place])
        now = clock()
        latencies.append(now - started)
        place = (place + 1) % len(feeds)
    return np.array(latencies) / 1e6, time.process_time() - cpu, (now - began) / 1e9


def generator_cost(
    requests: Sequence[bytes], connections: int, seconds: float, core: int | None
) -> tuple[float, float]:
    """(requests/s, generator's CPU microseconds a request) against a server that does nothing."""
    with _process(answer_nothing, core) as line:
        load = closed_loop(line.recv(), requests, connections, seconds)
    return load.requests_per_second, 1e6 * load.generator_cpu_seconds / len(load.latency_ms)


@contextmanager
def _process(target: Callable[..., None], core: int | None, *arguments: object) -> Iterator[Connection]:
    """A process of our own that talks over a pipe; ended on the way out."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=target, args=(core, theirs, *arguments), daemon=True)
    process.start()
    theirs.close()
    try:
        yield ours
    except EOFError:
        raise BenchmarkError("a helper process of the benchmark died; what it printed says why") from None
    finally:
        process.terminate()
        process.join()
        ours.close()
