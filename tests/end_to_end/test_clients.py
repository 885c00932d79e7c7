"""The clients of docs/clients, compiled and run as somebody who copied them would.

Against the real service, and against servers that never answer, refuse, lie or hang up.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.models.tiny_bundle import write_tiny_bundle
from tests.service.running import CONTEXT, PATIENCE_SECONDS, ROOT, Running, candidate, running_service

CLIENTS = ROOT / "docs" / "clients"
DEFAULT = 0.02
LONG_MS = round(1000 * PATIENCE_SECONDS)
"""For answers that come."""
SHORT_MS = 50
"""For answers that never come, however long somebody waits."""
UNITS = ["user-831", "Zoë 📱", 'quote " and \\ backslash', "7"]

Command = Callable[[int], list[str]]
"""The program for a service on that port of this machine."""


def _go(out: Path) -> Command:
    environment = {**os.environ, "GOCACHE": str(out / "cache"), "GOPATH": str(out / "path"), "GOFLAGS": "-mod=mod"}
    source = CLIENTS / "go"
    subprocess.run(["go", "build", "-o", str(out / "go-client"), "./example"], cwd=source, env=environment, check=True)
    return lambda port: [str(out / "go-client"), f"http://127.0.0.1:{port}", str(DEFAULT)]


def _java(out: Path) -> Command:
    sources = sorted(map(str, (CLIENTS / "java").glob("*.java")))
    subprocess.run(["javac", "-Xlint:all", "-Werror", "-d", str(out), *sources], check=True)
    return lambda port: ["java", "-cp", str(out), "Example", f"http://127.0.0.1:{port}", str(DEFAULT)]


def _cpp(out: Path) -> Command:
    warnings = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"]
    source = str(CLIENTS / "cpp" / "example.cpp")
    subprocess.run(["g++", "-std=c++17", *warnings, source, "-o", str(out / "cpp-client")], check=True)
    return lambda port: [str(out / "cpp-client"), "127.0.0.1", str(port), str(DEFAULT)]


LANGUAGES: dict[str, tuple[tuple[str, ...], Callable[[Path], Command]]] = {
    "go": (("go",), _go),
    "java": (("javac", "java"), _java),
    "cpp": (("g++",), _cpp),
}


@pytest.fixture(scope="module", params=LANGUAGES)
def command(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Command:
    """A compiled client; warnings are errors where the compiler has any."""
    tools, build = LANGUAGES[request.param]
    for tool in tools:
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed: the client in {request.param} is neither compiled nor run here")
    return build(tmp_path_factory.mktemp(request.param))


@dataclass(frozen=True)
class Auction:
    """One line of an example's input."""

    unit: str = "user-831"
    timeout_ms: int = LONG_MS
    context: dict[str, Any] = field(default_factory=dict)
    candidates: Sequence[dict[str, Any]] = ({"ad_id": "a1"}, {"ad_id": "a2"})

    def line(self) -> str:
        parts = [self.unit, str(self.timeout_ms), json.dumps(self.context), *map(json.dumps, self.candidates)]
        return "\t".join(parts) + "\n"


def ask(command: Command, port: int, *auctions: Auction) -> list[tuple[str, list[float]]]:
    """(source, scores) of each auction, asked one after the other by one client."""
    done = subprocess.run(
        command(port),
        input="".join(auction.line() for auction in auctions).encode(),
        capture_output=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b""), done.stderr.decode()
    lines = done.stdout.decode().splitlines()
    assert len(lines) == len(auctions)
    answers = []
    for line, auction in zip(lines, auctions, strict=True):
        source, *scores = line.split(" ")
        assert len(scores) == len(auction.candidates), "a score for every candidate, always"
        answers.append((source, [float(score) for score in scores]))
    return answers


def fallback(source: str, count: int = 2) -> tuple[str, list[float]]:
    return source, [DEFAULT] * count


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("clients")
    write_tiny_bundle(folder / "repository", "student", bias=0.0)
    write_tiny_bundle(folder / "repository", "ensemble", bias=1.0, teachers=3)
    with running_service(folder / "log", "--repository", str(folder / "repository")) as running:
        yield running


def test_scores_are_those_of_predict(command: Command, service: Running):
    """To the float32, for units of both arms and of every kind of letter, and in the candidates' order."""
    units = [*UNITS, *(f"user-{number}" for number in range(8))]
    auctions = [
        Auction(unit, context=CONTEXT, candidates=[candidate(n), candidate(n + 1), candidate(0)])
        for n, unit in enumerate(units)
    ]
    expected, arms = [], set()
    for auction in auctions:
        body = {"unit_id": auction.unit, "context": auction.context, "candidates": auction.candidates}
        answer = service.request("POST", "/predict", body).json()
        expected.append(np.float32(answer["pctr"]).tolist())
        arms.add(answer["arm"])

    answers = ask(command, service.port, *auctions)

    assert arms == {"student", "ensemble"}, "without it a client that loses the unit would pass"
    assert [source for source, _ in answers] == ["service"] * len(units)
    # Scored in another company the last bits may differ; another arm's scores are far off.
    assert np.allclose(np.float32([scores for _, scores in answers]), expected, rtol=1e-6, atol=0)


