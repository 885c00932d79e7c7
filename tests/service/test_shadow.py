"""Another arm's model scores a sample of what was answered, off the response path."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from service.app import Service
from service.journal.joined import read_journal
from service.scoring.shadow import MAX_WAITING, bernoulli_kl
from tests.models.tiny_bundle import write_tiny_bundle
from tests.service.journal.reading import records
from tests.service.running import (
    ask,
    candidate,
    expected_pctr,
    make_app,
    metric,
    request_of,
    started,
    wait_for,
    wait_until_ready,
)
from tests.service.test_registry import eventually, scrape
from tests.service.test_watch import arm, experiments_file

TOKEN = "t" * 32


def shadowed(tmp_path: Path, sample: float = 1.0, shadow: str = "student", **more: Any) -> Path:
    """An experiment of ensemble and student with a shadow."""
    arms = more.pop("arms", (arm("ensemble"), arm("student")))
    return experiments_file(tmp_path / "e.json", *arms, shadow={"arm": shadow, "sample": sample}, **more)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "log"


@pytest.fixture
def client(repository: Path, folder: Path, tmp_path: Path) -> Iterator[TestClient]:
    """Every answered request is scored by the other arm's model too."""
    with TestClient(make_app(repository, shadowed(tmp_path), log=folder), raise_server_exceptions=False) as client:
        wait_until_ready(client)
        yield client


def scored(client: TestClient) -> float:
    return metric(client.get("/metrics").text, "retort_shadow_scored_total", experiment="e")


def test_whichever_arm_answers_the_other_ones_model_scores_the_same_candidates(client: TestClient, folder: Path):
    """In a record of its own, of the other arm, with what that arm would have answered; the answer says nothing."""
    for unit in range(20):
        answer = client.post("/predict", json=request_of(unit, unit + 1, unit_id=unit, request_id=f"r-{unit}")).json()
        assert answer.keys() == {"request_id", "experiment", "arm", "model", "version", "pctr"}
    wait_for(lambda: scored(client) == 20, "all are scored in the shadow")

    exposures = {record["request_id"]: record for record in records(folder, "exposure")}
    shadows = {record["request_id"]: record for record in records(folder, "shadow")}
    assert len(shadows) == 20
    assert {record["arm"] for record in shadows.values()} == {"ensemble", "student"}
    for request_id, shadow in shadows.items():
        unit, answered = int(request_id[2:]), exposures[request_id]
        assert {answered["arm"], shadow["arm"]} == {"ensemble", "student"}
        assert (shadow["time"], shadow["experiment"]) == (answered["time"], "e")
        assert (shadow["model"], shadow["version"]) == (shadow["arm"], 1)
        expected = expected_pctr(request_of(unit, unit + 1), bias=float(shadow["arm"] == "ensemble"))
        assert shadow["pctr"] == pytest.approx(expected, abs=1e-5)


def test_results_compare_the_two_models_by_who_chose(client: TestClient, folder: Path):
    """The joined log has both models' scores of every impression."""
    for unit in range(8):
        client.post("/predict", json=request_of(1, 2, unit_id=unit, request_id=f"r-{unit}"))
        client.post("/feedback", json={"request_id": f"r-{unit}", "candidate": 1, "event": "impression"})
    wait_for(lambda: scored(client) == 8, "all are scored in the shadow")

    rows = read_journal([folder], "e", 3600.0)

    assert rows.counts["log_shadow_scores"] == 8
    assert set(zip(rows["arm"].tolist(), rows["shadow_arm"].tolist(), strict=True)) == {
        ("ensemble", "student"),
        ("student", "ensemble"),
    }
    both = {name: expected_pctr(request_of(1, 2), bias)[1] for name, bias in (("student", 0.0), ("ensemble", 1.0))}
    for arm_name, pctr, unseen in zip(*(rows[name] for name in ("arm", "pctr", "shadow_pctr")), strict=True):
        other = "student" if arm_name == "ensemble" else "ensemble"
        assert (pctr, unseen) == pytest.approx((both[arm_name], both[other]), abs=1e-5)


