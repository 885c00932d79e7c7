"""A source of rows read as a click log: what the schema makes of the columns, and what it refuses.

Of every row: label, time, unit, known truth, and the fields as `models.columns.Column`. A row whose time
cannot be read is unreadable (skipped, counted); a label that is not 0 or 1 refuses the log at once;
everything that can be known from the headers is refused before the first row is read.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from models.columns import Column
from models.schema import FeatureSchema, FieldSchema
from models.values import WrongTypeError, canonical, read_text
from training.data.chance import scramble
from training.data.chunks import Chunk, Source
from training.data.faults import Faults, shown
from training.data.timestamps import derive, expected_time, parse_times, zone_of
from training.errors import DataError


@dataclass(frozen=True)
class Clicks:
    """Some consecutive rows of a log, n of them, unreadable ones left out."""

    chunk: Chunk
    """The raw columns and the place of each row."""
    label: npt.NDArray[np.float32]
    """1 for a click, else 0 [n]; NaN of rows that are read without labels."""
    time: npt.NDArray[np.int64]
    """Microseconds since the epoch [n]; zeros where the schema names no timestamp."""
    unit: npt.NDArray[np.uint64]
    """Hash of the unit [n]; a row without one is a unit of its own."""
    truth: npt.NDArray[np.float32] | None
    """The known click probability [n], for synthetic logs."""

    def __len__(self) -> int:
        return len(self.label)

    def select(self, keep: npt.NDArray[np.bool_]) -> "Clicks":
        """Only the rows marked in `keep` [n]."""
        if keep.all():
            return self
        return Clicks(
            _select_rows(self.chunk, keep),
            self.label[keep],
            self.time[keep],
            self.unit[keep],
            None if self.truth is None else self.truth[keep],
        )


class ClickLog:
    """A source and the schema it is read by. Raises `DataError` when their columns do not fit each other.

    `has_labels=False` reads a file without the label's column: rows to be scored, not learned from. `unlabelled` are
    such rows behind those of the source.
    """

    def __init__(
        self,
        source: Source,
        schema: FeatureSchema,
        extra_columns: tuple[str, ...] = (),
        *,
        has_labels: bool = True,
        unlabelled: Source | None = None,
    ) -> None:
        self.source = source
        self._unlabelled = None
        if unlabelled is not None:
            without_truth = schema.model_copy(update={"truth": None})
            self._unlabelled = ClickLog(unlabelled, without_truth, has_labels=False)
        self.schema = schema
        self._has_labels = has_labels
        self.zone = zone_of(schema.timestamp.timezone if schema.timestamp else "UTC")
        own = [schema.label.column] if has_labels else []
        own += [part.column for part in (schema.timestamp, schema.unit, schema.truth) if part]
        self._own_columns = tuple(dict.fromkeys([*own, *extra_columns]))
        fields = [f.source_column for f in schema.fields if f.source_column is not None]
        self._all_columns = tuple(dict.fromkeys([*self._own_columns, *fields]))
        self._check_columns()

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file the rows come from."""
        return self.source.files + (self._unlabelled.files if self._unlabelled else ())

    def _check_columns(self) -> None:
        schema = self.schema
        wanted = dict.fromkeys(self._own_columns, "the split reads it")
        if self._has_labels:
            wanted[schema.label.column] = "the label"
        for part, role in ((schema.timestamp, "timestamp"), (schema.unit, "unit"), (schema.truth, "truth")):
            if part is not None:
                wanted[part.column] = f"the {role}"
        for field in schema.fields:
            if field.source_column is not None:
                wanted.setdefault(field.source_column, f"field {field.name!r} reads it")
        self.source.require(wanted)
        available = self.source.columns()
        first = self.source.files[0]
        for name in self._own_columns:
            if pa.types.is_nested(available[name]) or pa.types.is_binary(available[name]):
                raise DataError(
                    f"{first}: column {name!r} ({wanted[name]}): expected text or numbers, "
                    f"got Parquet type {available[name]}"
                )
        for field in self.schema.fields:
            if field.source_column is not None:
                kind = available[field.source_column]
                problem = _type_problem(field, kind)
                if problem:
                    raise DataError(
                        f"{first}: field {field.name!r}: expected {_wanted(field)}, got column "
                        f"{field.source_column!r} of Parquet type {kind}; {problem}"
                    )

    def survey(self, faults: Faults) -> Iterator[Clicks]:
        """Every readable row without its fields; `chunk` holds label, timestamp, unit, truth and extra columns."""
        yield from self._read(self._own_columns, faults)
        if self._unlabelled is not None:
            yield from map(self._without_truth, self._unlabelled.survey(faults))

    def read(self, faults: Faults) -> Iterator[Clicks]:
        """Every readable row with all that `fields` needs. The same rows as `survey` gives."""
        yield from self._read(self._all_columns, faults)
        if self._unlabelled is not None:
            yield from map(self._without_truth, self._unlabelled.read(faults))

    def _without_truth(self, clicks: Clicks) -> Clicks:
        """The same; NaN is the truth of a row where others of the log have one."""
        return clicks if self.schema.truth is None else replace(clicks, truth=np.full_like(clicks.label, np.nan))

    def _read(self, columns: tuple[str, ...], faults: Faults) -> Iterator[Clicks]:
        schema = self.schema
        row = 0
        for chunk in self.source.chunks(columns, faults):
            time = np.zeros(chunk.rows, np.int64)
            label = np.full(chunk.rows, np.nan, np.float32)
            if self._has_labels:
                label = _labels(chunk, schema.label.column)
            if schema.timestamp is not None:
                name, form, unit = schema.timestamp.column, schema.timestamp.format, schema.timestamp.unit
                time, good = parse_times(chunk.columns[name], form, unit, self.zone)
                if not good.all():
                    _report_bad_times(chunk, name, good, expected_time(form, unit), faults)
                    chunk, time, label = _select_rows(chunk, good), time[good], label[good]
            numbers = np.arange(row, row + chunk.rows, dtype=np.uint64)
            row += chunk.rows
            units = scramble(numbers)
            if schema.unit is not None:
                units = unit_hashes(chunk.columns[schema.unit.column], otherwise=units)
            truth = _truths(chunk, schema.truth.column) if schema.truth is not None else None
            yield Clicks(chunk, label, time, units, truth)

    def fields(self, clicks: Clicks) -> dict[str, Column]:
        """Each field of the schema as the encoder takes it, keyed by the field's name."""
        columns: dict[str, Column] = {}
        for field in self.schema.fields:
            if field.derive is not None:
                columns[field.name] = Column.typed(derive(field.derive, clicks.time, self.zone))
            else:
                assert field.source_column is not None
                columns[field.name] = to_column(clicks.chunk.columns[field.source_column])
        return columns


