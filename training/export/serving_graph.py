"""Trained networks -> one ONNX graph that scores requests (the graph contract stands in docs/bundle.md).

One network and its calibration make the graph of a student or a control; several and a gate make an ensemble's.
What differs from the networks as they were trained:

- all embedding tables lie side by side in one wide table, so that the whole graph looks up once a side and a network
  takes its columns of what came back: .7 to .9 of the time of a table each, at six teachers;
- training-only fields are constants, the row of the value that stands in when serving;
- calibration and the correction for negative sampling end the graph.

torch's exporter writes it, so that any network of the zoo goes through it as it is, and the pass at the end of this
file takes out what it leaves over. A student's graph is then as fast as one written node by node. What these choices
are worth: `python -m benchmarks.graphs`, and docs/benchmarks.md.
"""

from __future__ import annotations

import copy
import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import torch
from onnxscript import optimizer
from torch import Tensor, nn
from torch.nn import functional

from models.graph import (
    CANDIDATES,
    CONTEXT,
    GATE_WEIGHTS,
    LOGIT,
    PCTR,
    REQUEST_INDEX,
    TEACHER_LOGITS,
    ids_input,
    offsets_input,
)
from training.distillation.calibrate import Platt
from training.distillation.gate import Gate, GateModule
from training.errors import ExportError
from training.zoo import Embedded, Encoded, FieldEmbedding, Fields
from training.zoo.embedding import MISSING_ID, segment_mean

EXTERNAL_BYTES = 1 << 20
"""A tensor above this lies in a file beside the graph, which ONNX Runtime maps and worker processes share."""

PAGE_BYTES = 4096
_FOLD_BYTES = 1 << 33  # no constant is too large to be computed at export rather than at every load


@dataclass(frozen=True)
class Wiring:
    """What a graph needs to know of the fields: those that networks were trained on, and which of them a request
    never brings.

    `serving_ids` maps each training-only field to the id that stands in for it.
    """

    fields: Fields
    serving_ids: Mapping[str, int]

    def __post_init__(self) -> None:
        known = {spec.name: spec for spec in self.fields}
        for name, id_ in self.serving_ids.items():
            if name not in known or known[name].is_sequence or known[name].side != "context":
                raise ExportError(f"field {name!r}: expected a training-only field on the context's side, got none")
            if not 0 <= id_ < known[name].size:
                raise ExportError(f"field {name!r}: expected a serving id in 0..{known[name].size - 1}, got {id_}")
        plain = [spec.name for spec in self.fields if spec.side == "context" and not spec.is_sequence]
        if plain[len(plain) - len(self.serving_ids) :] != list(self.serving_ids):
            raise ExportError(f"expected training-only fields behind the other context fields, got the order {plain}")

    @property
    def context_width(self) -> int:
        """Fc: columns of the graph's context input."""
        plain = sum(spec.side == "context" and not spec.is_sequence for spec in self.fields)
        return plain - len(self.serving_ids)

    @property
    def candidate_width(self) -> int:
        """Fa: columns of the graph's candidates input."""
        return sum(spec.side == "candidate" and not spec.is_sequence for spec in self.fields)

    @property
    def sequences(self) -> tuple[str, ...]:
        """Sequence fields of both sides, in the order of the graph's inputs."""
        return tuple(spec.name for spec in self.fields if spec.is_sequence)


@dataclass(frozen=True)
class Head:
    """What makes a pctr of the logits of the networks: gate, calibration, correction for negative sampling.

    Without a gate there is one network. `negative_keep_rate` is the share of non-clicks that training rows kept; p is
    corrected to p / (p + (1 - p) / rate) (He et al., ADKDD 2014, section 6.3), which is ln(rate) added to the logit.
    """

    platt: Platt
    gate: Gate | None = None
    negative_keep_rate: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.negative_keep_rate <= 1:
            raise ExportError(f"negative_keep_rate: expected a share in (0, 1], got {self.negative_keep_rate}")


