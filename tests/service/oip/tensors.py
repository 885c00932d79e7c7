"""Requests of the protocol, made of the requests that /predict takes; and its answers, read back."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np

from models.schema import FeatureSchema, FieldSchema
from service.oip.metadata import datatype_of
from service.oip.tensors import DTYPES
from tests.models.tiny_bundle import SCHEMA

FIELDS = FeatureSchema.from_text(SCHEMA)

HEADER = "inference-header-content-length"


def tensor(name: str, datatype: str, data: list[Any], shape: list[int] | None = None) -> dict[str, Any]:
    """One tensor with its data as JSON."""
    return {"name": name, "datatype": datatype, "shape": [len(data)] if shape is None else shape, "data": data}


def _value(field: FieldSchema, value: Any) -> Any:
    if field.is_sequence:
        return "" if value is None else json.dumps(value)
    return value


def tensors_of(context: dict[str, Any], candidates: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One tensor a field; a value that is absent is null."""
    found = [
        tensor(field.name, datatype_of(field), [_value(field, context[field.name])])
        for field in FIELDS.context_fields
        if field.name in context
    ]
    for field in FIELDS.candidate_fields:
        values = [_value(field, row.get(field.name)) for row in candidates]
        found.append(tensor(field.name, datatype_of(field), values))
    return found


def pack(datatype: str, data: list[Any]) -> bytes:
    """A tensor's data as bytes; NaN for null in a float, "" in BYTES."""
    if datatype == "BYTES":
        texts = [("" if text is None else text).encode() for text in data]
        return b"".join(struct.pack("<I", len(text)) + text for text in texts)
    if datatype.startswith("FP"):
        data = [np.nan if value is None else value for value in data]
    return np.array(data, DTYPES[datatype]).tobytes()


def as_binary(request: dict[str, Any]) -> tuple[bytes, dict[str, str]]:
    """The body and headers of a request whose tensors are sent as bytes."""
    inputs, parts = [], []
    for given in request["inputs"]:
        data = pack(given["datatype"], given["data"])
        kept = {name: value for name, value in given.items() if name != "data"}
        inputs.append({**kept, "parameters": {"binary_data_size": len(data)}})
        parts.append(data)
    head = json.dumps({**request, "inputs": inputs}).encode()
    return b"".join((head, *parts)), {HEADER: str(len(head))}


def outputs_in(content: bytes, length: str | None) -> dict[str, np.ndarray]:
    """By output, the array that an answer holds, as JSON or as bytes."""
    size = len(content) if length is None else int(length)
    answer = json.loads(content[:size])
    found, start = {}, size
    for output in answer["outputs"]:
        if "data" in output:
            values = np.array(output["data"], np.float32)
        else:
            end = start + output["parameters"]["binary_data_size"]
            values = np.frombuffer(content[start:end], "<f4")
            start = end
        found[output["name"]] = values.reshape(output["shape"])
    assert start == len(content)
    return found
