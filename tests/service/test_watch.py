"""The experiment file while the service runs: adopted whole, or refused with the last good one kept."""

import asyncio
import json
import logging
import os
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from service.app import Service
from service.errors import ConfigError, NoModelError
from service.scoring.watch import implied_experiments
from tests.models.building import set_live
from tests.models.tiny_bundle import write_tiny_bundle
from tests.service.bundles import write_wrong_golden
from tests.service.running import PATIENCE_SECONDS, ask, make_app, metric, request_of, started
from tests.service.test_registry import eventually, scrape


def arm(model: str, weight: float = 0.5, **more: Any) -> dict[str, Any]:
    return {"name": model, "model": model, "weight": weight, **more}


def experiments_file(path: Path, *arms: dict[str, Any], **more: Any) -> Path:
    """Replaces the file atomically, as an operator should."""
    experiment = {"name": "e", "salt": "s", "default": True, "arms": list(arms), **more}
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({"format_version": 1, "experiments": [experiment]}))
    temporary.replace(path)
    return path


async def answer(app: Service, **members: Any) -> dict[str, Any]:
    reply = await ask(app, "/predict", json.dumps(request_of(1, **members)).encode())
    assert reply is not None
    result: dict[str, Any] = reply.json()
    return result


async def arms_of(app: Service) -> dict[str, Any]:
    reply = await ask(app, "/experiments/e", method="GET")
    assert reply is not None
    return {arm["name"]: arm for arm in reply.json()["arms"]}


async def is_version(app: Service, arm: str, version: int) -> bool:
    return bool((await arms_of(app)).get(arm, {}).get("version") == version)


async def failures(app: Service, count: int) -> bool:
    return metric(await scrape(app), "retort_experiment_reload_failures_total") >= count


