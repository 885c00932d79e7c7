"""report.json -> report.html: one file, nothing loaded from elsewhere, readable on a phone, in light and in dark.

The order is that of a reader's questions: does the student win, against what, at what cost; what was not reached;
then how it came about. Every drawing has its table.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from training.report.sections import answer, learning, models, origin
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
    origin.data,
    origin.provenance,
)


def render(report: Mapping[str, Any]) -> str:
    """The whole page."""
    values = Values(report)
    title = html.escape(f"{report['name']}: distillation report")
    sections = "\n".join(filter(None, (section(values) for section in SECTIONS)))
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<style>\n{STYLE.read_text(encoding='utf-8')}</style>\n</head>\n<body>\n<main>\n{sections}\n</main>\n"
        "</body>\n</html>\n"
    )
