"""Encoder: raw values to ids. One specification, a row path for requests and a column path for logs.

    row path      JSON values, strict: a value of a wrong type raises `EncodeError` with field and row
    column path   a chunk of a log, tolerant: a cell that does not read is missing, and counted

Both give the same id to the same value, whatever brought it (`values.py` says what the same is; property
tests feed both). Ids are local to a field: 0 missing, 1 unknown, values from 2 (`tables.py`); the graph adds
each field's offset in its embedding table. What is fitted, and from which rows, is `fitting.py`'s.

The row path is the service's hot path. A field costs one pass of a C-level iterator over its values, all
fields together one numpy array; only unknown values and odd types cost a Python call each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.columns import Column
from models.errors import EncodeError, VocabularyError
from models.reading import (
    BAD,
    BadCell,
    Segments,
    bad_cell,
    fill_empty,
    gather,
    read_cells,
    read_lists,
    read_numbers,
    shorten,
)
from models.schema import FeatureSchema, FieldSchema
from models.tables import MISSING, UNKNOWN, EdgesTable, HashTable, Table, make_table
from models.values import EXPECTED, WrongTypeError, check_values, describe

LONG_LIST = 64
"""A list with so many elements more than its field keeps is cut before it is encoded."""

MANY_ELEMENTS = 1000
"""So many elements are all checked before the first of them is hashed."""

Ragged = tuple[NDArray[np.int32], NDArray[np.int32]]
"""A sequence field of n rows: ids [K] and offsets [n + 1]; an empty sequence is the single id 0."""


@dataclass(slots=True, eq=False)
class EncodedRows:
    """n encoded rows of a request: its context (n = 1) or its candidates.

    Counts hold only fields where something was counted. A sequence is missing where nothing is left of it,
    and unknown once for each unknown element kept.
    """

    ids: NDArray[np.int32]
    """[n, F], C-contiguous: fields that are no sequence, in schema order."""
    sequences: dict[str, Ragged]
    missing: dict[str, int]
    unknown: dict[str, int]
    ignored: int
    """Values given under names that are no field of this side."""


@dataclass(frozen=True, slots=True, eq=False)
class EncodedColumns:
    """n encoded rows of a log, every field of the schema. Counts hold every field, zeros included."""

    ids: dict[str, NDArray[np.int32]]
    """By field that is no sequence: [n]."""
    sequences: dict[str, tuple[NDArray[np.int32], NDArray[np.int64]]]
    """By sequence field: ids [K] and offsets [n + 1]; an empty sequence is the single id 0."""
    missing: dict[str, int]
    """Rows with id 0; those with a bad cell are among them."""
    unknown: dict[str, int]
    bad: dict[str, int]
    """Cells that did not read as their field's type; elements, in a sequence, which are dropped."""
    first_bad: dict[str, BadCell]


