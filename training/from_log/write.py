"""Rows -> a folder to train from: the log, its schema, a recipe that names both, and a report of what was left out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from training.data.encoded_log import Part
from training.data.split import TimeSplit, parts_by_time
from training.data.timestamps import to_iso, zone_of
from training.errors import DataError
from training.from_log.features import schema_of_log
from training.from_log.join import SPLIT, Joined
from training.recipe import LoadedRecipe

LOG, SCHEMA, RECIPE, REPORT = "log.parquet", "schema.json", "recipe.yaml", "report.json"
UNLABELLED = "unlabelled.parquet"
ROW_GROUP = 1 << 16
MOST_NAMES = 20
"""That a person is told; `report.json` has all."""
_NAMES = {int(Part.TRAIN): "train", int(Part.TEST): "test"}


def write(
    out: Path, joined: Joined, template: LoadedRecipe, split: TimeSplit, stated: dict[str, Any]
) -> dict[str, Any]:
    """Writes the folder `out`, whole or not at all; returns the report. `stated`: what was asked for, for the report.

    `template.schema` is what the features were read by; the recipe is `template.recipe` over this log. Raises
    `DataError` where `out` is there already.
    """
    if out.exists():
        raise DataError(f"{out}: is there already; expected a new folder, since nothing is overwritten")
    schema = schema_of_log(template.schema, joined.features.column_of)
    assert schema.timestamp is not None
    micros = joined.table["time"].cast(pa.int64()).to_numpy()
    parts = parts_by_time(split, micros, zone_of(schema.timestamp.timezone))
    names = np.array([_NAMES.get(part, "valid") for part in parts.tolist()])
    table = joined.table.append_column(SPLIT, pa.array(names))
    report = {
        "format_version": 1,
        **stated,
        "as_of": joined.as_of,
        "counts": dict(sorted(joined.counts.items())),
        "parts": {name: _facts(table, micros, names == name) for name in ("train", "valid", "test")},
        "missing_values": dict(sorted(joined.features.missing.items())),
        "bad_values": dict(sorted(joined.features.bad.items())),
        "ignored_features": dict(sorted(joined.features.ignored.items())),
    }
    unfinished = out.with_name(f".{out.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        pq.write_table(table, unfinished / LOG, compression="zstd", row_group_size=ROW_GROUP)
        (unfinished / SCHEMA).write_text(schema.to_json(), encoding="utf-8")
        if joined.unlabelled is not None:
            pq.write_table(joined.unlabelled, unfinished / UNLABELLED, compression="zstd", row_group_size=ROW_GROUP)
        further = joined.unlabelled is not None
        (unfinished / RECIPE).write_text(recipe_text(template, out.name, unlabelled=further), encoding="utf-8")
        (unfinished / REPORT).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        unfinished.rename(out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return report


def _facts(table: pa.Table, micros: npt.NDArray[np.int64], here: npt.NDArray[np.bool_]) -> dict[str, Any]:
    times, clicks = micros[here], table["click"].to_numpy()[here]
    span = [to_iso(int(times.min())), to_iso(int(times.max()))] if len(times) else None
    return {"rows": len(times), "clicks": int(clicks.sum()), "from_to": span}


def recipe_text(template: LoadedRecipe, name: str, *, unlabelled: bool = False) -> str:
    """The template's networks, settings and seeds over the log beside it, and the rows without clicks if there are
    any, as YAML."""
    tree = template.recipe.model_dump(mode="json", exclude_unset=True)
    tree |= {
        "name": _as_name(f"{template.recipe.name}-from-{name}"),
        "description": f"What the service logged, with the networks of the recipe {template.recipe.name}.",
        "source": {"kind": "files", "paths": [LOG]},
        "schema_file": SCHEMA,
        "split": {"by": "column", "column": SPLIT, "train": ["train"], "valid": ["valid"], "test": ["test"]},
        "warm_start": None,
    }
    tree.pop("unlabelled", None)  # of the template's own log
    if unlabelled:
        tree["unlabelled"] = {"source": {"kind": "files", "paths": [UNLABELLED]}}
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=120)


def _as_name(text: str) -> str:
    kept = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "._-") else "-" for letter in text)
    return kept.lower()[:64]


def _named(found: Mapping[str, int]) -> str:
    """Names with their counts: the most frequent ones, since whoever sends requests makes names up as he likes."""
    first = sorted(found.items(), key=lambda one: (-one[1], one[0]))[:MOST_NAMES]
    told = [f"{name if name.isprintable() else ascii(name)} {count}" for name, count in first]
    return ", ".join(told) + (f" and {len(found) - MOST_NAMES} others" if len(found) > MOST_NAMES else "")


def said(report: dict[str, Any], fields: Sequence[str]) -> list[str]:
    """What a person is told."""
    counts = report["counts"]
    lines = [f"{counts['rows']} impressions, {counts['clicks']} clicks, of {counts['exposures']} exposures"]
    for name, part in report["parts"].items():
        lines.append(
            f"  {name:<6}{part['rows']:>9} rows{part['clicks']:>8} clicks  {' to '.join(part['from_to'] or ())}"
        )
    left = {name: count for name, count in counts.items() if count and name not in ("rows", "clicks", "exposures")}
    lines += ["left out, or counted otherwise:"] if left else []
    lines += [f"  {name:<32}{count:>9}" for name, count in left.items()]
    for title, found in (("values of a wrong type", "bad_values"), ("features that are no field", "ignored_features")):
        if report[found]:
            lines.append(f"{title}: {_named(report[found])}")
    never = [name for name in fields if report["missing_values"].get(name) == counts["rows"]]
    if never:
        lines.append(f"no request had these fields, is it the schema of what was served? {', '.join(never)}")
    return lines
