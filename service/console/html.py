"""HTML that cannot be injected into: text becomes markup in one place, and is escaped there.

    tag("p", "a < b", class_="note")        <p class="note">a &lt; b</p>
    tag("ul", [tag("li", name) for name in names])

What is a `Markup` is taken as it is; only this room makes one. Everything else is text.
"""

from __future__ import annotations

import html
from collections.abc import Iterable

VOID = frozenset(("br", "hr", "img", "input", "link", "meta"))

Attribute = str | float | bool | None


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


Child = str | Iterable["Child"] | None
"""Text, markup, any nesting of them in lists, or nothing."""


def text(value: Child) -> Markup:
    """Markup that shows the text; of a list, all of it."""
    if value is None:
        return Markup("")
    if isinstance(value, Markup):
        return value
    if isinstance(value, str):
        return Markup(html.escape(value))
    return Markup("".join(map(text, value)))


def tag(name: str, /, *children: Child, **attributes: Attribute) -> Markup:
    """An element. `class_` is `class`, `aria_label` is `aria-label`; True is an attribute without a value, False and
    None are none at all."""
    written = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in VOID:
        return Markup(f"<{name}{written}>")
    return Markup(f"<{name}{written}>{text(children)}</{name}>")


def _attribute(key: str, value: Attribute) -> str:
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{html.escape(str(value))}"'


def table(caption: str, heads: Iterable[Child], rows: Iterable[Iterable[Child]], *, left: int = 1) -> Markup:
    """A table that scrolls sideways in its own box, by keyboard too. The first column names its row; the first `left`
    are words, the others numbers."""

    def kind(place: int) -> str | None:
        return None if place < left else "num"

    head = [
        tag("th", one, scope="col", class_=kind(place)) if one else tag("td", class_=kind(place))
        for place, one in enumerate(heads)
    ]
    body = [
        tag(
            "tr",
            [
                tag("td", cell, class_=kind(place)) if place else tag("th", cell, scope="row")
                for place, cell in enumerate(row)
            ],
        )
        for row in rows
    ]
    shown = tag("table", tag("caption", caption, class_="unseen"), tag("thead", tag("tr", head)), tag("tbody", body))
    return tag("div", shown, class_="scroll", tabindex="0", role="region", aria_label=caption)
