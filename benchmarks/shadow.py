"""python -m benchmarks.shadow: does an arm answer later because another one scores in its shadow?

Two services of one worker on one core answer the same requests with the student, as they come (a Poisson process, at
shares of what one of them can do), whether or not earlier ones are answered; both keep a log. In one, a sample is
scored by the ensemble too. They take turns, and which is first changes from round to round. The ratio of 99th
percentiles is taken within a round; beside its median and spread stands that of all rounds' requests together.

Where other work shares the machine, a 99th percentile is that work's word. With --first, the generator and both
services' event loops come before the workers' other threads, and these before everything else (real-time priorities,
which take root): as on a machine of their own, but for caches and memory.
"""

from __future__ import annotations

import argparse
import re
import socket
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.contenders import serve
from benchmarks.load import closed_loop, http_request
from benchmarks.machine import facts, pin, put_first, put_workers_first, two_cores
from benchmarks.overload import CALLERS, REST_SECONDS, open_loop
from benchmarks.results import conditions, latency_rows, publish
from benchmarks.workload import make_requests
from models.bundle import Bundle, read_bundle
from models.versions import Repository

WITHOUT, WITH = "without", "with"
EXPERIMENT = "shadow"


def experiment(served: Bundle, unseen: Bundle, sample: float) -> dict[str, object]:
    """All units get `served`; a sample is scored by `unseen` too, where it is above 0."""
    arms = [
        {"name": name, "model": bundle.name, "version": bundle.version, "weight": weight}
        for name, bundle, weight in (("served", served, 1), ("unseen", unseen, 0))
    ]
    shadow = {"shadow": {"arm": "unseen", "sample": sample}} if sample else {}
    return {"name": EXPERIMENT, "salt": EXPERIMENT, "default": True, "arms": arms, **shadow}


def counted(port: int) -> tuple[float, float]:
    """(requests scored in the shadow, requests dropped), by the service's own count."""
    with socket.create_connection(("127.0.0.1", port), timeout=30.0) as connection:
        connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        text = b"".join(iter(lambda: connection.recv(1 << 16), b"")).decode()
    found = (re.findall(rf"^retort_shadow_{what}_total{{.*}} (\S+)$", text, re.M) for what in ("scored", "dropped"))
    scored, dropped = (sum(map(float, values)) for values in found)
    return scored, dropped


def main(arguments: Sequence[str]) -> int:
    """Prints the table, or writes it into a document. Exits with 1 where nothing was scored in the shadow."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.shadow",
        description="What a shadow costs the arm that is served.",
        epilog=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--repository", type=Path, default=Path("models/repository"), metavar="DIR", help="bundles")
    parser.add_argument("--served", default="student", metavar="NAME", help="model that answers [student]")
    parser.add_argument("--shadow", default="ensemble", metavar="NAME", help="model in the shadow [ensemble]")
    parser.add_argument("--sample", type=float, default=0.1, metavar="SHARE", help="of the requests [0.1]")
    parser.add_argument("--candidates", type=int, default=50, metavar="N", help="ads a request [50]")
    parser.add_argument("--loads", nargs="+", type=float, default=[0.2, 0.5], metavar="L", help="in capacities")
    parser.add_argument("--connections", type=int, default=32, metavar="C", help="open connections [32]")
    parser.add_argument("--rounds", type=int, default=10, metavar="N", help="turns of each [10]")
    parser.add_argument("--seconds", type=float, default=2.0, metavar="S", help="of one turn [2]")
    parser.add_argument("--first", action="store_true", help="before all other work of the machine; takes root")
    parser.add_argument("--write", type=Path, metavar="FILE", help="replace the block `shadow` of this document")
    options = parser.parse_args(arguments)
    found = Repository(options.repository)
    served, unseen = (read_bundle(found.path(n, found.live(n))) for n in (options.served, options.shadow))
    machine = facts()
    server, generator = two_cores()
    pin(generator)
    sent = [
        http_request("/predict", request.body(EXPERIMENT)) for request in make_requests(served, options.candidates, 200)
    ]
    latencies: dict[tuple[float, str], list[NDArray[np.float64]]] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="retort-bench-")))
        ports, services = {}, []
        for name, sample in ((WITHOUT, 0.0), (WITH, options.sample)):
            stated = [experiment(served, unseen, sample)]
            log = ["--log", str(folder / name)]
            process, ports[name] = stack.enter_context(
                serve(options.repository, [served], server, folder, log, experiments=stated)
            )
            services.append(process.pid)
        capacity = 0.0
        for name in (WITH, WITHOUT):  # caches fill, too
            capacity = closed_loop(ports[name], sent, CALLERS, options.seconds).requests_per_second
        if options.first:
            for supervisor in services:
                put_workers_first(supervisor)
            put_first(0)
        before = counted(ports[WITH])
        for number in range(options.rounds):
            for load in options.loads:
                for name in (WITHOUT, WITH) if number % 2 else (WITH, WITHOUT):
                    rate = load * capacity
                    rest = REST_SECONDS if options.first else 0.0
                    seen = open_loop(ports[name], sent, options.connections, rate, options.seconds, number, rest)
                    latencies.setdefault((load, name), []).append(seen.latency_ms)
        scored, dropped = (after - had for after, had in zip(counted(ports[WITH]), before, strict=True))
    answered = sum(len(turn) for (_, name), turns in latencies.items() if name == WITH for turn in turns)
    if not scored:
        raise SystemExit("nothing was scored in the shadow: nothing was measured")
    lines = [
        "| load | requests of each | p50 without, with, ms | p99 without, with, ms | p99, ratio in a round | of all |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    lines += latency_rows(latencies, options.loads, WITHOUT, WITH)
    more = (
        f"{served.name} served, {options.sample:g} of the requests scored by {unseen.name} too; {options.candidates} "
        f"candidates, capacity {capacity:,.0f} requests/s, rounds of {options.seconds:g} s: {options.rounds}; of "
        f"{answered:,} requests {scored:,.0f} were scored in the shadow and {dropped:,.0f} dropped"
    )
    publish([conditions("shadow", arguments, machine, more), "", *lines], options.write, "shadow")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
