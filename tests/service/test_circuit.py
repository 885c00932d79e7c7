"""A model that is slow or fails: another answers in time, it is not asked for a while, and then it is again."""

import asyncio
import contextlib
import json
import math
import time
from collections import deque
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from models.bundle import read_bundle
from service.app import Service
from service.scoring.circuit import BAD_RUNS, FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, WINDOW, Circuit, State
from service.scoring.scorer import Scorer, TimeEstimate
from tests.models.tiny_bundle import write_tiny_bundle
from tests.service.bundles import FAILING_DEVICE, SLOW_DEVICE, write_moody_ensemble, write_slow_ensemble
from tests.service.running import (
    CONTEXT,
    ask,
    expected_pctr,
    make_app,
    metric,
    request_of,
    running_service,
    started,
    wait_for,
)
from tests.service.test_registry import eventually, scrape
from tests.service.test_watch import arm, experiments_file

BIAS = {"student": 0.0, "ensemble": 1.0}


class CircuitMachine(RuleBasedStateMachine):
    """Any order of runs, probes and passing time, against the rules as a newcomer would write them down."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.told: list[State] = []
        self.circuit = Circuit(clock=lambda: self.now, changed=lambda circuit: self.told.append(circuit.state))
        self.runs: list[bool] = []
        self.pause = FIRST_PAUSE_SECONDS
        self.until = -math.inf
        self.probes = 0

    @rule(is_bad=st.booleans())
    def a_run_ends(self, is_bad: bool) -> None:
        """It opens with the fifth bad one of the last twenty, and only where it is closed."""
        was_closed = self.circuit.is_closed
        self.circuit.note(is_bad)
        if was_closed:
            self.runs.append(is_bad)
            opens = is_bad and sum(self.runs[-WINDOW:]) >= BAD_RUNS
            assert self.circuit.is_closed is not opens
            if opens:
                self.until = self.now + self.pause

    @rule(seconds=st.floats(0, 2 * LONGEST_PAUSE_SECONDS))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def a_request_comes(self) -> None:
        """It is a probe where it is open, the pause is over and there is no other."""
        expected = self.circuit.state is State.OPEN and self.now >= self.until
        assert self.circuit.take_probe() is expected
        self.probes += expected

    @precondition(lambda self: self.probes > 0)
    @rule(is_bad=st.sampled_from([True, False, None]))
    def the_probe_ends(self, is_bad: bool | None) -> None:
        """Well: closed, and everything before is forgotten. Badly: open for twice as long. Neither: for as long."""
        self.probes -= 1
        self.circuit.end_probe(is_bad)
        if is_bad is False:
            assert self.circuit.is_closed
            self.runs, self.pause = [], FIRST_PAUSE_SECONDS
        else:
            assert self.circuit.state is State.OPEN
            self.pause = min(self.pause * (2 if is_bad else 1), LONGEST_PAUSE_SECONDS)
            self.until = self.now + self.pause

    @invariant()
    def probes_are_single_and_changes_are_told(self) -> None:
        assert self.probes == (self.circuit.state is State.HALF_OPEN)
        assert ([State.CLOSED, *self.told])[-1] is self.circuit.state
        assert all(one is not other for one, other in zip(self.told, self.told[1:], strict=False))
        assert self.circuit.pause_seconds == self.pause


TestCircuit = CircuitMachine.TestCase


def test_a_run_now_and_then_that_is_bad_opens_nothing():
    """One in five is too few, however long it goes on; one in four is not."""

    def state_after(period: int) -> State:
        circuit = Circuit(clock=lambda: 0.0)
        deque((circuit.note(number % period == 0) for number in range(1000)), maxlen=0)
        return circuit.state

    assert state_after(5) is State.CLOSED
    assert state_after(4) is State.OPEN


def test_a_size_that_was_in_time_once_is_forgiven_and_no_other():
    """What the circuit's end sets right is what had kept the model from being asked."""
    estimate = TimeEstimate()
    for rows, seconds in ((1, 0.001), (1, 9.0), (100, 5.0), (1000, 50.0), (1000, 40.0)):
        estimate.observe(rows, seconds)

    assert [estimate.has_met(rows, 0.01) for rows in (1, 100, 7)] == [True, False, False]
    before = [estimate.seconds(rows) for rows in (100, 1000)]
    estimate.forgive(0.01)

    assert estimate.seconds(1) == 0.001
    assert [estimate.seconds(rows) for rows in (100, 1000)] == before


def request_from(device: str | None = None, **members: Any) -> dict[str, Any]:
    """A request of the ensemble's arm."""
    context = CONTEXT if device is None else {**CONTEXT, "device": device}
    return {**request_of(1, **members), "context": context, "arm": "ensemble"}


