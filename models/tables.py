"""From one field's values to its ids: a table a field, one class a way of encoding.

Ids are local to the field: 0 missing, 1 unknown, known values from 2. Every table answers in two ways:

    encode(value)   checks the type, then looks up: the specification, one value at a time
    fast(values)    an iterator at C speed over a list of raw JSON values, right for every value it gives an
                    id other than 1; the caller sends those that came out as 1 through `encode`, None or not
    get(value, 1)   the same for one raw value, which must be of one of `types`
    encode_checked(values)   ids of values that `check_value` has given, none of them missing: the column path

So an unknown value costs a check and a known one does not: only what `encode` accepts is ever found.
"""

from __future__ import annotations

import math
import sys
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from itertools import count, pairwise, repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.errors import VocabularyError
from models.schema import (
    CriteoX4Encoding,
    FieldSchema,
    HashEncoding,
    LogBucketEncoding,
    QuantileEncoding,
    VocabularyEncoding,
)
from models.values import LARGEST_INTEGER, SMALLEST_INTEGER, Value, canonical, check_value

MISSING = 0
UNKNOWN = 1
FIRST_VALUE = 2

CACHE_BYTES = 8 << 20
"""Memory a hashed field may take to remember values: 50,000 short strings. A hit costs a dict look-up, a miss a
sha256. Counted in bytes, so that a client cannot fill memory with long strings."""

ENTRY_BYTES = 100
"""What an entry takes beside its key: its place in the dict, and the id."""

LONGEST_CACHED = 256
"""Longer strings are hashed anew each time: a few of them would push everything else out."""

_NONE = type(None)
# True == 1 == 1.0 in a Python dict, so a value of a type that is not listed here never reaches the dict.
_TYPES: dict[str, frozenset[type]] = {
    "string": frozenset({str}),
    "integer": frozenset({int, float, _NONE}),
    "float": frozenset({int, float, _NONE}),
    "boolean": frozenset({bool, _NONE}),
}


class VocabularyTable:
    """Known values from 2 in the order given; anything else of the right type is 1."""

    def __init__(self, field: FieldSchema, values: Sequence[str]) -> None:
        """`values` are canonical and in id order; `VocabularyError` where not, or where too many."""
        encoding = field.encoding
        assert isinstance(encoding, VocabularyEncoding)
        read = _read_vocabulary(field, values, encoding.max_size)
        self.field = field
        self.size = FIRST_VALUE + len(values)
        self.types = _TYPES[field.type]
        self._ids: dict[Any, int] = dict(zip(read, count(FIRST_VALUE), strict=False))
        # None is no key of strings: CPython looks up faster in a dict of nothing but str. The caller knows a None.
        if field.type == "string":
            self._ids[""] = MISSING
        else:
            self._ids[None] = MISSING
        self.get = self._ids.get

    @property
    def values(self) -> list[str]:
        """Canonical values in id order; written anew, so that a million of them are not held twice."""
        *known, _missing = self._ids
        return list(map(canonical, known))

    def encode(self, value: object) -> int:
        """The id of a raw value; raises `WrongTypeError`."""
        checked = check_value(self.field.type, value)
        return MISSING if checked is None else self.get(checked, UNKNOWN)

    def fast(self, values: Sequence[Any]) -> Iterator[int] | None:
        """Ids of raw values, or None where one of them is of a type the dict could mistake."""
        return _fast(self, values)

    def encode_checked(self, values: Sequence[Any]) -> list[int]:
        """Ids of checked values, none of them missing."""
        return list(map(self.get, values, repeat(UNKNOWN)))


