"""The open loop: users arrive when they arrive, whatever the service does with those before.

    arrivals -> a free connection -> POST /predict -> the best candidate is shown -> its impression at once,
                                                                                     its click after a delay
    due events -> batches -> POST /feedback, again until they are acknowledged (which is safe: each counts once)

A latency is measured from when its request was due, so that waiting for a connection is part of it. An answer that
comes after the caller's patience is counted and shows nothing, as in an auction that has closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import json
import math
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from training.simulate.auctions import Auction
from training.simulate.connection import Address, Connection, ConnectionFailedError
from training.simulate.tally import Tally

LINE_SECONDS = 1.0
POST_SECONDS = 0.1
"""How long events wait for company."""
POST_EVENTS = 200
"""At most in one request."""
FEEDBACK_PATIENCE_SECONDS = 30.0
"""After the last arrival events are offered for so long, and for as long as the longest delay."""
ANSWER_SECONDS = 60.0
"""A request whose answer has not come by then is given up."""

GetBlock = Callable[[int], Awaitable[list[Auction]]]
"""The auctions of a block, by its number."""


@dataclass(frozen=True, slots=True)
class Play:
    """How auctions are played."""

    address: Address
    rate: float
    """Arrivals a second, on average."""
    seconds: float | None = None
    requests: int | None = None
    """Whichever comes first ends it; neither: until `stop`."""
    connections: int = 16
    click_delay_seconds: float = 1.0
    """The median."""
    patience_ms: float = 1000.0
    harm: str | None = None
    """The arm that shows its worst candidate instead of its best."""
    duplicates: float = 0.0
    """Share of the events that are sent twice."""
    orphans: float = 0.0
    """Clicks on requests that never were, for each answer."""


async def play(
    settings: Play, blocks: GetBlock, tally: Tally, stop: asyncio.Event, watch: Callable[[str], object]
) -> None:
    """Plays until it is over or `stop` is set; `tally` then has everything. `watch` gets a line each second."""
    post = _Post(settings, tally)
    queue: asyncio.Queue[tuple[Auction, float] | None] = asyncio.Queue()
    async with asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(_watch(tally, watch))
        posting = tasks.create_task(post.deliver())
        callers = [tasks.create_task(_call(settings, queue, tally, post)) for _ in range(settings.connections)]
        await _arrive(settings, blocks, queue, tally, stop)
        for _ in callers:
            queue.put_nowait(None)
        await asyncio.gather(*callers)
        post.close(at_once=stop.is_set())
        stopping = tasks.create_task(_close_when(stop, post))
        await posting
        stopping.cancel()
        watching.cancel()


async def _watch(tally: Tally, watch: Callable[[str], object]) -> None:
    while True:
        await asyncio.sleep(LINE_SECONDS)
        watch(tally.line())


async def _close_when(stop: asyncio.Event, post: _Post) -> None:
    await stop.wait()
    post.close(at_once=True)


async def _arrive(
    settings: Play,
    blocks: GetBlock,
    queue: asyncio.Queue[tuple[Auction, float] | None],
    tally: Tally,
    stop: asyncio.Event,
) -> None:
    """Puts each auction into the queue when it is due. The next block is drawn while one is played."""
    following = asyncio.ensure_future(blocks(0))
    due, end = 0.0, math.inf
    try:
        for number in itertools.count(1):
            block = await following
            following = asyncio.ensure_future(blocks(number))
            if tally.began is None:
                due = tally.began = time.monotonic()
                end = math.inf if settings.seconds is None else due + settings.seconds
            for auction in block:
                if tally.arrived == settings.requests:
                    return
                due += auction.gap / settings.rate
                wait = min(due, end) - time.monotonic()  # it lasts as long as it was told, whoever comes after
                if wait > 0:
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(stop.wait(), wait)
                if stop.is_set() or due > end:
                    return
                tally.arrived += 1
                queue.put_nowait((auction, due))
    finally:
        following.cancel()


async def _call(settings: Play, queue: asyncio.Queue[tuple[Auction, float] | None], tally: Tally, post: _Post) -> None:
    """One connection's life."""
    connection = Connection(settings.address)
    patience = settings.patience_ms / 1000
    try:
        while (taken := await queue.get()) is not None:
            auction, due = taken
            if time.monotonic() - due > patience:
                tally.unsent += 1
                continue
            try:
                status, content = await connection.request("POST", "/predict", auction.body, seconds=ANSWER_SECONDS)
            except ConnectionFailedError as error:
                tally.error("connection", str(error))
                continue
            latency = time.monotonic() - due
            if status != 200:
                _refused(status, content, tally)
            elif latency > patience:
                tally.late += 1
            else:
                _show(settings, auction, content, 1000 * latency, tally, post)
    finally:
        connection.close()


def _refused(status: int, content: bytes, tally: Tally) -> None:
    if status == 429:
        tally.refused += 1
    elif status == 504:
        tally.deadline += 1
    else:
        tally.error(str(status), content[:200].decode("utf-8", "replace"))