class ServingGraph(nn.Module):
    """Networks and head as one module with the inputs and outputs of the exported graph.

    `networks` are the teachers by name, in the gate's order; without a gate exactly one network.
    """

    def __init__(self, networks: Mapping[str, nn.Module], wiring: Wiring, head: Head) -> None:
        super().__init__()
        expected = 1 if head.gate is None else head.gate.teachers
        if len(networks) != expected:
            raise ExportError(f"expected as many networks as the head takes, {expected}, got {len(networks)}")
        self.wiring = wiring
        self.gate = None if head.gate is None else GateModule(head.gate)
        self.gate_takes_hints = head.gate is not None and head.gate.takes_hints
        self.platt_scale = head.platt.scale
        self.platt_bias = head.platt.bias + math.log(head.negative_keep_rate)
        # Modules are copied, because their embeddings will be replaced; weights are shared.
        self.networks = nn.ModuleList(
            copy.deepcopy(network, {id(weight): weight for weight in network.parameters()})
            for network in networks.values()
        )
        self.look_up = _WideLookUp(self.networks, wiring)
        self.eval()

    def forward(
        self, context: Tensor, candidates: Tensor, request_index: Tensor, sequences: Sequence[Tensor] = ()
    ) -> tuple[Tensor, ...]:
        """`sequences` holds ids and offsets of each sequence field in turn. logit, pctr [, teacher_logits,
        gate_weights]."""
        pairs = zip(self.wiring.sequences, zip(sequences[::2], sequences[1::2], strict=True), strict=True)
        batch = Encoded(context, candidates, request_index, dict(pairs))
        with self.look_up.of(batch):
            answers = [network(batch) for network in self.networks]
        logits = [logit for logit, _ in answers]
        if self.gate is None:
            return logits[0], self._calibrated(logits[0])
        teacher_logits = torch.stack(logits, dim=1)  # [N, M]
        inputs = torch.cat([teacher_logits, *(hint for _, hint in answers)], dim=1) if self.gate_takes_hints else None
        logit, gate_weights = self.gate(teacher_logits, inputs)
        return logit, self._calibrated(logit), teacher_logits, gate_weights

    def _calibrated(self, logit: Tensor) -> Tensor:
        return torch.sigmoid(logit * self.platt_scale + self.platt_bias)

    @property
    def input_names(self) -> list[str]:
        """The graph's inputs, in the order of `forward`."""
        pairs = [(ids_input(name), offsets_input(name)) for name in self.wiring.sequences]
        return [CONTEXT, CANDIDATES, REQUEST_INDEX, *(name for pair in pairs for name in pair)]

    @property
    def output_names(self) -> list[str]:
        """The graph's outputs, in the order of `forward`."""
        return [LOGIT, PCTR] if self.gate is None else [LOGIT, PCTR, TEACHER_LOGITS, GATE_WEIGHTS]


class _WideLookUp(nn.Module):
    """The tables of all embeddings in all networks side by side, [rows, W]; replaces the embeddings it took over."""

    first_context: Tensor
    first_candidate: Tensor

    def __init__(self, networks: nn.ModuleList, wiring: Wiring) -> None:
        super().__init__()
        places = [
            (parent, name, child)
            for network in networks
            for parent in network.modules()
            for name, child in parent.named_children()
            if isinstance(child, FieldEmbedding)
        ]
        first_row, rows = {}, 0
        for spec in wiring.fields:
            first_row[spec.name] = rows
            rows += spec.size
        for _, _, embedding in places:
            if len(embedding.table) != rows:
                raise ExportError(
                    f"expected tables of {rows} rows, as the fields have, got one of {len(embedding.table)}"
                )
        tables = [embedding.table.detach() for _, _, embedding in places]
        self.table = nn.Parameter(tables[0] if len(tables) == 1 else torch.cat(tables, dim=1))
        self.widths = [embedding.dim for _, _, embedding in places]
        self._starts = [0, *accumulate(self.widths)]

        # Ids are padded with zeros for training-only fields, whose first row is moved to the row that stands in.
        plain = [spec for spec in wiring.fields if not spec.is_sequence]
        for side in ("context", "candidate"):
            first = [first_row[spec.name] + wiring.serving_ids.get(spec.name, 0) for spec in plain if spec.side == side]
            self.register_buffer(f"first_{side}", torch.tensor(first, dtype=torch.int32))
        self._constants = len(wiring.serving_ids)
        # A sequence that no network takes as its mean is not pooled.
        pooled = [name for name in wiring.sequences if any(name not in embedding.unpooled for *_, embedding in places)]
        self._first = {name: first_row[name] for name in wiring.sequences}
        self._pooled = {
            side: [spec.name for spec in wiring.fields if spec.name in pooled and spec.side == side]
            for side in ("context", "candidate")
        }
        self._found: _Found | None = None
        for column, (parent, name, embedding) in enumerate(places):
            setattr(parent, name, _Columns(self, column, embedding))

    @contextmanager
    def of(self, batch: Encoded) -> Iterator[None]:
        """Within, the columns of every network are those of `batch`."""
        context_ids = functional.pad(batch.context, (0, self._constants)) if self._constants else batch.context
        elements = {
            name: functional.embedding(ids + self._first[name], self.table)
            for name, (ids, _) in batch.sequences.items()
        }
        sides = (("context", context_ids + self.first_context), ("candidate", batch.candidates + self.first_candidate))
        context, candidates = (self._vectors(side, rows, batch, elements) for side, rows in sides)
        if len(self.widths) == 1:
            self._found = _Found((context,), (candidates,), elements)
        else:
            split = [torch.split(vectors, self.widths, dim=2) for vectors in (context, candidates)]
            self._found = _Found(split[0], split[1], elements)
        try:
            yield
        finally:
            self._found = None

    @property
    def found(self) -> _Found:
        """What was looked up for the batch at hand."""
        if self._found is None:
            raise RuntimeError("expected to be asked within `of`")
        return self._found

    def elements(self, column: int, name: str) -> Tensor:
        """`FieldEmbedding.elements` of one embedding: [1 + K, D]."""
        missing = self.table[self._first[name] + MISSING_ID].unsqueeze(0)
        columns = slice(self._starts[column], self._starts[column + 1])
        return torch.cat([missing, self.found.elements[name]])[:, columns]

    def kept(self, side: str, unpooled: Sequence[str]) -> list[int] | None:
        """Which of a side's fields, as they are found, an embedding with such `unpooled` gives; None: all of them."""
        plain = len(self.first_context if side == "context" else self.first_candidate)
        names = [None] * plain + self._pooled[side]
        kept = [place for place, name in enumerate(names) if name not in unpooled]
        return None if len(kept) == len(names) else kept

    def _vectors(self, side: str, rows: Tensor, batch: Encoded, elements: Mapping[str, Tensor]) -> Tensor:
        """[S, F, W]: plain fields, then pooled sequences, as `FieldEmbedding` orders them."""
        vectors = functional.embedding(rows, self.table)
        if not self._pooled[side]:
            return vectors
        pooled = [
            segment_mean(elements[name], batch.sequences[name][1], self.table[self._first[name] + MISSING_ID])
            for name in self._pooled[side]
        ]
        return torch.cat([vectors, *(mean.unsqueeze(1) for mean in pooled)], dim=1)


