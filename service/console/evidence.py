"""The parts of the page that say what an experiment has shown: the report (docs/answers.md), drawn and tabled."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from service.console import charts, figures
from service.console.gather import ArmFacts, ExperimentFacts
from service.console.html import Child, Markup, table, tag
from service.console.panels import key, missing, panel, state, words

Tree = Mapping[str, Any]
MOST_DRAWN = 6
"""Arms that are drawn; the tables have all."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """A report, or why there is none."""

    tree: Tree | None = None
    missing: str = ""


def answer(evidence: Evidence, one: ExperimentFacts) -> Markup:
    """The decisions, before everything else; of an arm that is switched off, first that it is."""
    tree = evidence.tree
    if tree is None:
        return tag(
            "div",
            tag("h2", "No results yet"),
            tag("p", words(evidence.missing)),
            id="answer",
            class_="answer",
            data_live=True,
        )
    control = tree["stated"]["control"]
    off = {arm.name: arm for arm in one.arms if arm.halted}
    boxes = []
    for found in tree["decisions"][:MOST_DRAWN]:
        title, lead, kind = found["action"].capitalize(), "; ".join(found["reasons"]), _KINDS.get(found["action"], "")
        if (arm := off.get(found["arm"])) is not None:
            lead = f"{_why_off(arm)} Its units get control. The report: {found['action']}: {lead}"
            title, kind = ("Paused", kind) if arm.halt is None else ("Halted", "loses")
        boxes.append(
            tag(
                "div",
                tag("p", f"{found['arm']} against {control}, phase {tree['phase']}", class_="kicker"),
                tag("h2", title),
                tag("p", lead, class_="lead"),
                _tiles(tree, found["arm"]),
                class_=f"answer {kind}".strip(),
            )
        )
    until = datetime.fromtimestamp(tree["as_of"], UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    said = tag(
        "p",
        f"From the log up to {until}. Look as often as you like: the intervals hold at every look. ",
        tag("a", "The whole report", href=f"experiments/{quote(tree['experiment'])}/results.html"),
        class_="note",
    )
    return tag("div", boxes or tag("p", "One arm: there is nothing to compare."), said, id="answer", data_live=True)


_KINDS = {"ship": "wins", "roll back": "loses", "invalid": "loses"}


def _why_off(arm: ArmFacts) -> str:
    if arm.halt is None:
        return "It is switched off in the experiment file."
    found, bound = (figures.rail(arm.halt.rail, value) for value in (arm.halt.found, arm.halt.bound))
    return f"A guard-rail found a {figures.rail_name(arm.halt.rail)} of {found}, allowed {bound}."


def _tiles(tree: Tree, arm: str) -> Markup:
    comparison = next(one for one in tree["comparisons"] if one["arm"] == arm)
    relative = comparison["relative"]
    both = [one for one in tree["arms"] if one["arm"] in (arm, comparison["control"])]
    rates = " → ".join(figures.percent(one["ctr"]) for one in both)
    tiles = (
        ("lift of CTR", figures.change(relative["value"]), figures.between(relative["always"], figures.change)),
        ("CTR", rates, " → ".join(one["arm"] for one in both)),
        ("impressions", figures.count(sum(one["impressions"] for one in both)), "of both arms"),
        ("clicks", figures.count(sum(one["clicks"] for one in both)), "of both arms"),
    )
    return tag(
        "dl",
        [tag("div", tag("dt", name), tag("dd", tag("b", value), tag("span", more))) for name, value, more in tiles],
        class_="tiles",
    )


def split(tree: Tree) -> Markup:
    """Units against the plan."""
    found = tree["split"]
    total = sum(found["units"].values()) or 1
    rows = [
        (
            key(arm, place),
            figures.percent(share),
            figures.percent(found["units"][arm] / total),
            figures.count(found["units"][arm]),
        )
        for place, (arm, share) in enumerate(found["planned"].items())
    ]
    told: list[Child] = [tag("p", state("as planned", "yes"), f" p {figures.figure(found['always_p'])} at every look.")]
    if found["reasons"]:
        told = [tag("p", state("broken", "no"), " ", "; ".join(found["reasons"]), ".")]
    told += [
        tag("p", f"In arm {arm}, one unit makes more than a tenth of the impressions.")
        for arm in found["arms_with_a_heavy_unit"]
    ]
    shown = table("Split against plan", ("arm", "planned", "seen", "units"), rows)
    return panel("split", "Split against plan", told, shown, size="small")


def lift(tree: Tree) -> Markup:
    """The lift as it stood at every look."""
    title = "Lift over time"
    drawn: list[Child] = []
    for comparison in tree["comparisons"][:MOST_DRAWN]:
        named = f"{comparison['arm']} against {comparison['control']}"
        looks = [look for look in comparison.get("history", ()) if look["value"] is not None]
        if not looks:
            drawn.append(missing(f"{named}: {comparison['relative']['reason'] or 'nothing to draw yet'}."))
            continue
        points = [(look["until"], look["value"], look["always"]) for look in looks]
        chart = charts.lift_over_time(points, label=f"Relative lift of CTR over time, {named}; the table below has it.")
        caption = f"{named}: relative lift of CTR; the band is its confidence sequence."
        rows = [
            (
                datetime.fromtimestamp(look["until"], UTC).strftime("%Y-%m-%d %H:%M"),
                figures.change(look["value"]),
                figures.between(look["always"], figures.change),
                figures.count(look["impressions"]),
            )
            for look in reversed(looks)
        ]
        heads = ("until (UTC)", "lift", "at every look", "impressions")
        drawn += [
            tag("figure", chart, tag("figcaption", caption)),
            tag("details", tag("summary", "As a table"), table(f"Lift over time, {named}", heads, rows)),
        ]
    sure = f"{100 * (1 - tree['stated']['alpha_an_arm']):.4g}%"
    note = (
        f"The truth stays inside the band at all looks at once with probability {sure}. It is decided when the band "
        "leaves zero."
    )
    return panel("lift", title, drawn or missing("One arm: there is nothing to compare."), note=note, size="large")


def paired(tree: Tree) -> Markup:
    """Which model predicts better, on impressions that both scored."""
    title = "Paired shadow"
    body: list[Child] = []
    for comparison in tree["comparisons"][:MOST_DRAWN]:
        found = comparison["paired"]
        named = f"{comparison['arm']} against {comparison['control']}"
        if not any(one["impressions"] for one in found["by_chooser"].values()):
            body.append(
                missing(
                    f"{named}: no impression was scored by both yet. `shadow: {{arm, sample}}` in the experiment file "
                    "lets the other arm score a sample, unseen; what the machine has no time for is left out of it."
                )
            )
            continue
        better = f"{found['better']} predicts better" if found["better"] else "Neither is shown to predict better"
        rows = [
            (
                chooser,
                figures.figure(one["value"]),
                figures.between(one["always"], figures.figure),
                figures.count(one["impressions"]),
            )
            for chooser, one in found["by_chooser"].items()
        ]
        heads = ("chosen by", "difference", "at every look", "impressions")
        body += [tag("p", tag("b", better), f": {found['why']}."), table(f"Paired shadow, {named}", heads, rows)]
    note = "Logloss of the arm minus that of control on the same impressions: below zero is better."
    return panel("shadow", title, body or missing("One arm: there is nothing to compare."), note=note)


def reliability(tree: Tree) -> Markup:
    """Whether 3% means three in a hundred."""
    title = "Reliability"
    curves = [
        (place, arm["arm"], arm["quality"]["reliability"])
        for place, arm in enumerate(tree["arms"])
        if arm["quality"]["reliability"]
    ]
    if not curves:
        return panel("reliability", title, missing("No impression with a click probability has been clicked yet."))
    drawn = [(name, [(one["pctr"], one["label"]) for one in bins]) for _, name, bins in curves[:MOST_DRAWN]]
    rows = [
        (
            key(arm["arm"], place),
            figures.figure(arm["quality"]["predicted_over_actual"]),
            figures.figure(arm["quality"]["ece"]),
            figures.figure(arm["quality"]["auc"]),
            figures.figure(arm["quality"]["logloss"]),
        )
        for place, arm in enumerate(tree["arms"])
    ]
    bins = [
        (
            f"{name}, bin {number}",
            figures.percent(one["pctr"]),
            figures.percent(one["label"]),
            figures.count(one["rows"]),
        )
        for _, name, found in curves
        for number, one in enumerate(found, start=1)
    ]
    return panel(
        "reliability",
        title,
        tag(
            "figure",
            charts.reliability(
                drawn, label="Share clicked over probability predicted, by bin; the table below has it."
            ),
            tag("figcaption", [key(name, place) for place, name, _ in curves[:MOST_DRAWN]]),
        ),
        table("Quality of predictions", ("arm", "predicted/actual", "ECE", "AUC", "logloss"), rows),
        tag(
            "details",
            tag("summary", "Bins as a table"),
            table("Reliability by bin", ("arm and bin", "predicted", "clicked", "impressions"), bins),
        ),
        note="On the dashed line, 3% means three in a hundred.",
    )


def rails(tree: Tree) -> Markup:
    """The stated bounds, and what was seen of each."""
    title = "Guard-rails"
    rows = [
        (
            f"{arm['arm']}: {figures.rail_name(rail['name'])}",
            _rail_state(rail),
            figures.rail(rail["name"], rail["bound"]),
            figures.rail(rail["name"], rail["found"]),
        )
        for arm in tree["arms"]
        for rail in arm["guard_rails"]
    ]
    if not rows:
        return panel("rails", title, missing("None was stated: `guard_rails` in the experiment file."))
    return panel("rails", title, table(title, ("rail", "state", "bound", "seen"), rows, left=2))


def _rail_state(rail: Mapping[str, Any]) -> Markup:
    if rail["crossed"]:
        return state("crossed", "no")
    return state("clean", "yes") if rail["evidence"] is not None else state("not judged yet", "soft")


def panels(evidence: Evidence) -> Sequence[Callable[[], Markup]]:
    """All but the answer, in the order asked, each made when it is called for."""
    tree = evidence.tree
    if tree is None:
        told = "Lift, split, guard-rails, paired shadow and reliability come with the results."
        return [lambda: panel("lift", "Lift over time", missing(told), size="wide")]
    return [functools.partial(part, tree) for part in (lift, split, rails, paired, reliability)]