def test_who_is_not_enrolled_is_scored_too_and_forced_or_halted_arms_are_not(
    repository: Path, folder: Path, tmp_path: Path
):
    """With a coverage of 0 a new model is seen on all traffic before any unit gets it. What was forced is no evidence,
    and a halted arm's units are no longer its own."""

    async def of(path: Path, log: Path, **members: Any) -> tuple[int, int]:
        async with started(make_app(repository, path, log=log)) as app:
            for unit in range(12):
                await ask(app, "/predict", json.dumps(request_of(1, unit_id=unit, **members)).encode())
            await at_rest(app)
        return len(records(log, "shadow")), len(records(log, "exposure"))

    assert asyncio.run(of(shadowed(tmp_path, coverage=0.0), tmp_path / "a")) == (12, 12)
    assert asyncio.run(of(shadowed(tmp_path), tmp_path / "b", arm="student")) == (0, 12)
    assert asyncio.run(of(shadowed(tmp_path, sample=0.0), tmp_path / "c")) == (0, 12)
    halted, of_control = shadowed(tmp_path, halted=["student"]), tmp_path / "d"
    asyncio.run(of(halted, of_control))
    assigned = {record["request_id"]: record["arm"] for record in records(of_control, "exposure")}
    assert set(assigned.values()) == {"ensemble", "student"}
    assert {assigned[record["request_id"]] for record in records(of_control, "shadow")} == {"ensemble"}


def test_a_share_is_a_share(repository: Path, tmp_path: Path):
    """Half of 200 requests, within six standard deviations."""

    async def run() -> float:
        async with started(make_app(repository, shadowed(tmp_path, sample=0.5))) as app:
            for number in range(200):
                await ask(app, "/predict", json.dumps(request_of(1, unit_id=number)).encode())
            await at_rest(app)
            text = await scrape(app)
            return metric(text, "retort_shadow_scored_total") + metric(text, "retort_shadow_dropped_total")

    assert abs(asyncio.run(run()) - 100) < 43


async def at_rest(app: Service) -> None:
    """Returns when nothing waits for the shadow."""

    async def rests() -> bool:
        return not app.shadow.is_busy

    await eventually(rests, "the shadow is done")


def test_a_model_that_reads_requests_otherwise_encodes_them_anew(tmp_path: Path, folder: Path):
    """Ids mean something within one bundle: another vocabulary gives the same value another id."""
    root = tmp_path / "repository"
    root.mkdir()
    write_tiny_bundle(root, "student", bias=0.0)
    write_tiny_bundle(root, "ensemble", bias=1.0, teachers=3)
    app = make_app(root, shadowed(tmp_path), log=folder)
    app.shadow.reads_alike = lambda one, other: False  # as two bundles with other vocabularies

    async def run() -> None:
        async with started(app):
            for number in (0, 1, 1):  # the last is known by its bytes, and is decoded for the shadow alone
                body = request_of(number, 3, unit_id=f"u-{number}", request_id=f"r-{number}")
                await ask(app, "/predict", json.dumps(body).encode())
            await at_rest(app)

    asyncio.run(run())
    found = records(folder, "shadow")
    assert len(found) == 3
    for record in found:
        number = int(record["request_id"][2:])
        expected = expected_pctr(request_of(number, 3), bias=float(record["arm"] == "ensemble"))
        assert record["pctr"] == pytest.approx(expected, abs=1e-5)


def test_candidates_that_the_catalogue_lacks_have_null_in_both_lists(repository: Path, tmp_path: Path, folder: Path):
    settings = {"catalogue": tmp_path / "ads", "admin_token": TOKEN, "log": folder}
    with TestClient(make_app(repository, shadowed(tmp_path), **settings)) as client:
        wait_until_ready(client)
        catalogue = {f"ad-{number}": candidate(number) for number in range(3)}
        lines = "\n".join(json.dumps({"id": name, "candidate": row}) for name, row in catalogue.items())
        headers = {"authorization": f"Bearer {TOKEN}", "content-type": "application/x-ndjson"}
        put = client.put("/catalogue", content=lines, headers=headers)
        assert put.status_code == 200, put.text
        body = {"context": request_of(1)["context"], "candidate_ids": ["ad-1", "nobody", "ad-2"]}
        assert client.post("/predict", json=body).status_code == 200
        wait_for(lambda: scored(client) == 1, "it is scored in the shadow")

    (shadow,) = records(folder, "shadow")
    assert [number is None for number in shadow["pctr"]] == [False, True, False]


