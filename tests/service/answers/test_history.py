"""Lift over time: what somebody who looked at every hour would have read."""

from __future__ import annotations

import pytest

from service.answers.history import MOST_LOOKS, STEPS_SECONDS
from service.answers.report import Question, report
from service.answers.rows import rows_of
from tests.service.answers.test_report import ASSIGNER, EXPERIMENT, Record, answer, traffic


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return traffic(lift=0.5)


def history_of(tree: Record) -> list[Record]:
    found: list[Record] = tree["comparisons"][0]["history"]
    return found


def test_the_last_look_is_the_report(records: list[Record]):
    tree = answer(records)
    last = history_of(tree)[-1]

    assert last["value"] == tree["comparisons"][0]["relative"]["value"]
    assert last["always"] == tree["comparisons"][0]["relative"]["always"]
    assert last["impressions"] == sum(arm["impressions"] for arm in tree["arms"])


def test_every_look_is_the_report_of_what_was_there(records: list[Record]):
    """The slow obvious way: leave out what came later, and ask again."""
    looks = history_of(answer(records))

    assert len(looks) > 3
    for look in looks:
        before = rows_of([one for one in records if one["time"] < look["until"]], ["device"])
        relative = report(Question(EXPERIMENT, ASSIGNER, 1000.0), before)["comparisons"][0]["relative"]
        assert (look["value"], look["always"]) == (relative["value"], relative["always"])


def test_what_was_sent_twice_counts_once(records: list[Record]):
    """Also where the second comes much later."""
    again = [{**one, "time": one["time"] + 300} for one in records[:40]]

    assert history_of(answer([*records, *again])) == history_of(answer(records))


@pytest.mark.parametrize("stretch", [0.001, 1.0, 1e3, 1e5, 1e6])
def test_looks_are_few_at_round_times(records: list[Record], stretch: float):
    """Whether an experiment ran for a second or for years."""
    stretched = [{**one, "time": one["time"] * stretch} for one in records]
    looks = history_of(answer(stretched, as_of=1e9))
    times = [look["until"] for look in looks]

    assert 1 <= len(looks) <= MOST_LOOKS
    assert times == sorted(set(times))
    assert any(all(time % step == 0 for time in times) for step in STEPS_SECONDS)
    assert looks[-1]["impressions"] == len(stretched)


def test_too_little_is_null():
    """Few clicks: the value, and no interval; nothing shown: no look."""
    few = history_of(answer(traffic(60)))
    unseen = [{name: one[name] for name in ("request_id", "time", "unit", "arm")} for one in traffic(60)[::2]]

    assert {look["always"] for look in few} == {None}
    assert history_of(answer(unseen)) == []
