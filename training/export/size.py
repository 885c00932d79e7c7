"""What a network of a size costs to score with, before anybody trains it: latency depends on its size, not its weights.

The step `measure_size` draws the graph of a fresh network over the log's own vocabularies and times it in turns with
the network it is compared to, so that whatever else the machine does meets both alike: trust the ratio, not the
milliseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from training.data.encoded_log import EncodedLog, Part
from training.data.prepare import load_encoder
from training.distillation.calibrate import Platt
from training.export.bundles import wiring_of
from training.export.cost import bytes_of, conditions, measure_costs
from training.export.parity import Feed, log_feed
from training.export.serving_graph import Head, ServingGraph, Wiring, count_parameters, write_graph
from training.fit.loop import NetworkSpec
from training.pipeline.stages import Report
from training.pipeline.steps import write_json

CANDIDATES = 50
"""Candidates of the request that is timed."""

_REQUESTS = 32
_ROUNDS = 100


def measure_size(folder: Path, report: Report, *, prepared: Path, spec: Any, beside: Any) -> None:
    """size.json: `spec` and `beside`, each {p50_ms, p99_ms, parameters_embedding, parameters_dense, bytes}; their
    `ratio` of medians; the `conditions`. Specs are of `NetworkSpec`. Test rows are not looked at."""
    log = EncodedLog.open(prepared / "log")
    wiring = wiring_of(load_encoder(prepared))
    specs = {"spec": NetworkSpec(**spec), "beside": NetworkSpec(**beside)}
    found: dict[str, dict[str, float]] = {}
    with TemporaryDirectory() as place:
        graphs = {}
        for name, network_spec in specs.items():
            report(0, 1, "to ONNX")
            torch.manual_seed(0)
            network = network_spec.build(log.fields).eval()
            (Path(place) / name).mkdir()
            # A calibration as a served graph has it: one that changes nothing would be folded away.
            write_graph(ServingGraph({name: network}, wiring, Head(Platt(1.1, 0.1))), Path(place) / name)
            graphs[name] = Path(place) / name / "model.onnx"
            found[name] = {**count_parameters({name: network}), "bytes": bytes_of(graphs[name].parent)}
        # The session opened first is a hundredth or three slower than the same graph opened again: it is not counted,
        # and each graph stands as far in front as behind.
        order = ("uncounted", "spec", "beside", "beside again", "spec again")
        costs = measure_costs(
            {name: graphs["beside" if name.startswith("beside") else "spec"] for name in order},
            lambda count: _requests(log, wiring, count),
            candidates=(CANDIDATES,),
            rounds=_ROUNDS,
            progress=report,
        )
    for name, facts in found.items():
        twice = [costs[each][str(CANDIDATES)] for each in (name, f"{name} again")]
        facts |= {quantile: sum(cost[quantile] for cost in twice) / 2 for quantile in twice[0]}
    ratio = found["spec"]["p50_ms"] / found["beside"]["p50_ms"]
    write_json(folder / "size.json", {**found, "ratio": ratio, "conditions": conditions()})
    report(1, 1, f"{found['spec']['p50_ms']:.3f} ms at {CANDIDATES}, {ratio:.2f} of the recipe's student")


def _requests(log: EncodedLog, wiring: Wiring, count: int) -> Sequence[Feed]:
    rows: NDArray[np.int64] = log.rows([Part.VALID_A])
    rng = np.random.default_rng(count)
    return [log_feed(log, wiring, rng.choice(rows, count), one_request=True) for _ in range(_REQUESTS)]
