"""Tables of `ablate` that lie in a run's folder, as its report carries them: `controls` row by row, of the others what
they say of each claim.

A table belongs to a report where log and split are the same: the log by the fingerprint that both record (a table of
before records none), the split by the recipe. What else of its recipe differs is named, for its student is then not
quite the run's.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from training.ablate.paired import UNTUNED

Tree = dict[str, Any]

OF_THE_METHOD = (
    "scheme",
    "teachers",
    "gate",
    "student",
    "control",
    "merge_validation",
    "negatives",
    "for_teachers",
    "precision",
)
"""Parts of a recipe that make its student another one."""
METRICS = ("xauc", "auc", "xlogloss", "logloss")


def tables_before(folder: Path, recipe: Mapping[str, Any], fingerprint: str | None) -> Tree | None:
    """What `ablate` left in `folder`/tables of this log and split: `controls` (null where it was not filled) and
    `others`; None where there is nothing. A table that is not of this log, or no table, is said on stderr."""
    found: Tree = {"controls": None, "others": []}
    for file in sorted((folder / "tables").glob("*.json")):
        table = _read(file)
        if table is None or not _is_of(table, recipe, fingerprint):
            what = "no table that ablate wrote" if table is None else "of another log or split than this run"
            print(f"{file}: {what}, so the report leaves it out", file=sys.stderr)
        elif table["table"] == "controls":
            found["controls"] = _whole(table, recipe)
        else:
            found["others"].append(_facts(table, recipe))
    return found if found["controls"] or found["others"] else None


def _read(file: Path) -> Tree | None:
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    wanted = {"table", "title", "recipe", "seeds", "rows", "claims", "metric", "heads"}
    return table if isinstance(table, dict) and table.keys() >= wanted else None


def _is_of(table: Mapping[str, Any], recipe: Mapping[str, Any], fingerprint: str | None) -> bool:
    said = table.get("fingerprint")
    if said is not None and fingerprint is not None and said != fingerprint:
        return False
    return all(table["recipe"].get(key) == recipe.get(key) for key in ("source", "split"))


def _facts(table: Mapping[str, Any], recipe: Mapping[str, Any]) -> Tree:
    return {
        "table": table["table"],
        "title": table["title"],
        "created": table.get("created"),
        "seeds": len(table["seeds"]),
        "metric": table["metric"],
        "differs": [key for key in OF_THE_METHOD if table["recipe"].get(key) != recipe.get(key)],
        "claims": [_claim(claim) for claim in table["claims"]],
    }


def _whole(table: Mapping[str, Any], recipe: Mapping[str, Any]) -> Tree:
    rows = [
        {
            "name": ", ".join(filter(None, row["cells"])),
            "model": row["model"],
            "test": _figures(row["seeds"]),
            "against": ", ".join(filter(None, row["against"])) if row.get("against") else None,
            **{key: row.get(key) for key in ("difference", "less_ensemble", "share_of_ensembles_gain")},
        }
        for row in table["rows"]
    ]
    return {**_facts(table, recipe), "rows": rows}


def _figures(seeds: Sequence[Mapping[str, Any]]) -> Tree:
    """{metric: {mean, sd}} on test rows; sd is null for one seed."""
    found: Tree = {}
    for metric in METRICS:
        values = [entry["test"].get(metric) for entry in seeds]
        if values and all(value is not None for value in values):
            sd = statistics.stdev(values) if len(values) > 1 else None
            found[metric] = {"mean": statistics.fmean(values), "sd": sd}
    return found


def _claim(claim: Mapping[str, Any]) -> Tree:
    """How many of its pairs hold, are open, say the opposite, or are not judged for want of tuning; the difference
    where it is a single pair."""
    verdicts: Iterable[str | None] = [pair["verdict"] for pair in claim["pairs"]]
    count = Counter(verdicts)
    return {
        "text": claim["text"],
        "pairs": len(claim["pairs"]),
        "is_judged": None not in count and bool(claim["pairs"]),
        "holds": count["holds"],
        "open": count["open"],
        "opposite": count["does not hold"],
        "untuned": count[UNTUNED],
        "difference": claim["pairs"][0]["difference"] if len(claim["pairs"]) == 1 else None,
    }
