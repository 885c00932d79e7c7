"""The console in a real browser: it opens quietly, an owner changes what runs, and asks the teachers."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvicorn
import yaml

from service.answers.report import to_json
from service.app import Service, create_app
from service.experiments.file import Experiment, ExperimentFile
from service.experiments.state import Halt, halt_arm, read_halts
from service.results.keeper import Computed
from service.settings import Settings
from tests.models.tiny_bundle import write_tiny_bundle
from tests.service.console.browser import BROWSER, Page, browser
from tests.service.console.facts import tree
from tests.service.running import PATIENCE_SECONDS, TOKEN, wait_for

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine (Debian: apt install chromium)")

EXPERIMENT = {
    "name": "student-vs-ensemble",
    "salt": "s-1",
    "default": True,
    "coverage": 0.1,
    "arms": [
        {"name": "ensemble", "model": "ensemble", "version": "latest", "follow": True, "weight": 0.5},
        {"name": "student", "model": "student", "version": "latest", "follow": True, "weight": 0.5},
    ],
}

CONTRAST = """
(() => {
  const parse = (text) => [...text.match(/[\\d.]+/g).map(Number), 1].slice(0, 4);
  const light = (color) => color.slice(0, 3).map((each) => each / 255)
    .map((each) => (each <= 0.03928 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4))
    .reduce((sum, each, place) => sum + each * [0.2126, 0.7152, 0.0722][place], 0);
  const behind = (each) => {
    for (; each; each = each.parentElement) {
      const color = parse(getComputedStyle(each).backgroundColor);
      if (color[3] > 0) return color;
    }
    return [255, 255, 255, 1];
  };
  const found = [];
  const read = "h1, h2, p, a, th, td, label, button, summary, dt, b, li, figcaption, span, textarea, code";
  for (const each of document.querySelectorAll(read)) {
    if (!each.textContent.trim() || each.closest("dialog, :disabled, .unseen, .skip")) continue;
    const [text, back] = [light(parse(getComputedStyle(each).color)), light(behind(each))];
    const ratio = (Math.max(text, back) + 0.05) / (Math.min(text, back) + 0.05);
    if (ratio < 4.5) found.push(`${ratio.toFixed(2)} ${each.outerHTML.slice(0, 80)}`);
  }
  return found;
})()
"""


async def get_results(experiment: Experiment, file: ExperimentFile) -> Computed:
    """What some traffic has shown."""
    return Computed("", "", time.time(), 0.1, json=to_json(tree()))


@dataclass
class Site:
    """A service in this process, on a port of its own."""

    app: Service
    url: str
    experiments: Path

    def stated(self) -> dict[str, Any]:
        """What the experiment file says now."""
        found: dict[str, Any] = yaml.safe_load(self.experiments.read_text(encoding="utf-8"))["experiments"][0]
        return found


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Two versions of each model, an experiment file, a token, a log, and results."""
    folder = tmp_path_factory.mktemp("site")
    for _ in range(2):
        write_tiny_bundle(folder / "repository", "student", bias=0.0)
        write_tiny_bundle(folder / "repository", "ensemble", bias=1.0, teachers=3)
    file = folder / "experiments.yaml"
    file.write_text(yaml.safe_dump({"format_version": 1, "experiments": [EXPERIMENT]}), encoding="utf-8")
    settings = Settings(
        repository=folder / "repository",
        experiments=file,
        admin_token=TOKEN,  # type: ignore[arg-type]
        log=folder / "log",
        poll_seconds=0.02,
    )
    app = create_app(settings)

    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr(app.results, "get", get_results)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", ws="none", log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_for(lambda: server.started and app.plan is not None, "the application is ready")
        port = server.servers[0].sockets[0].getsockname()[1]
        yield Site(app, f"http://127.0.0.1:{port}", file)
    finally:
        monkeypatch.undo()
        server.should_exit = True
        thread.join(PATIENCE_SECONDS)


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """One browser for all of them."""
    with browser(tmp_path_factory.mktemp("browser")) as page:
        yield page


@pytest.fixture
def console(site: Site, tab: Page) -> Page:
    """The page, as an owner at a desk opens it."""
    tab.look(width=1280)
    tab.open(f"{site.url}/console")
    tab.events.clear()
    return tab


def confirm(page: Page, *, go: bool = True) -> str:
    """Reads the question that is asked, and answers it."""
    question: str = page.wait(
        "document.getElementById('sure').open && document.getElementById('sure-text').textContent"
    )
    page.click(f"#sure button[value={'yes' if go else 'no'}]")
    page.wait("!document.getElementById('sure').open")
    return question


def said(page: Page, place: str, part: str) -> str:
    """What stands there, once it holds this."""
    found: str = page.wait(f"(text => text.includes({part!r}) && text)(document.getElementById({place!r}).textContent)")
    return found


