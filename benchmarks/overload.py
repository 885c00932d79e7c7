"""python -m benchmarks.overload: an open loop at several loads, up to five times what the service can do.

Requests come when they come (a Poisson process), whether or not earlier ones are answered, as an ad exchange sends
them; each takes a free connection or waits for one, and its time counts from when it came. Capacity is what eight
callers in a closed loop get. What is reported is goodput (answers with scores, as a share of capacity), how long those
took, and what a refusal costs: the CPU time that answers with scores do not explain, by refused request.
"""

from __future__ import annotations

import argparse
import gc
import select
import socket
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.contenders import serve
from benchmarks.load import PATIENCE_SECONDS, LoadError, closed_loop, http_request
from benchmarks.machine import cpu_seconds, facts, pin, two_cores
from benchmarks.results import conditions, publish
from benchmarks.workload import make_requests
from models.bundle import read_bundle
from models.versions import Repository

CALLERS = 8
OK, REFUSED = b"HTTP/1.1 200", b"HTTP/1.1 429"
_LENGTH = b"content-length: "
_END = b"\r\n\r\n"


@dataclass(frozen=True)
class OpenLoad:
    """What an open loop saw."""

    latency_ms: NDArray[np.float64]
    """Of each answer with scores, from when its request came."""
    refused: int
    seconds: float

    @property
    def goodput(self) -> float:
        return len(self.latency_ms) / self.seconds


def open_loop(
    port: int,
    requests: Sequence[bytes],
    connections: int,
    rate: float,
    seconds: float,
    seed: int = 1,
    rest_seconds: float = 0.0,
) -> OpenLoad:
    """Sends `rate` requests a second for `seconds`, over so many connections. `rest_seconds`: how long it sleeps each
    time round; by default it never does, which the kernel does not bear for long from who has real-time priority.

    Raises `LoadError` for any answer but 200 and 429.
    """
    gaps = np.random.default_rng(seed).exponential(1 / rate, int(rate * seconds))
    due = np.cumsum(gaps).tolist()
    latencies: list[float] = []
    refused = place = 0
    poll = select.epoll()
    with ExitStack() as stack:
        stack.callback(poll.close)
        sockets: dict[int, socket.socket] = {}
        for _ in range(connections):
            one = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECONDS))
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            poll.register(one.fileno(), select.EPOLLIN)
            sockets[one.fileno()] = one
        free, came, received = deque(sockets), dict.fromkeys(sockets, 0.0), dict.fromkeys(sockets, b"")
        busy = 0
        clock = time.perf_counter
        gc.disable()
        stack.callback(gc.enable)
        began = heard = clock()
        while place < len(due) or busy:
            if rest_seconds:
                time.sleep(rest_seconds)
            now = clock() - began
            while place < len(due) and due[place] <= now and free:
                number = free.popleft()
                came[number] = due[place]
                sockets[number].sendall(requests[place % len(requests)])
                place += 1
                busy += 1
            if clock() - heard > PATIENCE_SECONDS:
                raise LoadError(f"no answer within {PATIENCE_SECONDS} s")
            for number, _ in poll.poll(0):
                heard = clock()
                answer = received[number] + sockets[number].recv(1 << 18)
                end = answer.find(_END)
                at = answer[: max(end, 0)].lower().find(_LENGTH)
                if end < 0 or len(answer) < end + 4 + int(answer[at + len(_LENGTH) : answer.find(b"\r", at)]):
                    if not answer:
                        raise LoadError("the server closed a connection while an answer was due")
                    received[number] = answer
                    continue
                received[number] = b""
                if answer.startswith(OK):
                    latencies.append(heard - began - came[number])
                elif answer.startswith(REFUSED):
                    refused += 1
                else:
                    raise LoadError(f"expected 200 or 429, got {answer[:300]!r}")
                free.append(number)
                busy -= 1
        return OpenLoad(1e3 * np.array(latencies or [0.0]), refused, clock() - began)


def main(arguments: Sequence[str]) -> int:
    """Prints the table, or writes it into a document."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.overload",
        description="Goodput and latency in an open loop.",
        epilog=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--repository", type=Path, default=Path("models/repository"), metavar="DIR", help="bundles")
    parser.add_argument("--model", default="student", metavar="NAME", help="live version of")
    parser.add_argument("--candidates", nargs="+", type=int, default=[1, 50], metavar="N", help="ads a request")
    parser.add_argument("--loads", nargs="+", type=float, default=[0.5, 0.8, 0.95, 2, 5], help="in capacities")
    parser.add_argument("--connections", type=int, default=100, metavar="C", help="open connections [100]")
    parser.add_argument("--run-rows", nargs="+", default=["1", "64", "256"], help="values of --max-run-rows to compare")
    parser.add_argument("--in-flight", nargs="+", default=["64"], help="values of --max-in-flight to compare")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="turns of each [3]")
    parser.add_argument("--seconds", type=float, default=1.0, metavar="S", help="of one turn [1]")
    parser.add_argument("--write", type=Path, metavar="FILE", help="replace the block `overload` of this document")
    options = parser.parse_args(arguments)
    repository = Repository(options.repository)
    bundle = read_bundle(repository.path(options.model, repository.live(options.model)))
    machine = facts()
    server, generator = two_cores()
    pin(generator)
    lines = [
        "| candidates | joined rows | in flight | load | goodput / capacity | p50, ms | p99, ms | refused | us each |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="retort-bench-")))
        pairs = [(rows, cap) for rows in options.run_rows for cap in options.in_flight]
        servers = {}
        for rows, cap in pairs:
            chosen = ("--max-run-rows", rows, "--max-in-flight", cap)
            servers[rows, cap] = stack.enter_context(serve(options.repository, [bundle], server, folder, chosen))
        for count in options.candidates:
            sent = [http_request("/predict", r.body(bundle.name)) for r in make_requests(bundle, count, 200)]
            turns: dict[tuple[float, str, str], list[tuple[float, float, float, float, float]]] = {}
            for number in range(options.rounds + 1):
                for pair in pairs if number % 2 else list(reversed(pairs)):
                    process, port = servers[pair]
                    before = cpu_seconds(process.pid)
                    closed = closed_loop(port, sent, CALLERS, options.seconds)
                    capacity = closed.requests_per_second
                    own = (cpu_seconds(process.pid) - before) / len(closed.latency_ms)
                    for load in options.loads if number else ():
                        before = cpu_seconds(process.pid)
                        seen = open_loop(port, sent, options.connections, load * capacity, options.seconds, number)
                        spent = cpu_seconds(process.pid) - before - own * len(seen.latency_ms)
                        turns.setdefault((load, *pair), []).append(
                            (
                                seen.goodput / capacity,
                                float(np.percentile(seen.latency_ms, 50)),
                                float(np.percentile(seen.latency_ms, 99)),
                                seen.refused / (seen.refused + len(seen.latency_ms)),
                                1e6 * spent / seen.refused if seen.refused else float("nan"),
                            )
                        )
            for (load, rows, cap), found in sorted(turns.items()):
                share, p50, p99, refused, cost = np.median(np.array(found), axis=0)
                told = "" if np.isnan(cost) else f"{cost:.0f}"
                what = f"| {count} | {rows} | {cap} | {load:g}"
                lines.append(f"{what} | {share:.2f} | {p50:.2f} | {p99:.2f} | {refused:.0%} | {told} |")
    more = f"medians of rounds: {options.rounds}, {options.connections} connections"
    publish([conditions("overload", arguments, machine, more), "", *lines], options.write, "overload")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
