"""The generator: what it counts, what it refuses to count, and that it costs little."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from benchmarks.load import LoadError, answer_length, ask_once, closed_loop, http_request

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@contextmanager
def server(answer: Callable[[socket.socket, bytes], object]) -> Iterator[int]:
    """A server on a port of its own that hands each received request to `answer`; a thread a connection."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(client: socket.socket) -> None:
        with client:
            while True:
                try:
                    received = client.recv(1 << 16)
                    if not received or answer(client, received) == "close":
                        return
                except OSError:
                    return

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(client,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        listener.close()


def test_a_request_goes_out_as_http_with_its_length():
    assert http_request("/predict", b"{}") == (
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
    )


@pytest.mark.parametrize(
    ("received", "length"),
    [
        (b"", None),
        (b"HTTP/1.1 200 OK\r\ncontent-le", None),
        (OK, len(OK)),
        (OK[:-1], len(OK)),
        (b"HTTP/1.1 200 OK\r\nserver: x\r\nCONTENT-LENGTH:7\r\ndate: y\r\n\r\n", 57 + 7),
    ],
)
def test_the_end_of_an_answer_is_found_wherever_the_packets_break(received: bytes, length: int | None):
    """From its head alone, whatever the case of the header."""
    assert answer_length(received) == length


@pytest.mark.parametrize(
    "received", [b"HTTP/1.1 429 Too Many Requests\r\n\r\n", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"]
)
def test_an_answer_that_is_no_score_is_never_counted(received: bytes):
    """A refusal is quick: counting it would make an overloaded service look fast."""
    with pytest.raises(LoadError):
        answer_length(received)


def test_every_connection_waits_for_its_answer_before_it_asks_again():
    """Closed loop: with an answer that takes 20 ms, two connections ask about a hundred times a second."""
    open_requests: list[int] = []

    def slowly(client: socket.socket, _request: bytes) -> None:
        open_requests.append(1)
        time.sleep(0.02)
        client.sendall(OK[:20])
        client.sendall(OK[20:])

    with server(slowly) as port:
        load = closed_loop(port, [http_request("/", b"1"), http_request("/", b"2")], connections=2, seconds=0.5)

    assert len(load.latency_ms) == len(open_requests)
    assert 10 <= len(load.latency_ms) <= 52
    assert load.latency_ms.min() >= 20
    assert load.requests_per_second == pytest.approx(len(load.latency_ms) / load.seconds)
    assert load.generator_cpu_seconds < 0.5 * load.seconds


def test_requests_are_sent_round_and_round_in_order():
    """Every distinct request gets its share of the run."""
    seen: list[bytes] = []

    def note(client: socket.socket, request: bytes) -> None:
        seen.append(request[-1:])
        client.sendall(OK)

    with server(note) as port:
        closed_loop(port, [http_request("/", body) for body in (b"a", b"b", b"c")], connections=1, seconds=0.05)

    assert len(seen) > 6
    assert b"".join(seen[:6]) == b"abcabc"


def test_a_connection_that_is_closed_ends_the_run():
    """Half a result is no result."""
    with server(lambda client, request: "close") as port, pytest.raises(LoadError, match="closed"):
        closed_loop(port, [http_request("/", b"")], connections=1, seconds=0.2)


def test_one_answer_can_be_read_whole():
    """In two pieces, with a body that looks like a head."""

    def answer(client: socket.socket, _request: bytes) -> None:
        client.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\nab")
        time.sleep(0.01)
        client.sendall(b"\r\n\r\ncd")

    with server(answer) as port:
        assert ask_once(port, http_request("/", b"")) == b"ab\r\n\r\ncd"
