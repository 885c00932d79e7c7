"""The report for people: one self-contained HTML page, or the same as Markdown. Nothing but the report's tree goes in.

Both are made from one list of blocks, so they say the same. No script, no font, no style from elsewhere; readable
without colour, in light and in dark.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto }
th, td { border-top: 1px solid #8884; padding: .25rem .9rem .25rem 0; text-align: left; vertical-align: top }
td { font-variant-numeric: tabular-nums }
.decision { font-size: 1.3rem; border-left: .3rem solid; padding-left: .8rem }
"""
_MARKS = re.compile(r"[\\|`<\[\]]")
"""Of Markdown's signs those that would not stay text."""


@dataclass(frozen=True, slots=True)
class Block:
    """A heading, sentences, and a table, each of which may be missing."""

    heading: str = ""
    sentences: tuple[str, ...] = ()
    header: tuple[str, ...] = ()
    lines: tuple[tuple[str, ...], ...] = ()
    is_decision: bool = False


def to_html(tree: Mapping[str, Any]) -> str:
    """The page."""
    text = html.escape
    title = f"{tree['experiment']}, phase {tree['phase']}"
    parts = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{text(title)}: results</title>\n<style>{_STYLE}</style>\n</head>",
        f"<body>\n<main>\n<h1>{text(title)}</h1>",
    ]
    for block in blocks(tree):
        if block.heading:
            parts.append(f"<h2>{text(block.heading)}</h2>")
        kind = ' class="decision"' if block.is_decision else ""
        parts += [f"<p{kind}>{text(sentence)}</p>" for sentence in block.sentences]
        if block.lines:
            parts.append(
                "<table><tr>" + "".join(f'<th scope="col">{text(cell)}</th>' for cell in block.header) + "</tr>"
            )
            for first, *rest in block.lines:
                cells = "".join(f"<td>{text(cell)}</td>" for cell in rest)
                parts.append(f'<tr><th scope="row">{text(first)}</th>{cells}</tr>')
            parts.append("</table>")
    return "\n".join(parts) + "\n</main>\n</body>\n</html>\n"


def to_markdown(tree: Mapping[str, Any]) -> str:
    """The same for a terminal or a ticket."""

    def safe(cell: str) -> str:
        """What a request said is shown as it is, and neither rules a terminal nor becomes a link in a ticket."""
        shown = "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in cell)
        return _MARKS.sub(r"\\\g<0>", shown)

    parts = [f"# {tree['experiment']}, phase {tree['phase']}\n"]
    for block in blocks(tree):
        if block.heading:
            parts.append(f"## {block.heading}\n")
        parts += [f"**{sentence}**\n" if block.is_decision else f"{sentence}\n" for sentence in block.sentences]
        if block.lines:
            parts.append("| " + " | ".join(map(safe, block.header)) + " |\n|" + "---|" * len(block.header))
            parts += ["| " + " | ".join(map(safe, line)) + " |" for line in block.lines]
            parts.append("")
    return "\n".join(parts)


def blocks(tree: Mapping[str, Any]) -> list[Block]:
    """What a reader asks, in the order asked."""
    return [
        *_decisions(tree),
        _arms(tree),
        *[_lift(tree, comparison) for comparison in tree["comparisons"]],
        _split(tree),
        _rails(tree),
        *[_paired(comparison) for comparison in tree["comparisons"]],
        _quality(tree),
        *_segments(tree),
        *_reliability(tree),
        *_off_policy(tree),
        _phases(tree),
        _log(tree),
    ]


def _decisions(tree: Mapping[str, Any]) -> list[Block]:
    return [
        Block(
            sentences=(f"{found['arm']}: {found['action']}: {'; '.join(found['reasons'])}",),
            is_decision=True,
        )
        for found in tree["decisions"]
    ]


