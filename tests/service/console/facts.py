"""Facts and a report as the page is given them, without a service."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from service.answers.report import Question, report
from service.answers.rows import rows_of
from service.console.durations import Looks
from service.console.evidence import Evidence
from service.console.gather import (
    ArmFacts,
    Counted,
    ExperimentFacts,
    Facts,
    ModelFacts,
    TeacherFacts,
    VersionFacts,
    count,
)
from service.console.routes import load_assets
from service.console.view import render
from tests.service.answers.test_report import EXPERIMENT, traffic

NAME = EXPERIMENT.name
EXAMPLE = '{"context": {"device": null}, "candidates": [{}]}'
_, ASSETS = load_assets()


def arm(name: str, place: int = 0, **more: Any) -> ArmFacts:
    """An arm with a half of the buckets."""
    made = ArmFacts(name, name, 2, True, 0.5, 5000 * place, 5000 * (place + 1), False, None, name == "ensemble")
    return replace(made, **more)


def experiment(name: str = NAME, arms: Sequence[ArmFacts] | None = None, **more: Any) -> ExperimentFacts:
    """An experiment of two arms."""
    made = (arm("ensemble"), arm("student", 1)) if arms is None else tuple(arms)
    return replace(ExperimentFacts(name, 1, 1.0, name == NAME, None, None, made), **more)


def facts(*experiments: ExperimentFacts, **more: Any) -> Facts:
    """A service that is well."""
    running = experiments or (experiment(),)
    teachers = (TeacherFacts("dcnv2", 0.6), TeacherFacts("lr", 0.4))
    models = tuple(
        ModelFacts(
            name,
            2,
            (VersionFacts(1, "not loaded"), VersionFacts(2, None, "2026-11-21 14:10", teachers, name == "ensemble")),
        )
        for name in ("ensemble", "student")
    )
    made = Facts(
        1.79e9,
        2,
        experiments={one.name: one for one in running},
        default=running[0].name,
        models=models,
        has_admin=True,
        has_log=True,
        has_experiment_file=True,
    )
    return replace(made, **more)


@functools.cache
def tree() -> dict[str, Any]:
    """A report of some traffic, as it is written."""
    return report(Question(EXPERIMENT, None, 1000.0), rows_of(traffic(300, lift=0.3), []))


def page(
    given: Facts | None = None, evidence: Evidence | None = None, *, chosen: str | None = None, example: str = EXAMPLE
) -> str:
    """The page of the default experiment."""
    given = given or facts()
    return render(given, chosen or given.default, evidence or Evidence(tree()), example, ASSETS)


def counted(*samples: tuple[str, dict[str, str], float]) -> Counted:
    """What is made of these samples of metrics."""
    return count(samples, Looks(), 0.0)
