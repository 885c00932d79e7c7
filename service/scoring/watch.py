"""Keeps the plan in step with the disk: the repository and the experiment file, looked at a few times a second.

Two loops, so that a new experiment file never waits for a model that happens to be loading. Workers do not
talk to each other: they agree because they look at the same files, which are replaced atomically. What cannot
be used is refused, counted and logged, and the last good state kept; at startup it stops the program instead.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import models
from models.errors import ModelNotFoundError
from service.errors import ConfigError, ExperimentError, ModelLoadError, NoModelError, PhaseError
from service.experiments.file import Arm, Experiment, ExperimentFile, read_experiments
from service.experiments.phases import check_change
from service.experiments.state import Halt, PhaseKey, read_halts, settle_latest
from service.metrics import Metrics
from service.scoring.plan import Plan, build_plan
from service.scoring.registry import Fingerprint, Registry, Version, fingerprint_of
from service.settings import Settings

logger = logging.getLogger(__name__)

MOST_NAMES = 10
"""That a line of the log has."""
SHIPPED = Path(models.__file__).parent / "experiments.yaml"


def implied_experiments(models: list[str]) -> ExperimentFile:
    """What runs where no experiment file is named: the only model there is, or the experiment that is shipped."""
    if len(models) == 1:
        arm = Arm(name=models[0], model=models[0], follow=True, weight=1)
        only = Experiment(name="default", salt="default", default=True, arms=(arm,))
        return ExperimentFile(format_version=1, experiments=(only,))
    if {"ensemble", "student"} <= set(models):
        return read_experiments(SHIPPED)
    raise ConfigError(
        f"the repository holds {len(models)} models ({', '.join(models)}): say which of them answers, "
        "with an experiment file and --experiments (docs/experiments.md)"
    )


class Watcher:
    """Makes the first plan, then a new one whenever something changes, and hands each to `publish`."""

    def __init__(
        self, settings: Settings, registry: Registry, metrics: Metrics, publish: Callable[[Plan], None]
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._metrics = metrics
        self._publish = publish
        self._file: ExperimentFile | None = None
        self._fixed: dict[tuple[str, str], int] = {}
        self._halts: dict[PhaseKey, dict[str, Halt]] = {}
        self._seen: Fingerprint | None = None
        self._seen_state: Fingerprint | None = None
        self._waiting_for_models: tuple[int, ExperimentFile] | None = None
        self._looking = asyncio.Lock()
        self._adopting = asyncio.Lock()

    async def start(self) -> None:
        """Loads what is there and publishes the first plan; raises what should stop the program.

        `ConfigError` for an experiment file that cannot be used, `NoModelError` where a model it needs, or
        every model, cannot be served.
        """
        await self._registry.refresh()
        live = sorted(self._registry.live)
        reasons = "; ".join(self._registry.refusals()) or "it holds no version of any model"
        if not live:
            raise NoModelError("", "none", f"nothing to serve in {self._settings.repository}: {reasons}")
        path = self._settings.experiments
        if path is None:
            file = implied_experiments(live)
        else:
            self._seen = await self._registry.look(lambda: fingerprint_of(path))
            file = await self._registry.look(lambda: read_experiments(path))
        state = self._settings.state_file
        if state is not None:
            self._seen_state = await self._registry.look(lambda: fingerprint_of(state))
            self._halts = await self._registry.look(lambda: read_halts(state))
        try:
            await self._adopt(file)
        except ModelLoadError as error:
            raise NoModelError(error.model, error.reason, str(error)) from error

    async def follow(self) -> None:
        """Follows the disk for ever."""
        await asyncio.gather(
            self._repeat(self.look_at_repository, "the repository"),
            self._repeat(self._look_at_experiments, "the experiment file"),
        )

    async def _repeat(self, look: Callable[[], object], what: str) -> None:
        while True:
            await asyncio.sleep(self._settings.poll_seconds)
            try:
                result = look()
                assert asyncio.iscoroutine(result)
                await result
            except Exception:  # whatever it was, the next look may go well, and serving goes on
                logger.exception("looking at %s failed", what)
                await asyncio.sleep(1.0)

    async def look_at_repository(self) -> None:
        """Follows what the repository says now; returns when it is served, or refused."""
        async with self._looking:
            if await self._registry.refresh():
                self._rebuild()  # before what is no longer live is released
                self._registry.release()

    async def look_at_state(self) -> None:
        """Follows which arms are halted; returns when that is in force."""
        path = self._settings.state_file
        if path is None:
            return
        fingerprint = await self._registry.look(lambda: fingerprint_of(path))
        if fingerprint == self._seen_state:
            return
        self._seen_state = fingerprint
        try:
            halts = await self._registry.look(lambda: read_halts(path))
        except ExperimentError as error:
            self._refuse(error)
            return
        if halts != self._halts:
            self._halts = halts
            self._rebuild()
            names = sorted(f"{arm} of {key[0]}" for key, arms in halts.items() for arm in arms)
            logger.info("arms that guard-rails have halted: %s", ", ".join(names) or "none")

    async def bring_into_force(self, file: ExperimentFile, write: Callable[[], None]) -> None:
        """Brings a file into force here that `write` puts on the disk, for the other workers, once all of it is proven.

        Raises `ExperimentError` or `ModelLoadError` where it cannot be; then nothing is written, and nothing changed.
        """
        path = self._settings.experiments
        assert path is not None

        def write_and_look() -> Fingerprint | None:
            write()
            return fingerprint_of(path)

        async with self._adopting:
            await self._adopt(file, write_and_look)
            self._waiting_for_models = None

    async def _look_at_experiments(self) -> None:
        async with self._adopting:
            await self._follow_experiments()

    async def _follow_experiments(self) -> None:
        path = self._settings.experiments
        if path is None:
            return
        waiting = self._waiting_for_models
        if waiting is not None and waiting[0] != self._registry.generation:
            await self._try_to_adopt(waiting[1])
        await self.look_at_state()
        fingerprint = await self._registry.look(lambda: fingerprint_of(path))
        if fingerprint == self._seen:
            return
        self._seen = fingerprint
        self._waiting_for_models = None
        try:
            file = await self._registry.look(lambda: read_experiments(path))
        except ExperimentError as error:
            self._refuse(error)
            return
        await self._try_to_adopt(file)

    async def _try_to_adopt(self, file: ExperimentFile) -> None:
        generation = self._registry.generation
        before = self._file
        try:
            await self._adopt(file)
        except (ExperimentError, ModelLoadError) as error:
            self._waiting_for_models = (generation, file)  # a model that is still to come may make it right
            self._refuse(error)
        else:
            self._waiting_for_models = None
            _note_phases(before, file)
            logger.info("the experiment file is in force: %s", _what_is_new(before, file))

    def _refuse(self, error: Exception) -> None:
        self._metrics.experiment_reload_failures.inc()
        logger.error("the experiment file is refused, the last good one stays in force: %s", error)

    async def _adopt(self, file: ExperimentFile, write: Callable[[], Fingerprint | None] | None = None) -> None:
        """Brings a valid file into force: settles `latest`, loads what its arms name, publishes the plan. In between,
        `write` puts a file that is not on the disk yet there, and tells what is there then."""
        fixed = await self._settle(file)
        wanted = self._versions(file, fixed)
        try:
            self._registry.pinned |= wanted
            for model, version in sorted(wanted):
                try:
                    await self._registry.load(model, version)
                except ModelNotFoundError as error:
                    raise ExperimentError(f"an arm needs model '{model}' version {version}: {error}") from None
            plan, under = self._build(file, fixed), self._conditions()
            if write is not None:
                seen = await self._registry.look(write)
                if self._conditions() != under:  # other versions are live since, or other arms halted
                    plan = self._build(file, fixed)
                self._seen = seen
            self._file, self._fixed = file, fixed
        finally:
            if self._file is not None:
                self._registry.pinned = self._versions(self._file, self._fixed)
                self._registry.followed = {arm.model for e in self._file.experiments for arm in e.arms if arm.follow}
                self._registry.release()
        self._publish(plan)

    def _build(self, file: ExperimentFile, fixed: Mapping[tuple[str, str], int]) -> Plan:
        return build_plan(file, fixed, self._registry, self._metrics, self._halts)

    def _conditions(self) -> object:
        """What a plan rests on beside its file."""
        return dict(self._registry.live), self._halts

    async def _settle(self, file: ExperimentFile) -> dict[tuple[str, str], int]:
        """(experiment, arm) -> version, of every arm that does not follow the live one."""
        fixed = {
            (experiment.name, arm.name): arm.version
            for experiment in file.experiments
            for arm in experiment.arms
            if arm.version != "latest"
        }
        path = self._settings.state_file
        if path is None:
            return fixed

        def live_version(model: str) -> int:
            version = self._registry.live.get(model)
            if version is None:
                raise ExperimentError(f"an arm of the experiment file needs model '{model}', which is not live")
            return version

        return fixed | await self._registry.look(lambda: settle_latest(path, file.experiments, live_version))

    @staticmethod
    def _versions(file: ExperimentFile, fixed: dict[tuple[str, str], int]) -> set[Version]:
        return {
            (arm.model, fixed[experiment.name, arm.name])
            for experiment in file.experiments
            for arm in experiment.arms
            if (experiment.name, arm.name) in fixed
        }

    def _rebuild(self) -> None:
        """A new plan for the same file, after other versions went live."""
        assert self._file is not None
        try:
            self._publish(self._build(self._file, self._fixed))
        except ExperimentError as error:
            logger.error("the last good plan stays in force: %s", error)


def _what_is_new(before: ExperimentFile | None, after: ExperimentFile) -> str:
    """Of hundreds of experiments, those that a change is about: each worker says it at every change."""
    known = {} if before is None else {experiment.name: experiment for experiment in before.experiments}
    here = {experiment.name for experiment in after.experiments}
    told = [f"{len(here)} experiments" if len(here) != 1 else "1 experiment"]
    for what, names in (
        ("new or changed", [one.name for one in after.experiments if known.get(one.name) != one]),
        ("gone", [name for name in known if name not in here]),
    ):
        if names:
            more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
            told.append(f"{what}: {', '.join(names[:MOST_NAMES])}{more}")
    return "; ".join(told)


def _note_phases(before: ExperimentFile | None, after: ExperimentFile) -> None:
    """Says where an edit by hand changes within a phase what a phase promises to keep. It is in force all the same:
    whoever edits the file may know better, and a restart does not even know what was there before."""
    known = {} if before is None else {experiment.name: experiment for experiment in before.experiments}
    for experiment in after.experiments:
        try:
            check_change(known.get(experiment.name), experiment)
        except PhaseError as error:
            logger.warning("experiment '%s' is in force, though %s", experiment.name, error)