def _arms(tree: Mapping[str, Any]) -> Block:
    header = ("arm", "units", "exposures", "impressions", "clicks", "CTR", "errors", "fallbacks", "p50 ms", "p99 ms")
    lines = tuple(
        (
            arm["arm"],
            *(_count(arm[name]) for name in ("units", "exposures", "impressions", "clicks")),
            _percent(arm["ctr"]),
            _percent(arm["error_rate"]),
            _percent(arm["fallback_rate"]),
            _figure(arm["latency_ms"]["p50"]),
            _figure(arm["latency_ms"]["p99"]),
        )
        for arm in tree["arms"]
    )
    return Block("Arms", (), header, lines)


def _lift(tree: Mapping[str, Any], found: Mapping[str, Any]) -> Block:
    confidence = f"{1 - tree['stated']['alpha_an_arm']:.4g}"
    lines = []
    for name, estimate, show in (
        ("relative lift of CTR", found["relative"], _percent),
        ("difference of CTR", found["difference"], _points),
        ("the same, adjusted for the past (CUPED)", found["cuped"], _points),
    ):
        why = estimate["reason"] or ""
        lines.append(
            (name, show(estimate["value"]), _range(estimate["always"], show), _range(estimate["fixed"], show), why)
        )
    sentences: tuple[str, ...] = (
        f"“At every look” holds at all looks at once with probability {confidence}; “at one look” only for somebody "
        "who looks once, at a size fixed beforehand.",
    )
    if found["design_effect"] is not None:
        sentences += (
            f"Clustering by unit: {_figure(found['design_effect'])} times the impressions are needed that independent "
            "ones would take.",
        )
    return Block(
        f"{found['arm']} against {found['control']}",
        sentences,
        ("", "estimate", "at every look", "at one look", "not given because"),
        tuple(lines),
    )


def _split(tree: Mapping[str, Any]) -> Block:
    split = tree["split"]
    sentences = [
        f"p {_figure(split['always_p'])} at every look (chi-squared at one look: {_figure(split['chi_squared_p'])})."
    ]
    if split["units_misplaced"] is None:
        sentences.append("Assignment was not replayed.")
    else:
        sentences.append(f"{split['units_misplaced']} units are not where the published hash puts them.")
    sentences += [
        f"In arm {arm}, one unit makes more than a tenth of the impressions." for arm in split["arms_with_a_heavy_unit"]
    ]
    sentences += [f"{reason[0].upper()}{reason[1:]}." for reason in split["reasons"]]
    total = sum(split["units"].values()) or 1
    lines = tuple(
        (arm, _percent(share), _count(split["units"][arm]), _percent(split["units"][arm] / total))
        for arm, share in split["planned"].items()
    )
    return Block("Split", tuple(sentences), ("arm", "planned", "units", "share"), lines)


def _rails(tree: Mapping[str, Any]) -> Block:
    lines = tuple(
        (
            f"{arm['arm']}: {rail['name']}",
            _figure(rail["bound"]),
            _figure(rail["found"]),
            "crossed" if rail["crossed"] else "clean" if rail["evidence"] is not None else "not judged yet",
            "" if rail["evidence"] is None else f"{_figure(max(0.0, rail['evidence']))} of what is allowed",
            rail["reason"] or "",
        )
        for arm in tree["arms"]
        for rail in arm["guard_rails"]
    )
    none = () if lines else ("None was stated.",)
    return Block("Guard-rails", none, ("rail", "bound", "seen", "state", "evidence", "not judged because"), lines)


def _paired(found: Mapping[str, Any]) -> Block:
    paired = found["paired"]
    lines = tuple(
        (
            chooser,
            _count(one["impressions"]),
            _figure(one["value"]),
            _range(one["always"], _figure),
            one["reason"] or "",
        )
        for chooser, one in paired["by_chooser"].items()
    )
    heading = f"Which model predicts better: {found['arm']} or {found['control']}"
    if not any(one["impressions"] for one in paired["by_chooser"].values()):
        return Block(heading, ("No impression was scored by both.",))
    better = "Neither is shown to predict better" if paired["better"] is None else f"{paired['better']} predicts better"
    return Block(
        heading,
        (
            f"{better}: {paired['why']}.",
            f"Logloss of {found['arm']} minus that of {found['control']} on the same impressions:",
        ),
        ("chosen by", "impressions", "difference", "at every look", "not given because"),
        lines,
    )


