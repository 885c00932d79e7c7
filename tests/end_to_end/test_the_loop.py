"""The loop: simulated users meet a live service, the results find the truth that the simulator knows, and what was
logged becomes the next version that the service answers with."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from service.__main__ import main as service_main
from tests.end_to_end.world_bundles import GUESSES, KNOWS, write_world_bundle
from tests.service.running import PATIENCE_SECONDS, Running, running_service, wait_for
from training.calibrate import Platt
from training.cli import main as training_main
from training.data.synthetic import World
from training.export import About, build_cards, publish
from training.pipeline import plan
from training.recipe import load_recipe
from training.serving_graph import Head
from training.simulate.auctions import Auctions, Terms
from training.simulate.connection import Address
from training.simulate.run import look_at
from training.simulate.tally import Tally
from training.simulate.traffic import Play, play
from training.stages import in_order

TERMS = Terms(days=3, day=2, candidates=5)
FAIR, HARMED = "fair", "harmed"
ANALYSIS = """
    guard_rails: {max_ctr_loss: 0.1}
    analysis: {attribution_window_seconds: 3600, expected_impressions: 2000}
"""
EXPERIMENTS = f"""
format_version: 1
experiments:
  - name: {FAIR}
    salt: fair-1
    default: true
    arms:
      - {{name: ensemble, model: ensemble, version: latest, follow: true, weight: 0.5}}
      - {{name: student, model: student, version: latest, follow: true, weight: 0.5}}
    {ANALYSIS.strip()}
  - name: {HARMED}
    salt: harmed-1
    arms:
      - {{name: control, model: student, version: latest, follow: true, weight: 0.5}}
      - {{name: treatment, model: student, version: latest, follow: true, weight: 0.5}}
    {ANALYSIS.strip()}
"""
FAR = "4000000000"
"""A moment at which every window has closed."""


@dataclass(frozen=True)
class Played:
    """A live service, its log, and the truth of what was played against it, by experiment."""

    service: Running
    folder: Path
    truth: dict[str, Any]

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def results(self, experiment: str) -> dict[str, Any]:
        """What `python -m service results` says."""
        out = self.folder / f"{experiment}.json"
        options = ["--experiments", str(self.folder / "e.yaml"), "--experiment", experiment, "--log", str(self.log)]
        assert service_main(["results", *options, "--as-of", FAR, "--format", "json", "--out", str(out)]) == 0
        return dict(json.loads(out.read_text()))


def simulated(
    world: World,
    service: Running,
    experiment: str,
    requests: int | None,
    until_halted: str | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Everybody is patient, so that it is the same on every machine. `until_halted`: the arm that ends it."""
    run_name = f"{experiment}-{requests}"
    auctions = Auctions(replace(TERMS, run=run_name, experiment=experiment), world)
    options = {"rate": 5000.0, "connections": 8, "click_delay_seconds": 0.05, "patience_ms": 1e6, **settings}
    asked = Play(Address.of(f"http://127.0.0.1:{service.port}"), requests=requests, **options)

    async def run() -> dict[str, Any]:
        async def blocks(number: int) -> Any:
            return auctions.block(number)

        async def stop_when_halted() -> None:
            while not await asyncio.to_thread(halted_arms, service, experiment):
                await asyncio.sleep(0.1)
            stop.set()

        tally, stop = Tally(), asyncio.Event()
        controls = await look_at(asked, 60.0)
        looking = asyncio.create_task(stop_when_halted()) if until_halted else None
        await asyncio.wait_for(play(asked, blocks, tally, stop, lambda line: None), PATIENCE_SECONDS)
        if looking is not None:
            await looking
        return tally.to_json(controls)

    found = asyncio.run(run())
    assert found["requests"]["answered"] == found["requests"]["arrived"], found["requests"]
    return found


def halted_arms(service: Running, experiment: str) -> list[str]:
    """Whose units get control, as the service says."""
    arms = service.request("GET", f"/experiments/{experiment}").json()["arms"]
    return [arm["name"] for arm in arms if arm["halted"]]


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Played]:
    """Two experiments in one log: in one both arms show their best ad, in the other, of equal models, one its worst."""
    folder, world = tmp_path_factory.mktemp("loop"), World(seed=0, days=3)
    auctions = Auctions(TERMS, world).block(0)
    write_world_bundle(folder / "repository", "ensemble", world, auctions, skill=GUESSES, teachers=3)
    write_world_bundle(folder / "repository", "student", world, auctions, skill=KNOWS)
    (folder / "e.yaml").write_text(EXPERIMENTS)
    options = ["--repository", str(folder / "repository"), "--experiments", str(folder / "e.yaml")]
    options += ["--log", str(folder / "log"), "--log-features", "1", "--max-in-flight", "1000"]
    options += ["--guard-rail-seconds", "0.5"]
    with running_service(folder / "service.txt", *options) as service:
        truth = {
            FAIR: simulated(world, service, FAIR, 1400, duplicates=0.05, orphans=0.02),
            HARMED: simulated(world, service, HARMED, None, until_halted=True, harm="treatment", rate=300.0),
        }
        yield Played(service, folder, truth)


def test_the_results_find_the_truth(played: Played):
    """The lift's interval covers what the simulator knows and excludes zero, the split is clean, the decision is right.

    The ensemble here guesses and the student knows how good an ad is, so the truth is a lift of a third or more.
    """
    truth = {arm["arm"]: arm for arm in played.truth[FAIR]["arms"]}
    found = played.results(FAIR)
    (comparison,), (decision,) = found["comparisons"], found["decisions"]
    low, high = comparison["relative"]["always"]

    assert truth["student"]["expected_lift"] > 0.3
    assert 0 < low < truth["student"]["expected_lift"] < high
    assert decision["action"] == "ship"
    assert found["split"]["reasons"] == []
    assert found["split"]["units_misplaced"] == 0


