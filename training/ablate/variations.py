"""Other recipes made of one: its networks, as tuned there, in other roles.

A network's settings come from the recipe's `zoo`, else from a teacher of that network, else they are made up from the
control's: then the table says that nobody tuned them. A student of another network distils as the recipe's own does, by
the settings that the recipe's `students` have for it; where they do not name it, by those found for its network on
clicks, and the table says that nobody tuned it. Its control is the same network on clicks, with as many epochs.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from typing import Any

from training.distillation.shares import By
from training.fit.loop import FitOptions
from training.recipe import TUNED_OPTIONS, Distilled, Recipe, Teacher, sizes
from training.zoo import default_of, options_of

FIELD_AWARE = ("ffm", "onn")
"""Networks whose tables have a vector for each other field, so that `dim` is small."""
SMALL: dict[str, Any] = {"dim": 8, "hidden": [64, 32]}
"""What every network has to be told, where the recipe has nobody to take it from."""
BUDGET = ("max_epochs", "patience")


class Variations:
    """What a recipe turns into. Every method gives overrides, as `--set` takes them."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.untuned: set[str] = set()
        """Networks whose settings were made up."""
        self.untuned_students: set[str] = set()
        """Networks that distil by settings that were found on clicks."""

    def network(self, name: str) -> dict[str, Any]:
        """The settings of a network as a teacher."""
        tuned = self.recipe.on_clicks(name)
        if tuned is not None:
            return _plain(tuned) | {"copies": None}
        self.untuned.add(name)
        options = self._made_up(name)
        if name in FIELD_AWARE and "dim" in options:
            options["dim"] = max(2, options["dim"] // 4)
        fit = {key: value for key, value in _plain(self.recipe.control)["fit"].items() if key not in BUDGET}
        return {"network": name, "options": options, "fit": fit}

    def _made_up(self, name: str) -> dict[str, Any]:
        """The control's options, as far as the network has them; what it cannot do without from whoever has it."""
        known = options_of(name)
        options = {option: value for option, value in self.recipe.control.options.items() if option in known}
        others = [spec.options for spec in (*self.recipe.teachers.values(), *self.recipe.zoo.values())]
        for option in sorted(known - set(options)):
            if default_of(name, option) is inspect.Parameter.empty:
                options[option] = next((other[option] for other in others if option in other), SMALL[option])
        return options

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
        clicks = self.network(name)
        learned = {key: value for key, value in clicks["fit"].items() if key in FitOptions.model_fields}
        on_clicks: dict[str, Any] = clicks["options"]
        if name in self.recipe.students:
            taught = self.recipe.students[name]
            options, fit = dict(taught.options), _plain(taught)["fit"]
            tuned = {option: value for option, value in on_clicks.items() if option in TUNED_OPTIONS}
            on_clicks = sizes(taught) | tuned
        else:
            self.untuned_students.add(name)
            options, fit = on_clicks, learned | {key: getattr(own.fit, key) for key in BUDGET}
        budget = {key: fit[key] for key in BUDGET}
        return [
            _set("student", {"network": name, "options": options, "fit": _plain(own)["fit"] | fit}),
            _set("control", {"network": name, "options": on_clicks, "fit": learned | budget}),
        ]


def _plain(setting: Teacher | Distilled | Any) -> dict[str, Any]:
    """A part of a recipe as YAML would say it."""
    values: dict[str, Any] = setting.model_dump(mode="json", exclude_none=True)
    return values


def _set(key: str, value: Any) -> str:
    return f"{key}={json.dumps(value)}"
