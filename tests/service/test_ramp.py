"""A ramp goes on only where everything is well, takes nobody out of an arm, and is killed without harm."""

import json
import logging
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from service.__main__ import main
from service.errors import ExperimentError
from service.experiments.file import Experiment, ExperimentFile, read_experiments
from service.experiments.state import Halt, halt_arm, lift_halt
from service.experiments.writing import change_experiment
from service.journal.joined import read_journal
from service.ramp import command, state
from service.ramp.command import Gather, look
from service.ramp.decide import Action, Evidence, Verdict
from service.ramp.evidence import gather
from service.ramp.state import read_state, state_path
from tests.service.journal.test_joined import event, exposure, join

DAY = 86400.0
START = 1_795_300_000.0
ARMS = [
    {"name": "control", "model": "ensemble", "version": 1, "weight": 0.4},
    {"name": "a", "model": "student", "version": 1, "weight": 0.3},
    {"name": "b", "model": "student", "version": 2, "weight": 0.3},
]
PLAN = {
    "name": "e",
    "salt": "s",
    "default": True,
    "coverage": 0,
    "arms": ARMS,
    "guard_rails": {"max_fallback_rate": 0.05},
    "ramp": {"minimum_impressions": 100},
}


PHASE: dict[str, Any] = {"experiment": "e", "phase": 1, "salt": "s"}


def plan(path: Path, **more: Any) -> Path:
    path.write_text(json.dumps({"format_version": 1, "experiments": [{**PLAN, **more}]}))
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return plan(tmp_path / "e.json")


def evidence(*, impressions: int = 100, crossed: bool = False, broken: tuple[str, ...] = ()) -> Evidence:
    rail = {"arm": "a", "name": "fallbacks", "found": 0.2, "bound": 0.05, "crossed": crossed, "evidence": 1.5}
    return Evidence({"control": 500, "a": impressions, "b": 500}, [rail], broken)


def asking(answer: Evidence | None = None) -> Gather:
    """Gives that evidence; without, nobody may ask."""

    def ask(file: ExperimentFile, experiment: Experiment, since: float, lifted: float, now: float) -> Evidence:
        assert answer is not None, "the log was read, though nothing could come of it"
        return answer

    return ask


def coverage(path: Path) -> Decimal:
    return read_experiments(path).default.coverage


def one(path: Path, ask: Any, now: float) -> Verdict:
    verdicts = look(path, None, ask, now)
    assert list(verdicts) == ["e"]
    return verdicts["e"]


def test_treatment_gets_one_five_ten_twenty_five_and_fifty_percent_of_the_units(path: Path):
    """Of the 10,000 buckets exactly, whatever the weights; at each step nobody who was in an arm has left it."""
    treated: list[int] = []
    before = read_experiments(path).default.ranges()
    now = START
    for _ in range(5):
        assert one(path, asking(evidence()), now).action is Action.STEP
        after = read_experiments(path).default.ranges()
        treated.append(sum(owned.stop - owned.start for owned in after[1:]))
        assert all(old.start == new.start and old.stop <= new.stop for old, new in zip(before, after, strict=True))
        before = after
        assert one(path, asking(), now + DAY - 1).kind == ("time" if len(treated) < 5 else "done")
        now += DAY

    assert treated == [100, 500, 1000, 2500, 5000]
    (progress,) = read_state(state_path(path)).experiments
    assert [round(step.after * 0.6, 4) for step in progress.steps] == [0.01, 0.05, 0.1, 0.25, 0.5]
    assert progress.steps[1].evidence["impressions"] == {"control": 500, "a": 100, "b": 500}
    assert progress.steps[1].evidence["guard_rails"][0]["name"] == "fallbacks"


HOLDS: list[tuple[str, dict[str, Any], Evidence | None, float, str]] = [
    ("the hold time is not over", {}, None, DAY - 1, "time"),
    ("a guard-rail is crossed", {}, evidence(crossed=True), DAY, "guard_rail"),
    ("the split is broken", {}, evidence(broken=("not as planned",)), DAY, "split"),
    ("an arm has too few impressions", {}, evidence(impressions=99), DAY, "sample"),
    ("an arm is halted", {"halted": ["b"]}, None, DAY, "halted"),
    ("the plan is paused", {"ramp": {"paused": True}}, None, DAY, "paused"),
]


