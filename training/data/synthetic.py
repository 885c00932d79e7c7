"""A seeded world of ad impressions whose true click probabilities are known.

The default log: it needs no download, and what a model should have said is on every row (`true_pctr`), so
that a difference of .001 AUC can be told from the noise of clicks. It is shaped like a real one:

- hierarchies (device model < brand, region < country, placement < publisher, ad < campaign < advertiser);
- Zipf's law over users, publishers, models and ads; heavy-tailed numbers; values that are missing;
- campaigns that start and end, so the last day shows ads that the first days never did;
- a true logit that is a sum of named effects (`EFFECTS`), each with a fixed share of the variance: single
fields,
  low-rank pairs and triples, unstructured crosses of a context field with an ad field (a value of their own
  in every cell, which nothing but counting can learn), smooth numbers, and drift from day to day.

Users, publishers and ads also have hidden traits that no column shows directly; a user's are visible only
through what the user did, and through `recent_categories`.

Everything follows from the seed; more rows are more impressions of the same world.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

from models.schema import FeatureSchema
from training.loop import Progress
from training.metrics import auc, sigmoid, xauc, xlogloss

FIRST_SECOND = 1_772_409_600  # Monday 2 March 2026, 00:00 UTC
DAY_SECONDS = 86_400
CHUNK_ROWS = 50_000
REFERENCE_ROWS = 60_000

Codes = dict[str, NDArray[Any]]
"""A column of integers (levels) or of floats (numbers) for each name, visible or hidden."""


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
DAY_SPREAD = 0.01
"""Relative standard deviation of the click rate from day to day, as far as time alone moves it."""
INHERITED = 0.7
"""Share of a trait's variance that a child has from its parent: an ad resembles its campaign."""


@dataclass(frozen=True)
class WorldReport:
    """What was written, and what a model that knew the truth would reach on it, on all rows and on the last day."""

    rows: int
    days: int
    ctr: float
    bayes_auc: float
    bayes_xauc: float
    bayes_logloss: float
    last_day: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


