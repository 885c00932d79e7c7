"""python -m benchmarks.tails: how long the slowest hundredth waits, here and at the naive service, under equal load.

In every round the naive service's capacity is measured anew (callers in a closed loop). Then both services get the very
same Poisson stream, at shares of that capacity, one after the other on the same core; which is first changes from round
to round. Time counts from when a request came, not from when a connection was free. Both answer the same pctr to the
same requests before anything is timed. A ratio of 99th percentiles is taken within a round; beside the median of rounds
and its spread stands that of all rounds' requests together.

--first as in `benchmarks.overload`, for both services: where other work shares the machine, tails are that work's word.
What takes nearly all of a core for a second before all other work is stopped by the kernel, so turns are shorter than
that then, and each is followed by a pause of its length.

What the naive service would do beyond its capacity is no question of tails: it has no bound, and they grow without end.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray

from benchmarks.contenders import NAIVE, RETORT, BenchmarkError, contenders
from benchmarks.load import closed_loop, http_request
from benchmarks.machine import cpu_seconds, facts, pin, put_first, put_process_first, put_workers_first, two_cores
from benchmarks.overload import CALLERS, REST_SECONDS, open_loop
from benchmarks.results import conditions, latency_rows, publish
from benchmarks.workload import make_requests
from models.bundle import read_bundle
from models.versions import Repository

CONNECTIONS = 50
AGREE = 1e-5
PAUSE_SECONDS = 0.2
HEADINGS = (
    "| model | candidates | a second | its CPU, ours | share of its capacity | requests | p50, ms: ours, its "
    "| p99, ms: ours, its | its / ours | all rounds |",
    "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
)


def main(arguments: Sequence[str]) -> int:
    """Prints the table, or writes it into a document."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tails",
        description="99th percentiles beside the naive service's, under equal load.",
        epilog=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--repository", type=Path, default=Path("models/repository"), metavar="DIR", help="bundles")
    parser.add_argument("--models", nargs="+", default=["student"], metavar="NAME", help="live versions of [student]")
    parser.add_argument("--candidates", nargs="+", type=int, default=[50], metavar="N", help="ads a request [50]")
    parser.add_argument(
        "--shares", nargs="+", type=float, default=[0.5, 0.8, 0.95], metavar="S", help="of its capacity [0.5 0.8 0.95]"
    )
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="pairs of turns of each [5]")
    parser.add_argument("--seconds", type=float, default=3.0, metavar="S", help="of one turn [3]")
    parser.add_argument("--first", action="store_true", help="before all other work of the machine; takes root")
    parser.add_argument("--write", type=Path, metavar="FILE", help="replace the block `tails` of this document")
    options = parser.parse_args(arguments)
    repository = Repository(options.repository)
    bundles = {name: read_bundle(repository.path(name, repository.live(name))) for name in options.models}
    machine = facts()
    server, generator = two_cores()
    pin(generator)
    lines = list(HEADINGS)
    refused = 0
    for name, bundle in bundles.items():
        workload = {count: make_requests(bundle, count, 200) for count in options.candidates}
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="retort-bench-")))
            sides = stack.enter_context(contenders({name: bundle}, workload, server, folder))
            ours, its = (next(side for side in sides if side.name == which) for which in (RETORT, NAIVE))
            for count, requests in workload.items():
                for request in requests:
                    if not np.allclose(ours.score(name, request), its.score(name, request), rtol=0, atol=AGREE):
                        raise BenchmarkError(f"{name}: the two services answer different pctr")
                sent = [http_request("/predict", request.body(name)) for request in requests]
                servers = {side.name: side.servers[name] for side in (ours, its)}
                if options.first:
                    put_workers_first(servers[RETORT][0].pid)
                    put_process_first(servers[NAIVE][0].pid)
                    put_first(0)
                rest, pause = (REST_SECONDS, options.seconds) if options.first else (0.0, PAUSE_SECONDS)
                rates: list[float] = []
                cpu: dict[tuple[float, str], list[float]] = {}
                found: dict[tuple[float, str], list[NDArray[np.float64]]] = {}
                for number in range(options.rounds):
                    capacity = closed_loop(servers[NAIVE][1], sent, CALLERS, options.seconds).requests_per_second
                    rates.append(capacity)
                    for share in options.shares:
                        for side in (RETORT, NAIVE) if number % 2 else (NAIVE, RETORT):
                            process, port = servers[side]
                            time.sleep(pause)
                            before = cpu_seconds(process.pid)
                            rate = share * capacity
                            load = open_loop(port, sent, CONNECTIONS, rate, options.seconds, number, rest)
                            each = 1e3 * (cpu_seconds(process.pid) - before) / len(load.latency_ms)
                            refused += load.refused
                            cpu.setdefault((share, side), []).append(each)
                            found.setdefault((share, side), []).append(load.latency_ms)
                middle = options.shares[len(options.shares) // 2]
                costs = ", ".join(f"{median(cpu[middle, side]):.2f}" for side in (NAIVE, RETORT))
                what = f"| {name} | {count} | {median(rates):,.0f} | {costs} "
                lines += [what + row for row in latency_rows(found, options.shares, RETORT, NAIVE)]
    more = f"connections: {CONNECTIONS}, rounds: {options.rounds} of {options.seconds:g} s, median (least-greatest); "
    more += f"refused: {refused}"
    publish([conditions("tails", arguments, machine, more), "", *lines], options.write, "tails")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
