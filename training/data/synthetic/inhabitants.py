"""Who lives in the synthetic world, and who meets what on a day: impressions before any click.

Columns are codes: whole numbers that stand for levels (their names are in `columns.py`), and plain numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

FIRST_SECOND = 1_772_409_600  # Monday 2 March 2026, 00:00 UTC
DAY_SECONDS = 86_400

Codes = dict[str, NDArray[Any]]
"""A column of integers (levels) or of floats (numbers) for each name, visible or hidden."""

COUNTS = {
    "user": 5000,
    "user_segment": 16,
    "age_band": 7,
    "gender": 3,
    "country": 18,
    "region": 80,
    "device_brand": 22,
    "device_model": 160,
    "os": 4,
    "connection": 4,
    "publisher": 200,
    "publisher_category": 18,
    "placement": 500,
    "hour": 24,
    "weekday": 7,
    "ad": 1500,
    "campaign": 300,
    "advertiser": 80,
    "ad_category": 22,
    "creative_format": 6,
}
TRAITS = 4
"""Hidden traits of each level of each column; pairs and triples are made of them."""
INHERITED = 0.7
"""Share of a trait's variance that a child has from its parent: an ad resembles its campaign."""


class Inhabitants:
    """The hierarchies, how often each level is met, which campaigns run when: all that stays as it is."""

    def __init__(self, rng: np.random.Generator, days: int) -> None:
        self._settle_users(rng)
        self._open_sites(rng)
        self._campaign_of = _nested(rng, "ad", "campaign")
        self._advertiser_of = _nested(rng, "campaign", "advertiser")
        self._ad_category_of = _nested(rng, "advertiser", "ad_category")
        self.traits = self._hand_down_traits(rng)
        """Of each level of each column, [levels, TRAITS]: what no column shows."""
        # What a user looks at by choice, a matter of the same traits.
        taste = 0.8 * self.traits["user"] @ rng.normal(size=(TRAITS, TRAITS)) @ self.traits["ad_category"].T
        taste = np.exp(taste - taste.max(axis=1, keepdims=True))
        self._user_taste = taste / taste.sum(axis=1, keepdims=True)
        self._plan_campaigns(rng, days)

    def _settle_users(self, rng: np.random.Generator) -> None:
        users = COUNTS["user"]
        self._user = {
            "user_segment": rng.choice(COUNTS["user_segment"], users, p=_zipf(COUNTS["user_segment"], 0.4)),
            "gender": rng.choice(3, users, p=[0.46, 0.48, 0.06]),
            "device_model": rng.choice(COUNTS["device_model"], users, p=_zipf(COUNTS["device_model"], 0.9)),
            "region": rng.choice(COUNTS["region"], users, p=_zipf(COUNTS["region"], 0.8)),
        }
        # Age and segment go together, as they would.
        leaning = rng.dirichlet(np.full(COUNTS["age_band"], 0.7), COUNTS["user_segment"])
        self._user["age_band"] = _draw(rng, leaning[self._user["user_segment"]])
        self._user_missing = {"age_band": rng.random(users) < 0.15, "gender": rng.random(users) < 0.2}
        self._user_weight = _zipf(users, 0.75)[rng.permutation(users)]
        self._account_age = rng.lognormal(5.3, 1.3, users)
        self._country_of = _nested(rng, "region", "country")
        self.brand_of_model = _nested(rng, "device_model", "device_brand")
        self._os_of = rng.choice(COUNTS["os"], COUNTS["device_brand"], p=[0.55, 0.25, 0.12, 0.08])

    def _open_sites(self, rng: np.random.Generator) -> None:
        self.publisher_of_placement = _nested(rng, "placement", "publisher")
        self._site_category_of = _nested(rng, "publisher", "publisher_category")
        self._is_app = rng.random(COUNTS["publisher"]) < 0.4
        publisher_weight = _zipf(COUNTS["publisher"], 0.9)[rng.permutation(COUNTS["publisher"])]
        within = rng.lognormal(0, 0.6, COUNTS["placement"])
        within /= np.bincount(self.publisher_of_placement, weights=within)[self.publisher_of_placement]
        self._placement_weight = publisher_weight[self.publisher_of_placement] * within

    def _hand_down_traits(self, rng: np.random.Generator) -> dict[str, NDArray[np.float64]]:
        parents = {
            "user": ("user_segment", self._user["user_segment"]),
            "region": ("country", self._country_of),
            "device_model": ("device_brand", self.brand_of_model),
            "publisher": ("publisher_category", self._site_category_of),
            "placement": ("publisher", self.publisher_of_placement),
            "advertiser": ("ad_category", self._ad_category_of),
            "campaign": ("advertiser", self._advertiser_of),
            "ad": ("campaign", self._campaign_of),
        }
        traits = {name: rng.normal(size=(count, TRAITS)) for name, count in COUNTS.items()}
        for child, (parent, of) in parents.items():  # parents come before their children
            traits[child] = np.sqrt(INHERITED) * traits[parent][of] + np.sqrt(1 - INHERITED) * traits[child]
        return traits

    def _plan_campaigns(self, rng: np.random.Generator, days: int) -> None:
        """When campaigns and their ads run, how often, and what is written on the ads."""
        campaigns, ads = COUNTS["campaign"], COUNTS["ad"]
        start = rng.uniform(-12, days, campaigns)
        length = rng.lognormal(1.9, 0.7, campaigns)
        evergreen = rng.random(campaigns) < 0.2
        start[evergreen], length[evergreen] = -30, 1000
        ad_delay = rng.exponential(2.0, ads) * (rng.random(ads) < 0.4)
        self._ad_start = start[self._campaign_of] + ad_delay
        self._ad_end = (start + length)[self._campaign_of]
        campaign_weight = _zipf(campaigns, 0.7)[rng.permutation(campaigns)]
        self._ad_weight = campaign_weight[self._campaign_of] * rng.lognormal(0, 0.8, ads)
        self._creative_format = rng.choice(COUNTS["creative_format"], ads, p=_zipf(6, 0.6))
        self._title_length = rng.integers(8, 90, ads)
        self._landing_ms = rng.lognormal(6.6, 0.7, ads)
        self._campaign_bid = rng.lognormal(-0.7, 0.8, campaigns)
        self._discount = np.where(rng.random(ads) < 0.35, np.nan, np.round(rng.beta(1.2, 4.0, ads), 2))

    def impressions(self, rng: np.random.Generator, day: int, rows: int) -> Codes:
        """Who met what on a day, in the order of time: visible and hidden columns, before any click."""
        busy = 1.0 + 0.8 * np.sin((np.arange(24) - 8) / 24 * 2 * np.pi) + 0.3 * (np.arange(24) >= 18)
        hour = rng.choice(24, rows, p=busy / busy.sum())
        second = np.sort(hour * 3600 + rng.integers(0, 3600, rows))
        user = rng.choice(COUNTS["user"], rows, p=self._user_weight)
        placement = rng.choice(COUNTS["placement"], rows, p=self._placement_weight)
        # An ad counts by how much of the day it is live.
        live = np.clip(np.minimum(self._ad_end, day + 1) - np.maximum(self._ad_start, day), 0, 1)
        weight = self._ad_weight * live
        ad = rng.choice(COUNTS["ad"], rows, p=weight / weight.sum())

        codes: Codes = {name: levels[user] for name, levels in self._user.items()}
        publisher, campaign = self.publisher_of_placement[placement], self._campaign_of[ad]
        advertiser = self._advertiser_of[campaign]
        brand = self.brand_of_model[codes["device_model"]]
        discount = self._discount[ad]
        codes |= {
            "day": np.full(rows, day),
            "second": FIRST_SECOND + day * DAY_SECONDS + second,
            "hour": second // 3600,
            "weekday": np.full(rows, day % 7),
            "user": user,
            "country": self._country_of[codes["region"]],
            "device_brand": brand,
            "os": self._os_of[brand],
            "connection": rng.choice(COUNTS["connection"], rows, p=[0.55, 0.25, 0.15, 0.05]),
            "publisher": publisher,
            "publisher_category": self._site_category_of[publisher],
            "placement": placement,
            "is_app": self._is_app[publisher],
            "ad": ad,
            "campaign": campaign,
            "advertiser": advertiser,
            "ad_category": self._ad_category_of[advertiser],
            "creative_format": self._creative_format[ad],
            # numbers
            "session_depth": rng.geometric(0.22, rows),
            "seen_today": np.floor(rng.lognormal(0.6, 1.1, rows)),
            "account_age_days": self._account_age[user] + day,
            "page_words": np.floor(rng.lognormal(6.0, 0.9, rows)),
            "bid": np.round(self._campaign_bid[campaign] * rng.lognormal(0, 0.25, rows), 4),
            "landing_ms": np.round(self._landing_ms[ad] * rng.lognormal(0, 0.15, rows), 1),
            "title_length": self._title_length[ad],
            "discount": np.nan_to_num(discount, nan=0.0),
        }
        for name, of_user in self._user_missing.items():
            codes[f"{name}_missing"] = of_user[user]
        codes["page_words_missing"] = rng.random(rows) < 0.08
        codes["discount_missing"] = np.isnan(discount)
        # The last categories a user looked at: oldest first, between none and six.
        length = np.minimum(rng.poisson(2.5, rows), 6)
        drawn = rng.random((rows, 6))
        cumulative = np.cumsum(self._user_taste, axis=1)[user]
        codes["recent"] = np.minimum(
            (drawn[:, :, None] > cumulative[:, None, :]).sum(axis=2), COUNTS["ad_category"] - 1
        )
        codes["recent_length"] = length
        return codes


def _nested(rng: np.random.Generator, child: str, parent: str) -> NDArray[np.int64]:
    """A parent for each child, popular parents having more; every parent has one at least."""
    count, parents = COUNTS[child], COUNTS[parent]
    more = rng.choice(parents, count - parents, p=_zipf(parents, 0.7))
    return rng.permutation(np.concatenate([np.arange(parents), more]))


def _zipf(count: int, exponent: float) -> NDArray[np.float64]:
    """Probabilities falling as rank ** -exponent."""
    weight = np.arange(1, count + 1, dtype=np.float64) ** -exponent
    return np.asarray(weight / weight.sum())


def _draw(rng: np.random.Generator, probability: NDArray[np.float64]) -> NDArray[np.int64]:
    """One level a row of [n, levels] probabilities."""
    cumulative = np.cumsum(probability, axis=1)
    level = (rng.random(len(cumulative))[:, None] > cumulative).sum(axis=1)
    return np.asarray(np.minimum(level, cumulative.shape[1] - 1))
