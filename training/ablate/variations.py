"""Other recipes made of one: its networks, as tuned there, in other roles.

A network's settings come from the recipe's `zoo`, else from a teacher of that network, else they are made up from the
control's: then the table says that nobody tuned them. A student of another network has that network's sizes and
learning rate and the recipe's way of distilling; its control is the same network on clicks, with a student's budget
of epochs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from training.loop import FitOptions
from training.recipe import Distilled, Recipe, Teacher
from training.shares import By
from training.zoo import options_of

FIELD_AWARE = ("ffm", "onn")
"""Networks whose tables have a vector for each other field, so that `dim` is small."""
BUDGET = ("max_epochs", "patience")


class Variations:
    """What a recipe turns into. Every method gives overrides, as `--set` takes them."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.untuned: set[str] = set()
        """Networks whose settings were made up."""

    def network(self, name: str) -> dict[str, Any]:
        """The settings of a network as a teacher."""
        tuned = [self.recipe.zoo[name]] if name in self.recipe.zoo else []
        tuned += [teacher for teacher in self.recipe.teachers.values() if teacher.network == name]
        if tuned:
            return _plain(tuned[0]) | {"copies": None}
        self.untuned.add(name)
        of_control = self.recipe.control.options
        options = {option: value for option, value in of_control.items() if option in options_of(name)}
        if name in FIELD_AWARE and "dim" in options:
            options["dim"] = max(2, options["dim"] // 4)
        fit = {key: value for key, value in _plain(self.recipe.control)["fit"].items() if key not in BUDGET}
        return {"network": name, "options": options, "fit": fit}

    def zoo(self, names: Sequence[str]) -> list[str]:
        """Each network by itself, on clicks."""
        return [_set("zoo", {name: self.network(name) for name in names})]

    def teachers(self, names: Sequence[str]) -> list[str]:
        """An ensemble of different networks."""
        return [_set("teachers", {name: self.network(name) for name in names})]

    def copies(self, name: str, by: By, count: int) -> list[str]:
        """An ensemble of one network."""
        return [_set("teachers", {name: self.network(name) | {"copies": {"by": by, "count": count}}})]

    def self_taught(self) -> list[str]:
        """One teacher: the student's own network as tuned on clicks."""
        control = _plain(self.recipe.control)
        return [_set("teachers", {self.recipe.control.network: control})]

    def student(self, name: str) -> list[str]:
        """A student of that network, and its control."""
        own = self.recipe.student
        if name == own.network:
            return []
        tuned = self.network(name)
        learned = {key: value for key, value in tuned["fit"].items() if key in FitOptions.model_fields}
        budget = {key: getattr(own.fit, key) for key in BUDGET}
        shape = {"network": name, "options": tuned["options"]}
        return [
            _set("student", shape | {"fit": _plain(own)["fit"] | learned | budget}),
            _set("control", shape | {"fit": learned | budget}),
        ]


def _plain(setting: Teacher | Distilled | Any) -> dict[str, Any]:
    """A part of a recipe as YAML would say it."""
    values: dict[str, Any] = setting.model_dump(mode="json", exclude_none=True)
    return values


def _set(key: str, value: Any) -> str:
    return f"{key}={json.dumps(value)}"
