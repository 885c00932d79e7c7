"""Workers are killed under load: no acknowledged record is lost."""

from __future__ import annotations

import http.client
import json
import os
import signal
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from models.journal.frames import Skipped
from models.journal.reading import OPEN, read_payloads, segment_paths
from tests.service.running import PATIENCE_SECONDS, Running, metric, request_of, running_service, wait_for


class Caller(threading.Thread):
    """Asks, and says that what it got was shown and clicked; remembers what was acknowledged and what may have been."""

    def __init__(self, running: Running, number: int) -> None:
        super().__init__()
        self.running, self.number = running, number
        self.stopping = False
        self.asked = 0
        self.scored: set[str] = set()
        self.told: set[tuple[str, str]] = set()
        self.wrong: list[bytes] = []

    def run(self) -> None:
        connection = self.running.connection()
        while not self.stopping:
            name = f"r-{self.number}-{self.asked}"
            self.asked += 1
            try:
                reply = self.running.request("POST", "/predict", request_of(1, 2, request_id=name), connection)
                if reply.status != 200:
                    self.wrong.append(reply.body)
                    continue
                self.scored.add(name)
                events = [
                    {"request_id": name, "candidate": 1, "event": event, "time": 1e9}
                    for event in ("impression", "click")
                ]
                reply = self.running.request("POST", "/feedback", events, connection)
                if reply.status != 200:
                    self.wrong.append(reply.body)
                    continue
                self.told |= {(name, "impression"), (name, "click")}
            except (http.client.HTTPException, OSError):
                connection.close()
        connection.close()

    def stop(self) -> None:
        self.stopping = True
        self.join(PATIENCE_SECONDS)


def kill_under_load(kills: int, repository: Path, tmp_path: Path) -> None:
    """Two workers, three callers; each kill comes once more answers have been acknowledged since the one before."""
    folder, log = tmp_path / "journal", tmp_path / "log"
    # Segments as small as they may be, so that workers are killed while they rotate, too.
    options = ("--repository", str(repository), "--workers", "2", "--log", str(folder), "--log-segment-bytes", "4096")
    with running_service(log, *options, "--log-sync-seconds", "0.01") as running:
        wait_for(lambda: running.ready_count() == 2, "both workers are ready")
        callers = [Caller(running, number) for number in range(3)]
        for caller in callers:
            caller.start()
        try:
            for kill in range(kills):
                before = sum(len(caller.told) for caller in callers)
                wait_for(
                    lambda before=before: sum(len(caller.told) for caller in callers) > before + 20,  # type: ignore[misc]
                    "callers are answered",
                )
                os.kill(running.worker_pids()[kill % 2], signal.SIGKILL)
                wait_for(lambda kill=kill: running.ready_count() == 3 + kill, "it is replaced")  # type: ignore[misc]
        finally:
            for caller in callers:
                caller.stop()
        text = running.metrics()
        assert running.stop() == 0

    torn, logged = check_log(folder, callers)
    assert torn <= kills
    assert metric(text, "retort_log_torn_total") == torn
    assert metric(text, "retort_log_dropped_total") == 0
    assert metric(text, "retort_log_records_total", kind="exposure") <= logged


def check_log(folder: Path, callers: Sequence[Caller]) -> tuple[int, int]:
    """Whatever was acknowledged is there, once, and nothing in the middle is damaged: (torn ends, exposures)."""
    skipped = Skipped()
    found = [json.loads(payload) for payload in read_payloads(folder, skipped)]
    exposures = [record["request_id"] for record in found if record["kind"] == "exposure"]
    events = {(record["request_id"], record["event"]) for record in found if record["kind"] == "event"}

    assert [caller.wrong for caller in callers] == [[]] * len(callers)
    for caller in callers:
        assert caller.scored <= set(exposures)
        assert caller.told <= events
    assert len(exposures) == len(set(exposures)) <= sum(caller.asked for caller in callers)
    assert skipped.damaged == 0
    assert not [path for path in segment_paths(folder) if path.suffix == OPEN]
    return skipped.torn, len(exposures)


def kill_everything_under_load(kills: int, repository: Path, tmp_path: Path) -> None:
    """The supervisor and its workers die at once, and the program is started again over the same log."""
    folder = tmp_path / "journal"
    options = ("--repository", str(repository), "--log", str(folder), "--log-segment-bytes", "4096")
    options = (*options, "--metrics-directory", str(tmp_path / "metrics"))  # or each death leaves one behind
    callers: list[Caller] = []
    for kill in range(kills + 1):
        with running_service(tmp_path / f"log-{kill}", *options, own_group=True) as running:
            now = [Caller(running, 3 * kill + number) for number in range(3)]
            callers += now
            for caller in now:
                caller.start()
            wait_for(lambda now=now: all(len(caller.told) > 20 for caller in now), "callers are answered")  # type: ignore[misc]
            if kill < kills:
                os.killpg(running.process.pid, signal.SIGKILL)
                running.process.wait(PATIENCE_SECONDS)
            for caller in now:
                caller.stop()
    torn, _ = check_log(folder, callers)
    assert torn <= kills


def test_no_acknowledged_record_is_lost_when_workers_are_killed(repository: Path, tmp_path: Path):
    """Two kills; the long forms are below."""
    kill_under_load(2, repository, tmp_path)


@pytest.mark.soak
def test_no_acknowledged_record_is_lost_in_a_hundred_kills(repository: Path, tmp_path: Path):
    """A file that is buffered lost records in each of twenty, when this was tried."""
    kill_under_load(100, repository, tmp_path)


@pytest.mark.soak
def test_no_acknowledged_record_is_lost_when_every_process_is_killed(repository: Path, tmp_path: Path):
    """A hundred times, over one folder; what each life left is sealed by the next."""
    kill_everything_under_load(100, repository, tmp_path)