_QUALITY = ("impressions", "clicks", "auc", "logloss", "normalised_entropy", "predicted_over_actual", "ece")
_QUALITY_HEADER = ("impressions", "clicks", "AUC", "logloss", "normalised entropy", "predicted/actual", "ECE")


def _quality(tree: Mapping[str, Any]) -> Block:
    lines = tuple((arm["arm"], *_quality_cells(arm["quality"])) for arm in tree["arms"])
    return Block(
        "Predictions", ("Over impressions that the arm's own model scored.",), ("arm", *_QUALITY_HEADER), lines
    )


def _quality_cells(quality: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple((_count if name in ("impressions", "clicks") else _figure)(quality[name]) for name in _QUALITY)


def _segments(tree: Mapping[str, Any]) -> list[Block]:
    names = sorted({name for arm in tree["arms"] for name in arm["segments"]})
    found = []
    for name in names:
        lines = tuple(
            (f"{value or '(missing)'}, {arm['arm']}", *_quality_cells(quality))
            for value in sorted({value for arm in tree["arms"] for value in arm["segments"].get(name, {})})
            for arm in tree["arms"]
            if (quality := arm["segments"].get(name, {}).get(value)) is not None
        )
        found.append(Block(f"Predictions by {name}", (), (name, *_QUALITY_HEADER), lines))
    return found


def _reliability(tree: Mapping[str, Any]) -> list[Block]:
    return [
        Block(
            f"Reliability of {arm['arm']}",
            (),
            ("bin", "impressions", "predicted", "clicked"),
            tuple(
                (str(place), _count(one["rows"]), _percent(one["pctr"]), _percent(one["label"]))
                for place, one in enumerate(arm["quality"]["reliability"], start=1)
            ),
        )
        for arm in tree["arms"]
        if arm["quality"]["reliability"]
    ]


def _off_policy(tree: Mapping[str, Any]) -> list[Block]:
    lines = []
    for arm in tree["arms"]:
        if (found := arm["off_policy"]) is not None:
            for name, label in (("ips", "IPS"), ("snips", "SNIPS"), ("mean_weight", "mean weight, should be 1")):
                show: Callable[[Any], str] = _figure if name == "mean_weight" else _percent
                one = found[name]
                lines.append(
                    (f"{arm['arm']}: {label}", show(one["value"]), _range(one["always"], show), one["reason"] or "")
                )
    header = ("from the log of", "CTR the other policy would have", "at every look", "not given because")
    return [Block("Off-policy", (), header, tuple(lines))] if lines else []


def _phases(tree: Mapping[str, Any]) -> Block:
    lines = tuple(
        (
            f"{phase['phase']}: {arm['arm']}",
            *(_count(arm[n]) for n in ("units", "impressions", "clicks")),
            _percent(arm["ctr"]),
        )
        for phase in tree["phases"]
        for arm in phase["arms"]
    )
    return Block("Phases", ("No figure above mixes two.",), ("phase", "units", "impressions", "clicks", "CTR"), lines)


def _log(tree: Mapping[str, Any]) -> Block:
    lines = tuple((name.replace("_", " "), _count(count)) for name, count in tree["log"].items())
    return Block("The log", ("Rows, and how many were left out and why.",), ("", "rows"), lines)


def _range(bounds: Sequence[float] | None, show: Callable[[Any], str]) -> str:
    if bounds is None:
        return "–"
    low, high = show(bounds[0]), show(bounds[1])
    return f"{low.removesuffix(' points')} to {high}"


def _count(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.4g}%"


def _points(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:+.4g} points"


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
