"""Raw rows that every later program must score alike: some of the log's own, and the hard ones that logs seldom hold.

Values are what a request's JSON may hold, so a golden row takes the same road as a client's. Each request is
`{"context": {...}, "candidates": [{...}, ...]}`; a field left out is missing. The exporter adds the answers.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from models.schema import FeatureSchema, FieldSchema
from models.values import ValueType, WrongTypeError, check_value, read_text
from training.data.clicks import ClickLog, Clicks
from training.data.timestamps import derive

Row = dict[str, Any]
"""Field -> JSON value, context and candidate fields together."""

CANDIDATES_A_REQUEST = 4

_UNKNOWN: dict[str, object] = {
    "string": "☃ seen in no log",
    "integer": -987_654_321_987,
    "float": -9.87654321e-31,
}
_EXTREMES: dict[str, tuple[object, ...]] = {
    "string": ("é" * 300, " ", "0", "\U0001f9ca\n"),
    "integer": (2**64 - 1, -(2**63), 0, 2**53 + 1),
    "float": (1.7976931348623157e308, -1.7976931348623157e308, 5e-324, -0.0),
    "boolean": (True, False, True, False),
}


def spread_out(rows: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """`count` of these row numbers, evenly from the first to the last (all of them where there are fewer)."""
    if len(rows) <= count:
        return rows
    return rows[np.linspace(0, len(rows) - 1, count).round().astype(np.int64)]


def raw_rows(log: ClickLog, clicks: Clicks, rows: Iterable[int]) -> list[Row]:
    """Rows of a chunk as a request would bring them; missing values and bad cells are left out."""
    derived = {f.name: derive(f.derive, clicks.time, log.zone) for f in log.schema.fields if f.derive}
    found = []
    for row in rows:
        values: Row = {}
        for field in log.schema.fields:
            if field.role == "training_only":
                continue
            if field.source_column is None:
                value = derived[field.name][row].item()
            else:
                value = _json_value(field, clicks.chunk.columns[field.source_column], row)
            if value is not None:
                values[field.name] = value
        found.append(values)
    return found


def _json_value(field: FieldSchema, column: pa.Array, row: int) -> object:
    cell = column[row].as_py()
    if not field.is_sequence:
        return _one(field.type, cell, parse=True)
    if cell is None:
        return None
    elements = cell.split(field.separator) if isinstance(cell, str) else cell
    checked = [_one(field.type, element, parse=True) for element in elements]
    return [element for element in checked if element is not None]


def _one(kind: ValueType, cell: object, *, parse: bool) -> object:
    """A cell as a checked JSON value; None where it is missing or bad, as the encoder takes it from a log."""
    if isinstance(cell, float) and math.isnan(cell):
        return None
    try:
        return read_text(kind, cell) if parse and isinstance(cell, str) else check_value(kind, _plain(cell))
    except WrongTypeError:
        return None


def _plain(cell: object) -> object:
    """Decimals are numbers to the encoder."""
    return float(cell) if type(cell).__name__ == "Decimal" else cell  # type: ignore[arg-type]


def golden_requests(schema: FeatureSchema, sample: Sequence[Row]) -> list[dict[str, Any]]:
    """The sample's rows as requests of a few candidates each, then missing, unknown and extreme ones."""
    context, candidate = schema.context_fields, schema.candidate_fields
    requests = [
        _request(_only(context, rows[0]), [_only(candidate, row) for row in rows])
        for rows in (sample[i : i + CANDIDATES_A_REQUEST] for i in range(0, len(sample), CANDIDATES_A_REQUEST))
    ]
    hard = [_row(schema, sample, case) for case in range(len(_EXTREMES["string"]) + 3)]
    candidates = [_only(candidate, row) for row in hard]
    requests += [_request(_only(context, row), candidates) for row in hard]
    if sample:  # a known context beside hard candidates, and the other way round
        requests.append(_request(_only(context, sample[0]), candidates))
        requests.append(_request({}, [_only(candidate, row) for row in sample[:CANDIDATES_A_REQUEST]]))
    return requests


def _row(schema: FeatureSchema, sample: Sequence[Row], case: int) -> Row:
    """Case 0: everything missing; 1: nulls and empty values; 2: everything unknown; from 3: extremes."""
    row: Row = {}
    for field in schema.fields:
        if field.role == "training_only" or case == 0:
            continue
        if case == 1:
            row[field.name] = [] if field.is_sequence else None
        elif case == 2:
            value = _UNKNOWN.get(field.type)
            if value is not None:
                row[field.name] = [value] if field.is_sequence else value
        else:
            value = _EXTREMES[field.type][case - 3]
            row[field.name] = _long_sequence(field, sample, value) if field.is_sequence else value
    return row


def _long_sequence(field: FieldSchema, sample: Sequence[Row], extreme: object) -> list[object]:
    """More elements than the field keeps: known ones where the sample has any, a null, and an extreme one."""
    known = [element for row in sample for element in row.get(field.name, [])] or [extreme]
    assert field.max_length is not None
    length = min(field.max_length, 50) + 3
    return [None, extreme, *(known * (length // len(known) + 1))[:length]]


def _request(context: Row, candidates: list[Row]) -> dict[str, Any]:
    return {"context": context, "candidates": candidates}


def _only(fields: Sequence[FieldSchema], row: Mapping[str, Any]) -> Row:
    return {field.name: row[field.name] for field in fields if field.name in row}


def to_text(requests: Sequence[Mapping[str, Any]]) -> str:
    """The requests as JSON text; floats keep every digit."""
    return json.dumps({"requests": list(requests)}, ensure_ascii=False, allow_nan=False, indent=1) + "\n"
