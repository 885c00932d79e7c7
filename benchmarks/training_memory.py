"""`python -m benchmarks.training_memory`: how the memory of training grows with the rows of a log.

Logs of Criteo's shape (39 fields, a million ids by Zipf's law: `training_log.py`), of several lengths, are written as
encoded arrays. On each the very steps of a run are done, each in a process of its own: a teacher is trained for one
epoch and scores every row; three of it (the same one thrice: what is held is the same) are weighed by a gate, teach a
student for one epoch, are calibrated and measured. Of each step is told, looked at 50 times a second:

    anonymous     what the process holds itself (RssAnon; its greatest)
    mapped        pages of files (RssFile), which the kernel takes back whenever others need memory
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import facts
from benchmarks.prepare_memory import PUBLIC_ROWS, memory_mb
from benchmarks.results import conditions, publish
from benchmarks.training_log import draw, field_sizes

BLOCK_ROWS = 1 << 18
PARTS = (0.8, 0.1 / 3, 0.1 / 3, 0.1 / 3, 0.1)
"""Shares of train, validation A, B, C and test, as the shipped recipe splits Criteo's log."""
NETWORK = {"network": "dnn", "options": {"dim": 16, "hidden": [64, 32]}}
FIT = {"batch_rows": 10_000, "max_epochs": 1}
TEACHERS = ("one", "two", "three")
STEPS = ("teacher", "gate", "student", "calibrate", "measure")


def write_log(folder: Path, rows: int) -> None:
    """What `prepare` leaves: an encoded log, written chunk by chunk, and its schema."""
    from training.data.encoded_log import EncodedLog
    from training.zoo import FieldSpec

    sizes = field_sizes()
    names = [f"f{number}" for number in range(len(sizes))]
    fields = tuple(FieldSpec(name, int(size), "candidate") for name, size in zip(names, sizes, strict=True))
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
    kind = {"type": "integer", "role": "candidate", "kind": "categorical"}
    own = [
        kind | {"name": name, "encoding": {"method": "hash", "buckets": max(int(size) - 2, 1)}}
        for name, size in zip(names, sizes, strict=True)
    ]
    (folder / "schema.json").write_text(json.dumps({"label": {"column": "click"}, "fields": own}), encoding="utf-8")


def do(name: str, work: str) -> dict[str, float]:
    """One of `STEPS` under `work`, where those before it are; what was held."""
    from training.pipeline import steps

    prepared, root = Path(work), Path(work) / "steps"

    def fill(name: str, run: Callable[..., None], **arguments: Any) -> None:
        (root / name).mkdir(parents=True)
        run(root / name, lambda done, total, note="": None, prepared=prepared, **arguments)

    teachers = {f"teacher:{name}": root / "teacher" for name in TEACHERS}
    of_fit: dict[str, Any] = {"spec": NETWORK, "options": FIT, "seed": 1}
    orders: dict[str, Callable[[], None]] = {
        "teacher": lambda: fill("teacher", steps.fit_network, **of_fit, places={"recipe": "teachers.dnn"}),
        "gate": lambda: fill("gate", steps.fit_the_gate, options={}, **teachers),
        "student": lambda: fill("student", steps.distil, gate=root / "gate", **of_fit, **teachers),
        "calibrate": lambda: fill(
            "calibrate",
            steps.calibrate,
            ensemble=root / "gate",
            student=root / "student",
            control=root / "teacher",
            **teachers,
        ),
        "measure": lambda: fill(
            "measure",
            steps.measure,
            seed=1,
            gate=root / "gate",
            ensemble=root / "gate",
            platt=root / "calibrate",
            student=root / "student",
            student_refit=root / "student",
            control=root / "teacher",
            control_refit=root / "teacher",
            **teachers,
            **{name.replace(":", "_refit:"): folder for name, folder in teachers.items()},
        ),
    }
    return watched(orders[name])


def watched(work: Callable[[], None]) -> dict[str, float]:
    """Do it; the most that this process held meanwhile, in MB, and processor seconds."""
    most, done = {"RssAnon": 0.0, "RssFile": 0.0}, threading.Event()

    def look() -> None:
        for key in most:
            most[key] = max(most[key], memory_mb(key))

    def watch() -> None:
        while not done.wait(0.02):
            look()

    watcher = threading.Thread(target=watch)
    began = time.process_time()
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    look()
    return {"anonymous_mb": most["RssAnon"], "mapped_mb": most["RssFile"], "cpu_seconds": time.process_time() - began}


def run(rows: int, folder: Path) -> dict[str, Any]:
    """Write a log of so many rows under `folder`, train on it, remove both."""
    work = Path(tempfile.mkdtemp(dir=folder, prefix="training-"))
    try:
        context = multiprocessing.get_context("spawn")
        with context.Pool(1, maxtasksperchild=1) as pool:
            pool.apply(write_log, (work, rows))
            found = {name: pool.apply(do, (name, str(work))) for name in STEPS}
        size = sum(file.stat().st_size for file in (work / "log").rglob("*")) / 2**20
        return {"rows": rows, "log_mb": size, "steps": found}
    finally:
        shutil.rmtree(work)


def table(found: Sequence[dict[str, Any]]) -> list[str]:
    """A row a log, and what a further row costs at most in the step that holds most."""
    lines = [
        f"| rows | encoded log, MB | CPU s | mapped, MB | {', MB | '.join(STEPS)}, MB |",
        f"|{'---:|' * (4 + len(STEPS))}",
    ]
    for one in found:
        held = [one["steps"][name] for name in STEPS]
        cpu, mapped = sum(step["cpu_seconds"] for step in held), max(step["mapped_mb"] for step in held)
        anonymous = " | ".join(f"{step['anonymous_mb']:,.0f}" for step in held)
        lines.append(f"| {one['rows']:,} | {one['log_mb']:,.0f} | {cpu:,.0f} | {mapped:,.0f} | {anonymous} |")
    if len(found) > 1:
        *shorter, last = found
        told = []
        for name in STEPS:
            most = last["steps"][name]["anonymous_mb"]
            # What is held whatever the rows differs from one process to the next: the steepest way to the longest.
            more = max(
                0,
                *(
                    (most - one["steps"][name]["anonymous_mb"]) * 2**20 / (last["rows"] - one["rows"])
                    for one in shorter
                ),
            )
            whole = most + more * (PUBLIC_ROWS - last["rows"]) / 2**20
            told.append(f"{name} {more:.0f} bytes, {whole / 1024:.1f} GB")
        lines += ["", f"What a further row costs, at most, and {PUBLIC_ROWS:,} rows at that rate: {'; '.join(told)}."]
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
    publish(
        [
            conditions("training_memory", argv, machine, "one core used"),
            "",
            *table(found),
        ],
        options.write,
        "training-memory",
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
