"""python -m benchmarks.quantized: session.run of a student in float32, int8 and float16, models taking turns.

Two students with random weights and random ids: of the built-in recipe's size (layers of 128 and 64, tables that fit
the cache) and of common size (three layers of 400, a million ids). Whether scores stay as good is another question, and
`training` answers it at every export with the log at hand; here stands what is won.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.machine import facts
from benchmarks.results import conditions, publish
from models.graph import LOGIT
from training.distillation.calibrate import Platt
from training.export.cost import bytes_of, measure_costs, open_session
from training.export.parity import Feed
from training.export.quantize import Quantize, quantize_graph
from training.export.serving_graph import Head, ServingGraph, Wiring, write_graph
from training.zoo import FieldSpec, build

CANDIDATES = (1, 50, 200)
STUDENTS = {
    "128-64, 8 thousand ids": ([300] * 14, [300] * 14, [128, 64]),
    "400-400-400, a million ids": (
        [400_000, 60_000, 20_000, 5_000, 1_000, *[100] * 20],
        [400_000, 80_000, 20_000, 5_000, 1_000, 500, *[100] * 8],
        [400, 400, 400],
    ),
}
FORMS = {
    "int8": {"layers": "int8"},
    "float16 tables": {"tables": "float16"},
    "both": {"layers": "int8", "tables": "float16"},
}


def feeds_of(wiring: Wiring, candidates: int, count: int = 64) -> list[Feed]:
    """Requests of so many candidates, ids by Zipf's law as logs have them."""
    random = np.random.default_rng(candidates)

    def ids(side: str, rows: int) -> np.ndarray:
        sizes = [spec.size for spec in wiring.fields if spec.side == side]
        return np.stack([np.minimum(random.zipf(1.2, rows) + 1, size - 1) for size in sizes], axis=1).astype(np.int32)

    index = np.zeros(candidates, np.int32)
    return [
        {"context": ids("context", 1), "candidates": ids("candidate", candidates), "request_index": index}
        for _ in range(count)
    ]


def main(arguments: Sequence[str]) -> int:
    """Prints the table, or writes it into a document."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quantized",
        description="What a student in smaller numbers wins in session.run.",
        epilog=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=20, metavar="N", help="turns of each [20]")
    parser.add_argument("--write", type=Path, metavar="FILE", help="replace the block `quantized` of this document")
    options = parser.parse_args(arguments)
    machine = facts()
    lines = [
        "| student | graph | size, MB | ms at 1 | ms at 50 | ms at 200 | x float32 at 1, 50, 200 | logit rmse, in sd |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for title, (context, candidate, hidden) in STUDENTS.items():
        fields = tuple(FieldSpec(f"c{i}", size, "context") for i, size in enumerate(context))
        wiring = Wiring(fields + tuple(FieldSpec(f"a{i}", size, "candidate") for i, size in enumerate(candidate)), {})
        with tempfile.TemporaryDirectory(prefix="retort-bench-") as place:
            torch.manual_seed(1)
            student = build("dnn", wiring.fields, dim=16, hidden=hidden, init_sd=0.5)
            graphs = {"float32": Path(place) / "float32"}
            graphs["float32"].mkdir()
            write_graph(ServingGraph({"student": student}, wiring, Head(Platt())), graphs["float32"])
            for name, asked in FORMS.items():
                graphs[name] = Path(place) / name
                graphs[name].mkdir()
                quantize_graph(
                    graphs["float32"], graphs[name], Quantize(**asked), lambda w=wiring: iter(feeds_of(w, 50))
                )
            costs = measure_costs(
                {name: folder / "model.onnx" for name, folder in graphs.items()},
                lambda count, w=wiring: feeds_of(w, count),
                rounds=options.rounds,
            )
            feeds = feeds_of(wiring, 200)
            logits = {
                name: np.concatenate([open_session(folder / "model.onnx").run([LOGIT], feed)[0] for feed in feeds[:8]])
                for name, folder in graphs.items()
            }
            for name, folder in graphs.items():
                times = [costs[name][str(count)]["p50_ms"] for count in CANDIDATES]
                base = [costs["float32"][str(count)]["p50_ms"] for count in CANDIDATES]
                ratio = ", ".join(f"{one / other:.2f}" for one, other in zip(times, base, strict=True))
                shown = " | ".join(f"{time:.3f}" for time in times)
                gap = np.sqrt(np.mean((logits[name] - logits["float32"]) ** 2)) / logits["float32"].std()
                lines.append(f"| {title} | {name} | {bytes_of(folder) / 1e6:.1f} | {shown} | {ratio} | {gap:.4f} |")
    more = f"rounds: {options.rounds} of 20 runs, medians"
    publish([conditions("quantized", arguments, machine, more), "", *lines], options.write, "quantized")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