class World:
    """`rows` impressions over `days` days of the world with this seed."""

    def __init__(
        self,
        seed: int = 0,
        rows: int = 185_000,
        days: int = 8,
        *,
        ctr: float = 0.16,
        logit_sd: float = 1.42,
    ) -> None:
        if rows < days or days < 1:
            raise ValueError(f"expected at least one row a day, got {rows} rows over {days} days")
        self.seed = seed
        self.rows = rows
        self.days = days
        self._inhabit()
        self._tables = [self._effect_tables(k, effect) for k, effect in enumerate(EFFECTS)]
        # Every effect is brought to mean 0 and its share of the variance over the same reference impressions,
        # whatever the number of rows asked for.
        reference = self._reference()
        raw = [self._raw(effect, table, reference) for effect, table in zip(EFFECTS, self._tables, strict=True)]
        total = sum(effect.share for effect in EFFECTS)
        self._centres = [float(values.mean()) for values in raw]
        self._scales = [
            logit_sd * float(np.sqrt(effect.share / total) / values.std())
            for effect, values in zip(EFFECTS, raw, strict=True)
        ]
        terms = zip(raw, self._centres, self._scales, strict=True)
        logit = np.sum([scale * (values - centre) for values, centre, scale in terms], axis=0)
        # Tastes drift, the level hardly does: each day has its own intercept, which brings it to about `ctr`.
        level = ctr * np.exp(DAY_SPREAD * self._rng(5).normal(size=days))
        self._intercept = np.array([_intercept_for(logit[reference["day"] == day], level[day]) for day in range(days)])

    def _rng(self, *keys: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *keys])

    def _inhabit(self) -> None:
        """Who lives in it: the hierarchies, how often each is met, which campaigns run when."""
        rng = self._rng(1)

        def nested(child: str, parent: str) -> NDArray[np.int64]:
            """A parent for each child, popular parents having more; every parent has one at least."""
            count, parents = COUNTS[child], COUNTS[parent]
            more = rng.choice(parents, count - parents, p=_zipf(parents, 0.7))
            return rng.permutation(np.concatenate([np.arange(parents), more]))

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

        self._country_of = nested("region", "country")
        self.brand_of_model = nested("device_model", "device_brand")
        self._os_of = rng.choice(COUNTS["os"], COUNTS["device_brand"], p=[0.55, 0.25, 0.12, 0.08])
        self.publisher_of_placement = nested("placement", "publisher")
        self._site_category_of = nested("publisher", "publisher_category")
        self._is_app = rng.random(COUNTS["publisher"]) < 0.4
        publisher_weight = _zipf(COUNTS["publisher"], 0.9)[rng.permutation(COUNTS["publisher"])]
        within = rng.lognormal(0, 0.6, COUNTS["placement"])
        within /= np.bincount(self.publisher_of_placement, weights=within)[self.publisher_of_placement]
        self._placement_weight = publisher_weight[self.publisher_of_placement] * within

        self._campaign_of = nested("ad", "campaign")
        self._advertiser_of = nested("campaign", "advertiser")
        self._ad_category_of = nested("advertiser", "ad_category")

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
        self._traits = {name: rng.normal(size=(count, TRAITS)) for name, count in COUNTS.items()}
        for child, (parent, of) in parents.items():  # parents come before their children
            inherited = self._traits[parent][of]
            own = self._traits[child]
            self._traits[child] = np.sqrt(INHERITED) * inherited + np.sqrt(1 - INHERITED) * own
        # What a user looks at by choice, a matter of the same traits.
        taste = 0.8 * self._traits["user"] @ rng.normal(size=(TRAITS, TRAITS)) @ self._traits["ad_category"].T
        taste = np.exp(taste - taste.max(axis=1, keepdims=True))
        self._user_taste = taste / taste.sum(axis=1, keepdims=True)

        campaigns = COUNTS["campaign"]
        start = rng.uniform(-12, self.days, campaigns)
        length = rng.lognormal(1.9, 0.7, campaigns)
        evergreen = rng.random(campaigns) < 0.2
        start[evergreen], length[evergreen] = -30, 1000
        ad_delay = rng.exponential(2.0, COUNTS["ad"]) * (rng.random(COUNTS["ad"]) < 0.4)
        self._ad_start = start[self._campaign_of] + ad_delay
        self._ad_end = (start + length)[self._campaign_of]
        campaign_weight = _zipf(campaigns, 0.7)[rng.permutation(campaigns)]
        self._ad_weight = campaign_weight[self._campaign_of] * rng.lognormal(0, 0.8, COUNTS["ad"])
        self._creative_format = rng.choice(COUNTS["creative_format"], COUNTS["ad"], p=_zipf(6, 0.6))
        self._title_length = rng.integers(8, 90, COUNTS["ad"])
        self._landing_ms = rng.lognormal(6.6, 0.7, COUNTS["ad"])
        self._campaign_bid = rng.lognormal(-0.7, 0.8, campaigns)
        self._discount = np.where(
            rng.random(COUNTS["ad"]) < 0.35, np.nan, np.round(rng.beta(1.2, 4.0, COUNTS["ad"]), 2)
        )

    def _impressions(self, rng: np.random.Generator, day: int, rows: int) -> Codes:
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
        codes["recent"] = np.minimum((drawn[:, :, None] > cumulative[:, None, :]).sum(axis=2), len(_CATEGORIES) - 1)
        codes["recent_length"] = length
        return codes

    def _effect_tables(self, k: int, effect: Effect) -> list[NDArray[np.float64]]:
        """The hidden numbers of an effect, one array a column it reads."""
        rng = self._rng(2, k)
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
        steps = rng.normal(size=(self.days, COUNTS[effect.columns[0]]))
        walk = np.cumsum(steps, axis=0)
        return [walk / walk.std(axis=0, keepdims=True).mean()]

    def _raw(self, effect: Effect, tables: list[NDArray[np.float64]], codes: Codes) -> NDArray[np.float64]:
        """An effect's value on every row, before centring and scaling."""
        first = codes[effect.columns[0]]
        if effect.kind == "main":
            return tables[0][first]
        if effect.kind in ("pair", "triple"):
            product = np.ones((len(first), TRAITS))
            for name, mix in zip(effect.columns, tables, strict=True):
                product *= (self._traits[name] @ mix)[codes[name]]
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

    def _reference(self) -> Codes:
        per_day = REFERENCE_ROWS // self.days + 1
        days = [self._impressions(self._rng(3, day), day, per_day) for day in range(self.days)]
        return {name: np.concatenate([codes[name] for codes in days]) for name in days[0]}

    def true_logit(self, codes: Codes) -> NDArray[np.float64]:
        """The sum of all effects, [n]."""
        logit = self._intercept[codes["day"]]
        for effect, table, centre, scale in zip(EFFECTS, self._tables, self._centres, self._scales, strict=True):
            logit += scale * (self._raw(effect, table, codes) - centre)
        return logit

    def chunks(self) -> Iterator[pa.Table]:
        """The log in the order of time, as tables of raw values."""
        per_day = np.diff(np.linspace(0, self.rows, self.days + 1).astype(int))
        for day, rows in enumerate(per_day):
            # A day is drawn whole, so that its rows come in the order of time; then it is handed on in
            # pieces.
            rng = self._rng(4, day)
            codes = self._impressions(rng, day, int(rows))
            true_pctr = sigmoid(self.true_logit(codes))
            click = rng.random(len(true_pctr)) < true_pctr
            table = _as_logged(codes, click, true_pctr, self)
            for start in range(0, len(table), CHUNK_ROWS):
                yield table.slice(start, CHUNK_ROWS)

    def write(self, path: Path, *, progress: Progress | None = None) -> WorldReport:
        """Write the log to `path` (.parquet, .csv, .csv.gz, .tsv or .tsv.gz), whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".unfinished-{path.name}")
        clicks, truths, written = [], [], 0
        try:
            with _TableWriter(unfinished, path.name) as writer:
                for table in self.chunks():
                    writer.write_table(table)
                    clicks.append(table["click"].to_numpy())
                    truths.append(table["true_pctr"].to_numpy())
                    written += len(table)
                    if progress is not None:
                        progress(written, self.rows, "rows")
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
        return self._report(np.concatenate(clicks), np.concatenate(truths))

    def _report(self, click: NDArray[np.integer], truth: NDArray[np.float64]) -> WorldReport:
        def bayes(rows: slice) -> dict[str, float]:
            label, p = click[rows], truth[rows]
            return {
                "ctr": float(label.mean()),
                "bayes_auc": auc(label, p),
                "bayes_xauc": xauc(p, p),
                "bayes_logloss": xlogloss(p, p),
            }

        last = int(np.linspace(0, self.rows, self.days + 1).astype(int)[-2])
        return WorldReport(self.rows, self.days, **bayes(slice(None)), last_day=bayes(slice(last, None)))

    @staticmethod
    def schema() -> FeatureSchema:
        """What the log's columns mean. `true_pctr` is the truth and never a feature."""
        return FeatureSchema.model_validate(
            {
                "label": {"column": "click"},
                "timestamp": {"column": "time", "format": "epoch", "unit": "s"},
                "unit": {"column": "user_id"},
                "truth": {"column": "true_pctr"},
                "fields": [
                    _categorical("user_id", "context"),
                    _categorical("age_band", "context"),
                    _categorical("gender", "context"),
                    _categorical("country", "context"),
                    _categorical("region", "context", "integer"),
                    _categorical("device_model", "context"),
                    _categorical("device_brand", "context"),
                    _categorical("os", "context"),
                    _categorical("connection", "context"),
                    _categorical("publisher_id", "context", "integer"),
                    _categorical("publisher_category", "context"),
                    _categorical("placement", "context"),
                    _categorical("is_app", "context", "boolean"),
                    _categorical("hour", "context", "integer") | {"derived_from": "timestamp", "derive": "hour"},
                    _categorical("weekday", "context", "integer") | {"derived_from": "timestamp", "derive": "weekday"},
                    _numeric("session_depth", "context", "integer", "log_bucket"),
                    _numeric("seen_today", "context", "integer", "log_bucket"),
                    _numeric("account_age_days", "context", "float", "quantile"),
                    _numeric("page_words", "context", "integer", "quantile"),
                    {
                        "name": "recent_categories",
                        "type": "string",
                        "role": "context",
                        "kind": "sequence",
                        "separator": "|",
                        "max_length": 6,
                        "encoding": {"method": "vocabulary", "min_count": 2},
                    },
                    _categorical("ad_id", "candidate"),
                    _categorical("campaign_id", "candidate", "integer"),
                    _categorical("advertiser_id", "candidate"),
                    _categorical("ad_category", "candidate"),
                    _categorical("creative_format", "candidate"),
                    _numeric("bid", "candidate", "float", "quantile"),
                    _numeric("landing_ms", "candidate", "float", "quantile"),
                    _numeric("title_length", "candidate", "integer", "quantile"),
                    _numeric("discount", "candidate", "float", "quantile"),
                ],
            }
        )