def test_what_finds_the_queue_full_is_dropped_and_counted(repository: Path, tmp_path: Path):
    """While requests wait, nothing is scored in the shadow: it holds so many and no more."""

    async def run() -> tuple[float, float]:
        async with started(make_app(repository, shadowed(tmp_path))) as app:
            lane, queue = app.shadow, app.predictor.queue
            queue_is_busy = True
            type(queue).is_resting, before = property(lambda self: not queue_is_busy), type(queue).is_resting
            try:
                for number in range(MAX_WAITING + 7):
                    reply = await ask(app, "/predict", json.dumps(request_of(1, unit_id=number)).encode())
                    assert reply is not None
                    assert reply.status == 200
                assert metric(await scrape(app), "retort_shadow_scored_total") == 0
                queue_is_busy = False
                queue.rested()
                await at_rest(app)
            finally:
                type(queue).is_resting = before
            assert not lane.is_busy
            text = await scrape(app)
            return (
                metric(text, "retort_shadow_scored_total", experiment="e"),
                metric(text, "retort_shadow_dropped_total", experiment="e", reason="full"),
            )

    assert asyncio.run(run()) == (MAX_WAITING, 7)


def test_shadows_take_a_bounded_share_of_the_time(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """After a run the next one waits, the longer the run was: here for ever."""
    monkeypatch.setattr("service.scoring.shadow.MOST_SHARE", 1e-9)

    async def run() -> float:
        async with started(make_app(repository, shadowed(tmp_path))) as app:
            await ask(app, "/predict", json.dumps(request_of(1)).encode())
            await at_rest(app)
            for _ in range(5):
                await ask(app, "/predict", json.dumps(request_of(1)).encode())
                await asyncio.sleep(0.01)
            assert app.shadow.is_busy
            return metric(await scrape(app), "retort_shadow_scored_total")

    assert asyncio.run(run()) == 1


def test_time_that_other_processes_took_is_not_the_shadows(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A run that waits for a processor costs nothing meanwhile: the next one comes soon all the same. Here a run waits
    for a tenth of a second, of which a thousandth of the time would be the next minutes."""
    monkeypatch.setattr("service.scoring.shadow.MOST_SHARE", 1e-3)

    async def run() -> float:
        async with started(make_app(repository, shadowed(tmp_path))) as app:
            assert app.plan is not None
            for one in app.plan.experiments["e"].arms:
                one.served.scorer.score_aside = waiting_first(one.served.scorer.score_aside)
            for number in range(3):
                await ask(app, "/predict", json.dumps(request_of(1, unit_id=number)).encode())
                await at_rest(app)
            return metric(await scrape(app), "retort_shadow_scored_total")

    assert asyncio.run(run()) == 3


def waiting_first(score: Callable[..., Any]) -> Callable[..., Any]:
    """The same, after a tenth of a second without a processor."""

    def late(inputs: object) -> Any:
        time.sleep(0.1)
        return score(inputs)

    return late


def test_a_shadow_that_fails_hurts_nobody(repository: Path, tmp_path: Path, folder: Path):
    """It is counted and logged; the next is tried."""

    async def run() -> str:
        async with started(make_app(repository, shadowed(tmp_path), log=folder)) as app:
            assert app.plan is not None
            (student,) = (a for a in app.plan.experiments["e"].arms if a.name == "student")

            def fail(inputs: object) -> Any:
                raise RuntimeError("no")

            student.served.scorer.score_aside = fail
            for number in range(20):
                reply = await ask(app, "/predict", json.dumps(request_of(1, unit_id=number)).encode())
                assert reply is not None
                assert reply.status == 200
            await at_rest(app)
            return await scrape(app)

    text = asyncio.run(run())
    failed = metric(text, "retort_shadow_dropped_total", reason="failed")
    assert failed > 0
    assert failed + metric(text, "retort_shadow_scored_total") == 20


def test_the_divergence_is_that_of_two_coins():
    """Against the formula, term by term."""
    p, q = np.array([0.1, 0.5, 0.02], np.float32), np.array([0.2, 0.5, 0.01], np.float32)

    def slow(a: float, b: float) -> float:
        return a * math.log(a / b) + (1 - a) * math.log((1 - a) / (1 - b))

    expected = sum(slow(float(a), float(b)) for a, b in zip(p, q, strict=True))
    assert bernoulli_kl(p, q) == pytest.approx(expected, rel=1e-9)
    assert bernoulli_kl(p, p) == 0.0
    assert math.isfinite(bernoulli_kl(np.array([1.0], np.float32), np.array([0.0], np.float32)))
