"""Which steps a run has, and that the key of each knows all the code behind it."""

from __future__ import annotations

import ast
import inspect
import sys
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import pytest

from training.pipeline.plan import _READING, plan
from training.pipeline.stages import Step, in_order, reached
from training.recipe import load_recipe

ROOT = Path(__file__).parents[2]


CHOICES = ([], ["scheme=cotrain"], ["gate.form=hints", "teachers.lr=null", "teachers.fm=null"])


def planned(runs: Path) -> dict[str, Step]:
    """One step of each kind: the functions of runs that differ in their steps, by stage and name of the function."""
    laid_out = [plan(load_recipe("synthetic", choices), [1], runs=runs, data=None) for choices in CHOICES]
    steps = in_order([*(seed.measure for plan_ in laid_out for seed in plan_.seeds), *(p.export for p in laid_out)])
    return {f"{step.stage}.{step.run.__name__}": step for step in steps}


STEPS = planned(Path("nowhere"))


def used_by(function: FunctionType, seen: set[str] | None = None) -> set[str]:
    """Files of ours from which a function takes what it names, through the other functions of its own module."""
    seen = set() if seen is None else seen
    module = sys.modules[function.__module__]
    tree = ast.parse(inspect.getsource(function))
    files: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            files |= file_of(sys.modules.get(node.module) or __import__(node.module, fromlist=["x"]))
        elif isinstance(node, ast.Name) and node.id in vars(module) and node.id not in seen:
            seen.add(node.id)
            named: Any = vars(module)[node.id]
            home = sys.modules.get(getattr(named, "__module__", "") or "")
            if home is module and isinstance(named, FunctionType):
                files |= used_by(named, seen)
            elif home is not None and home is not module:
                files |= file_of(home)
    return files


def file_of(module: ModuleType) -> set[str]:
    ours = module.__name__.split(".")[0] in ("training", "models")
    return {str(Path(str(module.__file__)).relative_to(ROOT))} if ours else set()


@pytest.mark.parametrize("name", sorted(STEPS))
def test_the_key_of_a_step_knows_every_file_that_the_step_uses(name: str):
    """A cached number never outlives the code that made it."""
    step = STEPS[name]
    assert isinstance(step.run, FunctionType)
    used = used_by(step.run)

    assert used, name
    # stages.py is named for the type of a report alone.
    assert used - reached(step.code) - {"training/pipeline/stages.py"} == set()


def test_reading_does_not_depend_on_what_is_made_of_its_rows():
    """Hours of reading are not done again because a recipe can say one thing more of a student."""
    assert not reached(_READING) & {"training/recipe.py", "training/distillation/distill.py", "training/fit/loop.py"}


def test_what_a_file_imports_is_reached_through_it():
    found = reached(("training/distillation/distill.py", "package:torch"))

    assert {
        "training/distillation/distill.py",
        "training/fit/loop.py",
        "training/zoo/dnn.py",
        "training/fit/metrics.py",
    } <= found
    assert "package:torch" in found
    assert not any(path.startswith("training/report") for path in found)