def test_the_results_count_what_the_simulator_sent(played: Played):
    """Impressions and clicks of each arm, its units, what was sent twice and what is nobody's: to the last one."""
    truth, found = played.truth[FAIR], played.results(FAIR)
    sent, log = truth["feedback"], found["log"]

    for arm in truth["arms"]:
        (same,) = (one for one in found["arms"] if one["arm"] == arm["arm"])
        assert [same[name] for name in ("units", "impressions", "clicks")] == [
            arm[name] for name in ("units", "impressions", "clicks")
        ]
        assert same["exposures"] == arm["impressions"]
    assert sent["duplicates"] > 20
    assert sent["orphans"] > 10
    assert sent["known"] + log["log_duplicate_events"] == sent["duplicates"]
    assert log["log_orphan_events"] == sent["orphans"]
    assert sent["accepted"] == sent["impressions"] + sent["clicks"] + sent["orphans"]
    wrong = ("misplaced", "skewed", "late", "other")
    assert {name: log[f"log_{name}_events"] for name in wrong} == dict.fromkeys(wrong, 0)


def test_a_harmful_arm_is_stopped(played: Played):
    """It shows its worst ad, as good as its model is: while users come, a guard-rail halts it, and whoever comes after
    gets control. The results of the log say the same."""
    truth = {arm["arm"]: arm for arm in played.truth[HARMED]["arms"]}
    world = World(seed=TERMS.world_seed, days=TERMS.days)
    after = simulated(world, played.service, HARMED, 64, harm="treatment")
    found = played.results(HARMED)
    (decision,) = found["decisions"]
    (treatment,) = (arm for arm in found["arms"] if arm["arm"] == "treatment")

    assert truth["treatment"]["expected_lift"] < -0.5
    assert halted_arms(played.service, HARMED) == ["treatment"]
    assert halted_arms(played.service, FAIR) == []
    assert {arm["arm"] for arm in after["arms"]} == {"control"}
    assert treatment["impressions"] == truth["treatment"]["impressions"]
    assert decision["action"] == "roll back"
    assert {rail["name"]: rail["crossed"] for rail in treatment["guard_rails"]} == {"ctr_loss": True}


SMALL = [
    *(f"teachers.{name}=null" for name in ("lr", "dnn", "deepfm", "dcnv2", "ipnn")),
    *("teachers.fm.options.dim=4", "teachers.fm.fit.max_epochs=1", "merge_validation=false"),
]
for _name in ("student", "control"):
    SMALL += [f"{_name}.options.hidden=[8]", f"{_name}.options.dim=4", f"{_name}.fit.max_epochs=1"]


def train(recipe: Path, folder: Path, repository: Path) -> None:
    """The recipe's student as the next version, without the other models and the report of `training run`."""
    steps = plan(load_recipe(str(recipe), SMALL), [1], runs=folder, data=None)
    needs = steps.export.needs
    for step in in_order([needs["measured"], needs["platt"], needs["graph:student"]]):
        place = step.folder(folder)
        place.mkdir(parents=True, exist_ok=True)
        needed = {name: other.folder(folder) for name, other in step.needs.items()}
        places = {"places": dict(step.places)} if step.places else {}
        step.run(place, lambda done, total, note="": None, **step.arguments, **needed, **places)
    of = {name: step.folder(folder) for name, step in needs.items()}
    head = Head(Platt(*json.loads((of["platt"] / "platt.json").read_text())["student"]))
    (folder / "cards").mkdir()
    build_cards(
        folder / "cards",
        {"student": About(head, np.load(of["student"] / "logit.npy"))},
        {"student": of["graph:student"]},
        prepared=of["prepared"],
        recipe=steps.export.arguments["recipe"],
        test=json.loads((of["measured"] / "measure.json").read_text())["test"],
        report=lambda done, total, note="": None,
    )
    publish(folder / "cards", of["prepared"], repository)


def test_what_was_logged_becomes_the_next_version(played: Played, capsys: pytest.CaptureFixture[str]):
    """Exposures with features and clicks -> a training log with every impression -> a recipe trains on it -> version 2,
    which the running service takes up by itself and answers with."""
    folder, repository = played.folder, played.folder / "repository"
    request = {"candidates": [{"ad_id": "a00001"}]}
    before = played.service.request("POST", "/models/student/predict", request).json()

    schema = repository / "student" / "1" / "schema.json"
    told = ["from-log", str(played.log), "--schema", str(schema), "--out", str(folder / "next"), "--as-of", FAR]
    assert training_main([*told, "--window", "3600"]) == 0
    train(Path(capsys.readouterr().out.splitlines()[-1]), folder / "run", repository)

    arms = played.truth[FAIR]["arms"]
    table = pq.read_table(folder / "next" / "log.parquet")
    fair = table.filter(pc.equal(table["experiment"], FAIR))
    assert len(fair) == sum(arm["impressions"] for arm in arms)
    assert sum(fair["click"].to_pylist()) == sum(arm["clicks"] for arm in arms)
    assert set(table["propensity"].to_pylist()) == {0.5}
    assert before["version"] == 1
    wait_for(
        lambda: played.service.request("POST", "/models/student/predict", request).json()["version"] == 2,
        "the service answers with version 2",
    )
    answers = [
        played.service.request("POST", "/predict", {**request, "unit_id": f"u{number}"}).json() for number in range(20)
    ]
    assert {(answer["arm"], answer["version"]) for answer in answers} == {("ensemble", 1), ("student", 2)}
    assert all(0 < answer["pctr"][0] < 1 for answer in answers)
