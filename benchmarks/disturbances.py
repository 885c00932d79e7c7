"""python -m benchmarks.disturbances: do good requests wait longer while versions are swapped, or rubbish comes in?

One service of one worker answers good requests as they come (a Poisson process, at shares of what it can do), whether
or not earlier ones are answered. In every round there is a turn with nothing else and a turn with a disturbance, and
which is first changes from round to round. The ratio of 99th percentiles is taken within a round; beside its median and
spread stands that of all rounds' requests together.

    swaps     a process writes the model's `live` file again and again: from one version to another and back, each
              loaded, proven by its golden rows, and answering before the next is asked for; the cache of candidates
              begins anew
    rubbish   a process sends good bodies with bytes changed, cut, doubled or put in, so many a second; an answer of
              5xx ends the benchmark

--first as in `benchmarks.shadow`: generator and service come before all other work of the machine, and the process that
disturbs does not.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import multiprocessing
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.contenders import BenchmarkError, serve
from benchmarks.load import LoadError, ask_once, closed_loop, http_request
from benchmarks.machine import facts, pin, put_first, put_workers_first, two_cores
from benchmarks.overload import CALLERS, REST_SECONDS, open_loop
from benchmarks.results import conditions, latency_rows, publish
from benchmarks.workload import make_requests
from models.bundle import Bundle, read_bundle, write_bundle
from models.manifest import ModelCard
from models.versions import Repository

ALONE = "alone"
BESIDE = ("swaps", "rubbish")
EXPERIMENT = "disturbed"
REACTION_SECONDS = 30.0


def write_twice(bundle: Bundle, repository: Path) -> None:
    """The same model as versions 1 and 2 of a repository."""
    external = {file.name: file for file in bundle.path.glob("model.onnx.*")}
    card = ModelCard(**{key: getattr(bundle.manifest, key) for key in ModelCard.model_fields})
    for _ in range(2):
        write_bundle(
            repository,
            bundle.name,
            encoder=bundle.encoder,
            card=card,
            golden=bundle.golden,
            model=bundle.model_path,
            external=external,
        )


def swap_on(line: Connection, repository: Path, model: str, port: int, request: bytes, rest_seconds: float) -> None:
    """Moves `live` between versions 1 and 2 while told to; each time until the new one answers. Says how often."""

    def answering() -> int | None:
        try:
            return int(json.loads(ask_once(port, request))["version"])
        except LoadError:  # refused, as others may be
            return None

    version = answering() or 2
    while line.recv():
        swaps = 0
        while not line.poll():
            version = 3 - version
            Repository(repository).write_live(model, version)
            until = time.monotonic() + REACTION_SECONDS
            while answering() != version:
                if time.monotonic() > until:
                    line.send(f"version {version} did not answer within {REACTION_SECONDS:g} s")
                    return
                time.sleep(0.01)
            swaps += 1
            time.sleep(rest_seconds)
        line.recv()
        line.send(swaps)


def spoil(body: bytes, chooser: random.Random) -> bytes:
    """A body with some of its bytes changed, left out, doubled, or others put in."""
    place, length = chooser.randrange(len(body)), chooser.randrange(1, 9)
    match chooser.randrange(5):
        case 0:
            return body[:place]
        case 1:
            return body[:place] + body[place + length :]
        case 2:
            return body[:place] + body[place : place + length] + body[place:]
        case 3:
            return body[:place] + chooser.randbytes(length) + body[place + length :]
        case _:
            put = chooser.choice((b"NaN", b"1e999", b"\xff", b'"\\ud800"', b"[[[[", b"}", b"9" * 30, b"null", b"-"))
            return body[:place] + put + body[place:]


def send_rubbish(line: Connection, port: int, bodies: Sequence[bytes], rate: float) -> None:
    """Posts spoiled bodies while told to. Says how many, or what was wrong with an answer."""
    chooser = random.Random(1)
    while line.recv():
        sent, began = 0, time.monotonic()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=REACTION_SECONDS)
        while not line.poll():
            time.sleep(max(0.0, began + sent / rate - time.monotonic()))
            body = spoil(chooser.choice(bodies), chooser)
            connection.request("POST", "/predict", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            if answer.status >= 500:
                line.send(f"a spoiled body was answered by {answer.status}: {body[:200]!r}")
                return
            sent += 1
        connection.close()
        line.recv()
        line.send(sent)


@contextmanager
def disturber(work: Callable[..., None], *arguments: object) -> Iterator[Connection]:
    """A process that does `work` between True and False on the line, and then says how much of it."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=work, args=(theirs, *arguments), daemon=True)
    process.start()
    theirs.close()
    try:
        yield ours
    finally:
        process.kill()
        process.join()


