"""From a joined log to a decision: counts, what is left out, adding days, the same bytes, and broken experiments."""

from __future__ import annotations

import json
import random
import re
from decimal import Decimal
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from service.answers.fold import fold
from service.answers.page import to_html, to_markdown
from service.answers.report import Question, facts_of, report, report_evidence, to_json
from service.answers.rows import rows_of
from service.errors import AnswersError
from service.experiments.assignment import Assigner
from service.experiments.file import Analysis, Arm, Experiment, GuardRails
from service.journal.units import unit_hasher

Record = dict[str, Any]

EXPERIMENT = Experiment(
    name="student-vs-ensemble",
    salt="s-1",
    arms=(
        Arm(name="ensemble", model="ensemble", weight=Decimal("0.5")),
        Arm(name="student", model="student", weight=Decimal("0.5")),
    ),
    guard_rails=GuardRails(
        max_error_rate=Decimal("0.01"),
        max_fallback_rate=Decimal("0.05"),
        max_p99_ms=20.0,
        max_calibration_error=0.2,
        max_ctr_loss=Decimal("0.1"),
    ),
    analysis=Analysis(attribution_window_seconds=100.0, minimum_effect=-0.02),
)
ASSIGNER = Assigner("s-1", tuple(EXPERIMENT.ranges()))


def record(request: str, unit: str = "u1", **more: Any) -> Record:
    arm = EXPERIMENT.arms[ASSIGNER.assign(unit).arm].name
    return {"request_id": request, "time": 0.0, "unit": unit, "arm": arm, "candidate": 0, "pctr": 0.1, **more}


def traffic(units: int = 600, *, lift: float = 0.0, seed: int = 1, first: int = 0) -> list[Record]:
    """Five requests of two candidates a unit over ten days, a tenth clicked, both models scoring."""
    rng = np.random.default_rng(seed)
    found = []
    for unit in range(first, first + units):
        for request in range(5):
            base = record(
                f"{unit}-{request}", f"user-{unit}", time=float(request * 100), device="phone" if unit % 3 else "pc"
            )
            rate = 0.1 * (1 + lift * (base["arm"] == "student"))
            for candidate in range(2):
                pctr = float(np.clip(rng.normal(0.1, 0.02), 0.01, 0.9))
                found.append(
                    {
                        **base,
                        "candidate": candidate,
                        "pctr": pctr,
                        "click": bool(rng.random() < rate),
                        "latency_ms": float(rng.lognormal(0, 0.5)),
                        "shadow_arm": "student" if base["arm"] == "ensemble" else "ensemble",
                        "shadow_pctr": float(np.clip(pctr + rng.normal(0, 0.01), 0.01, 0.9)),
                        "earlier_impressions": 10 + unit % 7,
                        "earlier_clicks": unit % 3,
                    }
                )
    return found


def answer(records: list[Record], *, assigner: Assigner | None = ASSIGNER, as_of: float | None = 1000.0) -> Record:
    return report(Question(EXPERIMENT, assigner, as_of), rows_of(records, ["device"]))


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return traffic()


def test_the_counts_are_those_of_a_slow_obvious_loop(records: list[Record]):
    found = {arm["arm"]: arm for arm in answer(records)["arms"]}

    for name in ("ensemble", "student"):
        mine = [one for one in records if one["arm"] == name]
        assert found[name]["units"] == len({one["unit"] for one in mine})
        assert found[name]["exposures"] == len({one["request_id"] for one in mine})
        assert found[name]["impressions"] == len(mine)
        assert found[name]["clicks"] == sum(one["click"] for one in mine)
        assert found[name]["quality"]["predicted_over_actual"] == pytest.approx(
            sum(one["pctr"] for one in mine) / sum(one["click"] for one in mine)
        )
        assert set(found[name]["segments"]["device"]) == {"phone", "pc"}