class _CachedTable(ABC):
    """A table whose ids are computed, and remembered for the values seen lately.

    Two generations: a full young one becomes the old one, and what is asked for again moves back.
    """

    def __init__(self, field: FieldSchema) -> None:
        self.field = field
        self.types = _TYPES[field.type]
        self._young: dict[Any, int] = {}
        self._young_bytes = 0
        self._old: dict[Any, int] = {}
        self.get = self._young.get

    @abstractmethod
    def compute(self, value: str | int | float | bool) -> int:
        """The id of a checked value that is not missing."""

    def encode(self, value: object) -> int:
        """The id of a raw value; raises `WrongTypeError`."""
        checked = check_value(self.field.type, value)
        if checked is None:
            return MISSING
        found = self._young.get(checked)
        if found is not None:
            return found
        found = self._old.get(checked)
        if found is None:
            found = self.compute(checked)
        if type(checked) is str and len(checked) > LONGEST_CACHED:
            return found
        size = sys.getsizeof(checked) + ENTRY_BYTES
        if self._young_bytes + size > CACHE_BYTES // 2:
            self._old = self._young
            self._young = {}
            self._young_bytes = 0
            self.get = self._young.get
        self._young[checked] = found
        self._young_bytes += size
        return found

    def fast(self, values: Sequence[Any]) -> Iterator[int] | None:
        """Ids of raw values, 1 for those not remembered; None where a type could be mistaken."""
        return _fast(self, values)

    def encode_checked(self, values: Sequence[Any]) -> list[int]:
        """Ids of checked values, none of them missing."""
        found = list(map(self.get, values, repeat(MISSING)))
        if MISSING in found:
            return [id_ or self.encode(value) for id_, value in zip(found, values, strict=True)]
        return found


class HashTable(_CachedTable):
    """2 + int(sha256("seed:field:value")[:8], big endian) % buckets. Never answers 1."""

    values: None = None

    def __init__(self, field: FieldSchema) -> None:
        super().__init__(field)
        assert isinstance(field.encoding, HashEncoding)
        self._buckets = field.encoding.buckets
        self._prefix = f"{field.encoding.seed}:{field.name}:"
        self.size = FIRST_VALUE + self._buckets

    def compute(self, value: str | int | float | bool) -> int:
        """The id of a checked value that is not missing."""
        digest = sha256((self._prefix + canonical(value)).encode()).digest()
        return FIRST_VALUE + int.from_bytes(digest[:8], "big") % self._buckets


class CriteoX4Table(_CachedTable):
    """The public Criteo_x4 rule: floor(ln(x)^2) for x > 2, else x; then a vocabulary."""

    def __init__(self, field: FieldSchema, values: Sequence[str]) -> None:
        """`values` are canonical and in id order; `VocabularyError` where not, or where too many."""
        super().__init__(field)
        assert isinstance(field.encoding, CriteoX4Encoding)
        _read_vocabulary(field, values, field.encoding.max_size)
        self.values = list(values)
        self.size = FIRST_VALUE + len(self.values)
        self._ids = {value: id_ for id_, value in enumerate(self.values, FIRST_VALUE)}

    def compute(self, value: str | int | float | bool) -> int:
        """The id of a checked value that is not missing."""
        return self._ids.get(canonical(criteo_x4(value)), UNKNOWN)


class EdgesTable:
    """2 + bisect_right(edges, x): range i holds edges[i-1] <= x < edges[i]. Never answers 1."""

    types: frozenset[type] = frozenset()
    get: Callable[[Any, int], int] = {}.get  # it finds nothing by look-up

    def __init__(self, field: FieldSchema, edges: Sequence[float]) -> None:
        """`edges` are finite and grow strictly. Raises `VocabularyError` where not, or too many."""
        assert isinstance(field.encoding, QuantileEncoding | LogBucketEncoding)
        if not set(map(type, edges)) <= {int, float}:
            raise VocabularyError(field.name, "expected edges that are numbers")
        numbers = [float(edge) for edge in edges]
        if not all(map(math.isfinite, numbers)) or any(b <= a for a, b in pairwise(numbers)):
            raise VocabularyError(field.name, "expected finite edges that grow strictly")
        if len(numbers) >= field.encoding.buckets:
            raise VocabularyError(
                field.name, f"expected at most {field.encoding.buckets - 1} edges, got {len(numbers)}"
            )
        self.field = field
        self.values = numbers
        self.size = FIRST_VALUE + len(numbers) + 1
        self._array = np.array(numbers, dtype=np.float64)
        # Two edges below everything make bisect_right give ids that start at 2.
        self._shifted = [-math.inf, -math.inf, *numbers]

    def encode(self, value: object) -> int:
        """The id of a raw value; raises `WrongTypeError`. An integer is compared as the nearest float64."""
        checked = check_value(self.field.type, value)
        return MISSING if checked is None else bisect_right(self._shifted, float(checked))

    def fast(self, values: Sequence[Any]) -> Iterator[int] | None:
        """Ids of raw values; None where one is not finite, an integer beyond 2^53 or no number."""
        types = set(map(type, values))
        present = values
        if _NONE in types:
            types.remove(_NONE)
            present = [value for value in values if value is not None]
        if not types <= {int, float} or (float in types and self.field.type == "integer"):
            return None
        if int in types and not (min(present) >= -(2**53) and max(present) <= 2**53):
            return None
        # One NaN or infinity makes the sum one; a sum that overflows by itself only costs the slow way.
        if float in types and not math.isfinite(sum(present)):
            return None
        if present is values:
            return map(bisect_right, repeat(self._shifted), values)
        return (MISSING if value is None else bisect_right(self._shifted, value) for value in values)

    def encode_numbers(self, numbers: NDArray[np.float64]) -> NDArray[np.int32]:
        """Ids of float64 numbers [n], NaN being missing."""
        ids = np.searchsorted(self._array, numbers, side="right").astype(np.int32) + np.int32(FIRST_VALUE)
        ids[np.isnan(numbers)] = MISSING
        return ids


