"""Guard-rails in the real program: a process judges, the workers follow, and its death costs nothing."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator

import pytest

from tests.models.tiny_bundle import write_tiny_bundle
from tests.service.bundles import FAILING_DEVICE, write_moody_ensemble
from tests.service.running import CONTEXT, Running, metric, request_of, running_service, wait_for
from tests.service.test_watch import arm, experiments_file

JUDGE = re.compile(r"guard-rails are looked after by process (\d+)")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Two workers; the treatment's model fails for one kind of device, and control answers in its place."""
    folder = tmp_path_factory.mktemp("guarded")
    root = folder / "repository"
    root.mkdir()
    write_tiny_bundle(root, "student")
    write_moody_ensemble(root, side=2)
    rails = {"max_fallback_rate": 0.05}
    path = experiments_file(folder / "e.json", arm("student"), arm("ensemble"), guard_rails=rails)
    options = ["--repository", str(root), "--experiments", str(path), "--log", str(folder / "log")]
    with running_service(folder / "log.txt", *options, "--workers", "2", "--guard-rail-seconds", "0.1") as running:
        yield running


def failing(service: Running, units: range) -> set[str]:
    """The arms that answer requests of these units, all of the kind that fails."""
    connection = service.connection()
    context = {**CONTEXT, "device": FAILING_DEVICE}
    found = set()
    for unit in units:
        body = {**request_of(1, unit_id=unit), "context": context}
        answer = service.request("POST", "/predict", body, connection).json()
        found.add(f"{answer['arm']} {answer.get('fallback', '')}".strip())
    connection.close()
    return found


def judges(service: Running) -> list[int]:
    return [int(pid) for pid in JUDGE.findall(service.log_text())]


def is_halted(service: Running, units: range) -> bool:
    """Whether every worker sends that arm's units to control: the connections of many requests reach both."""
    arms = set()
    for unit in units:
        arms.add(service.request("POST", "/predict", request_of(1, unit_id=unit)).json()["arm"])
    return arms == {"student"}


def test_who_judges_is_started_again_and_judges_from_the_log(service: Running):
    """Killed before there was enough evidence; what was logged until then counts."""
    assert {"ensemble error", "ensemble circuit", "student"} >= failing(service, range(60))
    wait_for(lambda: len(judges(service)) == 1, "there is a process that judges")

    os.kill(judges(service)[0], signal.SIGKILL)

    wait_for(lambda: len(judges(service)) == 2, "there is another")
    assert service.request("GET", "/health/ready").status == 200


def test_an_arm_that_fails_is_halted_in_every_worker(service: Running):
    """With the evidence in the log; a scrape shows it, whichever worker answers it."""
    failing(service, range(60, 400))

    wait_for(lambda: "guard-rail fallbacks: arm ensemble of experiment e is halted" in service.log_text(), "it is off")
    wait_for(lambda: is_halted(service, range(30)), "every worker follows")

    assert '"audit": "halt"' in service.log_text()
    text = service.metrics()
    assert metric(text, "retort_arm_halted", experiment="e", arm="ensemble") == 1
    assert metric(text, "retort_guard_rail_trips_total", experiment="e", arm="ensemble", rail="fallbacks") == 1


def test_it_stops_with_the_others(service: Running):
    """At once, with exit code 0."""
    assert service.stop() == 0
    with pytest.raises(ProcessLookupError):
        os.kill(judges(service)[-1], 0)
