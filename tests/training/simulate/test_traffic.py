"""The open loop against a server by script: what is shown, what is fed back, and that nothing is lost in silence."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import numpy as np
import pytest

from training.errors import TrainingError
from training.simulate.auctions import Auction
from training.simulate.connection import Address
from training.simulate.run import look_at
from training.simulate.tally import Tally
from training.simulate.traffic import Play, play

Answer = Callable[[str, Any, int], Awaitable[tuple[int, Any] | None]]
"""(path, body, how many came before to this path) -> (status, body), or None to hang up."""
TRUTH = np.array([0.2, 0.9, 0.4])
SCORES = [0.1, 0.3, 0.2]


def auction(number: int) -> Auction:
    """Every second one is clicked whatever is shown, the others never."""
    return Auction(
        request_id=f"r{number}",
        unit=f"u{number % 7}",
        body=json.dumps({"request_id": f"r{number}", "unit_id": f"u{number % 7}"}).encode(),
        truth=TRUTH,
        chance=0.0 if number % 2 else 0.99,
        gap=1.0,
        delay=1.0,
    )


async def blocks(number: int) -> list[Auction]:
    return [auction(8 * number + place) for place in range(8)]


class Server:
    """Answers by script, keeps what it was sent."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.received: dict[str, list[Any]] = {}
        self.connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                path = head.split(b" ")[1].decode()
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                body = json.loads(await reader.readexactly(length) or b"null")
                came = self.received.setdefault(path, [])
                came.append(body)
                answer = await self._answer(path, body, len(came) - 1)
                if answer is None:
                    return
                content = answer[1] if isinstance(answer[1], bytes) else json.dumps(answer[1]).encode()
                writer.write(f"HTTP/1.1 {answer[0]} X\r\ncontent-length: {len(content)}\r\n\r\n".encode() + content)
                await writer.drain()
        except (EOFError, ConnectionError):
            return
        finally:
            writer.close()

    @property
    def events(self) -> list[dict[str, Any]]:
        return [event for batch in self.received.get("/feedback", []) for event in batch]


async def scoring(path: str, body: Any, before: int) -> tuple[int, Any]:
    """A service that is always well."""
    if path == "/feedback":
        return 200, {"accepted": len(body), "duplicates": 0}
    arm = "student" if int(body["unit_id"][1:]) % 2 else "ensemble"
    return 200, {"experiment": "e", "arm": arm, "model": arm, "version": 3, "pctr": SCORES}


def simulated(answer: Answer, stop_at: int | None = None, **settings: Any) -> tuple[Tally, Server]:
    """What was counted, and what the server got."""

    async def run() -> tuple[Tally, Server]:
        server, tally, stop = Server(answer), Tally(), asyncio.Event()
        async with AsyncExitStack() as stack:
            listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
            stack.push_async_callback(listening.wait_closed)
            stack.callback(listening.close)
            address = Address("127.0.0.1", listening.sockets[0].getsockname()[1], "", False)
            plain = {"rate": 2000.0, "requests": 40, "connections": 3, "click_delay_seconds": 0.01}
            plain |= {"patience_ms": 60_000.0}

            async def watched(number: int) -> list[Auction]:
                if number == stop_at:
                    stop.set()
                return await blocks(number)

            await play(Play(address, **(plain | settings)), watched, tally, stop, lambda line: None)
        return tally, server

    return asyncio.run(run())


def test_the_best_is_shown_and_clicked_as_its_truth_says():
    """One impression an answer, of the highest score; a click where chance has it, once each, in time."""
    tally, server = simulated(scoring)

    assert (tally.arrived, tally.answered, tally.impressions, tally.clicks) == (40, 40, 40, 20)
    told = [(event["request_id"], event["candidate"], event["event"]) for event in server.events]
    assert sorted(told) == sorted(
        [(f"r{n}", 1, "impression") for n in range(40)] + [(f"r{n}", 1, "click") for n in range(1, 40, 2)]
    )
    assert tally.accepted == 60
    impressions = {event["request_id"]: event["time"] for event in server.events if event["event"] == "impression"}
    assert all(e["time"] > impressions[e["request_id"]] for e in server.events if e["event"] == "click")


def test_the_truth_of_an_arm_is_the_mean_probability_of_what_it_showed():
    """And the lift is over the experiment's control."""
    tally, _ = simulated(scoring, harm="student")
    found = tally.to_json({"e": "ensemble"})
    arms = {arm["arm"]: arm for arm in found["arms"]}

    assert arms["ensemble"]["expected_ctr"] == pytest.approx(TRUTH[1])
    assert arms["student"]["expected_ctr"] == pytest.approx(TRUTH[0]), "the lowest score was shown"
    assert arms["student"]["expected_lift"] == pytest.approx(0.2 / 0.9 - 1)
    assert arms["ensemble"]["expected_lift"] is None
    assert arms["student"]["models"] == {"student/3": arms["student"]["impressions"]}
    assert found["expected_ctr"]["at_random"] == pytest.approx(TRUTH.mean())
    assert sum(arm["impressions"] for arm in arms.values()) == 40
    assert sum(arm["units"] for arm in arms.values()) == 7