@dataclass(frozen=True)
class _Found:
    """Vectors of a batch: of each embedding [R, Fc, D] and [N, Fa, D]; of each sequence's elements [K, W]."""

    context: tuple[Tensor, ...]
    candidates: tuple[Tensor, ...]
    elements: Mapping[str, Tensor]


class _Columns(nn.Module):
    """Stands where a `FieldEmbedding` stood, and answers from the wide table."""

    def __init__(self, look_up: _WideLookUp, column: int, embedding: FieldEmbedding) -> None:
        super().__init__()
        self._look_up = (look_up,)  # in a tuple, so that the table is not a parameter of every network too
        self._column = column
        self.dim = embedding.dim
        self.context_fields = embedding.context_fields
        self.candidate_fields = embedding.candidate_fields
        self._kept = [look_up.kept(side, embedding.unpooled) for side in ("context", "candidate")]

    def forward(self, batch: Encoded) -> Embedded:
        found = self._look_up[0].found
        context, candidates = (
            vectors[self._column] if kept is None else vectors[self._column][:, kept]
            for vectors, kept in zip((found.context, found.candidates), self._kept, strict=True)
        )
        alone = candidates if self.context_fields == 0 else None
        return Embedded(context, candidates, batch.request_index, alone)

    def elements(self, batch: Encoded, name: str) -> Tensor:
        return self._look_up[0].elements(self._column, name)


def write_graph(graph: ServingGraph, folder: Path) -> list[Path]:
    """Write model.onnx, and model.onnx.data where a tensor is above `EXTERNAL_BYTES`; the files written.

    Numbers of requests, candidates and sequence elements are free. Tensors in the data file start on a page, so that
    they can be mapped, and are written one by one: a table is never copied, nor bound by the 2 GB of a protocol buffer.
    """
    with _quiet():
        program = _exported(graph)
        files = [folder / "model.onnx", *set_apart(program.model, folder / "model.onnx.data")]
        model: onnx.ModelProto = program.model_proto
    _gather_by_int32(model.graph)
    name_plainly(model)
    files[0].write_bytes(model.SerializeToString(deterministic=True))
    onnx.checker.check_model(files[0])
    return files


