"""`python -m training run`: one recipe from end to end, with a person watching."""

import fcntl
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from models.versions import Repository
from training.errors import TrainingError
from training.pipeline import plan
from training.progress import Display
from training.recipe import load_recipe
from training.stages import Step, run_steps
from training.steps import read_json


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
    loaded = load_recipe(recipe, overrides)
    repository = repository or (out / "repository" if out else Path("models/repository"))
    out = out or Path("runs") / loaded.recipe.name
    out.mkdir(parents=True, exist_ok=True)
    with only_one(out), Display() as display:
        steps = plan(loaded, seeds, runs=out, repository=repository, data=data)
        forget_export_unless_it_stands(steps.export, out, repository)
        run_steps([steps.report], out, workers=workers, watcher=display)
        for name in ("report.html", "report.json"):
            shutil.copyfile(steps.report.folder(out) / name, out / name)
    return out / "report.json"


def forget_export_unless_it_stands(export: Step, out: Path, repository: Path) -> None:
    """An export's result lies outside its folder: do it again when its bundles are gone, or newer ones stand there."""
    if not export.is_done(out):
        return
    shelf = Repository(repository)
    for name, version in read_json(export.folder(out) / "exported.json")["versions"].items():
        if name not in shelf.names() or shelf.versions(name)[-1] != version:
            shutil.rmtree(export.folder(out))
            return


@contextmanager
def only_one(out: Path) -> Iterator[None]:
    """Two runs in one folder would clear away what the other has half done."""
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise TrainingError(f"{out}: another run is working in this folder; wait for it, or give --out") from None
        yield
