"""The parts of the page that say how things are: experiments, arms, models, gate, drift, the log."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

from service.console import charts, figures
from service.console.durations import quantile
from service.console.gather import BOUNDS, ArmFacts, Counted, ExperimentFacts, Facts, ModelFacts, VersionFacts
from service.console.html import Child, Markup, table, tag
from service.scoring.drift import ENOUGH

MOST_LISTED = 100
"""Experiments, and fields of a model: who needs more than a page can show asks the route beside it."""
MOST_VERSIONS = 8
"""Of a model, the newest; the live one is listed always."""
MOST_DRIFTED = 8
DRIFT_SEEN, DRIFT_LARGE = 0.1, 0.25
"""Population stability index: from the first on a shift is visible, from the second on it is large (`RetortDrift`)."""
LOST = 0.5
"""The share of a field from which on it is lost (`RetortFieldLost`)."""


def panel(name: str, title: str, *body: Child, live: bool = True, size: str = "", note: Child = None) -> Markup:
    """A part of the page with its heading. A `live` one is brought up to date while it is looked at.
    `size` is its width: `wide`, `large` or `small`, else half the page."""
    return tag(
        "section",
        tag("h2", title, id=f"{name}-title"),
        tag("p", note, class_="note") if note else None,
        body,
        id=name,
        class_=size or None,
        aria_labelledby=f"{name}-title",
        data_live=live,
    )


def missing(what: str) -> Markup:
    """Why a part has nothing to show, and what to do about it."""
    return tag("p", words(what), class_="missing")


def words(said: str) -> Child:
    """Text in which `such` is typed somewhere, and looks like it."""
    return [tag("code", part) if place % 2 else part for place, part in enumerate(said.split("`"))]


def key(name: str, place: int) -> Markup:
    """An arm's name in its colour."""
    return tag("span", name, class_=f"key {charts.style_of(place)}")


def state(word: str, kind: str) -> Markup:
    """A word that colour only repeats."""
    return tag("span", word, class_=f"state {kind}")


def experiments(facts: Facts, chosen: str | None) -> Markup | None:
    """Every experiment and a way to each of them; nothing where there is but one."""
    if len(facts.experiments) < 2:
        return None
    listed = list(facts.experiments.values())[:MOST_LISTED]
    more = len(facts.experiments) - len(listed)
    rows = [
        (
            tag(
                "a",
                one.name,
                href=f"?experiment={quote(one.name)}",
                aria_current="page" if one.name == chosen else None,
            ),
            _state_of(one),
            ", ".join(arm.name for arm in one.arms[:6]) + (" …" if len(one.arms) > 6 else ""),
            "" if one.layer is None else one.layer[0],
            figures.percent(one.coverage),
            str(one.phase),
            figures.count(sum(facts.counted.exposures.get((one.name, arm.name), 0.0) for arm in one.arms)),
        )
        for one in listed
    ]
    heads = ("experiment", "state", "arms", "layer", "coverage", "phase", "requests")
    choices = [tag("option", name, value=name, selected=name == chosen) for name in facts.experiments]
    pick = tag(
        "form",
        tag("label", "Show ", tag("select", choices, name="experiment")),
        tag("button", "Go"),
        method="get",
        class_="pick",
    )
    listing = tag(
        "details",
        tag("summary", f"All {len(facts.experiments):,} experiments" if not more else f"The first {MOST_LISTED}"),
        table("Experiments", heads, rows, left=4),
        missing(f"{more:,} more: GET /experiments lists them all.") if more else None,
        open=len(facts.experiments) <= 8,
    )
    return panel("experiments", "Experiments", pick, listing, live=False, size="wide")


def _state_of(one: ExperimentFacts) -> Markup:
    if one.is_paused:
        return state("paused", "no")
    off = sum(arm.halted for arm in one.arms)
    if off:
        return state(f"{figures.plural(off, 'arm')} off", "no")
    return state("running", "yes") if one.coverage > 0 else state("nobody enrolled", "soft")