@pytest.mark.parametrize(("change", "found", "after", "kind"), [c[1:] for c in HOLDS], ids=[c[0] for c in HOLDS])
def test_it_holds(path: Path, change: dict[str, Any], found: Evidence | None, after: float, kind: str):
    """And says why, here and in its state; the file stays as it is. Once that is over, it goes on."""
    one(path, asking(), START)
    change_experiment(path, "e", lambda content: {**content, **change})
    held_at, text = coverage(path), path.read_text()

    verdict = one(path, asking(found), START + after)

    assert (verdict.action, verdict.kind) == (Action.HOLD, kind)
    assert read_state(state_path(path)).experiments[0].holds == verdict.reason
    assert path.read_text() == text
    change_experiment(path, "e", lambda content: {**content, "halted": [], "ramp": PLAN["ramp"]})
    assert one(path, asking(evidence()), START + DAY).action is Action.STEP
    assert coverage(path) > held_at


def test_a_hold_begins_when_the_step_is_made_however_long_the_look_took(path: Path):
    """Reading the log of a busy service takes minutes: the hold is not that much shorter, nor are impressions from
    before the step a part of its sample."""
    clock = START
    asked: list[float] = []

    def slow(file: ExperimentFile, experiment: Experiment, since: float, lifted: float, now: float) -> Evidence:
        nonlocal clock
        clock += 600.0
        asked.append(since)
        return evidence()

    def look_at(now: float) -> str:
        nonlocal clock
        clock = now
        return look(path, None, slow, now, clock=lambda: clock)["e"].kind

    look_at(START)
    assert look_at(START + DAY) == "clean"
    assert look_at(START + 2 * DAY + 599) == "time"
    assert look_at(START + 2 * DAY + 600) == "clean"
    assert asked == [START, START + DAY + 600]


class Killed(BaseException):
    """As by a signal: nothing catches it."""


@pytest.mark.parametrize("at", ["before the file is written", "after the file is written"])
def test_killed_in_the_middle_of_a_step_it_goes_on_where_it_was(path: Path, monkeypatch: pytest.MonkeyPatch, at: str):
    """The step is made once, with its evidence written down, and its hold is counted from when it was made."""
    one(path, asking(), START)
    change = command.change_experiment

    def dying(*arguments: Any, **options: Any) -> Any:
        if at.startswith("after"):
            change(*arguments, **options)
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(command, "change_experiment", dying)
        with pytest.raises(Killed):
            one(path, asking(evidence()), START + DAY)
    again = one(path, asking(evidence()), START + DAY + 10)

    assert again.kind == ("clean" if at.startswith("before") else "time")
    (progress,) = read_state(state_path(path)).experiments
    assert [round(step.after * 0.6, 4) for step in progress.steps] == [0.01, 0.05]
    assert progress.steps[1].evidence["impressions"]["a"] == 100
    assert progress.since == START + DAY + (10 if at.startswith("before") else 0)
    assert progress.intended is None


def test_a_step_is_not_taken_over_a_change_that_somebody_made_meanwhile(path: Path):
    """Reading the log takes long: what was halted during it stays halted, and nothing else is changed."""
    one(path, asking(), START)

    def halting(*_: Any) -> Evidence:
        change_experiment(path, "e", lambda content: {**content, "halted": ["a"]})
        return evidence()

    verdict = one(path, halting, START + DAY)

    assert (verdict.action, verdict.kind) == (Action.HOLD, "changed")
    assert read_experiments(path).default.halted == ("a",)
    assert one(path, asking(), START + DAY).kind == "halted"


