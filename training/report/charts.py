"""The page's drawings: inline SVG, coloured by the page's style sheet, legible on a phone.

Coordinates come from the report's values; what is written beside a mark is a value of the report or its name. Ticks
of an axis are round numbers and carry the class `tick`.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Axis:
    """A scale from values to pixels."""

    least: float
    most: float
    start: float
    end: float
    logarithmic: bool = False

    def at(self, value: float) -> float:
        """The pixel of a value."""
        low, high, value = (math.log(v) if self.logarithmic else v for v in (self.least, self.most, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self, count: int = 5) -> list[float]:
        """Round values within the range, about `count` of them or up to twice as many."""
        if self.logarithmic:
            powers = range(math.floor(math.log10(self.least)), math.ceil(math.log10(self.most)) + 1)
            found = [step * 10.0**power for power in powers for step in (1, 2, 5)]
            found = [value for value in found if self.least <= value <= self.most]
            return found if len(found) <= 6 else [v for v in found if f"{v:e}"[0] == "1"] or found[:: len(found) // 4]
        power = 10.0 ** math.floor(math.log10(self.most - self.least))
        steps = [power * factor for factor in (1, 0.5, 0.2, 0.1)]
        step = next((size for size in steps if (self.most - self.least) / size >= count - 1), steps[-1])
        first = math.ceil(self.least / step - 1e-9)
        return [round(i * step, 12) for i in range(first, math.floor(self.most / step + 1e-9) + 1)]


@dataclass(frozen=True)
class Mark:
    """A point with a name, a smaller one without; `spread` is drawn as a bar to both sides of `y`.

    `shown` is the name and `title` what a pointer at rest shows, both as HTML, where they hold values of the report.
    """

    name: str
    x: float
    y: float
    style: str
    spread: float = 0.0
    title: str = ""
    shown: str = ""


@dataclass(frozen=True)
class Line:
    """Points joined in order; `picked` is the index of one that is marked; from `dashed` on it is another phase."""

    points: Sequence[tuple[float, float]]
    style: str
    picked: int | None = None
    dashed: int | None = None


def plain(value: float) -> str:
    """A number in as few digits as it has, with a true minus."""
    return f"{value:g}".replace("-", "−")


def alike(ticks: Sequence[float]) -> Callable[[float], str]:
    """Writes every tick of an axis with the same digits behind the point."""
    digits = max((len(f"{tick:g}".partition(".")[2]) for tick in ticks if "e" not in f"{tick:g}"), default=0)
    return lambda value: f"{value:.{digits}f}".replace("-", "−") if "e" not in f"{value:g}" else plain(value)


def padded(values: Sequence[float], share: float = 0.08, least: float = 1e-6) -> tuple[float, float]:
    """The range of the values with some air on both sides."""
    low, high = min(values), max(values)
    air = max((high - low) * share, least)
    return low - air, high + air


def scatter(
    marks: Sequence[Mark],
    *,
    x_title: str,
    y_title: str,
    label: str,
    path: Sequence[tuple[float, float]] = (),
) -> str:
    """Marks over a logarithmic x, each with its name beside it; `path` joins points."""
    width, height, left, bottom = 420, 320, 52, 44
    low, high = padded([mark.y - mark.spread for mark in marks] + [mark.y + mark.spread for mark in marks], 0.12, 1e-3)
    x = Axis(min(mark.x for mark in marks) / 1.5, max(mark.x for mark in marks) * 2.6, left, width - 8, True)
    y = Axis(low, high, height - bottom, 14)
    parts = [_frame(x, y, x_title, y_title)]
    if path:
        joined = " ".join(f"{x.at(px):.1f},{y.at(py):.1f}" for px, py in path)
        parts.append(f'<polyline class="line front" points="{joined}"/>')
    taken = [(x.at(mark.x) - 6, 12.0, y.at(mark.y) + 4) for mark in marks]
    for mark in sorted(marks, key=lambda mark: -mark.y):
        px, py = x.at(mark.x), y.at(mark.y)
        if mark.spread:
            ends = f'y1="{y.at(mark.y - mark.spread):.1f}" y2="{y.at(mark.y + mark.spread):.1f}"'
            parts.append(f'<line class="bar {mark.style}" x1="{px:.1f}" x2="{px:.1f}" {ends}/>')
        radius = 5 if mark.name else 3.5
        parts.append(
            f'<circle class="mark {mark.style}" cx="{px:.1f}" cy="{py:.1f}" r="{radius}">{mark.title}</circle>'
        )
        if not mark.name:
            continue
        reach = 6.6 * len(mark.name)
        right = px + 10 + reach <= width
        text_y = _free(taken, px + 10 if right else px - 10 - reach, reach, py + 4, (28.0, height - bottom))
        if abs(text_y - py - 4) > 6:
            parts.append(f'<line class="leader" x1="{px:.1f}" y1="{py:.1f}" x2="{px + 9:.1f}" y2="{text_y - 4:.1f}"/>')
        place = f'x="{px + 10 if right else px - 10:.1f}" y="{text_y:.1f}" text-anchor="{"start" if right else "end"}"'
        parts.append(f'<text class="name {mark.style}" {place}>{mark.shown or html.escape(mark.name)}</text>')
    return _svg(width, height, parts, label)


def _free(
    taken: list[tuple[float, float, float]], start: float, reach: float, y: float, within: tuple[float, float]
) -> float:
    """The nearest height to y, inside the drawing, where a name of this reach covers no mark and no earlier name."""
    for shift in (sign * step for step in range(0, 400, 2) for sign in (1, -1)):
        if not within[0] <= y + shift <= within[1]:
            continue
        near = (other for other in taken if abs(y + shift - other[2]) < 14)
        if not any(start < other + width and other < start + reach for other, width, _ in near):
            y += shift
            break
    taken.append((start, reach, y))
    return y


def lines(
    drawn: Sequence[Line],
    *,
    x_title: str,
    label: str,
    y_range: tuple[float, float] | None = None,
    y_form: Callable[[float], str] | None = None,
) -> str:
    """A small panel of curves over whole numbers."""
    width, height, left, bottom = 240, 170, 46, 34
    every_x = [point[0] for line in drawn for point in line.points]
    every_y = [point[1] for line in drawn for point in line.points]
    x = Axis(min(every_x), max(max(every_x), min(every_x) + 1), left, width - 10)
    y = Axis(*(y_range or padded(every_y)), height - bottom, 10)
    parts = [
        _frame(x, y, x_title, "", x_ticks=[v for v in x.ticks(4) if v == int(v)], y_ticks=y.ticks(4), y_form=y_form)
    ]
    for line in drawn:
        path = [f"{x.at(px):.1f},{y.at(py):.1f}" for px, py in line.points]
        turn = len(path) if line.dashed is None else line.dashed
        parts.append(f'<polyline class="line {line.style}" points="{" ".join(path[:turn])}"/>')
        if turn < len(path):
            parts.append(f'<polyline class="line dashed {line.style}" points="{" ".join(path[max(turn - 1, 0) :])}"/>')
        if line.picked is not None:
            px, py = line.points[line.picked]
            parts.append(f'<circle class="mark {line.style}" cx="{x.at(px):.1f}" cy="{y.at(py):.1f}" r="3.5"/>')
    return _svg(width, height, parts, label)


def reliability(curves: Sequence[tuple[str, Sequence[tuple[float, float]], str]], *, label: str) -> str:
    """Mean label over mean pctr by bin: (name, points, style) each, and the diagonal of a perfect model."""
    width, height, left, bottom = 420, 340, 52, 44
    most = max(max(point) for _, points, _ in curves for point in points) * 1.05
    x, y = Axis(0, most, left, width - 8), Axis(0, most, height - bottom, 14)
    parts = [_frame(x, y, "predicted click rate (mean of a bin)", "clicked", form=lambda v: f"{100 * v:g}%")]
    diagonal = f'x1="{x.at(0):.1f}" y1="{y.at(0):.1f}" x2="{x.at(most):.1f}" y2="{y.at(most):.1f}"'
    parts.append(f'<line class="diagonal" {diagonal}/>')
    for name, points, style in curves:
        path = " ".join(f"{x.at(px):.1f},{y.at(py):.1f}" for px, py in points)
        parts.append(f'<polyline class="line {style}" points="{path}"><title>{html.escape(name)}</title></polyline>')
        parts += [f'<circle class="mark {style}" cx="{x.at(px):.1f}" cy="{y.at(py):.1f}" r="3"/>' for px, py in points]
    return _svg(width, height, parts, label)


def bars(entries: Sequence[tuple[str, float, str]], *, label: str) -> str:
    """A horizontal bar for each (name, value, already written value), from zero."""
    longest = max(len(name) for name, _, _ in entries)
    height_each, left, width = 26, min(240, max(70, 8 * longest + 8)), 420
    most = max(value for _, value, _ in entries) or 1.0
    parts = []
    for row, (name, value, written) in enumerate(entries):
        top = row * height_each + 4
        length = (width - left - 62) * value / most
        parts.append(
            f'<text class="name" x="{left - 8}" y="{top + 14}" text-anchor="end">{html.escape(_short(name))}</text>'
        )
        parts.append(f'<rect class="column" x="{left}" y="{top}" width="{length:.1f}" height="18" rx="2"/>')
        parts.append(f'<text class="value" x="{left + length + 6:.1f}" y="{top + 14}">{written}</text>')
    return _svg(width, height_each * len(entries) + 8, parts, label)


def _short(name: str, most: int = 28) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _frame(
    x: Axis,
    y: Axis,
    x_title: str,
    y_title: str,
    *,
    x_ticks: Sequence[float] | None = None,
    y_ticks: Sequence[float] | None = None,
    form: Callable[[float], str] = plain,
    y_form: Callable[[float], str] | None = None,
) -> str:
    """Grid, ticks and titles."""
    parts = []
    x_ticks, y_ticks = (axis.ticks() if ticks is None else ticks for axis, ticks in ((x, x_ticks), (y, y_ticks)))
    if y_form is None and form is plain:
        y_form = alike(y_ticks)
    for value in x_ticks:
        at = x.at(value)
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{y.start}" y2="{y.end}"/>')
        text = f'<text class="tick" x="{at:.1f}" y="{y.start + 15:.1f}" text-anchor="middle">'
        parts.append(f"{text}{html.escape(form(value))}</text>")
    for value in y_ticks:
        at = y.at(value)
        parts.append(f'<line class="grid" x1="{x.start}" x2="{x.end}" y1="{at:.1f}" y2="{at:.1f}"/>')
        text = f'<text class="tick" x="{x.start - 6}" y="{at + 4:.1f}" text-anchor="end">'
        parts.append(f"{text}{html.escape((y_form or form)(value))}</text>")
    middle = (x.start + x.end) / 2
    parts.append(
        f'<text class="axis" x="{middle:.0f}" y="{y.start + 31:.0f}" text-anchor="middle">{html.escape(x_title)}</text>'
    )
    if y_title:
        parts.append(f'<text class="axis" x="2" y="10">{html.escape(y_title)}</text>')
    return "".join(parts)


def _svg(width: float, height: float, parts: Sequence[str], label: str) -> str:
    head = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(label)}">'
    return f"{head}{''.join(parts)}</svg>"
