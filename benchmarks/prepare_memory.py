"""`python -m benchmarks.prepare_memory`: what preparing a log of Criteo's shape takes, in time and memory.

The file is made here: 13 integers and 26 columns of hexadecimal tokens, with as many distinct values as the public file
has, drawn by Zipf's law (exponent 1), missing where it is missing. Nothing about a model can be learned from it. It is
then prepared by the shipped recipe's schema and split, in a process of its own that is watched while it runs:

    RSS           what the process holds (anonymous pages; its peak by the kernel's own count)
    page cache    what the kernel keeps of files read and written, and gives back to whoever needs memory
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from benchmarks.machine import facts
from benchmarks.results import conditions, publish

PUBLIC_ROWS = 45_840_617
BLOCK_ROWS = 1 << 18

# Distinct values in the public file, and about which share of the rows lacks one.
INTEGERS = (649, 9364, 14746, 490, 476707, 11618, 4142, 1373, 7275, 13, 169, 407, 1376)
INTEGERS_MISSING = (0.45, 0, 0.21, 0.22, 0.03, 0.22, 0.04, 0, 0.04, 0.45, 0.04, 0.76, 0.22)
TOKENS = (
    *(1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194),
    *(27, 14992, 5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572),
)
TOKENS_MISSING = {2: 0.034, 3: 0.034, 5: 0.12, 11: 0.034, 15: 0.034, 18: 0.44, 19: 0.44, 20: 0.034} | {
    21: 0.76,
    23: 0.034,
    24: 0.44,
    25: 0.44,
}
CLICK_RATE = 0.256

PASSES = ("looking at labels and times", "learning vocabularies from training rows", "encoding")


def support(distinct: int, rows: int) -> int:
    """How many values Zipf's law must know so that `rows` draws meet about `distinct` of them."""
    low, high = distinct, 2**31
    while low < high:
        middle = (low + high) // 2
        if expected_distinct(middle, rows) >= distinct:
            high = middle
        else:
            low = middle + 1
    return min(low, 2**31)


def expected_distinct(size: int, rows: int) -> float:
    """Values met in `rows` draws of rank r with probability ln((r + 1) / r) / ln(size + 1)."""
    edges = np.unique(np.concatenate([np.arange(1, min(size, 1000) + 1), np.geomspace(1, size + 1, 4000)]))
    middles, widths = (edges[1:] + edges[:-1]) / 2, np.diff(edges)
    chances = np.log1p(1 / middles) / math.log(size + 1)
    return float((widths * -np.expm1(-rows * chances)).sum())


def write_log(path: Path, rows: int, seed: int = 0) -> None:
    """A tab-separated file without a header: label, 13 integers, 26 tokens of 8 hexadecimal digits."""
    random = np.random.default_rng(seed)
    sizes = [support(distinct, PUBLIC_ROWS) for distinct in (*INTEGERS, *TOKENS)]
    options = pacsv.WriteOptions(include_header=False, delimiter="\t", quoting_style="none")
    with path.open("wb") as file:
        for start in range(0, rows, BLOCK_ROWS):
            count = min(BLOCK_ROWS, rows - start)
            columns = [pa.array((random.random(count) < CLICK_RATE).astype(np.int8))]
            for number, size in enumerate(sizes):
                ranks = np.exp(random.random(count) * math.log(size + 1)).astype(np.int64)
                if number < len(INTEGERS):
                    missing = INTEGERS_MISSING[number]
                    column = pa.array(ranks - (3 if number == 1 else 1))
                else:
                    missing = TOKENS_MISSING.get(number - len(INTEGERS), 0)
                    column = hexadecimal(ranks * 2654435761 + number * 97)
                if missing:
                    absent = random.random(count) < missing
                    column = pc.if_else(pa.array(absent), pa.scalar(None, column.type), column)
                columns.append(column)
            table = pa.table(dict(zip(map(str, range(len(columns))), columns, strict=True)))
            pacsv.write_csv(table, file, options)


def hexadecimal(numbers: np.ndarray[Any, np.dtype[np.int64]]) -> pa.Array:
    """The lowest 32 bits as 8 digits each; one to one for numbers that differ in those."""
    octets = (numbers & 0xFFFFFFFF).astype(">u4").view(np.uint8)
    digits = np.frombuffer(b"0123456789abcdef", np.uint8)
    text = np.stack([digits[octets >> 4], digits[octets & 15]], axis=1)
    offsets = np.arange(0, 8 * len(numbers) + 1, 8, dtype=np.int32)
    return pa.StringArray.from_buffers(len(numbers), pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(text)))


