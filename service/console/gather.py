"""What this worker knows, as plain values for the page: nothing is scored, no log is read, no file is opened.

The plan and the registry are read on the event loop, in one go, so that they agree. Adding up the workers' counts takes
milliseconds and is done in a thread, as for `/metrics`; however many look, once in `AGE_SECONDS` and for `SHARE` of a
core at most.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from service.console.durations import Counts, Looks, Window
from service.metrics import LATENCY_SECONDS
from service.scoring.plan import Plan, RunningExperiment

if TYPE_CHECKING:
    from service.app import Service

AGE_SECONDS = 1.0
SHARE = 0.05
"""Of a core, that adding up counts may take, and as much again making pages of them."""
BOUNDS = LATENCY_SECONDS
"""Of the duration histogram, in seconds."""


@dataclass(frozen=True, slots=True)
class HaltFacts:
    """What a guard-rail halted an arm for."""

    rail: str
    bound: float
    found: float | None
    time: float


@dataclass(frozen=True, slots=True)
class ArmFacts:
    """An arm as it runs."""

    name: str
    model: str
    version: int
    follow: bool
    weight: float
    start: int
    stop: int
    """Owned are the buckets start <= b < stop."""
    halted: bool
    """Whatever by: the experiment file, or a guard-rail."""
    deadline_ms: float | None
    is_ensemble: bool
    is_off: bool = False
    """By the experiment file."""
    halt: HaltFacts | None = None
    """By a guard-rail."""


@dataclass(frozen=True, slots=True)
class ExperimentFacts:
    """An experiment as it runs."""

    name: str
    phase: int
    coverage: float
    is_default: bool
    layer: tuple[str, int, int] | None
    """Name and the buckets of it that are owned."""
    shadow: tuple[str, float] | None
    """Which arm scores in the shadow, and what share of requests."""
    arms: tuple[ArmFacts, ...]
    """In order; the first is control."""

    @property
    def is_paused(self) -> bool:
        """Whether every arm but control is off."""
        return len(self.arms) > 1 and all(arm.halted for arm in self.arms[1:])


@dataclass(frozen=True, slots=True)
class TeacherFacts:
    """A teacher of a model: its mean gate weight on test rows."""

    name: str
    mean_gate_weight: float


@dataclass(frozen=True, slots=True)
class VersionFacts:
    """A version in the repository."""

    version: int
    reason: str | None
    """Why it is not loaded; None where it is."""
    created: str | None = None
    """When it was exported, where it is loaded."""
    teachers: tuple[TeacherFacts, ...] = ()
    is_ensemble: bool = False


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A model of the repository."""

    name: str
    live: int | None
    versions: tuple[VersionFacts, ...]
    """Ascending."""


