"""One ONNX session, and the queue in front of the sessions of a worker.

A session has one intra-op thread, runs sequentially and never spins: with one process a core, more threads
only take turns (the defaults burn several times the CPU and ruin the neighbours' p99).

The queue. A worker is one event loop. What arrives in one of its turns is decoded and encoded in that turn
and scored together in the next, one run a turn, so that what a run costs beside its arithmetic is shared: the
weights come into the caches once, and the service's own code and data leave them once. A long run keeps everybody
waiting, so beyond a few rows only models join that are known to be quick. Scores do not depend on the company a
request keeps, beyond the last bits of float32.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from models.bundle import Bundle
from models.encoder import EncodedRows
from models.errors import BundleError
from models.golden import check_golden
from models.graph import LOGIT, PCTR, TEACHER_LOGITS, graph_inputs, input_names
from service.catalogue.lines import EncodedCatalogue
from service.errors import ModelLoadError
from service.scoring.candidates import CandidateCache
from service.scoring.circuit import Circuit
from service.scoring.first_layer import FirstLayer, shares_of, split

logger = logging.getLogger(__name__)

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int32]

FEW_ROWS = 64
"""So many candidates share a run of any model."""
QUICK_SECONDS = 0.003
"""More share it only where the whole run takes no longer."""


class TimeEstimate:
    """How long a run of n candidates takes: a running mean for each power of two of n, filled in between.

    Weighs a slow run more than a quick one (a deadline missed costs more than one refused), and forgets by a
    factor each observation, so that a minute of noise passes.
    """

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}
        self._best: dict[int, float] = {}

    def observe(self, rows: int, seconds: float) -> None:
        """Takes one measured run into account."""
        size = (rows - 1).bit_length()
        self._best[size] = min(seconds, self._best.get(size, seconds))
        before = self._seconds.get(size)
        if before is None:
            self._seconds[size] = seconds
        else:
            self._seconds[size] = before + (seconds - before) * (0.2 if seconds > before else 0.05)

    def seconds(self, rows: int) -> float:
        """The estimate for a run of `rows` candidates; 0.0 before any was observed.

        A size never seen is taken from the nearest that was: in proportion upward, and unchanged downward.
        """
        return _nearest(self._seconds, (rows - 1).bit_length())

    def best_seconds(self, rows: int) -> float:
        """The same of the quickest runs: what the model takes where nothing else keeps the core busy."""
        return _nearest(self._best, (rows - 1).bit_length())

    def renew(self, rows: int, seconds: float) -> None:
        """Replaces the estimate for a size by one run that was made to find it out."""
        size = (rows - 1).bit_length()
        self._best[size] = min(seconds, self._best.get(size, seconds))
        self._seconds[size] = seconds

    def has_met(self, rows: int, limit_seconds: float) -> bool:
        """Whether a run of about that size ever took no longer."""
        return self._best.get((rows - 1).bit_length(), math.inf) <= limit_seconds

    def forgive(self, limit_seconds: float) -> None:
        """Sizes that have met the limit once, and are estimated to miss it, are estimated at their best again."""
        for size, best in self._best.items():
            if best <= limit_seconds < self._seconds[size]:
                self._seconds[size] = best


def _nearest(by_size: Mapping[int, float], size: int) -> float:
    found = by_size.get(size)
    if found is not None or not by_size:
        return found or 0.0
    nearest = min(by_size, key=lambda seen: (abs(seen - size), seen))
    return by_size[nearest] * (2.0 ** (size - nearest) if nearest < size else 1.0)


class Scorer:
    """One bundle's graph, loaded and proven: the golden rows come out as the manifest says, or it is not built."""

    def __init__(self, bundle: Bundle, candidate_cache_bytes: int = 0, share_bytes: int = 0) -> None:
        """Loads the graph and scores the golden rows: warm-up, parity check and readiness check in one. `share_bytes`:
        what shares of the first layer, computed ahead for ads of a catalogue, may take; 0: there are none.

        Raises `ModelLoadError` with reason `graph` (onnxruntime refuses it, or its inputs are not the
        schema's) or `golden` (it scores, but not as it should).
        """
        self.bundle = bundle
        self.candidates = CandidateCache(bundle.encoder, candidate_cache_bytes)
        """Encoded candidates by their raw bytes; theirs is this version's meaning, and its life."""
        self.count_inputs: Callable[[Mapping[str, Ids]], object] | None = None
        """Told of what each run was fed."""
        self.sampled: Callable[[Mapping[str, Ids], Floats], object] = lambda inputs, pctr: None
        """Told of each run's pctr too."""
        self.estimate = TimeEstimate()
        self.circuit: Circuit | None = None
        """Whether it may be asked, where another model can answer in its place (`plan.py`)."""
        try:
            self._session = _open(str(bundle.model_path))
        except Exception as error:  # onnxruntime raises a dozen unrelated types
            reason = f"onnxruntime cannot load it: {type(error).__name__}"
            raise ModelLoadError(bundle.name, "graph", f"{bundle.model_path}: {reason}") from error
        self._check_signature()
        # IO binding, new or kept, and ready-made OrtValues were measured and are no faster here. What run() of the
        # Python class adds is a check of the inputs' names, 5 us a run, of which `_check_signature` has made sure.
        inner: Any = self._session._sess.run
        self._run: Callable[[list[str], Mapping[str, Ids]], list[Floats]] = lambda outputs, feeds: inner(
            outputs, feeds, None
        )
        try:
            check_golden(bundle.golden, self._score_golden, bundle.path)
        except BundleError as error:
            raise ModelLoadError(bundle.name, "golden", str(error)) from error
        self._first_layer = self._open_first_layer() if share_bytes else None
        self.catalogue = EncodedCatalogue(bundle.encoder, self._first_layer, share_bytes)
        """The ad catalogue, encoded likewise."""

    def _open_first_layer(self) -> FirstLayer | None:
        """The first layer apart, where the graph has that form and its parts give the golden scores too: each share of
        an ad by itself, as it may have been computed in any company."""
        bundle = self.bundle
        if len(bundle.schema.candidate_id_fields) < len(bundle.schema.candidate_fields):
            return None  # an ad has sequences too, which a place in the table does not bring along
        try:
            parts = split(bundle.model_path.read_bytes())
            if parts is None:
                return None
            apart = FirstLayer(parts, lambda model: _open(model, bundle.path))

            def score(
                context: Mapping[str, object], candidates: Sequence[Mapping[str, object]]
            ) -> tuple[Floats, Floats]:
                encoded = bundle.encoder.encode_candidates(candidates)
                shares = np.concatenate([apart.shares(encoded.ids[row : row + 1]) for row in range(len(candidates))])
                inputs = graph_inputs([bundle.encoder.encode_context(context)], [encoded])
                places = np.arange(len(candidates), dtype=np.int32)
                logit, pctr = apart.run([LOGIT, PCTR], inputs, shares, places)
                return logit, pctr

            check_golden(bundle.golden, score, bundle.path)
        except Exception as error:  # onnxruntime's are many; the graph itself is proven and serves
            logger.warning(
                "model %s version %d: shares of the first layer are not computed ahead: %s: %s",
                *(bundle.name, bundle.version, type(error).__name__, error),
            )
            return None
        return apart

    def _check_signature(self) -> None:
        expected = set(input_names(self.bundle.schema))
        found = {node.name for node in self._session.get_inputs()}
        outputs = {node.name for node in self._session.get_outputs()}
        self.is_ensemble = TEACHER_LOGITS in outputs
        if expected != found or not {LOGIT, PCTR} <= outputs:
            raise ModelLoadError(
                self.bundle.name,
                "graph",
                f"{self.bundle.model_path}: expected inputs {sorted(expected)} and outputs logit and pctr, "
                f"got {sorted(found)} and {sorted(outputs)}",
            )

    def _score_golden(
        self, context: Mapping[str, object], candidates: Sequence[Mapping[str, object]]
    ) -> tuple[Floats, Floats]:
        encoder = self.bundle.encoder
        feeds = graph_inputs([encoder.encode_context(context)], [encoder.encode_candidates(candidates)])
        try:
            self._run([LOGIT, PCTR], feeds)  # the first run of a shape pays for buffers; time the second
            started = perf_counter()
            logit, pctr = self._run([LOGIT, PCTR], feeds)
        except Exception as error:
            raise BundleError(self.bundle.model_path, f"onnxruntime cannot run it: {type(error).__name__}") from error
        self.estimate.observe(len(candidates), perf_counter() - started)
        return logit, pctr

    def score(self, contexts: Sequence[EncodedRows], candidates: Sequence[EncodedRows]) -> Floats:
        """R encoded requests with N candidates in all -> pctr float32 [N], in their order."""
        started = perf_counter()
        inputs = graph_inputs(contexts, candidates)
        ahead = None if self._first_layer is None else shares_of(candidates)
        if self._first_layer is None or ahead is None:
            (pctr,) = self._run([PCTR], inputs)
        else:
            (pctr,) = self._first_layer.run([PCTR], inputs, *ahead)
        self.estimate.observe(len(pctr), perf_counter() - started)
        if self.count_inputs is not None:
            self.count_inputs(inputs)
        self.sampled(inputs, pctr)
        return pctr

    def score_aside(self, inputs: Mapping[str, Ids]) -> Floats:
        """pctr [N] for the inputs of a run that nobody waits for: neither counted nor timed. From any thread."""
        (pctr,) = self._run([PCTR], inputs)
        return pctr

    def measure(self, context: EncodedRows, candidates: EncodedRows) -> float:
        """Seconds that a run of one request takes; nothing is counted, so another thread than the loop's may do it."""
        started = perf_counter()
        self._run([PCTR], graph_inputs([context], [candidates]))
        return perf_counter() - started

    def note_run(self, rows: int, seconds: float | None) -> None:
        """Tells the circuit, if there is one, of a run that took so long; None: it failed."""
        if self.circuit is not None:
            self.circuit.note(seconds is None or self.is_late(rows, seconds))

    def is_late(self, rows: int, seconds: float) -> bool:
        """Whether a run is later than the circuit allows, at a size that this model has scored in time before: a
        request that is too large for the limit says nothing about the model."""
        if self.circuit is None:
            return False
        limit = self.circuit.limit_seconds
        return seconds > limit and self.estimate.has_met(rows, limit)

    def run(self, outputs: Sequence[str], feeds: Mapping[str, npt.NDArray[np.int32]]) -> list[Floats]:
        """The named outputs, each [N] or [N, M], for the graph's inputs as they are: ids are not checked here."""
        started = perf_counter()
        found: list[Floats] = self._run(list(outputs), dict(feeds))
        self.estimate.observe(len(found[0]), perf_counter() - started)
        if self.count_inputs is not None:
            self.count_inputs(feeds)
        return found

    def look_into(self, feeds: Mapping[str, Ids]) -> dict[str, Floats]:
        """Every output by name, each [N] or [N, M], for `/explain`: neither counted nor timed. From any thread."""
        names = [node.name for node in self._session.get_outputs()]
        return dict(zip(names, self._run(names, feeds), strict=True))


