"""What a client can do to a connection, with raw sockets against a running worker: each is answered, bounded, or
both."""

import contextlib
import json
import re
import selectors
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.http.protocol import MAX_ARRIVING_BODIES, REQUEST_SECONDS, Arriving
from tests.service.running import PATIENCE_SECONDS, Running, metric, request_of, running_service, wait_for

BODY = json.dumps(request_of(1, 2)).encode()
POST = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
LENGTH = b"content-length: %d\r\n" % len(BODY)
GOOD = POST + LENGTH + b"\r\n" + BODY


@pytest.fixture(scope="module")
def worker(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    log = tmp_path_factory.mktemp("protocol") / "log"
    with running_service(log, "--repository", str(repository), "--max-in-flight", "4") as running:
        yield running


def connect(running: Running) -> socket.socket:
    return socket.create_connection(("127.0.0.1", running.port), PATIENCE_SECONDS)


def send(running: Running, *parts: bytes, half_close: bool = False, answers: int = 1) -> bytes:
    """Everything that comes back until the server closes. A connection that it keeps is hung up on when so many answers
    have come, and no more for a moment."""
    with connect(running) as client:
        for part in parts:
            client.sendall(part)
            time.sleep(0.01)
        if half_close:
            client.shutdown(socket.SHUT_WR)
        received = b""
        try:
            while data := client.recv(1 << 16):
                received += data
                client.settimeout(PATIENCE_SECONDS if count_answers(received) < answers else 0.2)
        except TimeoutError:
            assert count_answers(received) >= answers, "waited for an answer in vain"
        return received


def count_answers(received: bytes) -> int:
    """How many whole answers these bytes are."""
    count = 0
    while head := re.match(rb"HTTP/1\.1 .*?content-length: (\d+).*?\r\n\r\n", received, re.DOTALL):
        received = received[head.end() + int(head[1]) :]
        count += 1
    return count


def statuses(received: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", received)]


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"FOO /predict HTTP/1.1\r\n\r\n",
        b"CONNECT a:1 HTTP/1.1\r\nhost: a\r\n\r\n",
        "POST /models/é/predict HTTP/1.1\r\n\r\n".encode(),
        POST + LENGTH + b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        POST + LENGTH + b"content-length: 7\r\n\r\n",
        POST + b"content-length: -1\r\n\r\n",
        POST + b"s3cret: a\x00b\r\n\r\n",
        GOOD.replace(b"host: x\r\n", b""),
        GOOD.replace(b"host: x\r\n", b"host: x\r\nHost: y\r\n"),
    ],
    ids=[
        "tls",
        "http2",
        "method",
        "connect",
        "path",
        "smuggling",
        "two-lengths",
        "length",
        "header",
        "no-host",
        "two-hosts",
    ],
)
def test_what_is_no_http_is_refused_like_everything_else(worker: Running, request_bytes: bytes):
    """400 as problem+json, counted, never logged a line each; the connection ends."""
    logged = len(worker.log_text())
    before = metric(worker.metrics(), "retort_refused_total", reason="malformed_http")

    received = send(worker, request_bytes)

    head, _, body = received.partition(b"\r\n\r\n")
    assert statuses(received) == [400]
    assert b"content-type: application/problem+json" in head
    assert b"connection: close" in head
    assert json.loads(body)["code"] == "malformed_http"
    assert metric(worker.metrics(), "retort_refused_total", reason="malformed_http") == before + 1
    assert len(worker.log_text()) == logged


@pytest.mark.parametrize("connection", [b"Upgrade, HTTP2-Settings", b"keep-alive,\tUPGRADE", b"close, upgrade"])
@pytest.mark.parametrize("split", [1, 60, len(POST) + 100, -len(BODY), -1])
def test_a_client_that_would_rather_speak_http2_is_answered(worker: Running, connection: bytes, split: int):
    """Java's HttpClient asks for h2c with its first request, body and all; we stay with HTTP/1.1 and read it."""
    request = POST + b"Connection: " + connection + b"\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n" + LENGTH
    request += b"\r\n" + BODY

    received = send(worker, request[:split], request[split:])

    assert statuses(received) == [200]
    assert (b"connection: close" in received) == (connection.startswith(b"close"))