def _categorical(name: str, role: str, type_: str = "string") -> dict[str, Any]:
    encoding = {"method": "vocabulary", "min_count": 2}
    return {"name": name, "type": type_, "role": role, "kind": "categorical", "encoding": encoding}


def _numeric(name: str, role: str, type_: str, method: str) -> dict[str, Any]:
    encoding: dict[str, Any] = {"method": method}
    if method == "quantile":
        encoding["buckets"] = 24
    return {"name": name, "type": type_, "role": role, "kind": "numeric", "encoding": encoding}


_CATEGORIES = [
    "apparel",
    "auto",
    "beauty",
    "books",
    "dating",
    "education",
    "electronics",
    "finance",
    "food",
    "games",
    "grocery",
    "health",
    "home",
    "insurance",
    "jobs",
    "kids",
    "music",
    "pets",
    "property",
    "sport",
    "telecom",
    "travel",
]
_SITE_CATEGORIES = [
    "blog",
    "chat",
    "classifieds",
    "cooking",
    "email",
    "finance",
    "forum",
    "games",
    "lifestyle",
    "maps",
    "music",
    "news",
    "photo",
    "search",
    "social",
    "sport",
    "video",
    "weather",
]
_COUNTRIES = [
    "ae",
    "at",
    "au",
    "be",
    "br",
    "ca",
    "ch",
    "de",
    "dk",
    "es",
    "fr",
    "gb",
    "it",
    "jp",
    "nl",
    "pl",
    "se",
    "us",
]
_BRANDS = [
    "acorn",
    "birch",
    "cedar",
    "dune",
    "ember",
    "fjord",
    "grove",
    "heron",
    "iris",
    "jade",
    "kite",
    "lotus",
    "maple",
    "nova",
    "onyx",
    "pine",
    "quartz",
    "reef",
    "sage",
    "tern",
    "umber",
    "violet",
]
_NAMES: dict[str, list[str] | list[int]] = {
    "user_id": [f"u{k:05d}" for k in range(COUNTS["user"])],
    "age_band": ["13-17", "18-24", "25-34", "35-44", "45-54", "55-64", "65+"],
    "gender": ["female", "male", "other"],
    "country": _COUNTRIES,
    "region": [1000 + 7 * k for k in range(COUNTS["region"])],
    "device_brand": _BRANDS,
    "os": ["android", "ios", "desktop", "tv"],
    "connection": ["wifi", "5g", "4g", "cable"],
    "publisher_id": [20_000 + 13 * k for k in range(COUNTS["publisher"])],
    "publisher_category": _SITE_CATEGORIES,
    "ad_id": [f"a{k:05d}" for k in range(COUNTS["ad"])],
    "campaign_id": [700_000 + 3 * k for k in range(COUNTS["campaign"])],
    "advertiser_id": [f"adv-{k:03d}" for k in range(COUNTS["advertiser"])],
    "ad_category": _CATEGORIES,
    "creative_format": ["300x250", "728x90", "320x50", "160x600", "native", "video"],
}
_COLUMN_OF = {"user_id": "user", "publisher_id": "publisher", "ad_id": "ad"}
_COLUMN_OF |= {"campaign_id": "campaign", "advertiser_id": "advertiser"}


