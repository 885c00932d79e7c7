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
    "normalised_entropy": ("normalised entropy", "figure"),
    "gauc": ("gAUC", "figure"),
    "ece": ("ECE", "figure"),
    "ece_floor": ("ECE floor", "figure"),
    "xece": ("error against truth", "figure"),
    "predicted_over_actual": ("predicted over actual", "figure"),
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


def table(
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    label: str,
    left: int = 1,
    strong: int | None = None,
    shades: Sequence[Sequence[float]] = (),
) -> str:
    """A table that scrolls sideways in its own box, by keyboard too; a screen reader calls it by its `label`.

    The first `left` columns are words, the others numbers, and the first names its row. `shades`, a row of shares from
    0 to 1 a row, colours the last cells of each.
    """

    def kind(place: int) -> str:
        return "" if place < left else " class=num"

    def cells(row: Sequence[str], shade: Sequence[float]) -> str:
        first = len(row) - len(shade)
        return f"<th scope=row>{row[0]}</th>" + "".join(
            f"<td{kind(place)}{_shade(shade[place - first]) if place >= first else ''}>{cell}</td>"
            for place, cell in enumerate(row)
            if place
        )

    head = "".join(
        f"<th scope=col{kind(place)}>{cell}</th>" if cell else f"<td{kind(place)}></td>"
        for place, cell in enumerate(heads)
    )
    body = "".join(
        f"<tr{' class=strong' if place == strong else ''}>{cells(row, shades[place] if shades else ())}</tr>"
        for place, row in enumerate(rows)
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{html.escape(label)}">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _shade(share: float) -> str:
    """A tint by share, a tenth in ten steps: what is written in the cell is what counts."""
    return f' data-shade="{max(0, min(10, round(share * 10)))}"'