@pytest.mark.parametrize(
    ("width", "scheme"), [(1280, "light"), (390, "dark"), (320, "light")], ids=lambda each: str(each)
)
def test_it_opens_whole_and_quiet(site: Site, tab: Page, width: int, scheme: str):
    """Nothing complains, nothing is fetched from elsewhere, nothing sticks out, everything can be read."""
    tab.look(width=width, scheme=scheme)
    tab.events.clear()
    tab.open(f"{site.url}/console")
    tab.wait("!document.querySelector('#ramp-form fieldset').disabled")
    found = tab.value(
        "[...document.querySelectorAll('section, figure, svg')].map(each => [each.id || each.tagName,"
        " each.getBoundingClientRect().height, each.getBoundingClientRect().width])"
    )

    assert tab.complaints() == []
    assert {request["url"].removeprefix(site.url).split("-")[0] for request in tab.requests()} <= {
        "/console",
        "/console/assets/console",
        "/console/assets/icon",
    }
    assert [one for one in found if one[1] < 16 or one[2] < 100] == []
    assert tab.value("document.documentElement.scrollWidth") <= width
    assert tab.value(CONTRAST) == []
    is_dark = tab.value("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).every(each => each < 60)")
    assert is_dark == (scheme == "dark")


def test_an_owner_raises_the_coverage(site: Site, console: Page):
    """Token, number, preview, question, done: the file says so, the page shows it, the token is in one header."""
    console.type_into("#token", TOKEN)
    console.type_into("#coverage", "20")

    preview = said(console, "preview", "would join")
    assert "5% of units (about 150 so far) would join student." in preview
    assert "Nobody who is in an arm moves to another." in preview
    assert "Enrolled: 10% → 20%." in preview

    console.click("#ramp-form [type=submit]")
    assert "would join student" in confirm(console)
    said(console, "ramp-said", "In force: coverage 20%")

    assert site.stated()["coverage"] == 0.2
    assert float(site.app.require_plan().default.spec.coverage) == 0.2
    said(console, "ramp-now", "20% of units are enrolled")
    assert console.complaints() == []
    with_token = [one for one in console.requests() if TOKEN in str(one["headers"])]
    assert "PUT" in [one["method"] for one in with_token]
    assert all(one["url"].startswith(site.url) and TOKEN not in one["url"] for one in console.requests())


def test_what_a_phase_does_not_allow_is_said_before_it_is_tried(site: Site, console: Page):
    """Less coverage would send users out of their arms: the preview says what to do instead."""
    before = site.stated()

    console.type_into("#coverage", "1")

    assert "coverage may only grow within a phase" in said(console, "preview", "may only grow")
    console.click("#ramp-form [type=submit]")
    said(console, "ramp-said", "may only grow")
    assert site.stated() == before


def test_nothing_is_changed_without_a_token_or_against_ones_will(site: Site, console: Page):
    """The question can be left with Escape; without a token the field for it is where one stands next."""
    before = site.stated()
    console.type_into("#coverage", "50")
    said(console, "preview", "would join")

    console.press("Enter")
    console.wait("document.getElementById('sure').open")
    console.press("Escape")
    said(console, "ramp-said", "Left as it is.")
    console.click("#ramp-form [type=submit]")
    confirm(console)

    said(console, "ramp-said", "type it first")
    assert console.value("document.activeElement.id") == "token"
    assert site.stated() == before


def test_another_token_is_told_so(site: Site, console: Page):
    """And is asked for again."""
    console.type_into("#token", "x" * 32)
    console.click("#try-example")

    said(console, "try-said", "does not know this token")


def test_who_was_slower_is_told_to_look_again(site: Site, console: Page):
    """Somebody else changed the experiment while the question was being read: nothing of theirs is undone."""
    console.type_into("#token", TOKEN)
    console.type_into("#coverage", "30")
    said(console, "preview", "would join")
    console.click("#ramp-form [type=submit]")
    console.wait("document.getElementById('sure').open")
    theirs = {**site.stated(), "coverage": 0.25}
    put = "fetch('experiments/student-vs-ensemble', {method: 'PUT', headers: {authorization: 'Bearer ' + "
    put += "document.getElementById('token').value, 'content-type': 'application/json'}, body: "
    assert console.value(f"{put}{json.dumps(json.dumps(theirs))}}}).then(reply => reply.status)") == 200

    confirm(console)

    said(console, "ramp-said", "meanwhile")
    assert site.stated()["coverage"] == 0.25


def test_an_owner_pauses_and_resumes(site: Site, console: Page):
    """Every arm but control is switched off, and on again; nobody's arm changes."""
    console.type_into("#token", TOKEN)

    console.click("#pause")
    assert "answered by another arm" in confirm(console)
    said(console, "ramp-said", "off: student")
    assert site.stated()["halted"] == ["student"]
    said(console, "pause", "Resume")

    console.click("#pause")
    confirm(console)
    said(console, "ramp-said", "every arm on")
    assert site.stated()["halted"] == []
    assert console.complaints() == []