class Encoder:
    """A schema with what was fitted for it. Stateless but for bounded caches; not shared between threads."""

    def __init__(self, schema: FeatureSchema, vocabularies: Mapping[str, Sequence[Any]]) -> None:
        """`vocabularies`: by field its canonical values or its edges, in id order; hashed fields have none.

        Raises `VocabularyError` naming the field where these do not fit the schema.
        """
        for name in vocabularies:
            if name not in schema.by_name:
                raise VocabularyError(name, "a vocabulary of a field that the schema does not have")
        self.schema = schema
        self._tables: dict[str, Table] = {
            field.name: make_table(field, vocabularies.get(field.name)) for field in schema.fields
        }
        self._context = _Side(schema.context_fields, self._tables)
        self._candidates = _Side(schema.candidate_fields, self._tables)

    @property
    def sizes(self) -> dict[str, int]:
        """Rows each field's embedding table needs: its ids are 0 to size - 1. In schema order."""
        return {name: table.size for name, table in self._tables.items()}

    @property
    def candidate_names(self) -> frozenset[str]:
        """The fields that a candidate's object may have."""
        return self._candidates.name_set

    def to_vocabularies(self) -> dict[str, list[str] | list[float]]:
        """What `Encoder(schema, ...)` takes to be this encoder again."""
        return {name: table.values for name, table in self._tables.items() if not isinstance(table, HashTable)}

    def serving_ids(self) -> NDArray[np.int32]:
        """The constants [Ft] that stand in for the training_only fields when serving, in schema order."""
        fields = self.schema.training_only_fields
        return np.array([self._tables[f.name].encode(f.serving_value) for f in fields], dtype=np.int32)

    def encode_context(self, values: Mapping[str, object]) -> EncodedRows:
        """One request's context, ids [1, Fc]. Raises `EncodeError` with the field."""
        side = self._context
        given = list(map(values.get, side.names))
        ignored = len(values) - len(side.name_set & values.keys())
        return side.encode_row(given, ignored, None)

    def encode_candidates(self, rows: Sequence[Mapping[str, object]]) -> EncodedRows:
        """N candidates, an object each, ids [N, Fa]. Raises `EncodeError` with field and row."""
        side = self._candidates
        for row, values in enumerate(rows) if not {dict}.issuperset(map(type, rows)) else ():
            if not isinstance(values, Mapping):
                raise EncodeError(None, "an object", describe(values), row)
        given: list[Sequence[object]]
        try:
            given = list(zip(*map(side.pick, rows), strict=True)) if rows else [()] * len(side.names)
            ignored = sum(map(len, rows)) - len(rows) * len(side.names)
        except KeyError:  # a row lacks a field, which is missing there
            given = [[values.get(name) for values in rows] for name in side.names]
            ignored = sum(len(values) - len(side.name_set & values.keys()) for values in rows)
        return side.encode(given, len(rows), ignored)

    def encode_candidate_columns(self, columns: Mapping[str, Sequence[object]], n: int) -> EncodedRows:
        """N candidates, a list of n values a field, ids [N, Fa]. Raises `EncodeError` with field and row.

        A column of another length is refused, also where its name is no field.
        """
        return _encode_columns_of(self._candidates, columns, n)

    def encode_context_columns(self, columns: Mapping[str, Sequence[object]], n: int) -> EncodedRows:
        """N contexts that differ, a list of n values a field, ids [N, Fc]; as `encode_candidate_columns`."""
        return _encode_columns_of(self._context, columns, n)

    def encode_columns(self, columns: Mapping[str, Column]) -> EncodedColumns:
        """A chunk of a log, by field name; every field of the schema, all of one length.

        A cell that does not read is missing and counted. Raises `EncodeError` for a field without a column,
        for columns of unequal length and for a column whose type never fits its field.
        """
        encoded = EncodedColumns({}, {}, {}, {}, {}, {})
        rows_of(self.schema, columns)
        for field in self.schema.fields:
            column, table = columns[field.name], self._tables[field.name]
            if field.is_sequence:
                _encode_lists(field, column, table, encoded)
            else:
                _encode_cells(field, column, table, encoded)
        return encoded


class _Side:
    """The fields of one side of a request, ready to encode: context or candidates."""

    def __init__(self, fields: tuple[FieldSchema, ...], tables: Mapping[str, Table]) -> None:
        flat = [field for field in fields if not field.is_sequence]
        lists = [field for field in fields if field.is_sequence]
        # Ids first, then sequences: the order in which `encode` takes columns.
        self.names = [field.name for field in (*flat, *lists)]
        self.name_set = frozenset(self.names)
        self._flat = [(field.name, tables[field.name]) for field in flat]
        self._lists = [(field, tables[field.name]) for field in lists]
        self.pick = _picker(self.names)

    def encode_row(self, given: Sequence[Any], ignored: int, row: int | None) -> EncodedRows:
        """One row from one raw value a field, in the order of `names`. `row` is for errors."""
        ids = []
        missing: dict[str, int] = {}
        unknown: dict[str, int] = {}
        for (name, table), value in zip(self._flat, given, strict=False):
            id_ = table.get(value, UNKNOWN) if type(value) in table.types else UNKNOWN
            if id_ <= UNKNOWN:
                if id_ == UNKNOWN:
                    id_ = MISSING if value is None else _encode_one(name, table, value, row)
                if id_ == MISSING:
                    missing[name] = 1
                elif id_ == UNKNOWN:
                    unknown[name] = 1
            ids.append(id_)
        sequences = {}
        for (field, table), value in zip(self._lists, given[len(ids) :], strict=True):
            ragged = _encode_sequence(field, table, (value,), row is None)
            sequences[field.name] = ragged
            _count(field.name, ragged[0], missing, unknown)
        return EncodedRows(np.array([ids], dtype=np.int32), sequences, missing, unknown, ignored)

    def encode(self, given: Sequence[Sequence[object]], n: int, ignored: int) -> EncodedRows:
        """n rows from one column of raw values a field, in the order of `names`."""
        if n == 1:
            return self.encode_row([values[0] for values in given], ignored, 0)
        F = len(self._flat)
        flat = list(zip(self._flat, given, strict=False))
        found: list[int] = []
        try:
            for (name, table), values in flat:
                fast = table.fast(values)
                found += _encode_each(name, table, values) if fast is None else fast
        except TypeError:  # an unhashable value: a list or an object where a plain value belongs
            found = [id_ for (name, table), values in flat for id_ in _encode_each(name, table, values)]
        # From a list, not straight from the iterators: numpy reading each int as it is looked up waits for
        # memory a third longer.
        ids = np.fromiter(found, np.int32, F * n).reshape(F, n)

        missing: dict[str, int] = {}
        unknown: dict[str, int] = {}
        low = (ids <= UNKNOWN).any(axis=1)
        if low.any():
            for j in np.flatnonzero(low).tolist():
                (name, table), values = flat[j]
                for i in np.flatnonzero(ids[j] == UNKNOWN).tolist():
                    ids[j, i] = MISSING if values[i] is None else _encode_one(name, table, values[i], i)
                _count(name, ids[j], missing, unknown)

        sequences: dict[str, Ragged] = {}
        for (field, table), column in zip(self._lists, given[F:], strict=True):
            ragged = _encode_sequence(field, table, column, is_context=False)
            sequences[field.name] = ragged
            _count(field.name, ragged[0], missing, unknown)
        return EncodedRows(np.ascontiguousarray(ids.T), sequences, missing, unknown, ignored)


