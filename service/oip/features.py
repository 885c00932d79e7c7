"""A model's tensors to encoded rows: exactly what /predict makes of the same values.

    raw        one tensor a field, by the field's name: [N] or [N, 1], a context field also [1]; a sequence as BYTES
               that hold a JSON list each. A field without a tensor is missing
    encoded    for callers that have the bundle's ids: the graph's own inputs (docs/bundle.md), where a tensor is called
               `candidates` and no field is. Ids beyond a table never reach the graph

Context tensors of N rows that differ make N requests of one candidate each, scored in one run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from models.bundle import Bundle
from models.encoder import EncodedRows, Ragged
from models.errors import EncodeError
from models.graph import CANDIDATES, CONTEXT, REQUEST_INDEX, graph_inputs, ids_input, offsets_input
from models.schema import FieldSchema
from service.errors import Code, Refusal
from service.oip.request import InferenceRequest
from service.oip.tensors import BYTES, Tensor, integers, invalid, raw_values, rows_of
from service.scoring.json_body import decode_json, have_many_exponents
from service.scoring.request import refuse_encoding

Ids = npt.NDArray[np.int32]

EXACT = 2.0**53
"""Up to here every integer is a float64."""


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """Encoded rows of `count` candidates. `request_index` is None where all of them share one context."""

    context: EncodedRows
    candidates: EncodedRows
    count: int
    request_index: Ids | None
    ignored: int

    def feeds(self) -> dict[str, Ids]:
        """The graph's inputs."""
        feeds = graph_inputs([self.context], [self.candidates])
        if self.request_index is not None:
            feeds[REQUEST_INDEX] = self.request_index
        return feeds


def encode_features(bundle: Bundle, request: InferenceRequest, max_candidates: int) -> Features:
    """What a request's tensors are to this model, or `Refusal` with field and row."""
    if CANDIDATES in request.tensors and CANDIDATES not in bundle.schema.by_name:
        return _take_ids(bundle, request, max_candidates)
    return _encode_raw(bundle, request, max_candidates)


def _encode_raw(bundle: Bundle, request: InferenceRequest, max_candidates: int) -> Features:
    schema, encoder = bundle.schema, bundle.encoder
    contexts = [
        (field, request.tensors[field.name]) for field in schema.context_fields if field.name in request.tensors
    ]
    candidates = [
        (field, request.tensors[field.name]) for field in schema.candidate_fields if field.name in request.tensors
    ]
    count = _count_rows(contexts, candidates, max_candidates)
    context_columns = {field.name: _values(field, tensor) for field, tensor in contexts}
    columns = {field.name: _values(field, tensor) for field, tensor in candidates}
    is_shared = all(values.count(values[0]) == len(values) for values in context_columns.values())
    try:
        if is_shared:
            context = encoder.encode_context({name: values[0] for name, values in context_columns.items()})
        else:
            wide = {name: values * count if len(values) == 1 else values for name, values in context_columns.items()}
            context = encoder.encode_context_columns(wide, count)
        encoded = encoder.encode_candidate_columns(columns, count)
    except EncodeError as error:
        raise refuse_encoding(error) from None
    index = None if is_shared else np.arange(count, dtype=np.int32)
    ignored = request.ignored + len(request.tensors) - len(contexts) - len(candidates)
    return Features(context, encoded, count, index, ignored)


def _count_rows(
    contexts: list[tuple[FieldSchema, Tensor]], candidates: list[tuple[FieldSchema, Tensor]], max_candidates: int
) -> int:
    """N: the rows of every candidate tensor; of the context's, where there is none."""
    if not contexts and not candidates:
        detail = "expected a tensor for at least one field of the model: see its metadata"
        raise Refusal(Code.MISSING_CANDIDATES, detail, field="inputs")
    count = None
    for field, tensor in candidates:
        rows = rows_of(tensor, field.name)
        if count not in (None, rows):
            raise _unequal(field, f"{count}, as the others have", rows)
        count = rows
    for field, tensor in contexts:
        rows = rows_of(tensor, field.name)
        if rows != 1 and count in (None, 1) and not candidates:
            count = rows
        elif rows not in (1, count):
            raise _unequal(field, "1, or as many as there are candidates", rows)
    return _checked_count(1 if count is None else count, max_candidates)


def _unequal(field: FieldSchema, expected: str, got: int) -> Refusal:
    detail = f"field '{field.name}': expected rows: {expected}; got {got}"
    return Refusal(Code.UNEQUAL_COLUMNS, detail, field=field.name)


def _checked_count(count: int, max_candidates: int) -> int:
    if count == 0:
        raise Refusal(Code.EMPTY_CANDIDATES, "expected at least one row", field="inputs")
    if count > max_candidates:
        detail = f"expected at most {max_candidates} rows, got {count}"
        raise Refusal(Code.TOO_MANY_CANDIDATES, detail, field="inputs")
    return count


