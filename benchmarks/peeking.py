"""Does looking every day fool the answer? Equal arms, and arms that differ, in six worlds; thousands of experiments.

    python -m benchmarks.peeking                          60 looks and 2000 looks, 2000 experiments each
    python -m benchmarks.peeking --experiments 500 --looks 60
    python -m benchmarks.peeking --write docs/answers.md  puts the tables in there as well
    python -m benchmarks.peeking --price                  what looking every day costs in lifts that are found

With no effect: the share of experiments in which the interval excluded zero at *any* look. The confidence sequence
may do so in alpha of them; beside it stand a fixed-horizon interval looked at as often, the sequence with units as its
clock, and the one that takes every impression for a unit of its own. With an effect: the share in
which the truth left the sequence at any look, and in which it found the effect.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.results import write_block
from benchmarks.worlds import REGULARS, WORLDS, Look, World, play
from service.answers.lift import CLICKS, ENOUGH_CLICKS, ENOUGH_UNITS, IMPRESSIONS, clock, difference, log_ratio
from service.answers.moments import Moments
from service.answers.sequences import critical_value, fixed_value

Flags = NDArray[np.bool_]

ALWAYS, RELATIVE = "sequence", "of the ratio"
FIXED, BY_UNITS, BY_IMPRESSIONS = "fixed horizon, peeked", "clock: units", "impressions as units"
MISSED, MISSED_RELATIVE = "outside", "outside, of the ratio"
JUDGED = (ALWAYS, RELATIVE, MISSED, MISSED_RELATIVE)


@dataclass
class Ever:
    """Which of the experiments have, at any look so far, ..."""

    experiments: int
    flags: dict[str, Flags] = field(default_factory=dict)

    def add(self, name: str, now: Flags) -> None:
        """... also counted those where it holds `now`."""
        self.flags[name] = self.flags.get(name, np.zeros(self.experiments, dtype=bool)) | now

    def share(self, name: str) -> float:
        return float(self.flags[name].mean())


def judge(
    world: World, *, looks: int, experiments: int, seed: int, effect: float = 0.0, alpha: float = 0.05, expected: float
) -> Ever:
    """Plays the world and judges it at every look."""
    ever = Ever(experiments)
    expected_units = 2.0 * world.pool if world.pool else expected
    for look in play(world, looks=looks, experiments=experiments, seed=seed, effect=effect):
        _judge_look(ever, look, effect, alpha, expected, expected_units)
    return ever


def _judge_look(ever: Ever, look: Look, effect: float, alpha: float, expected: float, expected_units: float) -> None:
    control, treatment = look.arms
    enough = np.ones(ever.experiments, dtype=bool)
    for arm in look.arms:
        enough &= (arm.total(CLICKS) >= ENOUGH_CLICKS) & (arm.units >= ENOUGH_UNITS)
        enough &= arm.ratio_variance(CLICKS, IMPRESSIONS) > 0
    with np.errstate(all="ignore"):  # looks with too little are not judged
        value, variance = difference(control, treatment)
        log_value, log_variance = log_ratio(control, treatment)
        error, log_error = np.sqrt(variance), np.sqrt(log_variance)
        reach = critical_value(clock(control, treatment), expected, alpha)
        by_units = critical_value(control.units + treatment.units, expected_units, alpha)
        independent = np.sqrt(_independent(control) + _independent(treatment))
        found = {
            ALWAYS: np.abs(value) > reach * error,
            RELATIVE: np.abs(log_value) > reach * log_error,
            FIXED: np.abs(value) > fixed_value(alpha) * error,
            BY_UNITS: np.abs(value) > by_units * error,
            BY_IMPRESSIONS: np.abs(value) > reach * independent,
            MISSED: np.abs(value - effect * look.true_rate) > reach * error,
            MISSED_RELATIVE: np.abs(log_value - np.log1p(effect)) > reach * log_error,
        }
    for name, now in found.items():
        ever.add(name, now & enough)


def _independent(arm: Moments) -> NDArray[np.float64]:
    rate = arm.ratio(CLICKS, IMPRESSIONS)
    return np.asarray(rate * (1 - rate) / arm.total(IMPRESSIONS))


def table(looks: int, experiments: int, effect: float, alpha: float, expected: float, seed: int) -> str:
    """Markdown: one row a world, each share with the upper 95% limit of the first column."""
    columns = (
        [ALWAYS, RELATIVE, FIXED, BY_UNITS, BY_IMPRESSIONS] if effect == 0 else [MISSED, MISSED_RELATIVE, ALWAYS, FIXED]
    )
    lines = [
        "| world | what it is | " + " | ".join(columns) + " |",
        "|---|---|" + "---:|" * len(columns),
    ]
    for world in (*WORLDS, REGULARS):
        runs = experiments // 4 if world.delay and looks > 1000 else experiments  # clicks in flight are dear
        ever = judge(world, looks=looks, experiments=runs, seed=seed, effect=effect, alpha=alpha, expected=expected)
        cells = []
        for name in columns:
            share = ever.share(name)
            limit = f" (≤ {100 * upper_limit(round(share * runs), runs):.1f})" if name in JUDGED else ""
            cells.append(f"{100 * share:.1f}{limit}")
        lines.append(f"| {world.name} | {world.sentence} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def price(lift: float, expected: float, *, experiments: int, seed: int, alpha: float = 0.05) -> tuple[float, float]:
    """(found by the sequence, found by one look at the end): the shares of experiments in which a lift was found at CTR
    2% within 400,000 impressions, each its own unit, looked at 200 times."""
    rng = np.random.default_rng(seed)
    impressions = 1000.0 * np.arange(1, 201)  # an arm
    rates, variances, enough = [], [], []
    for rate in (0.02, 0.02 * (1 + lift)):
        clicks = np.cumsum(rng.binomial(1000, rate, (experiments, 200)), axis=1)
        rates.append(clicks / impressions)
        variances.append(rates[-1] * (1 - rates[-1]) / impressions)
        enough.append(clicks >= ENOUGH_CLICKS)
    z = (rates[1] - rates[0]) / np.sqrt(variances[0] + variances[1])
    found = (z > critical_value(2 * impressions, expected, alpha)) & enough[0] & enough[1]
    return float(found.any(axis=1).mean()), float((z[:, -1] > fixed_value(alpha)).mean())


def upper_limit(found: int, runs: int, confidence: float = 0.95) -> float:
    """The one-sided Clopper-Pearson limit: the share at which `found` or fewer of `runs` has chance 1 - confidence."""
    if found >= runs:
        return 1.0
    logs = np.array([math.lgamma(runs + 1) - math.lgamma(k + 1) - math.lgamma(runs - k + 1) for k in range(found + 1)])
    places = np.arange(found + 1)
    low, high = found / runs, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        few = np.exp(logs + places * math.log(middle) + (runs - places) * math.log1p(-middle)).sum()
        low, high = (middle, high) if few > 1 - confidence else (low, middle)
    return high


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the tables; with --write puts them between the file's `peeking` marks."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peeking", description=__doc__.splitlines()[0])
    parser.add_argument("--experiments", type=int, default=2000, metavar="N", help="a world [2000]")
    parser.add_argument("--looks", type=int, nargs="+", default=[60, 2000], metavar="N", help="[60 2000]")
    parser.add_argument("--effect", type=float, default=0.25, help="relative lift of the second table [0.25]")
    parser.add_argument("--alpha", type=float, default=0.05, help="[0.05]")
    parser.add_argument("--expected", type=float, default=5000, help="the sequence's expected impressions [5000]")
    parser.add_argument("--seed", type=int, default=1, help="[1]")
    parser.add_argument(
        "--write", type=Path, metavar="FILE", help="a document with marks `<!-- peeking: begin/end -->`"
    )
    parser.add_argument("--price", action="store_true", help="instead, the share of lifts that are found at CTR 2%%")
    options = parser.parse_args(arguments)
    if options.price:
        for lift, expected in itertools.product((0.1, 0.05), (400_000.0, 5000.0)):
            ours, once = price(lift, expected, experiments=options.experiments, seed=options.seed)
            print(f"lift {lift:+.0%}, expected {expected:,.0f}: found {ours:.1%}, by one look at the end {once:.1%}")
        return 0

    text = [
        f"`python -m benchmarks.peeking --experiments {options.experiments} --seed {options.seed}`, "
        f"alpha {options.alpha}, {options.experiments} experiments a world (delayed with more than 1000 looks: a "
        "quarter). Percent; in brackets the upper 95% limit of what was found."
    ]
    for looks in options.looks:
        common = (options.alpha, options.expected, options.seed)
        text.append(f"\nNo effect, {looks} looks: zero was excluded at any of them.\n")
        text.append(table(looks, options.experiments, 0.0, *common))
        text.append(f"\nAn effect of {options.effect:+.0%}, {looks} looks: outside was the truth; excluded was zero.\n")
        text.append(table(looks, options.experiments, options.effect, *common))
    print("\n".join(text))
    if options.write is not None:
        write_block(options.write, "peeking", "\n".join(text))
    return 0


if __name__ == "__main__":
    sys.exit(main())
