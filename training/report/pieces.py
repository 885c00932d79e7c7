"""What every section of the page is made of: titles, columns of figures, tables, boxes."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from training.report.values import Values, pointer

TITLES = {
    "student": "student",
    "control_train_valid": "control, same rows",
    "control_train": "control, training rows only",
    "control": "control",
    "average": "plain average of teachers",
    "ensemble": "ensemble (gate)",
    "best_teacher": "best single teacher",
}
METRICS: dict[str, tuple[str, str]] = {
    "xauc": ("xAUC", "figure"),
    "auc": ("AUC", "figure"),
    "xlogloss": ("xlogloss", "figure"),
    "logloss": ("logloss", "figure"),
    "normalised_entropy": ("norm. entropy", "figure"),
    "gauc": ("gAUC", "figure"),
    "ece": ("ECE", "figure"),
    "ece_floor": ("ECE floor", "figure"),
    "xece": ("error against truth", "figure"),
    "predicted_over_actual": ("pred./actual", "figure"),
}
"""By key of the report: what a column of it is called, and how its values are written."""


def models_of(v: Values, *path: str) -> list[tuple[str, str]]:
    """(title, pointer) of every model under a path: student, controls, average, ensemble, teachers."""
    tree = v.get(pointer(*path))
    found = [(TITLES.get(name, html.escape(name)), pointer(*path, name)) for name in tree if name != "teachers"]
    teachers = tree.get("teachers", {})
    return found + [(f"teacher {html.escape(name)}", pointer(*path, "teachers", name)) for name in teachers]


def title(v: Values, name: str) -> str:
    """What a side of a comparison is called; the best teacher by its own name too."""
    if name == "best_teacher":
        return f"{TITLES[name]} ({v.show('/best_teacher', 'text')})"
    return TITLES[name]


def section(title: str, body: str, anchor: str) -> str:
    """A part of the page that `#anchor` leads to."""
    return f'<section id="{anchor}"><h2>{title}</h2>{body}</section>'


def details(summary: str, body: str) -> str:
    """What a reader opens who wants more."""
    return f"<details><summary>{summary}</summary>{body}</details>"


def figure(drawing: str) -> str:
    """A drawing in its box."""
    return f'<figure class="wide">{drawing}</figure>'


def legend(entries: Iterable[tuple[str, str]]) -> str:
    """(name, style) of each line of a drawing, in the colour of its style."""
    return (
        '<p class="legend">' + " ".join(f'<span class="key {style}">{name}</span>' for name, style in entries) + "</p>"
    )


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1, strong: int | None = None) -> str:
    """A table that scrolls sideways in its own box; the first `left` columns are words, the others numbers."""

    def cells(row: Sequence[str], tag: str) -> str:
        return "".join(f"<{tag}{'' if place < left else ' class=num'}>{cell}</{tag}>" for place, cell in enumerate(row))

    body = "".join(
        f"<tr{' class=strong' if place == strong else ''}>{cells(row, 'td')}</tr>" for place, row in enumerate(rows)
    )
    return f'<div class="scroll"><table><thead><tr>{cells(heads, "th")}</tr></thead><tbody>{body}</tbody></table></div>'
