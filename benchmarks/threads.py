"""python -m benchmarks.threads: what a thread that computes costs those who wait for the event loop.

In a worker a thread makes pages of the console, adds up a scrape, reads an experiment file that has changed: Python
that holds the interpreter. The event loop gets it back after the switch interval, each time that it comes back from the
kernel, and a request comes back several times. Here a request is three turns of a socket and some decoding; the thread
reads an experiment file, again and again. Turns with and without it and with either interval alternate in one process,
so that other work on the machine meets all of them.
"""

from __future__ import annotations

import argparse
import json
import socket
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.machine import facts
from benchmarks.results import conditions, publish
from service.experiments.file import parse_experiments
from service.processes.worker import SWITCH_SECONDS
from service.scoring.watch import SHIPPED

PYTHONS_SECONDS = 0.005
PAUSE_SECONDS = 0.002
"""Between two requests."""
TURNS = 3
"""How often a request goes to the kernel and comes back."""
BODY = json.dumps({"context": {"device": "phone"}, "candidates": [{"ad_id": f"a{n}"} for n in range(20)]}).encode()


def requests(count: int) -> list[float]:
    """Seconds that each took, from when it arrived: the loop slept until then."""
    left, right = socket.socketpair()
    found = []
    with left, right:
        for _ in range(count):
            due = time.perf_counter() + PAUSE_SECONDS
            time.sleep(PAUSE_SECONDS)
            for _ in range(TURNS):
                left.send(BODY)
                json.loads(right.recv(1 << 16))
            found.append(time.perf_counter() - due)
    return found


def beside(text: str, count: int) -> list[float]:
    """The same while a thread computes."""
    over = threading.Event()

    def compute() -> None:
        while not over.is_set():
            parse_experiments(text, "the benchmark")

    thread = threading.Thread(target=compute)
    thread.start()
    try:
        return requests(count)
    finally:
        over.set()
        thread.join()


def main(arguments: Sequence[str]) -> int:
    """Prints the table, or writes it into a document."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.threads",
        description="What a thread that computes costs those who wait for the event loop.",
        epilog=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=20, metavar="N", help="turns of each [20]")
    parser.add_argument("--requests", type=int, default=100, metavar="N", help="of a turn [100]")
    parser.add_argument("--write", type=Path, metavar="FILE", help="replace the block `threads` of this document")
    options = parser.parse_args(arguments)
    machine, text = facts(), SHIPPED.read_text(encoding="utf-8")
    before = sys.getswitchinterval()
    found: dict[str, list[float]] = {
        "no thread": [],
        "Python's 5 ms": [],
        f"{1000 * SWITCH_SECONDS:g} ms, as served": [],
    }
    intervals = (PYTHONS_SECONDS, PYTHONS_SECONDS, SWITCH_SECONDS)
    try:
        for number in range(options.rounds):
            turn = list(zip(found, intervals, strict=True))
            for name, seconds in turn if number % 2 else turn[::-1]:
                sys.setswitchinterval(seconds)
                found[name] += requests(options.requests) if name == "no thread" else beside(text, options.requests)
    finally:
        sys.setswitchinterval(before)
    lines = ["| beside | requests | p50, ms | p99, ms |", "|---|---:|---:|---:|"]
    for name, seconds_each in found.items():
        p50, p99 = 1000 * np.percentile(seconds_each, (50, 99))
        lines.append(f"| {name} | {len(seconds_each):,} | {p50:.2f} | {p99:.2f} |")
    more = f"{options.rounds} rounds, {TURNS} turns of a socket a request"
    publish([conditions("threads", arguments, machine, more), "", *lines], options.write, "threads")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
