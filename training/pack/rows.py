"""A file of raw rows: as ids, with labels and their library's own predictions where it has them.

CSV, TSV and Parquet are read as any log is; of JSON lines each line is an object by column, its values as in a request.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from models.encoder import EncodedColumns, Encoder
from models.errors import EncodeError
from models.graph import CANDIDATES, CONTEXT, REQUEST_INDEX, ids_input, offsets_input
from models.schema import FeatureSchema
from training.data.chunks import Chunk, Source, require_columns
from training.data.clicks import ClickLog, Clicks, probabilities
from training.data.faults import Faults, shown
from training.data.golden_rows import Row, raw_rows, spread_out
from training.data.readers import FileSource
from training.errors import DataError, PackError
from training.export.parity import Feed

RUN_ROWS = 4096
"""Rows scored at once."""
GOLDEN_SAMPLE = 32
JSON_ENDINGS = (".jsonl", ".ndjson")


@dataclass(frozen=True, eq=False)
class Batch:
    """Some rows: each a request of its own, and all of them candidates of the first one's context."""

    place: Callable[[int], str]
    """Where a row stands in its file, by its number among these."""
    feed: Feed
    as_one: Feed
    label: NDArray[np.float32]
    """[n]; NaN without labels."""
    expected: NDArray[np.float32] | None
    """Their own probabilities [n]."""


class Rows:
    """The rows of a file, by a schema. Raises `DataError` where they do not fit, as reading a log does."""

    def __init__(self, path: Path, schema: FeatureSchema, encoder: Encoder, expect: str | None) -> None:
        self.schema, self.encoder, self._expect = schema, encoder, expect
        if path.suffix.lower() in JSON_ENDINGS:
            self.source: Source = JsonLines(path, schema, () if expect is None else (expect,))
        else:
            self.source = FileSource((path,))
        columns = self.source.columns()
        self.has_labels = schema.label.column in columns
        is_derived = any(field.derived_from for field in schema.fields)
        lacking: dict[str, Any] = {"unit": None, "truth": None}
        if schema.timestamp is not None and not is_derived and schema.timestamp.column not in columns:
            lacking["timestamp"] = None
        if schema.unit is not None and schema.unit.column in columns:
            lacking.pop("unit")
        read_by = schema.model_copy(update=lacking)
        extra = () if expect is None else (expect,)
        self._log = ClickLog(self.source, read_by, extra, has_labels=self.has_labels)
        self.sample: list[Row] = []
        """Raw rows for the golden ones, from the first chunk."""
        self.counts = {name: np.zeros(size, np.int64) for name, size in encoder.sizes.items()}
        """How often each of our ids came, by field."""
        self.bad_cells: dict[str, int] = {}
        self.bad_rows = 0

    def batches(self) -> Iterator[Batch]:
        """All rows in order."""
        faults, before = Faults(self.schema.max_bad_rows), 0
        for clicks in self._log.read(faults):
            if not len(clicks):
                continue
            if not self.sample:
                self.sample = raw_rows(self._log, clicks, spread_out(np.arange(len(clicks)), GOLDEN_SAMPLE).tolist())
            encoded = self._encoded(clicks)
            expected = None
            if self._expect is not None:
                said = f"--expect column {self._expect!r}: expected a probability from 0 to 1"
                expected = probabilities(clicks.chunk, self._expect, said)
            for start in range(0, len(clicks), RUN_ROWS):
                rows = slice(start, min(len(clicks), start + RUN_ROWS))
                yield Batch(
                    partial(_place, clicks.chunk, start),
                    self._feed(encoded, rows, as_one=False),
                    self._feed(encoded, rows, as_one=True),
                    clicks.label[rows],
                    None if expected is None else expected[rows],
                )
            before += len(clicks)
        self.bad_rows = faults.bad_rows
        if not before:
            raise DataError(f"{self.source.files[0]}: no rows that can be read; expected at least one")

    def _encoded(self, clicks: Clicks) -> EncodedColumns:
        try:
            encoded = self.encoder.encode_columns(self._log.fields(clicks))
        except EncodeError as error:
            raise DataError(f"{clicks.chunk.file}: {error}; mend the schema or the file") from None
        for name, count in encoded.bad.items():
            if count:
                self.bad_cells[name] = self.bad_cells.get(name, 0) + count
        for name, ids in (*encoded.ids.items(), *((name, ids) for name, (ids, _) in encoded.sequences.items())):
            self.counts[name] += np.bincount(ids, minlength=len(self.counts[name]))
        return encoded

    def _feed(self, encoded: EncodedColumns, rows: slice, *, as_one: bool) -> Feed:
        schema, count = self.schema, rows.stop - rows.start
        of_context = slice(rows.start, rows.start + 1) if as_one else rows
        feed: Feed = {
            CONTEXT: _stacked(encoded, [field.name for field in schema.context_id_fields], of_context),
            CANDIDATES: _stacked(encoded, [field.name for field in schema.candidate_id_fields], rows),
            REQUEST_INDEX: np.zeros(count, np.int32) if as_one else np.arange(count, dtype=np.int32),
        }
        for field in schema.sequence_fields:
            own = of_context if field.role == "context" else rows
            ids, offsets = encoded.sequences[field.name]
            ends = offsets[own.start : own.stop + 1]
            feed[ids_input(field.name)] = ids[ends[0] : ends[-1]]
            feed[offsets_input(field.name)] = (ends - ends[0]).astype(np.int32)
        return feed


