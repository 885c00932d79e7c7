"""POST /predict answered inside the protocol: held beside the ASGI way byte for byte, over real sockets.

Whether a request went directly shows in nothing but speed; so each test that is about that path asks for it by the head
that is common, and for the other way by a header that makes it uncommon (`Expect`), and compares.
"""

import contextlib
import json
import random
import re
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.http.asgi import Answer
from service.http.direct import MAX_HEADS, Direct, Exchange
from service.scoring.admission import Admission
from tests.service.bundles import write_slow_ensemble
from tests.service.running import PATIENCE_SECONDS, Running, metric, request_of, running_service, wait_for
from tests.service.test_protocol import BODY, GOOD, POST, connect, send, statuses

COMMON = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
UNCOMMON = COMMON.replace(b"host: x\r\n", b"host: x\r\nexpect: 100-continue\r\n")
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


@pytest.fixture(scope="module")
def worker(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    log = tmp_path_factory.mktemp("direct") / "log"
    with running_service(log, "--repository", str(repository)) as running:
        yield running


def post(body: bytes, head: bytes = COMMON) -> bytes:
    return head % len(body) + body


def body_of(*numbers: int, **members: object) -> bytes:
    return json.dumps(request_of(*numbers, **members)).encode()


def answers(client: socket.socket, count: int) -> list[bytes]:
    """The next whole answers of a connection."""
    found: list[bytes] = []
    received = b""
    while len(found) < count:
        part = client.recv(1 << 16)
        assert part, f"closed after {len(found)} answers and {received!r}"
        received = (received + part).replace(CONTINUE, b"")
        while head := re.match(rb"HTTP/1\.1 .*?content-length: (\d+).*?\r\n\r\n", received, re.DOTALL):
            end = head.end() + int(head[1])
            if len(received) < end:
                break
            found.append(received[:end])
            received = received[end:]
    return found


def without_date(answer: bytes) -> bytes:
    return re.sub(rb"\r\ndate: [^\r]*", b"", answer)


BODIES = [
    body_of(1, 2, request_id="r", unit_id="u"),
    body_of(*range(40), request_id="r", arm="ensemble"),
    json.dumps(request_of(1, request_id="é" * 128, unit_id=7), separators=(",", ":")).encode(),
    b'{"candidates":{"ad_id":["a1"]},"request_id":"r"}',
    b"",
    b"{}",
    b"[1]",
    b'{"candidates":[{}],"request_id":"r","deadline_ms":0.0001}',
    b'{"candidates":[{"price":"x"}]}',
    b'{"candidates":[{}],"experiment":"nobody\'s"}',
    b'{"candidates":[{"ad_id":"\xff"}]}',
    b'{"candidates":[{}],"request_id":"r"} ',
]


@pytest.mark.parametrize("body", BODIES, ids=lambda body: repr(body[:40]))
def test_both_ways_answer_byte_for_byte_alike(worker: Running, body: bytes):
    """Status line, headers in their order, body: on a fresh connection, on a kept one, with a head that is known."""
    with connect(worker) as client:
        client.sendall(post(body, UNCOMMON))
        (expected,) = answers(client, 1)
        for _ in range(3):
            client.sendall(post(body))
            (got,) = answers(client, 1)

            assert without_date(got) == without_date(expected)
        assert b"\r\ndate: " in got


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"PUT", b"OPTIONS", b"DELETE"])
def test_other_methods_are_refused_as_ever(worker: Running, method: bytes):
    """405 with what is allowed; a HEAD without a body."""
    received = send(worker, method + b" /predict HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")

    assert statuses(received) == [405]
    assert b"allow: POST" in received
    assert (received.partition(b"\r\n\r\n")[2] == b"") == (method == b"HEAD")


