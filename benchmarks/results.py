"""From the turns of a benchmark to a table, a JSON file and a block of docs/benchmarks.md.

A figure is the median over rounds, with the least and the greatest round beside it; a ratio is taken within each round,
between turns that followed one another, and only then the median. Percentiles are over all rounds' requests together.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.contenders import FLOOR, NAIVE, RETORT, Cell, Sample
from benchmarks.machine import commit

FEW = 500
"""Below this many requests a 99th percentile is five requests' word; the table marks it."""


@dataclass(frozen=True)
class Spread:
    """A median over rounds, and how far the rounds lay apart."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(float(median(values)), float(min(values)), float(max(values)))

    def text(self, form: Callable[[float], str]) -> str:
        return f"{form(self.median)} ({form(self.low)}-{form(self.high)})"

    def as_json(self) -> dict[str, float]:
        return {"median": self.median, "low": self.low, "high": self.high}


@dataclass
class Turns:
    """All rounds of one cell, by contender."""

    cell: Cell
    samples: dict[str, list[Sample]] = field(default_factory=dict)

    def add(self, name: str, sample: Sample) -> None:
        self.samples.setdefault(name, []).append(sample)

    def spread(self, name: str, figure: Callable[[Sample], float]) -> Spread:
        return Spread.of([figure(sample) for sample in self.samples[name]])

    def ratio(self, name: str, to: str, figure: Callable[[Sample], float]) -> Spread:
        """`name`'s figure over `to`'s, round by round."""
        pairs = zip(self.samples[name], self.samples[to], strict=True)
        return Spread.of([figure(one) / figure(other) for one, other in pairs])

    def percentile(self, name: str, percent: float) -> float:
        return float(np.percentile(np.concatenate([sample.latency_ms for sample in self.samples[name]]), percent))

    def requests(self, name: str) -> int:
        return sum(len(sample.latency_ms) for sample in self.samples[name])

    def as_json(self) -> dict[str, Any]:
        figures: dict[str, Any] = {
            name: {
                "requests": self.requests(name),
                "requests_per_second": self.spread(name, _rate).as_json(),
                "cpu_ms": self.spread(name, _cpu).as_json(),
                "p50_ms": self.percentile(name, 50),
                "p99_ms": self.percentile(name, 99),
                "generator_share": max((s.generator_share for s in samples if s.generator_share), default=None),
                "rounds": [{"requests_per_second": _rate(s), "cpu_ms": _cpu(s)} for s in samples],
            }
            for name, samples in self.samples.items()
        }
        ratios = {
            f"{RETORT} / {other}": {
                "requests_per_second": self.ratio(RETORT, other, _rate).as_json(),
                "cpu_ms": self.ratio(RETORT, other, _cpu).as_json(),
            }
            for other in (NAIVE, FLOOR)
        }
        cell = {
            "model": self.cell.model,
            "candidates": self.cell.candidates,
            "connections": self.cell.connections,
        }
        return {**cell, "contenders": figures, "ratios": ratios}


def _rate(sample: Sample) -> float:
    return sample.requests_per_second


def _cpu(sample: Sample) -> float:
    return sample.cpu_ms


def _whole(value: float) -> str:
    return f"{value:,.0f}"


def _short(value: float) -> str:
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def _times(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


HEADINGS = (
    "candidates",
    "callers",
    "Retort req/s",
    "naive req/s",
    "session.run /s",
    "Retort / naive",
    "Retort / session.run",
    "Retort p50, p99 ms",
    "naive p50, p99 ms",
    "session.run p50, p99 ms",
    "CPU ms: Retort, naive, session.run",
)


def table(turns: Sequence[Turns]) -> str:
    """Markdown; one row a cell, of one model."""
    lines = ["| " + " | ".join(HEADINGS) + " |", "|" + "---:|" * len(HEADINGS)]
    for cell in turns:
        rates = [cell.spread(name, _rate).text(_whole) for name in (RETORT, NAIVE, FLOOR)]
        ratios = [cell.ratio(RETORT, name, _rate).text(_times) for name in (NAIVE, FLOOR)]
        latencies = [
            f"{_short(cell.percentile(name, 50))}, {_short(cell.percentile(name, 99))}"
            + ("~" if cell.requests(name) < FEW else "")
            for name in (RETORT, NAIVE, FLOOR)
        ]
        cpu = ", ".join(_short(cell.spread(name, _cpu).median) for name in (RETORT, NAIVE, FLOOR))
        words = [str(cell.cell.candidates), str(cell.cell.connections), *rates, *ratios, *latencies, cpu]
        lines.append("| " + " | ".join(words) + " |")
    return "\n".join(lines)


def report(conditions: Mapping[str, Any], turns: Sequence[Turns]) -> str:
    """The block of docs/benchmarks.md: conditions first, then a table a model."""
    machine = conditions["machine"]
    pinned = conditions["pinned"]
    cores = (
        f"server on core {pinned['server']}, generator on core {pinned['generator']}"
        if pinned["server"] is not None
        else "nothing pinned: only one core may be used here"
    )
    lines = [
        f"`{conditions['command']}`, {conditions['date']}, commit {conditions['commit']}.",
        "",
        f"{machine['cpu']}, {machine['cores']} cores ({', '.join(machine['vector_instructions'])}); {cores}"
        f"{'; the two share a physical core' if pinned['share_a_core'] else ''}; load {machine['load_before']:.2f} "
        f"before the run. Python {machine['python']}, onnxruntime {machine['onnxruntime']}, "
        f"FastAPI {machine['fastapi']}, uvicorn {machine['uvicorn']}. rounds: {conditions['rounds']}, "
        f"{conditions['seconds']} s a turn, contenders in alternating order; {conditions['requests']} distinct "
        f"requests a size. One worker. Threads: {', '.join(f'{k} {v}' for k, v in conditions['threads'].items())}.",
        "",
    ]
    for cost in conditions["generator"]:
        lines.append(
            f"The generator itself with {cost['connections']} caller{'s' if cost['connections'] > 1 else ''}: "
            f"{cost['cpu_us']:.0f} us of its own core a request, {cost['requests_per_second']:,.0f} requests/s against "
            f"a server that does nothing."
        )
    busiest = max(share for cell in turns for share in _shares(cell))
    lines.append(f"At its busiest in the runs below it took {busiest:.0%} of its core.")
    for model, facts in conditions["bundles"].items():
        lines += [
            "",
            f"**{model}** version {facts['version']}: {facts['parameters_embedding']:,} parameters in embeddings, "
            f"{facts['parameters_dense']:,} in layers; {facts['context_fields']} context fields, "
            f"{facts['candidate_fields']} a candidate.",
            "",
            table([cell for cell in turns if cell.cell.model == model]),
        ]
    return "\n".join(lines) + "\n"


def _shares(cell: Turns) -> list[float]:
    return [s.generator_share for samples in cell.samples.values() for s in samples if s.generator_share is not None]


def write_json(path: Path, conditions: Mapping[str, Any], turns: Sequence[Turns]) -> None:
    """Every round's figures with the conditions."""
    path.parent.mkdir(parents=True, exist_ok=True)
    contents = {"format_version": 1, **conditions, "cells": [cell.as_json() for cell in turns]}
    path.write_text(json.dumps(contents, indent=1) + "\n", encoding="utf-8")


