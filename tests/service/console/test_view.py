"""The page, as a function of what is so: nothing can be injected, all is in tables, what is missing says why."""

from __future__ import annotations

import html
import json
import re
from copy import deepcopy
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

import pytest

from service.console.durations import Window
from service.console.evidence import Evidence
from service.console.gather import LATENCY_SECONDS, HaltFacts, TeacherFacts, VersionFacts
from service.console.html import VOID, Markup, tag
from tests.service.console.facts import NAME, arm, counted, experiment, facts, page, tree

HOSTILE = "</script><script>alert(1)</script>\"'><img src=x onerror=alert(1)>&amp;{{7*7}}\u202e"


class Reader(HTMLParser):
    """Elements, their attributes and their text; an element that is not closed, or closed twice, fails."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        assert len({key for key, _ in attributes}) == len(attributes), f"<{name}> has an attribute twice"
        self.elements.append((name, dict(attributes)))
        if name not in VOID:
            self._open.append(name)

    def handle_endtag(self, name: str) -> None:
        assert self._open.pop() == name

    def handle_data(self, data: str) -> None:
        if data.strip() and self._open:
            self.texts.append((self._open[-1], data))

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for found, attributes in self.elements if found == name]

    def ids(self) -> list[str]:
        return [attributes["id"] or "" for _, attributes in self.elements if "id" in attributes]


def shown(text: str, section: str) -> str:
    """The text of one section."""
    found = re.search(rf'<(section|div) id="{section}".*?</\1>', text, re.DOTALL)
    assert found, section
    return html.unescape(re.sub(r"<[^>]+>", " ", found[0]))


def hostile_tree() -> dict[str, Any]:
    """The report with every name in it replaced by what an attacker would like it to be."""
    text = json.dumps(tree())
    for name in ("student", "ensemble"):
        text = text.replace(f'"{name}"', json.dumps(HOSTILE + name))
    found: dict[str, Any] = json.loads(text)
    found["decisions"][0]["reasons"] = [HOSTILE]
    found["comparisons"][0]["paired"]["why"] = HOSTILE
    found["split"]["reasons"] = [HOSTILE]
    return found


def test_nothing_can_be_injected():
    """Whatever experiments, arms, layers, models, teachers, fields, reasons and examples are called."""
    arms = (arm(HOSTILE + "ensemble", is_ensemble=True, model="ensemble"), arm(HOSTILE + "student", 1, model=HOSTILE))
    one = experiment(HOSTILE, arms, layer=(HOSTILE, 0, 10), shadow=(HOSTILE, 0.1))
    given = facts(one, experiment("other"))
    models = tuple(
        replace(
            model,
            name=name,
            versions=(VersionFacts(1, HOSTILE), VersionFacts(2, None, HOSTILE, (TeacherFacts(HOSTILE, 1.0),), True)),
        )
        for model, name in zip(given.models, ("ensemble", HOSTILE), strict=True)
    )
    metrics = counted(
        ("retort_drift_psi", {"model": HOSTILE, "field": HOSTILE}, 0.3),
        ("retort_drift_change_psi", {"model": HOSTILE, "field": HOSTILE}, 0.3),
        ("retort_shadow_kl", {"experiment": HOSTILE}, 0.01),
        ("retort_events_total", {"event": HOSTILE, "outcome": HOSTILE}, 3.0),
        ("retort_log_dropped_total", {"reason": HOSTILE}, 3.0),
    )
    given = replace(
        given, models=models, counted=metrics, reasons_degraded=(HOSTILE + "log",), reasons_not_ready=(HOSTILE,)
    )

    for evidence in (Evidence(hostile_tree()), Evidence(missing=HOSTILE)):
        found = Reader(page(given, evidence, example=HOSTILE))

        assert len(found.all("script")) == 1
        assert found.all("img") == []
        assert not any(key.startswith("on") or key == "style" for _, attributes in found.elements for key in attributes)
        assert sum(HOSTILE in text for _, text in found.texts) > 10
        assert all(
            (each["href"] or "").startswith(("#", "?experiment=", "docs", "metrics", "experiments", "health"))
            for each in found.all("a")
        )


def test_the_page_is_sound():
    """Elements closed in order, no id twice, one h1, headings without a gap, every control with a label."""
    found = Reader(page(facts(experiment(), experiment("other"))))
    levels = [int(name[1]) for name, _ in found.elements if re.fullmatch(r"h\d", name)]
    labelled = {each.get("for") for each in found.all("label")}

    assert sorted(found.ids()) == sorted(set(found.ids()))
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert {name for name, _ in found.elements} >= {"header", "nav", "main", "footer"}
    for kind in ("input", "select", "textarea"):
        for each in found.all(kind):
            assert each.get("id") in labelled or each.get("name") in ("off", "experiment"), each
    for section in found.all("section"):
        assert section["aria-labelledby"] in found.ids()
    for drawing in found.all("svg"):
        assert drawing["role"] == "img"
        assert drawing["aria-label"]


def test_nothing_is_inline_and_nothing_comes_from_elsewhere():
    """One style sheet and one script, ours, by their hash; so a strict policy can hold."""
    found = Reader(page())
    (script,) = found.all("script")
    sheet = next(link for link in found.all("link") if link["rel"] == "stylesheet")

    assert found.all("style") == []
    for each, path in ((script, script["src"]), (sheet, sheet["href"])):
        assert re.fullmatch(r"console/assets/console-[0-9a-f]{16}\.(js|css)", path or "")
        assert (each["integrity"] or "").startswith("sha384-")
    assert "//" not in re.sub(r"http://www\.w3\.org/2000/svg", "", page())


def test_the_token_has_no_way_into_an_address():
    """Its field has no name and stands in no form: not even without a script can it be submitted."""
    text = page()

    field = re.search(r'<input id="token"[^>]*>', text)
    assert field is not None
    assert " name=" not in field[0]
    assert 'type="password"' in field[0]
    assert 'autocomplete="off"' in field[0]
    assert all('id="token"' not in form for form in re.findall(r"<form.*?</form>", text, re.DOTALL))


def test_without_a_script_nothing_can_be_sent():
    """What changes something is disabled until the script is there, which sends the token; and the page says so."""
    text = page()

    for form in re.findall(r"<form.*?</form>", text, re.DOTALL):
        is_harmless = 'method="get"' in form or 'method="dialog"' in form
        assert is_harmless or "<fieldset disabled>" in form
    assert all(" disabled" in button for button in re.findall(r"<button[^>]*data-load[^>]*>", text))
    assert "<noscript>" in text


def test_a_roll_back_names_the_arms_that_will_not_go_along():
    """An arm that does not follow the live version keeps the one it has: the button says which one that is."""
    stays = experiment(arms=(arm("ensemble"), arm("student", 1, follow=False)))
    buttons = re.findall(r'<button[^>]*data-load="student"[^>]*>', page(facts(stays)))

    assert buttons
    assert all(f'data-staying="{NAME}: student (2)"' in button for button in buttons)
    assert "student (2)" not in "".join(re.findall(r"<button[^>]*data-load[^>]*>", page()))


def test_every_drawing_has_its_table():
    """Lift at every look, bins of the reliability, gate weights: the figures are there as text."""
    text, report = page(), tree()
    history = report["comparisons"][0]["history"]
    bins = report["arms"][0]["quality"]["reliability"]

    lift = shown(text, "lift")
    assert f"{100 * history[-1]['value']:+.2f}%".replace("-", "−") in lift
    assert lift.count("1970-01-01 00:") == len([look for look in history if look["value"] is not None])
    assert f"{100 * bins[0]['pctr']:.4g}%" in shown(text, "reliability")
    assert "dcnv2 60.0%" in re.sub(r"\s+", " ", shown(text, "gate"))


def test_the_answer_comes_first():
    """The decision with its reasons, the lift with its interval, both click rates."""
    text, report = page(), tree()
    found = re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", text[text.index('id="answer"') :])))

    assert report["decisions"][0]["action"].capitalize() in found[:200]
    assert all(reason in found for reason in report["decisions"][0]["reasons"])
    assert found.index("lift of CTR") < found.index("Ramp")


@pytest.mark.parametrize("action", ["keep running", "ship", "roll back", "invalid"])
def test_every_decision_is_shown(action: str):
    """In words; colour only repeats them."""
    report = deepcopy(tree())
    report["decisions"][0]["action"] = action

    assert f"<h2>{action.capitalize()}</h2>" in page(evidence=Evidence(report))


def test_what_is_missing_says_which_option_turns_it_on():
    """No log, no token, no file, no ensemble, no shadow, no drift, no results."""
    alone = experiment(arms=[arm("student", stop=10_000, weight=1.0)])
    text = page(
        facts(alone, has_admin=False, has_log=False, has_experiment_file=False, models=()),
        Evidence(missing="No log: `--log FOLDER`."),
    )

    assert "--log FOLDER" in shown(text, "log")
    assert "--admin-token-file FILE" in shown(text, "administration")
    assert "--experiments FILE" in shown(text, "ramp")
    assert "is an ensemble" in shown(text, "gate")
    assert "shadow: {arm, sample}" in shown(text, "drift")
    assert "retort_drift_psi" in shown(text, "drift")
    assert "No log: <code>--log FOLDER</code>." in text
    assert "No model is there yet" in shown(text, "models")


def test_before_anything_is_served_there_is_a_page():
    """Not ready, and why."""
    text = page(
        facts(experiments={}, default=None, models=(), reasons_not_ready=("models are being loaded",)),
        Evidence(),
    )

    assert "Nothing is served yet." in text
    assert "not ready: models are being loaded" in text


def test_one_arm_is_a_page_too():
    """A report of an experiment that compares nothing."""
    report = deepcopy(tree())
    report.update(decisions=[], comparisons=[], arms=report["arms"][:1])

    Reader(page(facts(experiment(arms=[arm("ensemble", stop=10_000)])), Evidence(report)))


def test_hundreds_of_experiments_do_not_make_a_book():
    """All can be chosen; a hundred are listed; the page stays below a third of a megabyte."""
    many = [
        experiment(f"e{number:03d}", [arm(f"arm-{place}" * 8, place) for place in range(2)]) for number in range(999)
    ]
    text = page(facts(experiment(), *many), chosen="e500")

    assert text.count("<option") == 1000 + 2
    assert '<option value="e500" selected>' in text
    assert text.count('href="?experiment=') == 100
    assert "900 more: GET /experiments lists them all." in shown(text, "experiments")
    assert len(text) < 333_000


def test_a_name_of_any_length_is_text():
    """Nothing is cut where it is told apart by; drawings shorten it."""
    name = "n" * 64
    text = page(facts(experiment(arms=[arm(name), arm("student", 1)])), Evidence(missing="."))

    assert name in shown(text, "arms")


def test_a_hundred_arms_are_a_page():
    """As many as the file may have."""
    arms = [arm(f"arm-{place}", weight=0.01, start=100 * place, stop=100 * place + 100) for place in range(100)]

    Reader(page(facts(experiment(arms=arms)), Evidence(missing=".")))


def test_live_latency_is_that_of_all_workers_and_models():
    """p50 and p99 since the start from the histogram, fallbacks among them; refused requests are counted beside."""
    samples = []
    for outcome, number in (("ok", 90.0), ("fallback", 10.0), ("refused", 3.0)):
        for bound in (*LATENCY_SECONDS, float("inf")):
            labels = {"experiment": NAME, "arm": "student", "model": "m", "outcome": outcome, "le": str(bound)}
            samples.append(("retort_request_duration_seconds_bucket", labels, number if bound >= 0.002 else 0.0))
    samples.append(("retort_exposures_total", {"experiment": NAME, "arm": "student"}, 100.0))

    row = re.sub(r"\s+", " ", shown(page(facts(counted=counted(*samples))), "arms"))

    assert "student on" in row
    assert "100 – – 1.75 ms 2 ms 10% 3" in row


def test_now_is_what_was_counted_lately():
    """A rate and quantiles of the window, not of the past."""
    counts = [0.0] * 10 + [30.0] + [0.0] * (len(LATENCY_SECONDS) - 10)
    given = replace(facts().counted, window=Window(60.0, {(NAME, "student", "ok"): counts}))

    row = re.sub(r"\s+", " ", shown(page(facts(counted=given)), "arms"))

    assert "0.5/s" in row
    assert "4 ms 4.98 ms" in row


def test_a_paused_experiment_says_so():
    """In the list, at the arm and among the buckets."""
    paused = experiment(arms=[arm("ensemble"), arm("student", 1, halted=True, is_off=True)])
    text = page(facts(paused, experiment("other")))

    assert "paused" in shown(text, "experiments")
    assert "off: control answers" in shown(text, "arms")
    assert re.search(r'name="off" value="student" checked', text)


def test_markup_is_made_in_one_place():
    """Text is escaped, as a child and as an attribute; markup is taken as it is."""
    assert tag("p", "a<b", tag("b", "&")) == "<p>a&lt;b<b>&amp;</b></p>"
    assert tag("a", "x", href='"><script>') == '<a href="&quot;&gt;&lt;script&gt;">x</a>'
    assert tag("input", disabled=True, checked=False, min=0, aria_label=None) == '<input disabled min="0">'
    assert isinstance(tag("p"), Markup)


def test_what_a_guard_rail_halted_is_told_with_its_evidence():
    """And can be lifted; its switch in the form is that of the file, which says nothing of it."""
    halt = HaltFacts("ctr_loss", 0.1, 0.32, 1.79e9)
    text = page(facts(experiment(arms=[arm("ensemble"), arm("student", 1, halted=True, halt=halt)])))

    assert "A guard-rail halted student at 2026-09-21" in shown(text, "ramp")
    assert "CTR loss of 32%, allowed 10%" in shown(text, "ramp")
    assert "halted by a guard-rail" in shown(text, "arms")
    assert re.search(r'<button[^>]* disabled[^>]* data-lift="student"', text)
    assert re.search(r'name="off" value="student">', text)


def test_the_answer_says_first_that_an_arm_is_off():
    """Whatever the report says, which may not have clicks enough to say anything: nobody is to read `keep running` of
    an arm that nobody gets."""
    (found,) = tree()["decisions"]
    halt = HaltFacts("ctr_loss", 0.1, 0.32, 1.79e9)
    arms = [arm("ensemble"), arm("student", 1, halted=True, halt=halt)]

    halted = shown(page(facts(experiment(arms=arms)), Evidence(tree())), "answer")
    paused = shown(
        page(facts(experiment(arms=[arms[0], arm("student", 1, halted=True, is_off=True)])), Evidence(tree())), "answer"
    )
    running = shown(page(facts(), Evidence(tree())), "answer")

    assert "Halted" in halted
    assert (
        f"A guard-rail found a CTR loss of 32%, allowed 10%. Its units get control. The report: {found['action']}"
        in halted
    )
    assert "Paused" in paused
    assert "It is switched off in the experiment file. Its units get control." in paused
    assert found["action"].capitalize() in running
    assert "control." not in running


def test_what_changed_comes_first_then_what_is_unlike_training():
    """A few at once, all of them behind; in a word and a figure beside the gauge. What was so all the time, as ads that
    come and go, is no alarm; what changed within a day, or cannot be read any more, is."""
    indexes = [("retort_drift_psi", {"model": "student", "field": f"f{n}"}, n / 40) for n in range(20)]
    healthy = [("retort_drift_change_psi", {"model": "student", "field": f"f{n}"}, 0.01) for n in range(19)]
    broken = [
        ("retort_drift_change_psi", {"model": "student", "field": "f3"}, 0.4),
        ("retort_drift_change_psi", {"model": "student", "field": "f4"}, 0.15),
        ("retort_drift_lost_share", {"model": "student", "field": "f2"}, 0.8),
        ("retort_drift_lost_share", {"model": "student", "field": "f18"}, 0.2),
        ("retort_shadow_kl", {"experiment": NAME}, 0.0123),
    ]
    quiet, loud = (page(facts(counted=counted(*indexes, *more))) for more in (healthy, [*healthy, *broken]))

    assert not re.search(r'class="state no">(large|lost)', quiet)
    drift = re.sub(r"\s+", " ", shown(loud, "drift"))
    words = ["f2, student lost", "f3, student large 0.400 0.400 0.075", "f4, student some 0.150"]
    words += ["f19, student unlike training – 0.475", "f18, student as before 0.010", "f17, student as before"]
    places = [drift.index(word) for word in words]
    assert places == sorted(places)
    assert "All 20" in drift
    assert "f0, student none 0.010 0.010 0.000" in drift
    assert "0.0123 nats" in drift
