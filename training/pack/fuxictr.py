"""What FuxiCTR's feature processing leaves (feature_map.json and feature_vocab.json), read as it reads them itself.

Written against FuxiCTR 2.3.10, `fuxictr/preprocess/tokenizer.py` and `feature_processor.py`:

    categorical   vocab.get(value, __OOV__); before that a missing value has become `fill_na`: "" for str, 0 for int,
                  0.0 for float. So a missing string is out of vocabulary, and a missing integer is the value 0
    sequence      the text is split; an element is __PAD__ where it is `fill_na`, else vocab.get(element, __OOV__)

__PAD__ is 0, tokens count from 1, __OOV__ is behind them; the table in the graph has a row for each. The files say
neither `fill_na` nor the column's dtype: a schema says the type, and --fill-na the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.schema import FeatureSchema, FieldSchema
from models.values import WrongTypeError, canonical, read_text
from training.data.faults import closest, shown
from training.errors import PackError
from training.pack.vocabularies import Carried, checked_id, numbered, read_json

MAP_FILE = "feature_map.json"
VOCABULARY_FILE = "feature_vocab.json"
_PAD, _OOV = "__PAD__", "__OOV__"

_FILLS = {"string": "", "integer": "0", "float": "0", "boolean": ""}
_REFUSED = {
    "numeric": "its graph takes the number itself, and the service feeds ids. Train it as a category of ranges (a "
    "`preprocess` that buckets it, as FuxiCTR's Criteo processor does, and type: categorical)",
    "embedding": "its graph takes a vector, and the service feeds ids. Look the vector up in the graph, by a category",
    "meta": "it is no input of the model. Take it out of the schema",
}
_METHODS = {
    "categorical": ("vocabulary", "criteo_x4"),
    "sequence": ("vocabulary",),
}


def is_left_by(folder: Path) -> bool:
    """Whether FuxiCTR's processing left the folder."""
    return (folder / MAP_FILE).exists() or (folder / VOCABULARY_FILE).exists()


def read_folder(folder: Path, schema: FeatureSchema, fills: Mapping[str, str]) -> dict[str, Carried]:
    """Every field of the schema, as this folder numbers its values. Raises `PackError`."""
    features = _features(folder / MAP_FILE)
    vocabularies = read_json(folder / VOCABULARY_FILE)
    if not isinstance(vocabularies, dict):
        raise PackError(f"{folder / VOCABULARY_FILE}: expected an object with a vocabulary a feature")
    carried = {}
    for field in schema.fields:
        feature = features.get(field.name)
        if feature is None:
            raise PackError(
                f"field {field.name!r}: {folder / MAP_FILE} has no feature of that name."
                f"{closest(field.name, list(features))} A field is called as the feature; `column` is its log's column"
            )
        carried[field.name] = _read_feature(folder, field, feature, vocabularies.get(field.name), fills)
    return carried


def _features(path: Path) -> dict[str, Any]:
    found = read_json(path)
    try:
        features = {name: dict(facts) for part in found["features"] for name, facts in part.items()}
    except (TypeError, KeyError, AttributeError, ValueError):
        raise PackError(f"{path}: expected FuxiCTR's feature map, an object with a list `features`") from None
    return features


def _read_feature(
    folder: Path, field: FieldSchema, feature: Mapping[str, Any], vocabulary: Any, fills: Mapping[str, str]
) -> Carried:
    kind, place = feature.get("type"), f"{folder / MAP_FILE}: feature {field.name!r}"
    if kind in _REFUSED:
        raise PackError(f"{place} is of type {kind}: {_REFUSED[kind]}")
    if kind not in _METHODS:
        raise PackError(f"{place}: expected type categorical or sequence, got {kind!r}")
    if "category_processor" in feature:
        raise PackError(
            f"{place} has category_processor {feature['category_processor']!r}, which leaves no vocabulary; bucket "
            "the values before training, and train them as plain categories"
        )
    if (kind == "sequence") != field.is_sequence:
        raise PackError(f"{place} is of type {kind}, and the schema says kind: {field.kind}; mend the schema")
    if field.encoding.method not in _METHODS[kind]:
        raise PackError(
            f"{place} has a vocabulary, and the schema says method: {field.encoding.method}; "
            f"expected method: {' or '.join(_METHODS[kind])}"
        )
    if field.is_sequence and feature.get("max_len") != field.max_length:
        raise PackError(
            f"{place} has max_len {feature.get('max_len')}, and the schema says max_length: {field.max_length}; "
            "say the same"
        )
    source = str(folder / VOCABULARY_FILE)
    if not isinstance(vocabulary, dict) or not {_PAD, _OOV} <= set(vocabulary):
        raise PackError(f"{source}: feature {field.name!r}: expected tokens with ids, {_PAD} and {_OOV} among them")
    for token, id_ in vocabulary.items():
        checked_id(id_, f"{field.name}[{shown(token)}]", source)
    rows = max(vocabulary.values()) + 1
    if rows != feature.get("vocab_size"):
        raise PackError(
            f"{source}: feature {field.name!r}: expected ids below {feature.get('vocab_size')}, the vocab_size of "
            f"{MAP_FILE}, up to the last of them, got {rows} of them; the two files are not of one run, or one was cut"
        )
    pad, unknown = vocabulary[_PAD], vocabulary[_OOV]
    tokens = {token: id_ for token, id_ in vocabulary.items() if token not in (_PAD, _OOV)}
    if field.is_sequence:
        missing = pad
        if fill := fills.get(field.name, ""):
            tokens[fill] = pad
        if tokens.pop("", pad) != pad:
            raise _empty(source, field)
    else:
        missing = _id_of_fill(field, tokens, fills.get(field.name, _FILLS[field.type]), unknown)
        if tokens.pop("", missing) != missing:
            raise _empty(source, field)
    if field.type == "string":
        tokens[_PAD] = pad  # who sends this very text gets id 0, as there
    if field.type == "boolean":
        tokens = {token.lower(): id_ for token, id_ in tokens.items()}
    carried = numbered(field, tokens, missing=missing, unknown=unknown, source=source)
    return Carried(carried.values, carried.ids, table_rows=rows)


def _id_of_fill(field: FieldSchema, tokens: Mapping[str, int], fill: str, unknown: int) -> int:
    """The id of what stands in a missing value's place; the value may be spelled in another way than its token."""
    if not fill:
        return unknown  # fill_na is in no vocabulary of text
    if fill in tokens:
        return tokens[fill]
    try:
        value = canonical(read_text(field.type, fill) or 0)
    except WrongTypeError as error:
        raise PackError(f"--fill-na {field.name}={fill}: the schema says type {field.type}, got {error.got}") from None
    for token, id_ in tokens.items():
        try:
            if canonical(read_text(field.type, token) or 0) == value:
                return id_
        except WrongTypeError:
            continue  # `numbered` refuses it, with the advice
    return unknown


def _empty(source: str, field: FieldSchema) -> PackError:
    return PackError(
        f'{source}: feature {field.name!r}: "" is a token of its own there and means missing in a request, whose id '
        f"differs, so it cannot be carried over. Train with fill_na: '' (the default), or without empty texts"
    )
