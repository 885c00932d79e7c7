"""EncoderFitter: vocabularies and edges from training rows, a chunk at a time.

    vocabulary   values by descending count, then code point; `min_count` inclusive, `max_size` after it
    quantile     edges of about equally full ranges, exact up to 2^20 values, then from a sample of that many
    log_bucket   edges exp(sqrt(k)), as far as training values reach
    criteo_x4    a vocabulary of the transformed values
    hash         nothing to fit

With an earlier encoder nothing of its own changes: values keep their ids and new ones come behind them, in the same
order among themselves, as far as `max_size` leaves room; edges stay as they are.

Only training rows may come here: an encoder that has seen the test rows flatters them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.columns import Column
from models.counting import Counts
from models.encoder import Encoder, rows_of
from models.errors import SchemaError
from models.reading import Segments, gather, read_cells, read_lists, read_numbers, shorten
from models.schema import (
    CriteoX4Encoding,
    FeatureSchema,
    FieldSchema,
    HashEncoding,
    QuantileEncoding,
    VocabularyEncoding,
)
from models.tables import criteo_x4
from models.values import canonical

SAMPLE_SIZE = 1 << 20
"""Values a quantile field keeps: 8 MiB. Up to as many, its edges are exact."""

MOST_VALUES = 8_000_000
"""Distinct values of all vocabularies that are counted in memory, about 1.6 GB; beyond, they go to disk."""


class EncoderFitter:
    """Sees every training row once and makes the encoder.

    Memory: 8 MiB a quantile field, and the vocabularies' distinct values; with `scratch`, a folder for files that are
    of no use afterwards, at most `MOST_VALUES` of them beside those that are kept, however long the log.
    """

    def __init__(self, schema: FeatureSchema, *, scratch: Path | None = None, earlier: Encoder | None = None) -> None:
        """`earlier` is the encoder that this one is to extend; `SchemaError` where its schema means something else."""
        self._schema = schema
        self._scratch = scratch
        known: Mapping[str, Sequence[Any]] = {}
        if earlier is not None:
            _refuse_other_fields(schema, earlier.schema)
            known = earlier.to_vocabularies()
        self._fits = {field.name: _fit_of(field, known.get(field.name)) for field in schema.fields}

    def update(self, columns: Mapping[str, Column]) -> None:
        """A chunk of training rows, by field name. Bad cells are passed over; `encode_columns` counts them.

        Raises `EncodeError` for a field without a column, for columns of unequal length and for a column
        whose type never fits its field.
        """
        rows_of(self._schema, columns)
        for field in self._schema.fields:
            self._fits[field.name].update(field, columns[field.name])
        if self._scratch is not None:
            self._put_aside(self._scratch)

    def _put_aside(self, scratch: Path) -> None:
        """All but small vocabularies to disk, where memory holds too many values.

        Together, because strings of several lie side by side: of one alone hardly a page would come free.
        """
        counts = {name: fit.counts for name, fit in self._fits.items() if isinstance(fit, _VocabularyFit)}
        if sum(map(len, counts.values())) > MOST_VALUES:
            small = MOST_VALUES // (4 * len(counts))
            for name, own in counts.items():
                if len(own) > small:
                    own.put_aside(scratch / name)

    def finish(self) -> Encoder:
        """The encoder of all rows seen. The fitter may go on and be asked again."""
        vocabularies = {
            field.name: self._fits[field.name].finish()
            for field in self._schema.fields
            if not isinstance(field.encoding, HashEncoding)
        }
        return Encoder(self._schema, vocabularies)


def quantile_edges(numbers: NDArray[np.float64], buckets: int) -> list[float]:
    """At most buckets - 1 edges that part the numbers [n] into about equally full ranges; none is empty.

    Edge k is the sorted numbers' x[floor(k n / buckets)]. Where that is the smallest number of all or repeats
    an edge, one value is common enough to fill a range alone: the next larger number then ends its range, so
    that a log's many zeros, say, never share an id with the few values above them.
    """
    x = np.sort(numbers) + 0.0  # -0.0 becomes 0.0
    edges: list[float] = []
    last = x[0] if len(x) else 0.0
    for k in range(1, buckets if len(x) else 0):
        edge = x[k * len(x) // buckets]
        if edge <= last:
            above = int(np.searchsorted(x, edge, side="right"))
            if above == len(x) or x[above] <= last:
                continue
            edge = x[above]
        edges.append(float(edge))
        last = edge
    return edges


def log_edges(smallest: float, largest: float, buckets: int) -> list[float]:
    """The edges between x < 0, [0, 1) and floor(ln(x)^2) = 0, 1, 2, ... that part [smallest, largest].

    floor(ln(x)^2) = k starts at exp(sqrt(k)). At most buckets - 1 edges: the last range is open.
    """
    edges = [0.0, *(math.exp(math.sqrt(k)) for k in range(buckets - 2))]
    return [edge for edge in edges if smallest < edge <= largest]


class _Fit(ABC):
    @abstractmethod
    def update(self, field: FieldSchema, column: Column) -> None: ...

    @abstractmethod
    def finish(self) -> list[str] | list[float]: ...


class _NothingFit(_Fit):
    def update(self, field: FieldSchema, column: Column) -> None:
        """Read all the same, so that a column whose type never fits is refused while fitting."""
        if field.is_sequence:
            read_lists(field, column)
        else:
            read_cells(field, column)

    def finish(self) -> list[str] | list[float]:
        return []


class _VocabularyFit(_Fit):
    def __init__(self, name: str, encoding: VocabularyEncoding | CriteoX4Encoding, known: Sequence[str] | None) -> None:
        self._encoding = encoding
        self._known = list(known or ())
        if encoding.max_size is not None and len(self._known) > encoding.max_size:
            raise SchemaError(
                f"field '{name}': max_size: expected at least the {len(self._known)} values of the earlier encoder, "
                f"whose ids stay, got {encoding.max_size}"
            )
        self.counts = Counts()
        self._names = _CriteoNames() if isinstance(encoding, CriteoX4Encoding) else None

    def update(self, field: FieldSchema, column: Column) -> None:
        if field.is_sequence:
            # Counted as the model sees them: after missing ones are dropped and long lists are cut.
            lists = read_lists(field, column)
            cells = lists.cells
            codes = gather(shorten(field, Segments(cells.codes, lists.offsets)), lists.rows).items
        else:
            cells = read_cells(field, column)
            codes = cells.codes[cells.codes > 0]
        counts = np.bincount(codes, minlength=len(cells.values) + 1)[1:]
        seen = counts > 0
        values = cells.values if seen.all() else list(compress(cells.values, seen.tolist()))
        self.counts.add(self._canonical(field, values), counts[seen])

    def _canonical(self, field: FieldSchema, values: Sequence[Any]) -> Sequence[str]:
        if self._names is not None:
            return list(map(self._names.__getitem__, values))
        if field.type == "string":
            return values
        return list(map(str if field.type == "integer" else canonical, values))

    def finish(self) -> list[str] | list[float]:
        known = set(self._known)
        kept = [
            (-count, value) for value, count in self.counts.at_least(self._encoding.min_count) if value not in known
        ]
        kept.sort()  # Python compares strings by code point
        room = None if self._encoding.max_size is None else self._encoding.max_size - len(self._known)
        return [*self._known, *(value for _, value in kept[:room])]


class _CriteoNames(dict[int | float, str]):
    """A number -> the canonical form of what the benchmark's rule makes of it, remembered for the first 100,000."""

    def __missing__(self, number: int | float) -> str:
        name = canonical(criteo_x4(number))
        if len(self) < 100_000:
            self[number] = name
        return name


