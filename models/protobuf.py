"""Messages of protocol buffers, field by field, without a library: enough to walk an ONNX model and to cut it.

A field is a number, a wire type, and a length or a value (protobuf.dev, "Encoding").
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class Field(NamedTuple):
    """One field of a message, nothing of it copied."""

    number: int
    has_length: bool
    """Whether it is a string, bytes, a message or packed numbers; else a number."""
    content: memoryview
    """Empty for a number."""
    whole: memoryview
    """The field as it stands there, tag and all."""


def fields(data: memoryview) -> Iterator[Field]:
    """The fields of a message in their order. Raises ValueError where the bytes are cut short, or none of ONNX's."""
    at = 0
    while at < len(data):
        began = at
        tag, at = _varint(data, at)
        wire = tag & 7
        start = at
        if wire == _VARINT:
            _, at = _varint(data, at)
        elif wire == _BYTES:
            length, start = _varint(data, at)
            at = start + length
        elif wire in (_FIXED64, _FIXED32):
            at += 8 if wire == _FIXED64 else 4
        else:
            raise ValueError("is no ONNX file")
        if at > len(data):
            raise ValueError("is cut short")
        has_length = wire == _BYTES
        yield Field(tag >> 3, has_length, data[start : at if has_length else start], data[began:at])


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
