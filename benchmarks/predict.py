"""python -m benchmarks.predict: /predict beside session.run alone and beside the naive service, in one run.

What it answers: how many requests a second does one core serve, how long does a caller wait, how much of that is the
model's own time (session.run: the floor), and what would the service everyone writes first make of the same bundle?
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contenders import (
    FLOOR,
    BenchmarkError,
    Cell,
    Contender,
    Workload,
    contenders,
    generator_cost,
)
from benchmarks.load import LoadError, http_request
from benchmarks.machine import commit, facts, pin, siblings, two_cores
from benchmarks.results import Turns, report, write_block, write_json
from benchmarks.workload import make_requests
from models.bundle import Bundle, read_bundle
from models.errors import ModelsError
from models.versions import Repository

TEACHING = """
How it is measured. Three contenders answer the same requests from the same bundle files: our service with one worker
(every request names an experiment, is assigned and counted as in production), benchmarks/naive_service.py, and
session.run on inputs made beforehand. Before anything is timed, all three must give the same pctr. Servers have one
core and the generator another. In each round every contender takes its turn, in an order that alternates; ratios are
taken within a round.

Read ratios rather than times when machines differ, and do not compare two runs on a machine that others use.

examples:
  python -m benchmarks.predict                         the whole table, about five minutes
  python -m benchmarks.predict --quick                 does it run at all? some seconds, numbers of no value
  python -m benchmarks.predict --models student --candidates 50 --connections 8 --rounds 15
  python -m benchmarks.predict --write docs/benchmarks.md     put the table into the document
"""

SAME_PCTR = 1e-6
"""Largest difference between two contenders' answers."""