def test_an_owner_lifts_what_a_guard_rail_has_halted(site: Site, console: Page):
    """The page says what was crossed; the button asks, and the arm gets its units again."""
    state = site.experiments.with_name(site.experiments.name + ".state.json")
    phase = {"experiment": EXPERIMENT["name"], "phase": 1, "salt": EXPERIMENT["salt"]}
    found = {"rail": "ctr_loss", "bound": 0.1, "found": 0.4, "evidence": 1.2, "time": 1_795_300_000.0}
    assert halt_arm(state, Halt.model_validate({**phase, **found, "arm": "student"}))
    student = lambda: site.app.require_plan().default.arms[1]  # noqa: E731
    wait_for(lambda: student().halted, "the arm is halted")
    console.open(f"{site.url}/console")
    assert "A guard-rail halted student" in said(console, "ramp-now", "CTR loss of 40%, allowed 10%")
    console.type_into("#token", TOKEN)

    console.click("[data-lift=student]")
    confirm(console, go=False)
    said(console, "ramp-said", "Left as it is.")
    assert student().halted
    console.click("[data-lift=student]")
    assert "student" in confirm(console)
    said(console, "ramp-said", "The halt of student is lifted.")

    assert not student().halted
    assert read_halts(state) == {}
    console.wait("document.querySelector('[data-lift]') === null")
    assert console.complaints() == []


def test_an_owner_rolls_back(site: Site, console: Page):
    """A version before the live one is made live, and the arm that follows goes along."""
    console.type_into("#token", TOKEN)

    console.click("[data-load=student][data-version='1']")
    assert "student version 1" in confirm(console)
    said(console, "models-said", "student 1 is live.")

    assert site.app.registry.live["student"] == 1
    console.wait("document.querySelector('[data-load=student][data-version=\"2\"]:enabled') !== null")
    assert console.complaints() == []


def test_an_owner_asks_the_teachers(site: Site, console: Page):
    """An example, scored: what each teacher says of each candidate, and which fields were known."""
    console.type_into("#token", TOKEN)
    console.click("#try-example")
    said(console, "try-said", "tested with")

    console.click("#try-form [type=submit]")

    answer = said(console, "try-answer", "weight")
    assert "ensemble 2, arm ensemble" in answer
    assert console.value("document.querySelectorAll('#try-answer tbody tr').length") == 2 + 3
    assert ": known" in answer
    assert console.complaints() == []


def test_what_is_typed_wrong_is_told(site: Site, console: Page):
    """No JSON, no object, no candidates: in words, and nothing else breaks."""
    console.type_into("#token", TOKEN)
    for body, answer in (
        ("{", "not valid JSON"),
        ("[1]", "A request is an object"),
        ('{"candidates": 7}', "candidates"),
    ):
        console.type_into("#try-body", body)
        console.click("#try-form [type=submit]")
        said(console, "try-said", answer)
    console.type_into("#token", "ünïcode tøken")
    console.click("#try-example")
    said(console, "try-said", "printable")


def test_names_from_the_service_are_text_to_the_script_too(site: Site, console: Page):
    """A member that looks like markup is shown as it is."""
    console.type_into("#token", TOKEN)
    hostile = "<img src=x onerror=alert(1)>"
    console.value(
        "(() => { const ask = window.fetch; window.fetch = async (...given) => given[0] !== 'explain' ? ask(...given) :"
        f" new Response(JSON.stringify({{model: {hostile!r}, version: 1, arm: {hostile!r}, pctr: [0.1], logit: [1],"
        f" teachers: [{hostile!r}], teacher_logits: [[1]], gate_weights: [[1]], context: {{{hostile!r}: 'known'}},"
        " candidates: {}})); return 1; })()"
    )
    console.click("#try-form [type=submit]")

    assert said(console, "try-answer", "weight").count(hostile) == 4
    assert console.value("document.querySelectorAll('#try-answer img').length") == 0


def test_by_keyboard_alone(site: Site, console: Page):
    """The first stop skips to the answer, every stop can be seen, and the form is reached in order."""
    stops: list[str] = []
    while len(stops) < 100:
        console.press("Tab")
        if console.value("document.activeElement === document.body"):  # past the last one
            break
        stops.append(
            console.value("(each => each.id || each.className || each.textContent.trim())(document.activeElement)")
        )
        outline = console.value("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none", stops[-1]

    assert stops[0] == "skip"
    assert 20 < len(stops) < 100
    assert stops.index("coverage") < stops.index("main") < stops.index("pause") < stops.index("token")


def test_without_a_script_it_is_a_document(site: Site, tab: Page):
    """Everything that is known can be read; what needs the script is off and says so."""
    tab.look(width=1280)
    tab.open("about:blank")
    tab.look(width=1280, script=False)
    try:
        tab.events.clear()
        tab.open(f"{site.url}/console")
        shot = tab.send("DOMSnapshot.captureSnapshot", computedStyles=[])
        strings = " ".join(shot["strings"])
    finally:
        tab.look(width=1280)

    for heading in ("Ramp", "Arms, live", "Lift over time", "Reliability", "Gate weights", "Models", "Log health"):
        assert heading in strings
    assert "Without a script this page shows and cannot change" in strings
    assert tab.complaints() == []
