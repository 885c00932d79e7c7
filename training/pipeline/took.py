"""How long each step took, kept in its folder as took.json: what training cost, also where a run found it all done.

It is no part of what a step makes, so no key depends on it. A folder without one is of before, or its disk was full,
and is as good. A fit that went on from a checkpoint has the seconds of its last sitting alone; the first step of a
process has those of loading and compiling what it needs too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.pipeline.progress import Display
from training.pipeline.stages import Step
from training.whole import write_whole

if TYPE_CHECKING:
    from training.pipeline.plan import Plan, SeedSteps

FILE = "took.json"


class KeepingDisplay(Display):
    """A display that also writes down how long each step took, into its folder under `runs`."""

    def __init__(self, runs: Path) -> None:
        super().__init__()
        self.runs = runs

    def finished(self, step: Step, seconds: float) -> None:
        keep(step.folder(self.runs), seconds)
        super().finished(step, seconds)


def keep(folder: Path, seconds: float) -> None:
    """Beside what the step made; a disk that has no room for it costs the figure and nothing else."""
    try:
        write_whole(folder / FILE, json.dumps({"seconds": round(seconds, 3)}) + "\n")
    except OSError:
        return


def seconds_of(folder: Path) -> float | None:
    """What was kept; None where nothing was."""
    try:
        return float(json.loads((folder / FILE).read_text(encoding="utf-8"))["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def training_seconds(laid_out: Plan, runs: Path) -> list[dict[str, Any]]:
    """A seed each: `student`, `control`, `teachers` by name, `ensemble` (its teachers and gate), each with its refit.
    Of networks that were trained at once `together`, and null for each by itself, as where nothing was kept."""
    return [{"seed": seed.seed, **_of(seed, runs)} for seed in laid_out.seeds]


def _of(seed: SeedSteps, runs: Path) -> Mapping[str, Any]:
    def took(steps: Iterable[Step]) -> float | None:
        found = [seconds_of(step.folder(runs)) for step in {step.key: step for step in steps}.values()]
        known = [seconds for seconds in found if seconds is not None]
        return sum(known) if known and len(known) == len(found) else None

    def alone(name: str) -> list[Step]:
        return [seed.fits[name].first, seed.fits[name].again]

    def at_once(steps: Iterable[Step]) -> list[Step]:
        """The steps that trained several networks, of which these were taken."""
        return [step.needs["source"] for step in steps if "source" in step.needs]

    def own(name: str) -> float | None:
        return None if at_once(alone(name)) else took(alone(name))

    teachers = {name: own(f"teachers.{name}") for name in seed.teachers}
    shared = at_once(alone("student"))
    fitted = [step for name in seed.teachers for step in alone(f"teachers.{name}")]
    return {
        "student": own("student"),
        "control": own("control"),
        "ensemble": None if shared else took([*fitted, *alone("ensemble")]),
        "together": took(shared) if shared else None,
        "teachers": teachers,
    }