def done(line: Connection) -> int:
    """Stops a disturber; how much it did. `BenchmarkError` with what it says went wrong."""
    try:
        with contextlib.suppress(BrokenPipeError):  # it has ended, and may have said why
            line.send(False)
        said = line.recv()
    except EOFError:
        raise BenchmarkError("the process that disturbs has died; what it printed says why") from None
    if isinstance(said, str):
        raise BenchmarkError(said)
    return int(said)


def main(arguments: Sequence[str]) -> int:
    """Prints the table, or writes it into a document."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.disturbances",
        description="What swaps and rubbish cost good requests.",
        epilog=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--repository", type=Path, default=Path("models/repository"), metavar="DIR", help="bundles")
    parser.add_argument("--model", default="student", metavar="NAME", help="live version of [student]")
    parser.add_argument("--candidates", type=int, default=50, metavar="N", help="ads a request [50]")
    parser.add_argument("--loads", nargs="+", type=float, default=[0.2, 0.5], metavar="L", help="in capacities")
    parser.add_argument("--connections", type=int, default=32, metavar="C", help="open connections [32]")
    parser.add_argument(
        "--beside", nargs="+", choices=["swaps", "rubbish"], default=["swaps", "rubbish"], help="[both]"
    )
    parser.add_argument("--rest", type=float, default=0.2, metavar="S", help="seconds from one swap to the next [0.2]")
    parser.add_argument("--rubbish", type=float, default=100.0, metavar="N", help="spoiled bodies a second [100]")
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="pairs of turns of each [7]")
    parser.add_argument("--seconds", type=float, default=1.0, metavar="S", help="of one turn [1]")
    parser.add_argument("--first", action="store_true", help="before all other work of the machine; takes root")
    parser.add_argument("--write", type=Path, metavar="FILE", help="replace the block `disturbances` of this document")
    options = parser.parse_args(arguments)
    found = Repository(options.repository)
    bundle = read_bundle(found.path(options.model, found.live(options.model)))
    machine = facts()
    server, generator = two_cores()
    pin(generator)
    bodies = [request.body(EXPERIMENT) for request in make_requests(bundle, options.candidates, 200)]
    sent = [http_request("/predict", body) for body in bodies]
    latencies: dict[str, dict[tuple[float, str], list[NDArray[np.float64]]]] = {}
    counts: dict[str, int] = {}
    refused: Counter[tuple[str, float, str]] = Counter()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="retort-bench-")))
        repository = folder / "repository"
        repository.mkdir()
        write_twice(bundle, repository)
        arm = {"name": "served", "model": bundle.name, "version": "latest", "follow": True, "weight": 1}
        stated = [{"name": EXPERIMENT, "salt": EXPERIMENT, "default": True, "arms": [arm]}]
        process, port = stack.enter_context(serve(repository, [bundle], server, folder, experiments=stated))
        lines = {
            BESIDE[0]: stack.enter_context(disturber(swap_on, repository, bundle.name, port, sent[0], options.rest)),
            BESIDE[1]: stack.enter_context(disturber(send_rubbish, port, bodies, options.rubbish)),
        }
        if options.first:
            put_workers_first(process.pid)
            put_first(0)
        rest = REST_SECONDS if options.first else 0.0
        for _ in range(2):  # caches fill
            capacity = closed_loop(port, sent, CALLERS, options.seconds).requests_per_second
            time.sleep(options.seconds)
        for what, line in ((what, lines[what]) for what in options.beside):
            for number in range(options.rounds):
                for load in options.loads:
                    for side in (ALONE, what) if number % 2 else (what, ALONE):
                        if side == what:
                            line.send(True)
                        rate = load * capacity
                        seen = open_loop(port, sent, options.connections, rate, options.seconds, number, rest)
                        if side == what:
                            counts[what] = counts.get(what, 0) + done(line)
                        refused[what, load, side] += seen.refused
                        latencies.setdefault(what, {}).setdefault((load, side), []).append(seen.latency_ms)
    if not all(counts.values()):
        raise SystemExit(f"nothing was disturbed, so nothing was measured: {counts}")
    table = [
        "| beside | load | answers of each | p50 alone, beside, ms | p99 alone, beside, ms | p99, ratio in a round "
        "| of all | refused alone, beside |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for what, turns in latencies.items():
        rows = latency_rows(turns, options.loads, ALONE, what)
        for load, row in zip(options.loads, rows, strict=True):
            table.append(f"| {counts[what]:,} {what} {row} {refused[what, load, ALONE]}, {refused[what, load, what]} |")
    more = (
        f"{bundle.name}, {options.candidates} candidates, capacity {capacity:,.0f} requests/s, rounds of "
        f"{options.seconds:g} s: {options.rounds}"
    )
    publish([conditions("disturbances", arguments, machine, more), "", *table], options.write, "disturbances")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