def seconds_of(bundle: Path, device: str) -> float:
    """Processor time of a run for that device, on this machine however busy it is."""
    scorer = Scorer(read_bundle(bundle))
    encoder, request = scorer.bundle.encoder, request_from(device)
    context, candidates = (
        encoder.encode_context(request["context"]),
        encoder.encode_candidates(request["candidates"]),
    )
    began = time.thread_time()
    scorer.measure(context, candidates)
    return time.thread_time() - began


OUT_OF_ORDER: list[tuple[str, set[str | None]]] = [(SLOW_DEVICE, {None, "deadline"}), (FAILING_DEVICE, {"error"})]


@pytest.mark.parametrize(("device", "reasons"), OUT_OF_ORDER, ids=["slow", "failing"])
def test_a_model_that_is_out_of_order_is_not_asked_until_it_is_well(
    device: str, reasons: set[str | None], tmp_path: Path
):
    """The running program, with an ensemble whose runs really take long, or really fail, for some
    requests. Every request is answered with the scores of the model that is named; after a few the ensemble is not
    asked any more, by anybody; once it is well again, it is. Metric and log tell all of it."""
    repository = tmp_path / "repository"
    repository.mkdir()
    bundle = write_moody_ensemble(repository)
    write_tiny_bundle(repository, "student")
    limit = {"deadline_ms": 1000 * seconds_of(bundle, device) / 4} if device == SLOW_DEVICE else {}
    path = experiments_file(tmp_path / "e.json", arm("ensemble", 0.5, **limit), arm("student", 0.5, version=1))
    options = ("--repository", str(repository), "--experiments", str(path))
    with running_service(tmp_path / "log", *options) as running, contextlib.closing(running.connection()) as connection:

        def answer_to(request: dict[str, Any]) -> str | None:
            """Why it fell back, if it did; checked whole."""
            reply = running.request("POST", "/predict", request, connection)
            answer = reply.json()
            reason = answer.get("fallback")
            assert (reply.status, answer["arm"]) == (200, "ensemble"), answer
            assert answer["model"] == ("ensemble" if reason is None else "student")
            assert answer["pctr"] == pytest.approx(expected_pctr(request, BIAS[answer["model"]]), rel=1e-4)
            seen.append(reason)
            return reason

        def state() -> float:
            return metric(running.metrics(), "retort_circuit_state", model="ensemble", version="1")

        # given: it is well, and asked
        seen: list[str | None] = []
        wait_for(lambda: answer_to(request_from()) is None, "the ensemble is asked")
        assert state() == State.CLOSED

        # when: its runs go wrong, one after the other
        seen.clear()
        wait_for(lambda: answer_to(request_from(device)) == "circuit", "it is not asked any more")
        assert set(seen[:-1]) <= reasons
        assert len(seen) > 1

        # then: others get the student at once, and go on to do so while every probe goes wrong
        assert state() > State.CLOSED
        assert {answer_to(request_from(device)) for _ in range(10)} == {"circuit"}
        assert answer_to(request_from()) == "circuit"

        # and: once it is well, it is asked again
        wait_for(lambda: answer_to(request_from()) is None, "the ensemble is asked again")
        assert state() == State.CLOSED
        log = running.log_text()
        assert "model ensemble version 1: the circuit is open" in log
        assert "model ensemble version 1: the circuit is closed again" in log
        text = running.metrics()
        assert metric(text, "retort_fallbacks_total", reason="circuit") >= 12
        assert (metric(text, "retort_fallbacks_total", reason="error") > 0) == ("error" in reasons)
        assert running.stop() == 0


def in_app(repository: Path, experiments: Path, body: Any) -> Any:
    async def run() -> Any:
        async with started(make_app(repository, experiments)) as app:
            return await body(app)

    return asyncio.run(run())


async def answer(app: Service, request: dict[str, Any]) -> dict[str, Any]:
    reply = await ask(app, "/predict", json.dumps(request).encode())
    assert reply is not None
    result: dict[str, Any] = reply.json()
    return result


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """An ensemble that takes tens of milliseconds, and a student."""
    root = tmp_path / "repository"
    root.mkdir()
    write_slow_ensemble(root)
    write_tiny_bundle(root, "student")
    return root