def _as_logged(codes: Codes, click: NDArray[np.bool_], true_pctr: NDArray[np.float64], world: World) -> pa.Table:
    """The visible columns as a real log would hold them: text, integers, floats, booleans and missing values."""

    def levels(name: str) -> pa.Array:
        column = _COLUMN_OF.get(name, name)
        missing = codes.get(f"{column}_missing")
        indices = pa.array(codes[column].astype(np.int32), mask=missing)
        return pa.DictionaryArray.from_arrays(indices, pa.array(_NAMES[name])).dictionary_decode()

    def number(name: str, type_: pa.DataType) -> pa.Array:
        return pa.array(codes[name], mask=codes.get(f"{name}_missing")).cast(type_)

    brand = np.array(_BRANDS, dtype=object)
    model_names = [f"{brand[b]} {k:03d}" for k, b in enumerate(world.brand_of_model)]
    placement_names = [f"{_NAMES['publisher_id'][p]}/{k:03d}" for k, p in enumerate(world.publisher_of_placement)]
    category = np.array(_CATEGORIES, dtype=object)
    recent = [
        "|".join(row[:length]) if length else None
        for row, length in zip(category[codes["recent"]], codes["recent_length"], strict=True)
    ]
    columns = {"time": pa.array(codes["second"]), "click": pa.array(click.astype(np.int8))}
    for name in ("user_id", "age_band", "gender", "country", "region"):
        columns[name] = levels(name)
    columns["device_model"] = pa.array(model_names).take(pa.array(codes["device_model"]))
    for name in ("device_brand", "os", "connection", "publisher_id", "publisher_category"):
        columns[name] = levels(name)
    columns["placement"] = pa.array(placement_names).take(pa.array(codes["placement"]))
    columns["is_app"] = pa.array(codes["is_app"])
    for name in ("session_depth", "seen_today"):
        columns[name] = number(name, pa.int64())
    columns["account_age_days"] = number("account_age_days", pa.float64())
    columns["page_words"] = number("page_words", pa.int64())
    columns["recent_categories"] = pa.array(recent, type=pa.string())
    for name in ("ad_id", "campaign_id", "advertiser_id", "ad_category", "creative_format"):
        columns[name] = levels(name)
    for name in ("bid", "landing_ms"):
        columns[name] = number(name, pa.float64())
    columns["title_length"] = number("title_length", pa.int64())
    columns["discount"] = number("discount", pa.float64())
    columns["true_pctr"] = pa.array(true_pctr)
    return pa.table(columns)