@dataclass(frozen=True, slots=True)
class Counted:
    """The metrics of every worker, added up."""

    durations: Mapping[tuple[str, str, str], Counts] = field(default_factory=dict)
    """(experiment, arm, outcome) -> requests by bucket of `BOUNDS`, and above."""
    window: Window | None = None
    """The same, lately."""
    exposures: Mapping[tuple[str, str], float] = field(default_factory=dict)
    events: Mapping[tuple[str, str], float] = field(default_factory=dict)
    """(event, outcome)."""
    records: Mapping[str, float] = field(default_factory=dict)
    """By kind."""
    dropped: Mapping[str, float] = field(default_factory=dict)
    """Records that the log could not keep, by reason."""
    bytes: float = 0.0
    torn: float = 0.0
    drift: Mapping[tuple[str, str], float] = field(default_factory=dict)
    """(model, field) -> PSI against training."""
    drift_change: Mapping[tuple[str, str], float] = field(default_factory=dict)
    """The same -> PSI against a day ago, or as far back as was counted."""
    lost: Mapping[tuple[str, str], float] = field(default_factory=dict)
    """The same -> the share that is missing or unknown, beyond that in training."""
    shadowed: Mapping[str, float] = field(default_factory=dict)
    """By experiment: answered requests that the other arm's model scored too."""
    unshadowed: Mapping[str, float] = field(default_factory=dict)
    """By experiment: those that were sampled for it and not scored."""
    kl: Mapping[str, float] = field(default_factory=dict)
    """By experiment: KL(ensemble || student) of shadow traffic."""


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything the page says, but for what an experiment has shown."""

    time: float
    """When it was gathered, seconds since 1970."""
    workers: int
    reasons_not_ready: tuple[str, ...] = ()
    reasons_degraded: tuple[str, ...] = ()
    experiments: Mapping[str, ExperimentFacts] = field(default_factory=dict)
    default: str | None = None
    models: tuple[ModelFacts, ...] = ()
    counted: Counted = Counted()
    has_admin: bool = False
    """Whether there is a token at all."""
    has_log: bool = False
    has_experiment_file: bool = False


class Gatherer:
    """Gathers for one worker."""

    def __init__(self, app: Service) -> None:
        self._app = app
        self._looks = Looks()
        self._turn = asyncio.Lock()
        self._facts: Facts | None = None
        self._until = 0.0  # `monotonic`
        self._plan: Plan | None = None
        self._experiments: Mapping[str, ExperimentFacts] = {}
        self._counted = Counted()
        self._next_count = 0.0  # `monotonic`

    def find(self, wanted: str | None) -> str | None:
        """The experiment of this name, or the default one where none is asked for; None where there is none."""
        plan = self._app.plan
        if plan is None or (wanted is not None and wanted not in plan.experiments):
            return None
        return plan.default.spec.name if wanted is None else wanted

    def is_young(self, facts: Facts) -> bool:
        """Whether these are what `facts` would give: they are a second old at most, and under the plan of now, so that
        who changed something sees it changed."""
        return facts is self._facts and self._app.plan is self._plan and time.monotonic() < self._until

    async def facts(self) -> Facts:
        """What is so now, or was a moment ago."""
        async with self._turn:
            if self._facts is None or not self.is_young(self._facts):
                self._facts = await self._gather()
                self._until = time.monotonic() + AGE_SECONDS
            return self._facts

    async def _gather(self) -> Facts:
        app = self._app
        plan = app.plan
        if plan is not self._plan:
            self._plan = plan
            self._experiments = {} if plan is None else {name: describe(one) for name, one in plan.experiments.items()}
        experiments, models = self._experiments, _models(app)
        if time.monotonic() >= self._next_count:
            self._counted, seconds = await asyncio.to_thread(self._count)
            self._next_count = time.monotonic() + max(AGE_SECONDS, seconds / SHARE)
        return Facts(
            time.time(),
            app.settings.workers,
            app.reasons_not_ready(),
            app.reasons_degraded(),
            experiments,
            None if plan is None else plan.default.spec.name,
            models,
            self._counted,
            has_admin=app.gate.is_open,
            has_log=app.journal is not None,
            has_experiment_file=app.settings.experiments is not None,
        )

    def _count(self) -> tuple[Counted, float]:
        """The metrics, and the seconds of a core that they took: with hundreds of experiments there are many."""
        began = time.thread_time()
        counted = count(self._app.metrics.samples("retort_"), self._looks, time.monotonic())
        return counted, time.thread_time() - began


def describe(running: RunningExperiment) -> ExperimentFacts:
    """An experiment of the plan."""
    spec, layer = running.spec, running.assigner.layer
    arms = tuple(
        ArmFacts(
            stated.name,
            stated.model,
            arm.served.scorer.bundle.version,
            stated.follow,
            float(stated.weight),
            owned.start,
            owned.stop,
            arm.halted,
            stated.deadline_ms,
            arm.served.scorer.is_ensemble,
            stated.name in spec.halted,
            None if arm.halt is None else HaltFacts(arm.halt.rail, arm.halt.bound, arm.halt.found, arm.halt.time),
        )
        for stated, arm, owned in zip(spec.arms, running.arms, running.assigner.ranges, strict=True)
    )
    return ExperimentFacts(
        spec.name,
        spec.phase,
        float(spec.coverage),
        spec.default,
        None if spec.layer is None or layer is None else (spec.layer.name, layer.owned.start, layer.owned.stop),
        None if spec.shadow is None else (spec.shadow.arm, float(spec.shadow.sample)),
        arms,
    )


def _models(app: Service) -> tuple[ModelFacts, ...]:
    registry = app.registry
    found: dict[str, list[VersionFacts]] = {}
    for name, version, reason in registry.states():
        scorer = registry.loaded.get((name, version))
        one = VersionFacts(version, reason)
        if scorer is not None:
            manifest = scorer.bundle.manifest
            teachers = tuple(TeacherFacts(teacher.name, teacher.mean_gate_weight) for teacher in manifest.teachers)
            created = manifest.created.strftime("%Y-%m-%d %H:%M")
            one = VersionFacts(version, reason, created, teachers, scorer.is_ensemble)
        found.setdefault(name, []).append(one)
    return tuple(ModelFacts(name, registry.live.get(name), tuple(found[name])) for name in sorted(found))


def count(samples: Iterable[tuple[str, Mapping[str, str], float]], looks: Looks, now: float) -> Counted:
    """The metrics that the page shows, from all there are; `now`: `monotonic` seconds."""
    cumulative: dict[tuple[str, str, str], dict[float, float]] = {}
    exposures: dict[tuple[str, str], float] = {}
    events: dict[tuple[str, str], float] = {}
    records: dict[str, float] = {}
    dropped: dict[str, float] = {}
    drift: dict[tuple[str, str], float] = {}
    drift_change: dict[tuple[str, str], float] = {}
    lost: dict[tuple[str, str], float] = {}
    shadowed: dict[str, float] = {}
    unshadowed: dict[str, float] = {}
    kl: dict[str, float] = {}
    total_bytes = torn = 0.0
    for name, labels, value in samples:
        if name == "retort_request_duration_seconds_bucket":
            key = labels["experiment"], labels["arm"], labels["outcome"]
            buckets = cumulative.setdefault(key, {})
            bound = float(labels["le"])
            buckets[bound] = buckets.get(bound, 0.0) + value  # of several models
        elif name == "retort_exposures_total":
            exposures[labels["experiment"], labels["arm"]] = value
        elif name == "retort_events_total":
            events[labels["event"], labels["outcome"]] = value
        elif name == "retort_log_records_total":
            records[labels["kind"]] = value
        elif name == "retort_log_dropped_total":
            dropped[labels["reason"]] = value
        elif name == "retort_log_written_bytes_total":
            total_bytes = value
        elif name == "retort_log_torn_total":
            torn = value
        elif name == "retort_drift_psi":
            drift[labels["model"], labels["field"]] = value
        elif name == "retort_drift_change_psi":
            drift_change[labels["model"], labels["field"]] = value
        elif name == "retort_drift_lost_share":
            lost[labels["model"], labels["field"]] = value
        elif name == "retort_shadow_scored_total":
            shadowed[labels["experiment"]] = value
        elif name == "retort_shadow_dropped_total":
            unshadowed[labels["experiment"]] = unshadowed.get(labels["experiment"], 0.0) + value
        elif name == "retort_shadow_kl":
            kl[labels["experiment"]] = value
    durations = {key: counts for key, buckets in cumulative.items() if sum(counts := _apart(buckets)) > 0}
    return Counted(
        durations,
        looks.add(now, durations),
        exposures,
        events,
        records,
        dropped,
        bytes=total_bytes,
        torn=torn,
        drift=drift,
        drift_change=drift_change,
        lost=lost,
        shadowed=shadowed,
        unshadowed=unshadowed,
        kl=kl,
    )


def _apart(cumulative: Mapping[float, float]) -> list[float]:
    """Counts by bucket from counts up to each bound."""
    up_to = [cumulative[bound] for bound in sorted(cumulative)]
    return [after - before for before, after in zip([0.0, *up_to], up_to, strict=False)]