def _encode_columns_of(side: _Side, columns: Mapping[str, Sequence[object]], n: int) -> EncodedRows:
    """n rows of one side of a request, a list a field."""
    for name, column in columns.items():
        known = name if name in side.name_set else None
        if not isinstance(column, list | tuple):
            raise EncodeError(known, f"a list of {n} values", describe(column))
        if len(column) != n:
            raise EncodeError(known, f"a list of {n} values", f"a list of {len(column)}")
    absent = (None,) * n
    given = [columns.get(name, absent) for name in side.names]
    ignored = n * (len(columns) - len(side.name_set & columns.keys()))
    return side.encode(given, n, ignored)


def rows_of(schema: FeatureSchema, columns: Mapping[str, Column]) -> int:
    """The length all columns share; raises `EncodeError` where a field has none or another length."""
    n = None
    for field in schema.fields:
        column = columns.get(field.name)
        if column is None:
            raise EncodeError(field.name, "a column", "none")
        if n is not None and len(column) != n:
            raise EncodeError(field.name, f"a column of {n} rows", f"one of {len(column)}")
        n = len(column)
    return n or 0


def _picker(names: Sequence[str]) -> Any:
    """A row -> the tuple of its values under `names`; KeyError where one is absent."""
    if len(names) > 1:
        return itemgetter(*names)
    return lambda row: tuple(row[name] for name in names)


def _encode_one(name: str, table: Table, value: object, row: int | None) -> int:
    try:
        return table.encode(value)
    except WrongTypeError as error:
        raise EncodeError(name, EXPECTED[table.field.type], error.got, row) from None


def _encode_each(name: str, table: Table, values: Sequence[object]) -> list[int]:
    """Ids one by one: the specification itself, for what the fast way leaves."""
    return [_encode_one(name, table, value, row) for row, value in enumerate(values)]


def _count(name: str, ids: NDArray[np.int32], missing: dict[str, int], unknown: dict[str, int]) -> None:
    if count := int(np.count_nonzero(ids == MISSING)):
        missing[name] = count
    if count := int(np.count_nonzero(ids == UNKNOWN)):
        unknown[name] = count


