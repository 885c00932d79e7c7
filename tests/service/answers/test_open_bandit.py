"""A real experiment: Open Bandit's log (Saito et al., NeurIPS 2021), uniform random beside Bernoulli Thompson sampling.

Every impression there was assigned to a policy at random and logged with the policy's probability of showing the item.
So the random policy's click rate can be had twice: where it ran, and from the log of the other.
"""

from __future__ import annotations

import csv
import gzip
import json
import math
import os
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import duckdb
import pytest

from service.__main__ import main
from service.answers.report import Question, report
from service.answers.rows import rows_of
from service.experiments.file import Analysis, Arm, Experiment

DATA = os.environ.get("RETORT_TRAINING_DATA")
FILE = Path(DATA or "nowhere") / "obd_small" / "obd.csv.gz"
ITEMS = {"men": 34, "women": 46}

pytestmark = pytest.mark.skipif(
    not FILE.is_file(), reason="RETORT_TRAINING_DATA names no folder with obd_small/obd.csv.gz"
)

EXPERIMENT = Experiment(
    name="open-bandit",
    salt="theirs",
    arms=(Arm(name="random", model="random", weight=0.5), Arm(name="bts", model="bts", weight=0.5)),
    analysis=Analysis(attribution_window_seconds=0.0, expected_impressions=40_000),
)


@cache
def logged() -> list[dict[str, str]]:
    with gzip.open(FILE, "rt", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def uniform(row: dict[str, str]) -> float:
    """The random policy's probability of the item."""
    return 1 / ITEMS[row["campaign"]]


@cache
def sampled() -> dict[tuple[str, str, str], float]:
    """About Thompson sampling's probability of an item at a position: its mean over where it was shown there."""
    found: dict[tuple[str, str, str], list[float]] = {}
    for row in logged():
        if row["policy"] == "bts":
            place = row["campaign"], row["item_id"], row["position"]
            found.setdefault(place, []).append(float(row["propensity_score"]))
    # Shown in proportion to itself, so the mean over showings is weighted by it; the harmonic mean undoes that.
    return {place: len(shares) / sum(1 / share for share in shares) for place, shares in found.items()}


def thompson(row: dict[str, str]) -> float:
    return sampled().get((row["campaign"], row["item_id"], row["position"]), 0.0)


@cache
def answer(campaign: str | None, target: Callable[[dict[str, str]], float] = uniform) -> dict[str, Any]:
    """The report on one campaign, or on both; `target` is the policy that is asked about."""
    rows = rows_of(
        {
            "request_id": str(place),
            "time": place,
            "unit": f"impression {place}",  # the log names no users
            "arm": row["policy"],
            "candidate": int(row["item_id"]),
            "click": row["click"],
            "propensity": row["propensity_score"],
            "target_propensity": target(row),
        }
        for place, row in enumerate(logged())
        if campaign in (None, row["campaign"])
    )
    return report(Question(EXPERIMENT), rows)


@pytest.mark.parametrize(("campaign", "clicks"), [("men", [46, 69]), ("women", [46, 46]), (None, [92, 115])])
def test_clicks_and_impressions_are_the_published_ones(campaign: str | None, clicks: list[int]):
    arms = answer(campaign)["arms"]

    assert [arm["clicks"] for arm in arms] == clicks
    assert [arm["impressions"] for arm in arms] == [20_000 if campaign is None else 10_000] * 2


def test_one_look_would_call_the_mens_campaign_and_the_pooled_sequence_does_not_decide():
    """z 2.15 for men looked at once; five days of looking at rare clicks prove nothing yet."""
    men = answer("men")["comparisons"][0]
    both = answer(None)

    assert men["difference"]["fixed"][0] > 0
    assert men["relative"]["value"] == pytest.approx(0.5)
    assert men["relative"]["always"] is None
    assert men["relative"]["reason"] == "control has 46 clicks, needed are 50"
    assert both["comparisons"][0]["relative"]["value"] == pytest.approx(0.25)
    low, high = both["comparisons"][0]["relative"]["always"]
    assert low < 0 < 0.25 < high
    assert both["decisions"][0]["action"] == "keep running"
    assert both["split"]["reasons"] == []


def test_the_random_policys_rate_from_the_other_log_agrees_with_where_it_ran():
    """Men: 46 of 10,000 where it ran. From the other policy's log less, by no more than both errors allow."""
    random, bts = answer("men")["arms"]

    assert random["ctr"] == pytest.approx(0.0046)
    assert random["off_policy"]["ips"]["value"] == pytest.approx(random["ctr"], rel=1e-6)
    for name in ("ips", "snips"):
        errors = [width(arm["off_policy"][name]["fixed"]) / 2 for arm in (random, bts)]
        assert abs(bts["off_policy"][name]["value"] - random["ctr"]) < math.hypot(*errors)
    low, high = bts["off_policy"]["mean_weight"]["fixed"]
    assert low < 1 < high
    assert 600 < bts["off_policy"]["effective_units"] < 700


@pytest.mark.parametrize("campaign", ["women", None])
def test_where_one_rare_impression_outweighs_the_log_no_interval_is_given(campaign: str | None):
    """Thompson sampling showed one item of the women's campaign against all odds: 10,000 impressions are worth 2."""
    found = answer(campaign)["arms"][1]["off_policy"]

    assert found["effective_units"] < 4
    for name in ("ips", "snips", "mean_weight"):
        assert found[name]["fixed"] is None
        assert found[name]["always"] is None
        assert "a few tiny propensities decide" in found[name]["reason"]


@pytest.mark.parametrize("campaign", ["men", "women"])
def test_thompson_samplings_rate_from_the_random_log_agrees_with_where_it_ran(campaign: str):
    """The other way round every propensity is a plain 1/items: thousands of impressions count."""
    random, bts = answer(campaign, thompson)["arms"]

    assert random["off_policy"]["effective_units"] > 500
    for name in ("ips", "snips"):
        error = width(random["off_policy"][name]["fixed"]) / 2
        own = 1.96 * math.sqrt(bts["ctr"] / bts["impressions"])
        assert abs(random["off_policy"][name]["value"] - bts["ctr"]) < math.hypot(error, own)


def width(bounds: list[float]) -> float:
    return bounds[1] - bounds[0]


def test_the_documents_mapping_makes_the_published_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """docs/answers.md, word by word: its SQL, its experiment file, its command."""
    document = (Path(__file__).parents[3] / "docs" / "answers.md").read_text(encoding="utf-8")
    sql, experiments = (
        re.search(rf"```{kind}\n(.*?)```", document[document.index("### Your log as ours") :], re.DOTALL)
        for kind in ("sql", "yaml")
    )
    assert sql is not None
    assert experiments is not None
    monkeypatch.chdir(tmp_path)
    Path("obd.csv.gz").symlink_to(FILE)
    Path("open-bandit.yaml").write_text(experiments[1], encoding="utf-8")

    duckdb.sql(sql[1])
    command = ["results", "--experiments", "open-bandit.yaml", "--log", "open-bandit.csv", "--no-replay"]
    assert main([*command, "--format", "json", "--out", "answer.json"]) == 0

    found, expected = json.loads(Path("answer.json").read_text(encoding="utf-8")), answer("men")
    assert found["decisions"][0]["reasons"] == ["control has 46 clicks, needed are 50"]
    assert [arm["clicks"] for arm in found["arms"]] == [46, 69]
    for arm, other in zip(found["arms"], expected["arms"], strict=True):
        assert arm["off_policy"]["ips"]["value"] == pytest.approx(other["off_policy"]["ips"]["value"])
