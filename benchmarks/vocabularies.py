"""`python -m benchmarks.vocabularies`: what does a bundle with a million values in a field take, in time and memory?

A bundle of one field is written for each type of value and read by `read_bundle`, as a service or a reload does:
checksums, JSON, the check that every value is canonical and stands once, the table. Each reading is a process of its
own, so that none finds memory or imports that another has paid for; it counts what comes on top of those.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from onnx import helper

from benchmarks.machine import facts
from benchmarks.results import conditions, publish
from models.bundle import VOCABULARIES, read_bundle, write_bundle
from models.encoder import Encoder
from models.golden import Golden, GoldenRequest
from models.manifest import Calibration, Cost, DataFacts, Histogram, ModelCard, Reference
from models.schema import FeatureSchema
from models.values import canonical

FIELD = "value"
TYPES = ("string", "integer", "float")


def values_of(type_: str, count: int) -> list[str]:
    """So many distinct values in canonical form: 16 hexadecimal digits, integers of up to 64 bits, prices."""
    scattered = [number * 0x9E3779B97F4A7C15 % 2**64 for number in range(1, count + 1)]
    if type_ == "string":
        return [f"{number:016x}" for number in scattered]
    if type_ == "integer":
        return [str(number) for number in scattered]
    return [canonical(number / 128) for number in range(1, count + 1)]


def write_one_field(repository: Path, type_: str, count: int) -> Path:
    """A bundle whose one field has so many values, and whose graph is empty: nothing here runs it."""
    values = values_of(type_, count)
    field = {"name": FIELD, "type": type_, "role": "candidate", "kind": "categorical"}
    schema = {"label": {"column": "click"}, "fields": [field | {"encoding": {"method": "vocabulary"}}]}
    return write_bundle(
        repository,
        f"{type_}-{count}",
        encoder=Encoder(FeatureSchema.model_validate(schema), {FIELD: values}),
        card=ModelCard(
            retort_version="benchmark",
            data=DataFacts(source="none", fingerprint="0" * 64, parts={}),
            recipe={},
            calibration=Calibration(),
            reference=Reference(fields={}, pctr=Histogram.of_probabilities(np.zeros(0))),
            test_metrics={},
            parity_error=0.0,
            cost=Cost(parameters_embedding=0, parameters_dense=0, bytes=0, latency={}),
        ),
        golden=Golden(requests=(GoldenRequest(context={}, candidates=({},), logit=(0.0,), pctr=(0.5,)),)),
        model=helper.make_model(helper.make_graph([], "empty", [], [])).SerializeToString(),
    )


def measure(path: str) -> dict[str, float]:
    """Read a bundle once, in this process: seconds, CPU seconds, MB on top of what it had, at most and in the end."""
    before = _memory_mb("VmRSS")
    started, cpu = time.perf_counter(), time.process_time()
    bundle = read_bundle(Path(path))
    found = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu}
    assert bundle.encoder.sizes[FIELD] > 2
    return found | {"peak_mb": _memory_mb("VmHWM") - before, "kept_mb": _memory_mb("VmRSS") - before}


def _memory_mb(key: str) -> float:
    """Of this process, from the kernel: VmRSS now, VmHWM at most so far."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0]) / 1024
    raise OSError(f"/proc/self/status has no {key}")


def run(count: int, rounds: int) -> list[str]:
    """Rows of the table; the first is of a bundle with hardly a value, which every load pays."""
    with tempfile.TemporaryDirectory() as folder:
        bundles = {("string", 10): write_one_field(Path(folder), "string", 10)}
        bundles |= {(type_, count): write_one_field(Path(folder), type_, count) for type_ in TYPES}
        turns: dict[tuple[str, int], list[dict[str, float]]] = {key: [] for key in bundles}
        context = multiprocessing.get_context("spawn")
        for _ in range(rounds):
            for key, path in bundles.items():
                with context.Pool(1) as fresh:
                    turns[key].append(fresh.apply(measure, (str(path),)))
        sizes = {key: (path / VOCABULARIES / f"{FIELD}.json").stat().st_size / 1e6 for key, path in bundles.items()}
    return [_row(type_, n, sizes[type_, n], turns[type_, n]) for type_, n in bundles]


def _row(type_: str, count: int, megabytes: float, turns: Sequence[dict[str, float]]) -> str:
    def spread(key: str, form: str) -> str:
        values = [turn[key] for turn in turns]
        return f"{median(values):{form}} ({min(values):{form}}-{max(values):{form}})"

    times = f"{spread('seconds', '.2f')} | {spread('cpu_seconds', '.2f')}"
    memory = f"{spread('peak_mb', '.0f')} | {spread('kept_mb', '.0f')}"
    return f"| {type_} | {count:,} | {megabytes:.1f} | {times} | {memory} |"


def main(arguments: Sequence[str]) -> int:
    """Print the table, or write it into a document."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.vocabularies", description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--values", type=int, default=1_000_000, metavar="N", help="values of the field (default 1,000,000)"
    )
    parser.add_argument(
        "--rounds", type=int, default=5, metavar="N", help="readings of each bundle, in turns (default 5)"
    )
    parser.add_argument("--write", type=Path, metavar="DOCUMENT", help="put the table between its markers in here")
    options = parser.parse_args(arguments)
    machine: dict[str, Any] = facts()
    rows = run(options.values, options.rounds)
    more = f"pydantic {machine['pydantic']}; rounds: {options.rounds}, median (least-greatest)"
    header = [
        "| type | values | file, MB | loaded in, s | CPU, s | memory at most, MB | kept, MB |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    publish([conditions("vocabularies", arguments, machine, more), "", *header, *rows], options.write, "vocabularies")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
