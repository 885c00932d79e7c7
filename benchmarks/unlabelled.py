"""python -m benchmarks.unlabelled: what do rows without clicks teach a student?

Of the built-in log's training rows four fifths lose their click, by chance. A student learns from the others alone;
from the others and, by what the ensemble says, from those; and so again with a share of those to stop it. Teachers,
gate and control are the same in all, seed by seed, to the bit. AUC is under the log's true probabilities, differences
are paired.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from benchmarks.machine import facts
from benchmarks.results import conditions, publish
from training.ablate.paired import paired
from training.data.synthetic import World
from training.pipeline.steps import read_json
from training.recipe import SHIPPED
from training.run import run

LOG, WITHOUT = "log.parquet", "without.parquet"
FURTHER = f"source: {{paths: [{WITHOUT}]}}"
ALONE, BESIDE, STOPPED = "clicks alone", "and rows without", "and rows without, a fifth of which stop it"
WAYS: Mapping[str, tuple[str, list[str]]] = {
    ALONE: ("without", []),
    BESIDE: ("with", [f"unlabelled={{{FURTHER}}}"]),
    STOPPED: ("stop", [f"unlabelled={{{FURTHER}, stopping_share: 0.2}}"]),
}
"""The folder and the overrides of each."""


def write(folder: Path, *, rows: int, days: int, share: float) -> tuple[int, int]:
    """The log, the rows that lost their click, schema and recipe; how many training rows keep it, and lost it."""
    folder.mkdir(parents=True, exist_ok=True)
    World(seed=0, rows=rows, days=days).write(folder / "whole.parquet")
    table = pq.read_table(folder / "whole.parquet")
    day = table["time"].to_numpy() // 86_400
    trains = day <= day.max() - 3
    lost = trains & (np.random.default_rng(0).random(len(table)) < share)
    pq.write_table(table.filter(pa.array(lost)).drop_columns(["click", "true_pctr"]), folder / WITHOUT)
    pq.write_table(table.filter(pa.array(~lost)), folder / LOG)
    (folder / "whole.parquet").unlink()
    (folder / "schema.json").write_text(World.schema().to_json(), encoding="utf-8")
    recipe = yaml.safe_load((SHIPPED / "synthetic.yaml").read_text(encoding="utf-8"))
    recipe |= {"name": "unl", "source": {"kind": "files", "paths": [LOG]}, "schema_file": "schema.json"}
    recipe |= {"merge_validation": False, "zoo": {}}  # a refit would add two days of clicks to a fifth of five
    (folder / "unl.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return int((trains & ~lost).sum()), int(lost.sum())


def table_of(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line a way, then the ensemble and the control, which are the same in all. `found` has each report's `test`."""
    alone = _aucs(found[ALONE]["student"])
    lines = [
        "| the student learns from | xAUC | less clicks alone | less its ensemble |",
        "|---|---:|---:|---:|",
    ]
    for way, test in found.items():
        aucs = _aucs(test["student"])
        gain = "" if way == ALONE else _difference(aucs, alone)
        lines.append(f"| {way} | {_spread(aucs)} | {gain} | {_difference(aucs, _aucs(test['ensemble']))} |")
    for name, title in (("ensemble", "its ensemble"), ("control_train", "the same network on those clicks")):
        lines.append(f"| *{title}* | {_spread(_aucs(found[ALONE][name]))} | | |")
    return lines


def _aucs(entries: Sequence[Mapping[str, float]]) -> list[float]:
    return [entry["xauc"] for entry in entries]


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}"


def _difference(one: Sequence[float], other: Sequence[float]) -> str:
    difference = paired(one, other)
    return f"{difference['mean']:+.4f} ({difference['low']:+.4f} to {difference['high']:+.4f})"


def main(arguments: Sequence[str]) -> int:
    """Train all three, print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.unlabelled", description=__doc__)
    parser.add_argument("--seeds", type=int, default=6, metavar="N", help="of training (default 6; at least 2)")
    parser.add_argument("--out", type=Path, default=Path("runs/bench/unlabelled"), metavar="DIR")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="steps side by side (default 2)")
    parser.add_argument("--write", type=Path, metavar="FILE", help="a document with a place for the table")
    options = parser.parse_args(arguments)
    machine = facts()
    kept, lost = write(options.out, rows=185_000, days=8, share=0.8)
    found = {
        way: read_json(
            run(
                str(options.out / "unl.yaml"),
                overrides=overrides,
                seeds=list(range(1, options.seeds + 1)),
                out=options.out / folder,
                repository=None,
                data=None,
                workers=options.workers,
            )
        )["test"]
        for way, (folder, overrides) in WAYS.items()
    }
    more = f"{kept:,} training rows with a click or none, {lost:,} without; {options.seeds} seeds, without the refit"
    asked = ["--seeds", str(options.seeds)]
    publish([conditions("unlabelled", asked, machine, more), "", *table_of(found)], options.write, "unlabelled")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
