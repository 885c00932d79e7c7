"""How a value of the report is found and written: every number on the page goes through here.

A number on the page is `<span data-at="/json/pointer" data-form="gain">+0.0124</span>`, so a test (or a reader with the
page's source) can check each against report.json.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

MISSING = "–"
_IN_PROSE = re.compile(r"\{(/[^|{}]*)\|(\w+)\}")


def pointer(*keys: str | int) -> str:
    """An RFC 6901 pointer to a value of the tree."""
    return "".join("/" + str(key).replace("~", "~0").replace("/", "~1") for key in keys)


def look_up(tree: Any, at: str) -> Any:
    """The value at a pointer; KeyError or IndexError where there is none."""
    for step in at.split("/")[1:]:
        key = step.replace("~1", "/").replace("~0", "~")
        tree = tree[int(key)] if isinstance(tree, list) else tree[key]
    return tree


def find(tree: Any, at: str) -> Any:
    """As `look_up`, but None where there is no such value."""
    try:
        return look_up(tree, at)
    except (KeyError, IndexError, TypeError, ValueError):
        return None


def _signed(value: float, digits: int) -> str:
    text = f"{value:+.{digits}f}"
    return f"{0:.{digits}f}" if float(text) == 0 else text.replace("-", "−")


def _milliseconds(value: float) -> str:
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def _bytes(value: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:.1f} {unit}"
    return f"{value:.0f} bytes"


def _moment(value: str) -> str:
    return datetime.fromisoformat(value).strftime("%Y-%m-%d %H:%M")


FORMS: dict[str, Callable[[Any], str]] = {
    "figure": lambda value: f"{value:.4f}".replace("-", "−"),
    "gain": lambda value: _signed(value, 4),
    "number": lambda value: _signed(value, 3).removeprefix("+"),
    "ratio": lambda value: f"{value:.1f}",
    "percent": lambda value: f"{100 * value:.1f}%",
    "share": lambda value: f"{100 * value:.0f}%" if abs(value) >= 0.2 else f"{100 * value:.1f}%",
    "count": lambda value: f"{value:,.0f}",
    "ms": _milliseconds,
    "seconds": lambda value: f"{value:,.0f} s" if value >= 10 else f"{value:.1f} s",
    "bytes": _bytes,
    "tiny": lambda value: f"{value:.1e}".replace("-", "−"),
    "moment": _moment,
    "text": str,
    "plain": lambda value: f"{value:g}".replace("-", "−"),
}
"""How each kind of value is written."""


def written(tree: Any, sentence: str) -> str:
    """A sentence in plain text, each `{/pointer|form}` of it the value of the tree, written."""

    def value_of(found: re.Match[str]) -> str:
        value = find(tree, found[1])
        return MISSING if value is None else FORMS[found[2]](value)

    return _IN_PROSE.sub(value_of, sentence)


class Values:
    """The report's values as HTML."""

    def __init__(self, report: Mapping[str, Any]) -> None:
        self.report = report

    def get(self, at: str) -> Any:
        """The value itself; None where there is none."""
        return find(self.report, at)

    def has(self, *at: str) -> bool:
        """Whether all of these are there and not null."""
        return all(self.get(one) is not None for one in at)

    def show(self, at: str, form: str, *, tag: str = "span") -> str:
        """One value, bound to its place in the report; a dash where it is null or absent."""
        value = self.get(at)
        if value is None:
            return MISSING
        return f'<{tag} data-at="{html.escape(at)}" data-form="{form}">{html.escape(FORMS[form](value))}</{tag}>'

    def spread(self, at: str, form: str = "figure", *, mean: str = "mean") -> str:
        """mean ± sd of an entry that has both keys; the mean alone for one seed."""
        if not self.has(f"{at}/{mean}"):
            return MISSING
        shown = self.show(f"{at}/{mean}", form)
        if not self.has(f"{at}/sd"):
            return shown
        sd = "figure" if form == "gain" else form
        return f'{shown} <span class="sd">± {self.show(f"{at}/sd", sd)}</span>'

    def prose(self, sentence: str) -> str:
        """A sentence whose `{/pointer|form}` are values of the report."""
        parts = _IN_PROSE.split(sentence)
        shown = [html.escape(parts[0])]
        for at, form, text in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
            shown += [self.show(at, form), html.escape(text)]
        return "".join(shown)
