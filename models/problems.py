"""What pydantic finds wrong in a document, in the words of whoever wrote it: the key, what was expected, what came.

Schemas, recipes and manifests are written by people, and pydantic speaks of its own insides to them: a member of a
union in the middle of a path, "Value error, ", "Extra inputs are not permitted". Here a path is as the document has it,
and an unknown key is answered with the known ones.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeAlias, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

Path: TypeAlias = tuple[str | int, ...]

_LONGEST = 60
"""Characters of a value that a message shows."""

_EXPECTED: dict[str, str] = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "decimal_type": "a number",
    "decimal_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "none_required": "null",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "dict_type": "a mapping",
    "tuple_type": "a list",
    "list_type": "a list",
    "literal_error": "{expected}",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "string_pattern_mismatch": "text that matches {pattern}",
    "string_too_short": "text of at least {min_length} characters",
    "string_too_long": "text of at most {max_length} characters",
    "too_short": "at least {min_length} of them",
    "too_long": "at most {max_length} of them",
    "union_tag_invalid": "one of {expected_tags}",
}
"""By the type of a pydantic error, what was expected; names in braces are the error's own facts."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a document."""

    path: Path
    """Keys and places in lists, as the document has them; empty where it is the whole."""
    message: str
    """What was expected, what came, what may have been meant."""

    def __str__(self) -> str:
        return f"{dotted(self.path)}: {self.message}" if self.path else self.message


def problems_of(error: ValidationError, model: type[BaseModel]) -> list[Problem]:
    """Every problem of a document that was to be a `model`, in its order; one a place."""
    found: dict[Path, list[tuple[str, str]]] = {}
    for fault in error.errors(include_url=False):
        path, holder = _place(model, fault["loc"])
        context: dict[str, Any] = {name: _plain(value) for name, value in fault.get("ctx", {}).items()}
        if fault["type"] == "too_short" and len(fault["input"]) >= context["min_length"]:
            continue  # too short only because its entries are wrong, which is said of each
        if fault["type"] == "value_error":
            said = str(context["error"]), ""
        elif fault["type"] == "missing":
            said = "is missing", ""
        elif fault["type"] == "extra_forbidden":
            said = _unknown_key(str(path[-1]), holder), ""
        elif fault["type"] == "union_tag_not_found":
            path, said = (*path, context["discriminator"].strip("'")), ("is missing", "")
        else:
            expected = _EXPECTED.get(fault["type"])
            words = fault["msg"].removeprefix("Input should be ") if expected is None else expected.format(**context)
            came = fault["input"]
            if fault["type"] == "union_tag_invalid":
                path, came = (*path, context["discriminator"].strip("'")), context["tag"]
            said = words, shown(came)
        if said not in found.setdefault(path, []):
            found[path].append(said)
    # Of a value that may be of several types, pydantic says once a type that it is none.
    return [Problem(path, _joined(said)) for path, said in found.items()]


def dotted(path: Sequence[str | int]) -> str:
    """fields[3].encoding.buckets"""
    written = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return written.removeprefix(".")


def shown(value: object) -> str:
    """A value of a document as a message shows it: one line, in the document's own words, no longer than a line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple | set):
        return "a list" if value else "an empty list"
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _plain(value: object) -> object:
    """1 for 1.0, as a person would write a bound."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _joined(said: Sequence[tuple[str, str]]) -> str:
    sentences = [words for words, came in said if not came]
    expected = " or ".join(words for words, came in said if came)
    if expected:
        sentences.append(f"expected {expected}, got {next(came for _, came in said if came)}")
    return "; ".join(sentences)


def _unknown_key(key: str, holder: Any) -> str:
    if not _is_model(holder):
        return "unknown key"
    known = list(holder.model_fields)
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    meant = f" Did you mean {near[0]}?" if near else ""
    return f"unknown key.{meant} Known here: {', '.join(known)}"


def _place(model: type[BaseModel], loc: Sequence[str | int]) -> tuple[Path, Any]:
    """(the path as the document has it, the type that holds its last key).

    pydantic's own path also names the member of a union that it tried; the types along the way tell those apart.
    """
    path: list[str | int] = []
    holder: Any = None
    kind: Any = model
    for step in loc:
        inner, is_key = _descend(kind, step)
        if is_key:
            path.append(step)
            holder = _members(kind)[0]
        kind = inner
    return tuple(path), holder


def _descend(kind: Any, step: str | int) -> tuple[Any, bool]:
    """(the type that a step of pydantic's path leads to, whether the step is a key of the document)."""
    members = _members(kind)
    if len(members) > 1:
        return next((member for member in members if _is_model(member) and step in _tags(member)), None), False
    (only,) = members
    if _is_model(only):
        field = only.model_fields.get(str(step))
        return (None if field is None else field.annotation), True
    origin, arguments = get_origin(only), get_args(only)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return arguments[1], True
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return arguments[0], True
    return None, only is None


def _members(kind: Any) -> list[Any]:
    """The types of a union, without None; the type itself where it is no union."""
    while get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if get_origin(kind) in (Union, UnionType):
        inner = [member for member in get_args(kind) if member is not NoneType]
        return [found for member in inner for found in _members(member)]
    return [kind]


def _tags(model: type[BaseModel]) -> set[Any]:
    """Words by which a union tells this member: its literal fields."""
    annotations = [field.annotation for field in model.model_fields.values()]
    return {word for annotation in annotations if get_origin(annotation) is Literal for word in get_args(annotation)}


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
