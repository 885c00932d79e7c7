"""The loop: simulated users meet a live service, the results find the truth that the simulator knows, what was logged
becomes the next version, and that goes out by the gates: golden rows, shadow, ramp."""

from __future__ import annotations

import asyncio
import itertools
import json
import subprocess
import sys
import time
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
from tests.service.running import (
    PATIENCE_SECONDS,
    ROOT,
    TOKEN,
    Reply,
    Running,
    clean_environment,
    metric,
    running_service,
    wait_for,
)
from training.cli import main as training_main
from training.data.synthetic import World
from training.distillation.calibrate import Platt
from training.export.bundles import About, build_cards, publish
from training.export.serving_graph import Head
from training.pipeline.plan import plan
from training.pipeline.stages import in_order
from training.recipe import load_recipe
from training.simulate.auctions import Auctions, Terms
from training.simulate.connection import Address
from training.simulate.run import look_at
from training.simulate.tally import Tally
from training.simulate.traffic import Play, play

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
      - {{name: student, model: student, version: latest, follow: true, weight: 0.5}}
      - {{name: ensemble, model: ensemble, version: latest, follow: true, weight: 0.5}}
    {ANALYSIS.strip()}
  - name: {HARMED}
    salt: harmed-1
    arms:
      - {{name: control, model: ensemble, version: latest, follow: true, weight: 0.5}}
      - {{name: treatment, model: ensemble, version: latest, follow: true, weight: 0.5}}
    {ANALYSIS.strip()}
