"""What experiments have shown, for whoever asks the service: computed by a process of its own (`process.py`).

One at a time on this machine, by a lock on the log's folder; of those who ask for the same meanwhile each gets that
one. What was computed stands in `<log>/results/`, where every worker finds it, and is good for a minute, for ten times
what it took, and for longer while nothing is logged: so whoever asks again and again has a tenth of an idle core at
most. Never in this process: reading a log takes seconds and memory, and scoring has neither to spare.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
import logging
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import service
from models.journal.reading import segment_paths
from service.errors import Code, Refusal
from service.experiments.file import Experiment, ExperimentFile
from service.settings import PREFIX

logger = logging.getLogger(__name__)

COMMAND = (sys.executable, "-m", "service.results.process")
FRESH_SECONDS = 60.0
FRESH_TIMES = 10.0
"""Results that took long are good for so many times what they took."""
UNCHANGED_SECONDS = 3600.0
"""How long the results of a log that nothing is added to are good for: a new release may say more."""
MAX_BYTES = 64 << 20
ASK_AGAIN_SECONDS = 10
FOLDER = "results"

_NO_LOG = Refusal(Code.NO_LOG, "this service keeps no exposure log: start it with --log FOLDER")
_STOPPING = Refusal(Code.NOT_READY, "shutting down", reasons=("shutting down",))


@dataclass(frozen=True, slots=True)
class Computed:
    """One report, or why there is none."""

    key: str
    """What was asked: the experiment as it was stated."""
    state: str
    """Of the log that was read."""
    time: float
    """When, in seconds since 1970."""
    seconds: float
    """How long it took."""
    json: str = ""
    html: str = ""
    error: str = ""

    @property
    def age(self) -> float:
        return max(0.0, time.time() - self.time)

    @property
    def fresh_seconds(self) -> float:
        """How long it may be answered whatever is logged."""
        return max(FRESH_SECONDS, FRESH_TIMES * self.seconds)

    def is_fresh(self, state: str) -> bool:
        """Whether it may be answered while the log is in that state."""
        return self.age < max(self.fresh_seconds, UNCHANGED_SECONDS if state == self.state and not self.error else 0.0)


class Results:
    """The results of one worker's experiments. Call its methods on the event loop."""

    def __init__(self, folder: Path | None, *, replay: bool, timeout_seconds: float) -> None:
        """`folder`: the exposure log's; None where none is kept. `replay`: whether units are logged as they were sent,
        so that their arms can be checked."""
        self._folder = folder
        self._replay = replay
        self._timeout_seconds = timeout_seconds
        self._tasks: dict[str, asyncio.Task[Computed]] = {}
        self._known: dict[str, Computed] = {}
        self._failed: dict[str, tuple[float, Refusal]] = {}
        """By what was asked, until when (`monotonic`) nobody tries again, and why."""
        self._turn = asyncio.Lock()
        self._is_stopping = False

    def stop(self) -> None:
        """Ends what is being computed; who waits for it is told."""
        self._is_stopping = True
        for task in self._tasks.values():
            task.cancel()

    async def close(self) -> None:
        """The same, and returns when nothing is left of it."""
        self.stop()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def latest(self, name: str) -> Computed | None:
        """What this worker computed or found last, however old, without waiting for anything."""
        return self._known.get(name)

    async def get(
        self, experiment: Experiment, file: ExperimentFile, *, patience_seconds: float | None = None
    ) -> Computed:
        """The results, computed now where none are fresh. Raises `Refusal` where there are none.

        What takes longer than `patience_seconds` goes on, for whoever asks next; meanwhile the answer is what was
        computed before, however old, or, where nothing was, that it is being computed.
        """
        if self._folder is None:
            raise _NO_LOG.with_traceback(None)
        key = self._key(experiment, file)
        state = await asyncio.to_thread(_state_of, self._folder)
        known = self._known.get(experiment.name)
        if known is None or known.key != key or not known.is_fresh(state):
            known = await self._join(experiment, file, key, patience_seconds)
        if known.error:
            raise Refusal(Code.NO_RESULTS, known.error)
        return known

    async def _join(
        self, experiment: Experiment, file: ExperimentFile, key: str, patience_seconds: float | None
    ) -> Computed:
        if self._is_stopping:
            raise _STOPPING.with_traceback(None)
        until, failure = self._failed.get(key, (0.0, None))
        if failure is not None and time.monotonic() < until:
            raise failure.with_traceback(None)
        task = self._tasks.get(key)
        if task is None:
            task = self._tasks[key] = asyncio.create_task(self._compute_in_turn(experiment, file, key))
            task.add_done_callback(lambda done: self._end(key, done))
        await asyncio.wait([task], timeout=patience_seconds)  # who waits may leave; the task goes on
        if not task.done():
            return await self._older(experiment.name, key)
        if task.cancelled():
            raise _STOPPING.with_traceback(None)
        return task.result()

    async def _older(self, name: str, key: str) -> Computed:
        """What was computed last of the same question, by any worker. Raises `Refusal`."""
        assert self._folder is not None
        for found in (await asyncio.to_thread(_read, self._path(name)), self._known.get(name)):
            if found is not None and found.key == key and not found.error:
                return found
        raise _unavailable("they are being computed from the log", ASK_AGAIN_SECONDS)

    def _path(self, name: str) -> Path:
        assert self._folder is not None
        return self._folder / FOLDER / f"{name}.json"

    def _end(self, key: str, task: asyncio.Task[Computed]) -> None:
        self._tasks.pop(key, None)
        self._failed.pop(key, None)
        failure = None if task.cancelled() else task.exception()
        if isinstance(failure, Refusal):
            self._failed[key] = (time.monotonic() + FRESH_SECONDS, failure)

    async def _compute_in_turn(self, experiment: Experiment, file: ExperimentFile, key: str) -> Computed:
        assert self._folder is not None
        async with contextlib.AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(self._timeout_seconds):
                    await stack.enter_async_context(self._turn)
                    lock = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                    stack.callback(os.close, lock)
                    while not _try_lock(lock):
                        await asyncio.sleep(0.05)
            except TimeoutError:
                raise _unavailable("others are being computed") from None
            except OSError as error:
                raise _unavailable(f"the log cannot be read ({error.strerror})") from None
            state = await asyncio.to_thread(_state_of, self._folder)
            path = self._path(experiment.name)
            found = await asyncio.to_thread(_read, path)
            if found is None or found.key != key or not found.is_fresh(state):
                found = await self._compute(experiment, file, key, state)
                await asyncio.to_thread(_write, path, found)
            self._known[experiment.name] = found
            return found

    async def _compute(self, experiment: Experiment, file: ExperimentFile, key: str, state: str) -> Computed:
        began = time.monotonic()
        now = time.time()
        question = {
            "file": json.dumps(file_content(file)),
            "experiment": experiment.name,
            "log": str(self._folder.absolute()) if self._folder else "",
            "replay": self._replay,
        }
        process = await asyncio.create_subprocess_exec(
            *COMMAND,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            cwd=Path(service.__file__).parents[1],
            env=_environment(),
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(question).encode() + b"\n")
            async with asyncio.timeout(self._timeout_seconds):
                written = await _read_all(process.stdout)
                code = await process.wait()
        except TimeoutError:
            logger.error("results of %s took more than %g s", experiment.name, self._timeout_seconds)
            raise _unavailable(f"computing them took more than {self._timeout_seconds:g} s") from None
        except ConnectionError:
            written, code = b"", await process.wait()
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
            process.stdin.close()
        seconds = time.monotonic() - began
        try:
            answer = json.loads(written)
        except ValueError:
            logger.error("results of %s: the process that computes them ended with %s", experiment.name, code)
            raise _unavailable("computing them failed; the log says why") from None
        logger.info("results of %s computed in %.1f s", experiment.name, seconds)
        return Computed(key, state, now, seconds, **answer)

    def _key(self, experiment: Experiment, file: ExperimentFile) -> str:
        layers = [(layer.name, layer.salt) for layer in file.layers]
        return hashlib.sha256(json.dumps([experiment.tag(), layers, self._replay]).encode()).hexdigest()[:16]


