"""An arm that does harm is halted, on evidence; one that does not is let be."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.experiments.file import read_experiments
from service.experiments.state import lift_halt
from service.guard import evidence as evidence_module
from service.guard import process as process_module
from tests.service.guard.playing import NOW, Traffic


@pytest.fixture
def traffic(tmp_path: Path) -> Iterator[Traffic]:
    playing = Traffic(tmp_path)
    yield playing
    playing.close()


def play_until_halted(traffic: Traffic, most: int, step: int = 200, **how: object) -> int | None:
    """How many requests it took; None where that many were not enough."""
    rails = traffic.rails()
    for number in range(0, most, step):
        traffic.play(step, **how)  # type: ignore[arg-type]
        rails.look()
        if traffic.halted():
            return number + step
    return None


def test_an_arm_at_half_the_click_rate_is_halted_with_its_evidence(traffic: Traffic, caplog: pytest.LogCaptureFixture):
    """Within thousands of impressions, in the state file, in the audit, in a metric; and no second time."""
    traffic.state_file({"max_ctr_loss": 0.1})
    with caplog.at_level(logging.INFO):
        taken = play_until_halted(traffic, 12_000, ctr=(0.05, 0.025))

    assert taken is not None
    (halt,) = traffic.halted()
    assert (halt["experiment"], halt["phase"], halt["salt"], halt["arm"]) == ("e", 1, "s", "treatment")
    assert (halt["rail"], halt["bound"]) == ("ctr_loss", 0.1)
    assert halt["found"] > 0.1
    assert halt["evidence"] > 1
    assert halt["counts"]["treatment"]["impressions"] == taken / 2
    assert min(arm["clicks"] for arm in halt["counts"].values()) >= 50
    (line,) = [json.loads(record.message) for record in caplog.records if record.name == "service.admin.audit"]
    assert {name: line[name] for name in ("audit", "who", "arm", "rail", "result")} == {
        "audit": "halt",
        "who": "guard-rails",
        "arm": "treatment",
        "rail": "ctr_loss",
        "result": "ok",
    }
    trips = traffic.metrics.guard_rail_trips.labels("e", "treatment", "ctr_loss")
    assert trips._value.get() == 1
    traffic.rails().look()
    assert len(traffic.halted()) == 1
    assert trips._value.get() == 1


@pytest.mark.parametrize("rail", ["max_ctr_loss", "max_calibration_error"])
def test_no_arm_is_judged_on_fewer_than_fifty_clicks(traffic: Traffic, rail: str):
    """However bad it looks: here no click of treatment's has come at all, and few were promised."""
    traffic.state_file({rail: 0.01})
    traffic.play(1500, ctr=(0.05, 0.0), pctr=0.05)
    traffic.play(2, seconds=300.0)  # the windows close
    traffic.rails().look()

    assert traffic.halted() == []
    assert traffic.metrics.guard_rail_evidence._metrics == {}


def test_an_arm_that_is_as_good_is_let_be(tmp_path: Path):
    """Six experiments with every rail, looked at twenty times each: at alpha .01 a rail, none is expected."""
    halted = []
    for seed in range(6):
        traffic = Traffic(tmp_path / str(seed), seed)
        traffic.state_file(
            {
                **{"max_error_rate": 0.01, "max_fallback_rate": 0.01, "max_p99_ms": 5.0},
                **{"max_calibration_error": 0.1, "max_ctr_loss": 0.0},
            }
        )
        rails = traffic.rails()
        for _ in range(20):
            traffic.play(100, failing=(0.005, 0.005), fallbacks=(0.005, 0.005), ctr=(0.2, 0.2), pctr=0.2, seconds=0.1)
            rails.look()
        halted += traffic.halted()
        traffic.close()

    assert halted == []


@pytest.mark.parametrize(
    ("stated", "rail", "how"),
    [
        ({"max_error_rate": 0.01}, "errors", {"failing": (0.0, 0.1)}),
        ({"max_fallback_rate": 0.05}, "fallbacks", {"fallbacks": (0.0, 0.3)}),
        ({"max_p99_ms": 10.0}, "slow", {"latency_ms": (1.0, 30.0)}),
        ({"max_calibration_error": 0.2}, "calibration", {"ctr": (0.2, 0.05), "pctr": 0.2, "seconds": 1.0}),
    ],
)
def test_each_rail_halts_the_arm_that_crosses_it(
    traffic: Traffic, stated: dict[str, float], rail: str, how: dict[str, object]
):
    """Control keeps to its bounds."""
    traffic.state_file(stated)

    assert play_until_halted(traffic, 6000, **how) is not None
    (halt,) = traffic.halted()
    assert (halt["arm"], halt["rail"]) == ("treatment", rail)