def test_equal_arms_keep_running_and_everything_is_there(records: list[Record]):
    tree = answer(records)

    assert tree["decisions"][0]["action"] == "keep running"
    assert tree["split"]["reasons"] == []
    assert tree["split"]["units_misplaced"] == 0
    comparison = tree["comparisons"][0]
    assert comparison["relative"]["always"] is not None
    assert comparison["cuped"]["always"] is not None
    assert comparison["paired"]["by_chooser"]["student"]["value"] is not None
    assert [rail["name"] for rail in tree["arms"][1]["guard_rails"]] == [
        "errors", "fallbacks", "slow", "calibration", "ctr_loss",
    ]  # fmt: skip
    assert tree["arms"][0]["guard_rails"] == []  # control cannot be halted


def test_the_same_rows_in_any_order_give_the_same_bytes(records: list[Record]):
    shuffled = random.Random(3).sample(records, len(records))
    first, second = answer(records), answer(shuffled)

    for write in (to_json, to_html, to_markdown):
        assert write(first) == write(second)
    assert json.loads(to_json(first)) == first


def test_a_days_evidence_is_added_to_yesterdays(records: list[Record]):
    """Units come back on the next day; their totals are added before they are squared."""
    question = Question(EXPERIMENT, ASSIGNER, 1000.0)
    facts = facts_of(question, 1000.0)
    days = [[one for one in records if (one["time"] > 200) == later] for later in (False, True)]
    first, second = (fold(rows_of(day, ["device"]), facts, 1) for day in days)

    together = report_evidence(question, facts, {1: first + second})

    whole = answer(records)
    assert together["comparisons"][0]["relative"]["always"] == pytest.approx(
        whole["comparisons"][0]["relative"]["always"], rel=1e-9
    )
    assert together["split"] == whole["split"]
    assert together["log"] == whole["log"]
    for one, other in zip(together["arms"], whole["arms"], strict=True):
        assert one["quality"]["logloss"] == pytest.approx(other["quality"]["logloss"], rel=1e-9)
        assert one["latency_ms"] == other["latency_ms"]
        assert [one[name] for name in ("units", "exposures", "clicks")] == [
            other[name] for name in ("units", "exposures", "clicks")
        ]


@pytest.mark.parametrize(
    ("change", "count"),
    [
        ({"experiment": "another"}, "other_experiment"),
        ({"phase": 2}, "other_phase"),
        ({"forced": True}, "forced"),
        ({"enrolled": False}, "not_enrolled"),
        ({"arm": "gone"}, "unknown_arm"),
        ({"request_id": "a"}, "duplicate"),
        ({"served": "other"}, "after_halt"),
        ({"candidate": None, "click": True}, "click_without_candidate"),
        ({"time": 950.0}, "too_young"),
    ],
)
def test_what_is_no_evidence_is_left_out_and_counted(change: Record, count: str):
    tree = answer([record("a", time=0.0), record("b", **change)])

    assert tree["log"][count] == 1
    assert sum(arm["impressions"] for arm in tree["arms"]) == 1


def test_before_any_unit_is_enrolled_the_shadow_says_already_which_model_predicts_better():
    """Units outside get control, so their impressions are chosen by control: they count for the paired difference, as
    those of enrolled units do, and for nothing else."""
    inside = [{**one, "arm": "ensemble", "shadow_arm": "student"} for one in traffic(100)]
    outside = [{**one, "enrolled": False} for one in inside]

    trees = [answer(rows, assigner=None) for rows in (inside, outside)]

    first, second = (tree["comparisons"][0]["paired"] for tree in trees)
    assert second == first
    assert second["by_chooser"]["ensemble"]["impressions"] == len(outside)
    assert second["by_chooser"]["ensemble"]["always"] is not None
    assert [arm["impressions"] for arm in trees[1]["arms"]] == [0, 0]
    assert trees[1]["log"]["not_enrolled"] == len(outside)


