"""What a recipe chose other than the default, for a reader who wants to know what is special about a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, TypeAdapter

from training.report.values import find, pointer

Tree = dict[str, Any]

_NO_CHOICE = frozenset({"description", "schema_file", "zoo", "students"})
"""What a recipe may leave out and yet says nothing of the method."""


def unusual(recipe: Mapping[str, Any]) -> list[Tree]:
    """`setting`, `value` and `usual` of each choice of the method that is not the default, in the recipe's order."""
    found = []
    for at, usual in _defaults():
        value = find(recipe, at)
        parent = find(recipe, at.rpartition("/")[0])
        is_said = isinstance(parent, Mapping) and at.rpartition("/")[2] in parent
        if is_said and value != usual:
            found.append({"setting": at.strip("/").replace("/", "."), "value": value, "usual": usual})
    scheme = recipe.get("scheme") or {}
    extra = {key: value for key, value in scheme.items() if key != "kind"}
    found += [{"setting": f"scheme.{key}", "value": value, "usual": None} for key, value in extra.items()]
    return found


def _defaults() -> Iterator[tuple[str, Any]]:
    """(pointer, default) of each such choice, read off the recipe's own models."""
    # Late, for torch stands behind it: who only draws a page again needs none.
    from training.distillation.distill import DistillOptions
    from training.fit.loop import FitOptions
    from training.recipe import Recipe

    yield "/split/train_share", 1.0
    for name, field in Recipe.model_fields.items():
        if field.is_required() or name in _NO_CHOICE:
            continue
        default = field.get_default(call_default_factory=True)
        if isinstance(default, BaseModel):
            yield from ((pointer(name, key), value) for key, value in default.model_dump(mode="json").items())
        else:
            yield pointer(name), _as_json(default)
    for name, field in DistillOptions.model_fields.items():
        if name not in FitOptions.model_fields and not field.is_required():
            yield pointer("student", "fit", name), _as_json(field.get_default(call_default_factory=True))


def _as_json(value: Any) -> Any:
    """As a recipe that went through JSON has it: a tuple is a list."""
    return TypeAdapter(Any).dump_python(value, mode="json")
