"""Who arrives, with which candidates, and what is true of each: a pure function of seeds.

An auction is a row of the synthetic world for its context, and the ads of other rows of the same day for its
candidates. Auctions come in blocks, each with a generator of its own, so that the thousandth is the same whoever asks,
in whatever order, on any machine.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.data.synthetic import World
from training.data.synthetic.inhabitants import Codes
from training.fit.metrics import sigmoid

BLOCK = 64
"""Auctions that are drawn together."""
DELAY_SIGMA = 0.75
"""Of the logarithm of a click's delay."""
LONGEST_DELAY = 10.0
"""In medians; longer delays are cut to it."""
_TRAFFIC = 6  # the world's own generators are keyed by 1 to 5


@dataclass(frozen=True, slots=True)
class Auction:
    """One arrival."""

    request_id: str
    unit: str
    body: bytes
    """Of the request, JSON."""
    truth: NDArray[np.float64]
    """The true click probability of each candidate [N]."""
    chance: float
    """Uniform in [0, 1): whoever is shown is clicked where this lies below its true probability."""
    gap: float
    """Since the arrival before, in units of the mean: exponential, so that arrivals are a Poisson process."""
    delay: float
    """Of a click after its impression, in units of the median: log-normal."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What auctions are like. With equal terms and run, auctions are equal to the byte."""

    world_seed: int = 0
    """Of the synthetic world; the shipped recipe trains on 0."""
    days: int = 8
    """The world spans, as in the recipe."""
    day: int = 7
    """That is played, from 0; the shipped recipe tests on 7, the last."""
    seed: int = 1
    """Of the traffic."""
    candidates: int = 10
    """An auction."""
    run: str = "sim"
    """What request ids begin with: two runs into one log need two."""
    experiment: str | None = None
    """That requests name; None: the service's default."""
    deadline_ms: float | None = None
    """That requests name."""


class Auctions:
    """Auctions by block. Building the world takes a second or more."""

    def __init__(self, terms: Terms, world: World | None = None) -> None:
        """`world`: the one that the terms mean, where somebody has it."""
        self.terms = terms
        self._world = world or World(seed=terms.world_seed, days=terms.days)
        schema = World.schema()
        self._context = [field for field in schema.context_fields if field.derive is None]
        self._derived = [field.name for field in schema.context_fields if field.derive is not None]
        self._candidate = [field.name for field in schema.candidate_fields]

    def block(self, number: int) -> list[Auction]:
        """`BLOCK` auctions, the `number`th such block."""
        terms, count = self.terms, self.terms.candidates
        rng = np.random.default_rng([terms.world_seed, _TRAFFIC, terms.seed, number])
        met = self._world.impressions(rng, terms.day, BLOCK)
        ads = self._world.impressions(rng, terms.day, BLOCK * count)
        whole = _with_ads(met, ads, count)
        truth = sigmoid(self._world.true_logit(whole)).reshape(BLOCK, count)
        order = rng.permutation(BLOCK)  # the world gives rows in the order of time
        chances, gaps = rng.random(BLOCK), rng.exponential(1.0, BLOCK)
        delays = np.minimum(rng.lognormal(0.0, DELAY_SIGMA, BLOCK), LONGEST_DELAY)
        rows = self._visible(met, [field.name for field in self._context])
        candidates = self._visible(whole, self._candidate)
        auctions = []
        for place, row in enumerate(order.tolist()):
            context = {field.name: _raw(rows[row][field.name], field.separator) for field in self._context}
            context |= {name: int(met[name][row]) for name in self._derived}
            request_id = f"{terms.run}-{number * BLOCK + place}"
            body = {
                "request_id": request_id,
                "unit_id": context["user_id"],
                "context": context,
                "candidates": candidates[row * count : (row + 1) * count],
                "experiment": terms.experiment,
                "deadline_ms": terms.deadline_ms,
            }
            auctions.append(
                Auction(
                    request_id=request_id,
                    unit=str(context["user_id"]),
                    body=json.dumps({name: part for name, part in body.items() if part is not None}).encode(),
                    truth=truth[row],
                    chance=float(chances[place]),
                    gap=float(gaps[place]),
                    delay=float(delays[place]),
                )
            )
        return auctions

    def _visible(self, codes: Codes, names: list[str]) -> list[dict[str, Any]]:
        """These columns of the log, row by row; nothing of clicks."""
        nothing = np.zeros(len(codes["user"]))
        rows: list[dict[str, Any]] = (
            self._world.as_logged(codes, nothing.astype(bool), nothing).select(names).to_pylist()
        )
        return rows


def _with_ads(met: Codes, ads: Codes, count: int) -> Codes:
    """Each row of `met`, `count` times, with the ads of `ads`."""
    whole = {name: np.repeat(column, count, axis=0) for name, column in met.items()}
    return whole | {name: ads[name] for name in AD_COLUMNS}


AD_COLUMNS = (
    *("ad", "campaign", "advertiser", "ad_category", "creative_format"),
    *("bid", "landing_ms", "title_length", "discount", "discount_missing"),
)
"""Codes that belong to the ad and not to whom it is shown."""


def _raw(value: object, separator: str | None) -> object:
    """A cell of the log as a request has it: lists as lists, no NaN."""
    if separator is not None:
        return [] if value is None else str(value).split(separator)
    return None if isinstance(value, float) and math.isnan(value) else value
