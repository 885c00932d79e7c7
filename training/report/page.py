"""report.json -> report.html: one file, nothing loaded from elsewhere, readable on a phone, in light and in dark.

The order is that of a reader's questions: does the student win, against what, at what cost; what was not reached;
then how it came about. Every drawing has its table.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from training.report.sections import answer, controls, learning, models, origin, quantized, search, trained, words
from training.report.values import Values

STYLE = Path(__file__).with_name("style.css")

SECTIONS: tuple[Callable[[Values], str], ...] = (
    answer.header,
    answer.verdict,
    trained.trained,
    models.every_model,
    controls.controls,
    models.cost_and_quality,
    quantized.quantized,
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
    words.words,
)


def render(report: Mapping[str, Any]) -> str:
    """The whole page."""
    return _page(f"{report['name']}: distillation report", Values(report), SECTIONS)


def render_search(found: Mapping[str, Any]) -> str:
    """What `training search` found, as a page of its own."""
    tree = {"search": dict(found), "recipe": found["recipe"]}
    return _page(f"{found['recipe']['name']}: student search", Values(tree), (search.header, search.search))


def _page(title: str, values: Values, sections: Sequence[Callable[[Values], str]]) -> str:
    body = _with_contents([text for section in sections if (text := section(values))])
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<style>\n{STYLE.read_text(encoding='utf-8')}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n"
        "</body>\n</html>\n"
    )


_HEADING = re.compile(r'<section id="([\w-]+)"><h2>(.*?)</h2>')


def _with_contents(sections: Sequence[str]) -> str:
    """The sections, and behind the answer, which comes first, the way to the others."""
    found = [match for text in sections if (match := _HEADING.search(text))]
    links = "".join(f'<li><a href="#{match[1]}">{match[2]}</a></li>' for match in found)
    contents = f'<nav class="contents" aria-label="On this page"><ul>{links}</ul></nav>' if len(found) > 1 else ""
    first = next((place for place, text in enumerate(sections) if _HEADING.search(text)), len(sections))
    return "\n".join([*sections[:first], contents, *sections[first:]])
