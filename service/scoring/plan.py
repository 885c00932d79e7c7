"""The plan: everything a worker serves right now, as one immutable value.

Requests read it once, at their start; a new version or a new experiment file makes a new plan, which replaces the old
one between two requests. So no request ever sees half of a change. What the hot path needs for an answer (the bytes
around the scores, the metrics to count in) is put together here, once a plan and not once a request.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
import orjson
from numpy.typing import NDArray

from models.graph import CANDIDATES, CONTEXT, ids_input
from models.schema import FeatureSchema
from models.tables import UNKNOWN
from service.errors import Code, ExperimentError, Refusal
from service.experiments.assignment import Assigner
from service.experiments.file import Arm, Experiment, ExperimentFile
from service.experiments.state import Halt, PhaseKey, phase_key
from service.metrics import LateBins, Metrics, adder
from service.scoring.circuit import Circuit, State
from service.scoring.registry import Registry, Version
from service.scoring.scorer import Scorer

logger = logging.getLogger(__name__)


class FieldCounts:
    """Counts missing and unknown values by field, from what a model's runs are fed: once a run, however many requests
    share it."""

    def __init__(self, schema: FeatureSchema, metrics: Metrics) -> None:
        self._metrics = metrics
        self._sides = [
            (CONTEXT, self._children(field.name for field in schema.context_id_fields)),
            (CANDIDATES, self._children(field.name for field in schema.candidate_id_fields)),
            *((ids_input(field.name), self._children([field.name])) for field in schema.sequence_fields),
        ]

    def _children(self, names: Iterable[str]) -> list[Callable[[float], object]]:
        """Two for each field: by id, which is 0 for missing and 1 for unknown."""
        metrics = self._metrics
        return [
            adder(family.labels(name)) for name in names for family in (metrics.missing_values, metrics.unknown_values)
        ]

    def add(self, inputs: Mapping[str, NDArray[np.int32]]) -> None:
        """Counts the values of one run's inputs."""
        for name, children in self._sides:
            ids = inputs[name].ravel()
            low = (ids <= UNKNOWN).nonzero()[0]
            if len(low):
                places = 2 * (low % (len(children) // 2)) + ids[low]
                for count, add in zip(np.bincount(places).tolist(), children, strict=False):
                    if count:
                        add(count)


class Served:
    """One way in which a request can be answered: a model, on behalf of an arm or of nobody."""

    __slots__ = (
        "arm",
        "count_fallback",
        "durations",
        "experiment",
        "expose",
        "fallback",
        "refused",
        "scorer",
        "tail",
    )

    def __init__(
        self,
        scorer: Scorer,
        metrics: Metrics,
        *,
        experiment: str | None = None,
        arm: str | None = None,
        fallback: str | None = None,
    ) -> None:
        self.scorer = scorer
        self.experiment = experiment
        self.arm = arm
        self.fallback = fallback
        bundle = scorer.bundle
        members: dict[str, object] = {
            "experiment": experiment,
            "arm": arm,
            "model": bundle.name,
            "version": bundle.version,
        }
        if fallback is not None:
            members["fallback"] = fallback
        #: What stands between the request id and the scores.
        self.tail: bytes = b"," + orjson.dumps(members)[1:-1] + b',"pctr":'
        labels = (experiment or "", arm or "", bundle.name)
        outcome = "ok" if fallback is None else "fallback"
        self.durations = LateBins(metrics.request_duration, *labels, outcome)
        self.refused = LateBins(metrics.request_duration, *labels, "refused")
        self.count_fallback = None if fallback is None else adder(metrics.fallbacks.labels(fallback))
        self.expose: Callable[[float], object] | None = None
        if experiment is not None and arm is not None:
            self.expose = adder(metrics.exposures.labels(experiment, arm))
        if scorer.count_inputs is None:  # once a model, not once an arm
            scorer.count_inputs = FieldCounts(bundle.schema, metrics).add
            scorer.candidates.count = metrics.count_cache


@dataclass(frozen=True, slots=True, eq=False)
class Fallback:
    """How another model answers for an arm, by what was wrong with the arm's own. Answers and metrics say which."""

    deadline: Served
    """It could not be in time."""
    error: Served
    """Its run failed."""
    circuit: Served
    """It was not asked, because its runs had failed or been late before."""


@dataclass(slots=True, eq=False)
class RunningArm:
    """An arm: how it answers, and how another answers for it."""

    name: str
    served: Served
    halted: bool
    """By the experiment file, or by a guard-rail."""
    deadline_seconds: float | None = None
    fallback: Fallback | None = None
    halt: Halt | None = None
    """Of a guard-rail, with its evidence."""


@dataclass(frozen=True, slots=True, eq=False)
class ShadowRoute:
    """The model that scores a share of an arm's requests too, unseen, once they are answered."""

    experiment: str
    arm: str
    """Whose model it is."""
    scorer: Scorer
    share: float
    is_student: bool
    """Whether KL is taken from what was answered to what the shadow says; the other way round, where it is the
    ensemble that stands in the shadow."""


@dataclass(frozen=True, slots=True, eq=False)
class Chosen:
    """Where a request goes. `assigned` is the arm of the unit, `served` what answers it, within `deadline_seconds` or
    else by its fallback."""

    served: Served
    fallback: Fallback | None = None
    deadline_seconds: float | None = None
    assigned: str | None = None
    enrolled: bool = False
    forced: bool = False
    phase: int = 0
    """Of the experiment; 0 outside any."""
    propensity: float | None = None
    """The probability with which the hash of an enrolled unit leads to the arm assigned."""
    shadow: ShadowRoute | None = None
    """What scores a sample of these requests too."""


@dataclass(frozen=True, slots=True, eq=False)
class RunningExperiment:
    """One experiment of the file, with the loaded models of its arms."""

    spec: Experiment
    assigner: Assigner
    arms: tuple[RunningArm, ...]
    routes: tuple[Chosen, ...] = field(init=False)
    """Where the enrolled units of each arm go, and in the last place those that are not: made once, not a request."""

    def __post_init__(self) -> None:
        control = self.arms[0]
        answering = [control if arm.halted else arm for arm in self.arms]
        phase = self.spec.phase
        routes = [
            Chosen(
                *(answers.served, answers.fallback, answers.deadline_seconds, arm.name),
                enrolled=True,
                phase=phase,
                propensity=float(stated.weight),
                shadow=self._shadow_of(arm) if answers is arm else None,
            )
            for arm, answers, stated in zip(self.arms, answering, self.spec.arms, strict=True)
        ]
        way = (control.served, control.fallback, control.deadline_seconds, control.name)
        outside = Chosen(*way, phase=phase, shadow=self._shadow_of(control))
        object.__setattr__(self, "routes", (*routes, outside))

    def _shadow_of(self, arm: RunningArm) -> ShadowRoute | None:
        """What scores this arm's requests in the shadow: the shadow arm; its own requests, control; and control's,
        where that is the shadow arm itself, the first treatment. So either chooser's requests are scored by the other.
        """
        stated = self.spec.shadow
        if stated is None or stated.sample == 0:
            return None
        others = [other for other in self.arms if other is not arm]
        named = [other for other in others if other.name == stated.arm]
        other = next(iter(named or others), None)
        if other is None or other.served.scorer is arm.served.scorer:
            return None
        pair = (arm.served.scorer, other.served.scorer)
        is_student = not pair[1].is_ensemble if pair[0].is_ensemble != pair[1].is_ensemble else arm is self.arms[0]
        return ShadowRoute(self.spec.name, other.name, pair[1], float(stated.sample), is_student)

    def choose(self, unit: str, forced_arm: str | None) -> Chosen:
        """The arm of a unit, or the one that the request forces. A halted arm's units get control."""
        if forced_arm is not None:
            index = self.spec.arm_index(forced_arm)
            if index is None:
                raise Refusal(Code.UNKNOWN_ARM, "the experiment has no such arm", field="arm")
            arm = self.arms[index]
            way = (arm.served, arm.fallback, arm.deadline_seconds, arm.name)
            return Chosen(*way, enrolled=False, forced=True, phase=self.spec.phase)
        return self.routes[self.assigner.place(unit)]


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """What is served: experiments by name, and live models by name."""

    file: ExperimentFile
    """What states them."""
    experiments: Mapping[str, RunningExperiment]
    default: RunningExperiment
    live: Mapping[str, Served]

    def scorers(self) -> set[Scorer]:
        """Every model version that requests may be answered by without naming it."""
        arms = (arm.served.scorer for experiment in self.experiments.values() for arm in experiment.arms)
        return {*(served.scorer for served in self.live.values()), *arms}

    def choose(self, experiment: str | None, arm: str | None, unit: str) -> Chosen:
        """Where a request to /predict goes. Raises `Refusal` for a name that is not in the file."""
        if experiment is None:
            return self.default.choose(unit, arm)
        running = self.experiments.get(experiment)
        if running is None:
            raise Refusal(Code.UNKNOWN_EXPERIMENT, "no such experiment is running", field="experiment")
        return running.choose(unit, arm)


def build_plan(
    file: ExperimentFile,
    fixed: Mapping[tuple[str, str], int],
    registry: Registry,
    metrics: Metrics,
    halts: Mapping[PhaseKey, Mapping[str, Halt]] = MappingProxyType({}),
) -> Plan:
    """The plan for an experiment file over what is loaded. `halts`: by phase and arm, what guard-rails have halted.

    `fixed`: (experiment, arm) -> version, for every arm that does not follow the live version; all loaded.
    Raises `ExperimentError` where an arm's model is not there.
    """
    live = {name: Served(registry.loaded[name, version], metrics) for name, version in registry.live.items()}
    running: dict[str, RunningExperiment] = {}
    limits: dict[Scorer, list[float]] = {}
    for experiment in file.experiments:
        scorers = []
        for arm in experiment.arms:
            version = fixed.get((experiment.name, arm.name))
            if version is None:
                version = registry.live.get(arm.model)
            scorer = registry.loaded.get((arm.model, version)) if version is not None else None
            if version is None or scorer is None:
                raise ExperimentError(
                    f"experiment '{experiment.name}': arm '{arm.name}' needs model '{arm.model}', "
                    f"which is not loaded (there are: {', '.join(sorted(registry.live)) or 'none'})"
                )
            scorers.append(scorer)
        halted = halts.get(phase_key(experiment), {})
        arms = tuple(
            RunningArm(
                arm.name,
                Served(scorer, metrics, experiment=experiment.name, arm=arm.name),
                halted=arm.name in experiment.halted or (arm.name in halted and arm is not experiment.control),
                halt=None if arm is experiment.control else halted.get(arm.name),
                deadline_seconds=None if arm.deadline_ms is None else arm.deadline_ms / 1000.0,
            )
            for arm, scorer in zip(experiment.arms, scorers, strict=True)
        )
        for running_arm, arm in zip(arms, experiment.arms, strict=True):
            stand_in = _stand_in(arm, running_arm, arms)
            if stand_in is not None:
                ways = {
                    reason: Served(stand_in, metrics, experiment=experiment.name, arm=arm.name, fallback=reason)
                    for reason in ("deadline", "error", "circuit")
                }
                running_arm.fallback = Fallback(**ways)
                seconds = running_arm.deadline_seconds
                limits.setdefault(running_arm.served.scorer, []).extend([] if seconds is None else [seconds])
        running[experiment.name] = RunningExperiment(experiment, file.assigner(experiment), arms)
    for scorer in registry.loaded.values():
        _guard(scorer, limits.get(scorer), metrics)
    metrics.show_halted(
        {(name, arm.name): arm.halted for name, experiment in running.items() for arm in experiment.arms}
    )
    return Plan(file, running, running[file.default.name], live)


def _guard(scorer: Scorer, limits: list[float] | None, metrics: Metrics) -> None:
    """Gives a model for which another can answer its circuit, or leaves it the one it has. `limits`: the deadlines of
    its arms; late is what misses the longest. None: nobody answers for it, so it is asked whatever happens."""
    name, version = scorer.bundle.name, scorer.bundle.version
    gauge = metrics.circuit_state.labels(name, str(version))
    if limits is None:
        if scorer.circuit is not None:
            scorer.circuit = None
            gauge.set(0)
        return
    if scorer.circuit is None:

        def tell(circuit: Circuit) -> None:
            gauge.set(circuit.state)
            if circuit.state is State.CLOSED:
                logger.info("model %s version %d: the circuit is closed again: the model is asked", name, version)
            elif circuit.state is State.HALF_OPEN:
                logger.info("model %s version %d: the circuit is half-open: one run is tried", name, version)
            else:
                limit = circuit.limit_seconds
                late = "" if limit == math.inf else f" or take more than {1000 * limit:g} ms"
                logger.warning(
                    "model %s version %d: the circuit is open: its runs fail%s; another model answers, "
                    "and it is tried again in %.0f s",
                    *(name, version, late, circuit.pause_seconds),
                )

        scorer.circuit = Circuit(changed=tell)
        gauge.set(scorer.circuit.state)
    scorer.circuit.limit_seconds = max(limits, default=math.inf)


def _stand_in(spec: Arm, arm: RunningArm, arms: tuple[RunningArm, ...]) -> Scorer | None:
    """The model that answers for an arm whose own is late or fails; never that of a halted arm.

    The model of the arm that is named as its fallback; or, for an ensemble, that of the first arm with a student,
    or else with any model that is no ensemble.
    """
    running = [other for other in arms if not other.halted]
    if spec.fallback is not None:
        return next((other.served.scorer for other in running if other.name == spec.fallback), None)
    if not arm.served.scorer.is_ensemble:
        return None
    lighter = [other.served.scorer for other in running if not other.served.scorer.is_ensemble]
    students = [scorer for scorer in lighter if scorer.bundle.manifest.teachers]
    return next(iter(students or lighter), None)


def find_version(plan: Plan, name: str, version: str | None) -> Served | Version:
    """What a model route means: the live version, or another that has to be brought.

    Raises `Refusal` for a model that is not there or a version that is no number.
    """
    served = plan.live.get(name)
    if served is None:
        raise Refusal(Code.UNKNOWN_MODEL, "no such model is live", field="name")
    if version is None:
        return served
    if not (version.isascii() and version.isdecimal() and len(version) <= 9 and not version.startswith("0")):
        raise Refusal(Code.UNKNOWN_VERSION, "a version is a whole number from 1", field="version")
    number = int(version)
    return served if served.scorer.bundle.version == number else (name, number)
