"""`python -m training sweep`: one grid, one budget and one judge for teachers, student and control alike.

A distilled student beats an untuned control easily and means nothing by it, and an ensemble of untuned teachers sells
distillation short. So every side tries every pair of learning rate and embedding init; the number of epochs is found
by each side's own early stopping; and all are judged by AUC less logloss on validation part A, averaged over seeds
of training: a bid needs the order and the probability, and a high learning rate buys one with the other.
Teachers and control are tuned first, the student then on the ensemble of the teachers found. Test rows are not
looked at.

`zoo` and `students`, what only comparisons train, are sides of their own, tuned when asked for: the one with teachers
and control, the other, each network that the recipe's `students` name, as the recipe's student is.

Trials are the very steps of a run whose recipe says the same, so they are cached, and a run with the values chosen
here finds its first fits done.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from training.ablate.variations import Variations
from training.data.encoded_log import EncodedLog, Part
from training.errors import DivergedError, RecipeError
from training.fit.loop import load_fit
from training.fit.metrics import auc, logloss, sigmoid
from training.pipeline.plan import plan
from training.pipeline.stages import Step, Watcher, run_steps
from training.recipe import Recipe, load_recipe
from training.whole import write_whole

LEARNING_RATES = (0.002, 0.004, 0.008, 0.016)
INIT_SDS = (0.03, 0.1, 0.3, 0.5)
SIDES = ("teachers", "control", "student")
_NAMES: dict[str, Callable[[Recipe], list[str]]] = {
    "teachers": lambda recipe: [f"teachers.{name}" for name in recipe.teachers],
    "zoo": lambda recipe: [f"zoo.{name}" for name in recipe.zoo],
    "students": lambda recipe: [f"students.{name}" for name in recipe.students],
}
OF_COMPARISONS = ("zoo", "students")
"""Sides that say nothing of a run, each by the key of a recipe that has its networks."""


def sweep(
    recipe: str,
    *,
    overrides: Sequence[str],
    seeds: Sequence[int],
    out: Path,
    data: Path | None,
    workers: int,
    watcher: Watcher,
    sides: Sequence[str] = SIDES,
    learning_rates: Sequence[float] = LEARNING_RATES,
    init_sds: Sequence[float] = INIT_SDS,
) -> dict[str, Any]:
    """Run every trial and write what was found to `found_at(out, sides)`; returns the same.

    `sides` are of `SIDES`; what is left out stays as the recipe has it. `best` names for each side (`teachers.dnn`,
    `control`, `student`) the pair of highest score, `edges` says which of them lie at an end of the grid; `trials` has
    a row a side, pair and seed, with `diverged` in place of figures where a loss ran away; `settings` are the `--set`
    values that make a run of the best.
    """
    unknown = sorted(set(sides) - {*SIDES, *_NAMES})
    if unknown or not sides or not learning_rates or not init_sds:
        known = [*SIDES, *OF_COMPARISONS]
        raise RecipeError(f"sweep: expected sides among {known} and a grid that is not empty, got {list(sides)}")
    asked = load_recipe(recipe, overrides).recipe
    for side in OF_COMPARISONS:
        if side in sides and not getattr(asked, side):
            raise RecipeError(
                f"sweep: side {side}: expected networks under the recipe's {side}, got none; docs/training.md"
            )
    if "students" in sides and asked.student.network in asked.students:
        raise RecipeError(
            f"sweep: side students: {asked.student.network} is the recipe's own student, which the side student tunes; "
            f"say --set students.{asked.student.network}=null"
        )
    out.mkdir(parents=True, exist_ok=True)
    settings = list(overrides)
    correction = asked.negatives.correction
    trials: list[dict[str, Any]] = []
    best: dict[str, dict[str, Any]] = {}
    # A student learns from the teachers, so what is best for it depends on what was best for them.
    for round_of_sides in (("teachers", "control", "zoo"), ("student", "students")):
        names = _names(load_recipe(recipe, overrides).recipe, [side for side in round_of_sides if side in sides])
        planned = _planned(recipe, names, settings, seeds, out, data, learning_rates, init_sds)
        fits = [step for _, step, _ in planned]
        failed = run_steps(fits, out, workers=workers, watcher=watcher, tolerated=(DivergedError,))
        for trial, step, prepared in planned:
            if step.key in failed:
                trials.append(trial | {"diverged": str(failed[step.key])})
            else:
                trials.append(trial | judged(step.folder(out), prepared.folder(out), correction))
        best |= {name: best_of(trials, name) for name in names}
        settings += [
            f"{name}.{key}={best[name][value]}"
            for name in names
            for key, value in (("fit.learning_rate", "learning_rate"), ("options.init_sd", "init_sd"))
        ]

    found = {
        "recipe": asked.model_dump(mode="json"),
        "judged_by": "AUC less logloss on validation part A, mean over seeds",
        "grid": {"learning_rate": list(learning_rates), "init_sd": list(init_sds), "seeds": list(seeds)},
        "best": best,
        "edges": edges_of(best, {"learning_rate": learning_rates, "init_sd": init_sds}),
        "settings": settings,
        "trials": trials,
    }
    write_whole(found_at(out, sides), json.dumps(found, indent=1) + "\n")
    return found


def found_at(out: Path, sides: Sequence[str]) -> Path:
    """Where a sweep is written: one of comparisons' networks alone says nothing of the run and stands beside the
    other."""
    of_comparisons = [side for side in OF_COMPARISONS if side in sides] if set(sides) <= set(OF_COMPARISONS) else []
    return out / f"{'_'.join(['sweep', *of_comparisons])}.json"


def best_of(trials: Sequence[dict[str, Any]], side: str) -> dict[str, Any]:
    """The pair of highest AUC less logloss among a side's trials, both means over seeds; the first of equals. A pair
    with which a seed diverged is none."""
    pairs: dict[tuple[float, float], list[dict[str, Any]]] = {}
    for trial in trials:
        if trial["side"] == side:
            pairs.setdefault((trial["learning_rate"], trial["init_sd"]), []).append(trial)
    means: list[dict[str, Any]] = [
        {"learning_rate": pair[0], "init_sd": pair[1]}
        | {name: float(np.mean([trial[name] for trial in same])) for name in ("valid_auc", "valid_logloss", "epochs")}
        | {"valid_auc_sd": float(np.std([trial["valid_auc"] for trial in same], ddof=1)) if len(same) > 1 else None}
        for pair, same in pairs.items()
        if not any("diverged" in trial for trial in same)
    ]
    if not means:
        raise DivergedError(f"sweep: {side}: every pair of the grid diverged; add lower learning rates")
    return max(means, key=lambda mean: mean["valid_auc"] - mean["valid_logloss"])


def edges_of(best: Mapping[str, Mapping[str, Any]], grid: Mapping[str, Sequence[float]]) -> list[str]:
    """What was found best at the end of its grid, in words: beyond may be better, and a side that could not go there
    was tuned less than the others."""
    found = []
    for side, pair in best.items():
        for name, values in grid.items():
            for end, most in (("smallest", min(values)), ("largest", max(values))):
                if pair[name] == most and len(set(values)) > 1:
                    found.append(f"{side}: the best {name}, {most:g}, is the {end} tried; add one beyond it")
    return found


def _names(recipe: Recipe, sides: Sequence[str]) -> list[str]:
    """Where in a recipe the sides' networks stand: `teachers` is each of them."""
    return [name for side in sides for name in (_NAMES[side](recipe) if side in _NAMES else [side])]