class _QuantileFit(_Fit):
    """A uniform sample of fixed size (Vitter 1985, algorithm R), seeded: the same log gives the same edges.

    Past the sample's size an edge's rank is off by about sqrt(q (1 - q) / 2^20), at most .05% of the rows.
    """

    def __init__(self, buckets: int) -> None:
        self._buckets = buckets
        self._sample = np.empty(SAMPLE_SIZE, dtype=np.float64)
        self._seen = 0
        self._random = np.random.default_rng(0)

    def update(self, field: FieldSchema, column: Column) -> None:
        numbers, _ = read_numbers(field, column)
        numbers = numbers[~np.isnan(numbers)]
        if self._seen < SAMPLE_SIZE:
            first = numbers[: SAMPLE_SIZE - self._seen]
            self._sample[self._seen : self._seen + len(first)] = first
            self._seen += len(first)
            numbers = numbers[len(first) :]
        # Number t (from 0) replaces a random one of the sample with probability SAMPLE_SIZE / (t + 1). One
        # draw a number, so how the log is cut into chunks changes nothing.
        ranks = np.arange(self._seen, self._seen + len(numbers))
        places = (self._random.random(len(numbers)) * (ranks + 1)).astype(np.int64)
        chosen = places < SAMPLE_SIZE
        self._sample[places[chosen]] = numbers[chosen]
        self._seen += len(numbers)

    def finish(self) -> list[str] | list[float]:
        return quantile_edges(self._sample[: self._seen], self._buckets)


