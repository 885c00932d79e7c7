"""The open loop, against a server that knows what it answered; and a catalogue made of a workload."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks.load import LoadError
from benchmarks.overload import OpenLoad, open_loop, row, turn
from benchmarks.variants import with_catalogue
from benchmarks.workload import make_requests
from models.bundle import read_bundle
from service.catalogue.lines import read_catalogue
from tests.models.tiny_bundle import write_tiny_bundle

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
REFUSED = b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 2\r\n\r\n{}"
FAILED = b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 2\r\n\r\n{}"


class Answering(socketserver.StreamRequestHandler):
    """Answers requests of one byte: `1` is scored, `2` refused, `3` fails."""

    disable_nagle_algorithm = True

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):
            while request := self.rfile.read(1):
                reply = {b"1": OK, b"2": REFUSED, b"3": FAILED}[request]
                self.wfile.write(reply[:20])  # in two pieces
                self.wfile.write(reply[20:])


@pytest.fixture
def port() -> Iterator[int]:
    """Of a server that has a thread a connection, and ends when they have."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Answering) as server:
        accepting = threading.Thread(target=server.serve_forever, args=(0.01,))
        accepting.start()
        yield server.server_address[1]
        server.shutdown()
        accepting.join()


def test_a_refusal_costs_what_answers_do_not_explain():
    """Ten answers of 1 ms each and forty refusals in 10.4 ms of processor time: 10 us a refusal. Goodput is a share of
    capacity, and where nothing was refused there is no cost to tell."""
    seen = OpenLoad(np.full(10, 3.0), refused=40, seconds=0.01)

    overloaded = turn(seen, cpu=0.0104, capacity=1250.0, own=0.001)
    usual = turn(OpenLoad(np.full(10, 2.0), refused=0, seconds=0.01), cpu=0.01, capacity=1250.0, own=0.001)

    assert overloaded.goodput == pytest.approx(0.8)
    assert overloaded.refused == pytest.approx(0.8)
    assert overloaded.refusal_us == pytest.approx(10)
    assert row("| m", [overloaded], [usual]).endswith("| 3.00 | 3.00 | 1.50 (1.50-1.50) | 80% | 10 |")
    assert row("| m", [usual], [usual]).endswith("| 1.00 (1.00-1.00) | 0% |  |")


def test_an_open_loop_sends_every_request_and_tells_scores_from_refusals(port: int):
    """As many as the rate says, over few connections too; any other answer ends the measurement."""
    seen = open_loop(port, [b"1", b"1", b"2"], connections=3, rate=300, seconds=1.0)

    assert seen.refused == 100
    assert len(seen.latency_ms) == 200
    assert (seen.latency_ms > 0).all()
    assert seen.goodput < 300
    with pytest.raises(LoadError, match="expected 200 or 429"):
        open_loop(port, [b"3"], connections=1, rate=10, seconds=0.3)


def test_a_workload_said_by_ids_is_the_same_workload(tmp_path: Path):
    """Each id's line in the catalogue holds the candidate that it stands for."""
    bundle = read_bundle(write_tiny_bundle(tmp_path, "student"))
    requests = make_requests(bundle, 5, 4)

    body = with_catalogue({5: requests}, tmp_path / "ads.ndjson")

    _, _, text = (tmp_path / "ads.ndjson").read_bytes().partition(b"\n")
    lines = asyncio.run(read_catalogue(text)).lines
    for request in requests:
        ids = json.loads(body(request, "student"))["candidate_ids"]
        assert [json.loads(lines[id_][1])["candidate"] for id_ in ids] == request.candidates
