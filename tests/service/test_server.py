"""The real program: `python -m service` in processes of its own, with workers that are killed."""

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.processes.supervisor import _Worker
from tests.models.tiny_bundle import write_tiny_bundle
from tests.service.bundles import write_slow_ensemble
from tests.service.running import (
    PATIENCE_SECONDS,
    ROOT,
    Running,
    clean_environment,
    expected_pctr,
    metric,
    request_of,
    running_service,
    wait_for,
)
from tests.service.test_watch import arm, experiments_file


def run_program(*options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The program to its end."""
    return subprocess.run(
        [sys.executable, "-m", "service", "--port", "0", *options],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=clean_environment(**variables),
        timeout=PATIENCE_SECONDS,
    )


class Load(threading.Thread):
    """A client that asks on, each request with other content, and checks the scores; until it is stopped or nobody
    listens any more. Over one connection, or over a new one each time."""

    def __init__(
        self, running: Running, number: int, biases: dict[str, float], *, keeps_connection: bool = True
    ) -> None:
        super().__init__()
        self.running, self.number, self.biases = running, number, biases
        self.keeps_connection = keeps_connection
        self.stopping = False
        self.answered = 0
        self.wrong: list[str] = []
        self.broken: list[str] = []
        """What became of requests that were sent, or connections that were made, and not answered."""

    def run(self) -> None:
        connection = self.running.connection()
        while not self.stopping:
            name = f"r-{self.number}-{self.answered}"
            request = request_of(self.number, self.answered, request_id=name, unit_id=self.answered)
            try:
                reply = self.running.request("POST", "/predict", request, connection)
            except ConnectionRefusedError:
                break
            except (http.client.HTTPException, OSError) as error:
                self.broken.append(repr(error))
                connection.close()
                continue
            answer = reply.json()
            expected = expected_pctr(request, self.biases.get(answer.get("model"), 0.0))
            if reply.status != 200 or answer["request_id"] != name or answer["pctr"] != pytest.approx(expected, 1e-4):
                self.wrong.append(reply.body.decode())
            self.answered += 1
            if not self.keeps_connection:
                connection.close()  # http.client opens another
        connection.close()

    def stop(self) -> None:
        self.stopping = True
        self.join(PATIENCE_SECONDS)


BIASES = {"student": 0.0, "ensemble": 1.0}


def test_two_workers_answer_die_and_come_back(own_repository: Path, tmp_path: Path):
    """The life of a service, in order: it becomes ready; it answers, every worker alike; a killed worker is replaced
    while the other serves; counters never fall back; a new version goes live; SIGTERM ends it with 0."""
    log = tmp_path / "log"
    with running_service(log, "--repository", str(own_repository), "--workers", "2") as running:
        wait_for(lambda: running.ready_count() == 2, "both workers are ready")
        request = request_of(1, 2, request_id="r", unit_id="user-831")

        # given: both workers have answered, over many connections, the same bytes
        bodies = {running.request("POST", "/predict", request).body for _ in range(30)}
        assert len(bodies) == 1
        before = metric(running.metrics(), "retort_exposures_total")
        assert before == 30

        # when: a worker is killed under load
        load = Load(running, 1, BIASES)
        load.start()
        victim = running.worker_pids()[1]
        os.kill(victim, signal.SIGKILL)
        wait_for(lambda: running.ready_count() == 3, "the killed worker is replaced")
        load.stop()

        # then: it came back, at most the requests it held were lost, and its counts are still there
        assert load.answered > 0
        assert load.wrong == []
        assert len(load.broken) <= 2
        after = metric(running.metrics(), "retort_exposures_total")
        assert before + load.answered <= after <= before + load.answered + len(load.broken)
        assert metric(running.metrics(), "retort_worker_starts_total") == 3
        assert metric(running.metrics(), "retort_worker_restarts_total") == 1
        assert metric(running.metrics(), "retort_model_info", model="student", version="1") == 1

        # and: a version published now goes live in every worker
        write_tiny_bundle(own_repository, "student", bias=2.0)

        def all_new() -> bool:
            replies = [running.request("POST", "/models/student/predict", request) for _ in range(10)]
            return {reply.json()["version"] for reply in replies} == {2}

        wait_for(all_new, "version 2 is live in both workers")
        assert running.stop() == 0
    assert "Traceback" not in log.read_text()


def test_a_worker_that_is_killed_again_and_again_is_started_again_at_once(repository: Path, tmp_path: Path):
    """Killed as soon as it is ready, five times: nothing that had become ready waits for its turn, however young it
    dies; the other worker serves all along."""
    options = ("--repository", str(repository), "--workers", "2")
    with running_service(tmp_path / "log", *options) as running:
        wait_for(lambda: running.ready_count() == 2, "both workers are ready")
        for kill in range(5):
            os.kill(running.worker_pids()[1], signal.SIGKILL)
            died = time.monotonic()
            wait_for(lambda kill=kill: running.start_count() == 3 + kill, "another is started")  # type: ignore[misc]
            assert time.monotonic() - died < 5
            assert running.request("POST", "/predict", request_of(1)).status == 200
            wait_for(lambda kill=kill: running.ready_count() == 3 + kill, "it is ready")  # type: ignore[misc]
        assert metric(running.metrics(), "retort_worker_starts_total") == 7
        assert running.stop() == 0


def test_only_a_worker_that_never_became_ready_has_to_wait():
    """Twice as long each time, up to half a minute; one that becomes ready in the end is forgiven."""
    worker = _Worker(slot=0)
    waits = []

    for _ in range(8):
        worker.be_patient(now=100.0)
        waits.append(worker.not_before - 100.0)
    worker.ready = True
    worker.be_patient(now=100.0)

    assert waits == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert (worker.not_before, worker.patience) == (100.0, 0.0)


def test_sighup_is_logged_and_harms_nobody(repository: Path, tmp_path: Path):
    """Sent to the whole group, as a terminal that is closed does: every process lives on, also one that is only just
    being started, and requests are answered."""
    options = ("--repository", str(repository), "--workers", "2")
    with running_service(tmp_path / "log", *options, own_group=True) as running:
        os.killpg(running.process.pid, signal.SIGHUP)  # while the second worker is being started
        wait_for(lambda: running.ready_count() == 2, "both workers are ready")
        os.killpg(running.process.pid, signal.SIGHUP)
        wait_for(lambda: "SIGHUP: nothing to do" in running.log_text(), "the signal is logged")
        statuses = {running.request("POST", "/predict", request_of(1)).status for _ in range(10)}

        assert statuses == {200}
        assert running.start_count() == 2
        assert running.stop() == 0


def test_an_experiment_file_reaches_every_worker(repository: Path, tmp_path: Path):
    """An atomic replace, and soon no worker answers by the old file; a broken file changes nothing and shows in the
    metrics of both."""
    path = experiments_file(tmp_path / "e.json", arm("student", 1.0))
    options = ("--repository", str(repository), "--experiments", str(path), "--workers", "2", "--poll-seconds", "0.25")
    with running_service(tmp_path / "log", *options) as running:
        wait_for(lambda: running.ready_count() == 2, "both workers are ready")

        def arms() -> set[str]:
            return {running.request("POST", "/predict", request_of(1)).json()["arm"] for _ in range(30)}

        assert arms() == {"student"}
        experiments_file(path, arm("control", 1.0), salt="t", phase=2)
        wait_for(lambda: arms() == {"control"}, "no worker answers by the old file")
        path.with_suffix(".tmp").write_text("{")
        path.with_suffix(".tmp").replace(path)

        def refused_by_both() -> bool:
            return metric(running.metrics(), "retort_experiment_reload_failures_total") == 2

        wait_for(refused_by_both, "both workers refuse the broken file")
        assert arms() == {"control"}


def test_sigterm_under_load_loses_no_request(repository: Path, tmp_path: Path):
    """Clients that keep their connections and clients that open one a request, until nobody listens: readiness falls
    first; answers then say `Connection: close`; every request is answered and no connection is reset; exit 0."""
    with running_service(
        tmp_path / "log", "--repository", str(repository), "--workers", "2", "--drain-seconds", "2"
    ) as running:
        wait_for(lambda: running.ready_count() == 2, "both workers are ready")
        loads = [Load(running, number, BIASES, keeps_connection=number % 2 == 0) for number in range(6)]
        for load in loads:
            load.start()
        wait_for(lambda: all(load.answered > 5 for load in loads), "requests flow")

        running.process.send_signal(signal.SIGTERM)
        ready = running.request("GET", "/health/ready")
        while ready.status == 200:
            ready = running.request("GET", "/health/ready")
        code = running.process.wait(PATIENCE_SECONDS)
        for load in loads:
            load.join(PATIENCE_SECONDS)

    assert code == 0
    assert (ready.status, ready.headers["connection"]) == (503, "close")
    assert [load.wrong for load in loads] == [[]] * 6
    assert [load.broken for load in loads] == [[]] * 6


def test_a_worker_takes_no_request_before_its_models_are_proven(own_repository: Path, tmp_path: Path):
    """From the moment the service says that it listens, while more workers start and one is killed: requests over new
    connections are scored by those that can."""
    with running_service(tmp_path / "log", "--repository", str(own_repository), "--workers", "3") as running:
        load = Load(running, 1, BIASES, keeps_connection=False)
        load.start()
        wait_for(lambda: running.ready_count() == 3, "every worker is ready")
        os.kill(running.worker_pids()[0], signal.SIGKILL)
        wait_for(lambda: running.ready_count() == 4, "the killed worker is replaced")
        load.stop()

        assert load.answered > 0
        assert load.wrong == []
        assert len(load.broken) <= 1  # the one that the killed worker held
        assert running.stop() == 0


def test_a_worker_that_is_told_to_stop_by_itself_loses_no_request(repository: Path, tmp_path: Path):
    """SIGTERM to one worker, not to the service: it drains and is replaced, and the other goes on accepting."""
    with running_service(tmp_path / "log", "--repository", str(repository), "--workers", "2") as running:
        wait_for(lambda: running.ready_count() == 2, "both workers are ready")
        loads = [Load(running, number, BIASES, keeps_connection=number % 2 == 0) for number in range(4)]
        for load in loads:
            load.start()
        os.kill(running.worker_pids()[1], signal.SIGTERM)
        wait_for(lambda: running.ready_count() == 3, "the worker is replaced")
        answered = [load.answered for load in loads]
        wait_for(lambda: all(load.answered > answered[load.number] for load in loads), "requests still flow")
        for load in loads:
            load.stop()

        assert "ended with code 0" in running.log_text()
        assert [load.wrong for load in loads] == [[]] * 4
        assert [load.broken for load in loads] == [[]] * 4
        assert running.stop() == 0


def test_an_idle_connection_does_not_hold_up_the_end(repository: Path, tmp_path: Path):
    """It is answered while it is used, also after SIGTERM, and closed in order once it has been silent for a moment."""
    with running_service(tmp_path / "log", "--repository", str(repository), "--drain-seconds", "0") as running:
        idle, used = running.connection(), running.connection()
        for connection in (idle, used):
            running.request("GET", "/health/live", connection=connection)
        assert idle.sock is not None
        running.process.send_signal(signal.SIGTERM)
        wait_for(lambda: "draining" in running.log_text(), "the worker drains")

        assert running.request("POST", "/predict", request_of(1), used).headers["connection"] == "close"
        assert idle.sock.recv(1) == b""
        assert running.process.wait(PATIENCE_SECONDS) == 0
        idle.close()


def test_readiness_falls_before_the_door_closes_also_for_who_holds_no_connection(repository: Path, tmp_path: Path):
    """A balancer that opens a connection a probe sees 503 while requests are still answered."""
    options = ("--repository", str(repository), "--drain-seconds", "3")
    with running_service(tmp_path / "log", *options) as running:
        running.process.send_signal(signal.SIGTERM)
        seen = []
        while running.process.poll() is None:
            with contextlib.suppress(OSError, http.client.HTTPException):
                seen.append(running.request("GET", "/health/ready").status)
                if seen[-1] == 503:
                    assert running.request("POST", "/predict", request_of(1, 2)).status == 200
                    break
            time.sleep(0.01)

        assert 503 in seen
        assert running.process.wait(PATIENCE_SECONDS) == 0


def test_a_request_in_flight_at_the_end_is_answered(repository: Path, tmp_path: Path):
    """A client that is still sending its body when SIGTERM comes gets its answer, and the connection's end is
    told."""
    body = json.dumps(request_of(1, request_id="slow")).encode()
    head = f"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    with running_service(tmp_path / "log", "--repository", str(repository)) as running:
        with socket.create_connection(("127.0.0.1", running.port), PATIENCE_SECONDS) as connection:
            connection.sendall(head + body[:10])
            running.process.send_signal(signal.SIGTERM)
            wait_for(lambda: "draining" in running.log_text(), "the worker drains")
            time.sleep(0.5)  # which is longer than it does
            connection.sendall(body[10:])
            reply = b""
            while part := connection.recv(65536):
                reply += part
        code = running.process.wait(PATIENCE_SECONDS)

    assert reply.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"connection: close" in reply.lower()
    assert b'"request_id":"slow"' in reply
    assert code == 0


def test_a_burst_beyond_the_cap_is_refused_at_once(tmp_path: Path):
    """With room for one and a model that is slow, of many requests at once some are scored and the rest are told to
    come back later."""
    root = tmp_path / "repository"
    root.mkdir()
    write_slow_ensemble(root)
    body = json.dumps(request_of(1)).encode()
    request = f"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body
    options = ("--repository", str(root), "--max-in-flight", "1")
    with running_service(tmp_path / "log", *options) as running, contextlib.ExitStack() as stack:
        address = ("127.0.0.1", running.port)
        clients = [stack.enter_context(socket.create_connection(address, PATIENCE_SECONDS)) for _ in range(20)]
        for client in clients:  # or they are accepted one after the other, and scored in between
            client.sendall(b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n")
            while not client.recv(65536).endswith(b"}"):
                pass
        for client in clients:
            client.sendall(request)
        replies = [client.recv(65536) for client in clients]
        after = running.request("POST", "/predict", request_of(1))

    answered = [reply for reply in replies if reply.startswith(b"HTTP/1.1 200 ")]
    refused = [reply for reply in replies if reply.startswith(b"HTTP/1.1 429 ")]
    assert len(answered) + len(refused) == 20
    assert answered
    assert refused
    assert all(b"retry-after: 1\r\n" in reply.lower() for reply in refused)
    assert after.status == 200


def test_clients_that_ask_for_every_version_do_not_disturb_the_live_one(own_repository: Path, tmp_path: Path):
    """Many callers at once, each going through all numbers there are and more: they get scores, 404 or 429; a few
    versions are loaded, and every caller of the live one is answered by it."""
    for number in range(20):
        write_tiny_bundle(own_repository, "student", bias=float(number))
    seen: set[int] = set()
    stop = threading.Event()

    def ask_on(first: int) -> None:
        connection = running.connection()
        version = first
        while not stop.is_set():
            version = version % 30 + 1
            path = f"/models/student/versions/{version}/predict"
            seen.add(running.request("POST", path, request_of(1), connection).status)
        connection.close()

    options = ("--repository", str(own_repository), "--max-in-flight", "8")
    with running_service(tmp_path / "log", *options) as running:
        threads = [threading.Thread(target=ask_on, args=(number,)) for number in range(7)]
        for thread in threads:
            thread.start()
        live = []
        began = time.monotonic()
        while time.monotonic() < began + 2 or seen != {200, 404, 429}:
            live.append(running.request("POST", "/models/student/predict", request_of(1)))
            assert time.monotonic() < began + PATIENCE_SECONDS, seen
        stop.set()
        for thread in threads:
            thread.join()
        loaded = metric(running.metrics(), "retort_model_info", model="student")

    assert {(reply.status, reply.json()["version"]) for reply in live} == {(200, 21)}
    assert loaded <= 3


@pytest.fixture(scope="module")
def one_worker(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A service for tests that ask and do no harm."""
    log = tmp_path_factory.mktemp("one-worker") / "log"
    with running_service(log, "--repository", str(repository), "--show-example") as running:
        yield running


@pytest.mark.parametrize("size", [2 << 20, 100 << 20], ids=["2 MB", "100 MB"])
def test_an_oversized_body_gets_its_answer_and_not_a_broken_pipe(one_worker: Running, size: int):
    """http.client sends all of the body before it listens. The worker takes it in without keeping it."""
    status = Path(f"/proc/{one_worker.worker_pids()[0]}/status")

    before = peak_memory(status)
    reply = one_worker.request("POST", "/predict", b" " * size)
    after = peak_memory(status)

    assert (reply.status, reply.json()["code"]) == (413, "body_too_large")
    assert after - before < 10 << 20


def peak_memory(status: Path) -> int:
    """The most memory a process ever had, in bytes."""
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def test_a_worker_that_cannot_start_again_does_not_take_the_others_with_it(own_repository: Path, tmp_path: Path):
    """Its models were damaged on disk after the start: the other worker serves on; when they are whole again, so is
    the service."""
    model = own_repository / "student" / "1" / "model.onnx"
    whole = model.read_bytes()
    arms = experiments_file(tmp_path / "e.json", arm("student", 1.0))
    options = ("--repository", str(own_repository), "--experiments", str(arms), "--workers", "2")
    with running_service(tmp_path / "log", *options) as running:
        wait_for(lambda: running.ready_count() == 2, "both workers are ready")
        model.chmod(0o644)
        model.write_bytes(whole + b" ")
        os.kill(running.worker_pids()[0], signal.SIGKILL)

        wait_for(lambda: "ended with code 3" in running.log_text(), "the new worker gives up")
        statuses = {running.request("POST", "/predict", request_of(1)).status for _ in range(10)}
        wait_for(lambda: metric(running.metrics(), "retort_workers", state="ready") == 1, "the metrics say so")
        assert metric(running.metrics(), "retort_workers", state="wanted") == 2
        assert metric(running.metrics(), "retort_worker_restarts_total") >= 1
        model.write_bytes(whole)
        wait_for(lambda: running.ready_count() == 3, "a worker starts with the whole model")
        assert metric(running.metrics(), "retort_workers", state="ready") == 2
        code = running.stop()

    assert statuses == {200}
    assert code == 0


def test_it_starts_from_a_folder_with_nothing_but_itself(repository: Path, tmp_path: Path):
    """service/ and models/ alone, where importing torch, onnx or pyarrow fails: it becomes ready and answers."""
    for room in ("service", "models"):
        shutil.copytree(
            ROOT / room, tmp_path / "alone" / room, ignore=shutil.ignore_patterns("repository", "__pycache__")
        )
    blocked = tmp_path / "blocked"
    for name in ("torch", "onnx", "onnxscript", "pyarrow", "rich", "training"):
        (blocked / name).mkdir(parents=True)
        (blocked / name / "__init__.py").write_text("raise ImportError('not installed here')\n")

    with running_service(
        tmp_path / "log", "--repository", str(repository), cwd=tmp_path / "alone", PYTHONPATH=str(blocked)
    ) as running:
        reply = running.request("POST", "/predict", request_of(1))

    assert reply.status == 200


def test_show_example_prints_a_curl_that_works(one_worker: Running):
    """The line is run as it stands, in a shell, and gives the scores printed below it."""
    assert one_worker.process.stdout is not None

    line, answer = one_worker.process.stdout.readline(), one_worker.process.stdout.readline()

    assert line.startswith(f"curl -s http://127.0.0.1:{one_worker.port}/predict")
    assert len(json.loads(answer)["pctr"]) >= 1
    if shutil.which("curl"):
        again = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=PATIENCE_SECONDS)
        assert json.loads(again.stdout)["pctr"] == json.loads(answer)["pctr"]


