"""Shadow scoring: another arm's model scores what was answered already, and nobody waits for it.

    answered -> sample -> waiting (a bounded queue) -> a run, where nothing else waits -> journal, KL

Runs are made in one thread of low priority while the event loop goes on serving (the runtime holds no lock of Python's
meanwhile), one at a time, and only begun when no request waits to be scored: a worker that is busy scores no shadow.
They take a fiftieth of a processor's time at most. What finds the queue full is dropped and counted, so under load the
sample gets smaller and no answer later.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from time import monotonic, thread_time
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import orjson

from models.bundle import Bundle
from models.checksums import SUMS_FILE
from models.encoder import EncodedRows
from models.errors import EncodeError
from models.graph import graph_inputs
from service.errors import Refusal
from service.metrics import Metrics, adder
from service.scoring.plan import ShadowRoute
from service.scoring.predict import Call, Predictor, with_unknown
from service.scoring.request import encode_request
from service.scoring.scorer import Floats, Ids, Scorer

logger = logging.getLogger(__name__)

MAX_WAITING = 64
"""Requests of a worker. Each holds its body and its ids until it is scored."""
NICENESS = 10
"""So much lower is the thread's priority than the worker's."""
MOST_SHARE = 0.02
"""Of a processor, that a worker's runs in the shadow take at most: whatever is sampled, few requests ever meet one."""
MOST_UNDER_WAY = 0.2
"""Of the time, that a run is under way. Where other processes leave the thread little, a run takes long and costs no
more; but its thread needs Python's lock at both ends, and may be stopped with it in its hands."""
NOTE_SECONDS = 1.0
DROP_REASONS = ("full", "unreadable", "failed")
"""The queue was full; the request does not fit the fields of the shadow's model; its run failed."""


def bernoulli_kl(p: Floats, q: Floats) -> float:
    """The sum over probabilities [N] of KL(p || q) in nats: what believing q costs where p is the truth."""
    a, b = (np.clip(x.astype(np.float64), 1e-12, 1 - 1e-12) for x in (p, q))
    return float((a * np.log(a / b) + (1 - a) * np.log((1 - a) / (1 - b))).sum())


def reads_alike(one: Bundle, other: Bundle) -> bool:
    """Whether two bundles turn every request into the same ids: their schemas and vocabularies are the same bytes."""
    if one.sha256 == other.sha256:
        return True
    try:
        return _encoding_sums(one) == _encoding_sums(other)
    except OSError:  # the folder is gone, which takes nothing from what is loaded
        return False


def _encoding_sums(bundle: Bundle) -> list[str]:
    lines = (bundle.path / SUMS_FILE).read_text(encoding="ascii").splitlines()
    return [line for line in lines if line[66:].startswith(("schema.json", "vocabularies/"))]


class _Waiting(NamedTuple):
    call: Call
    route: ShadowRoute
    pctr: Floats
    """What was answered."""


class _Encoded(NamedTuple):
    waiting: _Waiting
    context: EncodedRows
    candidates: EncodedRows