def test_whoever_changes_the_coverage_begins_a_hold(path: Path):
    """By hand to a place between two steps: held from there, and on to the next step above it. So does a new phase."""
    one(path, asking(), START)
    change_experiment(path, "e", lambda content: {**content, "coverage": 0.1})

    assert one(path, asking(), START + DAY).kind == "time"
    assert one(path, asking(evidence()), START + 2 * DAY).action is Action.STEP
    assert coverage(path) == Decimal("0.16666667")
    change_experiment(path, "e", lambda content: {**content, "phase": 2, "salt": "t", "coverage": 0.1})
    assert one(path, asking(), START + 9 * DAY).kind == "time"
    assert [progress.phase for progress in read_state(state_path(path)).experiments] == [1, 2]


def test_a_clock_that_was_put_back_makes_no_hold_longer(path: Path):
    """A step was taken while the clock was ten years ahead; by the right time its hold lasts a day, not ten years."""
    assert one(path, asking(), START + 3650 * DAY).action is Action.STEP
    assert one(path, asking(), START).kind == "time"
    assert one(path, asking(), START + 0.9 * DAY).kind == "time"
    assert one(path, asking(evidence()), START + DAY).action is Action.STEP


def test_an_arm_that_a_guard_rail_halted_holds_it_too(path: Path):
    """The service remembers those beside the file, by phase."""
    one(path, asking(), START)
    halt = Halt(**{**PHASE, "arm": "b", "time": START, "rail": "errors", "bound": 0.01, "found": 0.5, "evidence": 2.0})
    halt_arm(path.with_name("e.json.state.json"), halt)

    verdict = one(path, asking(), START + DAY)

    assert (verdict.kind, verdict.reason) == ("halted", "halted: b")
    lift_halt(path.with_name("e.json.state.json"), read_experiments(path).default, "b", START + DAY)
    assert one(path, asking(evidence()), START + DAY).action is Action.STEP


def test_two_ramps_of_one_file_do_not_disturb_each_other(path: Path):
    """The second holds while the first is at it."""
    one(path, asking(), START)
    seen: list[str] = []

    def beside(*_: Any) -> Evidence:
        seen.append(one(path, asking(), START + DAY).kind)
        return evidence()

    assert one(path, beside, START + DAY).action is Action.STEP
    assert seen == ["error"]


