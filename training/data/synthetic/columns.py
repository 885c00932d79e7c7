"""What the synthetic log shows: its visible columns, and the schema that says what they mean.

Codes become names here; what a person or a real log would not know (traits, segments) stays behind.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from models.schema import FeatureSchema
from training.data.synthetic.inhabitants import COUNTS, Codes, Inhabitants


def _words(text: str) -> list[str]:
    return text.split()


_CATEGORIES = _words("""
    apparel auto beauty books dating education electronics finance food games grocery health home insurance jobs
    kids music pets property sport telecom travel
""")
_SITE_CATEGORIES = _words("""
    blog chat classifieds cooking email finance forum games lifestyle maps music news photo search social sport
    video weather
""")
_COUNTRIES = _words("ae at au be br ca ch de dk es fr gb it jp nl pl se us")
_BRANDS = _words("""
    acorn birch cedar dune ember fjord grove heron iris jade kite lotus maple nova onyx pine quartz reef sage tern
    umber violet
""")
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


def as_logged(
    codes: Codes, click: NDArray[np.bool_], true_pctr: NDArray[np.float64], inhabitants: Inhabitants
) -> pa.Table:
    """The visible columns as a real log would hold them: text, integers, floats, booleans and missing values."""

    def levels(name: str) -> pa.Array:
        column = _COLUMN_OF.get(name, name)
        missing = codes.get(f"{column}_missing")
        indices = pa.array(codes[column].astype(np.int32), mask=missing)
        return pa.DictionaryArray.from_arrays(indices, pa.array(_NAMES[name])).dictionary_decode()

    def number(name: str, type_: pa.DataType) -> pa.Array:
        return pa.array(codes[name], mask=codes.get(f"{name}_missing")).cast(type_)

    brand = np.array(_BRANDS, dtype=object)
    model_names = [f"{brand[b]} {k:03d}" for k, b in enumerate(inhabitants.brand_of_model)]
    placement_names = [f"{_NAMES['publisher_id'][p]}/{k:03d}" for k, p in enumerate(inhabitants.publisher_of_placement)]
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


def log_schema() -> FeatureSchema:
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
