"""`python -m benchmarks.graphs`: is the exported graph as fast as it could be, and what did each choice bring?

Two comparisons, each within one run, models taking turns, one thread, over random weights and ids:

- a student's graph, written by torch's exporter, against one written node by node;
- an ensemble whose tables lie side by side in one, against one table a network, with tables that fit the cache and with
  tables that do not.

Both sides of a comparison must give the same pctr before anything is timed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

from benchmarks.machine import facts
from benchmarks.results import conditions, publish
from models.graph import CANDIDATES, CONTEXT, LOGIT, PCTR, REQUEST_INDEX
from training.distillation.calibrate import Platt
from training.distillation.gate import average_of
from training.export.cost import CANDIDATES as COUNTS
from training.export.cost import Feed, measure_costs, open_session
from training.export.serving_graph import Head, ServingGraph, Wiring, write_graph
from training.zoo import FieldSpec, build
from training.zoo.dnn import DNN

CONTEXT_FIELDS, CANDIDATE_FIELDS, DIM, HIDDEN = 14, 14, 16, (128, 64)
TEACHERS = ("lr", "fm", "dnn", "deepfm", "dcnv2", "ipnn")
SMALL, LARGE = 1_000, 40_000
HEAD = Head(Platt(1.1, 0.2))


class Apart(nn.Module):
    """An ensemble of graphs that look up for themselves: the obvious way."""

    def __init__(self, networks: Mapping[str, nn.Module], wiring: Wiring, head: Head) -> None:
        super().__init__()
        whole = ServingGraph(networks, wiring, head)
        self.wiring, self.gate, self.calibrated = wiring, whole.gate, whole._calibrated
        self.input_names, self.output_names = whole.input_names, whole.output_names
        self.graphs = nn.ModuleList(ServingGraph({name: n}, wiring, Head(Platt())) for name, n in networks.items())

    def forward(
        self, context: Tensor, candidates: Tensor, request_index: Tensor, sequences: Sequence[Tensor] = ()
    ) -> tuple[Tensor, ...]:
        logits = [graph(context, candidates, request_index, sequences)[0] for graph in self.graphs]
        teacher_logits = torch.stack(logits, dim=1)
        assert self.gate is not None
        logit, gate_weights = self.gate(teacher_logits)
        return logit, self.calibrated(logit), teacher_logits, gate_weights


def wiring_of(size: int) -> Wiring:
    """So many fields a side, all with tables of `size` rows."""
    context = [FieldSpec(f"c{i}", size, "context") for i in range(CONTEXT_FIELDS)]
    candidate = [FieldSpec(f"a{i}", size, "candidate") for i in range(CANDIDATE_FIELDS)]
    return Wiring((*context, *candidate), {})


def network(name: str, wiring: Wiring) -> nn.Module:
    """A network with random weights, of the sizes of the default recipe."""
    options: dict[str, Any] = {"lr": {"init_sd": 0.1}, "fm": {"dim": DIM, "init_sd": 0.1}}.get(
        name, {"dim": DIM, "hidden": HIDDEN, "init_sd": 0.1}
    )
    return build(name, wiring.fields, **options).eval()


def by_hand(student: DNN, wiring: Wiring) -> onnx.ModelProto:
    """The student's graph as one would write it, knowing what it is: 17 nodes."""
    table, weight = student.embedding.table.detach(), student.first.weight.detach()
    split = student.first.context_width
    second, last = student.hidden.layers[2], student.last
    assert isinstance(second, nn.Linear) and student.first.bias is not None  # noqa: PT018
    tensors = {
        "table": table,
        "first_context": student.embedding.first_context,
        "first_candidate": student.embedding.first_candidate,
        "flat": torch.tensor([-1, split]),
        "weight_context": weight[:, :split].T,
        "weight_candidate": weight[:, split:].T,
        "bias": student.first.bias,
        "weight_2": second.weight.T,
        "bias_2": second.bias,
        "weight_3": last.weight.T,
        "bias_3": last.bias,
        "one": torch.tensor([1]),
        "scale": torch.tensor(HEAD.platt.scale, dtype=torch.float32),
        "shift": torch.tensor(HEAD.platt.bias, dtype=torch.float32),
    }
    nodes = [
        ("Add", [CONTEXT, "first_context"], "context_rows"),
        ("Add", [CANDIDATES, "first_candidate"], "candidate_rows"),
        ("Gather", ["table", "context_rows"], "context_vectors"),
        ("Gather", ["table", "candidate_rows"], "candidate_vectors"),
        ("Reshape", ["context_vectors", "flat"], "context_flat"),
        ("Reshape", ["candidate_vectors", "flat"], "candidate_flat"),
        ("Gemm", ["context_flat", "weight_context", "bias"], "per_request"),
        ("Gather", ["per_request", REQUEST_INDEX], "spread"),
        ("Gemm", ["candidate_flat", "weight_candidate", "spread"], "first"),
        ("Relu", ["first"], "first_relu"),
        ("Gemm", ["first_relu", "weight_2", "bias_2"], "second"),
        ("Relu", ["second"], "second_relu"),
        ("Gemm", ["second_relu", "weight_3", "bias_3"], "third"),
        ("Squeeze", ["third", "one"], LOGIT),
        ("Mul", [LOGIT, "scale"], "scaled"),
        ("Add", ["scaled", "shift"], "calibrated"),
        ("Sigmoid", ["calibrated"], PCTR),
    ]
    integer, real = onnx.TensorProto.INT32, onnx.TensorProto.FLOAT
    inputs = [
        helper.make_tensor_value_info(CONTEXT, integer, ["R", wiring.context_width]),
        helper.make_tensor_value_info(CANDIDATES, integer, ["N", wiring.candidate_width]),
        helper.make_tensor_value_info(REQUEST_INDEX, integer, ["N"]),
    ]
    graph = helper.make_graph(
        [helper.make_node(kind, taken, [given]) for kind, taken, given in nodes],
        "by_hand",
        inputs,
        [helper.make_tensor_value_info(name, real, ["N"]) for name in (LOGIT, PCTR)],
        [numpy_helper.from_array(np.ascontiguousarray(t.detach().numpy()), name) for name, t in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def requests(wiring: Wiring, size: int, count: int) -> list[Feed]:
    """64 requests of `count` candidates, their ids drawn evenly."""
    rng = np.random.default_rng(count)
    return [
        {
            CONTEXT: rng.integers(0, size, (1, wiring.context_width), dtype=np.int32),
            CANDIDATES: rng.integers(0, size, (count, wiring.candidate_width), dtype=np.int32),
            REQUEST_INDEX: np.zeros(count, dtype=np.int32),
        }
        for _ in range(64)
    ]


def compare(title: str, graphs: Mapping[str, Path], wiring: Wiring, size: int) -> list[str]:
    """Rows of a table: microseconds of each graph, and what the second takes of the first's time."""
    (first, second), rows = graphs, []
    feed = requests(wiring, size, 7)[0]
    answers = [open_session(path).run([PCTR], feed)[0] for path in graphs.values()]
    if not np.allclose(answers[0], answers[1], atol=1e-5):
        raise SystemExit(f"{title}: {first} and {second} answer differently; nothing was measured")
    costs = measure_costs(graphs, lambda count: requests(wiring, size, count))
    for count in map(str, COUNTS):
        before, after = costs[first][count]["p50_ms"], costs[second][count]["p50_ms"]
        times = f"{before * 1e3:.0f} | {after * 1e3:.0f} | {after / before:.2f}"
        rows.append(f"| {title}: {first} -> {second} | {count} | {times} |")
    return rows


def run(folder: Path) -> list[str]:
    """Every comparison, as rows of a table."""
    torch.manual_seed(0)
    torch.set_num_threads(1)

    def written(graph: Any, name: str) -> Path:
        (folder / name).mkdir()
        return write_graph(graph, folder / name)[0]

    small = wiring_of(SMALL)
    student = network("dnn", small)
    assert isinstance(student, DNN)
    (folder / "by_hand.onnx").write_bytes(by_hand(student, small).SerializeToString())
    drawn = {
        "by hand": folder / "by_hand.onnx",
        "exporter": written(ServingGraph({"s": student}, small, HEAD), "student"),
    }
    rows = compare("student", drawn, small, SMALL)

    for size, fit in ((SMALL, "fit"), (LARGE, "do not fit")):
        wiring = wiring_of(size)
        teachers = {name: network(name, wiring) for name in TEACHERS}
        head = Head(HEAD.platt, average_of(len(teachers)))
        drawn = {
            "a table each": written(Apart(teachers, wiring, head), f"apart-{size}"),
            "one wide table": written(ServingGraph(teachers, wiring, head), f"wide-{size}"),
        }
        rows += compare(f"six teachers whose tables {fit} the cache", drawn, wiring, size)

    return rows


def main(arguments: Sequence[str]) -> int:
    """Print the table, or write it into a document."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.graphs", description=__doc__.split("\n\n")[0])
    parser.add_argument("--write", type=Path, metavar="DOCUMENT", help="put the table between its markers in here")
    options = parser.parse_args(arguments)
    machine = facts()
    with tempfile.TemporaryDirectory() as folder:
        rows = run(Path(folder))
    more = (
        f"onnxruntime {machine['onnxruntime']}, torch {torch.__version__}; {CONTEXT_FIELDS} context and "
        f"{CANDIDATE_FIELDS} candidate fields, dim {DIM}, hidden {HIDDEN}"
    )
    header = ["| what: from -> to | candidates | from, us | to, us | to/from |", "|---|---:|---:|---:|---:|"]
    publish([conditions("graphs", arguments, machine, more), "", *header, *rows], options.write, "graphs")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
