"""python -m benchmarks.first_layer: would the candidate's share of the first layer, computed ahead, pay?

A catalogue's ads are known before a request comes, so what the first layer makes of an ad's own fields could be
computed once an ad and kept: a table of as many rows as there are ads, as wide as the layer. A run then fetches rows of
that table where it now fetches vectors and multiplies them. Here the bundle's own graph is changed that way, shown to
give the same pctr, and timed beside the graph as it is, in turns, over the very runs that the service makes (so many
requests share one). Beside them a service that is asked by `candidate_ids` says what a whole request takes, so

    CPU of a request, now / then    the whole, over the whole less what the run would save

which leaves the service all the rest of its work: ids are looked up for places then as they are for rows now. The table
is an input of the graph, which copies nothing, so that a new catalogue needs no new graph.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from benchmarks.contenders import BenchmarkError, serve
from benchmarks.load import closed_loop
from benchmarks.machine import cpu_seconds, facts, pin, two_cores
from benchmarks.results import Spread, conditions, publish
from benchmarks.variants import CALLERS, JSON_TYPE, request_bytes, with_catalogue
from benchmarks.workload import AdRequest, make_requests
from models.bundle import Bundle, read_bundle
from models.graph import CANDIDATES, PCTR, REQUEST_INDEX, graph_inputs
from models.versions import Repository
from training.export.cost import open_session

SHARES, PLACES = "shares", "places"
AGREE = 1e-6
RUNS = 20
HEADINGS = (
    "| model | ads | candidates | requests a run | run now, us a request | run then | now / then | whole, us a request "
    "| **whole now / then** |",
    "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
)


def split_graph(model: onnx.ModelProto) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """(candidates -> their shares [N, H], the graph with shares [A, H] and places [N] instead of candidates).

    Raises `BenchmarkError` for a graph that is not a student's as `training` exports it: one first layer, whose product
    with what the context makes of it is added by request.
    """
    graph = model.graph
    spread = next(
        (node.output[0] for node in graph.node if node.op_type == "Gather" and node.input[1] == REQUEST_INDEX), None
    )
    meeting = [node for node in graph.node if spread is not None and spread in node.input]
    if len(meeting) != 1 or meeting[0].op_type not in ("Gemm", "Add"):
        raise BenchmarkError("expected a graph whose first layer meets the context's share once")
    (first,) = meeting
    share = next(name for name in first.input if name != spread)
    ahead = list(graph.node)[: list(graph.node).index(first)]
    if first.op_type == "Gemm":
        share = "candidate_share"
        ahead.append(helper.make_node("MatMul", list(first.input[:2]), [share]))
    fetch = helper.make_node("Gather", [SHARES, PLACES], ["fetched"])
    add = helper.make_node("Add", ["fetched", spread], [first.output[0]])
    then = [add if node is first else node for node in graph.node]
    then.insert(0, fetch)

    def floats(name: str) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, None])

    places = helper.make_tensor_value_info(PLACES, TensorProto.INT32, [None])
    others = [value for value in graph.input if value.name != CANDIDATES]
    inputs = [value for value in graph.input if value.name == CANDIDATES]
    return (
        _pruned(model, ahead, inputs, [floats(share)]),
        _pruned(model, then, [*others, floats(SHARES), places], [v for v in graph.output if v.name == PCTR]),
    )


def _pruned(model: onnx.ModelProto, nodes: Sequence[Any], inputs: Sequence[Any], outputs: Sequence[Any]) -> Any:
    """The nodes that these outputs need, as a model of its own."""
    needed, kept = {value.name for value in outputs}, []
    for node in reversed(nodes):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(node.input)
    weights = [tensor for tensor in model.graph.initializer if tensor.name in needed]
    graph = helper.make_graph(kept[::-1], "part", [v for v in inputs if v.name in needed], outputs, weights)
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


@dataclass(frozen=True)
class Found:
    """Microseconds a request, of one round."""

    now: float
    then: float
    whole: float

    @property
    def gain(self) -> float:
        """How many times a request's CPU of then its CPU of now is."""
        return self.whole / (self.whole - self.now + self.then)


