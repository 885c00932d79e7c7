"""What the true logit is made of: named effects of levels and numbers, and the hidden tables each of them reads.

Every kind is a formula over columns of codes [n]; centring and scaling to the effect's share are the world's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from training.data.synthetic.inhabitants import COUNTS, TRAITS, Codes

Tables = list[NDArray[np.float64]]
"""The hidden numbers of an effect."""


@dataclass(frozen=True)
class Effect:
    """A term of the true logit: its kind, the columns it reads and its share of the logit's variance."""

    kind: Literal["main", "pair", "triple", "cross", "curve", "slope", "drift"]
    columns: tuple[str, ...]
    share: float


EFFECTS = (
    # a value of its own for each level
    Effect("main", ("user",), 2.5),
    Effect("main", ("device_model",), 0.6),
    Effect("main", ("region",), 0.6),
    Effect("main", ("publisher",), 2.5),
    Effect("main", ("placement",), 1.2),
    Effect("main", ("ad",), 1.2),
    Effect("main", ("campaign",), 2.0),
    Effect("main", ("advertiser",), 1.2),
    Effect("main", ("creative_format",), 1.2),
    Effect("main", ("hour",), 1.0),
    Effect("main", ("connection",), 0.5),
    # products of hidden traits: low-rank pairs, and third order
    Effect("pair", ("user_segment", "ad"), 10.0),
    Effect("pair", ("publisher", "campaign"), 10.0),
    Effect("pair", ("device_model", "advertiser"), 7.0),
    Effect("pair", ("hour", "ad_category"), 5.0),
    Effect("pair", ("region", "advertiser"), 4.0),
    Effect("triple", ("age_band", "publisher_category", "ad_category"), 6.0),
    Effect("triple", ("hour", "device_brand", "creative_format"), 4.0),
    # no structure: every cell of a context field with an ad field is its own
    Effect("cross", ("publisher_category", "ad_category"), 5.0),
    Effect("cross", ("country", "ad_category"), 3.0),
    Effect("cross", ("device_brand", "advertiser"), 3.0),
    Effect("cross", ("placement", "ad"), 5.0),
    # numbers, alone and by category
    Effect("curve", ("session_depth",), 1.5),
    Effect("curve", ("seen_today",), 2.0),
    Effect("curve", ("account_age_days",), 1.0),
    Effect("curve", ("bid",), 1.5),
    Effect("curve", ("landing_ms",), 1.0),
    Effect("curve", ("discount",), 1.0),
    Effect("slope", ("discount", "user_segment"), 1.0),
    Effect("slope", ("seen_today", "ad_category"), 2.0),
    Effect("slope", ("page_words", "creative_format"), 1.5),
    Effect("slope", ("title_length", "ad_category"), 1.0),
    # random walks from day to day
    Effect("drift", ("campaign",), 2.5),
    Effect("drift", ("publisher",), 1.5),
    Effect("drift", ("ad_category",), 0.5),
)

_SCALE = {
    "session_depth": (1.2, 0.8),
    "seen_today": (1.0, 0.8),
    "account_age_days": (5.3, 1.3),
    "page_words": (6.0, 0.9),
    "bid": (0.45, 0.35),
    "landing_ms": (6.6, 0.7),
    "title_length": (3.8, 0.6),
    "discount": (0.14, 0.13),
}
"""Mean and standard deviation of ln(1 + x), about."""


def draw_tables(rng: np.random.Generator, effect: Effect, days: int) -> Tables:
    """The hidden numbers of an effect, one array a column it reads."""
    if effect.kind == "main":
        return [rng.normal(size=COUNTS[effect.columns[0]])]
    if effect.kind in ("pair", "triple"):
        return [rng.normal(size=(TRAITS, TRAITS)) for _ in effect.columns]
    if effect.kind == "cross":
        first, second = effect.columns
        return [rng.normal(size=(COUNTS[first], COUNTS[second]))]
    if effect.kind == "curve":
        return [rng.normal(size=5)]
    if effect.kind == "slope":
        return [rng.normal(size=COUNTS[effect.columns[1]])]
    steps = rng.normal(size=(days, COUNTS[effect.columns[0]]))
    walk = np.cumsum(steps, axis=0)
    return [walk / walk.std(axis=0, keepdims=True).mean()]


def evaluate(
    effect: Effect, tables: Tables, traits: Mapping[str, NDArray[np.float64]], codes: Codes
) -> NDArray[np.float64]:
    """An effect's value on every row [n], before centring and scaling."""
    first = codes[effect.columns[0]]
    if effect.kind == "main":
        return tables[0][first]
    if effect.kind in ("pair", "triple"):
        product = np.ones((len(first), TRAITS))
        for name, mix in zip(effect.columns, tables, strict=True):
            product *= (traits[name] @ mix)[codes[name]]
        return np.asarray(product.sum(axis=1))
    if effect.kind == "cross":
        return tables[0][first, codes[effect.columns[1]]]
    if effect.kind == "drift":
        return tables[0][codes["day"], first]
    x = _squashed(effect.columns[0], first)
    if effect.kind == "slope":
        return tables[0][codes[effect.columns[1]]] * x
    # a smooth curve: two bends and a slope
    a, b, c, d, e = tables[0]
    return np.asarray(a * x + b * np.sin(1.5 * x + d) + c * np.cos(2.5 * x + e))


def _squashed(name: str, values: NDArray[Any]) -> NDArray[np.float64]:
    """A heavy-tailed number as the truth sees it: ln(1 + x), about standard, tails cut at 3."""
    centre, spread = _SCALE[name]
    return np.asarray(np.clip((np.log1p(values) - centre) / spread, -3, 3))