def parser() -> argparse.ArgumentParser:
    """Every option, with what it is for."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.predict",
        description="Requests/s, latency and CPU time of /predict, beside session.run alone and the naive service.",
        epilog=TEACHING,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--repository", type=Path, default=Path("models/repository"), metavar="DIR", help="bundles")
    made.add_argument("--models", nargs="+", default=["student", "ensemble"], metavar="NAME", help="live versions of")
    made.add_argument("--candidates", nargs="+", type=_count, default=[1, 50, 200], metavar="N", help="ads a request")
    made.add_argument(
        "--connections", nargs="+", type=_count, default=[1, 8], metavar="C", help="callers that wait for their answer"
    )
    made.add_argument("--rounds", type=_count, default=5, metavar="N", help="turns of each contender [5]")
    made.add_argument("--seconds", type=float, default=1.5, metavar="S", help="of one turn [1.5]")
    made.add_argument("--requests", type=_count, default=200, metavar="N", help="distinct requests a size [200]")
    made.add_argument("--seed", type=int, default=1, help="of the requests [1]")
    made.add_argument("--quick", action="store_true", help="one short round of little: a smoke test")
    made.add_argument("--out", type=Path, default=Path("runs/bench"), metavar="DIR", help="for the JSON [runs/bench]")
    made.add_argument("--write", type=Path, metavar="FILE", help="replace the block `predict` of this document")
    return made


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got {value}")
    return value


def main(arguments: Sequence[str]) -> int:
    """Runs the benchmark; 0 done, 2 there is nothing to measure or it would not be the same work."""
    options = parser().parse_args(arguments)
    if options.quick:
        options.candidates, options.connections = options.candidates[:2], options.connections[-1:]
        options.rounds, options.seconds, options.requests = 1, 0.2, 20
    try:
        bundles = {name: _live(options.repository, name) for name in options.models}
        conditions, turns = run(bundles, options)
    except (BenchmarkError, LoadError, ModelsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    conditions["command"] = shlex.join(["python", "-m", "benchmarks.predict", *arguments])
    text = report(conditions, turns)
    print(text)
    path = options.out / f"predict-{conditions['date'].replace(':', '')}.json"
    write_json(path, conditions, turns)
    if options.write is not None:
        write_block(options.write, "predict", text)
    print(path)
    return 0


def _live(repository: Path, name: str) -> Bundle:
    found = Repository(repository)
    if name not in found.names():
        raise BenchmarkError(
            f"{repository} holds no model '{name}'. Say `make train` (or `python -m training run synthetic`) first, "
            "which trains on the built-in log and exports student and ensemble; or name yours with --models."
        )
    return read_bundle(found.path(name, found.live(name)))


def run(bundles: dict[str, Bundle], options: argparse.Namespace) -> tuple[dict[str, Any], list[Turns]]:
    """The conditions, and the turns of every cell."""
    first = next(iter(bundles.values()))
    for name, bundle in bundles.items():
        if bundle.schema != first.schema:
            raise BenchmarkError(f"models {first.name} and {name} take different fields: measure them one by one")
    workload: Workload = {n: make_requests(first, n, options.requests, options.seed) for n in options.candidates}
    machine = facts()
    server, generator = two_cores()
    pin(generator)
    costs = [_generator_cost(options, workload, connections, server, first) for connections in options.connections]
    cells = [
        Cell(model, candidates, connections)
        for model in bundles
        for candidates in options.candidates
        for connections in options.connections
    ]
    with (
        tempfile.TemporaryDirectory(prefix="retort-bench-") as folder,
        contenders(bundles, workload, server, Path(folder)) as all_of_them,
    ):
        check_same_answers(all_of_them, list(bundles), workload)
        turns = _take_turns(all_of_them, cells, options.rounds, options.seconds)
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%MZ"),
        "commit": commit(),
        "machine": machine,
        "pinned": {
            "server": server,
            "generator": generator,
            "share_a_core": server is not None and generator in siblings(server),
        },
        "rounds": options.rounds,
        "seconds": options.seconds,
        "requests": options.requests,
        "seed": options.seed,
        "generator": costs,
        "threads": {contender.name: contender.threads for contender in all_of_them},
        "bundles": {name: _bundle_facts(bundle) for name, bundle in bundles.items()},
    }, turns


def _generator_cost(
    options: argparse.Namespace, workload: Workload, connections: int, core: int | None, bundle: Bundle
) -> dict[str, float]:
    largest = max(workload)
    requests = [http_request("/predict", request.body(bundle.name)) for request in workload[largest]]
    rate, cpu_us = generator_cost(requests, connections, options.seconds, core)
    return {"connections": connections, "candidates": largest, "requests_per_second": rate, "cpu_us": cpu_us}


def _bundle_facts(bundle: Bundle) -> dict[str, Any]:
    return {
        "version": bundle.version,
        "sha256": bundle.sha256,
        "parameters_embedding": bundle.manifest.cost.parameters_embedding,
        "parameters_dense": bundle.manifest.cost.parameters_dense,
        "context_fields": len(bundle.schema.context_fields),
        "candidate_fields": len(bundle.schema.candidate_fields),
    }


def check_same_answers(all_of_them: Sequence[Contender], models: Sequence[str], workload: Workload) -> None:
    """Every contender gives the floor's pctr for every request, or `BenchmarkError`: only equal work is compared."""
    (floor,) = [contender for contender in all_of_them if contender.name == FLOOR]
    for model in models:
        for candidates, requests in workload.items():
            for number, request in enumerate(requests):
                expected = np.array(floor.score(model, request))
                for contender in all_of_them:
                    got = np.array(contender.score(model, request))
                    if got.shape != expected.shape or not np.abs(got - expected).max() <= SAME_PCTR:
                        raise BenchmarkError(
                            f"{contender.name} and {floor.name} disagree on {model}, request {number} of "
                            f"{candidates} candidates: they would not be doing the same work"
                        )


def _take_turns(all_of_them: Sequence[Contender], cells: Sequence[Cell], rounds: int, seconds: float) -> list[Turns]:
    """Every contender in every cell in every round, after a warm-up; the order alternates."""
    turns = [Turns(cell) for cell in cells]
    for contender in all_of_them:
        for cell in cells:
            contender.measure(cell, min(0.2, seconds))
    for number in range(rounds):
        for place, taken in enumerate(turns):
            _tell(f"round {number + 1} of {rounds}, cell {place + 1} of {len(cells)}: {taken.cell}")
            order = all_of_them if (number + place) % 2 == 0 else list(reversed(all_of_them))
            for contender in order:
                taken.add(contender.name, contender.measure(taken.cell, seconds))
    _tell("")
    return turns


def _tell(text: str) -> None:
    """One line on a terminal, written over; nothing where nobody watches."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
