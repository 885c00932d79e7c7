"""The generator of every benchmark, which is that of `python -m service bench`; and a server that does nothing, to tell
what the generator itself costs."""

from __future__ import annotations

import select
import socket
from multiprocessing.connection import Connection

from benchmarks.machine import pin
from service.bench.load import (
    PATIENCE_SECONDS,
    Load,
    LoadError,
    answer_length,
    ask_once,
    closed_loop,
    http_request,
)

__all__ = [
    "PATIENCE_SECONDS",
    "Load",
    "LoadError",
    "answer_length",
    "answer_nothing",
    "ask_once",
    "closed_loop",
    "http_request",
]

_END_OF_HEAD = b"\r\n\r\n"


def answer_nothing(core: int | None, report: Connection) -> None:
    """A server that reads a request to its end and answers a ready-made line: what is left is the generator's cost,
    the kernel's and this loop's. Runs in a process of its own until it is terminated."""
    pin(core)
    answer = b'HTTP/1.1 200 OK\r\ncontent-length: 11\r\n\r\n{"pctr":[]}'
    with socket.create_server(("127.0.0.1", 0)) as server:
        report.send(server.getsockname()[1])
        poll = select.epoll()
        poll.register(server.fileno(), select.EPOLLIN)
        clients: dict[int, tuple[socket.socket, bytearray]] = {}
        while True:
            for number, _ in poll.poll():
                if number == server.fileno():
                    client, _ = server.accept()
                    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    clients[client.fileno()] = (client, bytearray())
                    poll.register(client.fileno(), select.EPOLLIN)
                    continue
                client, buffer = clients[number]
                piece = client.recv(1 << 18)
                if not piece:
                    poll.unregister(number)
                    client.close()
                    del clients[number]
                    continue
                buffer += piece
                end = buffer.find(_END_OF_HEAD)
                at = buffer.find(b"Content-Length: ")
                if end >= 0 and len(buffer) >= end + len(_END_OF_HEAD) + int(buffer[at + 16 : end].split(b"\r\n")[0]):
                    buffer.clear()
                    client.sendall(answer)
