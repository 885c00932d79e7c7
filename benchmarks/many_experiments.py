"""python -m benchmarks.many_experiments: what a file of many experiments costs to change, and to scrape.

An application in this process, with so many experiments of two arms each in its file. An experiment's coverage grows
again and again, through what `PUT /experiments/{name}` calls, while a beat on the same event loop notes how long the
loop did not turn: so long a request would have waited. Beside it the size of a scrape while no arm has been asked, and
what adding it up takes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from benchmarks.machine import facts
from benchmarks.results import conditions, publish
from models.versions import Repository
from service.admin.experiments import Precondition
from service.admin.gate import Admin
from service.app import Service, create_app
from service.settings import Settings

BEAT_SECONDS = 0.0005
YAML_LIMIT = 70
"""Experiments beyond which a file here is JSON; YAML has 64 KiB."""


@dataclass(frozen=True)
class Cost:
    """Medians, of one number of experiments."""

    put_ms: float
    cpu_ms: float
    gap_ms: float
    scrape_bytes: int
    scrape_ms: float


def stated(models: Sequence[str], number: int) -> dict[str, Any]:
    """One experiment of the file, of two arms whose versions are settled when it starts."""
    arms = [{"name": f"{place}-{model}", "model": model, "weight": 0.5} for place, model in enumerate(models)]
    return {"name": f"e{number}", "salt": f"e{number}", "default": number == 0, "coverage": 0.5, "arms": arms}


async def change(app: Service, content: dict[str, Any], repeats: int) -> list[tuple[float, float, float]]:
    """(milliseconds, of the processor, longest that the loop stood) of each change."""
    found = []
    for step in range(repeats):
        body = json.dumps({**content, "coverage": 0.5 + 0.4 * (step + 1) / repeats}).encode()
        gaps: list[float] = []
        beating = asyncio.create_task(beat(gaps))
        await asyncio.sleep(0)
        began, spent = time.perf_counter(), time.process_time()
        await app.experiment_control.put(Admin("benchmark", None), str(content["name"]), body, Precondition(None, None))
        took = time.perf_counter() - began, time.process_time() - spent
        beating.cancel()
        found.append((1000 * took[0], 1000 * took[1], 1000 * max(gaps, default=0.0)))
    return found


async def beat(gaps: list[float]) -> None:
    """How much longer than asked for it was away, again and again."""
    while True:
        before = time.perf_counter()
        await asyncio.sleep(BEAT_SECONDS)
        gaps.append(time.perf_counter() - before - BEAT_SECONDS)


async def cost_of(repository: Path, models: Sequence[str], number: int, repeats: int, folder: Path) -> Cost:
    """What a file with so many experiments costs."""
    file = {"format_version": 1, "experiments": [stated(models, place) for place in range(number)]}
    path = folder / f"{number}.yaml"
    path.write_text(yaml.safe_dump(file, sort_keys=False) if number <= YAML_LIMIT else json.dumps(file))
    app = create_app(Settings(repository=repository, experiments=path))
    async with app.router.lifespan_context(app):
        await app.until_ready()
        found = await change(app, stated(models, number - 1), repeats)
        began = time.thread_time()
        scrape = app.metrics.exposition()
        took = time.thread_time() - began
    put, cpu, gap = (median(part) for part in zip(*found, strict=True))
    return Cost(put, cpu, gap, len(scrape), 1000 * took)


def main(arguments: Sequence[str]) -> int:
    """Prints the table, or writes it into a document."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.many_experiments",
        description="What a file of many experiments costs to change, and to scrape.",
        epilog=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--repository", type=Path, default=Path("models/repository"), metavar="DIR", help="bundles")
    parser.add_argument("--numbers", nargs="+", type=int, default=[1, 70, 300, 900], metavar="N", help="experiments")
    parser.add_argument("--repeats", type=int, default=7, metavar="N", help="changes of each [7]")
    parser.add_argument(
        "--write", type=Path, metavar="FILE", help="replace the block `many-experiments` of this document"
    )
    options = parser.parse_args(arguments)
    models = Repository(options.repository).names()[:2]
    lines = [
        "| experiments | a change, ms | of a core, ms | the loop stands at most, ms | a scrape, KB | to add up, ms |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    machine = facts()
    with tempfile.TemporaryDirectory(prefix="retort-bench-") as folder:
        for number in options.numbers:
            cost = asyncio.run(cost_of(options.repository, models, number, options.repeats, Path(folder)))
            lines.append(
                f"| {number} | {cost.put_ms:.0f} | {cost.cpu_ms:.0f} | {cost.gap_ms:.1f} "
                f"| {cost.scrape_bytes / 1000:,.0f} | {cost.scrape_ms:.1f} |"
            )
    more = (
        f"medians of {options.repeats} changes; two arms an experiment ({', '.join(models)}), YAML up to {YAML_LIMIT}"
    )
    publish([conditions("many_experiments", arguments, machine, more), "", *lines], options.write, "many-experiments")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
