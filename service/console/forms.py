"""The parts of the page that change something: the token, the ramp, a request to try.

Without a script none of them can be sent, and each says what to type instead: a token belongs into a header, and no
form can write one. For the same reason the token's field has no name and stands in no form: no address ever holds it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from service.console import charts, figures
from service.console.evidence import Evidence
from service.console.gather import ExperimentFacts, Facts, HaltFacts
from service.console.html import Child, Markup, tag
from service.console.panels import key, missing, panel, state


def token(facts: Facts) -> Markup:
    """Where an owner types the admin token."""
    if not facts.has_admin:
        body: Child = missing(
            "This service has no admin token, so nothing can be changed here: start it with `--admin-token-file FILE` "
            "or `RETORT_ADMIN_TOKEN`."
        )
    else:
        field = tag(
            "input",
            id="token",
            type="password",
            autocomplete="off",
            spellcheck="false",
            aria_describedby="token-note",
            disabled=True,
        )
        body = [
            tag("p", tag("label", "Admin token ", for_="token"), field, class_="field"),
            tag(
                "p",
                "Kept in the memory of this page and sent as a header, only with what you change or try. Gone when you "
                "leave.",
                id="token-note",
                class_="note",
            ),
            tag(
                "noscript",
                tag(
                    "p",
                    "Without a script this page shows and cannot change: use the routes in docs/api.md.",
                    class_="missing",
                ),
            ),
        ]
    return panel("administration", "Administration", body, live=False, size="small")


def ramp(one: ExperimentFacts, facts: Facts, evidence: Evidence) -> Markup:
    """Who is enrolled, and a form to enrol more or to switch arms off."""
    where = "" if one.layer is None else f" of layer {one.layer[0]}'s buckets {one.layer[1]} to {one.layer[2] - 1}"
    owned = [(arm.name, arm.start, arm.stop, arm.halted) for arm in one.arms]
    legend = [
        tag(
            "li",
            key(arm.name, place),
            f" {figures.count(arm.stop - arm.start)} buckets{', off' if arm.halted else ''}",
        )
        for place, arm in enumerate(one.arms)
    ]
    outside = charts.BUCKETS - sum(arm.stop - arm.start for arm in one.arms)
    now = tag(
        "div",
        tag(
            "p",
            tag("b", figures.percent(one.coverage), class_="big"),
            f" of units are enrolled{where}, phase {one.phase}.",
        ),
        charts.buckets(owned, label=f"The 10,000 buckets of units and the arms that own them: {_spoken(one)}"),
        [_halt(arm.name, arm.halt) for arm in one.arms if arm.halt is not None],
        tag(
            "ul",
            legend,
            tag("li", f"{figures.count(outside)} buckets get control, not enrolled") if outside else None,
            class_="legend",
        ),
        id="ramp-now",
        data_live=True,
    )
    return panel("ramp", "Ramp", now, _ramp_form(one, facts, evidence), live=False, size="large")


def _halt(arm: str, halt: HaltFacts) -> Markup:
    """What a guard-rail did, and a way to undo it."""
    moment = datetime.fromtimestamp(halt.time, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    found, bound = (figures.rail(halt.rail, value) for value in (halt.found, halt.bound))
    crossed = f"{figures.rail_name(halt.rail)} of {found}, allowed {bound}"
    told = f"A guard-rail halted {arm} at {moment}: {crossed}. Its units get control until somebody lifts this."
    button = tag("button", "Lift it", type="button", disabled=True, data_lift=arm, aria_label=f"Lift the halt of {arm}")
    return tag("p", state(told, "no"), " ", button, class_="halt")


def _spoken(one: ExperimentFacts) -> str:
    return ", ".join(f"{arm.name} {figures.count(arm.stop - arm.start)}" for arm in one.arms)


def _ramp_form(one: ExperimentFacts, facts: Facts, evidence: Evidence) -> Child:
    if not facts.has_experiment_file:
        return missing(
            "The shipped experiment runs because no file was named: start with `--experiments FILE` to change it."
        )
    share = f"{100 * one.coverage:.6g}"
    number = tag(
        "input",
        id="coverage",
        name="coverage",
        type="number",
        min=0,
        max=100,
        step="any",
        value=share,
        inputmode="decimal",
    )
    switches = [
        tag(
            "label",
            tag("input", type="checkbox", name="off", value=arm.name, checked=arm.is_off),
            f" {arm.name} off: its units get control",
        )
        for arm in one.arms[1:]
    ]
    return tag(
        "form",
        tag(
            "fieldset",
            tag("legend", "Change it", class_="unseen"),
            tag("p", tag("label", "Coverage, percent of units ", for_="coverage"), number, class_="field"),
            tag("div", switches, class_="switches") if switches else None,
            tag("output", "Type another coverage to see how many units would move.", id="preview", for_="coverage"),
            tag(
                "p",
                tag("button", "Put into force", type="submit", class_="main"),
                tag("button", "Pause all arms", type="button", id="pause") if switches else None,
                class_="buttons",
            ),
            tag("p", id="ramp-said", role="status", class_="said"),
            disabled=True,
        ),
        id="ramp-form",
        data_experiment=one.name,
        data_units=_units_a_bucket(one, evidence),
        autocomplete="off",
    )


def _units_a_bucket(one: ExperimentFacts, evidence: Evidence) -> str | None:
    """How many units of this phase were seen for each bucket that is enrolled; None where that is not known."""
    owned = sum(arm.stop - arm.start for arm in one.arms)
    if evidence.tree is None or not owned or evidence.tree["phase"] != one.phase:
        return None
    units = sum(evidence.tree["split"]["units"].values())
    return f"{units / owned:.6g}" if units else None


def attempt(one: ExperimentFacts, body: str) -> Markup:
    """A request to type, and what each teacher says of it."""
    choices = [
        tag("option", f"{arm.name} ({arm.model} {arm.version})", value=arm.name, selected=arm.name == _opinionated(one))
        for arm in one.arms
    ]
    form = tag(
        "form",
        tag(
            "fieldset",
            tag("legend", "A request", class_="unseen"),
            tag(
                "p", tag("label", "Answered by ", for_="try-arm"), tag("select", choices, id="try-arm"), class_="field"
            ),
            tag("label", "Request", for_="try-body"),
            tag("textarea", body, id="try-body", rows=14, spellcheck="false", autocomplete="off"),
            tag(
                "p",
                tag("button", "Score and explain", type="submit", class_="main"),
                tag("button", "Fill in an example", type="button", id="try-example"),
                class_="buttons",
            ),
            tag("p", id="try-said", role="status", class_="said"),
            disabled=True,
        ),
        id="try-form",
        data_experiment=one.name,
        autocomplete="off",
    )
    note = "Answered by /explain: not logged, not counted, and nobody's fields are kept. Null is a missing value."
    shown = tag("div", id="try-answer", tabindex="-1")
    return panel("try", "Try a request", form, shown, note=note, live=False, size="wide")


def _opinionated(one: ExperimentFacts) -> str:
    """An arm whose model has teachers to ask, if there is one."""
    return next((arm.name for arm in one.arms if arm.is_ensemble), one.arms[0].name)


def skeleton(context: Sequence[str], candidate: Sequence[str]) -> str:
    """A request that names every field and says nothing of any."""
    body: dict[str, Any] = {"context": dict.fromkeys(context), "candidates": [dict.fromkeys(candidate)] * 2}
    return json.dumps(body, indent=2, ensure_ascii=False)
