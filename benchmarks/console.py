"""python -m benchmarks.console: do requests wait for those who look at the console?

One service of one worker on one core answers requests as they come (a Poisson process, at shares of what it can do),
whether or not earlier ones are answered. In every other turn a process beside the generator asks for the page, again
and again, of one experiment after the other: many owners with the page open, or somebody hostile. The ratio of 99th
percentiles is taken within a round; beside its median and spread stands that of all rounds' requests together.
"""

from __future__ import annotations

import argparse
import http.client
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.contenders import serve
from benchmarks.load import closed_loop, http_request
from benchmarks.machine import facts, pin, two_cores
from benchmarks.overload import CALLERS, open_loop
from benchmarks.results import conditions, latency_rows, publish
from benchmarks.workload import make_requests
from models.bundle import Bundle, read_bundle
from models.versions import Repository

ALONE, WATCHED = "alone", "watched"
EXPERIMENTS = 50


def experiments(served: Bundle, other: Bundle) -> list[dict[str, object]]:
    """Two arms each; the first is the default one, and control gets all of it."""
    return [
        {
            "name": f"e{number}",
            "salt": f"e{number}",
            "default": number == 0,
            "arms": [
                {"name": name, "model": bundle.name, "version": bundle.version, "weight": weight}
                for name, bundle, weight in (("served", served, 1), ("other", other, 0))
            ],
        }
        for number in range(EXPERIMENTS)
    ]


def watch(port: int, core: int | None, each_seconds: float, on: Event, made: object) -> None:
    """Asks for pages while `on` is set, of another experiment each time; counts those that came."""
    pin(core)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30.0)
    for number in range(10**9):
        on.wait()
        began = time.perf_counter()
        connection.request("GET", f"/console?experiment=e{number % EXPERIMENTS}")
        reply = connection.getresponse()
        reply.read()
        if reply.status == 200:
            made.value += 1  # type: ignore[attr-defined]
        time.sleep(max(0.0, each_seconds - (time.perf_counter() - began)))


def main(arguments: Sequence[str]) -> int:
    """Prints the table, or writes it into a document. Exits with 1 where no page came."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.console",
        description="What looking at the console costs those who are scored.",
        epilog=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--repository", type=Path, default=Path("models/repository"), metavar="DIR", help="bundles")
    parser.add_argument("--served", default="student", metavar="NAME", help="model that answers [student]")
    parser.add_argument("--other", default="ensemble", metavar="NAME", help="model of the other arms [ensemble]")
    parser.add_argument("--looks", type=float, default=20.0, metavar="X", help="pages asked for a second [20]")
    parser.add_argument("--candidates", type=int, default=50, metavar="N", help="ads a request [50]")
    parser.add_argument("--loads", nargs="+", type=float, default=[0.2, 0.5], metavar="L", help="in capacities")
    parser.add_argument("--connections", type=int, default=32, metavar="C", help="open connections [32]")
    parser.add_argument("--rounds", type=int, default=10, metavar="N", help="turns of each [10]")
    parser.add_argument("--seconds", type=float, default=2.0, metavar="S", help="of one turn [2]")
    parser.add_argument("--write", type=Path, metavar="FILE", help="replace the block `console` of this document")
    options = parser.parse_args(arguments)
    found = Repository(options.repository)
    served, other = (read_bundle(found.path(n, found.live(n))) for n in (options.served, options.other))
    machine = facts()
    server, generator = two_cores()
    pin(generator)
    sent = [http_request("/predict", request.body("e0")) for request in make_requests(served, options.candidates, 200)]
    latencies: dict[tuple[float, str], list[NDArray[np.float64]]] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="retort-bench-")))
        stated = experiments(served, other)
        _, port = stack.enter_context(serve(options.repository, [served], server, folder, [], experiments=stated))
        on, made = multiprocessing.Event(), multiprocessing.Value("q", 0)
        given = (port, generator, 1 / options.looks, on, made)
        watcher = multiprocessing.Process(target=watch, args=given, daemon=True)
        watcher.start()
        stack.callback(watcher.kill)
        capacity = closed_loop(port, sent, CALLERS, options.seconds).requests_per_second
        for number in range(options.rounds):
            for load in options.loads:
                for name in (ALONE, WATCHED) if number % 2 else (WATCHED, ALONE):
                    (on.set if name == WATCHED else on.clear)()
                    rate = load * capacity
                    seen = open_loop(port, sent, options.connections, rate, options.seconds, number)
                    latencies.setdefault((load, name), []).append(seen.latency_ms)
                    on.clear()
        pages = made.value
    if not pages:
        raise SystemExit("no page came: nothing was measured")
    lines = [
        "| load | requests of each | p50 alone, watched, ms | p99 alone, watched, ms | p99, ratio by round | of all |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    lines += latency_rows(latencies, options.loads, ALONE, WATCHED)
    watched_seconds = options.rounds * len(options.loads) * options.seconds
    more = (
        f"{served.name}, {options.candidates} candidates, capacity {capacity:,.0f} requests/s, {options.rounds} rounds "
        f"of {options.seconds:g} s; {options.looks:g} pages a second were asked for, of {EXPERIMENTS} experiments in "
        f"turn, and {pages / watched_seconds:.1f} made"
    )
    publish([conditions("console", arguments, machine, more), "", *lines], options.write, "console")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