class Runs:
    """The two graphs over the same runs."""

    def __init__(self, bundle: Bundle, requests: Sequence[AdRequest], together: int, ads: int, folder: Path) -> None:
        """`together`: how many requests share a run. `ads`: rows of the table; those beyond what is asked for are there
        to be in the way, as they would be."""
        ahead, then = split_graph(onnx.load(bundle.model_path))
        for name, model in (("ahead", ahead), ("then", then)):
            onnx.save(model, folder / f"{bundle.name}-{name}.onnx")
        encoder = bundle.encoder
        known: dict[str, int] = {}
        rows: list[NDArray[np.int32]] = []
        places = []
        for request in requests:
            keys = [json.dumps(candidate) for candidate in request.candidates]
            encoded = encoder.encode_candidates(request.candidates).ids
            for key, row in zip(keys, encoded, strict=True):
                if known.setdefault(key, len(rows)) == len(rows):
                    rows.append(row)
            places.append(np.array([known[key] for key in keys], np.int32))
        shuffled = np.random.default_rng(1).permutation(max(ads, len(rows)))[: len(rows)].astype(np.int32)
        (shares,) = open_session(folder / f"{bundle.name}-ahead.onnx").run(None, {CANDIDATES: np.stack(rows)})
        table = np.zeros((max(ads, len(rows)), shares.shape[1]), np.float32)
        table[shuffled] = shares
        self.ads = len(table)
        self._now, self._then = open_session(bundle.model_path), open_session(folder / f"{bundle.name}-then.onnx")
        self._feeds = []
        for start in range(0, len(requests) - together + 1, together):
            batch = requests[start : start + together]
            contexts = [encoder.encode_context(request.context) for request in batch]
            candidates = [encoder.encode_candidates(request.candidates) for request in batch]
            inputs = graph_inputs(contexts, candidates)
            other = {SHARES: table, PLACES: shuffled[np.concatenate(places[start : start + together])]}
            others = {name: ids for name, ids in inputs.items() if name != CANDIDATES} | other
            self._feeds.append((inputs, others))
        for inputs, others in self._feeds:
            if not np.allclose(self._now.run([PCTR], inputs), self._then.run([PCTR], others), rtol=0, atol=AGREE):
                raise BenchmarkError(f"{bundle.name}: the changed graph gives other pctr")
        self._together = together

    def measure(self, number: int) -> tuple[float, float]:
        """(now, then): the medians of runs, in turns."""
        times: tuple[list[float], list[float]] = ([], [])
        sides = ((self._now, 0), (self._then, 1))
        for turn in range(RUNS):
            feeds = self._feeds[(number * RUNS + turn) % len(self._feeds)]
            for session, which in sides if turn % 2 else sides[::-1]:
                began = time.perf_counter()
                session.run([PCTR], feeds[which])
                times[which].append(time.perf_counter() - began)
        now, then = (1e6 * median(each) / self._together for each in times)
        return now, then


def main(arguments: Sequence[str]) -> int:
    """Prints the table, or writes it into a document."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.first_layer",
        description="What the candidates' share of the first layer, computed ahead, would save.",
        epilog=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--repository", type=Path, default=Path("models/repository"), metavar="DIR", help="bundles")
    parser.add_argument("--models", nargs="+", default=["student"], metavar="NAME", help="live versions of [student]")
    parser.add_argument("--candidates", nargs="+", type=int, default=[50, 200, 500], metavar="N", help="ads a request")
    parser.add_argument("--ads", type=int, default=20_000, metavar="N", help="in the table at least [20000]")
    parser.add_argument("--run-rows", type=int, default=256, metavar="N", help="candidates that share a run [256]")
    parser.add_argument("--rounds", type=int, default=9, metavar="N", help="turns of each [9]")
    parser.add_argument("--seconds", type=float, default=0.5, metavar="S", help="of one turn of the service [0.5]")
    parser.add_argument("--write", type=Path, metavar="FILE", help="replace the block `first-layer` of this document")
    options = parser.parse_args(arguments)
    repository = Repository(options.repository)
    machine = facts()
    server, generator = two_cores()
    lines = list(HEADINGS)
    for name in options.models:
        bundle = read_bundle(repository.path(name, repository.live(name)))
        workload = {count: make_requests(bundle, count, 100) for count in options.candidates}
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="retort-bench-")))
            by_ids = with_catalogue(workload, folder / "ads.ndjson")
            keeping = ("--catalogue", str(folder / "ads.ndjson"))
            pin(generator)
            process, port = stack.enter_context(serve(options.repository, [bundle], server, folder, keeping))
            for count, requests in workload.items():
                together = max(1, options.run_rows // count)
                runs = Runs(bundle, requests, together, options.ads, folder)
                sent = [request_bytes(by_ids(request, bundle.name), JSON_TYPE) for request in requests]
                found = []
                for number in range(options.rounds + 1):
                    pin(generator)
                    before = cpu_seconds(process.pid)
                    load = closed_loop(port, sent, CALLERS, options.seconds)
                    whole = 1e6 * (cpu_seconds(process.pid) - before) / len(load.latency_ms)
                    pin(server)
                    found.append(Found(*runs.measure(number), whole))
                found = found[1:]
                now, then, whole = (median(getattr(one, each) for one in found) for each in ("now", "then", "whole"))
                ratio = Spread.of([one.now / one.then for one in found]).text("{:.2f}".format)
                gain = Spread.of([one.gain for one in found]).text("{:.2f}".format)
                lines.append(
                    f"| {name} | {runs.ads:,} | {count} | {together} | {now:.0f} | {then:.0f} | {ratio} | {whole:.0f} "
                    f"| **{gain}** |"
                )
    more = f"callers: {CALLERS}, rounds: {options.rounds}, median (least-greatest)"
    publish([conditions("first_layer", arguments, machine, more), "", *lines], options.write, "first-layer")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