WRONG: list[tuple[str, list[str], dict[str, str], int, str]] = [
    ("no repository", [], {}, 2, "--repository (RETORT_REPOSITORY): is missing"),
    ("a repository that is not there", ["--repository", "/nowhere"], {}, 2, "no folder /nowhere"),
    ("a wrong number", ["--repository", ".", "--workers", "none"], {}, 2, "--workers (RETORT_WORKERS)"),
    ("an unknown option", ["--repository", ".", "--wurkers", "2"], {}, 2, "--wurkers"),
    ("a mistyped variable", ["--repository", "."], {"RETORT_WROKERS": "2"}, 2, "did you mean RETORT_WORKERS"),
    ("no experiment file", ["--repository", ".", "--experiments", "/none.yaml"], {}, 2, "/none.yaml: No such file"),
    ("a host of nobody", ["--repository", ".", "--host", "203.0.113.7"], {}, 2, "cannot listen on 203.0.113.7"),
]


@pytest.mark.parametrize("case", WRONG, ids=[case[0].replace(" ", "-") for case in WRONG])
def test_what_cannot_work_is_refused_at_once(case: tuple[str, list[str], dict[str, str], int, str]):
    """One line that names the option, and exit 2; no worker is started for it."""
    _, options, variables, code, message = case

    finished = run_program(*options, **variables)

    assert (finished.returncode, finished.stdout) == (code, "")
    assert message in finished.stderr
    assert "Traceback" not in finished.stderr
    assert "started as process" not in finished.stderr


