"""Raw features as requests had them -> typed columns of a training log.

A value is checked as the service checks it: what is of a wrong type there is refused, and here, where a schema may be
another than the one that was served, is missing and counted. A field that the schema lacks is left out and counted.
Fields that a log derives from its timestamp are taken as they were sent: what was scored is what is learned from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from models.schema import FeatureSchema, FieldSchema
from models.values import WrongTypeError, check_value

_TYPES = {"string": pa.string(), "integer": pa.int64(), "float": pa.float64(), "boolean": pa.bool_()}
_LARGEST = 2**63 - 1


class FeatureColumns:
    """Collects the features of rows; `table` gives them as columns, by the names of `column_of`."""

    def __init__(self, schema: FeatureSchema, taken: Sequence[str]) -> None:
        """`taken`: names of columns that are not free; a field of such a name gets another column."""
        self.column_of = _column_names(schema, taken)
        self.missing: Counter[str] = Counter()
        self.bad: Counter[str] = Counter()
        """Values of a wrong type, by field: they are missing in the log."""
        self.ignored: Counter[str] = Counter()
        """Rows with features that are no fields, by name."""
        self._fields = schema.fields
        self._names = {field.name for field in schema.fields}
        self._values: dict[str, list[Any]] = {field.name: [] for field in schema.fields}
        self._chunks: dict[str, list[pa.Array]] = {field.name: [] for field in schema.fields}
        self._wide: set[str] = set()
        """Fields with integers beyond 63 bits: text, which their type reads again."""

    def add(self, context: Mapping[str, Any], candidate: Mapping[str, Any]) -> None:
        """The features of one row."""
        for name in (context.keys() | candidate.keys()) - self._names:
            self.ignored[name] += 1
        for field in self._fields:
            name = field.name
            if field.role == "context":
                raw = context.get(name)
            elif field.role == "candidate":
                raw = candidate.get(name)
            else:  # no request needs to have it, but some do
                raw = candidate.get(name, context.get(name))
            try:
                value = _checked(field, raw)
            except WrongTypeError:
                self.bad[name] += 1
                value = None
            if value is None:
                self.missing[name] += 1
            self._values[name].append(value)

    def flush(self) -> None:
        """Packs what was collected; call it every few thousand rows."""
        for field in self._fields:
            values, self._values[field.name] = self._values[field.name], []
            self._chunks[field.name].append(self._packed(field, values))

    def _packed(self, field: FieldSchema, values: list[Any]) -> pa.Array:
        if field.type == "integer":
            every = [item for value in values if value for item in value] if field.is_sequence else values
            if any(item is not None and item > _LARGEST for item in every):
                self._wide.add(field.name)
                texts: list[Any] = [_as_text(value) for value in values]
                return pa.array(texts, pa.list_(pa.string()) if field.is_sequence else pa.string())
        kind = _TYPES[field.type]
        return pa.array(values, pa.list_(kind) if field.is_sequence else kind)

    def table(self) -> dict[str, pa.ChunkedArray]:
        """Every field's column, after the last `flush`."""
        columns = {}
        for field in self._fields:
            kind = pa.string() if field.name in self._wide else _TYPES[field.type]
            kind = pa.list_(kind) if field.is_sequence else kind
            chunks = [chunk.cast(kind) for chunk in self._chunks[field.name]]
            columns[self.column_of[field.name]] = pa.chunked_array(chunks, kind)
        return columns


def _checked(field: FieldSchema, raw: Any) -> Any:
    """The value as its type has it, a list for a sequence; None where it is missing. `WrongTypeError` else."""
    if not field.is_sequence:
        return check_value(field.type, raw)
    if raw is None or raw == "":
        return None
    if type(raw) is not list:
        raise WrongTypeError("no list")
    return [check_value(field.type, item) for item in raw] or None


def _as_text(value: Any) -> Any:
    if isinstance(value, list):
        return [_as_text(item) for item in value]
    return None if value is None else str(value)


def _column_names(schema: FeatureSchema, taken: Sequence[str]) -> dict[str, str]:
    used, names = set(taken), {}
    for field in schema.fields:
        name = field.name
        while name in used:
            name = f"feature.{name}"
        used.add(name)
        names[field.name] = name
    return names


def schema_of_log(schema: FeatureSchema, column_of: Mapping[str, str]) -> FeatureSchema:
    """The schema of the log that is written: the same fields, each with a column of its own."""
    document = schema.model_dump(mode="json")
    zone = schema.timestamp.timezone if schema.timestamp else "UTC"
    document |= {"label": {"column": "click"}, "unit": {"column": "unit"}, "truth": None}
    document["timestamp"] = {"column": "time", "timezone": zone}
    for field in document["fields"]:
        field |= {"column": column_of[field["name"]], "derived_from": None, "derive": None}
    return FeatureSchema.model_validate(document)
