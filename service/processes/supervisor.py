"""The parent of the workers: one listening socket, N processes, and a new one for each that dies.

Ours rather than uvicorn's, because a worker here owns a slot of the metric files; because a worker that cannot start
again (say, its model was damaged on disk) must not take the healthy ones with it, which uvicorn's supervisor does;
because "alive" should mean that the event loop turns, where uvicorn asks a thread beside it; and because exit codes
should say what happened. Holds no model and no onnxruntime: a restart costs one worker, never the program.
"""

from __future__ import annotations

import logging
import multiprocessing
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import FrameType
from typing import Any

from service.errors import ConfigError
from service.processes.census import FILE, Census, write_census
from service.processes.worker import READY, run_worker
from service.settings import Settings

logger = logging.getLogger(__name__)

SHORTEST_PATIENCE_SECONDS = 0.5
LONGEST_PATIENCE_SECONDS = 30.0


@dataclass
class _Worker:
    """A slot and the process that fills it, if any."""

    slot: int
    process: SpawnProcess | None = None
    line: Connection | None = None
    ready: bool = False
    heard: float = 0.0
    not_before: float = 0.0
    patience: float = 0.0
    starts: int = 0

    def be_patient(self, now: float) -> None:
        """Says when the next process may start: at once where this one had become ready, whatever ended it; else
        later each time, since what kept it from becoming ready will probably keep the next one from it too."""
        longer = min(max(SHORTEST_PATIENCE_SECONDS, 2 * self.patience), LONGEST_PATIENCE_SECONDS)
        self.patience = 0.0 if self.ready else longer
        self.not_before = now + self.patience


