"""A closed-loop HTTP generator that costs little: ready-made bytes out, the end of the answer found, nothing parsed.

Each of C connections sends its next request when its last answer is complete, so what is measured is a service at
capacity with C callers (no statement about a service that is overloaded: that needs an open loop). One thread, raw
sockets, epoll. A Python HTTP client would cost more than the service under test; what this one costs is measured in
each run of `benchmarks/` against a server that does nothing.
"""

from __future__ import annotations

import gc
import select
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_END_OF_HEAD = b"\r\n\r\n"
_LENGTH = b"content-length:"
PATIENCE_SECONDS = 30.0


class LoadError(Exception):
    """The server answered something else than 200, closed a connection, or fell silent."""


@dataclass(frozen=True)
class Load:
    """What one run of the generator saw."""

    latency_ms: NDArray[np.float64]
    """Of each answered request, from its first byte sent to its last byte received."""
    seconds: float
    generator_cpu_seconds: float

    @property
    def requests_per_second(self) -> float:
        return len(self.latency_ms) / self.seconds


def http_request(path: str, body: bytes) -> bytes:
    """A POST as it goes over the wire."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return head.encode() + _END_OF_HEAD + body


def answer_length(received: bytes | bytearray) -> int | None:
    """Bytes that the whole answer has, or None while its head is incomplete. `LoadError` unless it is a 200."""
    end = received.find(_END_OF_HEAD)
    if end < 0:
        return None
    if not received.startswith(b"HTTP/1.1 200"):
        raise LoadError(f"expected 200, got {bytes(received[:300])!r}")
    head = bytes(received[:end]).lower()
    at = head.find(_LENGTH)
    if at < 0:
        raise LoadError("expected an answer with a content-length")
    stop = head.find(b"\r\n", at)
    length = int(head[at + len(_LENGTH) : stop if stop >= 0 else None])
    return end + len(_END_OF_HEAD) + length


def ask_once(port: int, request: bytes) -> bytes:
    """The body of one answer, on a connection of its own."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECONDS) as connection:
        connection.sendall(request)
        received = bytearray()
        while (length := answer_length(received)) is None or len(received) < length:
            piece = connection.recv(1 << 18)
            if not piece:
                raise LoadError(f"the server closed the connection after {len(received)} bytes")
            received += piece
    return bytes(received[received.find(_END_OF_HEAD) + len(_END_OF_HEAD) :])


def closed_loop(port: int, requests: Sequence[bytes], connections: int, seconds: float) -> Load:
    """Sends `requests` round and round on `connections` connections for `seconds`, then lets the last answers come."""
    sockets = [socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECONDS) for _ in range(connections)]
    latencies: list[int] = []
    clock, cycle = time.perf_counter_ns, _cycle(requests)
    poll = select.epoll()
    try:
        by_number = {one.fileno(): one for one in sockets}
        sent = dict.fromkeys(by_number, 0)
        received = {number: bytearray() for number in by_number}
        for one in sockets:
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            poll.register(one.fileno(), select.EPOLLIN)
        gc.disable()
        cpu, began = time.process_time(), clock()
        until = began + int(seconds * 1e9)
        for number, one in by_number.items():
            sent[number] = clock()
            one.sendall(cycle())
        waiting = connections
        while waiting:
            events = poll.poll(PATIENCE_SECONDS)
            if not events:
                raise LoadError(f"no answer within {PATIENCE_SECONDS} s")
            for number, _ in events:
                one = by_number[number]
                piece = one.recv(1 << 18)
                if not piece:
                    raise LoadError("the server closed a connection while an answer was due")
                buffer = received[number]
                buffer += piece
                length = answer_length(buffer)
                if length is None or len(buffer) < length:
                    continue
                now = clock()
                latencies.append(now - sent[number])
                buffer.clear()
                if now < until:
                    sent[number] = clock()
                    one.sendall(cycle())
                else:
                    waiting -= 1
        return Load(np.array(latencies) / 1e6, (clock() - began) / 1e9, time.process_time() - cpu)
    finally:
        gc.enable()
        poll.close()
        for one in sockets:
            one.close()


def _cycle(requests: Sequence[bytes]) -> Callable[[], bytes]:
    place = -1

    def following() -> bytes:
        nonlocal place
        place += 1
        if place == len(requests):
            place = 0
        return requests[place]

    return following
