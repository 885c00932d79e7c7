"""Markdown that people read as text too: tables, and means with their spread."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence


def spread(values: Sequence[float | None]) -> str:
    """mean ± sd; the mean alone of one value, nothing of none."""
    found = [value for value in values if value is not None]
    if not found:
        return ""
    mean = f"{statistics.mean(found):.4f}"
    return f"{mean} ± {statistics.stdev(found):.4f}" if len(found) > 1 else mean


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines of a Markdown table; a | or a line's end within a cell does not end it."""
    yield _line(heads)
    yield "|" + "---|" * len(heads)
    yield from map(_line, rows)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(" ".join(cell.split("\n")).replace("|", r"\|") for cell in cells) + " |"
