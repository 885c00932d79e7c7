"""A simulation from its first look at the service to what is written of it: signals, the drawing process, the line."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import signal
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TextIO

from training.errors import TrainingError
from training.simulate.auctions import Auction, Auctions, Terms
from training.simulate.connection import Connection, ConnectionFailedError
from training.simulate.tally import Tally
from training.simulate.traffic import ANSWER_SECONDS, Play, play

NON_TERMINAL_SECONDS = 10
"""Between lines where nobody watches."""


async def simulate(terms: Terms, settings: Play, *, wait_seconds: float) -> dict[str, Any]:
    """Plays against a service that is or becomes ready; what is written at the end. SIGINT and SIGTERM end it in order.

    Raises `TrainingError` where there is no such service, or none that takes feedback.
    """
    controls = await look_at(settings, wait_seconds)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    tally = Tally()
    # A process of its own: drawing takes a core's time in long pieces, in which no answer would be read.
    context = multiprocessing.get_context("spawn")
    line = Line(sys.stderr)
    try:
        with ProcessPoolExecutor(1, context, _settle, (terms,)) as pool:
            began = time.time()
            await play(settings, lambda number: loop.run_in_executor(pool, _draw, number), tally, stop, line.show)
    finally:
        line.end()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
    return {
        "format_version": 1,
        "began": round(began, 3),
        "ended": round(time.time(), 3),
        "world": {"seed": terms.world_seed, "days": terms.days, "day": terms.day},
        "traffic": {
            "run": terms.run,
            "seed": terms.seed,
            "rate": settings.rate,
            "candidates": terms.candidates,
            "harm": settings.harm,
        },
        **tally.to_json(controls),
    }


_auctions: Auctions | None = None


def _settle(terms: Terms) -> None:
    global _auctions
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to the whole group
    _auctions = Auctions(terms)


def _draw(number: int) -> list[Auction]:
    assert _auctions is not None
    return _auctions.block(number)


async def look_at(settings: Play, wait_seconds: float) -> dict[str, str]:
    """The control of each experiment of a service that is ready and takes feedback; else `TrainingError`."""
    connection = Connection(settings.address)
    try:
        await _until_ready(connection, settings, wait_seconds)
        status, content = await connection.request("POST", "/feedback", b"[]", seconds=ANSWER_SECONDS)
        if status == 404:
            raise TrainingError("the service keeps no exposure log that clicks could come back to: say --log FOLDER")
        _, content = await connection.request("GET", "/experiments", seconds=ANSWER_SECONDS)
        experiments = {one["name"]: [arm["name"] for arm in one["arms"]] for one in json.loads(content)["experiments"]}
    except (ConnectionFailedError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"--url: expected a Retort service, but: {error}") from None
    finally:
        connection.close()
    arms = {arm for names in experiments.values() for arm in names}
    if settings.harm is not None and settings.harm not in arms:
        raise TrainingError(f"--harm: expected an arm ({', '.join(sorted(arms))}), got {settings.harm!r}")
    return {name: names[0] for name, names in experiments.items()}


async def _until_ready(connection: Connection, settings: Play, seconds: float) -> None:
    until = time.monotonic() + seconds
    while True:
        try:
            status, _ = await connection.request("GET", "/health/ready", seconds=ANSWER_SECONDS)
            why = f"it answers {status} to GET /health/ready"
            if status == 200:
                return
        except ConnectionFailedError as error:
            why = str(error)
        if time.monotonic() > until:
            address = settings.address
            raise TrainingError(f"no service is ready at {address.host}:{address.port} after {seconds:g} s: {why}")
        await asyncio.sleep(0.1)


class Line:
    """One line that is written over on a terminal; every now and then a line elsewhere."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._calls = 0

    def show(self, text: str) -> None:
        self._calls += 1
        if self._out.isatty():
            self._out.write(f"\r\x1b[K{text}")
        elif self._calls % NON_TERMINAL_SECONDS == 0:
            self._out.write(f"{text}\n")
        self._out.flush()

    def end(self) -> None:
        if self._calls and self._out.isatty():
            self._out.write("\n")


def table(found: dict[str, Any]) -> list[str]:
    """What a person is told at the end."""
    heads = ("units", "shown", "clicks", "CTR", "truth", "lift", "p50 ms", "p99 ms")
    lines = ["", f"{'':<28}" + "".join(f"{head:>9}" for head in heads)]
    has_several = len({arm["experiment"] for arm in found["arms"]}) > 1
    for arm in found["arms"]:
        name = f"{arm['experiment']}/{arm['arm']}" if has_several else arm["arm"]
        lift = "" if arm["expected_lift"] is None else f"{arm['expected_lift']:+.1%}"
        cells = (
            *(f"{arm[key]}" for key in ("units", "impressions", "clicks")),
            *(f"{arm[key]:.2%}" for key in ("ctr", "expected_ctr")),
            lift,
            *(f"{arm['latency_ms'][key]:.1f}" for key in ("p50", "p99")),
        )
        lines.append(f"{name:<28}" + "".join(f"{cell:>9}" for cell in cells))
    ctr, requests = found["expected_ctr"], found["requests"]
    if ctr["shown"] is not None:
        lines.append(f"true click rate: {ctr['at_random']:.2%} of ads at random, {ctr['best']:.2%} of the best ones")
    trouble = {name: requests[name] for name in ("refused", "deadline", "late", "unsent") if requests[name]}
    trouble |= {f"error {kind}": count for kind, count in requests["errors"].items()}
    if found["feedback"]["lost"]:
        trouble["events lost"] = found["feedback"]["lost"]
    if trouble:
        lines.append("not answered in time: " + ", ".join(f"{name} {count}" for name, count in trouble.items()))
    if requests["first_error"]:
        lines.append(f"first error: {requests['first_error']}")
    return lines