def in_app(repository: Path, experiments: Path | None, body: Callable[[Service], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        async with started(make_app(repository, experiments)) as app:
            return await body(app)

    return asyncio.run(run())


def test_an_edit_that_breaks_a_phase_is_in_force_and_warned_of(
    repository: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """Weights changed by hand within a phase: the log names the key and says what should have been done."""
    path = experiments_file(tmp_path / "e.json", arm("student", 0.5), arm("control", 0.5))

    async def change(app: Service) -> None:
        experiments_file(path, arm("student", 0.4), arm("control", 0.6))

        async def warned() -> bool:
            return "though arms[0].weight (and arms[1].weight) may not change within phase 1" in caplog.text

        await eventually(warned, "the log warns")
        assert (await arms_of(app))["control"]["buckets"] == [4000, 10_000]

    in_app(repository, path, change)


def test_of_many_experiments_the_log_names_those_that_a_change_is_about(
    repository: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """Each worker says it at every change: a name of each of hundreds would fill the log, and say nothing."""
    path = tmp_path / "e.json"

    def write(names: list[str], **more: Any) -> None:
        stated = [{"name": name, "salt": name, "arms": [arm("student", 1.0)]} for name in names]
        stated[0] |= {"default": True, **more}
        path.with_suffix(".tmp").write_text(json.dumps({"format_version": 1, "experiments": stated}))
        path.with_suffix(".tmp").replace(path)

    names = [f"e{number}" for number in range(40)]
    write(names)

    async def change(app: Service) -> None:
        async def is_said(what: str) -> None:
            async def said() -> bool:
                return what in caplog.text

            await eventually(said, what)

        write(names, salt="t", phase=2)
        await is_said("in force: 40 experiments; new or changed: e0\n")
        write([*names, *(f"new{number}" for number in range(12))], salt="t", phase=2)
        await is_said(
            "52 experiments; new or changed: new0, new1, new2, new3, new4, new5, new6, new7, new8, new9 and 2 more"
        )
        write(names[:1], salt="t", phase=2)
        await is_said("in force: 1 experiment; gone: e1, e2")

    with caplog.at_level(logging.INFO, "service.scoring.watch"):
        in_app(repository, path, change)


def test_a_new_file_is_in_force_for_the_next_request(repository: Path, tmp_path: Path):
    """Weights, arms and names change together; a unit never sees half of it."""
    path = experiments_file(tmp_path / "e.json", arm("student", 1.0))

    async def change(app: Service) -> tuple[set[str], set[str]]:
        before = {(await answer(app, unit_id=unit))["arm"] for unit in range(30)}
        experiments_file(path, arm("student", 0.5), arm("control", 0.5), salt="t", phase=2)

        async def changed() -> bool:
            return len(await arms_of(app)) == 2

        await eventually(changed, "the new file is in force")
        return before, {(await answer(app, unit_id=unit))["arm"] for unit in range(30)}

    assert in_app(repository, path, change) == ({"student"}, {"student", "control"})


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_text("{"),
        lambda path: experiments_file(path, arm("student", 0.5), arm("control", 0.4)),
        lambda path: experiments_file(path, arm("student", 0.5), arm("nobody", 0.5)),
        lambda path: experiments_file(path, arm("student", 0.5), arm("control", 0.5, version=9)),
        lambda path: path.unlink(),
    ],
    ids=["broken", "wrong weights", "an unknown model", "an unknown version", "removed"],
)
def test_a_file_that_cannot_be_used_is_refused(repository: Path, tmp_path: Path, spoil: Callable[[Path], Any]):
    """Counted once, logged with its reason; the last good one stays in force, and the next good one is taken."""
    path = experiments_file(tmp_path / "e.json", arm("student", 1.0))

    async def change(app: Service) -> tuple[str, float, str]:
        spoil(path)
        await eventually(partial(failures, app, 1), "the file is refused")
        await asyncio.sleep(0.2)  # several more looks at it
        during = (await answer(app))["arm"]
        counted = metric(await scrape(app), "retort_experiment_reload_failures_total")
        experiments_file(path, arm("control", 1.0), salt="t", phase=2)

        async def changed() -> bool:
            return (await answer(app))["arm"] == "control"

        await eventually(changed, "the good file is in force")
        return during, counted, (await answer(app))["arm"]

    assert in_app(repository, path, change) == ("student", 1, "control")


def test_a_file_that_waits_for_its_model_is_taken_when_the_model_comes(own_repository: Path, tmp_path: Path):
    """Whoever replaces the file a moment before publishing need not do it again."""
    path = experiments_file(tmp_path / "e.json", arm("student", 1.0))

    async def change(app: Service) -> str:
        experiments_file(path, arm("newcomer", 1.0), salt="t")
        await eventually(partial(failures, app, 1), "the file is refused")
        await asyncio.to_thread(write_tiny_bundle, own_repository, "newcomer", bias=3.0)

        async def changed() -> bool:
            return (await answer(app))["arm"] == "newcomer"

        await eventually(changed, "the file is in force")
        return str((await answer(app))["model"])

    assert in_app(own_repository, path, change) == "newcomer"


def test_latest_means_one_version_for_the_whole_phase(own_repository: Path, tmp_path: Path):
    """A version published within the phase serves the arm that follows and not the one that does not; the next phase
    takes it up; a worker started later finds the same."""
    path = tmp_path / "e.json"
    arms = (arm("student", 0.5), {**arm("student", 0.5, follow=True), "name": "following"})
    experiments_file(path, *arms)

    async def publish(app: Service) -> tuple[int, int]:
        await asyncio.to_thread(write_tiny_bundle, own_repository, "student", bias=2.0)
        await eventually(partial(is_version, app, "following", 2), "the arm follows")
        within = (await arms_of(app))["student"]["version"]
        assert (await answer(app, arm="student"))["version"] == within
        assert (await answer(app, arm="following"))["version"] == 2
        return within, (await arms_of(app))["following"]["version"]

    async def start_late(app: Service) -> int:
        return int((await arms_of(app))["student"]["version"])

    async def new_phase(app: Service) -> int:
        experiments_file(path, *arms, salt="t", phase=2)
        await eventually(partial(is_version, app, "student", 2), "the new phase takes the new version")
        return int((await answer(app, arm="student"))["version"])

    assert in_app(own_repository, path, publish) == (1, 2)
    assert in_app(own_repository, path, start_late) == 1
    assert in_app(own_repository, path, new_phase) == 2


def test_an_arm_may_name_a_version_that_is_not_live(own_repository: Path, tmp_path: Path):
    """It is loaded for the arm, beside the live one, and stays whatever goes live."""
    write_tiny_bundle(own_repository, "student", bias=2.0)
    path = experiments_file(
        tmp_path / "e.json", arm("student", 0.5, version=1), {**arm("student", 0.5, version=2), "name": "new"}
    )

    async def ask_both(app: Service) -> list[int]:
        set_live(own_repository, "student", 1)
        await asyncio.sleep(0.2)
        return [(await answer(app, arm=name))["version"] for name in ("student", "new")]

    assert in_app(own_repository, path, ask_both) == [1, 2]


def test_a_halted_arm_sends_its_units_to_control(repository: Path, tmp_path: Path):
    """Within the phase, for the halted arm's units alone; forcing it still works, for whoever looks into why."""
    arms = (arm("ensemble", 0.5), arm("student", 0.5))
    path = experiments_file(tmp_path / "e.json", *arms)

    async def halt(app: Service) -> tuple[dict[int, str], dict[int, str], str]:
        before = {unit: (await answer(app, unit_id=unit))["arm"] for unit in range(30)}
        experiments_file(path, *arms, halted=["student"])

        async def halted() -> bool:
            return bool((await arms_of(app))["student"]["halted"])

        await eventually(halted, "the arm is halted")
        after = {unit: (await answer(app, unit_id=unit))["model"] for unit in range(30)}
        return before, after, (await answer(app, arm="student"))["model"]

    before, after, forced = in_app(repository, path, halt)

    assert set(before.values()) == {"ensemble", "student"}
    assert set(after.values()) == {"ensemble"}
    assert forced == "student"


def test_units_outside_the_coverage_get_control(repository: Path, tmp_path: Path):
    """Coverage 0 enrols nobody; all answers are control's."""
    path = experiments_file(tmp_path / "e.json", arm("control", 0.5), arm("student", 0.5), coverage=0)

    async def ask_many(app: Service) -> set[str]:
        return {(await answer(app, unit_id=unit))["arm"] for unit in range(50)}

    assert in_app(repository, path, ask_many) == {"control"}


def test_a_file_written_in_place_is_found_too(repository: Path, tmp_path: Path):
    """Replacing is better, but an editor that writes in place is no reason to miss a change."""
    path = experiments_file(tmp_path / "e.json", arm("student", 1.0))

    async def change(app: Service) -> str:
        other = experiments_file(tmp_path / "other.json", arm("control", 1.0), salt="t").read_text()
        with path.open("r+") as file:
            file.write(other)
            file.truncate()
            os.fsync(file.fileno())

        async def changed() -> bool:
            return (await answer(app))["arm"] == "control"

        await eventually(changed, "the change is in force")
        return str((await answer(app))["arm"])

    assert in_app(repository, path, change) == "control"


def failure_of(repository: Path, experiments: Path | None = None) -> BaseException:
    """What stopped an application from becoming ready."""

    async def run() -> BaseException:
        app = make_app(repository, experiments)
        failed = asyncio.Event()
        app.on_failure = failed.set
        async with app.router.lifespan_context(app):
            await asyncio.wait_for(failed.wait(), PATIENCE_SECONDS)
            ready = await ask(app, "/health/ready", method="GET")
            assert ready is not None
            assert (ready.status, ready.json()["reasons"]) == (503, ["the models cannot be served; the log says why"])
        assert app.failure is not None
        return app.failure

    return asyncio.run(run())


def test_nothing_to_serve_stops_the_start(tmp_path: Path):
    """An empty repository, or one where every version is refused: the reason is named."""
    empty, broken = tmp_path / "empty", tmp_path / "broken"
    empty.mkdir()
    broken.mkdir()
    write_wrong_golden(broken, "student")

    assert "holds no version" in str(failure_of(empty))
    refused = failure_of(broken)
    assert isinstance(refused, NoModelError)
    assert "golden.json" in str(refused)


def test_an_experiment_without_its_model_stops_the_start(repository: Path, tmp_path: Path):
    """At the start there is no last good file to keep."""
    absent = failure_of(repository, experiments_file(tmp_path / "a.json", arm("nobody", 1.0)))
    unknown = failure_of(repository, experiments_file(tmp_path / "b.json", arm("student", 1.0, version=9)))

    assert isinstance(absent, ConfigError)
    assert "nobody" in str(absent)
    assert isinstance(unknown, ConfigError)
    assert "version 9" in str(unknown)


def test_an_arm_whose_version_is_refused_stops_the_start(own_repository: Path, tmp_path: Path):
    """It is there, but must not be served."""
    write_wrong_golden(own_repository, "student")

    refused = failure_of(own_repository, experiments_file(tmp_path / "e.json", arm("student", 1.0, version=2)))

    assert isinstance(refused, NoModelError)


def test_without_a_file_what_runs_is_obvious_or_asked_for():
    """The only model there is; or ensemble against student; or an error that names the option."""
    assert implied_experiments(["ranker"]).default.arms[0].model == "ranker"
    assert implied_experiments(["control", "ensemble", "student"]).default.name == "student-vs-ensemble"
    with pytest.raises(ConfigError, match="--experiments"):
        implied_experiments(["a", "b"])