def _exported(graph: ServingGraph) -> torch.onnx.ONNXProgram:
    wiring = graph.wiring
    requests, rows = torch.export.Dim("requests", min=1), torch.export.Dim("rows", min=1)
    # The exporter takes sizes of 0 and 1 for constants, so the example has at least 2 of everything, all different.
    R, N = 3, 5
    sizes = {spec.name: (R, requests) if spec.side == "context" else (N, rows) for spec in wiring.fields}
    sequences: list[Tensor] = []
    sequence_sizes: list[dict[int, object]] = []
    for order, name in enumerate(wiring.sequences):
        segments, dimension = sizes[name]
        sequences += [torch.zeros(2 * segments + order, dtype=torch.int32), _offsets(segments, order)]
        sequence_sizes += [{0: torch.export.Dim(f"elements_{order}", min=1)}, {0: dimension + 1}]
    example = (
        torch.zeros((R, wiring.context_width), dtype=torch.int32),
        torch.zeros((N, wiring.candidate_width), dtype=torch.int32),
        torch.tensor([0, 0, 1, 2, 2], dtype=torch.int32),
        sequences,
    )
    with torch.inference_mode():
        program = torch.onnx.export(
            graph,
            example,
            input_names=graph.input_names,
            output_names=graph.output_names,
            dynamic_shapes=({0: requests}, {0: rows}, {0: rows}, sequence_sizes),
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise ExportError("expected torch.onnx.export to give a program, got none")
    optimizer.optimize(program.model, input_size_limit=_FOLD_BYTES, output_size_limit=_FOLD_BYTES)
    return program


def set_apart(model: onnx_ir.Model, path: Path) -> list[Path]:
    """Move large tensors to a file; [path], or [] where none is large."""
    tensors = ((value, value.const_value) for value in model.graph.initializers.values())
    large = [(value, tensor) for value, tensor in tensors if tensor is not None and tensor.nbytes > EXTERNAL_BYTES]
    if not large:
        return []
    with path.open("wb") as data:
        for value, tensor in large:
            data.write(bytes(-data.tell() % PAGE_BYTES))
            start = data.tell()
            data.write(np.ascontiguousarray(tensor.numpy()).data)
            value.const_value = onnx_ir.ExternalTensor(
                path.name,
                start,
                tensor.nbytes,
                tensor.dtype,
                shape=onnx_ir.Shape(tensor.numpy().shape),
                name=value.name or "",
                base_dir=path.parent,
            )
    return [path]


def count_parameters(networks: Mapping[str, nn.Module]) -> dict[str, int]:
    """`parameters_embedding` (tables, first-order weights among them) and `parameters_dense` of networks together."""
    embedding = {
        id(module.table): module.table.numel()
        for network in networks.values()
        for module in network.modules()
        if isinstance(module, FieldEmbedding)
    }
    total = {id(weight): weight.numel() for network in networks.values() for weight in network.parameters()}
    in_tables = sum(embedding.values())
    return {"parameters_embedding": in_tables, "parameters_dense": sum(total.values()) - in_tables}


def _offsets(segments: int, order: int) -> Tensor:
    """Two elements a segment, and `order` more in the last: 2 * segments + order in all."""
    offsets = torch.arange(segments + 1, dtype=torch.int32) * 2
    offsets[-1] += order
    return offsets


def _gather_by_int32(graph: onnx.GraphProto) -> None:
    """Let Gather take request_index as it comes: the exporter reshapes and casts it to int64 first, for nothing."""
    maker = {output: node for node in graph.node for output in node.output}
    for node in graph.node:
        if node.op_type == "Gather":
            source = node.input[1]
            while (before := maker.get(source)) is not None and before.op_type in ("Cast", "Reshape"):
                source = before.input[0]
            if source == REQUEST_INDEX:
                node.input[1] = REQUEST_INDEX
    drop_unused(graph)


def names_read(graph: onnx.GraphProto) -> set[str]:
    """What the nodes of a graph and of the graphs within them read, and the outputs."""
    read = {output.name for output in graph.output}
    for node in graph.node:
        read.update(node.input)
        for attribute in node.attribute:
            for inner in (*attribute.graphs, attribute.g):
                read |= names_read(inner)
    return read


def drop_unused(graph: onnx.GraphProto) -> None:
    """Take out nodes and constants that nothing reads."""
    while True:
        read = names_read(graph)
        unused = [node for node in graph.node if not any(output in read for output in node.output)]
        for node in unused:
            graph.node.remove(node)
        if not unused:
            break
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in read]:
        graph.initializer.remove(tensor)


def name_plainly(model: onnx.ModelProto) -> None:
    """Drop what the exporter left for its own debugging (paths of source files among it), so that the same weights
    give the same bytes on every machine."""
    model.producer_name, model.doc_string = "retort", ""
    model.ClearField("metadata_props")
    graph = model.graph
    graph.name, graph.doc_string = "retort", ""
    graph.ClearField("metadata_props")
    graph.ClearField("value_info")
    for part in (*graph.node, *graph.initializer, *graph.input, *graph.output):
        part.doc_string = ""
        part.ClearField("metadata_props")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's advice to its own developers out of a run's output."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