HEADS = {
    "a query": (POST.replace(b"/predict ", b"/predict?a=b ") + b"content-length: %d\r\n\r\n", 200),
    "an absolute target": (POST.replace(b"/predict", b"http://x/predict") + b"content-length: %d\r\n\r\n", 200),
    "another type": (COMMON.replace(b"application/json", b"text/plain"), 415),
    "a charset": (COMMON.replace(b"application/json", b"application/json; charset=utf-8"), 200),
    "no type": (COMMON.replace(b"content-type: application/json\r\n", b""), 200),
    "a coding": (COMMON.replace(b"host: x\r\n", b"host: x\r\ncontent-encoding: br\r\n"), 415),
    "no host": (COMMON.replace(b"host: x\r\n", b""), 400),
    "two hosts": (COMMON.replace(b"host: x\r\n", b"host: x\r\nhost: x\r\n"), 400),
    "two lengths": (COMMON.replace(b"host: x\r\n", b"host: x\r\ncontent-length: 7\r\n"), 400),
    "smuggling": (COMMON.replace(b"host: x\r\n", b"host: x\r\ntransfer-encoding: chunked\r\n"), 400),
    "another case": (COMMON.replace(b"content-length", b"CONTENT-LENGTH").replace(b"host", b"Host"), 200),
    "HTTP/1.0": (COMMON.replace(b"HTTP/1.1", b"HTTP/1.0"), 200),
    "close": (COMMON.replace(b"host: x\r\n", b"host: x\r\nconnection: close\r\n"), 200),
    "a blank line before": (b"\r\n" + COMMON, 200),
}


@pytest.mark.parametrize("name", HEADS)
def test_a_head_means_what_it_says_the_first_time_and_the_third(worker: Running, name: str):
    """Also where the same head came before, and where a common one came just before on the same connection."""
    head, status = HEADS[name]
    for parts in ([post(BODY, head)], [GOOD, post(BODY, head)], [post(BODY, head)] * 3):
        received = send_in_turn(worker, parts)

        assert set(statuses(received)) <= {200, status}
        assert statuses(received)[-1] == status


def send_in_turn(worker: Running, parts: Sequence[bytes]) -> bytes:
    """Each when the one before is answered, as long as the connection is kept."""
    received = b""
    with connect(worker) as client:
        for part in parts:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                client.sendall(part)
                before = len(statuses(received))
                while len(statuses(received)) == before and (data := client.recv(1 << 16)):
                    received += data
                time.sleep(0.02)
    return received


def test_a_body_over_the_limit_is_refused_with_a_head_that_was_good(repository: Path, tmp_path: Path):
    """413 by its length, unread."""
    with running_service(tmp_path / "log", "--repository", str(repository), "--max-body-bytes", "1024") as running:
        assert statuses(send(running, post(BODY))) == [200]
        assert statuses(send(running, COMMON % 1025)) == [413]
        assert statuses(send(running, post(b" " * 1024))) == [400]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    requests=st.lists(
        st.tuples(st.integers(1, 5), st.sampled_from([COMMON, COMMON, UNCOMMON])), min_size=1, max_size=6
    ),
    seed=st.integers(0, 2**32),
    pieces=st.integers(1, 12),
)
def test_requests_in_a_pipeline_are_answered_in_order_however_they_are_cut(
    worker: Running, requests: list[tuple[int, bytes]], seed: int, pieces: int
):
    """Any number in one packet or a packet cut anywhere: each answer is its request's, in their order."""
    sent = b"".join(post(body_of(*range(n), request_id=f"r{i}"), head) for i, (n, head) in enumerate(requests))
    dice = random.Random(seed)
    cuts = sorted(dice.randrange(len(sent) + 1) for _ in range(pieces - 1))
    with connect(worker) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start, end in zip([0, *cuts], [*cuts, len(sent)], strict=True):
            client.sendall(sent[start:end])
            if dice.random() < 0.5:
                time.sleep(0.001)
        found = [json.loads(answer.partition(b"\r\n\r\n")[2]) for answer in answers(client, len(requests))]

    assert [answer["request_id"] for answer in found] == [f"r{i}" for i in range(len(requests))]
    assert [len(answer["pctr"]) for answer in found] == [n for n, _ in requests]


def test_every_connection_gets_its_own_answers(worker: Running):
    """Forty callers at once, each with requests like nobody else's: no answer is swapped, none lost."""
    faults: list[str] = []

    def call(number: int) -> None:
        with connect(worker) as client:
            for turn in range(30):
                rows = [(number * 7 + turn + i) % 40 for i in range(1 + (number + turn) % 9)]
                request_id = f"{number}-{turn}"
                client.sendall(post(body_of(*rows, request_id=request_id, arm="student")))
                answer = json.loads(answers(client, 1)[0].partition(b"\r\n\r\n")[2])
                if answer["request_id"] != request_id or len(answer["pctr"]) != len(rows):
                    faults.append(request_id)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert faults == []