@pytest.mark.parametrize(
    ("stated", "how"),
    [
        ({"max_error_rate": 0.01}, {"failing": (0.1, 0.1)}),
        ({"max_fallback_rate": 0.05}, {"fallbacks": (0.3, 0.3)}),
        ({"max_p99_ms": 10.0}, {"latency_ms": (30.0, 30.0)}),
        ({"max_calibration_error": 0.2}, {"ctr": (0.05, 0.05), "pctr": 0.2, "seconds": 1.0}),
        ({"max_error_rate": 0.01, "max_ctr_loss": 0.1}, {"failing": (0.1, 0.0), "ctr": (0.1, 0.2)}),
    ],
)
def test_where_control_does_no_better_no_arm_is_blamed(
    traffic: Traffic, stated: dict[str, float], how: dict[str, object]
):
    """Somebody sends requests that nobody can answer in time, or the world has changed: sending units to control would
    help nobody. Nor is control itself ever halted."""
    traffic.state_file(stated)

    assert play_until_halted(traffic, 3000, **how) is None
    assert traffic.metrics.guard_rail_evidence._metrics, "it was judged"


def test_other_phases_other_experiments_and_who_is_not_enrolled_are_no_evidence(traffic: Traffic):
    """Nor are requests that another arm served: the arm was halted then."""
    traffic.state_file({"max_error_rate": 0.01})
    for other in ({"phase": 2}, {"experiment": "f"}, {"enrolled": False}, {"served": "control"}):
        traffic.play(400, failing=(0.0, 0.5), **other)
    traffic.rails().look()

    assert traffic.halted() == []
    assert traffic.metrics.guard_rail_evidence._metrics == {}


def test_calibration_waits_until_clicks_can_no_longer_come(traffic: Traffic):
    """Before its window has closed, an impression without a click says nothing of the prediction."""
    traffic.state_file({"max_calibration_error": 0.2})
    traffic.play(2000, ctr=(0.2, 0.05), pctr=0.2, seconds=0.001)
    rails = traffic.rails()
    rails.look()
    assert traffic.halted() == []

    traffic.time += 3600.0
    rails.look()

    assert [halt["rail"] for halt in traffic.halted()] == ["calibration"]


def test_where_no_clicks_arrive_at_all_no_arm_is_blamed(traffic: Traffic):
    """Whoever reports them is out of order, which no control would mend."""
    traffic.state_file({"max_calibration_error": 0.2, "max_ctr_loss": 0.1})
    traffic.play(3000, ctr=(0.0, 0.0), pctr=0.2, seconds=0.001)
    traffic.time += 3600.0
    traffic.rails().look()

    assert traffic.halted() == []


def test_a_lifted_halt_begins_the_evidence_anew(traffic: Traffic):
    """Or the arm would be halted again at once; if it still does harm, it is halted again in time."""
    path = traffic.state_file({"max_error_rate": 0.01})
    rails = traffic.rails()
    traffic.play(2000, failing=(0.0, 0.2))
    rails.look()
    assert len(traffic.halted()) == 1
    (experiment,) = read_experiments(path).experiments

    assert lift_halt(traffic.state, experiment, "treatment", traffic.time) is not None
    traffic.play(200)
    rails.look()
    traffic.rails().look()  # after a restart just as well
    assert traffic.halted() == []

    traffic.play(2000, failing=(0.0, 0.2))
    rails.look()
    assert len(traffic.halted()) == 1
    assert traffic.halted()[0]["counts"]["treatment"]["requests"] == 1100


@pytest.mark.parametrize("what", ["gone", "junk", "a link to itself"])
def test_rails_are_judged_on_while_the_experiment_file_cannot_be_read(traffic: Traffic, what: str):
    """The workers go by the last good one, so an arm that does harm goes on doing it."""
    path = traffic.state_file({"max_error_rate": 0.01})
    rails = traffic.rails()
    traffic.play(10)
    rails.look()
    path.unlink()
    if what == "junk":
        path.write_bytes(bytes(100))
    elif what == "a link to itself":
        path.symlink_to(path)
    traffic.play(1000, failing=(0.0, 0.5))
    rails.look()

    assert [halt["arm"] for halt in traffic.halted()] == ["treatment"]


def test_a_halt_that_was_lifted_by_a_clock_put_back_since_leaves_nobody_unguarded(traffic: Traffic):
    """By the right time the lift is ten years ahead; what the arm does until then is judged all the same."""
    path = traffic.state_file({"max_error_rate": 0.01})
    traffic.play(1000, failing=(0.0, 0.5))
    rails = traffic.rails()
    rails.look()
    assert lift_halt(traffic.state, read_experiments(path).default, "treatment", NOW + 3.2e8) is not None
    rails.look()
    assert traffic.halted() == []  # what it did before is judged no more

    traffic.play(1000, failing=(0.0, 0.5))
    rails.look()

    assert [halt["arm"] for halt in traffic.halted()] == ["treatment"]


