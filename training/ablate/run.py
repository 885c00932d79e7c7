"""Fill tables: every row is a recipe, every cell a step of the pipeline, done once for all rows that share it.

A table that was interrupted goes on where it stood, as a run does, and finds whatever `run` or `sweep` have done in the
same folder. Each is written as soon as it is full: tables/<table>.json.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from training.ablate.paired import UNTUNED, paired, share_of_gap, verdict
from training.ablate.tables import Claim, LogFacts, Row, Table, table
from training.ablate.variations import Variations
from training.data.encoded_log import EncodedLog
from training.errors import DivergedError, RecipeError
from training.export.cost import conditions
from training.pipeline.plan import measured, plan
from training.pipeline.stages import Step, Watcher, in_order, run_steps
from training.pipeline.steps import read_json
from training.recipe import load_recipe
from training.whole import write_whole

FORMAT_VERSION = 1


def ablate(
    recipe: str,
    names: Sequence[str],
    *,
    overrides: Sequence[str],
    seeds: Sequence[int],
    out: Path,
    data: Path | None,
    workers: int,
    watcher: Watcher,
    expects: Callable[[Iterable[Step]], None] = lambda steps: None,
) -> list[Path]:
    """Fill these tables of a recipe; returns where each was written.

    A row of which a seed runs away is left out, and its table says why.

    All are laid out before anything is trained, so that what cannot be is known at once; `expects` is told every step
    of all tables that is still to be done. Then table by table, so that the first is there long before the last; what
    two have in common is done for the first of them.
    """
    loaded = load_recipe(recipe, overrides)
    if loaded.recipe.warm_start is not None:  # some networks of a table would start from it, others from scratch
        overrides = [*overrides, "warm_start=null"]
        loaded = load_recipe(recipe, overrides)
    prepare = plan(loaded, list(seeds[:1]), runs=out, data=data).prepare
    run_steps([prepare], out, workers=workers, watcher=watcher)
    log = LogFacts.of(EncodedLog.open(prepare.folder(out) / "log"))
    laid_out = []
    for name in dict.fromkeys(names):
        vary = Variations(loaded.recipe)
        wanted = table(name, vary, log)
        steps, left_out = planned(wanted, lambda row: _steps_of(row, recipe, overrides, seeds, out, data))
        untuned = {"untuned": sorted(vary.untuned), "untuned_students": sorted(vary.untuned_students)}
        laid_out.append((wanted.without(left_out), steps, left_out, untuned))
    every_step = in_order(step for _, steps, _, _ in laid_out for row in steps.values() for step in row)
    expects(step for step in every_step if not step.is_done(out))
    paths = []
    for wanted, steps, left_out, untuned in laid_out:
        asked = [step for row in steps.values() for step in row]
        failed = run_steps(asked, out, workers=workers, watcher=watcher, tolerated=(DivergedError,))
        ran_away = {
            cells: failed[step.key] for cells, row in steps.items() for step in reversed(row) if step.key in failed
        }
        if len(ran_away) == len(steps):
            raise next(iter(ran_away.values()))
        wanted, left_out = wanted.without(ran_away), left_out | {row: str(error) for row, error in ran_away.items()}
        figures = {
            cells: [read_json(step.folder(out) / "figures.json") for step in row]
            for cells, row in steps.items()
            if cells not in ran_away
        }
        facts = {
            "format_version": FORMAT_VERSION,
            "table": wanted.name,
            "asked": recipe,
            "recipe": loaded.recipe.model_dump(mode="json"),
            "fingerprint": read_json(prepare.folder(out) / "report.json")["fingerprint"],
            "overrides": list(overrides),
            "seeds": list(seeds),
            "created": datetime.now(UTC).replace(microsecond=0).isoformat(),
            "conditions": {key: value for key, value in conditions().items() if key in ("cpu", "python", "system")},
            **untuned,
            "left_out": [{"cells": list(cells), "reason": reason} for cells, reason in left_out.items()],
            **filled(wanted, figures, **untuned),
        }
        paths.append(write_table(out, facts))
    return paths


def write_table(out: Path, facts: Mapping[str, Any]) -> Path:
    """tables/<table>.json, whole or not at all: what stood there stays where the disk is full."""
    path = out / "tables" / f"{facts['table']}.json"
    path.parent.mkdir(exist_ok=True)
    return write_whole(path, json.dumps(facts, indent=1, allow_nan=False) + "\n")


def planned(
    wanted: Table, steps_of: Callable[[Row], list[Step]]
) -> tuple[dict[tuple[str, ...], list[Step]], dict[tuple[str, ...], str]]:
    """Each row's steps; and why a row has none: the recipe's own choices may rule it out, as a student without a hidden
    layer rules out hints. `RecipeError` where they rule out every row."""
    steps: dict[tuple[str, ...], list[Step]] = {}
    left_out: dict[tuple[str, ...], str] = {}
    refused: RecipeError | None = None
    for row in wanted.rows:
        try:
            steps[row.cells] = steps_of(row)
        except RecipeError as error:
            refused = error
            _, _, problems = str(error).partition("\n")
            left_out[row.cells] = "; ".join(line.strip() for line in (problems or str(error)).splitlines())
    if refused is not None and not steps:
        raise refused
    return steps, left_out


def _steps_of(
    row: Row, recipe: str, overrides: Sequence[str], seeds: Sequence[int], out: Path, data: Path | None
) -> list[Step]:
    """What measures the row, a step a seed."""
    laid_out = plan(load_recipe(recipe, [*overrides, *row.settings]), list(seeds), runs=out, data=data)
    fits = [(of_seed.seed, of_seed.fits[row.model]) for of_seed in laid_out.seeds]
    return [measured(fit, laid_out.prepare, f"{row.model.rpartition('.')[2]}-s{seed}") for seed, fit in fits]


def filled(
    wanted: Table,
    figures: Mapping[tuple[str, ...], Sequence[Mapping[str, Any]]],
    untuned: Sequence[str] = (),
    untuned_students: Sequence[str] = (),
) -> dict[str, Any]:
    """A table with what was measured of each row: a list of one entry a seed, as `steps.measure_fit` gives them.

    Compared is AUC, under the truth where it is known. A pair with one of the networks `untuned` in it, or with a
    student of `untuned_students`, is not judged: the other side may have won by its tuning.
    """
    first = next(iter(figures.values()))[0]
    metric = "xauc" if first["test"].get("xauc") is not None else "auc"

    def values(cells: tuple[str, ...]) -> list[float]:
        return [entry["test"][metric] for entry in figures[cells]]

    made_up = {row.cells for row in wanted.rows if row.uses(untuned) or row.is_student(untuned_students)}
    rows = []
    for row in wanted.rows:
        entry: dict[str, Any] = {
            "cells": list(row.cells),
            "settings": list(row.settings),
            "model": row.model,
            "seeds": list(figures[row.cells]),
        }
        if row.against is not None:
            entry["against"] = list(row.against)
            entry["difference"] = paired(values(row.cells), values(row.against))
        if row.against is not None and row.ensemble is not None:
            entry["ensemble"] = list(row.ensemble)
            entry["less_ensemble"] = paired(values(row.cells), values(row.ensemble))
            gap = paired(values(row.ensemble), values(row.against))
            entry["share_of_ensembles_gain"] = share_of_gap(entry["difference"], gap)
        rows.append(entry)
    return {
        "title": wanted.title,
        "heads": list(wanted.heads),
        "notes": list(wanted.notes),
        "metric": metric,
        "rows": rows,
        "claims": [_judged(claim, values, made_up) for claim in wanted.claims],
    }


def _judged(claim: Claim, values: Any, untuned: Collection[tuple[str, ...]]) -> dict[str, Any]:
    pairs = []
    for better, worse in claim.pairs:
        difference = paired(values(better), values(worse))
        found = UNTUNED if better in untuned or worse in untuned else verdict(difference)
        pairs.append({"better": list(better), "worse": list(worse), "difference": difference, "verdict": found})
    return {"text": claim.text, "pairs": pairs}
