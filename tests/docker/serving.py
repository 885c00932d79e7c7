"""Starts a server as its own process, asks it over HTTP, and stops it."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PATIENCE_SECONDS = 120.0
"""How long tests wait for what takes a moment on a quiet machine: processes that start while others use every core."""


def free_port() -> int:
    """A port that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ask(port: int, path: str, body: Mapping[str, Any] | bytes | None = None) -> tuple[int, bytes]:
    """(status, body) of a GET, or of a POST where there is something to send."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS)
    try:
        if body is None:
            connection.request("GET", path)
        else:
            payload = body if isinstance(body, bytes) else json.dumps(body).encode()
            connection.request("POST", path, payload, {"content-type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


@contextmanager
def running(
    command: Sequence[str], *, port: int, ready: str, log: Path, cwd: Path, environment: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """A server that answers 200 on `ready`; on the way out it gets SIGTERM and, where that does not end it, SIGKILL."""
    with (
        log.open("wb") as output,
        subprocess.Popen(command, cwd=cwd, env=dict(environment), stdout=output, stderr=output) as server,
    ):
        try:
            _wait_until_ready(server, port, ready, log)
            yield server
        finally:
            if server.poll() is None:
                server.send_signal(signal.SIGTERM)
            try:
                server.wait(timeout=PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                server.kill()


def _wait_until_ready(server: subprocess.Popen[bytes], port: int, path: str, log: Path) -> None:
    until = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < until:
        if server.poll() is not None:
            raise AssertionError(f"ended with {server.returncode} before it was ready:\n{log.read_text()}")
        try:
            if ask(port, path)[0] == 200:
                return
        except OSError:
            pass
        time.sleep(0.1)
    raise AssertionError(f"not ready within {PATIENCE_SECONDS} s:\n{log.read_text()}")