def test_everything_that_is_no_answer_is_counted_and_shows_nothing():
    """Overload, deadline, failure, an answer that is none, and a server that hangs up."""
    bad = [(429, {}), (504, {}), (500, {"code": "x"}), (200, b"hello"), (200, {"pctr": [1]}), None]

    async def answer(path: str, body: Any, before: int) -> tuple[int, Any] | None:
        return bad[before] if path == "/predict" and before < len(bad) else await scoring(path, body, before)

    tally, server = simulated(answer, connections=1)

    assert (tally.refused, tally.deadline) == (1, 1)
    # Whoever hangs up on a connection that was open is asked once more.
    assert dict(tally.errors) == {"500": 1, "answer": 2}
    assert tally.answered == tally.impressions == 40 - 5
    assert tally.first_error == '500: {"code": "x"}'
    assert server.connections == 3, "of the caller, the one after it was closed, and of feedback"


def test_a_service_that_is_gone_is_counted_too():
    async def answer(path: str, body: Any, before: int) -> None:
        return None

    tally, _ = simulated(answer)

    assert dict(tally.errors) == {"connection": 40}
    assert tally.to_json({})["arms"] == []


def test_a_late_answer_shows_nothing():
    """The auction has closed. What did not even leave in time is counted by itself."""

    async def answer(path: str, body: Any, before: int) -> tuple[int, Any]:
        await asyncio.sleep(0.05)
        return await scoring(path, body, before)

    tally, server = simulated(answer, patience_ms=10.0)

    assert tally.late + tally.unsent == 40
    assert (tally.answered, server.events) == (0, [])


def test_feedback_is_offered_again_until_it_is_acknowledged():
    """Refused, and then cut off: which the service may have had, so it is not counted as lost."""

    async def answer(path: str, body: Any, before: int) -> tuple[int, Any] | None:
        if path == "/feedback" and before < 3:
            return [(503, {}), (429, {}), None][before]
        return await scoring(path, body, before)

    tally, server = simulated(answer)

    assert len({(event["request_id"], event["event"]) for event in server.events}) == 60
    assert (tally.lost, tally.accepted) == (0, 60)
    assert tally.retried > 0


def test_feedback_that_is_refused_for_good_is_lost_and_said():
    async def answer(path: str, body: Any, before: int) -> tuple[int, Any]:
        return (422, {"code": "invalid_event"}) if path == "/feedback" else await scoring(path, body, before)

    tally, _ = simulated(answer)

    assert tally.lost == 60
    assert "422" in tally.first_error


def test_duplicates_and_orphans_are_sent_as_asked():
    tally, server = simulated(scoring, duplicates=1.0, orphans=1.0)
    told = [(event["request_id"], event["event"]) for event in server.events]

    assert (tally.duplicates, tally.orphans) == (60, 40)
    assert all(told.count((f"r{n}", "impression")) == 2 for n in range(40))
    assert sum(request.endswith("-nobody") for request, _ in told) == 40


def test_a_stop_ends_it_in_order():
    """Nobody arrives any more, what is under way is answered and shown, clicks of the future are given up."""
    tally, server = simulated(scoring, stop_at=2, requests=None, click_delay_seconds=1e6)

    assert 0 < tally.arrived == tally.answered < 40
    assert sum(event["event"] == "impression" for event in server.events) == tally.impressions
    assert tally.lost == tally.clicks > 0


def test_it_lasts_as_long_as_it_was_told():
    """At 100 arrivals a second a fifth of a second is twenty."""
    tally, _ = simulated(scoring, rate=100.0, requests=None, seconds=0.2)

    assert tally.arrived in (19, 20)


def looked_at(answer: Answer, **settings: Any) -> dict[str, str]:
    async def run() -> dict[str, str]:
        server = Server(answer)
        listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
        async with listening:
            address = Address("127.0.0.1", listening.sockets[0].getsockname()[1], "", False)
            return await look_at(Play(address, rate=1.0, **settings), 0.0)

    return asyncio.run(run())


EXPERIMENTS = {"experiments": [{"name": "e", "arms": [{"name": "ensemble"}, {"name": "student"}]}]}


def service(**answers: tuple[int, Any]) -> Answer:
    plain = {"ready": (200, {}), "feedback": (422, {}), "experiments": (200, EXPERIMENTS), **answers}

    async def answer(path: str, body: Any, before: int) -> tuple[int, Any]:
        return plain[path.rsplit("/", 1)[1]]

    return answer


def test_the_controls_are_asked_of_the_service():
    assert looked_at(service()) == {"e": "ensemble"}


@pytest.mark.parametrize(
    ("answers", "settings", "said"),
    [
        ({"ready": (503, {})}, {}, r"no service is ready at 127\.0\.0\.1:\d+ after 0 s: it answers 503"),
        ({"feedback": (404, {})}, {}, "no exposure log .*--log FOLDER"),
        ({"experiments": (200, b"<html>")}, {}, "--url: expected a Retort service, but: Expecting value"),
        ({}, {"harm": "studnet"}, r"--harm: expected an arm \(ensemble, student\), got 'studnet'"),
    ],
)
def test_what_cannot_be_played_against_is_refused_before_anything_is_sent(answers: Any, settings: Any, said: str):
    with pytest.raises(TrainingError, match=said):
        looked_at(service(**answers), **settings)


@pytest.mark.parametrize(
    "url", ["localhost:8000", "ftp://x", "http://", "http://h:port", "http://u@h", "http://h/?a=b"]
)
def test_a_url_that_is_none_is_refused(url: str):
    with pytest.raises(TrainingError, match="--url: expected http://host:port"):
        Address.of(url)


def test_a_url_may_have_a_path_and_no_port():
    assert Address.of("https://ads.example/retort/") == Address("ads.example", 443, "/retort", True)
    assert Address.of("http://[::1]:81") == Address("::1", 81, "", False)