def _values(field: FieldSchema, tensor: Tensor) -> list[Any]:
    """A field's values as the encoder takes them; the lists of a sequence."""
    values = raw_values(tensor, field.name)
    if not field.is_sequence:
        if field.type == "integer" and tensor.datatype.startswith("FP"):
            # As the encoder would make of them, one by one; integers it looks up all at once.
            return [int(v) if v is not None and abs(v) <= EXACT and v.is_integer() else v for v in values]
        return values
    if tensor.datatype != BYTES:
        detail = f"field '{field.name}': expected BYTES that hold a JSON list each, got {tensor.datatype}"
        raise Refusal(Code.WRONG_TYPE, detail, field=field.name)
    many = have_many_exponents("".join(text for text in values if text).encode("utf-8", "replace"))
    return [_list(field.name, text, row, many) if text else None for row, text in enumerate(values)]


def _list(name: str, text: str, row: int, has_many_exponents: bool) -> Any:
    try:
        return decode_json(text.encode(), has_many_exponents)
    except Refusal as refusal:
        detail = f"field '{name}': {refusal.detail} (row {row})"
        raise Refusal(refusal.code, detail, field=name, row=row) from None
    except UnicodeEncodeError:
        raise invalid(f"field '{name}': expected UTF-8 (row {row})", name, row) from None


def _take_ids(bundle: Bundle, request: InferenceRequest, max_candidates: int) -> Features:
    """The graph's inputs as they are, every id checked against its table."""
    schema, sizes = bundle.schema, bundle.encoder.sizes
    taken: set[str] = set()

    def take(name: str, *shape: int | None) -> npt.NDArray[np.int64]:
        tensor = request.tensors.get(name)
        if tensor is None:
            raise invalid(f"'{name}': expected this tensor beside `{CANDIDATES}`", name)
        taken.add(name)
        expected = ", ".join("any" if length is None else str(length) for length in shape)
        if len(tensor.shape) != len(shape) or any(
            length not in (None, got) for length, got in zip(shape, tensor.shape, strict=True)
        ):
            raise invalid(f"'{name}': expected shape [{expected}]", name)
        return integers(tensor, name)

    def matrix(name: str, fields: tuple[FieldSchema, ...], rows: int | None) -> Ids:
        ids = take(name, rows, len(fields))
        _check_ids(ids, np.array([sizes[field.name] for field in fields], np.int64), name)
        return ids.astype(np.int32)

    def ragged(field: FieldSchema, rows: int) -> Ragged:
        ids, offsets = take(ids_input(field.name), None), take(offsets_input(field.name), rows + 1)
        _check_ids(ids, np.array(sizes[field.name]), ids_input(field.name))
        steps = np.diff(offsets)
        longest = field.max_length or 0
        if offsets[0] != 0 or offsets[-1] != len(ids) or (steps < 0).any() or (steps > longest).any():
            name = offsets_input(field.name)
            raise invalid(f"'{name}': expected 0, then steps of 0 to {longest}, up to the number of ids", name)
        return ids.astype(np.int32), offsets.astype(np.int32)

    candidate_tensor = request.tensors[CANDIDATES]
    count = _checked_count(candidate_tensor.shape[0], max_candidates)
    candidate_ids = matrix(CANDIDATES, schema.candidate_id_fields, count)
    if CONTEXT in request.tensors or schema.context_id_fields:
        context_ids = matrix(CONTEXT, schema.context_id_fields, None)
    else:
        context_ids = np.empty((1, 0), np.int32)
    requests = len(context_ids)
    index = None
    if REQUEST_INDEX in request.tensors:
        given = take(REQUEST_INDEX, count)
        steps = np.diff(given)
        if given[0] != 0 or given[-1] != requests - 1 or (steps < 0).any() or (steps > 1).any():
            detail = f"'{REQUEST_INDEX}': expected 0 to {requests - 1}, every one of them, none before a lesser one"
            raise invalid(detail, REQUEST_INDEX)
        index = given.astype(np.int32) if requests > 1 else None
    elif requests == count > 1:
        index = np.arange(count, dtype=np.int32)
    elif requests != 1:
        raise invalid(f"'{CONTEXT}': expected 1 row, or {REQUEST_INDEX} to say whose candidates are whose", CONTEXT)
    contexts = {field.name: ragged(field, requests) for field in schema.context_fields if field.is_sequence}
    candidates = {field.name: ragged(field, count) for field in schema.candidate_fields if field.is_sequence}
    return Features(
        EncodedRows(context_ids, contexts, {}, {}, 0),
        EncodedRows(candidate_ids, candidates, {}, {}, 0),
        count,
        index,
        request.ignored + len(request.tensors) - len(taken),
    )


def _check_ids(ids: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64], name: str) -> None:
    """Refuses ids [n] or [n, F] that are not within their tables, of one size or of F."""
    outside = (ids < 0) | (ids >= sizes)
    if outside.any():
        row, *column = (int(place) for place in np.argwhere(outside)[0])
        size = int(sizes[tuple(column)])
        detail = f"'{name}': expected ids from 0 to {size - 1} (row {row})"
        raise Refusal(Code.NUMBER_OUT_OF_RANGE, detail, field=name, row=row)