def to_column(array: pa.Array) -> Column:
    """An Arrow array as the encoder takes it: text by distinct value, numbers and booleans typed, lists as lists."""
    kind = array.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        lengths = pc.list_value_length(array).fill_null(0).to_numpy(zero_copy_only=False)
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
        return Column.lists(to_column(array.flatten()), offsets)
    if _is_text(kind):
        if not pa.types.is_dictionary(kind):
            array = array.cast(pa.string()).dictionary_encode()
        codes = array.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        return Column.text(array.dictionary.to_numpy(zero_copy_only=False)).coded(codes)
    if pa.types.is_dictionary(kind):
        return to_column(array.dictionary_decode())
    if pa.types.is_null(kind):
        return Column.text(np.full(1, None)).coded(np.full(len(array), -1, np.int32))
    if pa.types.is_decimal(kind):
        array = array.cast(pa.int64() if kind.scale == 0 and kind.precision <= 18 else pa.float64())
    if array.null_count == 0:
        return Column.typed(array.to_numpy(zero_copy_only=False))
    filler = False if pa.types.is_boolean(array.type) else pa.scalar(0).cast(array.type)
    missing = array.is_null().to_numpy(zero_copy_only=False)
    return Column.typed(array.fill_null(filler).to_numpy(zero_copy_only=False), missing)


