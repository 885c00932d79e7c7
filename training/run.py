"""`python -m training run`: one recipe from end to end, with a person watching."""

import fcntl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from training.errors import TrainingError
from training.pipeline import plan
from training.progress import Display
from training.recipe import load_recipe
from training.stages import run_steps


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
    """Train, export and report; returns the path of report.json."""
    loaded = load_recipe(recipe, overrides)
    repository = repository or (out / "repository" if out else Path("models/repository"))
    out = out or Path("runs") / loaded.recipe.name
    out.mkdir(parents=True, exist_ok=True)
    with only_one(out), Display() as display:
        steps = plan(loaded, seeds, runs=out, data=data)
        run_steps(steps.measured, out, workers=workers, watcher=display)
    return out / "report.json"


@contextmanager
def only_one(out: Path) -> Iterator[None]:
    """Two runs in one folder would clear away what the other has half done."""
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise TrainingError(f"{out}: another run is working in this folder; wait for it, or give --out") from None
        yield
