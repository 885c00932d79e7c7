"""Looks at what the journal holds, judges every stated guard-rail, and halts the arms that cross one.

Runs beside the workers, in a process that the supervisor keeps alive: a scoring worker counts and never judges. A halt
is written into the state file (`service/experiments/state.py`), which every worker of the machine follows within a
second, and which outlives restarts. Each machine judges its own log, and halts for itself.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path

import msgspec

from models.journal.attribution import CLICK, IMPRESSION
from service.admin import audit
from service.errors import ExperimentError
from service.experiments.file import Experiment, ExperimentFile, read_experiments
from service.experiments.state import Halt, PhaseKey, halt_arm, phase_key, read_halts, read_lifts
from service.guard.evidence import PhaseEvidence
from service.guard.following import Follower
from service.guard.judging import judge
from service.journal.records import Event
from service.logs import configure_logging
from service.metrics import Metrics, clear
from service.settings import Settings

logger = logging.getLogger(__name__)

HISTORY_BYTES = 1 << 30
"""What is read of an older log at the start: the newest segments of so much."""
MOST_WAITING = 1_000_000
"""Events kept that name no request known yet: of more, which only who makes requests up sends, the newest."""
NICENESS = 10
_SHADOW = b'{"kind":"shadow"'


class _Answered(msgspec.Struct, tag_field="kind", tag="exposure"):
    """Of an exposure, what is judged."""

    request_id: str
    time: float
    unit: str
    pctr: list[float | None]
    latency_ms: float
    experiment: str | None = None
    phase: int = 0
    arm: str | None = None
    served: str | None = None
    enrolled: bool = False
    fallback: str | None = None


class _Failed(msgspec.Struct, tag_field="kind", tag="failure"):
    """Of a failure."""

    time: float
    unit: str
    latency_ms: float
    experiment: str
    phase: int
    arm: str
    served: str | None = None
    enrolled: bool = False


_Record = _Answered | _Failed | Event
_decode: Callable[[bytes], _Record] = msgspec.json.Decoder(_Record).decode


class GuardRails:
    """The guard-rails of one machine."""

    def __init__(
        self,
        *,
        log: Path,
        experiments: Path,
        state: Path,
        metrics: Metrics,
        now: Callable[[], float] = time.time,
        is_stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self._log = log
        self._experiments = experiments
        self._state = state
        self._metrics = metrics
        self._now = now
        self._is_stopping = is_stopping
        self._seen: object = None
        self._file: ExperimentFile | None = None
        self._stated: dict[PhaseKey, tuple[object, ...]] = {}
        """What the evidence below was begun with."""
        self._since: dict[tuple[PhaseKey, float], float] = {}
        """By phase and lift, the time from which on it is judged."""
        self._evidence: dict[tuple[str, int], PhaseEvidence] = {}
        self._follower: Follower | None = None
        self._unmatched: deque[Event] = deque(maxlen=MOST_WAITING)
        self._said = ""

    def look(self) -> None:
        """Reads what is new and judges. What cannot be read is said once and tried again with the next look."""
        try:
            self._follow_file()
            watched = [e for e in self._file.experiments if e.guard_rails is not None] if self._file is not None else []
            if not watched:
                return
            halts, lifts = read_halts(self._state), read_lifts(self._state)
            self._begin(watched, lifts)
            self._read()
            if self._is_stopping():
                return
            self._judge(watched, halts)
            self._said = ""
        except (ExperimentError, OSError) as error:
            if str(error) != self._said:
                self._said = str(error)
                logger.error("the guard-rails cannot be judged: %s", error)

    def _follow_file(self) -> None:
        try:
            status = self._experiments.stat()
            seen: object = (status.st_ino, status.st_size, status.st_mtime_ns)
        except OSError as error:
            seen = error.errno
        if seen != self._seen:
            self._seen = seen
            try:
                self._file = read_experiments(self._experiments)
            except ExperimentError:  # the workers say what is wrong with it, and keep the last good one too
                logger.debug("the experiment file is refused: its last good rails stay in force")

    def _begin(self, watched: list[Experiment], lifts: Mapping[PhaseKey, float]) -> None:
        """Evidence for every phase that is watched; anew, from the log, where there is one that was not, or was
        counted otherwise."""
        stated: dict[PhaseKey, tuple[object, ...]] = {}
        for experiment in watched:
            assert experiment.guard_rails is not None
            key = phase_key(experiment)
            window = experiment.analysis.attribution_window_seconds
            lifted = lifts.get(key, 0.0)
            # A lift that is still to come is of a clock that was put back since: what comes from now on is judged.
            since = self._since.setdefault((key, lifted), min(lifted, self._now()))
            stated[key] = (since, window, experiment.guard_rails.max_p99_ms)
        if stated == self._stated:
            return
        self._evidence = {
            key[:2]: PhaseEvidence(since=since, window=window, slow_above_ms=slow)  # type: ignore[arg-type]
            for key, (since, window, slow) in stated.items()
        }
        self._stated = stated
        self._unmatched.clear()
        self._follower = Follower(self._log, 0.0, HISTORY_BYTES)
        names = ", ".join(f"{name} (phase {phase})" for name, phase in sorted(self._evidence))
        logger.info("the guard-rails of %s are judged from the log in %s", names, self._log)

    def _read(self) -> None:
        assert self._follower is not None
        events: deque[Event] = deque(maxlen=MOST_WAITING)
        for number, payload in enumerate(self._follower.new_payloads()):
            if number % 1000 == 0 and self._is_stopping():
                return
            if payload.startswith(_SHADOW):
                continue
            try:
                record = _decode(payload)
            except (msgspec.DecodeError, UnicodeDecodeError):
                continue  # whoever reads the results counts it
            if isinstance(record, Event):
                if record.event in (IMPRESSION, CLICK) and not self._add(record):
                    events.append(record)
                continue
            evidence = self._evidence.get((record.experiment or "", record.phase))
            # A forced arm is not enrolled either; where another arm was served, this one is halted already.
            if evidence is None or record.arm is None or not record.enrolled or record.served is not None:
                continue
            if isinstance(record, _Failed):
                evidence.add_failure(record.arm, record.unit, record.time, latency_ms=record.latency_ms)
            else:
                evidence.add_answer(
                    *(record.request_id, record.arm, record.unit, record.time),
                    pctr=record.pctr,
                    latency_ms=record.latency_ms,
                    fell_back=record.fallback is not None,
                )
        # An event may be read before its exposure, which stands in another worker's file: it has one more look's time.
        waited = self._unmatched
        for event in waited:
            self._add(event)
        self._unmatched = deque((event for event in events if not self._add(event)), MOST_WAITING)
        for evidence in self._evidence.values():
            evidence.close_windows(self._now())

    def _add(self, event: Event) -> bool:
        told = (event.request_id, event.candidate, event.event == CLICK, event.time, event.received)
        return any(evidence.add_event(*told) for evidence in self._evidence.values())

    def _judge(self, watched: list[Experiment], halts: Mapping[PhaseKey, Mapping[str, Halt]]) -> None:
        metrics = self._metrics
        clear(metrics.guard_rail_evidence)
        for experiment in watched:
            assert experiment.guard_rails is not None
            key = phase_key(experiment)
            evidence = self._evidence[key[:2]]
            control = evidence.of(experiment.control.name)
            for arm in experiment.arms[1:]:
                if arm.name in experiment.halted or arm.name in halts.get(key, {}):
                    continue
                rails = judge(experiment.guard_rails, control, evidence.of(arm.name))
                for rail in rails:
                    if rail.evidence is not None:
                        # What is not above 0 is not shown, and it is judged all the same.
                        shown = max(rail.evidence, 0.001)
                        metrics.guard_rail_evidence.labels(experiment.name, arm.name, rail.name).set(shown)
                crossed = next((rail for rail in rails if rail.crossed), None)
                if crossed is not None and crossed.evidence is not None:
                    self._halt(
                        Halt(
                            **dict(zip(("experiment", "phase", "salt"), key, strict=True)),
                            arm=arm.name,
                            time=round(self._now(), 3),
                            rail=crossed.name,
                            bound=crossed.bound,
                            found=crossed.found,
                            evidence=crossed.evidence,
                            counts=dict(evidence.counts()),
                        )
                    )
        metrics.guard_rails_judged.set(self._now())

    def _halt(self, halt: Halt) -> None:
        facts: dict[str, audit.Fact] = {
            name: getattr(halt, name)
            for name in ("experiment", "phase", "arm", "rail", "bound", "found", "evidence", "counts")
        }
        try:
            if not halt_arm(self._state, halt):
                return
        except ExperimentError as error:
            self._metrics.guard_rail_failures.inc()
            audit.record("guard-rails", None, "halt", None, "state_unavailable", **facts)
            raise error
        self._metrics.guard_rail_trips.labels(halt.experiment, halt.arm, halt.rail).inc()
        logger.warning(
            "guard-rail %s: arm %s of experiment %s is halted, its units get control: found %s against a bound of %s",
            *(halt.rail, halt.arm, halt.experiment, "nothing" if halt.found is None else f"{halt.found:.4g}"),
            f"{halt.bound:.4g}",
        )
        audit.record("guard-rails", None, "halt", None, "ok", **facts)


def run_guard_rails(settings: Settings, slot: int, supervisor: Connection, metrics_directory: Path) -> None:
    """The process: looks every `guard_rail_seconds` until it is told to stop, or the supervisor is gone."""
    stopping: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _frame: stopping.append(number))
    configure_logging(settings.log_level, settings.log_format)
    os.nice(NICENESS)

    from service import metrics

    metrics.use_slot_files(metrics_directory, slot)
    assert settings.log is not None
    assert settings.experiments is not None
    assert settings.state_file is not None
    rails = GuardRails(
        log=settings.log,
        experiments=settings.experiments,
        state=settings.state_file,
        metrics=Metrics(directory=metrics_directory),
        is_stopping=lambda: bool(stopping),
    )
    while not stopping:
        try:
            rails.look()
        except Exception:  # whatever it was, the next look may go well
            logger.exception("a look at the guard-rails failed")
        if supervisor.poll(settings.guard_rail_seconds):  # nothing is ever said: it has hung up
            break
    logging.shutdown()
    sys.exit(0)
