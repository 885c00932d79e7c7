"""How soon does a guard-rail switch a harmful arm off, and how often a harmless one? Thousands of experiments at once.

    python -m benchmarks.guard_rails                          2000 experiments a line, 240 looks
    python -m benchmarks.guard_rails --write docs/answers.md  puts the table in there as well

CTR 5%, both arms half of the traffic, alpha .01. "Impressions until off": the median over experiments of both arms'
impressions (calibration, errors: of the one arm). For harmless arms, the share that a rail ever switched off.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.peeking import upper_limit
from benchmarks.results import write_block
from benchmarks.worlds import Look, World, beta, play, steady
from service.answers import guard_rails
from service.answers.lift import CLICKS, IMPRESSIONS
from service.answers.moments import Moments

Flags = NDArray[np.bool_]

INDEPENDENT = World("independent", "every impression another unit", steady(0.05), 0.05, steady(1.0), 480, single=True)
CLUSTERED = World("clustered", "users of different CTR who come back", beta(0.05, 12.0), 0.05, steady(3.0), 160, 1600)
FAILING = World("requests", "one of a hundred fails", steady(0.01), 0.01, steady(1.0), 480, single=True)


@dataclass(frozen=True)
class Trial:
    """One line of the table."""

    rail: str
    world: World
    change: float
    """Relative change of treatment's clicks (or errors)."""
    harmless: bool
    crossed: Callable[[Look], Flags]


def ctr_loss(bound: float) -> Callable[[Look], Flags]:
    """Treatment below (1 - bound) of control."""

    def crossed(look: Look) -> Flags:
        control, treatment = look.arms
        evidence = guard_rails.ctr_loss_evidence(control, treatment, bound)
        return np.asarray((evidence > 1) & guard_rails.may_judge_clicks(control, treatment))

    return crossed


def calibration(bound: float) -> Callable[[Look], Flags]:
    """Treatment's clicks against 5% of its impressions, which is what it predicted."""

    def crossed(look: Look) -> Flags:
        arm = look.arms[1]
        scale = np.array([1.0, 1.0, 0.05])
        units = Moments((CLICKS, guard_rails.PREDICTED), arm.gram * scale[:, None] * scale)
        few, many = guard_rails.calibration_evidence(units, bound)
        return np.asarray((np.maximum(few, many) > 1) & (arm.total(CLICKS) >= guard_rails.ENOUGH_EVENTS))

    return crossed


def errors(bound: float) -> Callable[[Look], Flags]:
    """More than `bound` of treatment's requests fail."""

    def crossed(look: Look) -> Flags:
        arm = look.arms[1]
        evidence = guard_rails.rate_evidence(arm, CLICKS, IMPRESSIONS, bound)
        return np.asarray((evidence > 1) & (arm.total(CLICKS) >= guard_rails.ENOUGH_EVENTS))

    return crossed


TRIALS = (
    Trial("CTR loss 0", INDEPENDENT, 0.0, True, ctr_loss(0.0)),
    Trial("CTR loss 0", CLUSTERED, 0.0, True, ctr_loss(0.0)),
    Trial("CTR loss 10%", INDEPENDENT, -0.1, True, ctr_loss(0.1)),
    Trial("calibration 0", INDEPENDENT, 0.0, True, calibration(0.0)),
    Trial("calibration 0", CLUSTERED, 0.0, True, calibration(0.0)),
    Trial("errors 1%", FAILING, 0.0, True, errors(0.01)),
    Trial("CTR loss 0", INDEPENDENT, -0.5, False, ctr_loss(0.0)),
    Trial("CTR loss 0", CLUSTERED, -0.5, False, ctr_loss(0.0)),
    Trial("CTR loss 5%", INDEPENDENT, -0.5, False, ctr_loss(0.05)),
    Trial("CTR loss 10%", INDEPENDENT, -0.5, False, ctr_loss(0.1)),
    Trial("CTR loss 0", INDEPENDENT, -0.2, False, ctr_loss(0.0)),
    Trial("calibration 0", INDEPENDENT, -0.2, False, calibration(0.0)),
    Trial("calibration 0", INDEPENDENT, 0.25, False, calibration(0.0)),
    Trial("calibration 0", INDEPENDENT, 1.0, False, calibration(0.0)),
    Trial("errors 1%", FAILING, 1.0, False, errors(0.01)),
)


def first_crossing(trial: Trial, *, looks: int, experiments: int, seed: int) -> NDArray[np.float64]:
    """Impressions at which each experiment's rail was crossed; infinite where it never was."""
    found = np.full(experiments, np.inf)
    both = trial.rail.startswith("CTR")
    for look in play(trial.world, looks=looks, experiments=experiments, seed=seed, effect=trial.change):
        seen = look.arms[1].total(IMPRESSIONS) + (look.arms[0].total(IMPRESSIONS) if both else 0.0)
        found = np.where(np.isinf(found) & trial.crossed(look), seen, found)
    return found


def line(trial: Trial, *, looks: int, experiments: int, seed: int) -> str:
    """One row of the table."""
    found = first_crossing(trial, looks=looks, experiments=experiments, seed=seed)
    ever = int(np.isfinite(found).sum())
    limit = f"{100 * upper_limit(ever, experiments):.2f}" if trial.harmless else ""
    median = np.median(found)
    until = f"{median:,.0f}" if np.isfinite(median) else ""
    return (
        f"| {trial.rail} | {trial.world.name} | {trial.change:+.0%} | {100 * ever / experiments:.2f} | {limit} | "
        f"{'' if trial.harmless else until} |"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table; with --write puts it between the file's `guard rails` marks."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.guard_rails", description=__doc__.splitlines()[0])
    parser.add_argument("--experiments", type=int, default=2000, metavar="N", help="a line [2000]")
    parser.add_argument("--looks", type=int, default=240, metavar="N", help="[240]")
    parser.add_argument("--seed", type=int, default=1, help="[1]")
    parser.add_argument(
        "--write", type=Path, metavar="FILE", help="a document with marks `<!-- guard rails: begin/end -->`"
    )
    options = parser.parse_args(arguments)

    text = [
        f"`python -m benchmarks.guard_rails --experiments {options.experiments} --looks {options.looks} "
        f"--seed {options.seed}`:\n",
        "| rail | world | clicks or errors changed by | off, % | upper 95% limit | impressions until off (median) |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for trial in TRIALS:
        text.append(line(trial, looks=options.looks, experiments=options.experiments, seed=options.seed))
        print(text[-1], flush=True)
    if options.write is not None:
        write_block(options.write, "guard rails", "\n".join(text) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
