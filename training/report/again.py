"""A run's report once more, from its report.json: after an update of the page, or with what a sweep, a search or
`ablate` has left in its folder since."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.errors import DataError
from training.report.figures import judged_again
from training.report.tables import tables_before
from training.report.write import write_report


def found_before(file: Path, recipe: Mapping[str, Any]) -> Any:
    """What a sweep or a search in the same folder found, if it was of the same log and split."""
    if not file.exists():
        return None
    found = _read(file)
    if any(found.get("recipe", {}).get(key) != recipe.get(key) for key in ("source", "split")):
        print(f"{file}: of another log or split than this run, so the report leaves it out", file=sys.stderr)
        return None
    return found


def report_again(place: Path) -> Path:
    """Write report.html, and report.json with the sweep, the search and the tables that lie beside it now; nothing is
    measured, but what was is judged as this version does.

    `place` is a run's folder or its report.json; returns the path of report.html.
    """
    file = place / "report.json" if place.is_dir() else place
    report = _read(file)
    if "answer" not in report or "recipe" not in report:
        raise DataError(f"{file}: expected the report.json of a run, got JSON without 'answer' and 'recipe'")
    for name in ("sweep", "search"):
        report[name] = found_before(file.parent / f"{name}.json", report["recipe"]) or report.get(name)
    try:
        report["tables"] = tables_before(file.parent, report["recipe"], report["data"]["fingerprint"]) or report.get(
            "tables"
        )
        write_report(file.parent, judged_again(report))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{file}: is not as a run of this version writes it ({type(error).__name__}: {error})"
        ) from None
    return file.parent / "report.html"


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{file}: cannot be opened: {error.strerror or error}; a run writes it") from None
    except ValueError as error:
        raise DataError(f"{file}: expected JSON: {error}") from None
    if not isinstance(found, dict):
        raise DataError(f"{file}: expected what a run wrote, got {type(found).__name__}")
    return found