class _LogBucketFit(_Fit):
    def __init__(self, buckets: int) -> None:
        self._buckets = buckets
        self._smallest = math.inf
        self._largest = -math.inf

    def update(self, field: FieldSchema, column: Column) -> None:
        numbers, _ = read_numbers(field, column)
        numbers = numbers[~np.isnan(numbers)]
        if len(numbers):
            self._smallest = min(self._smallest, float(numbers.min()))
            self._largest = max(self._largest, float(numbers.max()))

    def finish(self) -> list[str] | list[float]:
        return log_edges(self._smallest, self._largest, self._buckets)


class _EarlierEdges(_Fit):
    """Edges that stay as they are, whatever the numbers."""

    def __init__(self, edges: Sequence[float]) -> None:
        self._edges = list(edges)

    def update(self, field: FieldSchema, column: Column) -> None:
        """Read all the same, so that a column whose type never fits is refused while fitting."""
        read_numbers(field, column)

    def finish(self) -> list[str] | list[float]:
        return list(self._edges)


def _refuse_other_fields(schema: FeatureSchema, earlier: FeatureSchema) -> None:
    """Ids go on only where each field still means what it meant; how many values it may keep is free, and whether a log
    derives it from its timestamp or has it as it was sent."""
    names, before = ([field.name for field in of.fields] for of in (schema, earlier))
    if names != before:
        raise SchemaError(f"expected the fields of the earlier encoder, in its order, {before}, got {names}")
    for now, then in zip(schema.fields, earlier.fields, strict=True):
        parts = ["type", "role", "kind", "max_length", "keep"]
        parts += ["derive"] if now.derive is not None and then.derive is not None else []
        for part in parts:
            if getattr(now, part) != getattr(then, part):
                raise SchemaError(
                    f"field '{now.name}': {part}: expected {getattr(then, part)!r} as in the earlier encoder, "
                    f"got {getattr(now, part)!r}"
                )
        free = {"min_count", "max_size"}
        of_now, of_then = now.encoding.model_dump(exclude=free), then.encoding.model_dump(exclude=free)
        if of_now != of_then:
            raise SchemaError(
                f"field '{now.name}': encoding: expected {of_then} as in the earlier encoder, got {of_now}"
            )


def _fit_of(field: FieldSchema, known: Sequence[Any] | None) -> _Fit:
    """`known` are the values or edges of an earlier encoder."""
    encoding = field.encoding
    if isinstance(encoding, HashEncoding):
        return _NothingFit()
    if isinstance(encoding, VocabularyEncoding | CriteoX4Encoding):
        return _VocabularyFit(field.name, encoding, known)
    if known is not None:
        return _EarlierEdges(known)
    if isinstance(encoding, QuantileEncoding):
        return _QuantileFit(encoding.buckets)
    return _LogBucketFit(encoding.buckets)