def test_clients_that_leave_take_their_places_with_them(tmp_path: Path):
    """Forty requests whose clients hang up at once, with room for two: whoever comes next is answered, and the service
    ends without waiting for anybody."""
    root = tmp_path / "repository"
    root.mkdir()
    write_slow_ensemble(root)
    options = ("--repository", str(root), "--max-in-flight", "2")
    with running_service(tmp_path / "log", *options) as running:
        for number in range(40):
            with connect(running) as client:
                client.sendall(post(body_of(1, request_id=str(number))))
                if number % 2:
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        wait_for(lambda: running.request("POST", "/predict", request_of(1)).status == 200, "there is room again")

        assert running.stop() == 0
        assert "Traceback" not in running.log_text()


def test_beyond_the_cap_a_known_head_is_refused_and_the_connection_kept(tmp_path: Path):
    """429 with Retry-After, counted as an answer of the route; the next request on that connection is scored."""
    root = tmp_path / "repository"
    root.mkdir()
    write_slow_ensemble(root)
    with (
        running_service(tmp_path / "log", "--repository", str(root), "--max-in-flight", "1") as running,
        contextlib.ExitStack() as stack,
    ):
        clients = [stack.enter_context(connect(running)) for _ in range(12)]
        for client in clients:  # the head is known, and each connection accepted
            client.sendall(post(BODY))
            answers(client, 1)
        for client in clients:
            client.sendall(post(BODY))
        found = [answers(client, 1)[0] for client in clients]
        for client in clients:
            client.sendall(post(BODY))
            assert answers(client, 1)[0].startswith(b"HTTP/1.1 200 ")
        text = running.metrics()

    refused = [answer for answer in found if answer.startswith(b"HTTP/1.1 429 ")]
    assert refused
    assert all(b"\r\nretry-after: 1\r\n" in answer and b"connection: close" not in answer for answer in refused)
    assert metric(text, "retort_requests_total", route="/predict", code="429") == len(refused)
    assert metric(text, "retort_refused_total", reason="overloaded") == len(refused)
    assert metric(text, "retort_requests_total", route="/predict", code="200") == 36 - len(refused)


def test_an_idle_connection_ends_and_a_busy_one_does_not(repository: Path, tmp_path: Path):
    """Idle time counts from the last answer, also where only this path answered since the connection was made."""
    options = ("--repository", str(repository), "--keep-alive-seconds", "2")
    with running_service(tmp_path / "log", *options) as running, connect(running) as busy, connect(running) as idle:
        idle.sendall(post(BODY))
        answers(idle, 1)
        for _ in range(12):
            busy.sendall(post(BODY))
            assert len(answers(busy, 1)) == 1
            time.sleep(0.4)
        idle.settimeout(PATIENCE_SECONDS)
        assert idle.recv(1) == b""
        asked = time.monotonic()
        assert busy.recv(1) == b""

        assert time.monotonic() - asked > 0.6


def test_while_draining_answers_ask_the_client_to_go(repository: Path, tmp_path: Path):
    """A request on a kept connection with a known head gets its answer, and `Connection: close` with it."""
    options = ("--repository", str(repository), "--drain-seconds", "3")
    with running_service(tmp_path / "log", *options) as running, connect(running) as client:
        client.sendall(post(BODY))
        answers(client, 1)
        running.process.terminate()
        wait_for(lambda: "draining" in running.log_text(), "the service drains")
        client.sendall(post(BODY))
        (last,) = answers(client, 1)

        assert last.startswith(b"HTTP/1.1 200 ")
        assert b"\r\nconnection: close\r\n" in last
        assert client.recv(1) == b""
        assert running.process.wait(PATIENCE_SECONDS) == 0


class Pretender:
    """A predictor that is never full and keeps what it was given."""

    plan = object()
    max_body_bytes = 100
    admission = Admission(1, lambda: 0)


def test_heads_are_known_within_bounds():
    """A thousand of them, none longer than two kilobytes: clients with something new in each cost no memory."""
    direct = Direct(Pretender(), lambda: False)  # type: ignore[arg-type]
    for number in range(3 * MAX_HEADS):
        direct.learn(b"%d" % number, 7)
    direct.learn(b"x" * 3000, 7)

    assert len(direct._lengths) <= MAX_HEADS
    assert direct.known_length(b"%d" % (3 * MAX_HEADS - 1)) == 7
    assert direct.known_length(b"x" * 3000) is None


def test_an_answer_that_nobody_waits_for_is_not_written():
    """Written once where the client is there, and never after it has left."""
    written: list[Answer] = []
    here, gone = (Exchange(0, lambda _, answer: written.append(answer)) for _ in range(2))
    gone.abandon()

    for exchange in (here, gone):
        exchange.answer(Answer(200, b"{}"))

    assert written == [Answer(200, b"{}")]
