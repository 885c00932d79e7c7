"""python -m benchmarks.overload: an open loop at several loads, up to five times what the service can do.

Requests come when they come (a Poisson process), whether or not earlier ones are answered, as an ad exchange sends
them; each takes a free connection or waits for one, and its time counts from when it came. Capacity is what eight
callers in a closed loop get, measured anew in each round. What is reported is goodput (answers with scores, as a share
of capacity), how long those took, also as a multiple of what they take at 80% of capacity over as many connections, and
what a refusal costs, the kernel's work for it included: the CPU time that answers with scores do not explain, by
refused request.

Where other work shares the machine, all of this is that work's word. With --first the generator and the service come
before it (real-time priority, which takes root); so that the rest of the machine lives, and the kernel does not stop
what takes all of a core for a second, every turn is followed by a pause of its length.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import select
import shlex
import socket
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray

from benchmarks.contenders import serve
from benchmarks.load import PATIENCE_SECONDS, LoadError, closed_loop, http_request
from benchmarks.machine import cpu_seconds, facts, pin, put_first, put_workers_first, two_cores
from benchmarks.results import Spread, conditions, publish
from benchmarks.workload import make_requests
from models.bundle import read_bundle
from models.versions import Repository

CALLERS = 8
REST_SECONDS = 2e-5
"""How long a generator that comes before all other work sleeps each time round."""
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
    """From the first request to the last answer."""

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


ORDINARY = 0.8
"""The load, in capacities, that others are compared with."""
HEADINGS = (
    "| model | candidates | options | connections | load | came, /s | goodput / capacity | p50, ms | p99, ms "
    "| p99 / p99 at 0.8 | refused | us each |",
    "|---|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
)


@dataclass(frozen=True)
class Turn:
    """One open loop, beside what was measured in the same round."""

    came: float
    goodput: float
    """As a share of capacity."""
    p50_ms: float
    p99_ms: float
    refused: float
    refusal_us: float
    """NaN where none was refused."""


def turn(seen: OpenLoad, cpu: float, capacity: float, own: float) -> Turn:
    """`cpu`: the server's processor seconds meanwhile; `own`: those of a request that is answered."""
    came = len(seen.latency_ms) + seen.refused
    each = 1e6 * (cpu - own * len(seen.latency_ms)) / seen.refused if seen.refused else float("nan")
    p50, p99 = (float(value) for value in np.percentile(seen.latency_ms, [50, 99]))
    return Turn(came / seen.seconds, seen.goodput / capacity, p50, p99, seen.refused / came, each)


def row(what: str, turns: Sequence[Turn], ordinary: Sequence[Turn]) -> str:
    """Medians over rounds, goodput and the ratio of 99th percentiles with their spread."""
    goodput = Spread.of([one.goodput for one in turns]).text("{:.2f}".format)
    late = Spread.of([one.p99_ms / usual.p99_ms for one, usual in zip(turns, ordinary, strict=True)])
    came, p50, p99, refused, each = (
        median(getattr(one, name) for one in turns) for name in ("came", "p50_ms", "p99_ms", "refused", "refusal_us")
    )
    told = "" if np.isnan(each) else f"{each:.0f}"
    return (
        f"{what} | {came:,.0f} | {goodput} | {p50:.2f} | {p99:.2f} | {late.text('{:.2f}'.format)} | {refused:.0%} "
        f"| {told} |"
    )


def main(arguments: Sequence[str]) -> int:
    """Prints the table, or writes it into a document."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.overload",
        description="Goodput and latency in an open loop.",
        epilog=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--repository", type=Path, default=Path("models/repository"), metavar="DIR", help="bundles")
    parser.add_argument("--models", nargs="+", default=["student"], metavar="NAME", help="live versions of [student]")
    parser.add_argument("--candidates", nargs="+", type=int, default=[50], metavar="N", help="ads a request [50]")
    parser.add_argument("--loads", nargs="+", type=float, default=[2, 5], help="in capacities, beside 0.8 [2 5]")
    parser.add_argument("--connections", nargs="+", type=int, default=[50, 200, 400], metavar="C", help="open at once")
    parser.add_argument(
        "--options", nargs="+", default=[""], metavar="TEXT", help="of the service, to compare: '--max-in-flight 16'"
    )
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="turns of each [3]")
    parser.add_argument("--seconds", type=float, default=1.0, metavar="S", help="of one turn [1]")
    parser.add_argument("--first", action="store_true", help="before all other work of the machine; takes root")
    parser.add_argument("--write", type=Path, metavar="FILE", help="replace the block `overload` of this document")
    options = parser.parse_args(arguments)
    repository = Repository(options.repository)
    bundles = [read_bundle(repository.path(name, repository.live(name))) for name in options.models]
    machine = facts()
    server, generator = two_cores()
    pin(generator)
    loads = [ORDINARY, *(load for load in options.loads if load != ORDINARY)]
    found: dict[tuple[str, int, str, int, float], list[Turn]] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="retort-bench-")))
        servers = {
            chosen: stack.enter_context(serve(options.repository, bundles, server, folder, shlex.split(chosen)))
            for chosen in options.options
        }
        if options.first:
            for process, _ in servers.values():
                put_workers_first(process.pid)
            put_first(0)
        rest, pause = (REST_SECONDS, options.seconds) if options.first else (0.0, 0.0)
        for bundle, count in itertools.product(bundles, options.candidates):
            sent = [http_request("/predict", r.body(bundle.name)) for r in make_requests(bundle, count, 200)]
            for number in range(options.rounds + 1):
                for chosen in servers if number % 2 else reversed(servers):
                    process, port = servers[chosen]
                    before = cpu_seconds(process.pid)
                    closed = closed_loop(port, sent, CALLERS, options.seconds)
                    capacity = closed.requests_per_second
                    own = (cpu_seconds(process.pid) - before) / len(closed.latency_ms)
                    time.sleep(pause)
                    for connections, load in itertools.product(options.connections, loads if number else ()):
                        before = cpu_seconds(process.pid)
                        seen = open_loop(port, sent, connections, load * capacity, options.seconds, number, rest)
                        cpu = cpu_seconds(process.pid) - before
                        time.sleep(pause)
                        key = (bundle.name, count, chosen, connections, load)
                        found.setdefault(key, []).append(turn(seen, cpu, capacity, own))
    lines = list(HEADINGS)
    for key, turns in found.items():
        name, count, chosen, connections, load = key
        what = f"| {name} | {count} | {chosen} | {connections} | {load:g}"
        lines.append(row(what, turns, found[name, count, chosen, connections, ORDINARY]))
    more = f"rounds: {options.rounds} of {options.seconds:g} s, median (least-greatest)"
    publish([conditions("overload", arguments, machine, more), "", *lines], options.write, "overload")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
