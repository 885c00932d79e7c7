"""The plan: where a request goes, who stands in, and what the evidence will need to know of it."""

import asyncio
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.app import Service
from service.errors import Code, Refusal
from service.scoring.plan import Chosen, Plan
from tests.models.tiny_bundle import write_tiny_bundle
from tests.service.bundles import write_distilled
from tests.service.running import ask, make_app, metric, request_of, started
from tests.service.test_watch import arm, experiments_file


def plan_of(repository: Path, experiments: Path) -> Plan:
    """The plan of an application that has started."""

    async def start() -> Plan:
        async with started(make_app(repository, experiments)) as app:
            assert app.plan is not None
            return app.plan

    return asyncio.run(start())


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ensemble, a hard-label control, and a student with teachers in its manifest."""
    root = tmp_path_factory.mktemp("models")
    write_tiny_bundle(root, "ensemble", bias=1.0, teachers=3)
    write_tiny_bundle(root, "control", bias=-1.0)
    write_distilled(root, "student")
    return root


@pytest.fixture
def plan(models: Path, tmp_path: Path) -> Callable[..., Plan]:
    def make(*arms: dict[str, Any], **more: Any) -> Plan:
        return plan_of(models, experiments_file(tmp_path / "e.json", *arms, **more))

    return make


def unit_in(plan: Plan, wanted: str) -> str:
    """A unit that the assignment gives to an arm."""
    units = (str(number) for number in range(1000))
    return next(unit for unit in units if plan.choose(None, None, unit).assigned == wanted)


def model_of(served: Any) -> str | None:
    return None if served is None else str(served.scorer.bundle.name)


def test_an_enrolled_unit_is_answered_by_its_arm(plan: Callable[..., Plan]):
    """Assigned, served, enrolled, not forced."""
    running = plan(arm("ensemble", 0.5), arm("student", 0.5))

    chosen = running.choose("e", None, unit_in(running, "student"))

    assert (chosen.assigned, model_of(chosen.served), chosen.enrolled, chosen.forced) == (
        "student",
        "student",
        True,
        False,
    )


def test_a_unit_outside_is_answered_by_control_and_not_enrolled(plan: Callable[..., Plan]):
    """So that analysis can leave it out."""
    running = plan(arm("ensemble", 0.5), arm("student", 0.5), coverage=0)

    chosen = running.choose(None, None, "anybody")

    assert (chosen.assigned, model_of(chosen.served), chosen.enrolled) == ("ensemble", "ensemble", False)


def test_a_forced_arm_is_marked_as_forced(plan: Callable[..., Plan]):
    """And as not enrolled, even where the unit would have been."""
    running = plan(arm("ensemble", 0.5), arm("student", 0.5))

    chosen = running.choose(None, "student", unit_in(running, "student"))

    assert (chosen.assigned, chosen.enrolled, chosen.forced) == ("student", False, True)


def test_a_halted_arm_keeps_its_units_and_control_answers_them(plan: Callable[..., Plan]):
    """Assigned is what the analysis goes by; what was served is another thing."""
    running = plan(arm("ensemble", 0.5), arm("student", 0.5), halted=["student"])

    chosen = running.choose(None, None, unit_in(running, "student"))

    assert (chosen.assigned, chosen.served.arm, model_of(chosen.served)) == ("student", "ensemble", "ensemble")


def fallback_of(running: Plan, arm: str) -> str | None:
    chosen: Chosen = running.choose(None, arm, "u")
    return None if chosen.fallback is None else model_of(chosen.fallback.deadline)


def test_an_ensemble_falls_back_to_the_student(plan: Callable[..., Plan]):
    """To the distilled one, though another light model stands before it; the others fall back to nobody."""
    running = plan(arm("ensemble", 0.5), arm("control", 0.25), arm("student", 0.25))

    assert [fallback_of(running, name) for name in ("ensemble", "control", "student")] == ["student", None, None]


def test_without_a_student_any_lighter_model_will_do(plan: Callable[..., Plan]):
    """And without one, nobody."""
    assert fallback_of(plan(arm("ensemble", 0.5), arm("control", 0.5)), "ensemble") == "control"
    assert fallback_of(plan(arm("ensemble", 1.0)), "ensemble") is None


def test_an_arm_may_name_its_fallback(plan: Callable[..., Plan]):
    """Any arm, any model."""
    control = {"fallback": "control"}
    running = plan(arm("ensemble", 0.5, **control), arm("control", 0.25), arm("student", 0.25, **control))

    assert [fallback_of(running, name) for name in ("ensemble", "student")] == ["control", "control"]


def test_a_halted_arm_stands_in_for_nobody(plan: Callable[..., Plan]):
    """It was halted for harm; a deadline makes it no better."""
    arms = (arm("ensemble", 0.5), arm("control", 0.25), arm("student", 0.25))

    assert fallback_of(plan(*arms, halted=["student"]), "ensemble") == "control"
    named = (arm("ensemble", 0.5, fallback="student"), *arms[1:])
    assert fallback_of(plan(*named, halted=["student"]), "ensemble") is None


def test_unknown_names_are_refused_by_kind(plan: Callable[..., Plan]):
    """An experiment, or an arm of it."""
    running = plan(arm("student", 1.0))

    for experiment, forced, code in (("x", None, Code.UNKNOWN_EXPERIMENT), ("e", "x", Code.UNKNOWN_ARM)):
        with pytest.raises(Refusal) as caught:
            running.choose(experiment, forced, "u")
        assert caught.value.code == code


def test_an_arm_that_nobody_asked_costs_a_scrape_no_histogram(models: Path, tmp_path: Path):
    """The series of an arm, an outcome each, begin with the first request that counts in them."""
    arms = (arm("ensemble", 0.5), arm("student", 0.5))

    def series(app: Service) -> set[tuple[str, str]]:
        text = app.metrics.exposition().decode()
        found = re.findall(r'retort_request_duration_seconds_count\{.*arm="(\w+)".*outcome="(\w+)"', text)
        return set(found)

    async def play() -> list[set[tuple[str, str]]]:
        async with started(make_app(models, experiments_file(tmp_path / "e.json", *arms))) as app:
            seen = [series(app)]
            for forced in ("student", "ensemble"):
                reply = await ask(app, "/predict", json.dumps(request_of(1, arm=forced)).encode())
                assert reply is not None
                assert reply.status == 200
                seen.append(series(app))
            return seen

    assert asyncio.run(play()) == [set(), {("student", "ok")}, {("student", "ok"), ("ensemble", "ok")}]


def test_the_fields_of_a_model_are_counted_once_however_many_arms_have_it(models: Path, tmp_path: Path):
    arms = (arm("ensemble", 0.5), arm("student", 0.5))

    async def play() -> float:
        async with started(make_app(models, experiments_file(tmp_path / "e.json", *arms))) as app:
            body = json.dumps({**request_of(1, arm="student"), "context": {}}).encode()
            assert await ask(app, "/predict", body) is not None
            return metric(app.metrics.exposition().decode(), "retort_missing_values_total", field="device")

    assert asyncio.run(play()) == 1.0
