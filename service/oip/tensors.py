"""A tensor of the Open Inference Protocol: its shape and datatype, its data as JSON or as bytes.

    JSON      "data": a list, flat or nested as the shape says; null stands for missing
    binary    little-endian, row-major; BYTES elements each after their length in 4 bytes, BOOL a byte each

Both spell the same values: a float32 is the same number either way, NaN is missing, "" is missing. Sizes are judged
before a value is looked at, so that a shape of a billion costs nothing. Nothing a client sent is ever echoed: a tensor
is named in an error where the model knows its name.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from models.values import describe
from service.errors import Code, Refusal

Array = npt.NDArray[Any]

BYTES = "BYTES"
LENGTH_BYTES = 4
_unpack_length = struct.Struct("<I").unpack_from

DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    **{f"UINT{bits}": np.dtype(f"<u{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"INT{bits}": np.dtype(f"<i{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": np.dtype(f"<f{bits // 8}") for bits in (16, 32, 64)},
}
"""Every datatype of fixed size. BF16 is the one of the protocol's that is not read: numpy has none."""
DATATYPES = (*DTYPES, BYTES)

_BOUNDS = {
    name: (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)) for name, dtype in DTYPES.items() if dtype.kind in "iu"
}


@dataclass(slots=True, eq=False)
class Tensor:
    """A tensor as it was sent: `shape` and `datatype` checked, its data not looked at yet."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: list[Any] | memoryview

    @property
    def size(self) -> int:
        """How many elements the shape says there are."""
        size = 1
        for length in self.shape:
            size *= length
        return size


def invalid(detail: str, field: str | None = None, row: int | None = None) -> Refusal:
    """The refusal of a tensor."""
    return Refusal(Code.INVALID_TENSOR, detail, field=field, row=row)


def rows_of(tensor: Tensor, field: str) -> int:
    """The rows of a tensor that holds one value each: shape [N] or [N, 1]."""
    if not (len(tensor.shape) == 1 or (len(tensor.shape) == 2 and tensor.shape[1] == 1)):
        raise invalid(f"field '{field}': expected shape [N] or [N, 1]", field)
    return tensor.shape[0]


def raw_values(tensor: Tensor, field: str) -> list[Any]:
    """The values of a tensor in row-major order, as JSON would have brought them: None, str, int, float or bool.

    Call it only where `tensor.size` is known to be small. Raises `Refusal` where the data is not what shape and
    datatype say.
    """
    if isinstance(tensor.data, memoryview):
        if tensor.datatype == BYTES:
            return _texts(tensor.data, tensor.size, field)
        values: list[Any] = _numbers(tensor, tensor.data, field).tolist()
    else:
        values = _flat(tensor, tensor.data, field)
        _CHECKS[tensor.datatype[:2]](tensor.datatype, values, field)
        if tensor.datatype[:2] != "FP" or (tensor.datatype == "FP64" and int not in map(type, values)):
            return values
        values = _rounded(tensor.datatype, values, field)
    if tensor.datatype[:2] == "FP":
        values = [None if value != value else value for value in values]
    return values


def integers(tensor: Tensor, field: str) -> npt.NDArray[np.int64]:
    """The elements of a tensor of integers, in its shape. As `raw_values`, but null is refused."""
    if tensor.datatype[:2] not in ("IN", "UI") or tensor.datatype == "UINT64":
        raise invalid(f"'{field}': expected integers of at most 63 bits, such as INT32", field)
    if isinstance(tensor.data, memoryview):
        return _numbers(tensor, tensor.data, field).astype(np.int64).reshape(tensor.shape)
    values = raw_values(tensor, field)
    if None in values:
        raise Refusal(Code.WRONG_TYPE, f"'{field}': expected integers, got null", field=field)
    return np.array(values, np.int64).reshape(tensor.shape)


def _numbers(tensor: Tensor, data: memoryview, field: str) -> Array:
    dtype = DTYPES[tensor.datatype]
    expected = tensor.size * dtype.itemsize
    if len(data) != expected:
        raise invalid(f"field '{field}': expected {expected} bytes of data for its shape, got {len(data)}", field)
    if tensor.datatype == "BOOL":
        flags = np.frombuffer(data, np.uint8)
        if (flags > 1).any():
            row = int((flags > 1).argmax())
            raise invalid(f"field '{field}': expected a byte of 0 or 1 for a BOOL (row {row})", field, row)
        return flags.astype(np.bool_)
    return np.frombuffer(data, dtype)


def _texts(data: memoryview, count: int, field: str) -> list[Any]:
    """`count` strings of UTF-8, each after its length."""
    content = bytes(data)
    parts = []
    at = 0
    try:
        for _ in range(count):
            start = at + LENGTH_BYTES
            at = start + _unpack_length(content, at)[0]
            parts.append(content[start:at])
        row = len(parts) - 1
    except struct.error:  # within a length, or already beyond the end
        row = len(parts) - (at > len(content))
        at = len(content) + 1
    if at > len(content):
        raise invalid(f"field '{field}': its bytes end within an element (row {row})", field, row)
    if at != len(content):
        raise invalid(f"field '{field}': expected {count} elements, got bytes of more", field)
    joined = b"\0".join(parts)
    try:
        if joined.count(0) == count - 1:  # no NUL in any of them: all at once, a fifth of the time
            return joined.decode().split("\0")
        return [part.decode() for part in parts]
    except UnicodeDecodeError:
        row = next(row for row, part in enumerate(parts) if not _is_text(part))
        raise invalid(f"field '{field}': expected UTF-8 (row {row})", field, row) from None


def _is_text(part: bytes) -> bool:
    try:
        part.decode()
    except UnicodeDecodeError:
        return False
    return True


def _flat(tensor: Tensor, data: list[Any], field: str) -> list[Any]:
    """The elements of nested lists, which have to be as the shape says; or of a flat one."""
    values = data
    if len(tensor.shape) > 1 and data and type(data[0]) is list:
        if len(data) != tensor.shape[0]:
            raise invalid(f"field '{field}': expected {tensor.shape[0]} rows for its shape, got {len(data)}", field)
        for length in tensor.shape[1:]:
            if not all(type(part) is list and len(part) == length for part in values):
                raise invalid(f"field '{field}': expected data that is flat or nested as its shape", field)
            values = list(itertools.chain.from_iterable(values))
    if len(values) != tensor.size:
        raise invalid(f"field '{field}': expected {tensor.size} values for its shape, got {len(values)}", field)
    return values


def _refuse_others(allowed: frozenset[type], expected: str, values: Sequence[Any], field: str) -> None:
    if not allowed.issuperset(map(type, values)):
        row = next(row for row, value in enumerate(values) if type(value) not in allowed)
        raise Refusal(
            Code.WRONG_TYPE,
            f"field '{field}': expected {expected}, got {describe(values[row])} (row {row})",
            field=field,
            row=row,
        )


_NONE = type(None)


def _check_booleans(datatype: str, values: Sequence[Any], field: str) -> None:
    _refuse_others(frozenset((bool, _NONE)), "true or false for BOOL data", values, field)


def _check_texts(datatype: str, values: Sequence[Any], field: str) -> None:
    _refuse_others(frozenset((str, _NONE)), "a string for BYTES data", values, field)


def _check_floats(datatype: str, values: Sequence[Any], field: str) -> None:
    _refuse_others(frozenset((float, int, _NONE)), f"a number for {datatype} data", values, field)


def _check_integers(datatype: str, values: Sequence[Any], field: str) -> None:
    _refuse_others(frozenset((int, _NONE)), f"an integer for {datatype} data", values, field)
    least, greatest = _BOUNDS[datatype]
    present = [value for value in values if value is not None]
    if present and not (least <= min(present) and max(present) <= greatest):
        raise Refusal(Code.NUMBER_OUT_OF_RANGE, f"field '{field}': a number is beyond {datatype}", field=field)


_CHECKS: dict[str, Callable[[str, Sequence[Any], str], None]] = {
    "BO": _check_booleans,
    "BY": _check_texts,
    "FP": _check_floats,
    "IN": _check_integers,
    "UI": _check_integers,
}


def _rounded(datatype: str, values: Sequence[Any], field: str) -> list[Any]:
    """The numbers as the datatype holds them, widened again; NaN for null."""
    try:
        wide = np.array([np.nan if value is None else value for value in values], np.float64)
        with np.errstate(over="ignore"):
            narrow = wide.astype(DTYPES[datatype])
        is_within = bool((np.isfinite(narrow) | np.isnan(wide)).all())
    except OverflowError:  # an integer beyond a float64
        is_within = False
    if not is_within:
        raise Refusal(Code.NUMBER_OUT_OF_RANGE, f"field '{field}': a number is beyond {datatype}", field=field)
    rounded: list[Any] = narrow.tolist()
    return rounded