"""
RUNS = itertools.count()
CROWD = 200
"""Users who come at once."""
FAR = "4000000000"
"""A moment at which every window has closed."""
SHADOWED, TOGETHER, SAMPLE = 256, 64, 100
"""Answers of the old version that the new one scores too (of five candidates each: KL is shown from a thousand on), and
how many of them wait for it together; impressions of each arm before a ramp goes on."""
OLD = {"name": "old", "model": "student", "version": 1, "weight": 0.5}
TRY_OUT = {
    "name": FAIR,
    "default": True,
    "phase": 2,
    "salt": "fair-2",
    "coverage": 0,
    "arms": [OLD, {"name": "new", "model": "student", "version": 2, "weight": 0.5}],
    "shadow": {"arm": "new", "sample": 1},
    "guard_rails": {"max_ctr_loss": 0.3, "max_error_rate": 0.01},
    "ramp": {"steps": [0.25, 0.5], "hold_seconds": 1, "minimum_impressions": SAMPLE},
    "analysis": {"attribution_window_seconds": 1, "expected_impressions": 1000},
}
"""The next phase of the experiment that has the traffic: nobody gets the new version yet; what it says is seen."""


@dataclass(frozen=True)
class Played:
    """A live service, its log, and the truth of what was played against it, by experiment."""

    service: Running
    folder: Path
    truth: dict[str, Any]

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def change(self, method: str, path: str, body: Any, **headers: str) -> Reply:
        """As its owner, who has the token."""
        headers |= {"authorization": f"Bearer {TOKEN}", "content-type": "application/json"}
        connection = self.service.connection()
        try:
            connection.request(method, path, json.dumps(body), headers)
            reply = connection.getresponse()
            return Reply(reply.status, {}, reply.read())
        finally:
            connection.close()

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
    requests: int,
    *,
    seed: int = 1,
    tally: Tally | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """So many requests, and all feedback of them. Everybody is patient, so that it is the same on every machine.
    `seed`: other users meet other ads; `tally`: of those who came before."""
    tally = tally if tally is not None else Tally()
    tally.began = None
    run_name = f"{experiment}-{next(RUNS)}"
    auctions = Auctions(replace(TERMS, run=run_name, experiment=experiment, seed=seed), world)
    options = {"rate": 5000.0, "connections": 8, "click_delay_seconds": 0.05, "patience_ms": 1e6, **settings}
    address = Address.of(f"http://127.0.0.1:{service.port}")
    asked = Play(address, requests=tally.arrived + requests, **options)

    async def run() -> dict[str, Any]:
        async def blocks(number: int) -> Any:
            return auctions.block(number)

        controls = await look_at(asked, 60.0)
        await asyncio.wait_for(play(asked, blocks, tally, asyncio.Event(), lambda line: None), PATIENCE_SECONDS)
        return tally.to_json(controls)

    found = asyncio.run(run())
    assert found["requests"]["answered"] == found["requests"]["arrived"], found["requests"]
    return found


def simulated_until_halted(world: World, service: Running, experiment: str, **settings: Any) -> dict[str, Any]:
    """Users come in crowds, and whoever judges guard-rails has the machine after each, until an arm is halted."""
    tally, seed = Tally(), 1
    judged = "retort_guard_rails_judged_timestamp_seconds"
    while True:
        found = simulated(world, service, experiment, CROWD, seed=seed, tally=tally, **settings)
        came, seed = time.time(), seed + 1
        wait_for(
            lambda came=came: bool(halted_arms(service, experiment)) or metric(service.metrics(), judged) > came,
            "the guard-rails are judged",
        )
        if halted_arms(service, experiment):
            return found
        assert seed < 50, "nobody is halted"


def halted_arms(service: Running, experiment: str) -> list[str]:
    """Whose units get control, as the service says."""
    arms = service.request("GET", f"/experiments/{experiment}").json()["arms"]
    return [arm["name"] for arm in arms if arm["halted"]]


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Played]:
    """Two experiments in one log: in one both arms show their best ad, in the other, of equal models, one its worst."""
    folder, world = tmp_path_factory.mktemp("loop"), World(seed=0, days=3)
    auctions = Auctions(TERMS, world).block(0)
    write_world_bundle(folder / "repository", "student", world, auctions, skill=GUESSES, spread=1.5)
    write_world_bundle(folder / "repository", "ensemble", world, auctions, skill=KNOWS, teachers=3)
    (folder / "token").write_text(TOKEN)
    (folder / "e.yaml").write_text(EXPERIMENTS)
    options = ["--repository", str(folder / "repository"), "--experiments", str(folder / "e.yaml")]
    options += ["--log", str(folder / "log"), "--log-features", "1", "--max-in-flight", "1000"]
    options += ["--guard-rail-seconds", "0.5", "--admin-token-file", str(folder / "token")]
    with running_service(folder / "service.txt", *options) as service:
        truth = {
            FAIR: simulated(world, service, FAIR, 1400, duplicates=0.05, orphans=0.02),
            HARMED: simulated_until_halted(world, service, HARMED, harm="treatment"),
        }
        yield Played(service, folder, truth)


def test_the_results_find_the_truth(played: Played):
    """The lift's interval covers what the simulator knows and excludes zero, the split is clean, the decision is right.

    The student here guesses and the ensemble knows how good an ad is, so the truth is a lift of a third or more.
    """
    truth = {arm["arm"]: arm for arm in played.truth[FAIR]["arms"]}
    found = played.results(FAIR)
    (comparison,), (decision,) = found["comparisons"], found["decisions"]
    low, high = comparison["relative"]["always"]

    assert truth["ensemble"]["expected_lift"] > 0.3
    assert 0 < low < truth["ensemble"]["expected_lift"] < high
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


@pytest.fixture(scope="module")
def trained(played: Played) -> Path:
    """Exposures with features and clicks -> a training log -> a recipe trains on it -> version 2 in the repository,
    while the owner has version 1 answer. The folder of the training log."""
    folder, repository = played.folder, played.folder / "repository"
    stays = played.change("POST", "/v2/repository/models/student/load", {"parameters": {"version": "1"}})
    assert stays.status == 200
    schema = repository / "student" / "1" / "schema.json"
    told = ["from-log", str(played.log), "--schema", str(schema), "--out", str(folder / "next"), "--as-of", FAR]
    assert training_main([*told, "--window", "3600"]) == 0
    train(folder / "next" / "recipe.yaml", folder / "run", repository)
    return folder / "next"


def version_of(played: Played) -> int:
    """That answers for the student, outside any experiment."""
    request = {"candidates": [{"ad_id": "a00001"}]}
    return int(played.service.request("POST", "/models/student/predict", request).json()["version"])


def shadowed(service: Running) -> float:
    """Answers of the experiment that its shadow has scored too."""
    return metric(service.metrics(), "retort_shadow_scored_total", experiment=FAIR)


def coverage(service: Running) -> float:
    """Of the experiment, as the service has it."""
    return float(service.request("GET", f"/experiments/{FAIR}").json()["coverage"])


def test_what_was_logged_becomes_the_next_version(played: Played, trained: Path):
    """Every impression and click that the simulator knows of is a row, with its propensity; what was trained on it is
    version 2, which nobody meets before its owner says so."""
    arms = played.truth[FAIR]["arms"]
    table = pq.read_table(trained / "log.parquet")
    fair = table.filter(pc.equal(table["experiment"], FAIR))

    assert len(fair) == sum(arm["impressions"] for arm in arms)
    assert sum(fair["click"].to_pylist()) == sum(arm["clicks"] for arm in arms)
    assert set(table["propensity"].to_pylist()) == {0.5}
    assert (played.folder / "repository" / "student" / "2" / "manifest.json").exists()
    assert version_of(played) == 1


def test_a_next_version_that_scores_otherwise_than_it_was_exported_gets_no_traffic(played: Played, trained: Path):
    """The first gate, golden rows: an experiment that names such a version is refused, and nothing is written."""
    world = World(seed=TERMS.world_seed, days=TERMS.days)
    auctions = Auctions(TERMS, world).block(0)
    write_world_bundle(
        played.folder / "repository", "student", world, auctions, skill=KNOWS, golden_error=0.1
    )  # version 3
    before = (played.folder / "e.yaml").read_bytes()
    wrong = {**TRY_OUT, "arms": [OLD, {**OLD, "name": "new", "version": 3}]}

    refused = played.change("PUT", f"/experiments/{FAIR}", wrong)

    assert (refused.status, refused.json()["code"]) == (409, "experiment_refused")
    assert "golden" in refused.json()["detail"]
    assert (played.folder / "e.yaml").read_bytes() == before


def test_the_next_version_goes_out_by_shadow_and_ramp(played: Played, trained: Path):
    """Golden rows when the phase is stated; then the shadow, while nobody meets the new version, shows that it predicts
    better on what the old one chose; then `ramp` takes each step by itself, after its sample and with clean
    guard-rails; then its owner makes it the live one, and the experiment of before goes on with it."""
    service, world = played.service, World(seed=TERMS.world_seed, days=TERMS.days)
    before = service.request("GET", f"/experiments/{FAIR}")

    stated = played.change("PUT", f"/experiments/{FAIR}", TRY_OUT, **{"if-match": before.headers["etag"]})
    assert stated.status == 200, stated.body
    assert [arm["version"] for arm in stated.json()["arms"]] == [1, 2]

    for number in range(TOGETHER, SHADOWED + 1, TOGETHER):
        met = simulated(world, service, FAIR, TOGETHER, seed=number)
        assert [(arm["arm"], list(arm["models"])) for arm in met["arms"]] == [("old", ["student/1"])]
        wait_for(lambda number=number: shadowed(service) == number, f"{number} answers are scored in the shadow")
    seen = played.results(FAIR)
    (comparison,) = seen["comparisons"]
    chosen = comparison["paired"]["by_chooser"]["old"]
    assert chosen["impressions"] == SHADOWED
    assert chosen["fixed"][1] < 0
    assert [arm["impressions"] for arm in seen["arms"]] == [0, 0]
    wait_for(
        lambda: 0 < metric(service.metrics(), "retort_shadow_kl", experiment=FAIR) < 5, "the shadow's KL is measured"
    )

    options = ["--experiments", str(played.folder / "e.yaml"), "--experiment", FAIR, "--log", str(played.log)]
    command = [sys.executable, "-m", "service", "ramp", *options, "--every", "0.3"]
    with (played.folder / "ramp.txt").open("w") as told:
        ramp = subprocess.Popen(command, cwd=ROOT, env=clean_environment(), stderr=told)
        try:
            wait_for(lambda: ramp.poll() is not None or coverage(service) == 0.5, "the first step is taken")
            simulated(world, service, FAIR, 5 * SAMPLE, seed=3)
            wait_for(lambda: ramp.poll() is not None, "the last step is taken")
        finally:
            ramp.kill()
            code = ramp.wait()
    assert code == 0, (played.folder / "ramp.txt").read_text()
    (progress,) = json.loads((played.folder / "e.yaml.ramp.json").read_text())["experiments"]
    assert [step["after"] for step in progress["steps"]] == [0.5, 1.0]
    clean = progress["steps"][1]["evidence"]
    assert min(clean["impressions"].values()) >= SAMPLE
    assert [rail["crossed"] for rail in clean["guard_rails"]] == [False, False]
    assert coverage(service) == 1.0

    half = simulated(world, service, FAIR, 300, seed=4)
    assert [list(arm["models"]) for arm in half["arms"]] == [["student/2"], ["student/1"]]
    found = played.results(FAIR)
    assert found["split"]["reasons"] == []
    assert found["split"]["units_misplaced"] == 0
    assert found["decisions"][0]["action"] in ("keep running", "ship")
    assert halted_arms(service, FAIR) == []

    live = played.change("POST", "/v2/repository/models/student/load", {"parameters": {"version": "2"}})
    assert live.status == 200
    assert version_of(played) == 2
    again = played.change("PUT", f"/experiments/{FAIR}", {**before.json()["spec"], "phase": 3, "salt": "fair-3"})
    assert again.status == 200, again.body
    answers = [
        service.request("POST", "/predict", {"candidates": [{"ad_id": "a00001"}], "unit_id": f"u{number}"}).json()
        for number in range(20)
    ]
    assert {(answer["arm"], answer["version"]) for answer in answers} == {("ensemble", 1), ("student", 2)}