def _show(settings: Play, auction: Auction, content: bytes, latency_ms: float, tally: Tally, post: _Post) -> None:
    """Shows the candidate with the highest score, or an arm that is to be harmed its lowest."""
    try:
        answer: dict[str, Any] = json.loads(content)
        scores = np.array(answer["pctr"], dtype=np.float64)
        arm, experiment = answer["arm"], answer["experiment"]
        model = f"{answer['model']}/{answer['version']}"
        if scores.shape != auction.truth.shape or not np.isfinite(scores).all():
            raise ValueError
    except (ValueError, KeyError, TypeError):
        expected = f"expected experiment, arm, model and {len(auction.truth)} scores"
        tally.error("answer", f"{expected}, got {content[:200].decode('utf-8', 'replace')}")
        return
    shown = int(scores.argmin() if arm == settings.harm else scores.argmax())
    clicked = bool(auction.chance < auction.truth[shown])
    tally.answer(
        experiment=str(experiment),
        arm=str(arm),
        model=model,
        fallback="fallback" in answer,
        unit=auction.unit,
        latency_ms=latency_ms,
        truth=auction.truth,
        shown=shown,
        clicked=clicked,
    )
    post.take(auction, shown, auction.delay * settings.click_delay_seconds if clicked else None)


class _Post:
    """Events on their way to the service."""

    def __init__(self, settings: Play, tally: Tally) -> None:
        self._tally = tally
        self._settings = settings
        self._due: list[tuple[float, int, dict[str, Any]]] = []
        self._numbers = itertools.count()
        self._until: float | None = None
        self._at_once = False
        self._connection = Connection(settings.address)

    def take(self, auction: Auction, shown: int, click_after: float | None) -> None:
        """An impression now, and a click later where there is one; those that are sent twice, and those of nobody."""
        chance = random.Random(auction.request_id)  # its own: what others drew does not matter
        now = time.monotonic()
        self._add(now, auction.request_id, shown, "impression", chance)
        if click_after is not None:
            self._add(now + click_after, auction.request_id, shown, "click", chance)
        if chance.random() < self._settings.orphans:
            self._tally.orphans += 1
            self._push(now, {"request_id": f"{auction.request_id}-nobody", "candidate": 0, "event": "click"})

    def _add(self, due: float, request_id: str, candidate: int, kind: str, chance: random.Random) -> None:
        event = {"request_id": request_id, "candidate": candidate, "event": kind}
        self._push(due, event)
        if chance.random() < self._settings.duplicates:
            self._tally.duplicates += 1
            self._push(due + POST_SECONDS, event)

    def _push(self, due: float, event: dict[str, Any]) -> None:
        heapq.heappush(self._due, (due, next(self._numbers), event))

    def close(self, *, at_once: bool) -> None:
        """No more events will come. `at_once`: those that are not due yet are given up."""
        now = time.monotonic()
        last = max((due for due, _, _ in self._due), default=now)
        self._until = (now if at_once else last) + FEEDBACK_PATIENCE_SECONDS
        self._at_once = at_once

    async def deliver(self) -> None:
        """Brings events when they are due, until there are no more."""
        try:
            while True:
                now = time.monotonic()
                for batch in self._batches(now):
                    await self._bring(batch)
                if self._until is not None and (not self._due or self._at_once or now > self._until):
                    self._tally.lost += len(self._due)
                    return
                await asyncio.sleep(POST_SECONDS)
        finally:
            self._connection.close()

    def _batches(self, now: float) -> Iterator[list[dict[str, Any]]]:
        while self._due and self._due[0][0] <= now:
            batch: list[dict[str, Any]] = []
            while self._due and self._due[0][0] <= now and len(batch) < POST_EVENTS:
                due, _, event = heapq.heappop(self._due)
                batch.append({**event, "time": round(time.time() - (time.monotonic() - due), 6)})
            yield batch

    async def _bring(self, events: list[dict[str, Any]]) -> None:
        """Offers a batch until it is acknowledged."""
        body = json.dumps(events).encode()
        pause = POST_SECONDS
        while True:
            try:
                status, content = await self._connection.request("POST", "/feedback", body, seconds=ANSWER_SECONDS)
            except ConnectionFailedError as error:
                status, detail = 0, str(error)
            else:
                detail = content[:200].decode("utf-8", "replace")
            if status == 200:
                answer = json.loads(content)
                self._tally.accepted += int(answer["accepted"])
                self._tally.known += int(answer["duplicates"])
                return
            if status not in (0, 429, 503) or (self._until is not None and time.monotonic() > self._until):
                self._tally.lost += len(events)
                self._tally.error(f"feedback {status or 'connection'}", detail)
                return
            self._tally.retried += len(events)
            await asyncio.sleep(pause)
            pause = min(2 * pause, 5.0)
