"""python -m benchmarks.exposure_log: what a record of every answer costs, as a ratio.

Two services of one worker answer the same requests on one core, one with `--log` and one without; they take turns, and
which is first changes from round to round. Ratios are taken within a round. The log goes to the folder for temporary
files, or to `--folder`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.contenders import Cell, Sample, over_http, serve
from benchmarks.machine import facts, pin, two_cores
from benchmarks.results import Spread, conditions, publish
from benchmarks.stages import inside
from benchmarks.workload import AdRequest, make_requests
from models.bundle import Bundle, read_bundle
from models.journal.frames import Skipped
from models.journal.reading import read_payloads
from models.versions import Repository
from service.app import create_app
from service.settings import Settings

REPLY = "reply, with metrics"

WAYS: dict[str, tuple[str, ...]] = {
    "without": (),
    "with": ("--log", "{folder}"),
    "with, and all features": ("--log", "{folder}-features", "--log-features", "1"),
}


def reply_costs(
    repository: Path, bundle: Bundle, requests: Sequence[AdRequest], folder: Path, rounds: int = 3
) -> dict[str, float]:
    """CPU us of the last stage of a request, the reply, called in a loop: where the record is made and written. The
    least of some rounds, in turns."""
    file = folder / "experiments.json"
    arm = {"name": bundle.name, "model": bundle.name, "version": bundle.version, "weight": 1}
    experiment = {"name": bundle.name, "salt": "benchmark", "default": True, "arms": [arm]}
    file.write_text(json.dumps({"format_version": 1, "experiments": [experiment]}), encoding="utf-8")
    ways: dict[str, dict[str, Any]] = {
        "without": {},
        "with": {"log": folder / "alone"},
        "with, and all features": {"log": folder / "alone-features", "log_features": 1.0},
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, more in ways.items():
            settings = Settings(repository=repository, experiments=file, candidate_cache_bytes=1 << 28, **more)
            stages = asyncio.run(inside(create_app(settings), {1: requests}, bundle.name))
            found[name].append(stages[1][REPLY])
    return {name: min(times) for name, times in found.items()}


def line(name: str, samples: Sequence[Sample], base: Sequence[Sample]) -> str:
    """A row of the table: medians over rounds, and the ratio of CPU and of requests a second to `base`."""
    cpu = Spread.of([1e3 * sample.cpu_ms for sample in samples])
    ratio = Spread.of([a.cpu_ms / b.cpu_ms for a, b in zip(samples, base, strict=True)])
    rate = Spread.of([a.requests_per_second / b.requests_per_second for a, b in zip(samples, base, strict=True)])
    p99 = Spread.of([1e3 * float(np.percentile(sample.latency_ms, 99)) for sample in samples])
    cells = (cpu.text(lambda us: f"{us:.0f}"), ratio.text("{:.3f}".format), rate.text("{:.3f}".format))
    return f"| {name} | {' | '.join(cells)} | {p99.text(lambda us: f'{us:.0f}')} |"


def main(arguments: Sequence[str]) -> int:
    """Prints the table, or writes it into a document."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.exposure_log", description="The cost of the exposure log.", epilog=__doc__
    )
    parser.add_argument("--repository", type=Path, default=Path("models/repository"), metavar="DIR", help="bundles")
    parser.add_argument("--model", default="student", metavar="NAME", help="live version of [student]")
    parser.add_argument("--candidates", type=int, default=50, metavar="N", help="ads a request [50]")
    parser.add_argument("--callers", type=int, default=8, metavar="N", help="connections [8]")
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="turns of each [7]")
    parser.add_argument("--seconds", type=float, default=1.5, metavar="S", help="of one turn [1.5]")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="where the log is written")
    parser.add_argument("--write", type=Path, metavar="FILE", help="replace the block `exposure-log` of this document")
    options = parser.parse_args(arguments)
    server, generator = two_cores()
    machine = facts()
    pin(generator)
    found = Repository(options.repository)
    bundle = read_bundle(found.path(options.model, found.live(options.model)))
    workload = {options.candidates: make_requests(bundle, options.candidates, 200)}
    cell = Cell(bundle.name, options.candidates, options.callers)
    samples: dict[str, list[Sample]] = {name: [] for name in WAYS}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="retort-bench-", dir=options.folder)))
        running = {}
        for name, more in WAYS.items():
            extra = [option.format(folder=folder / "log") for option in more]
            process = stack.enter_context(serve(options.repository, [bundle], server, folder, extra))
            running[name] = over_http(name, {bundle.name: process}, workload)
        for number in range(options.rounds + 1):
            for name in list(WAYS) if number % 2 else reversed(list(WAYS)):
                sample = running[name].measure(cell, options.seconds)
                if number:  # the first round fills caches
                    samples[name].append(sample)
        alone = reply_costs(options.repository, bundle, workload[options.candidates][:100], folder)
        skipped = Skipped()
        sizes = [len(payload) for payload in read_payloads(folder / "log", skipped)]
    answered = sum(len(sample.latency_ms) for sample in samples["with"])
    if len(sizes) < answered or skipped.damaged:
        raise SystemExit(f"{answered} requests were answered and {len(sizes)} records found: nothing was measured")
    alone_us = ", ".join(f"{us:.1f} us {name}" for name, us in alone.items())
    records = f"{len(sizes):,} records of {median(sizes):.0f} bytes"
    more = f"{options.candidates} candidates, {options.callers} callers, {records}"
    lines = (
        f"{conditions('exposure_log', arguments, machine, more)}\n",
        "| log | CPU us a request | CPU, ratio | requests/s, ratio | p99, us |",
        "|---|---:|---:|---:|---:|",
        *(line(name, samples[name], samples["without"]) for name in WAYS),
        f"\nThe last stage of a request, which makes the answer and the record, alone in a loop: {alone_us}.",
        "",
    )
    publish(lines, options.write, "exposure-log")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
