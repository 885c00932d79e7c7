"""Simulated experiments, thousands at once: two arms whose users come, see ads, and click with a known probability.

A world says who the units are; `play` lets its experiments run and hands over the moments at every look, as arrays over
experiments, so that a look costs a few numpy calls however many experiments there are. Nothing is drawn that the
analysis could not meet in a log: what it is judged by is known only here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.answers.lift import CLICKS, IMPRESSIONS
from service.answers.moments import Moments

Array = NDArray[np.float64]
Draw = Callable[[np.random.Generator, tuple[int, ...]], Array]


@dataclass(frozen=True)
class World:
    """Who the units are. A look shows ads to `active` of them; each look's are neighbours in the arm's row of units."""

    name: str
    sentence: str
    ctr: Draw
    """Each unit's own click rate."""
    mean_ctr: float
    """The mean of `ctr`."""
    activity: Draw
    """Each unit's mean impressions at a look it takes part in."""
    active: int = 40
    """Of each arm, in 60 looks; with more looks there are fewer a look."""
    pool: int | None = None
    """Units of an arm, which come back again and again; None: everybody is seen at one look only."""
    level: Callable[[float], float] = lambda progress: 1.0
    """Factor on all click rates, by the share of the experiment that has passed."""
    same_daily: bool = False
    """Every unit comes at every look, however many there are."""
    single: bool = False
    """Exactly one impression a unit."""
    delay: float = 0.0
    """Mean delay of a click in looks (geometric), after which it is still attributed to its impression."""


def steady(value: float) -> Draw:
    """The same for all units."""
    return lambda rng, shape: np.full(shape, value)


def beta(mean: float, strength: float) -> Draw:
    """Click rates that vary from unit to unit; the smaller `strength`, the more."""
    return lambda rng, shape: rng.beta(mean * strength, (1 - mean) * strength, shape)


def pareto(mean: float, shape: float, most: float) -> Draw:
    """A few units do much of the looking: Pareto with tail `shape`, cut at `most`."""
    return lambda rng, size: np.minimum(mean * (shape - 1) / shape * (1 + rng.pareto(shape, size)), most)


WORLDS = (
    World("independent", "every impression another unit", steady(0.05), 0.05, steady(1.0), active=120, single=True),
    World(
        "clustered", "users of different CTR who come back", beta(0.05, 12.0), 0.05, steady(3.0), active=40, pool=400
    ),
    World(
        "heavy",
        "a few units make most of the impressions",
        beta(0.05, 12.0),
        0.05,
        pareto(3.0, 1.5, 60.0),
        active=40,
        pool=400,
    ),
    World("varied", "click rates from almost none to a half", beta(0.05, 1.0), 0.05, steady(5.0), active=40),
    World(
        "drifting",
        "the click rate halves, with a weekly wave",
        beta(0.07, 12.0),
        0.07,
        steady(3.0),
        active=40,
        pool=400,
        level=lambda progress: (1 - progress / 2) * (1 + 0.3 * np.sin(2 * np.pi * progress * 60 / 7)),
    ),
    World(
        "delayed",
        "clicks come days after their impressions",
        beta(0.05, 12.0),
        0.05,
        steady(3.0),
        active=40,
        pool=400,
        delay=3.0,
    ),
)
"""The six that the proof is about."""

REGULARS = World(
    "regulars",
    "the same users every day, all alike",
    steady(0.05),
    0.05,
    steady(2.0),
    active=120,
    pool=120,
    same_daily=True,
)
"""A seventh: units are as many on the last day as on the first, so their number measures no evidence."""

LONGEST_DELAY = 16


@dataclass(frozen=True)
class Look:
    """What an analyst has at one look: both arms' moments, [E, 3, 3], and what only the world knows."""

    arms: tuple[Moments, Moments]
    true_rate: float
    """Control's click rate in expectation, over the impressions so far."""


