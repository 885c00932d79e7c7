"""Hot reload: what is published goes live, what is broken is refused, and what was live goes on answering."""

import asyncio
import json
import shutil
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from service.app import Service
from service.errors import ModelLoadError
from service.metrics import Metrics
from service.scoring.registry import LOAD_SHARE, Registry
from tests.models.building import set_live
from tests.models.tiny_bundle import write_tiny_bundle
from tests.service.bundles import write_other_inputs, write_wrong_golden
from tests.service.running import PATIENCE_SECONDS, Reply, ask, expected_pctr, make_app, metric, request_of, started


async def version_of(app: Service, path: str = "/models/student/predict") -> int:
    reply = await ask(app, path, json.dumps(request_of(1)).encode())
    assert reply is not None
    assert reply.status == 200, reply.body
    return int(reply.json()["version"])


async def is_live(app: Service, version: int) -> bool:
    return await version_of(app) == version


async def eventually(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    until = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < until:
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


def test_a_new_version_knows_the_candidates_of_the_one_before(own_repository: Path):
    """From its first request on: nobody waits because a version was published."""

    async def publish(app: Service) -> tuple[list[bytes], list[bytes]]:
        await version_of(app)
        assert app.plan is not None
        before = app.plan.live["student"].scorer.candidates.latest(100)
        await asyncio.to_thread(write_tiny_bundle, own_repository, "student", bias=2.0)
        while app.plan.live["student"].scorer.bundle.version == 1:
            await asyncio.sleep(0.001)
        return before, app.plan.live["student"].scorer.candidates.latest(100)

    before, after = in_app(own_repository, publish)

    assert before
    assert sorted(after) == sorted(before)


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


def test_every_edit_of_the_live_file_that_cannot_be_honoured_is_counted(
    own_repository: Path, caplog: pytest.LogCaptureFixture
):
    """A version that was refused long ago, one that is not there, nonsense, and the same nonsense written again: each
    is logged and counted, once; version 1 stays live, though 3 would load."""
    write_wrong_golden(own_repository, "student")  # version 2
    write_tiny_bundle(own_repository, "student", bias=3.0)
    write_wrong_golden(own_repository, "student")  # version 4, the newest
    live = own_repository / "student" / "live"
    live.write_text("1\n")

    async def edit(app: Service) -> list[int]:
        seen = []

        async def has_counted(count: int) -> bool:
            text = await scrape(app)
            return metric(text, "retort_model_load_failures_total", model="student", reason="live") == count

        for count, text in enumerate(("2\n", "7\n", "newest", "newest", "4\n", "2\n"), start=1):
            live.with_name(".new").write_text(text)
            live.with_name(".new").replace(live)
            await eventually(partial(has_counted, count), f"edit {count} is counted")
            await asyncio.sleep(0.1)  # several more looks at it
            assert await has_counted(count)
            seen.append(await version_of(app))
        return seen

    assert in_app(own_repository, edit) == [1] * 6
    said = [record.getMessage() for record in caplog.records if "live is still: 1" in record.getMessage()]
    assert len(said) == 6
    assert "names version 2, which is refused" in said[0]
    assert "names version 7, which is not there" in said[1]


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


async def ask_version(app: Service, version: int) -> Reply:
    reply = await ask(app, f"/models/student/versions/{version}/predict", json.dumps(request_of(1)).encode())
    assert reply is not None
    return reply


async def ask_patiently(app: Service, version: int) -> Reply:
    """Again as long as the answer is to come back later."""
    replies: list[Reply] = []

    async def answered() -> bool:
        replies.append(await ask_version(app, version))
        return replies[-1].status != 429

    await eventually(answered, f"version {version} is answered")
    return replies[-1]


def test_versions_that_are_asked_for_are_kept_within_bounds(own_repository: Path):
    """With room for one extra version, asking for two of them in turn keeps one; a version that is not live is
    answered by itself, and one that is not there is a 404."""
    for bias in (2.0, 3.0, 4.0):
        write_tiny_bundle(own_repository, "student", bias=bias)

    async def visit(app: Service) -> tuple[list[int], float, int]:
        seen = [(await ask_patiently(app, version)).json()["version"] for version in (1, 2, 1, 3, 4)]
        loaded = metric(await scrape(app), "retort_model_info", model="student")
        return seen, loaded, (await ask_version(app, 5)).status

    assert in_app(own_repository, visit, max_loaded_extra=1) == ([1, 2, 1, 3, 4], 2, 404)


def test_a_storm_of_versions_loads_one_and_asks_the_rest_to_come_back(own_repository: Path):
    """Twenty versions asked for at once: one is loaded, for the others it is 429 with Retry-After, without a place of
    admission held; the live one is answered all along."""
    for number in range(20):
        write_tiny_bundle(own_repository, "student", bias=float(number))

    async def storm(app: Service) -> tuple[list[Reply], float]:
        asking = [asyncio.create_task(ask_version(app, version)) for version in range(1, 21)]
        for _ in range(3):  # one to read, one to ask for the version, one to be refused
            await asyncio.sleep(0)
        waiting, live = app.predictor.admission.in_flight, await version_of(app)
        assert (waiting, live) == (1, 21)
        replies = [await task for task in asking]
        return replies, metric(await scrape(app), "retort_model_info", model="student")

    replies, loaded = in_app(own_repository, storm, max_in_flight=30)

    assert sorted(reply.status for reply in replies) == [200] + [429] * 19
    assert loaded == 2
    for reply in replies:
        if reply.status == 429:
            assert (reply.json()["code"], reply.json()["field"]) == ("version_deferred", "version")
            assert int(reply.headers["retry-after"]) >= 1


def test_loads_for_single_requests_take_a_small_share_of_the_time(own_repository: Path):
    """Whoever asks for one version after the other, as fast as they are answered, does not keep a core busy."""
    for number in range(5):
        write_tiny_bundle(own_repository, "student", bias=float(number))

    async def visit(app: Service) -> tuple[float, float]:
        loading, began = 0.0, time.monotonic()
        for version in (1, 2, 3, 4, 5):
            reply = None
            while reply is None or reply.status == 429:
                await asyncio.sleep(0.001)
                asked = time.monotonic()
                reply = await ask_version(app, version)
            loading += time.monotonic() - asked
        await ask_patiently(app, 1)
        return loading, time.monotonic() - began

    loading, altogether = in_app(own_repository, visit, max_loaded_extra=1)

    assert loading / altogether < 3 * LOAD_SHARE  # and not nearly 1; some of it is waiting for the processor


def test_a_version_that_is_not_there_is_refused_from_memory(own_repository: Path):
    """The disk is not asked for each number that a client thinks of."""

    async def visit(app: Service) -> list[int]:
        def look(_: object) -> Any:
            raise AssertionError("the disk was asked")

        app._registry._sign = look  # type: ignore[method-assign]
        return [(await ask_version(app, version)).status for version in range(2, 100)]

    assert in_app(own_repository, visit, poll_seconds=1.0) == [404] * 98


def test_a_version_is_not_released_before_it_is_live(own_repository: Path):
    """Loaded, but not yet live when other versions are cleared away: it stays, or is taken back."""

    async def load_and_clear() -> set[tuple[str, int]]:
        registry = Registry(own_repository, Metrics(), max_extra=0)
        loading = asyncio.create_task(registry.load("student", 1))
        while ("student", 1) not in registry._loading:  # every turn of the loop: it may be there for a few only
            assert not loading.done()
            await asyncio.sleep(0)
        registry._loading["student", 1].add_done_callback(lambda _: registry.release())
        await loading
        registry.close()
        return set(registry.loaded)

    assert asyncio.run(load_and_clear()) == {("student", 1)}


def test_a_refused_version_that_is_asked_for_is_not_ready(own_repository: Path):
    """It is there and must not be served: 503, not a score, and it is not loaded again for every request."""
    write_wrong_golden(own_repository, "student")

    async def visit(app: Service) -> tuple[list[str], float]:
        details = [(await ask_version(app, 2)).json()["detail"] for _ in range(5)]
        failures = metric(await scrape(app), "retort_model_load_failures_total")
        return details, failures

    assert in_app(own_repository, visit) == (["this version was refused at load"] * 5, 1)


def test_what_is_remembered_of_a_refusal_holds_no_request(own_repository: Path):
    """Each refusal is told by an error of its own: one that is raised again keeps the frames of everybody it met."""
    write_wrong_golden(own_repository, "student")

    async def refuse_twice() -> list[ModelLoadError]:
        registry = Registry(own_repository, Metrics(), max_extra=1)
        errors = []
        for _ in range(2):
            with pytest.raises(ModelLoadError) as caught:
                await registry.load("student", 2)
            errors.append(caught.value)
        registry.close()
        return errors

    first, second = asyncio.run(refuse_twice())

    assert first is not second
    assert (first.reason, str(first)) == (second.reason, str(second))


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