def _open(model: str | bytes, folder: Path | None = None) -> ort.InferenceSession:
    """A session as this service wants it. `folder`: where the weights lie of a model that is given as its bytes."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    if folder is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    options.log_severity_level = 3
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


@dataclass(slots=True, eq=False)
class Job:
    """One encoded request that waits for its scores."""

    scorer: Scorer
    context: EncodedRows
    candidates: EncodedRows
    rows: int
    due: float | None
    """`perf_counter` time after which an answer is of no use."""
    finish: Callable[[Job], object]
    """Called once on the event loop, with one of: `pctr`; an `error`; neither, where it could not have been ready in
    time and was not run, or was abandoned."""
    queued: float
    began: float = 0.0
    """When its run began and ended, for the stage metrics."""
    ended: float = 0.0
    pctr: Floats | None = None
    """[rows], where it was run."""
    error: Exception | None = None
    is_abandoned: bool = False
    """Nobody waits for it any more: it is not run."""


class ScoringQueue:
    """Scores what waits: one run each turn of the event loop, models in turn, requests in order of arrival."""

    def __init__(self, max_rows: int) -> None:
        """A run joins waiting requests of one model up to `max_rows` candidates, as long as it is quick; one request is
        never split."""
        self._max_rows = max_rows
        self._waiting: dict[Scorer, deque[Job]] = {}
        self._scheduled = False
        self.runs = 0
        """How many there have been."""
        self.rested: Callable[[], object] = lambda: None
        """Called whenever nothing waits any more: what has time may go on then."""

    @property
    def is_resting(self) -> bool:
        """Whether nothing waits."""
        return not self._scheduled

    def submit(self, job: Job) -> None:
        """Queues a job; it is finished in a later turn of the loop."""
        jobs = self._waiting.get(job.scorer)
        if jobs is None:
            jobs = self._waiting[job.scorer] = deque()
        jobs.append(job)
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._turn)

    async def score(
        self, scorer: Scorer, context: EncodedRows, candidates: EncodedRows, rows: int, due: float | None
    ) -> Job:
        """Queues what is encoded and waits; the job that comes back is finished."""
        done: asyncio.Future[Job] = asyncio.get_running_loop().create_future()

        def finish(job: Job) -> None:
            if not done.done():
                done.set_result(job)

        job = Job(scorer, context, candidates, rows, due, finish, perf_counter())
        self.submit(job)
        try:
            return await done
        finally:
            job.is_abandoned = True

    def _turn(self) -> None:
        scorer, jobs = next(iter(self._waiting.items()))
        del self._waiting[scorer]
        batch, vain = self._take(scorer, jobs)
        self.runs += 1
        if jobs:
            self._waiting[scorer] = jobs  # behind the other models
        if batch:
            self._score(scorer, batch)
        # Only now: what is finished may submit anew, for another model.
        for job in vain:
            _finish(job)
        for job in batch:
            _finish(job)
        self._scheduled = bool(self._waiting)
        if self._scheduled:
            asyncio.get_running_loop().call_soon(self._turn)
        else:
            self.rested()

    def _take(self, scorer: Scorer, jobs: deque[Job]) -> tuple[list[Job], list[Job]]:
        """(jobs for one run, jobs that are not run): none is made late by the company of others."""
        batch: list[Job] = []
        vain: list[Job] = []
        rows = 0
        due = math.inf
        now = perf_counter()
        while jobs and (not batch or self._may_join(scorer, rows + jobs[0].rows)):
            job = jobs[0]
            if job.is_abandoned:
                vain.append(jobs.popleft())
                continue
            if job.due is not None or due < math.inf:
                job_due = math.inf if job.due is None else job.due
                if now + scorer.estimate.seconds(job.rows) > job_due:
                    vain.append(jobs.popleft())
                    continue
                if batch and now + scorer.estimate.seconds(rows + job.rows) > min(due, job_due):
                    break
                due = min(due, job_due)
            batch.append(jobs.popleft())
            rows += job.rows
        return batch, vain

    def _may_join(self, scorer: Scorer, rows: int) -> bool:
        """Whether requests with so many candidates in all may share a run."""
        return rows <= self._max_rows and (rows <= FEW_ROWS or scorer.estimate.best_seconds(rows) <= QUICK_SECONDS)

    def _score(self, scorer: Scorer, batch: list[Job]) -> None:
        began = perf_counter()
        try:
            pctr = scorer.score([job.context for job in batch], [job.candidates for job in batch])
        except Exception as error:
            logger.exception("model %s version %d failed", scorer.bundle.name, scorer.bundle.version)
            scorer.note_run(sum(job.rows for job in batch), None)
            for job in batch:
                job.error = error
            return
        ended = perf_counter()
        scorer.note_run(len(pctr), ended - began)
        start = 0
        for job in batch:
            job.began, job.ended = began, ended
            job.pctr = pctr[start : start + job.rows]
            start += job.rows


def _finish(job: Job) -> None:
    try:
        job.finish(job)
    except Exception:  # a fault in one request's end is not the others'
        logger.exception("the end of a request failed")
