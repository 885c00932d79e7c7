"""The page: facts and a report in, HTML out. A pure function; every text on it goes through `html.tag`, which escapes.

The order is that of an owner's questions: may it ship; who is enrolled; how do the arms answer; why; what else is
there. Readable as headings and tables without style and without script.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from service.console import evidence as shown
from service.console import figures, forms, panels
from service.console.evidence import Evidence
from service.console.gather import ExperimentFacts, Facts
from service.console.html import Child, Markup, tag, text


@dataclass(frozen=True, slots=True)
class Asset:
    """A file of ours that the page names, and the hash that the browser holds it to."""

    path: str
    integrity: str


@dataclass(frozen=True, slots=True)
class Assets:
    """Both of them."""

    style: Asset
    script: Asset
    icon: str


def render(
    facts: Facts,
    chosen: str | None,
    evidence: Evidence,
    example: str,
    assets: Assets,
    pause: Callable[[], object] = lambda: None,
) -> str:
    """The whole page. `chosen`: the experiment looked at; `example`: what the form to try a request begins with.
    `pause` is called between two parts of it, for others who have something to do."""
    one = None if chosen is None else facts.experiments.get(chosen)
    body = [
        tag("a", "Skip to the answer", href="#answer", class_="skip"),
        _header(facts, one),
        tag("main", _main(facts, one, evidence, example, pause), id="main"),
        _footer(facts),
        _dialog(),
    ]
    return "<!doctype html>\n" + tag("html", _head(one, assets), tag("body", body), lang="en") + "\n"


def _head(one: ExperimentFacts | None, assets: Assets) -> Markup:
    title = "Retort console" if one is None else f"{one.name}: Retort console"
    return tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("link", rel="icon", href=assets.icon, type="image/svg+xml"),
        tag("link", rel="stylesheet", href=assets.style.path, integrity=assets.style.integrity),
        tag("script", src=assets.script.path, integrity=assets.script.integrity, defer=True),
    )


def _header(facts: Facts, one: ExperimentFacts | None) -> Markup:
    if facts.reasons_not_ready:
        word = panels.state(f"not ready: {'; '.join(facts.reasons_not_ready)}", "no")
    elif facts.reasons_degraded:
        word = panels.state(f"degraded: {'; '.join(facts.reasons_degraded)}", "no")
    else:
        word = panels.state("ready", "yes")
    moment = datetime.fromtimestamp(facts.time, UTC).strftime("%H:%M:%S UTC")
    return tag(
        "header",
        tag(
            "div",
            tag("p", "Retort", class_="kicker"),
            tag("h1", "Console" if one is None else one.name),
            tag(
                "p",
                *(word, f" · {figures.plural(facts.workers, 'worker')} · as of {moment}"),
                id="service",
                class_="facts",
                data_live=True,
            ),
        ),
        _contents(facts, one),
    )


def _contents(facts: Facts, one: ExperimentFacts | None) -> Markup | None:
    if one is None:
        return None
    links = [
        *([("experiments", "Experiments")] if len(facts.experiments) > 1 else []),
        *(("answer", "Answer"), ("ramp", "Ramp"), ("arms", "Arms"), ("lift", "Lift"), ("try", "Try a request")),
        *(("models", "Models"), ("log", "Log"), ("administration", "Token")),
    ]
    items = [tag("li", tag("a", title, href=f"#{anchor}")) for anchor, title in links]
    return tag("nav", tag("ul", items), aria_label="On this page")


def _main(
    facts: Facts, one: ExperimentFacts | None, evidence: Evidence, example: str, pause: Callable[[], object]
) -> Child:
    listed = panels.experiments(facts, None if one is None else one.name)
    if one is None:
        told = "Nothing is served yet." if not facts.experiments else "There is no experiment of this name."
        return [
            tag("div", tag("h2", told), id="answer", class_="answer"),
            tag("div", listed, panels.models(facts), panels.log_health(facts), class_="grid"),
        ]
    parts: tuple[Callable[[], Child], ...] = (
        lambda: forms.ramp(one, facts, evidence),
        lambda: forms.token(facts),
        lambda: panels.arms(one, facts),
        *shown.panels(evidence),
        lambda: panels.gate(one, facts),
        lambda: panels.drift(one, facts),
        lambda: panels.log_health(facts),
        lambda: forms.attempt(one, example),
        lambda: panels.models(facts),
    )
    made = [listed]
    for part in parts:
        pause()
        made.append(text(part()))
    return [shown.answer(evidence, one), tag("div", made, class_="grid")]


def _footer(facts: Facts) -> Markup:
    links = ("docs", "metrics", "experiments", "health/ready")
    return tag(
        "footer",
        tag("p", "For machines: ", [[tag("a", f"/{path}", href=path), " "] for path in links]),
        tag("p", "No unit and no feature of any request is shown here.", class_="note"),
    )


def _dialog() -> Markup:
    """Asks before anything is changed."""
    return tag(
        "dialog",
        tag(
            "form",
            tag("h2", "Sure?", id="sure-title"),
            tag("p", id="sure-text"),
            tag(
                "p",
                tag("button", "Do it", value="yes", class_="main"),
                tag("button", "Leave it", value="no", autofocus=True),
                class_="buttons",
            ),
            method="dialog",
        ),
        id="sure",
        aria_labelledby="sure-title",
    )