class ShadowLane:
    """The shadows of one worker. Belongs to the event loop."""

    def __init__(
        self,
        predictor: Predictor,
        metrics: Metrics,
        *,
        max_rows: int,
        record: Callable[[Call, ShadowRoute, bytes], object] | None,
        note_kl: Callable[[str, int, float], object] = lambda experiment, candidates, nats: None,
    ) -> None:
        """One run joins what waits up to `max_rows` candidates. `record(call, route, scores)` keeps what a shadow said;
        `note_kl(experiment, candidates, nats)` is told the sum of how far it was from what was answered."""
        self._queue = predictor.queue
        self._predictor = predictor
        self._metrics = metrics
        self._max_rows = max_rows
        self._record = record
        self._note_kl = note_kl
        self.reads_alike = reads_alike
        self._waiting: deque[_Waiting] = deque()
        self._is_running = False
        self._is_scheduled = False
        self._is_closed = False
        self._next_note = 0.0
        self._began = self._not_before = self._spent = 0.0
        self._alike: WeakKeyDictionary[Scorer, WeakKeyDictionary[Scorer, bool]] = WeakKeyDictionary()
        self._counts: dict[tuple[str, str | None], Callable[[float], object]] = {}
        self._thread = ThreadPoolExecutor(1, "shadow", _lower_priority)
        self._queue.rested = self._look

    def offer(self, call: Call, route: ShadowRoute) -> None:
        """Takes an answered request, or drops it. The caller has sampled."""
        if call.pctr is None:
            return
        if len(self._waiting) >= MAX_WAITING:
            self._count(route, "full")
            return
        self._waiting.append(_Waiting(call, route, call.pctr))
        self._look()

    @property
    def is_busy(self) -> bool:
        """Whether anything waits or runs."""
        return self._is_running or bool(self._waiting)

    def close(self) -> None:
        """Scores nothing more; returns once the run that is on its way has ended."""
        self._is_closed = True
        self._waiting.clear()
        self._thread.shutdown(cancel_futures=True)

    def _look(self) -> None:
        """Sees to it that what waits is begun in a later turn of the loop, after what has arrived by then."""
        if self._waiting and not self._is_running and not self._is_scheduled:
            self._is_scheduled = True
            loop, wait = asyncio.get_running_loop(), self._not_before - monotonic()
            if wait > 0:
                loop.call_later(wait, self._begin)
            else:
                loop.call_soon(self._begin)

    def _begin(self) -> None:
        self._is_scheduled = False
        if self._is_running or self._is_closed or not self._queue.is_resting:
            return  # `rested` calls again
        batch = self._take()
        if not batch:
            self._look()
            return
        scorer = batch[0].waiting.route.scorer
        inputs = graph_inputs([one.context for one in batch], [one.candidates for one in batch])
        self._is_running, self._began = True, monotonic()
        running = asyncio.get_running_loop().run_in_executor(self._thread, self._run, scorer, inputs)
        running.add_done_callback(lambda done: self._end(batch, done))

    def _run(self, scorer: Scorer, inputs: Mapping[str, Ids]) -> Floats:
        """In the lane's thread, which does all of a run: a session has no other."""
        before = thread_time()
        try:
            return scorer.score_aside(inputs)
        finally:
            self._spent = thread_time() - before

    def _take(self) -> list[_Encoded]:
        """What the next run scores: of one model, as it waits, up to so many candidates."""
        batch: list[_Encoded] = []
        rows = 0
        while self._waiting:
            first = self._waiting[0]
            if batch and (
                first.route.scorer is not batch[0].waiting.route.scorer or rows + first.call.rows > self._max_rows
            ):
                break
            self._waiting.popleft()
            encoded = self._encode(first)
            if encoded is None:
                self._count(first.route, "unreadable")
                continue
            batch.append(encoded)
            rows += first.call.rows
        return batch

    def _encode(self, waiting: _Waiting) -> _Encoded | None:
        """A request in the ids of the shadow's model; None where they are not the candidates that were answered."""
        call, scorer = waiting.call, waiting.route.scorer
        if self._reads_alike(call.scorer, scorer):
            return _Encoded(waiting, call.context, call.candidates)
        try:
            request = self._predictor.decode(call)
            context, candidates, unknown = encode_request(request, scorer)
        except (Refusal, EncodeError):
            return None
        if candidates is None or unknown != call.unknown:
            return None
        return _Encoded(waiting, context, candidates)

    def _reads_alike(self, one: Scorer, other: Scorer) -> bool:
        known = self._alike.setdefault(one, WeakKeyDictionary())
        found = known.get(other)
        if found is None:
            found = known[other] = self.reads_alike(one.bundle, other.bundle)
        return found

    def _end(self, batch: list[_Encoded], done: asyncio.Future[Floats]) -> None:
        self._is_running = False
        self._not_before = self._began + max(self._spent / MOST_SHARE, (monotonic() - self._began) / MOST_UNDER_WAY)
        if self._is_closed or done.cancelled():
            return
        error = done.exception()
        if error is not None:
            self._note(batch[0].waiting.route.scorer.bundle, error)
            for one in batch:
                self._count(one.waiting.route, "failed")
        else:
            pctr = done.result()
            start = 0
            for one in batch:
                rows = one.waiting.call.rows
                self._keep(one.waiting, pctr[start : start + rows])
                start += rows
        self._look()

    def _note(self, bundle: Bundle, error: BaseException) -> None:
        """Tells of a run that failed, once in `NOTE_SECONDS` at most: a model may fail at every one."""
        if monotonic() >= self._next_note:
            self._next_note = monotonic() + NOTE_SECONDS
            logger.warning("model %s version %d failed in the shadow", bundle.name, bundle.version, exc_info=error)

    def _keep(self, waiting: _Waiting, pctr: Floats) -> None:
        call, route = waiting.call, waiting.route
        self._count(route, None)
        pair = (waiting.pctr, pctr) if route.is_student else (pctr, waiting.pctr)
        self._note_kl(route.experiment, len(pctr), bernoulli_kl(*pair))
        if self._record is not None:
            scores = orjson.dumps(pctr, option=orjson.OPT_SERIALIZE_NUMPY)
            if call.unknown:
                scores, _ = with_unknown(scores, call.unknown, call.request.count)
            self._record(call, route, scores)

    def _count(self, route: ShadowRoute, dropped: str | None) -> None:
        add = self._counts.get((route.experiment, dropped))
        if add is None:
            if dropped is None:
                child = self._metrics.shadow_scored.labels(route.experiment)
            else:
                child = self._metrics.shadow_dropped.labels(route.experiment, dropped)
            add = self._counts[route.experiment, dropped] = adder(child)
        add(1)


def _lower_priority() -> None:
    """Of the thread that calls; where the system has such a thing."""
    with contextlib.suppress(OSError, AttributeError):
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + NICENESS)