def play(world: World, *, looks: int, experiments: int, seed: int, effect: float = 0.0) -> Iterator[Look]:
    """Every look of `experiments` experiments in which treatment clicks (1 + `effect`) times as often as control."""
    rng = np.random.default_rng(seed)
    active = world.active if world.same_daily else max(4, round(world.active * 60 / looks))
    units = world.pool or active
    active = min(active, units)
    row = (2, experiments, units)
    factor = np.array([1.0, 1.0 + effect])[:, None, None]
    ctr, activity = world.ctr(rng, row), world.activity(rng, row)
    shown, clicked = np.zeros(row), np.zeros(row)
    gram = np.zeros((2, experiments, 3, 3))  # of (1, clicks, impressions)
    pending = np.zeros((LONGEST_DELAY, *row)) if world.delay else None
    levels = 0.0
    for look in range(looks):
        if world.pool is None:
            ctr, activity = world.ctr(rng, row), world.activity(rng, row)
            shown[:], clicked[:] = 0, 0
            here = slice(0, units)
        else:
            # New units join over the first half of the experiment; who is known comes back.
            known = min(units, active + 2 * units * (look + 1) // looks)
            start = int(rng.integers(0, known - active + 1))
            here = slice(start, start + active)
        level = world.level(look / looks)
        levels += level
        chance = np.minimum(ctr[:, :, here] * level * factor, 1.0)
        if world.single:
            impressions = np.ones(chance.shape)
            clicks = (rng.random(chance.shape) < chance).astype(np.float64)
        else:  # a Poisson number of impressions, clicked or not: two independent Poisson numbers
            clicks = rng.poisson(activity[:, :, here] * chance).astype(np.float64)
            impressions = clicks + rng.poisson(activity[:, :, here] * (1 - chance))
        if pending is None:
            _add(gram, shown, clicked, here, impressions, clicks)
        else:
            _post(pending, look, here, clicks, world.delay, rng)
            _add(gram, shown, clicked, here, impressions, np.zeros_like(clicks))
            arrived = pending[look % LONGEST_DELAY]
            _add(gram, shown, clicked, slice(0, units), np.zeros_like(arrived), arrived)
            arrived[:] = 0
        names = (CLICKS, IMPRESSIONS)
        arms = Moments(names, gram[0].copy()), Moments(names, gram[1].copy())
        yield Look(arms, world.mean_ctr * levels / (look + 1))


def _post(pending: Array, look: int, here: slice, clicks: Array, delay: float, rng: np.random.Generator) -> None:
    """Puts each click on the look at which it will arrive: geometric with mean `delay`, cut at the longest."""
    left = clicks.astype(np.int64)
    for later in range(LONGEST_DELAY - 1):
        now = rng.binomial(left, 1 / (1 + delay))
        pending[(look + later) % LONGEST_DELAY][:, :, here] += now
        left = left - now
    pending[(look + LONGEST_DELAY - 1) % LONGEST_DELAY][:, :, here] += left


def _add(gram: Array, shown: Array, clicked: Array, here: slice, impressions: Array, clicks: Array) -> None:
    """Adds to units' totals, and to the sums of their squares what that changes."""
    m, c = shown[:, :, here], clicked[:, :, here]
    new_m, new_c = m + impressions, c + clicks
    gram[..., 0, 0] += ((new_m > 0) & (m == 0)).sum(axis=-1)
    gram[..., 0, 1] += clicks.sum(axis=-1)
    gram[..., 0, 2] += impressions.sum(axis=-1)
    gram[..., 1, 1] += (new_c**2 - c**2).sum(axis=-1)
    gram[..., 1, 2] += (new_c * new_m - c * m).sum(axis=-1)
    gram[..., 2, 2] += (new_m**2 - m**2).sum(axis=-1)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        gram[..., j, i] = gram[..., i, j]
    shown[:, :, here], clicked[:, :, here] = new_m, new_c
