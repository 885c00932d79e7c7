"""What a ramp asks the exposure log: the report of `python -m service results`, and the sample since a step began."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from service.answers.command import ReadFolders
from service.answers.report import Question, report
from service.answers.rows import Rows
from service.errors import AnswersError
from service.experiments.file import Experiment, ExperimentFile
from service.ramp.decide import Evidence


def gather(
    file: ExperimentFile,
    experiment: Experiment,
    log: Sequence[Path],
    read_folders: ReadFolders,
    *,
    since: float,
    lifted: float,
    now: float,
    replay: bool,
) -> Evidence:
    """The evidence at `now`. Raises `AnswersError` where the log cannot be read.

    Rails and split are of the whole phase, as they were stated, or of what came since somebody `lifted` a halt; the
    sample is what came since the step began.
    """
    rows = read_folders(log, experiment.name, experiment.analysis.attribution_window_seconds, ())
    question = Question(experiment, file.assigner(experiment) if replay else None, now)
    arms = [arm.name for arm in experiment.arms if arm.weight]
    whole = _report(question, rows.take(rows["time"] >= lifted))
    recent = _report(question, rows.take(rows["time"] >= max(since, lifted)))
    if whole is None:
        return Evidence(dict.fromkeys(arms, 0))
    return Evidence(
        {
            arm["arm"]: 0 if recent is None else _impressions(recent, arm["arm"])
            for arm in whole["arms"]
            if arm["arm"] in arms
        },
        [{"arm": arm["arm"], **rail} for arm in whole["arms"] for rail in arm["guard_rails"]],
        whole["split"]["reasons"],
    )


def _report(question: Question, rows: Rows) -> dict[str, Any] | None:
    try:
        return report(question, rows)
    except AnswersError:  # no row at all
        return None


def _impressions(tree: dict[str, Any], name: str) -> int:
    return next(int(arm["impressions"]) for arm in tree["arms"] if arm["arm"] == name)