class Supervisor:
    """Keeps `settings.workers` workers serving `listener` until SIGTERM or SIGINT."""

    def __init__(
        self,
        settings: Settings,
        listener: socket.socket,
        metrics_directory: Path,
        on_ready: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings = settings
        self._listener = listener
        self._metrics_directory = metrics_directory
        self._on_ready = on_ready
        self._workers = [_Worker(slot) for slot in range(settings.workers)]
        self._rails: _Worker | None = None
        """What judges the guard-rails, in the slot behind the workers': where there is a log and a file to read."""
        if settings.log is not None and settings.experiments is not None:
            self._rails = _Worker(settings.workers)
        self._context = multiprocessing.get_context("spawn")
        self._signals: list[int] = []

    def run(self) -> int:
        """Serves; returns the exit code. The first worker must become ready, or nothing is started at all."""
        with self._wake_on_signals() as wake:
            first = self._workers[0]
            self._start(first)
            while not first.ready and not self._signals:
                self._listen(wake, timeout=1.0)
                if first.process is None or first.process.exitcode is not None:
                    code = first.process.exitcode if first.process is not None else 1
                    return code if code and code > 0 else 1
                self._kill_if_silent(first, time.monotonic())
            if not self._signals:
                self._on_ready()
            while not self._signals:
                now = time.monotonic()
                for worker in self._all():
                    self._tend(worker, now)
                self._listen(wake, timeout=0.5)
            return self._stop(wake)

    def _all(self) -> list[_Worker]:
        """Every process there is, or should be."""
        return self._workers if self._rails is None else [*self._workers, self._rails]

    @contextmanager
    def _wake_on_signals(self) -> Iterator[socket.socket]:
        """A socket that turns readable at a signal, so that waiting ends at once."""
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        before: dict[int, Any] = {
            number: signal.signal(number, lambda number, _frame: self._signals.append(number))
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        before[signal.SIGHUP] = signal.signal(signal.SIGHUP, _say_that_there_is_nothing_to_reload)
        wake_before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        try:
            yield reader
        finally:
            signal.set_wakeup_fd(wake_before)
            for number, handler in before.items():
                signal.signal(number, handler)
            reader.close()
            writer.close()

    def _start(self, worker: _Worker) -> None:
        ours, theirs = self._context.Pipe()
        if worker is self._rails:
            process = self._context.Process(
                target=_run_guard_rails,
                args=(self._settings, worker.slot, theirs, self._metrics_directory),
                name="retort-guard-rails",
            )
        else:
            others_serve = any(other.ready for other in self._workers if other is not worker)
            process = self._context.Process(
                target=run_worker,
                args=(self._settings, worker.slot, self._listener, theirs, self._metrics_directory, others_serve),
                name=f"retort-worker-{worker.slot}",
            )
        hang_up = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # which the new process inherits, unlike a handler
        process.start()
        signal.signal(signal.SIGHUP, hang_up)
        theirs.close()
        worker.starts += 1
        worker.process, worker.line, worker.ready = process, ours, False
        self._count()
        worker.heard = time.monotonic()
        if worker is self._rails:
            logger.info("guard-rails are looked after by process %s", process.pid)
        else:
            logger.info("worker %d started as process %s", worker.slot, process.pid)

    def _count(self) -> None:
        """Tells whoever is scraped how many workers there are."""
        workers = self._workers
        starts, restarts = sum(one.starts for one in workers), sum(max(one.starts - 1, 0) for one in workers)
        write_census(self._metrics_directory, Census(len(workers), sum(one.ready for one in workers), starts, restarts))

    def _listen(self, wake: socket.socket, timeout: float) -> None:
        """Takes what the workers say, until a timeout, a death or a signal."""
        lines = {worker.line: worker for worker in self._all() if worker.line is not None}
        deaths = [
            worker.process.sentinel
            for worker in self._all()
            if worker.process is not None and worker.process.exitcode is None
        ]
        for event in wait([*lines, *deaths, wake], timeout):
            if event is wake:
                wake.recv(64)
            elif isinstance(event, Connection):
                worker = lines[event]
                try:
                    if event.recv_bytes() == READY:
                        worker.ready = True
                        self._count()
                        logger.info("worker %d is ready", worker.slot)
                    worker.heard = time.monotonic()
                except (EOFError, OSError):
                    event.close()
                    worker.line = None

    def _tend(self, worker: _Worker, now: float) -> None:
        """Starts a worker whose time has come, and buries one that died."""
        if worker.process is None:
            if now >= worker.not_before:
                self._start(worker)
            return
        self._kill_if_silent(worker, now)
        if worker.process.exitcode is None:
            return
        if worker is self._rails:
            facts = (worker.process.pid, worker.process.exitcode)
            logger.error("the guard-rails' process %s ended with code %s: starting another", *facts)
        else:
            logger.error(
                "worker %d (process %s) ended with code %s: starting another",
                worker.slot,
                worker.process.pid,
                worker.process.exitcode,
            )
        self._bury(worker)
        worker.be_patient(now)
        worker.ready = False
        self._count()
        if now >= worker.not_before:
            self._start(worker)

    def _kill_if_silent(self, worker: _Worker, now: float) -> None:
        """Kills a worker whose loop has not turned for too long; while it loads its models it is let be."""
        assert worker.process is not None
        if worker.ready and now - worker.heard > self._settings.worker_timeout_seconds:
            logger.error("worker %d (process %s) has been silent too long: killed", worker.slot, worker.process.pid)
            worker.process.kill()
            worker.process.join()

    def _bury(self, worker: _Worker) -> None:
        from service.metrics import forget_gauges  # late: the parent needs no numpy until somebody dies

        assert worker.process is not None
        worker.process.join()
        worker.process.close()
        worker.process = None
        if worker.line is not None:
            worker.line.close()
            worker.line = None
        forget_gauges(self._metrics_directory, worker.slot)

    def _stop(self, wake: socket.socket) -> int:
        """Passes the signal on, waits for the workers to finish; a second SIGINT, or too long a wait, kills."""
        logger.info("stopping: finishing what is in flight")
        self._listener.close()  # ours; the workers close theirs when they have drained
        living = [worker for worker in self._all() if worker.process is not None]
        for worker in living:
            if worker.line is not None:
                worker.line.close()  # which tells it that the others stop too
                worker.line = None
        for worker in living:
            assert worker.process is not None
            if worker.process.exitcode is None:
                worker.process.terminate()
        until = time.monotonic() + self._settings.drain_seconds + self._settings.shutdown_seconds + 10.0
        code = 0
        while any(worker.process is not None and worker.process.exitcode is None for worker in living):
            if time.monotonic() > until or self._signals.count(signal.SIGINT) > 1:
                logger.error("workers did not finish: killed")
                for worker in living:
                    if worker.process is not None:
                        worker.process.kill()
                code = 1
                until = float("inf")
                self._signals.clear()
            self._listen(wake, timeout=0.2)
        for worker in living:
            if worker.process is not None:
                worker.process.join()
        logger.info("stopped")
        return code


def _run_guard_rails(settings: Settings, slot: int, supervisor: Connection, metrics_directory: Path) -> None:
    from service.guard.process import run_guard_rails  # late: in its process and not here

    run_guard_rails(settings, slot, supervisor, metrics_directory)


def _say_that_there_is_nothing_to_reload(_number: int, _frame: FrameType | None) -> None:
    logger.info("SIGHUP: nothing to do, the repository and the experiment file are followed without it")


@contextmanager
def metric_files(settings: Settings) -> Iterator[Path]:
    """An empty folder for the workers' metric files; a temporary one unless the settings name it."""
    directory = settings.metrics_directory
    if directory is not None:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            for path in (*directory.glob("*.db"), *directory.glob("drift_*.json"), *directory.glob(FILE)):
                path.unlink()
        except OSError as error:
            raise ConfigError(f"metrics directory {directory}: {error.strerror or error}") from None
        yield directory
        return
    directory = Path(tempfile.mkdtemp(prefix="retort-metrics-"))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