def unit_hashes(column: pa.Array, *, otherwise: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The first 8 bytes of sha256 of each unit's canonical text [n]; `otherwise` [n] where it is missing.

    A number is its decimal digits, so that a unit is the same from CSV, Parquet and a request.
    """
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_null(column.type):
        return otherwise
    coded = column.dictionary_encode()
    hashes = np.zeros(len(coded.dictionary) + 1, np.uint64)
    known = np.zeros(len(coded.dictionary) + 1, np.bool_)
    for i, value in enumerate(coded.dictionary.to_pylist()):
        text = _unit_text(value)
        if text:
            hashes[i] = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
            known[i] = True
    codes = coded.indices.fill_null(len(coded.dictionary)).to_numpy(zero_copy_only=False)
    return np.where(known[codes], hashes[codes], otherwise)


def _unit_text(value: object) -> str:
    if value is None or value != value:  # NaN is not itself
        return ""
    if isinstance(value, str | int | float):
        return canonical(value)
    raise DataError(f"unit: expected strings or integers, got a column of {type(value).__name__}")


def _select_rows(chunk: Chunk, keep: npt.NDArray[np.bool_]) -> Chunk:
    mask = pa.array(keep)
    columns = {name: column.filter(mask) for name, column in chunk.columns.items()}
    return Chunk(chunk.file, columns, chunk.numbers[keep], chunk.unit, chunk.read)


def _report_bad_times(chunk: Chunk, name: str, good: npt.NDArray[np.bool_], expected: str, faults: Faults) -> None:
    bad = np.flatnonzero(~good)
    came = chunk.columns[name][int(bad[0])].as_py()
    came_words = "nothing" if came in (None, "") else shown(came if isinstance(came, str | int | float) else str(came))
    detail = f"timestamp column {name!r}: expected {expected}, got {came_words}"
    faults.bad(chunk.place(int(bad[0])), "bad timestamp", detail, count=len(bad))


def _labels(chunk: Chunk, name: str) -> npt.NDArray[np.float32]:
    return probabilities(chunk, name, f"label column {name!r}: expected 0 or 1", only_certain=True)


def _truths(chunk: Chunk, name: str) -> npt.NDArray[np.float32]:
    return probabilities(chunk, name, f"truth column {name!r}: expected a probability from 0 to 1")


def probabilities(chunk: Chunk, name: str, expected: str, *, only_certain: bool = False) -> npt.NDArray[np.float32]:
    """A column of numbers from 0 to 1 (of 0 and 1 only); `DataError` at the first row that holds anything else."""
    column = chunk.columns[name]
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.uint8())
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        numbers = column.cast(pa.float64(), safe=False).fill_null(np.nan).to_numpy(zero_copy_only=False)
    else:
        coded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
        values = np.array([*map(_number_of, coded.dictionary.to_pylist()), np.nan])
        numbers = values[coded.indices.fill_null(-1).to_numpy(zero_copy_only=False)]
    fits = (numbers >= 0) & (numbers <= 1)
    if only_certain:
        fits &= (numbers == 0) | (numbers == 1)
    if not fits.all():
        row = int(np.flatnonzero(~fits)[0])
        came = column[row].as_py()
        raise DataError(
            f"{chunk.place(row)}: {expected}, got {'nothing' if came in (None, '') else shown(came)}. "
            "No row is guessed: mend the file, or leave such rows out of it"
        )
    found: npt.NDArray[np.float32] = numbers.astype(np.float32)
    return found


def _number_of(value: object) -> float:
    """A label or probability in text (or in a dictionary of any type); NaN where it is none."""
    if isinstance(value, str):
        try:
            value = read_text("boolean" if value.lower() in ("true", "false") else "float", value)
        except WrongTypeError:
            return np.nan
    return float(value) if isinstance(value, bool | int | float) else np.nan


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _wanted(field: FieldSchema) -> str:
    return f"a list of {field.type}" if field.is_sequence else f"type {field.type}"


def _type_problem(field: FieldSchema, kind: pa.DataType) -> str | None:
    """What to do about a column whose type can never fit its field; None where it can."""
    if pa.types.is_null(kind):
        return None
    if field.is_sequence:
        if _is_text(kind):
            return None if field.separator else "say the field's `separator`, so that the text can be cut"
        if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
            return "make it a categorical or numeric field, or write lists"
        kind = kind.value_type
        if pa.types.is_null(kind):
            return None
    elif pa.types.is_nested(kind):
        return (
            "make it a sequence field"
            if pa.types.is_list(kind) or pa.types.is_large_list(kind)
            else "write plain values"
        )
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if _is_text(kind):
        return None
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    if pa.types.is_boolean(kind):
        return None if field.type == "boolean" else "say type: boolean"
    if is_number:
        if field.type in ("integer", "float"):
            return None
        return f"say type: {'integer' if pa.types.is_integer(kind) else 'float'}"
    return "write it as a string, a number or a boolean"
