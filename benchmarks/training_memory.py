"""`python -m benchmarks.training_memory`: how the memory of training grows with the rows of a log.

Logs of Criteo's shape (39 fields, a million ids by Zipf's law: `training_log.py`), of several lengths, are written as
encoded arrays. On each, in a process of its own, one network is trained for one epoch by the very step of a run: it
shuffles, learns, is measured on validation rows, scores every row and is saved. Watched 20 times a second:

    anonymous     what the process holds itself (RssAnon; its greatest)
    mapped        pages of the log's files (RssFile), which the kernel takes back whenever others need memory
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import commit, facts
from benchmarks.prepare_memory import PUBLIC_ROWS, memory_mb
from benchmarks.results import write_block
from benchmarks.training_log import draw, field_sizes

BLOCK_ROWS = 1 << 18
PARTS = (0.8, 0.1 / 3, 0.1 / 3, 0.1 / 3, 0.1)
"""Shares of train, validation A, B, C and test, as the shipped recipe splits Criteo's log."""
NETWORK = {"network": "dnn", "options": {"dim": 16, "hidden": [64, 32]}}
FIT = {"batch_rows": 10_000, "max_epochs": 1}


def write_log(folder: Path, rows: int) -> None:
    """An encoded log under `folder`/log, chunk by chunk."""
    from training.encoded_log import EncodedLog
    from training.zoo import FieldSpec

    sizes = field_sizes()
    fields = tuple(FieldSpec(f"f{number}", int(size), "candidate") for number, size in enumerate(sizes))
    with EncodedLog.writer(folder / "log", fields) as writer:
        for block, start in enumerate(range(0, rows, BLOCK_ROWS)):
            count = min(BLOCK_ROWS, rows - start)
            ids, label = draw(count, sizes, block)
            chance = np.random.default_rng([block, 2])
            writer.append(
                ids=ids,
                label=label,
                unit=chance.integers(0, 2**63, count).astype(np.uint64),
                time=np.arange(start, start + count),
                part=chance.choice(5, count, p=PARTS).astype(np.uint8),
            )
        writer.finish()


def train(prepared: str, result: str) -> tuple[float, float]:
    """The step of a run that trains a teacher; anonymous memory before it in MB, and processor seconds."""
    from training.steps import fit_network

    Path(result).mkdir()
    before, began = memory_mb("RssAnon"), time.process_time()
    fit_network(
        Path(result),
        lambda done, total, note="": None,
        prepared=Path(prepared),
        spec=NETWORK,
        options=FIT,
        seed=1,
        places={"recipe": "teachers.dnn"},
    )
    return before, time.process_time() - began


def run(rows: int, folder: Path) -> dict[str, Any]:
    """Write a log of so many rows under `folder`, train on it, remove both."""
    work = Path(tempfile.mkdtemp(dir=folder, prefix="training-"))
    try:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            pool.apply(write_log, (work, rows))
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            (process,) = pool._pool  # type: ignore[attr-defined]
            found = pool.apply_async(train, (str(work), str(work / "teacher")))
            most = {"RssAnon": 0.0, "RssFile": 0.0}
            while not found.ready():
                for key in most:
                    most[key] = max(most[key], memory_mb(key, str(process.pid)))
                found.wait(0.05)
            before, cpu = found.get()
        return {
            "rows": rows,
            "log_mb": sum(file.stat().st_size for file in (work / "log").rglob("*")) / 2**20,
            "cpu_seconds": cpu,
            "before_mb": before,
            "anonymous_mb": most["RssAnon"],
            "mapped_mb": most["RssFile"],
        }
    finally:
        shutil.rmtree(work)


def table(found: Sequence[dict[str, Any]]) -> list[str]:
    """A row a log, and what a further row costs."""
    lines = [
        "| rows | encoded log, MB | CPU s | anonymous before, MB | anonymous, MB | mapped, MB |",
        f"|{'---:|' * 6}",
        *(
            f"| {one['rows']:,} | {one['log_mb']:,.0f} | {one['cpu_seconds']:,.0f} | {one['before_mb']:,.0f} "
            f"| **{one['anonymous_mb']:,.0f}** | {one['mapped_mb']:,.0f} |"
            for one in found
        ),
    ]
    if len(found) > 1:
        first, last = found[0], found[-1]
        more = (last["anonymous_mb"] - first["anonymous_mb"]) * 2**20 / (last["rows"] - first["rows"])
        whole = last["anonymous_mb"] + more * (PUBLIC_ROWS - last["rows"]) / 2**20
        lines += [
            "",
            f"From the first to the last a further row costs {more:.0f} bytes of anonymous memory; at that rate "
            f"{PUBLIC_ROWS:,} rows take {whole / 1024:.1f} GB.",
        ]
    return lines


def main(argv: Sequence[str]) -> int:
    """Measure, print the table, or write it into a document."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training_memory", description=__doc__.split("\n\n")[0])
    parser.add_argument("--rows", nargs="+", type=int, default=[500_000, 1_000_000, 4_000_000], metavar="N")
    parser.add_argument("--folder", type=Path, default=Path("runs"), help="where logs are made, and removed again")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append what was measured, one object a line")
    parser.add_argument("--write", type=Path, metavar="DOCUMENT", help="put the table between its markers in here")
    options = parser.parse_args(argv)
    options.folder.mkdir(parents=True, exist_ok=True)
    machine: dict[str, Any] = facts()
    found = []
    for rows in options.rows:
        found.append(run(rows, options.folder))
        print(json.dumps(found[-1]), file=sys.stderr, flush=True)
        if options.json:
            with options.json.open("a", encoding="utf-8") as file:
                file.write(json.dumps(found[-1]) + "\n")
    command = f"python -m benchmarks.training_memory --rows {' '.join(map(str, options.rows))}"
    block = "\n".join(
        [
            f"`{command}`, {datetime.now(UTC):%Y-%m-%d}, commit {commit()}, {machine['cpu']}, one core of "
            f"{machine['cores']}, Python {machine['python']}, load {machine['load_before']:.1f} before the run.",
            "",
            *table(found),
        ]
    )
    print(block)
    if options.write:
        write_block(options.write, "training-memory", block)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
