"""Which files an ONNX graph keeps its weights in, read without any ONNX library.

A graph may hold tensors outside model.onnx ("external data"), under a location that could be any path. A bundle
allows plain names of its own files alone, and this finds them all.

Field numbers: onnx/onnx.proto, stable by the format's own promise.
"""

from __future__ import annotations

from models.protobuf import fields

# For each message, the fields that can lead to a tensor, and the message each holds.
_LEADS: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "TrainingInfo", 25: "Function"},
    "TrainingInfo": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 11: "Attribute"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Tensor": {13: "Entry"},
}
_GRAPH_FIELD = 7


def external_locations(model: bytes) -> set[str]:
    """Every location of external data in the graph, as it is written there.

    Raises ValueError where the bytes are no whole ONNX model: cut short, or not one at all.
    """
    locations: set[str] = set()
    has_graph = False
    pending = [("Model", memoryview(model))]
    while pending:
        message, data = pending.pop()
        if message == "Entry":
            entry = {field.number: bytes(field.content) for field in fields(data) if field.has_length}
            if entry.get(1) == b"location":
                locations.add(entry.get(2, b"").decode("utf-8", errors="replace"))
            continue
        for field in fields(data):
            if not field.has_length:
                continue
            has_graph = has_graph or (message == "Model" and field.number == _GRAPH_FIELD)
            lead = _LEADS[message].get(field.number)
            if lead:
                pending.append((lead, field.content))
    if not has_graph:
        raise ValueError("holds no graph")
    return locations