def test_a_restart_reads_the_log_again(traffic: Traffic):
    """What was shown before counts."""
    traffic.state_file({"max_error_rate": 0.01})
    traffic.play(300, failing=(0.0, 0.2))
    traffic.rails().look()
    assert traffic.halted() == []
    traffic.play(700, failing=(0.0, 0.2))
    traffic.rails().look()

    assert traffic.halted()[0]["counts"]["control"]["requests"] == 500


def test_a_halt_that_cannot_be_written_is_counted_and_tried_again(traffic: Traffic):
    """The state file is a folder here; then it is not."""
    traffic.state_file({"max_error_rate": 0.01})
    rails = traffic.rails()
    traffic.play(1000, failing=(0.0, 0.2))
    lock = traffic.state.with_name(traffic.state.name + ".lock")
    lock.mkdir()
    rails.look()
    rails.look()
    assert traffic.metrics.guard_rail_failures._value.get() == 2
    assert traffic.halted() == []

    lock.rmdir()
    rails.look()

    assert len(traffic.halted()) == 1


def test_without_rails_nothing_is_read(tmp_path: Path):
    """Not even whether there is a log; and rails that are stated later are judged from what is there by then."""
    traffic = Traffic(tmp_path)
    traffic.state_file({}, guard_rails=None)
    rails = traffic.rails()
    rails.look()
    assert traffic.metrics.guard_rails_judged._value.get() == 0

    traffic.play(1000, failing=(0.0, 0.2))
    traffic.state_file({"max_error_rate": 0.01})
    rails.look()

    assert len(traffic.halted()) == 1
    assert traffic.metrics.guard_rails_judged._value.get() > NOW
    traffic.close()


def test_of_too_many_requests_a_sample_of_units_is_judged(traffic: Traffic, monkeypatch: pytest.MonkeyPatch):
    """Memory has a bound, and the harm is found all the same."""
    monkeypatch.setattr(evidence_module, "MAX_OPEN", 1200)
    traffic.state_file({"max_ctr_loss": 0.1}, analysis={"attribution_window_seconds": 1e6})

    taken = play_until_halted(traffic, 6000, ctr=(0.5, 0.25))

    assert taken is not None
    (halt,) = traffic.halted()
    assert sum(arm["requests"] for arm in halt["counts"].values()) <= 1201


def test_events_come_twice_late_before_and_for_what_is_not_there(traffic: Traffic):
    """As in results: an event counts once, a click implies an impression, and what cannot be is left out."""
    traffic.state_file({"max_ctr_loss": 0.1, "max_error_rate": 0.5})
    event = {"kind": "event", "event": "click", "candidate": 0}
    names = [f"r-{number}" for number in range(1, 9)]
    traffic.write({**event, "request_id": "r-1", "received": NOW + 1})  # read before its exposure
    rails = traffic.rails()
    rails.look()
    traffic.play(8, ctr=(0.0, 0.0))
    for name in names[:4]:
        traffic.write(*({**event, "request_id": name, "received": NOW + 2} for _ in range(3)))
    traffic.write({**event, "request_id": "r-5", "received": NOW + 2, "time": NOW + 90.0})  # 88 s ahead: as received
    traffic.write({**event, "request_id": "r-6", "received": NOW + 1000})  # late
    traffic.write({**event, "request_id": "r-7", "received": NOW + 2, "candidate": 9})
    traffic.write({**event, "request_id": "nobody", "received": NOW + 2})
    traffic.write({"kind": "event", "event": "click", "request_id": "r-8", "received": NOW + 2})  # of no candidate
    rails.look()

    counts = dict(rails._evidence["e", 1].counts())
    assert sum(arm["clicks"] for arm in counts.values()) == 5
    assert sum(arm["impressions"] for arm in counts.values()) == 8


def test_events_of_requests_that_were_made_up_are_not_kept_for_ever(traffic: Traffic, monkeypatch: pytest.MonkeyPatch):
    """Whoever fills the log with them takes neither memory without bound nor the place of those that are told in time:
    what is read after its exposure is never kept, and of what is read before it, the newest is."""
    monkeypatch.setattr(process_module, "MOST_WAITING", 100)
    traffic.state_file({"max_ctr_loss": 0.1})
    event = {"kind": "event", "event": "click", "candidate": 0, "received": NOW + 1}
    rails = traffic.rails()
    traffic.play(500, ctr=(1.0, 1.0))
    traffic.write(*({**event, "request_id": f"nobody-{number}"} for number in range(1000)))
    traffic.write(*({**event, "request_id": f"r-{number}"} for number in range(501, 551)))  # before their exposures
    rails.look()
    traffic.play(50, ctr=(0.0, 0.0))
    rails.look()

    counts = dict(rails._evidence["e", 1].counts())
    assert sum(arm["clicks"] for arm in counts.values()) == 550
    assert len(rails._unmatched) <= 100
