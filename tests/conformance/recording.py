"""What clients really send: a proxy that takes it down, so that tests can replay it where no client is installed."""

from __future__ import annotations

import base64
import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

LONGEST_BODY = 2000


class Recorder:
    """Passes connections on to a service, and keeps the first request of each kind: by method, path and headers."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.client = ""
        self.found: dict[tuple[object, ...], dict[str, Any]] = {}
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def running(self) -> Iterator[Recorder]:
        """Accepts until the end."""
        threading.Thread(target=self._accept, daemon=True).start()
        try:
            yield self
        finally:
            self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._to))
                threading.Thread(target=self._pass_on, args=(client, server, True), daemon=True).start()
                threading.Thread(target=self._pass_on, args=(server, client, False), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, is_client: bool) -> None:
        pending = b""
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
                if is_client:
                    pending = self._take(pending + data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _take(self, pending: bytes) -> bytes:
        """Keeps every whole request; returns what is left."""
        while b"\r\n\r\n" in pending:
            head, _, rest = pending.partition(b"\r\n\r\n")
            first, *lines = head.decode("latin-1").split("\r\n")
            headers = [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
            size = int(dict(headers).get("content-length", "0"))
            if len(rest) < size:
                break
            self._keep(first, headers, rest[:size])
            pending = rest[size:]
        return pending

    def _keep(self, first: str, headers: list[tuple[str, str]], body: bytes) -> None:
        method, path, _ = first.split(" ")
        told = dict(headers)
        if len(body) > LONGEST_BODY or "authorization" in told:
            return
        codings = told.get("content-encoding"), told.get("accept-encoding")
        key = (self.client, method, path, *sorted(told), *codings, b"binary_data" in body)
        entry = {
            "client": self.client,
            "method": method,
            "path": path,
            "headers": [(name, value) for name, value in headers if name != "host"],
            "body": base64.b64encode(body).decode(),
        }
        with self._lock:
            self.found.setdefault(key, entry)
