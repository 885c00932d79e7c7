"""Hot reload: what is published goes live, what is broken is refused, and what was live goes on answering."""

import asyncio
import json
import shutil
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from service.app import Service
from tests.models.building import set_live
from tests.models.tiny_bundle import write_tiny_bundle
from tests.service.bundles import write_other_inputs, write_wrong_golden
from tests.service.running import ask, expected_pctr, make_app, metric, request_of, started


async def version_of(app: Service, path: str = "/models/student/predict") -> int:
    reply = await ask(app, path, json.dumps(request_of(1)).encode())
    assert reply is not None
    assert reply.status == 200, reply.body
    return int(reply.json()["version"])


async def is_live(app: Service, version: int) -> bool:
    return await version_of(app) == version


async def eventually(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    for _ in range(1000):
        if await condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"waited in vain until {what}")


async def scrape(app: Service) -> str:
    reply = await ask(app, "/metrics", method="GET")
    assert reply is not None
    return reply.body.decode()


def in_app(repository: Path, body: Callable[[Service], Awaitable[Any]], **settings: Any) -> Any:
    async def run() -> Any:
        async with started(make_app(repository, **settings)) as app:
            return await body(app)

    return asyncio.run(run())


def test_a_new_version_goes_live_without_a_failed_request(own_repository: Path):
    """Requests flow while version 2 is published: all are answered, first by 1 and then by 2, never back."""

    async def publish(app: Service) -> list[int]:
        seen: list[int] = []
        loop = asyncio.get_running_loop()
        writing = loop.run_in_executor(None, lambda: write_tiny_bundle(own_repository, "student", bias=2.0))
        while not seen or seen[-1] == 1:
            seen.append(await version_of(app))
            await asyncio.sleep(0.001)
            assert len(seen) < 20_000
        await writing
        seen += [await version_of(app) for _ in range(20)]
        return seen

    seen = in_app(own_repository, publish)

    assert seen == sorted(seen)
    assert set(seen) == {1, 2}


def test_an_answer_never_mixes_versions(own_repository: Path):
    """While versions change, the scores of each answer are all of the version that it names."""
    biases = {1: 0.0, 2: 3.0, 3: -3.0}

    async def publish(app: Service) -> list[dict[str, Any]]:
        answers: list[dict[str, Any]] = []

        async def ask_on() -> None:
            while not answers or answers[-1]["version"] < 3:
                body = json.dumps(request_of(*range(20))).encode()
                reply = await ask(app, "/models/student/predict", body)
                assert reply is not None
                answers.append(reply.json())
                await asyncio.sleep(0)

        asking = [asyncio.create_task(ask_on()) for _ in range(4)]
        for version in (2, 3):
            await asyncio.to_thread(write_tiny_bundle, own_repository, "student", bias=biases[version])
            await eventually(partial(is_live, app, version), f"{version} is live")
        await asyncio.gather(*asking)
        return answers

    answers = in_app(own_repository, publish)

    expected = {version: expected_pctr(request_of(*range(20)), bias) for version, bias in biases.items()}
    assert {answer["version"] for answer in answers} == {1, 2, 3}
    for answer in answers:
        assert answer["pctr"] == pytest.approx(expected[answer["version"]], rel=1e-4)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "reason"), [("bit", "bundle"), ("missing", "bundle"), ("golden", "golden"), ("graph", "graph")]
)
def test_a_bad_version_is_refused_and_the_old_one_serves_on(own_repository: Path, damage: str, reason: str):
    """Counted once, logged, never live; a good one after it goes live."""

    def publish_bad() -> None:
        if damage == "golden":
            write_wrong_golden(own_repository, "student")
        elif damage == "graph":
            write_other_inputs(own_repository, "student")
        else:
            elsewhere = own_repository.parent / "elsewhere"
            shutil.copytree(own_repository / "student", elsewhere / "student")
            written = write_tiny_bundle(elsewhere, "student", bias=5.0)
            if damage == "bit":
                flip_a_bit(written / "model.onnx")
            else:
                (written / "golden.json").unlink()
            written.rename(own_repository / "student" / "2")

    async def publish(app: Service) -> tuple[int, str, int]:
        await asyncio.to_thread(publish_bad)

        async def refused() -> bool:
            return metric(await scrape(app), "retort_model_load_failures_total", model="student", reason=reason) == 1

        await eventually(refused, "the bad version is refused")
        await asyncio.sleep(0.2)  # several more looks at the repository
        meanwhile = await version_of(app)
        text = await scrape(app)
        await asyncio.to_thread(write_tiny_bundle, own_repository, "student", bias=2.0)
        await eventually(partial(is_live, app, 3), "the good version is live")
        return meanwhile, text, await version_of(app, "/models/student/versions/1/predict")

    meanwhile, text, explicit = in_app(own_repository, publish)

    assert meanwhile == 1
    assert metric(text, "retort_model_load_failures_total") == 1
    assert metric(text, "retort_model_info", model="student") == 1
    assert explicit == 1


def test_a_repaired_version_is_tried_again(own_repository: Path):
    """Whoever copied a folder in piece by piece, instead of renaming it, gets it served when it is whole."""
    elsewhere = own_repository.parent / "elsewhere"
    shutil.copytree(own_repository / "student", elsewhere / "student")
    whole = write_tiny_bundle(elsewhere, "student", bias=2.0)

    async def copy_slowly(app: Service) -> int:
        target = own_repository / "student" / "2"
        for path in sorted(whole.rglob("*")):
            destination = target / path.relative_to(whole)
            if path.is_dir():
                destination.mkdir(parents=True)
            else:
                destination.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, destination)
                await asyncio.sleep(0.05)
        await eventually(partial(is_live, app, 2), "the whole version is live")
        return await version_of(app)

    assert in_app(own_repository, copy_slowly) == 2