def _planned(
    recipe: str,
    names: Sequence[str],
    settings: Sequence[str],
    seeds: Sequence[int],
    out: Path,
    data: Path | None,
    learning_rates: Sequence[float],
    init_sds: Sequence[float],
) -> list[tuple[dict[str, Any], Step, Step]]:
    """A row a trial: what it is, the step that fits it, the step that prepared its log."""
    trials = []
    for learning_rate, init_sd in itertools.product(learning_rates, init_sds):
        changes = [f"{name}.fit.learning_rate={learning_rate}" for name in names]
        changes += [f"{name}.options.init_sd={init_sd}" for name in names]
        loaded = load_recipe(recipe, [*settings, *changes])
        laid_out = plan(loaded, list(seeds), runs=out, data=data)
        for name in names:
            side, _, network = name.partition(".")
            place, of_side = name, laid_out
            if side == "students":
                replaced = load_recipe(recipe, [*settings, *changes, *Variations(loaded.recipe).student(network)])
                place, of_side = "student", plan(replaced, list(seeds), runs=out, data=data)
            for of_seed in of_side.seeds:
                trial = {"side": name, "learning_rate": learning_rate, "init_sd": init_sd, "seed": of_seed.seed}
                trials.append((trial, of_seed.fit_of(place).first, of_side.prepare))
    return trials


def judged(folder: Path, prepared: Path, correction: float = 0.0) -> dict[str, float]:
    """Epochs, `valid_auc` and `valid_logloss` of the fit in a folder, on validation part A, whose rows are all there.

    `correction` turns its logits into those of all rows (`Negatives.correction`)."""
    log = EncodedLog.open(prepared / "log")
    rows = log.rows([Part.VALID_A])
    logit = np.load(folder / "logit.npy")[rows]
    return {
        "epochs": load_fit(folder)[1],
        "valid_auc": auc(log.label[rows], logit),
        "valid_logloss": logloss(log.label[rows], sigmoid(logit + correction)),
    }