def _fast(table: VocabularyTable | _CachedTable, values: Sequence[Any]) -> Iterator[int] | None:
    # Strings equal nothing but strings: their dict refuses other types by itself.
    if table.field.type != "string" and not table.types.issuperset(map(type, values)):
        return None
    return map(table.get, values, repeat(UNKNOWN))


Table = VocabularyTable | HashTable | CriteoX4Table | EdgesTable


def make_table(field: FieldSchema, values: Sequence[Any] | None) -> Table:
    """The table of a field: from its values in id order, from its edges, or (hash) from nothing."""
    if isinstance(field.encoding, HashEncoding):
        if values is not None:
            raise VocabularyError(field.name, "a hashed field has no vocabulary")
        return HashTable(field)
    if values is None:
        raise VocabularyError(field.name, f"no {'edges' if field.kind == 'numeric' else 'vocabulary'} given")
    if isinstance(field.encoding, VocabularyEncoding):
        return VocabularyTable(field, values)
    if isinstance(field.encoding, CriteoX4Encoding):
        return CriteoX4Table(field, values)
    return EdgesTable(field, values)


def criteo_x4(value: Value) -> int | float:
    """floor(ln(x)^2) for x > 2, else x, as the public benchmark's preprocessing has it."""
    assert isinstance(value, int | float)
    return math.floor(math.log(value) ** 2) if value > 2 else value


def _read_vocabulary(
    field: FieldSchema, values: Sequence[str], max_size: int | None
) -> Sequence[str | int | float | bool]:
    """Canonical strings as the Python values a request brings.

    Refuses values that are not canonical for the field, stand twice or are too many. There may be millions
    (docs/benchmarks.md), so no Python function here is called once a value.
    """
    if max_size is not None and len(values) > max_size:
        raise VocabularyError(field.name, f"expected at most {max_size} values, got {len(values)}")
    if not set(map(type, values)) <= {str}:
        raise VocabularyError(field.name, "expected values that are strings, in canonical form")
    distinct = set(values)
    if len(distinct) != len(values):
        raise VocabularyError(field.name, "a value stands twice")
    if "" in distinct:
        raise VocabularyError(field.name, 'a value is "", which is missing and has no id of its own')
    try:
        if field.type == "string":
            "".join(values).encode()  # refuses a lone surrogate
            return values
        if field.type == "boolean":
            return [{"1": True, "0": False}[value] for value in values]
        if field.type == "integer":
            integers = list(map(int, values))
            if integers and not (min(integers) >= SMALLEST_INTEGER and max(integers) <= LARGEST_INTEGER):
                raise ValueError
            if list(map(str, integers)) != list(values):
                raise ValueError
            return integers
        floats = list(map(float, values))
        if not all(map(math.isfinite, floats)):
            raise ValueError
        if [str(int(x)) if x.is_integer() else repr(x) for x in floats] != list(values):
            raise ValueError
        return floats
    except (ValueError, KeyError):
        raise VocabularyError(field.name, f"a value is not the canonical form of {field.type}") from None