def test_writing_the_live_file_rolls_back_and_forward(own_repository: Path):
    """A number pins, `latest` lets go; nonsense changes nothing and is counted."""
    write_tiny_bundle(own_repository, "student", bias=2.0)

    async def roll(app: Service) -> tuple[list[int], str]:
        seen = [await version_of(app)]
        for live, version in ((1, 1), ("latest", 2), (1, 1)):
            set_live(own_repository, "student", live)
            await eventually(partial(is_live, app, version), f"{live} is live")
            seen.append(await version_of(app))
        (own_repository / "student" / "live").write_text("newest")

        async def counted() -> bool:
            return metric(await scrape(app), "retort_model_load_failures_total", model="student", reason="live") == 1

        await eventually(counted, "the live file is refused")
        await asyncio.sleep(0.1)
        seen.append(await version_of(app))
        return seen, await scrape(app)

    seen, text = in_app(own_repository, roll)

    assert seen == [2, 1, 2, 1, 1]
    assert metric(text, "retort_model_load_failures_total") == 1


def test_a_worker_that_starts_beside_a_bad_newest_version_serves_the_one_before(own_repository: Path):
    """So it agrees with the workers that were there before the bad one was published."""
    write_wrong_golden(own_repository, "student")

    async def look(app: Service) -> tuple[int, str]:
        return await version_of(app), await scrape(app)

    version, text = in_app(own_repository, look)

    assert version == 1
    assert metric(text, "retort_model_load_failures_total", model="student", reason="golden") == 1


def test_a_model_that_appears_later_is_served(own_repository: Path):
    """Publishing the first version of a new name is enough."""

    async def publish(app: Service) -> tuple[int, int]:
        body = json.dumps(request_of(1)).encode()
        before = await ask(app, "/models/control/predict", body)
        await asyncio.to_thread(write_tiny_bundle, own_repository, "control", bias=-1.0)

        async def served() -> bool:
            reply = await ask(app, "/models/control/predict", body)
            return reply is not None and reply.status == 200

        await eventually(served, "the new model is served")
        assert before is not None
        return before.status, await version_of(app, "/models/control/predict")

    assert in_app(own_repository, publish) == (404, 1)


def test_versions_that_are_asked_for_are_kept_within_bounds(own_repository: Path):
    """With room for one extra version, asking for two of them in turn keeps one; a version that is not live is
    answered by itself, and one that is not there is a 404."""
    for bias in (2.0, 3.0, 4.0):
        write_tiny_bundle(own_repository, "student", bias=bias)

    async def visit(app: Service) -> tuple[list[int], float, int]:
        paths = [f"/models/student/versions/{version}/predict" for version in (1, 2, 1, 3, 4)]
        seen = [await version_of(app, path) for path in paths]
        loaded = metric(await scrape(app), "retort_model_info", model="student")
        missing = await ask(app, "/models/student/versions/5/predict", json.dumps(request_of(1)).encode())
        assert missing is not None
        return seen, loaded, missing.status

    assert in_app(own_repository, visit, max_loaded_extra=1) == ([1, 2, 1, 3, 4], 2, 404)


def test_a_refused_version_that_is_asked_for_is_not_ready(own_repository: Path):
    """It is there and must not be served: 503, not a score, and it is not loaded again for every request."""
    write_wrong_golden(own_repository, "student")

    async def visit(app: Service) -> tuple[list[int], float]:
        body = json.dumps(request_of(1)).encode()
        replies = [await ask(app, "/models/student/versions/2/predict", body) for _ in range(5)]
        failures = metric(await scrape(app), "retort_model_load_failures_total")
        return [reply.status for reply in replies if reply is not None], failures

    assert in_app(own_repository, visit) == ([503] * 5, 1)


def test_a_repository_that_goes_away_and_comes_back_changes_nothing(own_repository: Path):
    """A file system that is unmounted for a moment is not the wish to serve nothing."""
    away = own_repository.with_name("away")

    async def unmount(app: Service) -> tuple[int, float, int]:
        own_repository.rename(away)
        await asyncio.sleep(0.2)
        without = await version_of(app)
        loaded = metric(await scrape(app), "retort_model_info")
        away.rename(own_repository)
        await asyncio.to_thread(write_tiny_bundle, own_repository, "student", bias=2.0)
        await eventually(partial(is_live, app, 2), "a version published after it is live")
        return without, loaded, await version_of(app)

    assert in_app(own_repository, unmount) == (1, 2, 2)


def test_a_model_that_is_removed_is_no_longer_served(own_repository: Path):
    """Unless an experiment needs it: what an arm follows stays, whatever becomes of its folder."""
    write_tiny_bundle(own_repository, "control", bias=-1.0)

    async def remove(app: Service) -> tuple[int, int]:
        body = json.dumps(request_of(1)).encode()
        assert await version_of(app, "/models/control/predict") == 1
        for name in ("control", "student"):
            (own_repository / name).rename(own_repository.with_name(f"removed-{name}"))

        async def gone() -> bool:
            reply = await ask(app, "/models/control/predict", body)
            return reply is not None and reply.status == 404

        await eventually(gone, "the removed model is not served")
        await asyncio.sleep(0.1)
        return await version_of(app, "/models/student/predict"), await version_of(app, "/predict")

    assert in_app(own_repository, remove) == (1, 1)
