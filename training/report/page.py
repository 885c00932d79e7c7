"""report.json -> report.html: one file, nothing loaded from elsewhere, readable on a phone, in light and in dark.

The order is that of a reader's questions: does the student win, against what, at what cost; what was not reached;
then how it came about. Every drawing has its table.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from training.report.sections import answer, learning, models, origin, search
from training.report.values import Values

STYLE = Path(__file__).with_name("style.css")

SECTIONS: tuple[Callable[[Values], str], ...] = (
    answer.header,
    answer.verdict,
    models.every_model,
    models.cost_and_quality,
    answer.targets,
    models.differences,
    learning.calibration,
    learning.curves,
    learning.gate,
    origin.who_saw_what,
    learning.sweep,
    search.search,
    origin.data,
    origin.provenance,
)


def render(report: Mapping[str, Any]) -> str:
    """The whole page."""
    return _page(f"{report['name']}: distillation report", Values(report), SECTIONS)


def render_search(found: Mapping[str, Any]) -> str:
    """What `training search` found, as a page of its own."""
    tree = {"search": dict(found), "recipe": found["recipe"]}
    return _page(f"{found['recipe']['name']}: student search", Values(tree), (search.header, search.search))


def _page(title: str, values: Values, sections: Sequence[Callable[[Values], str]]) -> str:
    body = "\n".join(filter(None, (section(values) for section in sections)))
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<style>\n{STYLE.read_text(encoding='utf-8')}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n"
        "</body>\n</html>\n"
    )
