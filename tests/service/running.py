"""What tests share: requests that fit the tiny bundles, an application in this process, and one in real processes."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from service.app import Service, create_app
from service.settings import Settings
from tests.models.tiny_bundle import tiny_model

ROOT = Path(__file__).parents[2]

PATIENCE_SECONDS = 120.0
"""How long tests wait for what takes a moment on a quiet machine: processes that start while others use every core."""

TOKEN = "0123456789abcdef" * 2
"""Of the administrator."""

CONTEXT: dict[str, Any] = {"device": "phone", "hour": 13, "age": 30, "premium": True, "visited": ["x.org", "y.org"]}


def candidate(number: int) -> dict[str, Any]:
    """One candidate, another for each number."""
    return {"ad_id": f"a{number % 40}", "price": 0.5 * number, "campaign": number, "tags": ["sport", "film"]}


def request_of(*numbers: int, **members: Any) -> dict[str, Any]:
    """A request with these candidates."""
    return {"context": CONTEXT, "candidates": [candidate(number) for number in numbers], **members}


def as_columns(rows: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """Rows of one set of keys, as columns."""
    return {name: [row[name] for row in rows] for name in rows[0]}


def expected_pctr(request: dict[str, Any], bias: float = 0.0) -> list[float]:
    """What a tiny bundle with this bias answers, computed in numpy."""
    model = tiny_model(bias)
    encoder = model.encoder
    _, pctr = model.score(encoder.encode_context(request["context"]), encoder.encode_candidates(request["candidates"]))
    return [float(value) for value in pctr]


def make_app(repository: Path, experiments: Path | None = None, **settings: Any) -> Service:
    """An application that looks at the disk often, so that tests wait little."""
    return create_app(Settings(repository=repository, experiments=experiments, **{"poll_seconds": 0.02, **settings}))


def wait_until_ready(client: TestClient) -> None:
    """Returns once the golden rows have passed."""
    wait_for(lambda: client.get("/health/ready").status_code == 200, "the application is ready")


def wait_for(condition: Callable[[], bool], what: str, seconds: float = PATIENCE_SECONDS) -> None:
    """Returns as soon as `condition` holds; fails when it does not in time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError(f"waited {seconds} s in vain until {what}")


def metric(text: str, name: str, **labels: str) -> float:
    """The sum of the samples of that name whose labels agree; 0.0 where there is none."""
    total = 0.0
    for line in text.splitlines():
        match = re.fullmatch(r"([a-z_]+)(?:\{(.*)\})? (\S+)", line)
        if match is None or match[1] != name:
            continue
        found = dict(re.findall(r'(\w+)="([^"]*)"', match[2] or ""))
        if labels.items() <= found.items():
            total += float(match[3])
    return total


@dataclass
class Reply:
    """An answer, as it left the application."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


async def ask(
    app: Any,
    path: str,
    body: bytes = b"",
    *,
    method: str = "POST",
    headers: Sequence[tuple[str, str]] = (("content-type", "application/json"),),
    chunks: Sequence[bytes] | None = None,
    state: dict[str, Any] | None = None,
) -> Reply | None:
    """One request straight into an ASGI callable; None where it answered nothing."""
    waiting = list(chunks) if chunks is not None else [body]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if not waiting:
            return {"type": "http.disconnect"}
        part = waiting.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(waiting)}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in headers],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
        "state": state if state is not None else {},
    }
    await app(scope, receive, send)
    if not sent:
        return None
    headers_sent = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return Reply(sent[0]["status"], headers_sent, b"".join(part.get("body", b"") for part in sent[1:]))


@contextlib.asynccontextmanager
async def started(app: Service) -> AsyncIterator[Service]:
    """An application with its background tasks running and its models proven, in this event loop."""
    async with app.router.lifespan_context(app):
        await asyncio.wait_for(app.until_ready(), PATIENCE_SECONDS)
        yield app


def clean_environment(**variables: str) -> dict[str, str]:
    """The environment without anybody's RETORT_ variables."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RETORT_")}
    return {**kept, "PYTHONUNBUFFERED": "1", **variables}


@dataclass
class Running:
    """`python -m service` in processes of its own."""

    process: subprocess.Popen[str]
    log: Path
    port: int = 0
    out: list[str] = field(default_factory=list)

    def log_text(self) -> str:
        return self.log.read_text(encoding="utf-8")

    def connection(self) -> http.client.HTTPConnection:
        """A connection that is opened with its first request."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_SECONDS)

    def request(
        self, method: str, path: str, body: Any = None, connection: http.client.HTTPConnection | None = None
    ) -> Reply:
        """One request, over a connection of its own unless one is given."""
        own = connection is None
        connection = connection or self.connection()
        try:
            data = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
            connection.request(method, path, data, {"content-type": "application/json"})
            response = connection.getresponse()
            headers = {name.lower(): value for name, value in response.getheaders()}
            return Reply(response.status, headers, response.read())
        finally:
            if own:
                connection.close()

    def metrics(self) -> str:
        return self.request("GET", "/metrics").body.decode()

    def worker_pids(self) -> dict[int, int]:
        """Slot -> process, as the log tells; the latest of each slot."""
        found = re.findall(r"worker (\d+) started as process (\d+)", self.log_text())
        return {int(slot): int(pid) for slot, pid in found}

    def start_count(self) -> int:
        return self.log_text().count(" started as process ")

    def ready_count(self) -> int:
        return self.log_text().count(" is ready")

    def stop(self, number: int = signal.SIGTERM, seconds: float = PATIENCE_SECONDS) -> int:
        """Sends the signal and returns the exit code."""
        self.process.send_signal(number)
        return self.process.wait(seconds)


@contextlib.contextmanager
def running_service(
    log: Path,
    *options: str,
    wait: bool = True,
    cwd: Path = ROOT,
    python: str = sys.executable,
    own_group: bool = False,
    **variables: str,
) -> Iterator[Running]:
    """The real program on a free port, stopped at the end whatever happens; `own_group`: its processes are a group."""
    command = [python, "-m", "service", "--port", "0", "--poll-seconds", "0.1", "--drain-seconds", "0.3", *options]
    with log.open("w") as errors:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=cwd,
            env=clean_environment(**variables),
            process_group=0 if own_group else None,
        )
    running = Running(process, log)
    try:
        if wait:
            wait_for(
                lambda: "Retort listens on" in running.log_text() or process.poll() is not None,
                "the service listens",
            )
            found = re.search(r"Retort listens on http://\S+:(\d+)", running.log_text())
            assert found is not None, running.log_text()
            running.port = int(found[1])
        yield running
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(PATIENCE_SECONDS)
        if process.stdout is not None:
            process.stdout.close()