def test_many_upgrades_in_one_packet_are_answered(worker: Running):
    """Each is read again, none within the other."""
    request = b"GET /health/live HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n"

    assert statuses(send(worker, request * 600, answers=600)) == [200] * 600


@pytest.mark.parametrize("encoding", [b"gzip, chunked", b"gzip,chunked", b"gzip\r\ntransfer-encoding: chunked"])
def test_a_compressed_transfer_is_refused(worker: Running, encoding: bytes):
    """It would be read as if it were plain."""
    request = POST + b"transfer-encoding: " + encoding + b"\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)

    received = send(worker, request)

    assert statuses(received) == [415]
    assert b'"code":"unsupported_encoding"' in received


def test_http_1_0_needs_no_host(worker: Running):
    """As it always was."""
    assert statuses(send(worker, b"GET /health/live HTTP/1.0\r\n\r\n")) == [200]


def test_requests_may_follow_an_upgrade_that_is_not_made(worker: Running):
    """In the same connection, also in the same packet."""
    request = POST + b"connection: upgrade\r\nupgrade: websocket\r\n" + LENGTH + b"\r\n" + BODY

    assert statuses(send(worker, request + GOOD + request, answers=3)) == [200, 200, 200]


def test_a_client_that_closes_its_half_is_answered(worker: Running):
    """Once, and for each request it has sent; half a request gets nothing."""
    assert statuses(send(worker, GOOD, half_close=True)) == [200]
    assert statuses(send(worker, GOOD * 3, half_close=True)) == [200, 200, 200]
    assert statuses(send(worker, GOOD[:-1], half_close=True)) == []


def test_what_follows_a_request_does_not_take_its_answer(worker: Running):
    """Rubbish behind a good request ends the connection, after the good answer."""
    received = send(worker, GOOD + b"\x00rubbish")

    assert statuses(received) == [200]
    assert b"connection: close" in received


@pytest.mark.parametrize(
    "endless",
    [
        b"a" * 600_000,
        b"x: " + b"a" * 600_000,
        b"".join(b"x%d: a\r\n" % number for number in range(60_000)),
        b"a:\r\n" * 3_000,
    ],
    ids=["line", "header", "headers", "crumbs"],
)
def test_a_head_without_end_is_refused(worker: Running, endless: bytes):
    """It is neither kept nor read to its end."""
    request = b"GET /" + endless if endless[:2] == b"aa" else POST + endless
    with connect(worker) as client:
        for start in range(0, len(request), 1 << 14):
            try:
                client.sendall(request[start : start + (1 << 14)])
            except OSError:
                break
        received = client.recv(1 << 16)

    assert statuses(received) == [431]
    assert b'"code":"headers_too_large"' in received


@pytest.mark.parametrize(
    "head",
    [b"".join(b"x%d: a\r\n" % number for number in range(300)), b"cookie: " + b"a" * 70_000 + b"\r\n"],
    ids=["headers", "bytes"],
)
def test_a_head_in_one_piece_has_the_same_bounds(worker: Running, head: bytes):
    """Whole before anybody could have looked at it; a request before it is answered."""
    request = POST + head + LENGTH + b"\r\n" + BODY

    assert statuses(send(worker, request)) == [431]
    assert statuses(send(worker, GOOD + request)) == [200]


def test_a_body_in_crumbs_in_one_piece_is_refused(worker: Running):
    """Also where it arrives at once."""
    request = POST + b"transfer-encoding: chunked\r\n\r\n" + b"1\r\n \r\n" * 10_001 + b"0\r\n\r\n"

    assert statuses(send(worker, request)) == [413]


