"""`python -m training sweep`: the same grid, the same budget and the same judge for the student and for its control.

A distilled student beats an untuned control easily and means nothing by it. So both sides try every pair of learning
rate and embedding init; the number of epochs is found by each side's own early stopping; and both are judged by AUC
on validation part A, averaged over seeds of training. Test rows are not looked at.

Trials are the very steps of a run whose recipe says the same, so they are cached, and a run with the values chosen
here finds its first fits done.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from training.encoded_log import EncodedLog, Part
from training.loop import load_fit
from training.metrics import auc, logloss, sigmoid
from training.pipeline import plan
from training.recipe import load_recipe
from training.stages import Step, Watcher, run_steps

LEARNING_RATES = (0.001, 0.002, 0.004, 0.008)
INIT_SDS = (0.1, 0.3, 0.5)
SIDES = ("student", "control")


def sweep(
    recipe: str,
    *,
    overrides: Sequence[str],
    seeds: Sequence[int],
    out: Path,
    data: Path | None,
    workers: int,
    watcher: Watcher,
    learning_rates: Sequence[float] = LEARNING_RATES,
    init_sds: Sequence[float] = INIT_SDS,
) -> dict[str, Any]:
    """Run every trial and write what was found to `out`/sweep.json; returns the same.

    `best` names for each side the pair of highest mean AUC; `trials` has a row a side, pair and seed.
    """
    out.mkdir(parents=True, exist_ok=True)
    steps: list[tuple[dict[str, Any], Step]] = []
    prepared: Step | None = None
    for learning_rate, init_sd in itertools.product(learning_rates, init_sds):
        changes = [
            f"{side}.{key}={value}"
            for side in SIDES
            for key, value in (("fit.learning_rate", learning_rate), ("options.init_sd", init_sd))
        ]
        laid_out = plan(load_recipe(recipe, [*overrides, *changes]), list(seeds), runs=out, data=data)
        prepared = laid_out.prepare
        for of_seed in laid_out.seeds:
            for side, refit in (("student", of_seed.student), ("control", of_seed.control)):
                trial = {"side": side, "learning_rate": learning_rate, "init_sd": init_sd, "seed": of_seed.seed}
                steps.append((trial, refit.needs["first"]))
    if prepared is None:
        raise ValueError("expected at least one learning rate and one init_sd, got none")
    run_steps([step for _, step in steps], out, workers=workers, watcher=watcher)

    log = EncodedLog.open(prepared.folder(out) / "log")
    rows = log.rows([Part.VALID_A])
    trials = [trial | _judged(step.folder(out), log, rows) for trial, step in steps]
    found = {
        "recipe": load_recipe(recipe, overrides).recipe.model_dump(mode="json"),
        "judged_by": "AUC on validation part A, mean over seeds",
        "grid": {"learning_rate": list(learning_rates), "init_sd": list(init_sds), "seeds": list(seeds)},
        "best": {side: best_of(trials, side) for side in SIDES},
        "trials": trials,
    }
    (out / "sweep.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def best_of(trials: Sequence[dict[str, Any]], side: str) -> dict[str, Any]:
    """The pair of highest mean AUC over seeds among a side's trials; the first of equals."""
    pairs: dict[tuple[float, float], list[dict[str, Any]]] = {}
    for trial in trials:
        if trial["side"] == side:
            pairs.setdefault((trial["learning_rate"], trial["init_sd"]), []).append(trial)
    means = [
        {"learning_rate": pair[0], "init_sd": pair[1]}
        | {name: float(np.mean([trial[name] for trial in same])) for name in ("valid_auc", "valid_logloss", "epochs")}
        for pair, same in pairs.items()
    ]
    return max(means, key=lambda mean: mean["valid_auc"])


def _judged(folder: Path, log: EncodedLog, rows: Any) -> dict[str, float]:
    logit = np.load(folder / "logit.npy")[rows]
    return {
        "epochs": load_fit(folder)[1],
        "valid_auc": auc(log.label[rows], logit),
        "valid_logloss": logloss(log.label[rows], sigmoid(logit)),
    }