def arms(one: ExperimentFacts, facts: Facts) -> Markup:
    """How each arm answers, now and since the service began."""
    counted = facts.counted
    window = counted.window
    rows = []
    for place, arm in enumerate(one.arms):
        totals = {name: counted.durations.get((one.name, arm.name, name), ()) for name in OUTCOMES}
        lately = {} if window is None else window.counts
        now = {name: lately.get((one.name, arm.name, name), ()) for name in OUTCOMES}
        answered, late = _added(totals["ok"], totals["fallback"]), _added(now["ok"], now["fallback"])
        number = sum(answered)
        rows.append(
            (
                key(arm.name, place),
                _arm_state(arm, place),
                f"{arm.model} {arm.version}{' (follows)' if arm.follow else ''}",
                figures.percent(arm.weight),
                figures.count(counted.exposures.get((one.name, arm.name), 0.0)),
                "" if window is None else f"{sum(late) / window.seconds:,.1f}/s",
                figures.milliseconds(quantile(BOUNDS, late, 0.5)),
                figures.milliseconds(quantile(BOUNDS, late, 0.99)),
                figures.milliseconds(quantile(BOUNDS, answered, 0.5)),
                figures.milliseconds(quantile(BOUNDS, answered, 0.99)),
                figures.percent(sum(totals["fallback"]) / number) if number else figures.NOTHING,
                figures.count(sum(totals["refused"])),
            )
        )
    heads = (
        *("arm", "state", "model", "weight", "requests", "rate now", "p50 now", "p99 now"),
        *("p50 since start", "p99 since start", "fallbacks", "refused"),
    )
    said = (
        "“Now” appears with the second look: leave the page open, or load it again."
        if window is None
        else f"“Now” is the last {window.seconds:.0f} s. All workers together, estimated from the histogram's buckets."
    )
    return panel("arms", "Arms, live", table("Arms, live", heads, rows, left=2), note=said, size="wide")


OUTCOMES = ("ok", "fallback", "refused")


def _arm_state(arm: ArmFacts, place: int) -> Markup:
    if arm.halted:
        return state("off: control answers" if arm.halt is None else "halted by a guard-rail", "no")
    return state("control" if place == 0 else "on", "soft" if place == 0 else "yes")


def _added(first: Sequence[float], second: Sequence[float]) -> list[float]:
    """Two rows of counts, either of which may be missing."""
    return [a + b for a, b in itertools.zip_longest(first, second, fillvalue=0.0)]


def gate(one: ExperimentFacts, facts: Facts) -> Markup:
    """How much each teacher has to say in the ensembles of this experiment."""
    drawn: list[Child] = []
    for name, version in dict.fromkeys((arm.model, arm.version) for arm in one.arms if arm.is_ensemble):
        found = _version(facts, name, version)
        if found is None or not found.teachers:
            continue
        ranked = sorted(found.teachers, key=lambda teacher: -teacher.mean_gate_weight)
        entries = [
            (teacher.name, teacher.mean_gate_weight, f"{100 * teacher.mean_gate_weight:.1f}%") for teacher in ranked
        ]
        title = f"{name} {version}: mean gate weight by teacher"
        drawn += [
            tag("figure", charts.bars(entries, label=title, most=max(0.5, entries[0][1])), tag("figcaption", title)),
            tag(
                "details",
                tag("summary", "As a table"),
                table(title, ("teacher", "mean gate weight"), [(teacher, written) for teacher, _, written in entries]),
            ),
        ]
    if not drawn:
        drawn = [missing("No arm of this experiment is an ensemble, so there is no gate.")]
    note = "Averaged over the test rows it was exported with. What each teacher says of one request: “Try a request”."
    return panel("gate", "Gate weights", drawn, note=note, live=False)


def _version(facts: Facts, name: str, version: int) -> VersionFacts | None:
    model = next((model for model in facts.models if model.name == name), None)
    return None if model is None else next((one for one in model.versions if one.version == version), None)