def test_a_body_in_crumbs_is_refused(worker: Running):
    """Chunks of a byte each cost far more than they bring; a few thousand are read."""

    def crumbs(number: int) -> bytes:
        chunks = b"1\r\n \r\n" * number + b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
        return POST + b"transfer-encoding: chunked\r\n\r\n" + chunks

    few, many = crumbs(2_000), crumbs(300_000)

    assert statuses(send(worker, few, few, answers=2)) == [200, 200]
    with connect(worker) as client:
        with contextlib.suppress(OSError):
            client.sendall(many)
        received = client.recv(1 << 16)
    assert statuses(received) == [413]


def test_headers_of_a_usual_length_are_read(worker: Running):
    """Long cookies in several pieces, then a body in one with the end of the head."""
    head = POST + b"cookie: " + b"a" * 30_000

    assert statuses(send(worker, head, b"b" * 20_000 + b"\r\n" + LENGTH + b"\r\n" + BODY)) == [200]


def answer_when_it_comes(client: socket.socket) -> bytes:
    """The first of what comes back."""
    return client.recv(1 << 16)


def test_half_requests_end_after_a_while(worker: Running):
    """Half a body, half a head, and a byte now and then: 408, some seconds after the first byte."""
    halves = [connect(worker) for _ in range(5)]
    for half in halves[:4]:
        half.sendall(POST + LENGTH + b"\r\n" + BODY[:-1])
    halves[4].sendall(b"POST /pre")
    began = time.monotonic()

    while time.monotonic() - began < REQUEST_SECONDS - 1.0:
        halves[4].sendall(b"d")
        time.sleep(0.2)
    received = [answer_when_it_comes(half) for half in halves]

    assert time.monotonic() - began > REQUEST_SECONDS - 0.5
    assert [statuses(answer) for answer in received] == [[408]] * 5
    assert all(b'"code":"request_timeout"' in answer for answer in received)
    assert "Traceback" not in worker.log_text()
    for half in halves:
        half.close()


@pytest.mark.parametrize("begin", [b"", GOOD], ids=["at-once", "after-an-answer"])
def test_blank_lines_are_no_reason_to_stay(repository: Path, tmp_path: Path, begin: bytes):
    """They begin no request: the connection is as idle as without them, also when the service ends."""
    options = ("--repository", str(repository), "--shutdown-seconds", "3600")
    for keep_alive_seconds in ("1", "3600"):
        log = tmp_path / keep_alive_seconds
        with (
            running_service(log, *options, "--keep-alive-seconds", keep_alive_seconds) as running,
            connect(running) as client,
        ):
            client.sendall(begin)
            received = b""
            while begin and not received.endswith(b"}"):
                received += answer_when_it_comes(client)
            client.sendall(b"\r\n")
            time.sleep(0.1)
            if keep_alive_seconds == "1":
                assert client.recv(1) == b""
            else:
                assert running.stop() == 0