def test_a_unit_that_was_outside_and_is_enrolled_later_is_one_unit_of_the_shadow():
    """Its impressions are added before anything is squared, whenever they were made; one that was sent twice is one."""
    rows = [{**one, "arm": "ensemble", "shadow_arm": "student"} for one in traffic(100)]
    some = [{**one, "enrolled": number % 3 > 0} for number, one in enumerate(rows)]
    twice = [one for one in some if not one["enrolled"]][:5]

    found, whole = (answer(given, assigner=None) for given in (some + twice, rows))

    assert found["comparisons"][0]["paired"] == whole["comparisons"][0]["paired"]


def test_a_click_counts_within_its_window_and_not_after():
    tree = answer([record("a", click=True, click_time=99.0), record("b", click=True, click_time=101.0)])

    assert sum(arm["clicks"] for arm in tree["arms"]) == 1
    assert tree["log"]["late_clicks"] == 1


def test_a_request_that_showed_nothing_is_an_exposure_without_an_impression():
    tree = answer([record("a", candidate=None, pctr=None), record("b")])

    assert sum(arm["exposures"] for arm in tree["arms"]) == 2
    assert sum(arm["impressions"] for arm in tree["arms"]) == 1


def test_a_fallback_counts_for_the_arm_assigned_but_not_for_its_models_calibration():
    tree = answer([record("a"), record("b", served="student", fallback="deadline", click=True)])
    arm = next(arm for arm in tree["arms"] if arm["units"])

    assert (arm["impressions"], arm["clicks"], arm["fallbacks"]) == (2, 1, 1)
    assert (arm["quality"]["impressions"], arm["quality"]["clicks"]) == (1, 0)


def test_a_lost_third_of_an_arms_units_is_a_broken_split(records: list[Record]):
    """A client that drops the student's answers: nothing else in the report can be believed."""
    thinned = [one for one in records if one["arm"] == "ensemble" or hash_of(one["unit"]) % 3]

    tree = answer(
        thinned + [one for one in traffic(1200, first=1000) if one["arm"] == "ensemble" or hash_of(one["unit"]) % 3]
    )

    assert tree["decisions"][0]["action"] == "invalid"
    assert "the split of units is not the planned one" in tree["decisions"][0]["reasons"][0]


def test_the_plan_is_the_buckets_that_arms_own_not_their_weights():
    """At a coverage of .0003, .55 and .45 of 10,000 buckets are one bucket each: equal units are then as planned."""
    arms = tuple(
        arm.model_copy(update={"weight": Decimal(weight)})
        for arm, weight in zip(EXPERIMENT.arms, ("0.55", "0.45"), strict=True)
    )
    small = EXPERIMENT.model_copy(update={"arms": arms, "coverage": Decimal("0.0003")})
    none = EXPERIMENT.model_copy(update={"arms": arms, "coverage": Decimal("0.0002")})  # 1 and 0 buckets

    assert report(Question(small, None), rows_of([record("a")]))["split"]["planned"] == {
        "ensemble": 0.5,
        "student": 0.5,
    }
    split = report(Question(none, None), rows_of([record("a", arm="student")]))["split"]
    assert split["planned"] == {"ensemble": 1.0}
    assert split["reasons"] == ["arm student owns no bucket and has 1 units"]


def hash_of(unit: str) -> int:
    return int(unit.split("-")[1])


def test_units_that_the_hash_puts_elsewhere_make_it_invalid(records: list[Record]):
    """A caller that assigns on its own, or a log of another salt."""
    other = {"ensemble": "student", "student": "ensemble"}
    moved = [{**one, "arm": other[one["arm"]]} if one["unit"] == "user-5" else one for one in records]
    both = [{**one, "arm": "student"} if one["request_id"] == "5-1" else one for one in records]
    both = [{**one, "arm": "ensemble"} if one["request_id"] == "5-2" else one for one in both]

    assert answer(moved)["decisions"][0]["reasons"] == ["1 units are not in the arm that the published hash gives them"]
    assert answer(moved, assigner=None)["decisions"][0]["action"] == "keep running"
    assert "1 units occur in more than one arm" in answer(both)["decisions"][0]["reasons"]


