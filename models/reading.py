"""From a log's column to checked values: text cells parsed, typed ones checked, distinct ones listed once.

What the column path does before any table is asked. The fitter counts what comes out, the encoder looks it
up; so they cannot disagree on what a cell says. Python works once a distinct value, numpy does the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.columns import Column
from models.errors import EncodeError
from models.schema import FieldSchema
from models.values import (
    EXPECTED,
    LARGEST_INTEGER,
    SMALLEST_INTEGER,
    Value,
    WrongTypeError,
    check_value,
    read_text,
)

BAD = -1
"""The code of a cell that does not read as its field's type."""


@dataclass(frozen=True, eq=False)
class BadCell:
    """The first cell of a column that did not read: its row in the chunk, its text and what is wrong."""

    row: int
    text: str
    got: str


@dataclass(frozen=True, eq=False)
class Cells:
    """n cells as codes: 0 missing, -1 bad, k the checked value values[k - 1]. Values may repeat."""

    codes: NDArray[np.int64]
    values: list[str | int | float | bool]

    def spread(self, of_values: Sequence[Any], missing: Any, dtype: Any) -> NDArray[Any]:
        """`of_values` [len(values)], one a cell [n]; missing and bad cells get `missing`."""
        # Code -1, bad, is the last entry of the table, as numpy counts.
        return np.array([missing, *of_values, missing], dtype=dtype)[self.codes]


@dataclass(frozen=True, eq=False)
class Segments:
    """Lists laid end to end: row i holds items[offsets[i]:offsets[i + 1]]."""

    items: NDArray[Any]
    offsets: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Lists:
    """A sequence column: its elements, where each list starts in them, and which list each row has.

    `rows` [n] is None where row i simply has list i; a row of list -1 is missing.
    """

    column: Column
    cells: Cells
    offsets: NDArray[np.int64]
    rows: NDArray[np.int64] | None


def read_cells(field: FieldSchema, column: Column) -> Cells:
    """The cells of a column without lists; raises `EncodeError` where the column's type never fits."""
    cells = _read_text(field, column) if column.form == "text" else _read_typed(field, column)
    if column.missing is not None:
        cells.codes[column.missing] = 0
    if column.codes is None:
        return cells
    return Cells(np.append(cells.codes, 0)[column.codes], cells.values)


def read_numbers(field: FieldSchema, column: Column) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """A numeric column as float64 [n], NaN where missing or bad, and which are bad [n].

    Integers become the nearest float64, as in the row path. Raises `EncodeError` as `read_cells` does.
    """
    if column.form == "text" or column.values.dtype == object:
        cells = read_cells(field, column)
        return cells.spread(cells.values, np.nan, np.float64), cells.codes == BAD
    numbers, bad = _checked_numbers(field, column.values)
    numbers = numbers.astype(np.float64)  # a copy, so that what the reader holds stays as it is
    numbers[bad] = np.nan
    if column.missing is not None:
        numbers[column.missing] = np.nan
        bad &= ~column.missing
    if column.codes is None:
        return numbers, bad
    return np.append(numbers, np.nan)[column.codes], np.append(bad, False)[column.codes]


def read_lists(field: FieldSchema, column: Column) -> Lists:
    """A sequence column taken apart. Text cells are split by the field's separator, distinct ones once.

    Raises `EncodeError` for a column that holds no lists and cannot be split, or whose elements never fit.
    """
    if column.offsets is not None:
        elements = column.elements
        return Lists(elements, read_cells(field, elements), column.offsets.astype(np.int64), None)
    if column.form == "typed":
        raise EncodeError(field.name, "a column of lists, or of text", f"a column of {column.values.dtype}")
    if field.separator is None:
        raise EncodeError(field.name, "a column of lists, or a separator in the schema", "a column of text")
    texts = column.values.tolist()
    rows: NDArray[np.int64]
    if column.codes is None:
        numbered = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        rows = np.fromiter(map(numbered.__getitem__, texts), np.int64, len(texts))
        texts = list(numbered)
    else:
        rows = column.codes.astype(np.int64)
    parts: list[str] = []
    offsets = [0]
    for text in texts:
        if text:
            parts += text.split(field.separator)
        offsets.append(len(parts))
    elements = Column.text(_objects(parts))
    return Lists(elements, read_cells(field, elements), np.array(offsets, dtype=np.int64), rows)


def shorten(field: FieldSchema, segments: Segments) -> Segments:
    """Of each row the items above 0 (neither missing nor bad), at most `max_length`; a row may be empty."""
    starts, ends = segments.offsets[:-1], segments.offsets[1:]
    items = segments.items[segments.offsets[0] : segments.offsets[-1]]
    rows = np.repeat(np.arange(len(starts)), ends - starts)
    present = items > 0
    items, rows = items[present], rows[present]
    counts = np.bincount(rows, minlength=len(starts))
    offsets = _offsets(counts)
    if field.max_length is None or not len(items) or counts.max() <= field.max_length:
        return Segments(items, offsets)
    places = np.arange(len(items)) - offsets[rows]
    if field.keep == "last":
        kept = places >= counts[rows] - field.max_length
    else:
        kept = places < field.max_length
    return Segments(items[kept], _offsets(np.minimum(counts, field.max_length)))


def gather(segments: Segments, rows: NDArray[np.int64] | None) -> Segments:
    """Row i becomes row rows[i] of `segments`, or empty where that is -1; None leaves all as it is."""
    if rows is None:
        return segments
    starts = np.append(segments.offsets[:-1], 0)[rows]
    counts = np.append(np.diff(segments.offsets), 0)[rows]
    offsets = _offsets(counts)
    return Segments(segments.items[np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], counts)], offsets)


