"""report.json and report.html, side by side; search.html."""

import json
from pathlib import Path
from typing import Any

from training.report.page import render, render_search
from training.whole import write_whole


def write_report(folder: Path, report: dict[str, Any]) -> Path:
    """Write both files into `folder`, each whole or not at all; returns the path of report.json."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "report.html", render(report))
    return write_whole(folder / "report.json", json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_search(folder: Path, found: dict[str, Any]) -> Path:
    """search.html, what a search found by itself."""
    return write_whole(folder / "search.html", render_search(found))