def drift(one: ExperimentFacts, facts: Facts) -> Markup:
    """How far requests are from what the models were trained on, and the student from its ensemble."""
    counted = facts.counted
    ours = {arm.model for arm in one.arms}
    found = sorted(
        (
            Shift(*place, psi, counted.drift_change.get(place), counted.lost.get(place, 0.0))
            for place, psi in counted.drift.items()
            if place[0] in ours
        ),
        key=Shift.order,
        reverse=True,
    )
    rows = [
        (
            f"{shift.field}, {shift.model}",
            state(*shift.word()),
            "–" if shift.change is None else tag("span", _meter(shift.change), f" {shift.change:.3f}"),
            f"{shift.psi:.3f}",
        )
        for shift in found[:MOST_LISTED]
    ]
    body: list[Child] = []
    if rows:
        heads = ("field", "shift", "in a day", "from training")
        body.append(table("Largest shifts by field", heads, rows[:MOST_DRIFTED], left=2))
        if len(rows) > MOST_DRIFTED:
            every = table("Drift of every field", heads, rows, left=2)
            body.append(tag("details", tag("summary", f"All {len(rows)}"), every))
    else:
        body.append(
            missing(
                "No drift is measured here (metric `retort_drift_psi`): it is counted from scored requests against the "
                "histograms in the model's manifest."
            )
        )
    if (kl := counted.kl.get(one.name)) is not None:
        body.append(
            tag("p", "KL(ensemble || student) of shadow traffic: ", tag("b", figures.figure(kl)), " nats a candidate.")
        )
    elif one.shadow is None:
        body.append(missing("KL(ensemble || student) needs `shadow: {arm, sample}` in the experiment file."))
    else:
        told = f"KL(ensemble || student) is told once both have scored {ENOUGH:,.0f} candidates within an hour or so."
        body.append(missing(told))
    if one.shadow is not None:
        scored, lost = counted.shadowed.get(one.name, 0.0), counted.unshadowed.get(one.name, 0.0)
        arm, sample = one.shadow
        told = (
            f"The shadow is {arm}, on {figures.percent(sample)} of requests: {scored:,.0f} scored, {lost:,.0f} dropped."
        )
        body.append(tag("p", told))
    note = (
        f"PSI of the last hour against a day ago, or as far back as was counted: below {DRIFT_SEEN} no shift to speak "
    )
    note += (
        f"of, above {DRIFT_LARGE} a large one, as the alert has it. Lost: most of a field is missing or unknown. Ads "
    )
    note += "and users come and go, and what is offered is not what was shown, so a field may be unlike training and "
    note += "nothing be wrong."
    return panel("drift", "Drift", body, note=note)


class Shift(NamedTuple):
    """How one field of one model stands."""

    model: str
    field: str
    psi: float
    """Against training."""
    change: float | None
    """Against a day ago; None where that is not known yet."""
    lost: float

    def word(self) -> tuple[str, str]:
        """What to make of it, and its colour."""
        if self.lost > LOST:
            return "lost", "no"
        if self.change is not None and self.change >= DRIFT_SEEN:
            return ("large", "no") if self.change > DRIFT_LARGE else ("some", "soft")
        if self.psi > DRIFT_LARGE:
            return ("unlike training" if self.change is None else "as before"), "soft"
        return "none", "yes"

    def order(self) -> tuple[object, ...]:
        """By which the one to look at first comes last."""
        change = self.change or 0.0
        return self.lost > LOST, change if change >= DRIFT_SEEN else 0.0, self.psi, self.field, self.model


def _meter(change: float) -> Markup:
    ends: dict[str, Any] = {"min": 0, "max": 0.5, "low": DRIFT_SEEN, "high": DRIFT_LARGE, "optimum": 0}
    return tag("meter", f"{change:.3f}", value=round(change, 4), **ends)