def fill_empty(segments: Segments) -> Segments:
    """The same with a single 0 in each empty row: what the graph is given for an empty sequence."""
    counts = np.diff(segments.offsets)
    if counts.all():
        return segments
    offsets = _offsets(np.maximum(counts, 1))
    items = np.zeros(offsets[-1], dtype=segments.items.dtype)
    items[np.arange(len(segments.items)) + np.repeat(offsets[:-1] - segments.offsets[:-1], counts)] = segments.items
    return Segments(items, offsets)


def bad_cell(field: FieldSchema, column: Column, cell: int, row: int) -> BadCell:
    """What to report about the bad cell at index `cell` of a column without lists, found in `row`."""
    value = column.values[cell if column.codes is None else column.codes[cell]]
    check: Callable[..., Value] = read_text if column.form == "text" else check_value
    try:
        check(field.type, value.item() if isinstance(value, np.generic) else value)
    except WrongTypeError as error:
        return BadCell(row, str(value), error.got)
    raise AssertionError("a cell that reads was reported as bad")


def _read_text(field: FieldSchema, column: Column) -> Cells:
    texts = column.values.tolist()
    if column.codes is not None:  # distinct values: many at once, where they are what a well-kept log holds
        found = _read_distinct(field, texts)
        if found is not None:
            return found
    codes: dict[str | None, int] = {}
    values: list[str | int | float | bool] = []
    for text in dict.fromkeys(texts):
        try:
            value = read_text(field.type, text)
        except WrongTypeError:
            codes[text] = BAD
            continue
        if value is None:
            codes[text] = 0
        else:
            values.append(value)
            codes[text] = len(values)
    return Cells(np.fromiter(map(codes.__getitem__, texts), np.int64, len(texts)), values)


def _read_distinct(field: FieldSchema, texts: list[str | None]) -> Cells | None:
    """The same as `_read_text` gives of strings, and of integers in canonical form, without a Python call for each.

    None where that is not what they all are.
    """
    present: list[Any] = list(filter(None, texts))
    values = present
    try:
        if field.type == "string":
            "".join(present).encode()  # refuses a lone surrogate
        elif field.type == "integer":
            values = list(map(int, present))
            if list(map(str, values)) != present or (
                values and (min(values) < SMALLEST_INTEGER or max(values) > LARGEST_INTEGER)
            ):
                return None
        else:
            return None
    except ValueError:
        return None
    if len(present) == len(texts):
        return Cells(np.arange(1, len(texts) + 1), values)
    is_there = np.fromiter(map(bool, texts), np.int64, len(texts))
    return Cells(np.cumsum(is_there) * is_there, values)


def _read_typed(field: FieldSchema, column: Column) -> Cells:
    if column.values.dtype == object:
        return _read_objects(field, column)
    if field.type == "boolean" and column.values.dtype == bool:
        return Cells(column.values.astype(np.int64) + 1, [False, True])
    numbers, bad = _checked_numbers(field, column.values)
    if field.type == "float":
        numbers = numbers.astype(np.float64)
    missing = np.isnan(numbers)
    distinct, codes = np.unique(numbers, return_inverse=True)
    values = [_fitting(field, value) for value in distinct.tolist()]
    codes = codes.astype(np.int64) + 1
    codes[bad] = BAD
    codes[missing] = 0
    return Cells(codes, values)


def _fitting(field: FieldSchema, value: object) -> str | int | float | bool:
    """The checked value, or 0 for a bad one or NaN, which no code refers to."""
    try:
        return check_value(field.type, value) or 0
    except WrongTypeError:
        return 0


def _checked_numbers(field: FieldSchema, values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Numbers as wide as they need to be, and which are bad; raises where the dtype never fits the field."""
    if values.dtype == bool or field.type not in ("integer", "float"):
        raise EncodeError(field.name, f"a column for {EXPECTED[field.type]}", f"a column of {values.dtype}")
    if values.dtype.kind in "iu":
        return values, np.zeros(len(values), dtype=bool)
    numbers = values.astype(np.float64)
    bad = np.isinf(numbers)
    if field.type == "integer":
        # 2^64 is the first float64 beyond 64 bits; 2^64 - 1 itself is no float64.
        fits = (numbers >= float(SMALLEST_INTEGER)) & (numbers < float(LARGEST_INTEGER + 1))
        with np.errstate(invalid="ignore"):
            bad |= ~np.isnan(numbers) & (~fits | (np.floor(numbers) != numbers))
    return numbers, bad


def _read_objects(field: FieldSchema, column: Column) -> Cells:
    """An object array: strings in nearly every case, so these are made distinct; other values one by one."""
    cells = column.values.tolist()
    if set(map(type, cells)) <= {str, type(None)}:
        if field.type == "string":
            return _read_text(field, column)
        if any(cells):
            raise EncodeError(field.name, f"a column for {EXPECTED[field.type]}", "a column of strings")
    codes: list[int] = []
    values: list[str | int | float | bool] = []
    for cell in cells:
        if isinstance(cell, float) and cell != cell:
            codes.append(0)
            continue
        try:
            value = check_value(field.type, cell)
        except WrongTypeError:
            codes.append(BAD)
            continue
        if value is None:
            codes.append(0)
        else:
            values.append(value)
            codes.append(len(values))
    return Cells(np.array(codes, dtype=np.int64), values)


def _offsets(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))


def _objects(values: list[str]) -> NDArray[np.object_]:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array