def test_what_goes_wrong_holds_and_is_told(path: Path, caplog: pytest.LogCaptureFixture):
    """A file that somebody broke, a state that is none: the ramp waits until it is mended."""
    one(path, asking(), START)
    good = path.read_text()
    path.write_text("{")
    assert look(path, None, asking(), START)[""].kind == "error"
    path.write_text(good)
    state_path(path).write_text("{")

    assert one(path, asking(), START).kind == "error"
    assert "not a state file" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ramp": {"steps": [0.1, 0.1]}}, "ramp: steps: expected shares above 0, each above the one before"),
        ({"ramp": {"steps": [0, 0.1]}}, "expected shares above 0"),
        ({"ramp": {"steps": []}}, "ramp.steps: expected at least 1"),
        ({"ramp": {"steps": [0.7]}}, "treatment arms have a weight of 0.6, which is the most a step can give them"),
        ({"guard_rails": None}, "expected at least one bound in guard_rails"),
        ({"guard_rails": {}}, "expected at least one bound in guard_rails"),
        ({"arms": [{**ARMS[0], "weight": 1}]}, "treatment arms have a weight of 0"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_with_the_file(path: Path, change: dict[str, Any], message: str):
    """As everything else in the file: at startup, and by PUT."""
    with pytest.raises(ExperimentError) as caught:
        read_experiments(plan(path, **change))

    assert message in str(caught.value)


def logged(folder: Path, arms: dict[str, tuple[int, int]]) -> None:
    """By arm: so many impressions, of so many requests that fell back. Units where the hash has them."""
    experiment = read_experiments(folder.parent / "e.json").default
    assigner = read_experiments(folder.parent / "e.json").assigner(experiment)
    records = []
    left = {name: list(range(count)) for name, (count, _) in arms.items()}
    number = 0
    while any(left.values()):
        number += 1
        place = assigner.place(f"u{number}")
        name = experiment.arms[place].name if place >= 0 else ""
        if not left.get(name):
            continue
        fell_back = {"fallback": "deadline"} if left[name].pop() < arms[name][1] else {}
        request = f"r{number}"
        records.append(exposure(request, unit=f"u{number}", arm=name, time=START + 1, **fell_back))
        records.append({**event("impression"), "request_id": request, "time": START + 2})
    join(folder, *records)


def test_what_was_shown_before_a_halt_was_lifted_is_judged_no_more(tmp_path: Path, path: Path):
    """As by the process that halts: the rail that was crossed holds the ramp no more, but a new sample is asked for."""
    plan(path, coverage=0.5, ramp={**PLAN["ramp"], "steps": [0.3, 0.6]})
    (tmp_path / "log").mkdir()
    logged(tmp_path / "log", {"control": (120, 0), "a": (120, 100), "b": (120, 0)})
    file = read_experiments(path)

    def evidence_from(lifted: float) -> Evidence:
        times = {"since": START, "lifted": lifted, "now": START + 2 * DAY}
        return gather(file, file.default, [tmp_path / "log"], read_journal, **times, replay=True)

    assert [rail["crossed"] for rail in evidence_from(0).rails] == [True, False]
    assert [rail["crossed"] for rail in evidence_from(START + 10).rails] == []
    assert evidence_from(0).impressions == {"control": 120, "a": 120, "b": 120}
    assert evidence_from(START + 10).impressions == {"control": 0, "a": 0, "b": 0}


@pytest.mark.parametrize(("fallbacks", "kind"), [(0, "clean"), (100, "guard_rail")])
def test_the_command_asks_the_log(
    tmp_path: Path,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fallbacks: int,
    kind: str,
):
    """From the records that the service writes to the step, or to the hold: an arm that fell back crossed a rail."""
    plan(path, ramp={**PLAN["ramp"], "steps": [0.3, 0.6], "hold_seconds": 60})
    options = ["ramp", "--experiments", str(path), "--log", str(tmp_path / "log"), "--once"]
    (tmp_path / "log").mkdir()
    monkeypatch.setattr(command.time, "time", lambda: START)
    monkeypatch.setattr(command, "configure_logging", lambda *_: None)
    assert main(options) == 0
    assert coverage(path) == Decimal("0.5")
    logged(tmp_path / "log", {"control": (120, 0), "a": (120, fallbacks), "b": (120, 0)})
    monkeypatch.setattr(command.time, "time", lambda: START + 2 * DAY)

    with caplog.at_level(logging.INFO):
        assert main(options) == 0

    assert coverage(path) == (Decimal(1) if kind == "clean" else Decimal("0.5"))
    told = caplog.records[-1].getMessage()
    assert ("coverage 0.5 -> 1:" if kind == "clean" else "holding at coverage 0.5: a: fallbacks 0.83") in told
    found = json.loads(told.partition("evidence: ")[2])
    assert found["impressions"] == {"control": 120, "a": 120, "b": 120}
    assert [rail["crossed"] for rail in found["guard_rails"]] == [kind != "clean", False]


def test_what_it_cannot_begin_with_is_refused(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Exit code 2, and what to do."""
    log = ["--log", str(tmp_path)]
    for options, message in (
        (["--experiments", str(tmp_path / "none"), *log], "No such file"),
        (["--experiments", str(path), "--experiment", "x", *log], "no experiment 'x' with a `ramp`"),
        (["--experiments", str(path), "--log", str(tmp_path / "none")], "no folder"),
    ):
        assert main(["ramp", *options, "--once"]) == 2
        assert message in capsys.readouterr().err


def test_the_state_tells_all_that_is_to_be_known(path: Path):
    """Its keys, for whoever reads it."""
    one(path, asking(), START)

    (progress,) = json.loads(state_path(path).read_text())["experiments"]

    assert set(progress) == set(state.Progress.model_fields)
    assert progress["steps"] == [
        {"time": START, "before": 0.0, "after": 0.01666667, "reason": "the first step", "evidence": {}}
    ]