def log_health(facts: Facts) -> Markup:
    """Whether what is answered and clicked is kept."""
    counted = facts.counted
    if not facts.has_log:
        body: Child = missing(
            "No exposure log is kept, so nothing about clicks can be said: start the service with `--log FOLDER`."
        )
        return panel("log", "Log health", body)
    failures = [reason for reason in facts.reasons_degraded if "log" in reason]
    word = state("written", "yes") if not failures else state(failures[0], "no")
    rows: list[tuple[Child, ...]] = [
        ("exposures written", figures.count(counted.records.get("exposure", 0.0))),
        ("events written", figures.count(counted.records.get("event", 0.0))),
        ("written", figures.size(counted.bytes)),
        ("not kept", _dropped(counted)),
        ("torn or damaged places found", figures.count(counted.torn)),
    ]
    rows += [
        (f"{event}, {outcome}", figures.count(value))
        for (event, outcome), value in sorted(counted.events.items())
        if value
    ]
    shown = table("Log health", ("since the service started", ""), rows)
    return panel("log", "Log health", tag("p", "The exposure log is ", word, "."), shown)


def _dropped(counted: Counted) -> Child:
    lost = {reason: value for reason, value in counted.dropped.items() if value}
    if not lost:
        return "0"
    told = ", ".join(f"{value:,.0f} {reason.replace('_', ' ')}" for reason, value in sorted(lost.items()))
    return state(told, "no")


def models(facts: Facts) -> Markup:
    """The newest versions and the live one of every model, and a button that makes another one live."""
    users: dict[tuple[str, int], list[str]] = {}
    staying: dict[str, list[tuple[str, int]]] = {}  # arms that follow no live version, by model
    for experiment in facts.experiments.values():
        for arm in experiment.arms:
            name = f"{experiment.name}: {arm.name}"
            users.setdefault((arm.model, arm.version), []).append(name)
            if not arm.follow:
                staying.setdefault(arm.model, []).append((name, arm.version))
    rows = [row for model in facts.models[:MOST_LISTED] for row in _model_rows(model, users, staying)]
    if not rows:
        return panel(
            "models", "Models", missing("No model is there yet: put a bundle into the repository."), size="wide"
        )
    heads = ("model", "version", "state", "", "exported", "answers for")
    note = (
        "Making a version live writes the model's live file, for every worker and for good. It moves the arms that "
        "follow the live version (follow: true); any other keeps the version it has until its experiment changes."
    )
    now = tag("div", table("Models", heads, rows, left=6), id="models-now", data_live=True)
    said = tag("p", id="models-said", role="status", class_="said")
    return panel("models", "Models", now, said, note=note, size="wide", live=False)


def _model_rows(
    model: ModelFacts, users: Mapping[tuple[str, int], list[str]], staying: Mapping[str, list[tuple[str, int]]]
) -> Iterator[tuple[Child, ...]]:
    newest = model.versions[-MOST_VERSIONS:]
    for one in reversed([one for one in model.versions if one in newest or one.version == model.live]):
        used = users.get((model.name, one.version), [])
        yield (
            model.name,
            str(one.version),
            _version_state(one, model.live),
            "" if one.version == model.live else _load_button(model, one, staying.get(model.name, ())),
            tag("span", one.created or "", class_="whole"),
            _few(used),
        )


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _version_state(one: VersionFacts, live: int | None) -> Markup:
    if one.version == live:
        return state("live", "yes")
    if one.reason is None:
        return state("loaded", "soft")
    return state(one.reason, "no" if one.reason.startswith("refused") else "soft")


def _load_button(model: ModelFacts, one: VersionFacts, staying: Sequence[tuple[str, int]]) -> Markup:
    """`staying`: arms of this model that stay where they are when a version is made live, and the version they have."""
    is_older = model.live is not None and one.version < model.live
    left = [f"{name} ({version})" for name, version in staying if version != one.version]
    return tag(
        "button",
        "Roll back" if is_older else "Make live",
        type="button",
        disabled=True,  # until there is a script to do it
        data_load=model.name,
        data_version=str(one.version),
        data_staying=_few(left),
        aria_label=f"{'Roll back to' if is_older else 'Make live'} {model.name} version {one.version}",
    )
