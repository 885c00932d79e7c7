"""`python -m training run`: one recipe from end to end, with a person watching."""

import fcntl
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from training.errors import TrainingError
from training.export.bundles import publish
from training.pipeline.plan import plan, version_of
from training.pipeline.stages import in_order, run_steps
from training.pipeline.steps import read_json
from training.pipeline.took import KeepingDisplay, training_seconds
from training.recipe import Recipe, load_recipe
from training.report import build_report, found_before, tables_before, write_report


def run(
    recipe: str,
    *,
    overrides: Sequence[str],
    seeds: list[int],
    out: Path | None,
    repository: Path | None,
    data: Path | None,
    workers: int,
) -> Path:
    """Train, export and report; returns the path of report.json.

    Bundles go to `repository` (models/repository, or OUT/repository where `out` is given), everything else to `out`
    (runs/<recipe name>).
    """
    started = time.monotonic()
    loaded = load_recipe(recipe, overrides)
    repository = repository or (out / "repository" if out else Path("models/repository"))
    with at_work(loaded.recipe, out) as (out, display):
        steps = plan(loaded, seeds, runs=out, data=data)
        measures = [seed.measure for seed in steps.seeds]
        display.expects(step for step in in_order([*measures, steps.export]) if not step.is_done(out))
        run_steps([*measures, *steps.export.needs.values()], out, workers=workers, watcher=display)
        # Latencies are measured in this one, so nothing runs beside it.
        run_steps([steps.export], out, workers=1, watcher=display)
        prepared = steps.prepare.folder(out)
        published = publish(steps.export.folder(out), prepared, repository)
        report = build_report(
            [read_json(seed.measure.folder(out) / "measure.json") for seed in steps.seeds],
            recipe=loaded.recipe.model_dump(mode="json"),
            prepared=read_json(prepared / "report.json"),
            costs=read_json(steps.export.folder(out) / "cost.json"),
            published=[{"name": model.name, "version": model.version} for model in published],
            world=read_json(steps.log.folder(out) / "world.json") if steps.log else None,
            sweep=found_before(out / "sweep.json", loaded.recipe.model_dump(mode="json")),
            search=found_before(out / "search.json", loaded.recipe.model_dump(mode="json")),
            tables=tables_before(
                out, loaded.recipe.model_dump(mode="json"), read_json(prepared / "report.json")["fingerprint"]
            ),
            seconds=time.monotonic() - started,
            training=training_seconds(steps, out),
            overrides=overrides,
        )
        path = write_report(out, report)
        version_of(steps, out).write()
    for model in published:
        print(f"{'wrote' if model.is_new else 'stands'} {model.path}", file=sys.stderr)
    return path


@contextmanager
def at_work(recipe: Recipe, out: Path | None) -> Iterator[tuple[Path, KeepingDisplay]]:
    """The folder of a recipe's runs, `out` or runs/<recipe name>, for this program alone; and who shows progress."""
    out = out or Path("runs") / recipe.name
    out.mkdir(parents=True, exist_ok=True)
    with only_one(out), KeepingDisplay(out) as display:
        yield out, display


@contextmanager
def only_one(out: Path) -> Iterator[None]:
    """Two runs in one folder would clear away what the other has half done."""
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise TrainingError(f"{out}: another run is working in this folder; wait for it, or give --out") from None
        yield