def _zipf(count: int, exponent: float) -> NDArray[np.float64]:
    """Probabilities falling as rank ** -exponent."""
    weight = np.arange(1, count + 1, dtype=np.float64) ** -exponent
    return np.asarray(weight / weight.sum())


def _draw(rng: np.random.Generator, probability: NDArray[np.float64]) -> NDArray[np.int64]:
    """One level a row of [n, levels] probabilities."""
    cumulative = np.cumsum(probability, axis=1)
    level = (rng.random(len(cumulative))[:, None] > cumulative).sum(axis=1)
    return np.asarray(np.minimum(level, cumulative.shape[1] - 1))


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


def _squashed(name: str, values: NDArray[Any]) -> NDArray[np.float64]:
    """A heavy-tailed number as the truth sees it: ln(1 + x), about standard, tails cut at 3."""
    centre, spread = _SCALE[name]
    return np.asarray(np.clip((np.log1p(values) - centre) / spread, -3, 3))


def _intercept_for(logit: NDArray[np.float64], ctr: float) -> float:
    """The constant that brings the mean probability to `ctr`, by bisection."""
    low, high = -20.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        if sigmoid(logit + middle).mean() < ctr:
            low = middle
        else:
            high = middle
    return (low + high) / 2


class _TableWriter:
    """Writes tables in the format that a file name ends in, opened at `path`; a context manager."""

    def __init__(self, path: Path, name: str) -> None:
        stem = name.removesuffix(".gz")
        kind = Path(stem).suffix
        if kind not in (".csv", ".tsv") and not (kind == ".parquet" and stem == name):
            raise ValueError(f"{name}: expected .parquet, .csv, .csv.gz, .tsv or .tsv.gz")
        self._path, self._kind, self._zipped = path, kind, stem != name
        self._writer: Any = None
        self._sink: Any = None

    def __enter__(self) -> _TableWriter:
        return self

    def write_table(self, table: pa.Table) -> None:
        if self._writer is None:
            if self._kind == ".parquet":
                self._sink = pa.OSFile(str(self._path), "wb")
                self._writer = pyarrow.parquet.ParquetWriter(self._sink, table.schema)
            else:
                compression = "gzip" if self._zipped else None
                self._sink = pa.output_stream(str(self._path), compression=compression)
                options = pyarrow.csv.WriteOptions(
                    delimiter="\t" if self._kind == ".tsv" else ",", quoting_style="needed"
                )
                self._writer = pyarrow.csv.CSVWriter(self._sink, table.schema, write_options=options)
        self._writer.write_table(table)

    def __exit__(self, *_: object) -> None:
        for opened in (self._writer, self._sink):
            if opened is not None:
                opened.close()
