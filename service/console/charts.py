"""The page's drawings: inline SVG, coloured by the page's style sheet, each beside its table.

Drawn as those of the training report are, which this room may not import.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from service.console.html import Child, Markup, tag

BUCKETS = 10_000


@dataclass(frozen=True, slots=True)
class Axis:
    """A scale from values to pixels."""

    least: float
    most: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """The pixel of a value, within the drawing."""
        share = (value - self.least) / (self.most - self.least)
        return round(self.start + min(1.0, max(0.0, share)) * (self.end - self.start), 1)

    def ticks(self, count: int) -> list[float]:
        """Round values within the range, about `count` of them."""
        rough = (self.most - self.least) / max(1, count)
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
        first = math.ceil(self.least / step - 1e-9)
        return [round(place * step, 12) for place in range(first, math.floor(self.most / step + 1e-9) + 1)]


def percent(value: float) -> str:
    """A share in as few digits as it needs, with a true minus."""
    return f"{100 * value:.4g}%".replace("-", "−")


def lift_over_time(looks: Sequence[tuple[float, float, tuple[float, float] | None]], *, label: str) -> Markup:
    """(time, lift, its interval) of each look: a band around a line, and zero."""
    width, height, left, right, bottom = 480.0, 230.0, 46.0, 8.0, 28.0
    shown = [value for _, value, _ in looks] + [bound for *_, always in looks if always for bound in always]
    # One wild interval at the beginning would make a line of all the others.
    middle = sorted(abs(value) for value in shown)[int(0.9 * (len(shown) - 1))] * 1.3
    low, high = max(min([*shown, 0.0]), -middle), min(max([*shown, 0.0]), middle)
    air = max((high - low) * 0.08, 0.005)
    first, last = looks[0][0], looks[-1][0]
    x = Axis(first, max(last, first + 1.0), left, width - right)
    y = Axis(low - air, high + air, height - bottom, 10.0)
    parts: list[Child] = [_rows(y, left, width - right, percent), _times(x, height - bottom)]
    banded = [(time, always) for time, _, always in looks if always is not None]
    if len(banded) == 1:
        time, (below, above) = banded[0]
        parts.append(tag("line", x1=x.at(time), x2=x.at(time), y1=y.at(below), y2=y.at(above), class_="whisker"))
    elif banded:
        edge = [f"{x.at(time)},{y.at(above)}" for time, (_, above) in banded]
        edge += [f"{x.at(time)},{y.at(below)}" for time, (below, _) in reversed(banded)]
        parts.append(tag("polygon", points=" ".join(edge), class_="band"))
    parts.append(tag("line", x1=left, x2=width - right, y1=y.at(0), y2=y.at(0), class_="zero"))
    points = " ".join(f"{x.at(time)},{y.at(value)}" for time, value, _ in looks)
    parts.append(tag("polyline", points=points, class_="line s1"))
    parts.append(tag("circle", cx=x.at(last), cy=y.at(looks[-1][1]), r=4, class_="mark s1"))
    return _svg(width, height, parts, label)


def reliability(curves: Sequence[tuple[str, Sequence[tuple[float, float]]]], *, label: str) -> Markup:
    """Clicked over predicted by bin: (name, points) of each arm, and the diagonal of a perfect model."""
    width, height, left, bottom = 420.0, 340.0, 56.0, 44.0
    most = max(max(point) for _, points in curves for point in points) * 1.05 or 1.0
    x, y = Axis(0.0, most, left, width - 10), Axis(0.0, most, height - bottom, 26.0)
    parts: list[Child] = [_rows(y, left, width - 10, percent)]
    for value in x.ticks(5):
        parts.append(
            tag("text", percent(value), x=x.at(value), y=height - bottom + 16, text_anchor="middle", class_="tick")
        )
    parts.append(tag("text", "predicted", x=(left + width - 10) / 2, y=height - 8, text_anchor="middle"))
    parts.append(tag("text", "clicked", x=2, y=10))
    parts.append(tag("line", x1=x.at(0), y1=y.at(0), x2=x.at(most), y2=y.at(most), class_="diagonal"))
    for place, (name, points) in enumerate(curves):
        style = style_of(place)
        path = " ".join(f"{x.at(px)},{y.at(py)}" for px, py in points)
        parts.append(tag("polyline", tag("title", name), points=path, class_=f"line {style}"))
        parts += [tag("circle", cx=x.at(px), cy=y.at(py), r=3, class_=f"mark {style}") for px, py in points]
    return _svg(width, height, parts, label)


def buckets(owned: Sequence[tuple[str, int, int, bool]], *, label: str) -> Markup:
    """(arm, start, stop, halted): who owns which of the 10,000 buckets; what nobody owns is left empty."""
    width, height = 640.0, 26.0
    x = Axis(0, BUCKETS, 0, width)
    parts: list[Child] = [tag("rect", x=0, y=0, width=width, height=height, class_="outside")]
    for place, (arm, start, stop, halted) in enumerate(owned):
        if stop > start:
            title = tag("title", f"{arm}: buckets {start} to {stop - 1}{', off' if halted else ''}")
            style = f"owned {'off ' if halted else ''}{style_of(place)}"
            size = round(x.at(stop) - x.at(start), 1)
            parts.append(tag("rect", title, x=x.at(start), y=0, width=size, height=height, class_=style))
    return _svg(width, height, parts, label, class_="strip", preserveAspectRatio="none")


def bars(entries: Sequence[tuple[str, float, str]], *, label: str, most: float | None = None) -> Markup:
    """A horizontal bar for each (name, value, written value), from zero."""
    longest = max(len(name) for name, *_ in entries)
    each, left, width = 28, min(200, max(60, 8 * min(longest, 24) + 10)), 420
    scale = most or max(value for _, value, _ in entries) or 1.0
    parts: list[Child] = []
    for row, (name, value, written) in enumerate(entries):
        top = row * each + 4
        length = round((width - left - 56) * min(1.0, max(0.0, value / scale)), 1)
        parts.append(tag("text", short(name, 24), x=left - 8, y=top + 14, text_anchor="end", class_="name"))
        parts.append(tag("rect", x=left, y=top, width=length, height=18, rx=2, class_="column"))
        parts.append(tag("text", written, x=left + length + 6, y=top + 14, class_="value"))
    return _svg(width, each * len(entries) + 6, parts, label)


def style_of(place: int) -> str:
    """The colour of the arm at this place; from the fourth on all have one."""
    return ("s1", "s2", "s3")[place] if place < 3 else "rest"


def short(name: str, most: int) -> str:
    """A name that is no longer than this."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _rows(y: Axis, left: float, right: float, form: Callable[[float], str]) -> list[Child]:
    parts: list[Child] = []
    for value in y.ticks(5):
        parts.append(tag("line", x1=left, x2=right, y1=y.at(value), y2=y.at(value), class_="grid"))
        parts.append(
            tag("text", form(value), x=left - 8, y=round(y.at(value) + 4, 1), text_anchor="end", class_="tick")
        )
    return parts


def _times(x: Axis, base: float) -> list[Child]:
    """Five moments along the axis, in UTC: days where it spans days, else hours and minutes."""
    span = x.most - x.least
    form = "%d %b" if span > 2 * 86_400 else "%H:%M" if span > 300 else "%H:%M:%S"
    parts: list[Child] = []
    for place in range(5):
        value = x.least + span * place / 4
        anchor = ("start", "middle", "middle", "middle", "end")[place]
        moment = datetime.fromtimestamp(value, UTC).strftime(form)
        parts.append(tag("text", moment, x=x.at(value), y=base + 18, text_anchor=anchor, class_="tick"))
    return parts


def _svg(width: float, height: float, parts: Child, label: str, **more: str) -> Markup:
    return tag("svg", parts, viewBox=f"0 0 {width:g} {height:g}", role="img", aria_label=label, **more)
