"""How long steps take: what is kept of it in a run's folder, and what a person is told of the whole."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from training.pipeline.plan import Plan, plan
from training.pipeline.progress import Display, Whole
from training.pipeline.stages import Step, in_order
from training.pipeline.took import FILE, KeepingDisplay, keep, seconds_of, training_seconds
from training.recipe import load_recipe


def nothing(folder: Path, report: Any) -> None: ...


def step(name: str, stage: str = "teachers") -> Step:
    return Step(stage, name, nothing)


def laid_out(runs: Path, *overrides: str) -> Plan:
    return plan(load_recipe("synthetic", overrides), [1], runs=runs, data=None)


def kept(laid: Plan, runs: Path, seconds: float = 2.0) -> None:
    """Every step done, each in so many seconds."""
    for one in in_order([laid.export]):
        one.folder(runs).mkdir(parents=True)
        keep(one.folder(runs), seconds)


def test_seconds_are_kept_in_the_folder_of_a_step_that_is_finished(tmp_path: Path):
    done = step("fm")
    done.folder(tmp_path).mkdir(parents=True)

    KeepingDisplay(tmp_path).finished(done, 12.3456)

    assert json.loads((done.folder(tmp_path) / FILE).read_text()) == {"seconds": 12.346}
    assert seconds_of(done.folder(tmp_path)) == 12.346


@pytest.mark.parametrize("content", [None, "{", "[]", '{"minutes": 1}'])
def test_a_folder_without_the_figure_is_as_good(tmp_path: Path, content: str | None):
    if content is not None:
        (tmp_path / FILE).write_text(content)

    assert seconds_of(tmp_path) is None
    keep(tmp_path / "no such folder", 1.0)  # as on a full disk: no error


def test_training_is_counted_with_its_refit_and_an_ensemble_with_its_teachers(tmp_path: Path):
    laid = laid_out(tmp_path)
    kept(laid, tmp_path)

    (found,) = training_seconds(laid, tmp_path)

    teachers = len(laid.seeds[0].teachers)
    assert (found["student"], found["control"], found["together"]) == (4.0, 4.0, None)
    assert set(found["teachers"].values()) == {4.0}
    assert found["ensemble"] == 4.0 * teachers + 4.0  # and the gate, fitted and carried over


def test_networks_that_were_trained_at_once_have_their_time_together(tmp_path: Path):
    laid = laid_out(tmp_path, "scheme=cotrain")
    kept(laid, tmp_path)

    (found,) = training_seconds(laid, tmp_path)

    assert (found["student"], found["ensemble"], found["together"]) == (None, None, 4.0)
    assert set(found["teachers"].values()) == {None}
    assert found["control"] == 4.0


def test_a_sum_of_which_a_part_is_not_known_is_not_known(tmp_path: Path):
    laid = laid_out(tmp_path)
    kept(laid, tmp_path)
    teacher = next(iter(laid.seeds[0].teachers))
    (laid.seeds[0].teachers[teacher].again.folder(tmp_path) / FILE).unlink()

    (found,) = training_seconds(laid, tmp_path)

    assert (found["teachers"][teacher], found["ensemble"]) == (None, None)
    assert found["student"] == 4.0


def test_the_rest_is_told_by_what_steps_of_its_kind_took_and_how_many_ran_at_once():
    """Four fits of 600 s on two cores after 1200 s; left are two fits and a measure, as long as the mean of all."""
    now = [0.0]
    fits, measure = [step(f"t{i}") for i in range(6)], step("m", "measure")
    whole = Whole([*fits, measure], clock=lambda: now[0])
    assert (whole.said(), whole.seconds_left()) == ("0 of 7 steps", None)

    now[0] = 1200.0
    for fit in fits[:4]:
        whole.finished(fit, 600.0)
    whole.finished(step("another run's"), 5.0)

    assert whole.seconds_left() == pytest.approx(3 * 600 / 2)
    assert whole.said() == "4 of 7 steps, about 15 min left"


def test_hours_are_said_as_hours_and_an_end_as_an_end():
    now = [0.0]
    whole = Whole([step("a"), step("b")], clock=lambda: now[0])

    now[0] = 3900.0
    whole.finished(step("a"), 3900.0)
    assert whole.said() == "1 of 2 steps, about 1 h 5 min left"
    whole.finished(step("b"), 3900.0)
    assert whole.said() == "2 of 2 steps"


def test_each_line_says_how_far_the_whole_is():
    """Where nobody watches, in a log: of steps that were not there yet."""
    said = io.StringIO()
    display = Display(Console(file=said))
    display.expects([step("a"), step("b"), step("c")])

    display.started(step("a"))
    display.finished(step("a"), 1.0)

    assert "1 of 3 steps" in said.getvalue()


def test_a_single_step_is_its_own_whole():
    said = io.StringIO()
    display = Display(Console(file=said))
    display.expects([step("a")])

    display.finished(step("a"), 1.0)

    assert "of 1 steps" not in said.getvalue()
