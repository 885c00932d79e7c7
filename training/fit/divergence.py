"""Training that runs away is stopped at once, with what to try instead.

Two signs: a figure that is no number any more, and a loss that over the last steps is a multiple of what it began with.
The second is not waited out: most networks that jump so far end with every unit dead, at an AUC of one half, and those
that come back are the worse for it (docs/decisions.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from training.errors import DivergedError

LAST_STEPS = 20
"""A loss is judged by its exponential mean over about so many steps."""
TIMES_ITS_START = 3.0
"""A mean above this, times its first value (or ln 2, what knowing nothing costs), has run away."""
HIGH_LEARNING_RATE = 0.1
"""Adam moves every weight by about its rate: above this a tenth is still too much, and the default scale is told."""


@dataclass(frozen=True)
class Setting:
    """One network's settings that make training run away."""

    network: str
    """Its name in the zoo."""
    place: str
    """Where it stands in the recipe, such as teachers.dcn; empty outside a recipe."""
    learning_rate: float
    init_sd: float | None = None
    """As the recipe says; None where it leaves the default."""
    learning_rate_key: str = "fit.learning_rate"


class Divergence:
    """Looks at the figures of every step. `setting_of(figure)` says whose they are."""

    def __init__(self, setting_of: Callable[[str], Setting]) -> None:
        self._setting_of = setting_of
        self._first: dict[str, float] = {}
        self._mean: dict[str, float] = {}

    def after_step(self, figures: Mapping[str, float], epoch: int, step: int) -> DivergedError | None:
        """The error to raise, or None. `figures` are a batch's means; `*loss` and `*loss_<n>` are losses."""
        wrong = [name for name, value in figures.items() if not math.isfinite(value)]
        if wrong:
            # A teacher's figure before that of those who learn from it.
            name = min(wrong, key=lambda figure: not figure.startswith("teacher_loss"))
            what = f"the loss became {figures[name]}"
            return self._refusal(name, what, epoch, step)
        # A squared distance grows without harm where what is to be met does: the lengths that hints are regressed to,
        # and the logits of teachers that still learn. `train_loss` has it within.
        grows = "train_hint" in figures or ("train_mse" in figures and "ensemble_loss" in figures)
        unwatched = "train_loss" if grows else None
        watched = {name: value for name, value in figures.items() if "loss" in name and name != unwatched}
        for name, value in watched.items():
            first = self._first.setdefault(name, value)
            self._mean[name] = mean = self._mean.get(name, value) + (value - self._mean.get(name, value)) / LAST_STEPS
            if mean > TIMES_ITS_START * max(first, math.log(2)):
                what = f"the loss ran away, from {first:.3g} at first to {mean:.3g} over the last {LAST_STEPS} steps,"
                return self._refusal(name, what, epoch, step)
        return None

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"first": self._first, "mean": self._mean}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._first, self._mean = state["first"], state["mean"]

    def _refusal(self, figure: str, what: str, epoch: int, step: int) -> DivergedError:
        setting = self._setting_of(figure)
        key, value, better = setting.learning_rate_key, setting.learning_rate, _lower(setting.learning_rate)
        if step == 1 and setting.init_sd is not None:  # before any weight has moved
            key, value, better = "options.init_sd", setting.init_sd, 0.01
        where = f" ({setting.place})" if setting.place else ""
        advice = f"try --set {setting.place}.{key}={better:g}" if setting.place else f"try {better:g}"
        return DivergedError(
            f"network {setting.network!r}{where}: {what} in epoch {epoch}, step {step}; "
            f"lower {key.rpartition('.')[2]}: it is {value:g}, {advice}"
        )


def _lower(learning_rate: float) -> float:
    """A tenth, and never more than what is high for Adam."""
    return min(learning_rate / 10, HIGH_LEARNING_RATE / 10)