class JsonLines:
    """JSON lines as a `Source`: columns of the schema, with its types. A line that is no such object refuses it."""

    def __init__(self, path: Path, schema: FeatureSchema, numbers: Sequence[str]) -> None:
        self.files = (path,)
        self._types: dict[str, pa.DataType] = {}
        kinds = {"string": pa.string(), "integer": pa.int64(), "float": pa.float64(), "boolean": pa.bool_()}
        for field in schema.fields:
            if field.source_column is not None:
                kind = kinds[field.type]
                self._types[field.source_column] = pa.list_(kind) if field.is_sequence else kind
        self._numbers = frozenset((schema.label.column, *numbers))
        for name in self._numbers:
            self._types[name] = pa.float64()
        if schema.timestamp is not None:
            is_number = schema.timestamp.format == "epoch"
            self._types[schema.timestamp.column] = pa.int64() if is_number else pa.string()
        if schema.unit is not None:
            self._types.setdefault(schema.unit.column, pa.string())
        self._found: dict[str, list[Any]] | None = None
        self._lines: list[int] = []

    def columns(self) -> dict[str, pa.DataType]:
        """Those of the schema that any line has."""
        return {name: self._types[name] for name in self._read()}

    def require(self, wanted: Mapping[str, str]) -> None:
        """`DataError` for a column that no line has."""
        require_columns(str(self.files[0]), wanted, self._read())

    def chunks(self, columns: Sequence[str], faults: Faults) -> Iterator[Chunk]:
        found, path = self._read(), self.files[0]
        arrays = {}
        for name in columns:
            kind, values = self._types[name], []
            for line, value in zip(self._lines, found[name], strict=True):
                try:
                    values.append(_converted(value, kind, is_label=name in self._numbers))
                except (ValueError, OverflowError):
                    raise DataError(
                        f"{path}:{line}: column {name!r}: expected {kind} or null, got {shown(value)}; mend the line "
                        "or the schema"
                    ) from None
            arrays[name] = pa.array(values, kind)
        faults.seen(str(path), len(self._lines))
        yield Chunk(str(path), arrays, np.array(self._lines, dtype=np.int64), "line", 1.0)
        faults.close(str(path))

    def _read(self) -> dict[str, list[Any]]:
        if self._found is not None:
            return self._found
        path, rows = self.files[0], []
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise DataError(f"{path}: cannot be opened: {error.strerror or error}") from None
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: expected UTF-8 text: {error}") from None
        for number, line in enumerate(text.split("\n"), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(
                    f"{path}:{number}: expected a JSON object, got text that does not read: {error}"
                ) from None
            if not isinstance(row, dict):
                raise DataError(f"{path}:{number}: expected a JSON object, got {shown(row)}")
            rows.append(row)
            self._lines.append(number)
        names = {name for row in rows for name in row}
        self._found = {name: [row.get(name) for row in rows] for name in self._types if name in names}
        return self._found


def _converted(value: Any, kind: pa.DataType, *, is_label: bool = False) -> Any:
    """A JSON value as a column of this type holds it; ValueError where it is of another."""
    if value is None:
        return None
    if pa.types.is_list(kind):
        if not isinstance(value, list):
            raise ValueError
        return [_converted(element, kind.value_type) for element in value]
    if pa.types.is_string(kind):
        if not isinstance(value, str):
            raise ValueError
        value.encode()  # UnicodeEncodeError, a ValueError, for a lone surrogate
        return value
    if isinstance(value, bool):
        if not (is_label or pa.types.is_boolean(kind)):
            raise ValueError
        return float(value) if is_label else value
    if type(value) not in (int, float) or pa.types.is_boolean(kind):
        raise ValueError
    if pa.types.is_floating(kind):
        return float(value)
    if value != value or value in (np.inf, -np.inf) or int(value) != value or not -(2**63) <= value < 2**63:
        raise ValueError
    return int(value)


def _place(chunk: Chunk, start: int, row: int) -> str:
    return str(chunk.place(start + row))


def _stacked(encoded: EncodedColumns, names: Sequence[str], rows: slice) -> NDArray[np.int32]:
    if not names:
        return np.zeros((rows.stop - rows.start, 0), np.int32)
    return np.stack([encoded.ids[name][rows] for name in names], axis=1)


def refuse_strangers(rows: Rows, allowed: Sequence[str], least: int = 20) -> None:
    """`PackError` for a field of which the vocabulary knows no value that the rows hold, `least` values or more."""
    for name, counts in rows.counts.items():
        known, unknown = int(counts[2:].sum()), int(counts[1])
        if known == 0 and unknown >= least and name not in allowed:
            raise PackError(
                f"{rows.source.files[0]}: field {name!r}: none of its {unknown} values is in the vocabulary; expected "
                "rows like those it was trained on. Another field's vocabulary, another column, or another spelling? "
                f"If it is meant, say --allow-unknown {name}"
            )