def test_a_refusal_is_not_retried(command: Command, service: Running):
    """The real service's 422: every score is the default."""
    assert ask(command, service.port, Auction(context={"hour": "noon"})) == [fallback("refused")]


class Server:
    """A server by script: `answer(connection, number, requests)` for each connection, numbered from 0, in a thread.

    It reads requests with `read`, which notes their bodies, and says what it likes with `connection.sendall`.
    """

    def __init__(self, answer: Callable[[Server, socket.socket, int], object]) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.connections = 0
        self.second = threading.Event()
        """Set once a second connection was made."""
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                connection, _ = self._listener.accept()
                self._open.append(connection)
                number = self.connections
                self.connections += 1
                if number == 1:
                    self.second.set()
                thread = threading.Thread(target=self._serve, args=(connection, number))
                self._threads.append(thread)
                thread.start()

    def _serve(self, connection: socket.socket, number: int) -> None:
        with contextlib.suppress(OSError):
            self._answer(self, connection, number)

    def read(self, connection: socket.socket) -> dict[str, Any] | None:
        """Takes in one whole request and returns its body; None where the client has closed, also in the middle."""
        received = b""
        while b"\r\n\r\n" not in received:
            if not (part := connection.recv(1 << 16)):
                return None
            received += part
        head, _, text = received.partition(b"\r\n\r\n")
        request_line, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        assert request_line == "POST /predict HTTP/1.1"
        assert headers["content-type"] == "application/json"
        while len(text) < int(headers["content-length"]):
            if not (part := connection.recv(1 << 16)):
                return None
            text += part
        body: dict[str, Any] = json.loads(text)
        self.bodies.append(body)
        return body

    def close(self) -> None:
        """Nobody listens any more, and no thread is left; closing alone would wake none of them."""
        self.second.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        self._listener.close()
        for connection in self._open:
            with contextlib.suppress(OSError):  # the client was first
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for connection in self._open:
            connection.close()


@contextlib.contextmanager
def serving(answer: Callable[[Server, socket.socket, int], object]) -> Iterator[Server]:
    server = Server(answer)
    try:
        yield server
    finally:
        server.close()


def message(status: int, body: bytes, *headers: str) -> bytes:
    """An answer, its headers written as a proxy may write them."""
    lines = [f"HTTP/1.1 {status} {http.client.responses[status]}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


SCORED = message(200, b'{"request_id":"\\"pctr\\":[9]","model":"student","pctr":[0.25,0.5],"later":[1]}')


def always(reply: bytes) -> Callable[[Server, socket.socket, int], object]:
    """Answers every request of every connection so."""

    def answer(server: Server, connection: socket.socket, number: int) -> None:
        while server.read(connection):
            connection.sendall(reply)

    return answer


def test_one_connection_serves_many_auctions(command: Command):
    """Each says its unit and a deadline that leaves the network some of the timeout."""
    with serving(always(SCORED)) as server:
        answers = ask(command, server.port, *(Auction(unit) for unit in UNITS))

    assert answers == [("service", [0.25, 0.5])] * len(UNITS)
    assert server.connections == 1
    assert [body["unit_id"] for body in server.bodies] == UNITS
    assert {body["deadline_ms"] for body in server.bodies} == {0.8 * LONG_MS}


def test_a_server_that_never_answers_is_not_waited_for(command: Command):
    """The timeout ends it, and the scores are the default."""
    with serving(lambda server, connection, number: server.read(connection)) as server:
        assert ask(command, server.port, Auction(timeout_ms=SHORT_MS)) == [fallback("timeout")]


def test_half_an_answer_is_none(command: Command):
    """The timeout is of the whole answer, not of its first byte."""

    def half(server: Server, connection: socket.socket, number: int) -> None:
        server.read(connection)
        connection.sendall(SCORED[:-10])

    with serving(half) as server:
        assert ask(command, server.port, Auction(timeout_ms=SHORT_MS)) == [fallback("timeout")]


@pytest.mark.parametrize(
    ("reply", "source"), [(message(429, b'{"code":"overloaded"}', "Retry-After: 1"), "overloaded")], ids=["429"]
)
def test_it_is_asked_once_whatever_the_answer(command: Command, reply: bytes, source: str):
    """429 above all: not a second time within the auction. The next auction asks again, over the same connection."""
    with serving(always(reply)) as server:
        answers = ask(command, server.port, Auction("first"), Auction("second"))

    assert answers == [fallback(source)] * 2
    assert [body["unit_id"] for body in server.bodies] == ["first", "second"]
    assert server.connections == 1


def test_the_page_names_every_client_and_only_files_that_exist():
    """And every source that an answer may have."""
    text = (CLIENTS / "README.md").read_text(encoding="utf-8")

    for name in ("go/retort.go", "java/RetortClient.java", "cpp/retort_client.hpp"):
        assert f"]({name})" in text
        assert (CLIENTS / name).is_file()
    for source in ("timeout", "overloaded", "refused", "unreachable", "invalid"):
        assert f"`{source}`" in text