def test_units_that_look_hashed_are_not_blamed_without_a_hint(records: list[Record]):
    hashed = unit_hasher(b"0123456789abcdef")
    stored = [{**one, "unit": hashed(one["unit"])} for one in records]

    assert "look hashed by --log-unit-key-file: read such a log with --no-replay" in repr(answer(stored)["decisions"])


def test_an_arm_at_half_the_click_rate_is_rolled_back_and_one_far_above_is_shipped():
    worse, better = (answer(traffic(1500, lift=lift, seed=4)) for lift in (-0.6, 0.6))

    assert worse["decisions"][0]["action"] == "roll back"
    assert any("ctr_loss" in reason for reason in worse["decisions"][0]["reasons"])
    calm = [rail["crossed"] for rail in better["arms"][1]["guard_rails"] if rail["name"] == "ctr_loss"]
    assert calm == [False]
    assert better["comparisons"][0]["relative"]["always"][0] > -0.02


def test_one_heavy_unit_is_pointed_out_and_widens_the_interval(records: list[Record]):
    heavy = [record(f"bot-{n}", "user-1", time=0.0, click=True) for n in range(4000)]

    plain, flooded = answer(records), answer(records + heavy)

    assert flooded["split"]["arms_with_a_heavy_unit"] == [heavy[0]["arm"]]
    assert flooded["comparisons"][0]["design_effect"] > 50 * plain["comparisons"][0]["design_effect"]
    low, high = flooded["comparisons"][0]["difference"]["always"]
    assert low < 0 < high


def test_phases_are_never_mixed(records: list[Record]):
    earlier = [{**one, "phase": 0, "click": True, "request_id": "old" + one["request_id"]} for one in records[:500]]

    tree = answer(records + earlier)

    assert [phase["phase"] for phase in tree["phases"]] == [0, 1]
    assert tree["comparisons"] == answer(records)["comparisons"]
    assert sum(arm["clicks"] for arm in tree["phases"][0]["arms"]) == 500


def test_no_row_of_the_experiment_is_an_error_and_a_single_row_is_an_answer():
    with pytest.raises(AnswersError, match="no row of experiment 'student-vs-ensemble' among 1"):
        answer([record("a", experiment="another")])

    tree = answer([record("a")])
    assert tree["decisions"][0]["action"] == "keep running"
    assert tree["comparisons"][0]["relative"]["value"] is None
    to_html(tree)


class Balanced(HTMLParser):
    """Collects tags that are opened, and refuses any that closes another."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        assert not any(name in ("src", "href") for name, _ in attrs)
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_stands_alone_and_echoes_nothing_as_markup(records: list[Record]):
    """A segment's value is somebody's text: it is shown, never run."""
    hostile = [{**one, "device": "<script>alert(1)</script>|"} for one in records[:200]]

    page = to_html(answer(records + [{**one, "request_id": "h" + one["request_id"]} for one in hostile]))

    parser = Balanced()
    parser.feed(page)
    assert parser.open == []
    assert "script" not in parser.seen
    assert "&lt;script&gt;" in page
    assert "nan" not in page.lower().replace("dominant", "")


def test_no_value_of_a_request_rules_a_terminal_or_a_ticket(records: list[Record]):
    """As above, for who reads Markdown: the row it stands in is one row of its table, and text."""
    hostile = ["\x1b[2J\x9b", "\u202eevil", "a\nb\r", "\\|", "[a](javascript:alert)", "<img src=x>", "`x`"]
    for value in hostile:
        one = [{**record, "device": value, "request_id": "h" + record["request_id"]} for record in records[:200]]
        shown = to_markdown(answer(records + one))
        assert all(line.isprintable() for line in shown.split("\n"))
        rows = [line for line in shown.split("\n") if "javascript" in line or "evil" in line or "img" in line]
        assert all(r"\[a\](" in row or "u202e" in row or r"\<img" in row for row in rows)
        (table,) = (part for part in shown.split("\n\n") if part.startswith("| device |"))
        cells = {len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in table.split("\n")}
        assert len(cells) == 1