def test_an_arm_says_how_long_its_model_may_take(repository: Path, tmp_path: Path):
    """Within a microsecond nobody answers; but the arm's deadline only says who, so the student does. The request's own
    deadline says whether. A model that never was quick enough is no model that is out of order."""
    path = experiments_file(tmp_path / "e.json", arm("ensemble", 0.5, deadline_ms=0.001), arm("student", 0.5))

    async def ask_twice(app: Service) -> Any:
        several = [await answer(app, request_from()) for _ in range(2 * BAD_RUNS)]
        return several, await answer(app, request_from(deadline_ms=0.001)), await scrape(app)

    several, hurried, text = in_app(repository, path, ask_twice)

    assert {(given["arm"], given["model"], given["fallback"]) for given in several} == {
        ("ensemble", "student", "deadline")
    }
    assert (hurried["status"], hurried["code"]) == (504, "deadline_exceeded")
    assert metric(text, "retort_circuit_state", model="ensemble") == State.CLOSED
    assert metric(text, "retort_circuit_state", model="student") == 0  # nobody answers for it


def test_an_arm_with_time_enough_is_answered_by_its_model(repository: Path, tmp_path: Path):
    """And where a request's own deadline is the shorter, that counts."""
    path = experiments_file(tmp_path / "e.json", arm("ensemble", 0.5, deadline_ms=3_600_000), arm("student", 0.5))

    async def ask_twice(app: Service) -> Any:
        assert app.plan is not None
        takes_ms = 1000 * app.plan.live["ensemble"].scorer.estimate.seconds(1)
        patient = await answer(app, request_from())
        return patient, await answer(app, request_from(deadline_ms=0.9 * takes_ms))

    patient, hurried = in_app(repository, path, ask_twice)

    assert (patient["model"], patient.get("fallback")) == ("ensemble", None)
    assert (hurried["model"], hurried.get("fallback")) == ("student", "deadline")


def test_a_model_that_is_not_asked_for_being_slow_is_measured_again(repository: Path, tmp_path: Path):
    """One stall of the machine, and the estimate would keep it from being asked for ever: nothing would renew it."""
    path = experiments_file(tmp_path / "e.json", arm("ensemble", 0.5, deadline_ms=60_000), arm("student", 0.5))

    async def stall(app: Service) -> list[str | None]:
        assert app.plan is not None
        app.plan.live["ensemble"].scorer.estimate.renew(1, 3600.0)
        seen: list[str | None] = []

        async def is_asked() -> bool:
            seen.append((await answer(app, request_from())).get("fallback"))
            return seen[-1] is None

        await eventually(is_asked, "the ensemble is asked again")
        return seen

    seen = in_app(repository, path, stall)

    assert seen[0] == "deadline"
    assert set(seen[:-1]) <= {"deadline", "circuit"}


def test_where_nobody_can_answer_for_it_a_model_is_asked_whatever_happens(tmp_path: Path):
    """A refusal is no better than its failure; and other requests of the same run are not to blame."""
    root = tmp_path / "repository"
    root.mkdir()
    write_moody_ensemble(root)
    path = experiments_file(tmp_path / "e.json", arm("ensemble", 1.0))

    async def ask_on(app: Service) -> Any:
        failed = [await answer(app, request_from(FAILING_DEVICE)) for _ in range(2 * BAD_RUNS)]
        return failed, await answer(app, request_from()), await scrape(app)

    failed, well, text = in_app(root, path, ask_on)

    assert {given["code"] for given in failed} == {"internal"}
    assert well["model"] == "ensemble"
    assert metric(text, "retort_circuit_state") == 0


def test_a_new_version_starts_with_a_closed_circuit(tmp_path: Path):
    """It may be the very cure; and what the old one's circuit said goes with it."""
    root = tmp_path / "repository"
    root.mkdir()
    write_moody_ensemble(root)
    write_tiny_bundle(root, "student")
    path = experiments_file(tmp_path / "e.json", arm("ensemble", 0.5, follow=True), arm("student", 0.5))

    async def publish(app: Service) -> tuple[float, str]:
        while (await answer(app, request_from(FAILING_DEVICE)))["fallback"] != "circuit":
            pass
        opened = metric(await scrape(app), "retort_circuit_state", model="ensemble", version="1")
        await asyncio.to_thread(write_tiny_bundle, root, "ensemble", bias=1.0, teachers=3)

        async def is_asked() -> bool:
            return (await answer(app, request_from(FAILING_DEVICE))).get("version") == 2

        async def is_released() -> bool:
            return metric(await scrape(app), "retort_model_info", model="ensemble", version="1") == 0

        await eventually(is_asked, "version 2 is asked")
        await eventually(is_released, "version 1 is released")
        return opened, await scrape(app)

    opened, text = in_app(root, path, publish)

    assert opened > State.CLOSED
    assert metric(text, "retort_circuit_state", model="ensemble", version="1") == 0
    assert metric(text, "retort_circuit_state", model="ensemble", version="2") == State.CLOSED
