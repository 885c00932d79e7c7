"""The long forms, run by `make soak`: full recipes, a hundred kills, minutes of load. Left out of `make test`."""

import contextlib
import json
import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.disturbances import spoil
from tests.end_to_end.small_run import training
from tests.service.conftest import own_repository
from tests.service.running import Running, metric, request_of, running_service, wait_for
from tests.service.test_server import BIASES, Load

__all__ = ["own_repository"]  # a fixture, named so that pytest finds it here

pytestmark = pytest.mark.soak

DATA = os.environ.get("RETORT_TRAINING_DATA")


def report_of(recipe: str, out: Path, *options: str) -> dict[str, Any]:
    done = training("run", recipe, "--out", str(out), *options, timeout=3600)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(Path(done.stdout.splitlines()[-1]).read_text()))


def test_on_the_default_log_the_student_beats_its_control_in_every_seed(tmp_path: Path):
    report = report_of("synthetic", tmp_path, "--seeds", "3")

    for student, control in zip(report["test"]["student"], report["test"]["control_train_valid"], strict=True):
        assert student["xauc"] > control["xauc"]
        assert student["xlogloss"] < control["xlogloss"]
    assert report["targets"]
    for target in report["targets"]:
        assert target["reached"] or target["reason"], target


@pytest.mark.skipif(not DATA, reason="RETORT_TRAINING_DATA does not name a folder of real logs")
@pytest.mark.parametrize("recipe", ["kuairand_pure", "ml_latest_small"])
def test_a_real_log_trains_whole_and_exports(recipe: str, tmp_path: Path):
    report = report_of(recipe, tmp_path)

    assert report["test"]["student"][0]["auc"] > 0.6
    assert {path.name for path in (tmp_path / "repository").iterdir()} == {"student", "ensemble", "control"}


def test_a_hundred_killed_workers_lose_no_count(own_repository: Path, tmp_path: Path):
    """SIGKILL after SIGKILL under load: what was counted stays counted, a worker is back within 5 s each time, and the
    dead leave nothing behind for a scrape to read: as many files and series as before, of the same sizes."""
    with running_service(tmp_path / "log", "--repository", str(own_repository), "--workers", "2") as running:
        wait_for(lambda: running.ready_count() == 2, "both workers are ready")
        load = Load(running, 1, BIASES)
        load.start()
        wait_for(lambda: load.answered > 200, "every metric has been counted in")
        running.metrics()  # which is a series too
        folder = metrics_folder(running)
        before, series = sizes(folder), series_of(running)
        counted = 0.0
        away = []
        chooser = random.Random(0)
        for kill in range(100):
            os.kill(running.worker_pids()[chooser.randrange(2)], signal.SIGKILL)
            died = time.monotonic()
            wait_for(lambda kill=kill: running.ready_count() == 3 + kill, f"worker {kill} is replaced")
            away.append(time.monotonic() - died)
            now = metric(running.metrics(), "retort_exposures_total")
            assert now >= counted
            counted = now
        load.stop()

        assert load.wrong == []
        assert load.answered <= metric(running.metrics(), "retort_exposures_total") <= load.answered + len(load.broken)
        assert sizes(folder) == before
        assert len(list(folder.glob("drift_*.json"))) <= 2  # one a place, some seconds after a start
        assert series_of(running) == series
        assert metric(running.metrics(), "retort_worker_starts_total") == 102
        assert running.stop() == 0
        assert max(away) < 5, "the counts are right; on a machine with other work, look at this line alone"


def metrics_folder(running: Running) -> Path:
    """Where the workers count, as the maps of one of them tell."""
    maps = Path(f"/proc/{running.worker_pids()[0]}/maps").read_text()
    (folder,) = {Path(line.split()[-1]).parent for line in maps.splitlines() if line.endswith(".db")}
    return folder


def sizes(folder: Path) -> dict[str, int]:
    """Of what is counted in."""
    return {path.name: path.stat().st_size for path in folder.iterdir() if not path.name.startswith("drift_")}


def series_of(running: Running) -> int:
    """How many there are, but for drift, which is told once enough was seen."""
    return sum(not line.startswith("retort_drift_") for line in running.metrics().splitlines())


class Rubbish(threading.Thread):
    """A client that posts spoiled bodies, some hundred a second, until it is stopped; what it minds is a 5xx."""

    def __init__(self, running: Running) -> None:
        super().__init__()
        self.running = running
        self.stopping = False
        self.sent = 0
        self.failed: list[bytes] = []

    def run(self) -> None:
        chooser = random.Random(1)
        good = json.dumps(request_of(1, 2, 3, unit_id="u")).encode()
        with contextlib.closing(self.running.connection()) as connection:
            while not self.stopping:
                body = spoil(good, chooser)
                if self.running.request("POST", "/predict", body, connection).status >= 500:
                    self.failed.append(body)
                self.sent += 1
                time.sleep(0.005)

    def stop(self) -> None:
        self.stopping = True
        self.join(60)


def test_ten_minutes_of_load_and_rubbish_do_not_grow_memory(own_repository: Path, tmp_path: Path):
    """Good requests from four clients and spoiled ones from a fifth: right answers, no 5xx, and what the worker holds
    after a minute it holds after ten, to 2%."""
    with running_service(tmp_path / "log", "--repository", str(own_repository), "--workers", "1") as running:
        pid = running.worker_pids()[0]
        loads = [Load(running, number, BIASES) for number in range(4)]
        rubbish = Rubbish(running)
        for client in (*loads, rubbish):
            client.start()
        time.sleep(60)
        early = resident_bytes(pid)
        time.sleep(540)
        late = resident_bytes(pid)
        for client in (*loads, rubbish):
            client.stop()

        assert [load.wrong for load in loads] == [[]] * 4
        assert rubbish.failed == []
        assert rubbish.sent > 1000
        assert late < 1.02 * early
        assert running.stop() == 0


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
