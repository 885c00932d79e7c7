"""Which files an ONNX graph keeps its weights in, read without any ONNX library.

A graph may hold tensors outside model.onnx ("external data"), under a location that could be any path. A bundle
allows plain names of its own files alone, and this finds them all. Protocol buffers are simple to walk: each
field is a number, a wire type and a length or a value.

Field numbers: onnx/onnx.proto, stable by the format's own promise.
"""

from __future__ import annotations

from collections.abc import Iterator

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

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
            entry = {number: bytes(value) for number, value in _fields(data)}
            if entry.get(1) == b"location":
                locations.add(entry.get(2, b"").decode("utf-8", errors="replace"))
            continue
        for number, value in _fields(data):
            has_graph = has_graph or (message == "Model" and number == _GRAPH_FIELD)
            lead = _LEADS[message].get(number)
            if lead:
                pending.append((lead, value))
    if not has_graph:
        raise ValueError("holds no graph")
    return locations


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """(field number, content) of each length-delimited field; others are stepped over."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        wire = tag & 7
        if wire == _VARINT:
            _, at = _varint(data, at)
        elif wire == _BYTES:
            length, at = _varint(data, at)
            if at + length > len(data):
                raise ValueError("is cut short")
            yield tag >> 3, data[at : at + length]
            at += length
        elif wire in (_FIXED64, _FIXED32):
            at += 8 if wire == _FIXED64 else 4
        else:
            raise ValueError("is no ONNX file")
    if at != len(data):
        raise ValueError("is cut short")


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 64:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError("is cut short")