def file_content(file: ExperimentFile) -> dict[str, Any]:
    """A whole file again, as JSON-able values."""
    return {
        "format_version": file.format_version,
        "layers": [layer.model_dump() for layer in file.layers],
        "experiments": [experiment.content() for experiment in file.experiments],
    }


def _unavailable(why: str, seconds: int = 60) -> Refusal:
    headers = ((b"retry-after", str(seconds).encode()),)
    return Refusal(Code.RESULTS_UNAVAILABLE, f"{why}: try again in {seconds} s", headers=headers)


def _state_of(folder: Path) -> str:
    """What tells one state of a log from the next."""
    try:
        facts = []
        for path in segment_paths(folder):
            with contextlib.suppress(FileNotFoundError):
                facts.append((path.stem, path.stat().st_size))
    except OSError as error:
        raise _unavailable(f"the log cannot be read ({error.strerror})") from None
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _read(path: Path) -> Computed | None:
    try:
        return Computed(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def _write(path: Path, computed: Computed) -> None:
    """Keeps it for the other workers. Where the disk is full each computes its own."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(mode=0o750, exist_ok=True)
        temporary.touch(mode=0o640)
        temporary.write_text(json.dumps(asdict(computed)), encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        logger.warning("results cannot be kept in %s: %s", path.parent, error.strerror)
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


async def _read_all(stream: asyncio.StreamReader) -> bytes:
    parts: list[bytes] = []
    size = 0
    while part := await stream.read(1 << 16):
        parts.append(part)
        size += len(part)
        if size > MAX_BYTES:
            raise _unavailable("the report is too long")
    return b"".join(parts)


def _environment() -> dict[str, str]:
    """Ours, without what is the service's alone, its token above all, and with one thread for arithmetic."""
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith(PREFIX)}
    return {**kept, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