def test_a_port_that_is_taken_is_named():
    """Not a traceback of asyncio's."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        finished = run_program("--repository", str(ROOT), "--port", str(port))

    assert finished.returncode == 2
    assert f"cannot listen on 127.0.0.1 port {port}" in finished.stderr


def test_models_that_cannot_be_served_stop_the_program(repository: Path, tmp_path: Path):
    """Exit 3 where no version loads, 2 where the experiment file names what is not there; each says why, once, though
    two workers were asked for."""
    empty = tmp_path / "empty"
    empty.mkdir()
    damaged = tmp_path / "damaged"
    shutil.copytree(repository / "student", damaged / "student")
    with (damaged / "student" / "1" / "model.onnx").open("ab") as file:
        file.write(b"\0")
    absent = experiments_file(tmp_path / "e.json", arm("nobody", 1.0))
    cases: list[tuple[list[str], int, str]] = [
        (["--repository", str(empty)], 3, "holds no version of any model"),
        (["--repository", str(damaged)], 3, "model.onnx"),
        (["--repository", str(repository), "--experiments", str(absent)], 2, "needs model 'nobody'"),
    ]

    for options, code, message in cases:
        finished = run_program(*options, "--workers", "2")

        assert finished.returncode == code, finished.stderr
        assert message in finished.stderr
        assert finished.stderr.count("CRITICAL") == 1
        assert "Traceback" not in finished.stderr


def test_logs_can_be_json(repository: Path, tmp_path: Path):
    """One object a line, from the parent and the workers alike. (It ends by Ctrl-C, which is as good as SIGTERM.)"""
    with running_service(tmp_path / "log", "--repository", str(repository), RETORT_LOG_FORMAT="json") as running:
        running.request("POST", "/predict", {"candidates": [{"price": "s3cret"}]})
        assert running.stop(signal.SIGINT) == 0
    records: list[dict[str, Any]] = [json.loads(line) for line in running.log_text().splitlines()]

    assert {record["logger"] for record in records} >= {
        "service",
        "service.processes.supervisor",
        "service.scoring.registry",
    }
    assert len({record["process"] for record in records}) == 2
    assert all(record.keys() >= {"time", "level", "message"} for record in records)
    assert "s3cret" not in running.log_text()


def test_workers_end_when_their_supervisor_is_killed(repository: Path, tmp_path: Path):
    """Nobody is left holding the port: a new supervisor could not listen on it."""
    with running_service(tmp_path / "log", "--repository", str(repository), "--workers", "2") as running:
        wait_for(lambda: running.ready_count() == 2, "both workers are ready")
        workers = running.worker_pids().values()
        running.process.kill()
        running.process.wait(PATIENCE_SECONDS)

        def all_gone() -> bool:
            return not any(Path(f"/proc/{pid}").exists() for pid in workers)

        wait_for(all_gone, "the workers have ended")
