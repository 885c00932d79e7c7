"""python -m benchmarks.shared_tables: what 1 and 4 workers take in memory, and how much of it is embedding tables.

Three bundles of the wide model differ in where its table of a million rows lies: within model.onnx; in a file beside
it, which ONNX Runtime maps, as our exporter writes every large table; the same in float16. Each is served by 1 and by 4
workers, answers requests until every worker has had its share, and is then measured by the kernel's proportional set
size (PSS): a page that n processes share counts a n-th in each, so sums over processes are memory really taken.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import onnx
import onnx_ir

from benchmarks.contenders import BenchmarkError, experiment_file, server_of
from benchmarks.load import closed_loop, http_request
from benchmarks.machine import descendants, facts
from benchmarks.results import conditions, publish
from benchmarks.wide_bundle import CANDIDATE_SIZES, CONTEXT_SIZES, write_wide_bundle
from benchmarks.workload import make_requests
from models.bundle import Bundle, read_bundle, write_bundle
from models.graph import LOGIT, PCTR
from models.manifest import ModelCard
from training.export.bundles import encode_request, golden_of
from training.export.cost import open_session
from training.export.quantize import Quantize, quantize_graph
from training.export.serving_graph import set_apart

DATA = "model.onnx.data"
WORKERS = (1, 4)
START_SECONDS = 300.0
"""For all workers: each reads a million values, and they may share a core."""
MB = 1e6


def beside(source: Path, folder: Path) -> None:
    """The graph with its large tensors in a file of their own, as the exporter writes it."""
    model = onnx_ir.load(source / "model.onnx")
    set_apart(model, folder / DATA)
    onnx_ir.save(model, folder / "model.onnx")


def beside_in_float16(source: Path, folder: Path) -> None:
    """The same with the table in float16."""
    quantize_graph(source, folder, Quantize(tables="float16"), lambda: iter(()))


FORMS: Mapping[str, Callable[[Path, Path], None] | None] = {
    "within the graph": None,
    "beside it, mapped": beside,
    "beside it, float16": beside_in_float16,
}


def written(wide: Bundle, name: str, make: Callable[[Path, Path], None], repository: Path, folder: Path) -> Bundle:
    """A bundle like `wide` with its graph in another form."""
    folder.mkdir()
    make(wide.path, folder)
    session = open_session(folder / "model.onnx")
    rows = [{"context": one.context, "candidates": list(one.candidates)} for one in wide.golden.requests]
    golden = golden_of(rows, [session.run([LOGIT, PCTR], encode_request(wide.encoder, row)) for row in rows])
    card = ModelCard(**{key: getattr(wide.manifest, key) for key in ModelCard.model_fields})
    files = {"model": folder / "model.onnx", "external": {DATA: folder / DATA} if (folder / DATA).exists() else {}}
    onnx.checker.check_model(folder / "model.onnx")
    return read_bundle(write_bundle(repository, name, encoder=wide.encoder, card=card, golden=golden, **files))


def pss(pids: Sequence[int], file: str = "") -> float:
    """MB of proportional set size of processes; of the mappings of files so called alone, where one is named."""
    total = 0
    for pid in pids:
        if not file:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()
            total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
            continue
        is_of_file = False
        for line in Path(f"/proc/{pid}/smaps").read_text(encoding="utf-8").splitlines():
            head = line.split(maxsplit=5)
            if "-" in head[0] and not head[0].endswith(":"):
                is_of_file = len(head) == 6 and head[5].endswith(f"/{file}")
            elif is_of_file and line.startswith("Pss:"):
                total += int(head[1])
    return 1024 * total / MB


def measure(bundle: Bundle, workers: int, requests: Sequence[bytes], folder: Path, seconds: float) -> tuple[float, ...]:
    """(MB of all processes, MB of the mapped data file in them) after the workers have answered for so long."""
    repository = bundle.path.parent.parent
    arguments = [
        "-m",
        "service",
        "--repository",
        str(repository),
        "--experiments",
        str(experiment_file([bundle], folder)),
    ]
    log = folder / f"{bundle.name}-{workers}.log"
    with server_of([*arguments, "--workers", str(workers)], None, "/health/ready", log) as (process, port):
        until = time.monotonic() + START_SECONDS
        while log.read_text(encoding="utf-8").count(" is ready") < workers:  # the others serve from the first one on
            if time.monotonic() > until:
                raise BenchmarkError(f"expected {workers} workers within {START_SECONDS:.0f} s:\n{log.read_text()}")
            time.sleep(0.1)
        closed_loop(port, requests, 8 * workers, seconds)
        processes = [process.pid, *descendants(process.pid)]
        return pss(processes), pss(processes, DATA)


def main(arguments: Sequence[str]) -> int:
    """Prints the table, or writes it into a document."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.shared_tables",
        description="Memory of 1 and 4 workers, tables within the graph and mapped beside it.",
        epilog=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seconds", type=float, default=5.0, metavar="S", help="requests are answered for so long [5]")
    parser.add_argument("--shrink", type=int, default=1, metavar="N", help="so many times fewer ids [1]")
    parser.add_argument("--write", type=Path, metavar="FILE", help="replace the block `shared-tables` of this document")
    options = parser.parse_args(arguments)
    machine = facts()
    lines = [
        "| table | file, MB | 1 worker, MB | 4 workers, MB | a further worker, MB | mapped table: 1, 4 workers, MB |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    with tempfile.TemporaryDirectory(prefix="retort-bench-") as place:
        folder = Path(place)
        sizes = [tuple(max(2, size // options.shrink) for size in side) for side in (CONTEXT_SIZES, CANDIDATE_SIZES)]
        (folder / "repository").mkdir()
        wide = read_bundle(write_wide_bundle(folder / "repository", *sizes))
        requests = [http_request("/predict", one.body("wide")) for one in make_requests(wide, 50, 400)]
        for number, (title, make) in enumerate(FORMS.items()):
            own = folder / f"repository-{number}"
            own.mkdir()
            bundle = wide if make is None else written(wide, "wide", make, own, folder / f"form-{number}")
            size = sum(file.stat().st_size for file in bundle.path.glob("model.onnx*")) / MB
            found = {workers: measure(bundle, workers, requests, folder, options.seconds) for workers in WORKERS}
            (few, few_mapped), (many, many_mapped) = found[WORKERS[0]], found[WORKERS[1]]
            further = (many - few) / (WORKERS[1] - WORKERS[0])
            print(json.dumps({title: found}), file=sys.stderr)
            mapped = f"{few_mapped:.0f}, {many_mapped:.0f}"
            lines.append(f"| {title} | {size:.0f} | {few:.0f} | {many:.0f} | {further:.0f} | {mapped} |")
    more = f"{sum(map(sum, sizes)):,} ids of {16} numbers, {options.seconds:g} s of requests of 50 candidates"
    publish([conditions("shared_tables", arguments, machine, more), "", *lines], options.write, "shared-tables")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
