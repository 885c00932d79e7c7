"""`python -m service ramp`: looks at the experiments that have a ramp, and takes their next step where all is well."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from service.answers.command import ReadFolders
from service.errors import AnswersError, ConfigError, ExperimentError, StaleError
from service.experiments.file import Experiment, ExperimentFile, read_experiments
from service.experiments.state import phase_key, read_halts, read_lifts
from service.experiments.writing import change_experiment, exclusive
from service.logs import configure_logging
from service.ramp.decide import Action, Evidence, Verdict, decide
from service.ramp.evidence import gather
from service.ramp.state import Step, read_state, state_path, write_state

logger = logging.getLogger("service.ramp")

TEACHING = """
examples:
  python -m service ramp --experiments experiments.yaml --log log               until the last step is taken
  python -m service ramp --experiments experiments.yaml --log log --once        one look, for cron

An experiment has a ramp where the file says so (docs/experiments.md): treatment at 1, 5, 10, 25 and 50% of the units,
say, each for a day at least, with a minimum of impressions an arm. A step is a write of `coverage` in the file, which
every service that follows it has within a second; nobody is moved out of an arm. Where a guard-rail is crossed, the
split is broken, an arm is halted or the plan says paused, it holds. It may be killed at any time and started again:
<experiments>.ramp.json has what it did, and why.

exit codes  0 the last step is taken (--once: looked), 2 wrong option or file
"""


def make_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="python -m service ramp",
        description="Lets the coverage of experiments grow in stated steps, while their guard-rails are kept.",
        epilog=TEACHING,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--experiments", type=Path, required=True, metavar="PATH", help="the experiment file")
    parser.add_argument("--experiment", metavar="NAME", help="one of its experiments; without, all that have a ramp")
    parser.add_argument(
        "--log", type=Path, required=True, nargs="+", metavar="PATH", help="folders of the service's log"
    )
    parser.add_argument(
        "--state",
        type=Path,
        metavar="PATH",
        help="the file in which the service remembers arms that guard-rails halted [<experiments>.state.json]",
    )
    parser.add_argument("--every", type=_seconds, default=300.0, metavar="SECONDS", help="how often it looks [300]")
    parser.add_argument("--once", action="store_true", help="look once, do what is to be done, and end")
    parser.add_argument(
        "--replay",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="check each unit's arm against the published hash; not where the log holds hashed units [yes]",
    )
    return parser


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds <= 86400:
        raise argparse.ArgumentTypeError(f"expected more than 0 and at most 86400 seconds, got {text}")
    return seconds


def main(arguments: Sequence[str], read_folders: ReadFolders) -> int:
    """The command; returns its exit code. `read_folders` joins what the service has logged."""
    options = make_parser().parse_args(arguments)
    configure_logging("info", "text")
    try:
        _check(options)
        while True:
            ask = _gatherer(options, read_folders)
            verdicts = look(options.experiments, options.experiment, ask, time.time(), options.state, clock=time.time)
            if options.once or all(verdict.action is Action.DONE for verdict in verdicts.values()):
                return 0
            time.sleep(options.every)
    except ConfigError as error:
        print(f"retort: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 0


def _check(options: argparse.Namespace) -> None:
    file = read_experiments(options.experiments)
    if not _with_ramp(file, options.experiment):
        wanted = "no experiment" if options.experiment is None else f"no experiment '{options.experiment}'"
        raise ConfigError(f"{options.experiments}: {wanted} with a `ramp` stands there (docs/experiments.md)")
    for folder in options.log:
        if not folder.is_dir():
            raise ConfigError(f"--log: no folder {folder}")


Gather = Callable[[ExperimentFile, Experiment, float, float, float], Evidence]
"""(file, experiment, since when the step lasts, since when a halt is lifted, now) -> evidence."""


def _gatherer(options: argparse.Namespace, read_folders: ReadFolders) -> Gather:
    def ask(file: ExperimentFile, experiment: Experiment, since: float, lifted: float, now: float) -> Evidence:
        times = {"since": since, "lifted": lifted, "now": now}
        return gather(file, experiment, options.log, read_folders, **times, replay=options.replay)

    return ask


def look(
    path: Path,
    only: str | None,
    ask: Gather,
    now: float,
    state: Path | None = None,
    *,
    clock: Callable[[], float] | None = None,
) -> dict[str, Verdict]:
    """One look at every experiment with a ramp, or at that one: by name, what was done. What goes wrong meanwhile (a
    file that somebody broke, a log that cannot be read) is logged, and holds. `state`: the service's. `clock` says when
    a step is made, if not `now`: a look takes what reading the log takes."""
    state = path.with_name(path.name + ".state.json") if state is None else state
    try:
        file = read_experiments(path)
    except ExperimentError as error:
        logger.error("holding everything: %s", error)
        return {"": Verdict(Action.HOLD, "error", str(error))}
    verdicts = {}
    for experiment in _with_ramp(file, only):
        try:
            with exclusive(state_path(path), patience_seconds=0.0):
                halted = {*experiment.halted, *read_halts(state).get(phase_key(experiment), {})}
                lifted = read_lifts(state).get(phase_key(experiment), 0.0)

                def ask_about(since: float, experiment: Experiment = experiment, lifted: float = lifted) -> Evidence:
                    return ask(file, experiment, since, lifted, now)

                verdict = _advance(path, experiment, halted, ask_about, now, clock or (lambda: now))
        except (AnswersError, ConfigError) as error:
            verdict = Verdict(Action.HOLD, "changed" if isinstance(error, StaleError) else "error", str(error))
        _tell(experiment, verdict)
        verdicts[experiment.name] = verdict
    return verdicts


def _with_ramp(file: ExperimentFile, only: str | None) -> list[Experiment]:
    return [e for e in file.experiments if e.ramp is not None and only in (None, e.name)]


def _advance(
    path: Path,
    experiment: Experiment,
    halted: Collection[str],
    ask: Callable[[float], Evidence],
    now: float,
    clock: Callable[[], float],
) -> Verdict:
    """Decides, writes down what is intended, does it, and writes down that it is done."""
    place = state_path(path)
    state = read_state(place)
    progress = state.progress_of(experiment, now)
    progress.follow(experiment, now)
    verdict = decide(experiment, halted, progress.since, now, lambda: ask(progress.since))
    progress.holds = verdict.reason if verdict.action is Action.HOLD else ""
    if verdict.coverage is not None:
        before, after = float(experiment.coverage), float(verdict.coverage)
        step = Step(time=clock(), before=before, after=after, reason=verdict.reason, evidence=verdict.evidence)
        progress.intended = step
        write_state(place, state)
        change_experiment(
            path, experiment.name, lambda content: {**content, "coverage": after}, expected_tag=experiment.tag()
        )
        progress.steps.append(step)
        progress.coverage, progress.since, progress.intended = after, clock(), None
    write_state(place, state)
    return verdict


def _tell(experiment: Experiment, verdict: Verdict) -> None:
    name, why = experiment.name, verdict.reason
    evidence: dict[str, Any] = verdict.evidence
    told = f"; evidence: {json.dumps(evidence)}" if evidence else ""
    if verdict.action is Action.STEP:
        assert verdict.coverage is not None
        logger.info(
            "%s: coverage %s -> %s: %s%s", name, experiment.coverage, f"{float(verdict.coverage):.8g}", why, told
        )
    elif verdict.kind in ("guard_rail", "split", "error"):
        logger.warning("%s: holding at coverage %s: %s%s", name, experiment.coverage, why, told)
    else:
        logger.info("%s: %s at coverage %s: %s", name, verdict.action, experiment.coverage, why)