class Siege(threading.Thread):
    """Holds many halves of a request open, each opened again as soon as the service ends it."""

    def __init__(self, running: Running, number: int, half: bytes) -> None:
        super().__init__()
        self.running, self.half = running, half
        self.selector = selectors.DefaultSelector()
        self.ended: list[int] = []
        self.stopping = False
        for _ in range(number):
            self.open()

    def open(self) -> None:
        client = connect(self.running)
        client.sendall(self.half)
        self.selector.register(client, selectors.EVENT_READ)

    def run(self) -> None:
        while not self.stopping:
            for key, _ in self.selector.select(0.1):
                client = key.fileobj
                assert isinstance(client, socket.socket)
                with contextlib.suppress(ConnectionResetError):  # ended while it was still sending
                    self.ended += statuses(client.recv(1 << 16))
                self.selector.unregister(client)
                client.close()
                self.open()

    def stop(self) -> None:
        self.stopping = True
        self.join()
        for key in list(self.selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self.selector.close()


def test_half_requests_keep_nobody_out(worker: Running):
    """Fifty times as many halves of bodies as may be in flight, for longer than a half may live, and each comes back
    when it is ended: every other caller is answered with scores."""
    siege = Siege(worker, 200, POST + LENGTH + b"\r\n" + BODY[:-1])
    siege.start()
    began = time.monotonic()
    try:
        answered = []
        while time.monotonic() - began < REQUEST_SECONDS + 1 or not siege.ended:
            answered.append(worker.request("POST", "/predict", request_of(1)).status)
            time.sleep(0.01)
            assert time.monotonic() - began < PATIENCE_SECONDS
    finally:
        siege.stop()

    assert set(answered) == {200}
    assert set(siege.ended) == {408}


def test_half_bodies_hold_no_more_memory_than_their_bound(repository: Path, tmp_path: Path):
    """What is held of them altogether is bounded: for one more, the one that has been arriving longest is ended at
    once."""
    limit = 1 << 10
    half = POST + b"content-length: %d\r\n\r\n" % limit + b" " * (limit - 1)
    log = tmp_path / "log"
    with (
        running_service(log, "--repository", str(repository), "--max-body-bytes", str(limit)) as running,
        contextlib.ExitStack() as stack,
    ):
        clients = [stack.enter_context(connect(running)) for _ in range(MAX_ARRIVING_BODIES + 10)]
        began = time.monotonic()
        for client in clients:
            client.sendall(half)
        first = answer_when_it_comes(clients[0])
        took = time.monotonic() - began
        last, scores = clients[-1], running.request("POST", "/predict", request_of(1))
        last.sendall(b" ")
        whole = answer_when_it_comes(last)

    assert statuses(first) == [408]
    assert took < REQUEST_SECONDS
    assert scores.status == 200
    assert statuses(whole) == [400]  # a body of blanks, but read to its end


class Half:
    """Stands for a connection with half a request."""

    def __init__(self) -> None:
        self.is_ended = False

    def lose_patience(self) -> None:
        self.is_ended = True


def test_the_request_that_has_been_arriving_longest_makes_room():
    """By number and by bytes; one that is whole holds nothing any more."""
    arriving = Arriving(max_requests=3, max_bytes=100)
    one, two, three, four, five = halves = [Half() for _ in range(5)]

    def ended() -> list[bool]:
        return [half.is_ended for half in halves]

    for half in (one, two, three):
        arriving.add(half, 10)  # type: ignore[arg-type]
    arriving.remove(two)  # type: ignore[arg-type]
    arriving.add(four, 10)  # type: ignore[arg-type]
    assert not any(ended())

    arriving.add(five, 10)  # type: ignore[arg-type]
    assert ended() == [True, False, False, False, False]

    arriving.add(four, 71)  # type: ignore[arg-type]
    assert ended() == [True, False, True, False, False]


def test_half_a_body_does_not_hold_up_the_end(repository: Path, tmp_path: Path):
    """SIGTERM waits for it no longer than for any request, not for as long as it waits for an answer."""
    options = ("--repository", str(repository), "--shutdown-seconds", "3600")
    with running_service(tmp_path / "log", *options) as running, connect(running) as client:
        client.sendall(POST + LENGTH + b"\r\n{")
        time.sleep(0.2)

        code = running.stop()

        assert code == 0
        assert "Traceback" not in running.log_text()


def test_two_programs_on_one_port(repository: Path, tmp_path: Path):
    """Started together, before either listens: one serves, the other says so and ends with 2."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    options = ("--repository", str(repository), "--port", port)
    with (
        running_service(tmp_path / "one", *options, wait=False) as one,
        running_service(tmp_path / "two", *options, wait=False) as two,
    ):
        wait_for(lambda: one.process.poll() is not None or two.process.poll() is not None, "one of them ends")
        ended, other = (one, two) if one.process.poll() is not None else (two, one)
        wait_for(lambda: "listens on" in other.log_text(), "the other serves")

        assert ended.process.wait(1) == 2
        assert re.search(
            f"port {port}: Address already in use|another program listens on port {port}", ended.log_text()
        )
        assert other.stop() == 0