def prepare_watched(log: str, work: str) -> dict[str, Any]:
    """Prepare a log in this process; seconds, rows and peak RSS of each pass."""
    from training.data.prepare import prepare
    from training.data.sources import open_source
    from training.recipe import load_recipe

    loaded = load_recipe("criteo_x4", ["source.rows=null"])
    source = open_source(loaded.recipe.source, data=Path(log))
    passes: dict[str, dict[str, float]] = {}
    name, began, cpu = "", time.monotonic(), time.process_time()

    def finish() -> None:
        known = passes.setdefault(name, {"seconds": 0.0, "cpu_seconds": 0.0, "peak_mb": 0.0})
        known["seconds"] += time.monotonic() - began
        known["cpu_seconds"] += time.process_time() - cpu
        known["peak_mb"] = max(known["peak_mb"], memory_mb("VmHWM"))
        Path("/proc/self/clear_refs").write_text("5", "ascii")  # from here on VmHWM is a new peak

    def listen(done: float, total: float, note: str = "") -> None:
        nonlocal name, began, cpu
        note = "hashing" if note.startswith("hashing") else note
        if note != name:
            if name:
                finish()
            name, began, cpu = note, time.monotonic(), time.process_time()

    started = time.monotonic()
    before = memory_mb("VmRSS")
    report = prepare(source, loaded.schema, loaded.recipe.split, Path(work) / "prepared", listen)
    finish()
    return {
        "rows": sum(report.rows.values()),
        "seconds": time.monotonic() - started,
        "start_mb": before,
        "passes": passes,
        "peak_mb": max(p["peak_mb"] for p in passes.values()),
        "known_values": sum(report.vocabulary.values()),
        "encoded_mb": sum(f.stat().st_size for f in (Path(work) / "prepared").rglob("*") if f.is_file()) / 2**20,
    }


def memory_mb(key: str, process: str = "self") -> float:
    for line in Path(f"/proc/{process}/status").read_text("ascii").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) / 1024
    raise KeyError(key)


def page_cache_mb() -> float:
    said = dict(line.split(":") for line in Path("/proc/meminfo").read_text("ascii").splitlines())
    return int(said["Cached"].split()[0]) / 1024


def run(rows: int, folder: Path) -> dict[str, Any]:
    """Make a log of so many rows under `folder`, prepare it, remove both."""
    work = Path(tempfile.mkdtemp(dir=folder, prefix="prepare-"))
    try:
        log = work / "criteo_kaggle" / "train.txt"
        log.parent.mkdir()
        started = time.monotonic()
        write_log(log, rows)
        made = time.monotonic() - started
        caches = [page_cache_mb()]
        done = threading.Event()

        def watch() -> None:
            while not done.wait(1):
                caches.append(page_cache_mb())

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                found = pool.apply(prepare_watched, (str(work), str(work)))
        finally:
            done.set()
            watcher.join()
        return found | {
            "log_mb": log.stat().st_size / 2**20,
            "made_seconds": made,
            "page_cache_mb": [caches[0], max(caches)],
        }
    finally:
        shutil.rmtree(work)


def line_of(found: dict[str, Any]) -> str:
    """A row of the table."""
    passes = [found["passes"][name] for name in PASSES]
    cpu = sum(p["cpu_seconds"] for p in found["passes"].values())
    cells = [
        f"{found['rows']:,}",
        f"{found['log_mb'] / 1024:.1f}",
        f"{found['seconds']:,.0f}",
        f"{cpu:,.0f}",
        f"{found['rows'] / cpu:,.0f}",
        *(f"{p['cpu_seconds']:,.0f} s, {p['peak_mb']:,.0f} MB" for p in passes),
        f"**{found['peak_mb']:,.0f}**",
        f"{found['page_cache_mb'][1] - found['page_cache_mb'][0]:+,.0f}",
        f"{found['known_values']:,}",
        f"{found['encoded_mb'] / 1024:.1f}",
    ]
    return f"| {' | '.join(cells)} |"


def main(argv: Sequence[str]) -> int:
    """Measure, print the table, or write it into a document."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prepare_memory", description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--rows", nargs="+", type=int, default=[500_000, 2_000_000], metavar="N", help=f"the whole: {PUBLIC_ROWS}"
    )
    parser.add_argument(
        "--folder", type=Path, default=Path("runs"), help="where logs are made, and removed again (450 bytes a row)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="append what was measured, one object a line")
    parser.add_argument("--write", type=Path, metavar="DOCUMENT", help="put the table between its markers in here")
    options = parser.parse_args(argv)
    options.folder.mkdir(parents=True, exist_ok=True)
    machine: dict[str, Any] = facts()
    lines = []
    for rows in options.rows:
        found = run(rows, options.folder)
        lines.append(line_of(found))
        print(lines[-1], file=sys.stderr, flush=True)
        if options.json:
            with options.json.open("a", encoding="utf-8") as file:
                file.write(json.dumps(found) + "\n")
    publish(
        [
            conditions("prepare_memory", argv, machine, "one core used"),
            "",
            "| rows | file, GB | seconds | CPU s | rows / CPU s | survey | encoder | encode | peak RSS, MB | "
            "page cache, MB | known values | written, GB |",
            f"|{'---:|' * 12}",
            *lines,
        ],
        options.write,
        "prepare",
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