def conditions(program: str, arguments: Sequence[str], machine: Mapping[str, Any], more: str) -> str:
    """The line above a table: the command as it was given, when, of which commit, on what; and `more`, no dot."""
    command = shlex.join(["python", "-m", f"benchmarks.{program}", *arguments])
    load = f"load {machine['load_before']:.1f} before and {os.getloadavg()[0]:.1f} after"
    return (
        f"`{command}`, {datetime.now(UTC):%Y-%m-%d}, commit {commit()}, {machine['cpu']}, {machine['cores']} cores, "
        f"Python {machine['python']}, {load}; {more}."
    )


def latency_rows(
    latencies: Mapping[tuple[float, str], Sequence[NDArray[np.float64]]], loads: Sequence[float], base: str, other: str
) -> Iterator[str]:
    """By load, of two sides' turns in ms: counts, medians and 99th percentiles of both, and the ratio of the latter,
    `other`'s over `base`'s, round by round and of all requests together."""

    def p99(latency_ms: NDArray[np.float64]) -> float:
        return float(np.percentile(latency_ms, 99))

    for load in loads:
        pair = {name: latencies[load, name] for name in (base, other)}
        together = {name: np.concatenate(turns) for name, turns in pair.items()}
        ratio = Spread.of([p99(b) / p99(a) for a, b in zip(pair[base], pair[other], strict=True)])
        middle = ", ".join(f"{np.median(together[name]):.3f}" for name in pair)
        high = ", ".join(f"{p99(together[name]):.3f}" for name in pair)
        counts = ", ".join(f"{len(together[name]):,}" for name in pair)
        yield (
            f"| {load:g} | {counts} | {middle} | {high} | {ratio.text('{:.3f}'.format)} | "
            f"{p99(together[other]) / p99(together[base]):.3f} |"
        )


def publish(lines: Sequence[str], document: Path | None, name: str) -> None:
    """Prints what was found; and puts it into the block `name` of a document, where one is given."""
    block = "\n".join(lines)
    print(block)
    if document is not None:
        write_block(document, name, block)


def write_block(document: Path, name: str, block: str) -> None:
    """Replaces what stands between `<!-- NAME: begin -->` and `<!-- NAME: end -->`; `ValueError` if they do not."""
    text = document.read_text(encoding="utf-8")
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"{document}: expected one line {begin} and after it one line {end}")
    pattern = re.compile(re.escape(begin) + ".*" + re.escape(end), re.S)
    document.write_text(pattern.sub(lambda _: f"{begin}\n\n{block}\n{end}", text), encoding="utf-8")