def _encode_sequence(field: FieldSchema, table: Table, values: Sequence[object], is_context: bool) -> Ragged:
    """A sequence field's lists, null and "" being empty ones."""
    rows: list[Sequence[object]] = []
    for row, value in enumerate(values):
        if isinstance(value, list | tuple):
            is_long = len(value) > (field.max_length or 0) + LONG_LIST
            rows.append(_window(field, value, None if is_context else row) if is_long else value)
        elif value is None or value == "":
            rows.append(())
        else:
            raise EncodeError(field.name, "a list", describe(value), None if is_context else row)
    elements = list(chain.from_iterable(rows))
    try:
        fast = table.fast(elements)
        ids = [UNKNOWN] * len(elements) if fast is None else list(fast)
    except TypeError:  # an unhashable element: a list in a list
        ids = [UNKNOWN] * len(elements)
    if UNKNOWN in ids:
        if len(elements) > MANY_ELEMENTS:  # before each is hashed: is one there that makes it all vain?
            for row, given in enumerate(rows):
                _check_elements(field, given, None if is_context else row)
        lengths = [len(row) for row in rows]
        for i, id_ in enumerate(ids):
            if id_ == UNKNOWN:
                ids[i] = _encode_element(field, table, elements[i], i, lengths, is_context)

    kept: list[int] = []
    offsets = [0]
    start = 0
    for length in map(len, rows):
        part = ids[start : start + length]
        start += length
        if MISSING in part:
            part = [id_ for id_ in part if id_ != MISSING]
        if field.max_length is not None and len(part) > field.max_length:
            part = part[-field.max_length :] if field.keep == "last" else part[: field.max_length]
        kept += part or (MISSING,)
        offsets.append(len(kept))
    return np.array(kept, dtype=np.int32), np.array(offsets, dtype=np.int32)


def _window(field: FieldSchema, elements: Sequence[object], row: int | None) -> Sequence[object]:
    """What is kept of a list far longer than `max_length`, found without looking up or hashing the rest.

    The rest is checked all the same: whether a list is accepted does not depend on what is kept of it.
    """
    present = _check_elements(field, elements, row)
    assert field.max_length is not None
    return present[-field.max_length :] if field.keep == "last" else present[: field.max_length]


def _check_elements(field: FieldSchema, elements: Sequence[object], row: int | None) -> list[object]:
    """The elements that are not missing; raises `EncodeError` where one is of a wrong type."""
    try:
        return check_values(field.type, elements)
    except WrongTypeError as error:
        raise _wrong_element(field, error, row) from None


def _wrong_element(field: FieldSchema, error: WrongTypeError, row: int | None) -> EncodeError:
    expected = f"a list whose elements are each {EXPECTED[field.type]}"
    return EncodeError(field.name, expected, f"{error.got} in it", row)


def _encode_element(
    field: FieldSchema, table: Table, value: object, index: int, lengths: list[int], is_context: bool
) -> int:
    try:
        return table.encode(value)
    except WrongTypeError as error:
        row = int(np.searchsorted(np.cumsum(lengths), index, side="right"))
        raise _wrong_element(field, error, None if is_context else row) from None


def _encode_cells(field: FieldSchema, column: Column, table: Table, encoded: EncodedColumns) -> None:
    if isinstance(table, EdgesTable):
        numbers, bad = read_numbers(field, column)
        ids = table.encode_numbers(numbers)
    else:
        cells = read_cells(field, column)
        ids = cells.spread(table.encode_checked(cells.values), MISSING, np.int32)
        bad = cells.codes == BAD
    encoded.ids[field.name] = ids
    encoded.missing[field.name] = int(np.count_nonzero(ids == MISSING))
    encoded.unknown[field.name] = int(np.count_nonzero(ids == UNKNOWN))
    encoded.bad[field.name] = int(np.count_nonzero(bad))
    if encoded.bad[field.name]:
        first = int(bad.argmax())
        encoded.first_bad[field.name] = bad_cell(field, column, first, first)


def _encode_lists(field: FieldSchema, column: Column, table: Table, encoded: EncodedColumns) -> None:
    lists = read_lists(field, column)
    offsets, rows = lists.offsets, lists.rows
    assert not isinstance(table, EdgesTable)  # which is for numeric fields
    ids = lists.cells.spread(table.encode_checked(lists.cells.values), MISSING, np.int32)
    kept = gather(shorten(field, Segments(ids, offsets)), rows)
    filled = fill_empty(kept)
    encoded.sequences[field.name] = (filled.items, filled.offsets)
    encoded.missing[field.name] = int(np.count_nonzero(np.diff(kept.offsets) == 0))
    encoded.unknown[field.name] = int(np.count_nonzero(kept.items == UNKNOWN))

    bad = lists.cells.codes == BAD
    bad_before = np.concatenate(([0], np.cumsum(bad)))[offsets]
    bad_in_row = np.append(np.diff(bad_before), 0)[slice(-1) if rows is None else rows]
    encoded.bad[field.name] = int(bad_in_row.sum())
    if encoded.bad[field.name]:
        row = int((bad_in_row > 0).argmax())
        first = int(bad_before[row if rows is None else rows[row]])
        encoded.first_bad[field.name] = bad_cell(field, lists.column, int(bad.nonzero()[0][first]), row)
