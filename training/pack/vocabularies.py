"""Vocabularies of another library: our encoder's values, and for each of our ids the id that their graph means.

A request's value gets our id first (0 missing, 1 unknown, known values from 2), because counting, caching and the
catalogue rest on that; a table in the graph then makes it theirs. So any numbering can be carried over exactly, as long
as the same values are told apart. A folder holds `<field>.json` for each field, in one of three forms:

    ["a", "b", ...]                                      the graph takes our ids: "a" is 2
    {"ids": {"a": 1, "b": 2}, "missing": 0, "unknown": 3}    any numbering; two values may share an id
    {"edges": [0, 1.5], "ids": [1, 2, 3], "missing": 0}      ranges of a number: ids[i] is of edges[i-1] <= x < edges[i]

or is what FuxiCTR's feature processing left (`fuxictr.py`). A hashed field has no file: the graph takes our ids.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.encoder import Encoder
from models.errors import VocabularyError
from models.schema import FeatureSchema, FieldSchema, HashEncoding
from models.values import WrongTypeError, canonical, read_text
from training.data.faults import closest, shown
from training.errors import PackError

LARGEST_ID = 2**31 - 1

_FORMS = (
    'a list of values in id order (the graph takes our ids), {"ids": {value: id}, "missing": id, "unknown": id}, or '
    '{"edges": [...], "ids": [...], "missing": id}'
)


@dataclass(frozen=True, eq=False)
class Carried:
    """One field: what our encoder is made of, and their ids by ours.

    `values` is what `Encoder` takes for the field, None where it is hashed. `ids` [size of the field's table] gives
    their id for our 0 (missing), 1 (unknown), 2, ...; None where the graph takes our ids as they are.
    """

    values: list[Any] | None
    ids: NDArray[np.int64] | None = None
    table_rows: int | None = None
    """Rows the graph's embedding table must have, where the library says."""


def read_vocabularies(
    folder: Path | None, schema: FeatureSchema, fills: Mapping[str, str] | None = None
) -> dict[str, Carried]:
    """Every field of the schema. `fills` names what FuxiCTR's `fill_na` put in a missing value's place, by field.

    Raises `PackError` naming the file and the field for what is absent, cut short, or does not fit the schema.
    """
    from training.pack import fuxictr

    fills = fills or {}
    for name in fills:
        if name not in schema.by_name:
            raise PackError(f"--fill-na {name}: the schema has no such field.{closest(name, list(schema.by_name))}")
    if folder is not None and not folder.is_dir():
        what = "is a file; name the folder it lies in" if folder.exists() else "no such folder"
        raise PackError(f"{folder}: {what}. Expected a folder of <field>.json files, or FuxiCTR's data folder")
    if folder is not None and fuxictr.is_left_by(folder):
        return fuxictr.read_folder(folder, schema, fills)
    if fills:
        raise PackError('--fill-na is for a folder of FuxiCTR; elsewhere the file says "missing" itself')
    return _read_folder(folder, schema)


def encoder_of(schema: FeatureSchema, carried: Mapping[str, Carried], source: Path | None) -> Encoder:
    """Our encoder of these vocabularies; `PackError` where their values do not fit the schema."""
    values = {name: part.values for name, part in carried.items() if part.values is not None}
    try:
        return Encoder(schema, values)
    except VocabularyError as error:
        raise PackError(f"{source}: {error}") from None


def read_json(path: Path) -> Any:
    """A JSON file; `PackError` where it is none, is cut short, or an object has a key twice."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            counts = Counter(key for key, _ in pairs)
            twice = next(key for key, count in counts.items() if count > 1)
            raise ValueError(f"the key {shown(twice)} stands twice")
        return found

    try:
        return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=once)
    except OSError as error:
        raise PackError(f"{path}: cannot be opened: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise PackError(f"{path}: expected a whole JSON file, got one that does not read: {error}") from None


def numbered(field: FieldSchema, ids: Mapping[str, int], *, missing: int, unknown: int, source: str) -> Carried:
    """A field whose tokens (canonical or not) have these ids. Values stand in the order of their ids."""
    by_value: dict[str, int] = {}
    for token, id_ in sorted(ids.items(), key=lambda item: (item[1], item[0])):
        value = _canonical(field, token, source)
        if value in by_value:
            raise PackError(
                f"{source}: field {field.name!r}: two tokens are the same {field.type} {shown(value)}, so a request "
                "could not tell them apart; say type: string in the schema, if they were trained as text"
            )
        by_value[value] = id_
    return Carried(list(by_value), np.array([missing, unknown, *by_value.values()], dtype=np.int64))


def checked_id(id_: object, what: str, source: str) -> int:
    """A whole number from 0 to 2^31 - 1."""
    if type(id_) is not int or not 0 <= id_ <= LARGEST_ID:
        raise PackError(f"{source}: {what}: expected a whole number from 0 to {LARGEST_ID}, got {shown(id_)}")
    return id_


def _canonical(field: FieldSchema, token: str, source: str) -> str:
    try:
        value = read_text(field.type, token)
    except WrongTypeError as error:
        raise PackError(
            f"{source}: field {field.name!r}: the schema says type {field.type}, and the token {shown(token)} is "
            f"{error.got}; expected tokens of that type. Say the type they were trained as"
        ) from None
    if value is None:
        raise PackError(f'{source}: field {field.name!r}: "" is missing and can have no id of its own; say "missing"')
    return canonical(value)


def _read_folder(folder: Path | None, schema: FeatureSchema) -> dict[str, Carried]:
    carried = {}
    for field in schema.fields:
        is_hashed = isinstance(field.encoding, HashEncoding)
        file = None if folder is None else folder / f"{field.name}.json"
        if file is None or not file.exists():
            if not is_hashed:
                place = "no --vocabularies" if folder is None else f"no file {file}"
                raise PackError(
                    f"field {field.name!r}: expected its vocabulary, got {place}. Give --vocabularies a folder with "
                    f"{field.name}.json in it: {_FORMS}; or FuxiCTR's data folder"
                )
            carried[field.name] = Carried(None)
        elif is_hashed:
            raise PackError(f"{file}: field {field.name!r} is hashed, so it has no vocabulary; say method: vocabulary")
        else:
            carried[field.name] = _read_file(field, file)
    for file in sorted(folder.glob("*.json")) if folder is not None else ():
        if file.stem not in schema.by_name:
            near = closest(file.stem, list(schema.by_name))
            raise PackError(f"{file}: is of no field of the schema.{near} Rename it, or take it out of the folder")
    return carried


def _read_file(field: FieldSchema, file: Path) -> Carried:
    found, source = read_json(file), str(file)
    if isinstance(found, list):
        return Carried(found)
    keys = set(found) if isinstance(found, dict) else set()
    if keys == {"ids", "missing", "unknown"} and isinstance(found["ids"], dict):
        if field.kind == "numeric" and field.encoding.method != "criteo_x4":
            raise PackError(f"{file}: field {field.name!r} is numeric: expected edges, got values")
        ids = {token: checked_id(id_, f"ids[{shown(token)}]", source) for token, id_ in found["ids"].items()}
        missing, unknown = (checked_id(found[key], key, source) for key in ("missing", "unknown"))
        return numbered(field, ids, missing=missing, unknown=unknown, source=source)
    if keys == {"edges", "ids", "missing"} and isinstance(found["edges"], list) and isinstance(found["ids"], list):
        if field.kind != "numeric" or field.encoding.method == "criteo_x4":
            raise PackError(f"{file}: field {field.name!r} is {field.kind}: expected values, got edges")
        if len(found["ids"]) != len(found["edges"]) + 1:
            raise PackError(
                f"{file}: expected an id for each of {len(found['edges']) + 1} ranges, got {len(found['ids'])}"
            )
        missing = checked_id(found["missing"], "missing", source)
        ranges = [checked_id(id_, f"ids[{place}]", source) for place, id_ in enumerate(found["ids"])]
        # Our id 1, unknown, is never given to a number: it stands for missing, should a graph be asked for it.
        return Carried(found["edges"], np.array([missing, missing, *ranges], dtype=np.int64))
    raise PackError(f"{file}: expected {_FORMS}; got {_seen(found)}")


def _seen(found: object) -> str:
    if isinstance(found, dict):
        return f"an object with {', '.join(map(repr, list(found)[:4]))}" + (", …" if len(found) > 4 else "")
    return f"a {type(found).__name__}"
