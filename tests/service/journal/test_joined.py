"""From records to the joined log: what counts, what is left out, and where each is said."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from service.__main__ import main
from service.answers.rows import Rows
from service.errors import AnswersError
from service.journal.joined import COUNTS, read_journal
from service.journal.writer import SegmentWriter
from tests.service.journal.test_writer import BOUNDS
from tests.service.running import make_app, request_of, wait_until_ready
from tests.service.test_watch import arm, experiments_file

WINDOW = 3600.0
NOW = 1_795_300_000.0


def exposure(request_id: str = "r", **members: Any) -> dict[str, Any]:
    record = {
        "kind": "exposure",
        "request_id": request_id,
        "time": NOW,
        "unit": f"unit of {request_id}",
        "model": "student",
        "version": 1,
        "pctr": [0.1, 0.2, 0.3],
        "latency_ms": 0.5,
        "experiment": "e",
        "phase": 1,
        "arm": "student",
        "enrolled": True,
    }
    return {**record, **members}


def event(event: str, candidate: int | None = 0, after: float = 1.0, **members: Any) -> dict[str, Any]:
    record = {"kind": "event", "request_id": "r", "event": event, "candidate": candidate, "time": NOW + after}
    return {**record, "received": NOW + after + 0.1, **members}


def join(folder: Path, *records: dict[str, Any], segments: tuple[str, ...] = ()) -> tuple[Rows, dict[str, int]]:
    """The rows, and the counts that are not 0."""
    writer = SegmentWriter(folder, replace(BOUNDS, segment_bytes=4096))
    for record in records:
        assert writer.append([json.dumps(record, separators=(",", ":")).encode()]) is None
    writer.close()
    rows = read_journal([folder], "e", WINDOW, segments)
    assert list(rows.counts) == [f"log_{name}" for name in COUNTS]
    return rows, {name.removeprefix("log_"): count for name, count in rows.counts.items() if count}


def shown(rows: Rows) -> list[tuple[str, int, bool]]:
    columns = (rows["request_id"].tolist(), rows["candidate"].tolist(), rows["click"].tolist())
    return sorted(zip(*columns, strict=True))


def test_an_impression_and_its_click_are_one_row(tmp_path: Path):
    """With the probability that was answered for that candidate, and everything of the exposure."""
    rows, counts = join(tmp_path, exposure(), event("impression", 1), event("click", 1, after=8.0))

    assert shown(rows) == [("r", 1, True)]
    assert counts == {"exposures": 1, "events": 2}
    row = {name: rows[name][0].item() for name in ("time", "unit", "arm", "phase", "enrolled", "pctr", "click_time")}
    assert row == {
        "time": NOW,
        "unit": "unit of r",
        "arm": "student",
        "phase": 1,
        "enrolled": True,
        "pctr": 0.2,
        "click_time": NOW + 8.0,
    }


def test_a_click_implies_an_impression(tmp_path: Path):
    assert shown(join(tmp_path, exposure(), event("click", 2))[0]) == [("r", 2, True)]


def test_an_exposure_of_which_nothing_was_shown_is_one_row(tmp_path: Path):
    """Whose units and latency count all the same."""
    rows, counts = join(tmp_path, exposure())

    assert shown(rows) == [("r", -1, False)]
    assert np.isnan(rows["pctr"]).all()
    assert counts == {"exposures": 1}


def test_what_comes_before_its_exposure_or_out_of_order_counts_alike(tmp_path: Path):
    """Records of several workers stand in no order."""
    forward, _ = join(tmp_path / "a", exposure(), event("impression"), event("click"))
    backward, _ = join(tmp_path / "b", event("click"), event("impression"), exposure())

    assert shown(forward) == shown(backward) == [("r", 0, True)]


def test_equal_events_count_once_and_the_first_click_is_the_one(tmp_path: Path):
    """As they are after a batch was sent again, to another worker; a second click with an id of its own is another
    event of the same impression."""
    clicks = [event("click", after=9.0), event("click", after=9.0), event("click", after=5.0, event_id="x")]
    rows, counts = join(tmp_path, exposure(), *clicks)

    assert shown(rows) == [("r", 0, True)]
    assert rows["click_time"][0] == NOW + 5.0
    assert counts == {"exposures": 1, "events": 3, "duplicate_events": 1}


def test_the_first_exposure_of_a_request_wins(tmp_path: Path):
    """By its time, wherever it stands; the others are counted and their scores forgotten."""
    late, early = exposure(time=NOW + 5, arm="control"), exposure(pctr=[0.7])
    rows, counts = join(tmp_path, late, early, early, event("click"))

    assert shown(rows) == [("r", 0, True)]
    assert (rows["arm"][0], rows["pctr"][0]) == ("student", 0.7)
    assert counts == {"exposures": 1, "duplicate_exposures": 2, "events": 1}


def test_an_event_without_an_exposure_is_an_orphan(tmp_path: Path):
    rows, counts = join(tmp_path, exposure(), event("click", request_id="other"), event("impression", request_id="x"))

    assert shown(rows) == [("r", -1, False)]
    assert counts == {"exposures": 1, "events": 2, "orphan_events": 2}


def test_an_event_of_a_candidate_that_was_not_scored_is_misplaced(tmp_path: Path):
    """Beyond the list, or one that the catalogue lacked; the other events of the request count."""
    rows, counts = join(
        tmp_path, exposure(pctr=[0.1, None]), event("click", 1), event("impression", 2), event("impression", 0)
    )

    assert shown(rows) == [("r", 0, False)]
    assert counts == {"exposures": 1, "events": 3, "misplaced_events": 2}


def test_what_is_late_is_counted_and_no_impression(tmp_path: Path):
    """Later than the attribution window; an impression in time whose click is late stays, without its click."""
    rows, counts = join(
        tmp_path,
        exposure(),
        event("impression", 0),
        event("click", 0, after=WINDOW + 1),
        event("click", 1, after=WINDOW + 1),
        event("impression", 2, after=WINDOW),
    )

    assert [row[1] for row in shown(rows)] == [0, 2]
    assert rows["click_time"][0] - NOW > WINDOW  # which `fold` counts as a late click
    assert counts == {"exposures": 1, "events": 4, "late_events": 2}


@pytest.mark.parametrize("wrong", [-61.0, 1e6])
def test_a_time_that_cannot_be_is_replaced_by_that_of_receipt(tmp_path: Path, wrong: float):
    """A minute before the exposure, or after the event was received: the caller's clock is wrong."""
    rows, counts = join(tmp_path, exposure(), event("click", after=wrong, received=NOW + 30))

    assert rows["click_time"][0] == NOW + 30
    assert counts == {"exposures": 1, "events": 1, "skewed_events": 1}


def test_an_event_without_a_time_happened_when_it_was_received(tmp_path: Path):
    rows, _ = join(tmp_path, exposure(), event("click", time=None, received=NOW + 30))

    assert rows["click_time"][0] == NOW + 30


def test_other_events_and_other_experiments_are_counted_alone(tmp_path: Path):
    """A conversion is kept for whoever reads the records; a model's own route belongs to no experiment."""
    outside = {name: value for name, value in exposure("m").items() if name not in ("experiment", "arm", "phase")}
    rows, counts = join(
        tmp_path,
        exposure(),
        exposure("o", experiment="other"),
        outside,
        event("click", request_id="o"),
        event("click", request_id="m"),
        event("conversion", None),
        {"kind": "something new"},
    )

    assert shown(rows) == [("r", -1, False)]
    assert counts == {"exposures": 1, "other_experiments": 2, "events": 2, "other_events": 1, "unreadable": 1}


def test_a_score_of_never_or_always_is_an_impression_without_one(tmp_path: Path):
    """No loss can be taken of it; the click rate needs it."""
    rows, _ = join(tmp_path, exposure(pctr=[0.0, 1.0, 0.5]), *(event("impression", number) for number in range(3)))

    assert np.isnan(rows["pctr"]).tolist() == [True, True, False]


def test_a_segment_is_known_where_the_features_were_logged(tmp_path: Path):
    """Elsewhere it is empty; a context field that is called like a column does not become it."""
    context = {"device": "phone", "arm": "mine"}
    rows, _ = join(tmp_path, exposure(context=context), exposure("s"), segments=("device",))

    assert dict(zip(rows["request_id"].tolist(), rows.segments["device"].tolist(), strict=True)) == {
        "r": "phone",
        "s": "",
    }
    assert set(rows["arm"].tolist()) == {"student"}


def test_a_row_that_answers_cannot_hold_is_unreadable(tmp_path: Path):
    """numpy's texts end at a NUL."""
    rows, _ = join(tmp_path, exposure(unit="a\0"), exposure("s"))

    assert (len(rows), rows.bad) == (1, 1)


def test_the_first_version_of_the_files_is_read_for_ever():
    """A segment as it was first written, with one damaged record and a torn end: stored data is a contract."""
    rows = read_journal([Path(__file__).parent / "segments"], "e", WINDOW, ["device"])

    assert shown(rows) == [("auction-1", 1, True), ("auction-2", -1, False)]
    first, second = np.argsort(rows["request_id"])
    assert (rows["pctr"][first], rows["unit"][first], rows.segments["device"][first]) == (0.0456, "user-831", "phone")
    assert (rows["served"][second], rows["fallback"][second], rows["latency_ms"][second]) == (
        "ensemble",
        "deadline",
        1.25,
    )
    counts = {name.removeprefix("log_"): count for name, count in rows.counts.items() if count}
    assert counts == {"exposures": 2, "other_experiments": 1, "events": 2, "damaged": 1, "torn": 1}


def test_a_folder_that_is_not_there_is_said(tmp_path: Path):
    with pytest.raises(AnswersError, match="nowhere"):
        read_journal([tmp_path / "nowhere"], "e", WINDOW)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=25)
@given(st.data())
def test_rows_are_those_of_the_obvious_slow_join(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject):
    """Whatever is logged, in whatever order, twice or not."""
    ids = st.sampled_from(["a", "b", "c"])
    exposures = [exposure(i, time=NOW + n) for n, i in enumerate(data.draw(st.lists(ids, max_size=4)))]
    events = data.draw(
        st.lists(
            st.builds(
                lambda i, kind, candidate, after: event(kind, candidate, after, request_id=i),
                *(ids, st.sampled_from(["impression", "click"]), st.integers(0, 3)),
                st.sampled_from([5.0, 10.0, WINDOW + 10]),
            ),
            max_size=8,
        )
    )
    records = data.draw(st.permutations(exposures + events))

    rows, counts = join(tmp_path_factory.mktemp("log"), *records)

    expected = []
    for request_id in sorted({one["request_id"] for one in exposures}):
        time = min(one["time"] for one in exposures if one["request_id"] == request_id)
        distinct = {}
        for one in records:
            if one["kind"] == "event" and one["request_id"] == request_id:
                distinct.setdefault((one["candidate"], one["event"]), one["time"])
        here = sorted({c for (c, _), t in distinct.items() if c < 3 and t - time <= WINDOW})
        expected += [(request_id, c, (c, "click") in distinct) for c in here] or [(request_id, -1, False)]
    assert shown(rows) == expected
    assert counts.get("exposures", 0) + counts.get("duplicate_exposures", 0) == len(exposures)
    assert counts.get("events", 0) == len(events)


def test_from_requests_over_feedback_to_the_report(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """A service, its log, and `python -m service results` on the folder: the clicks that were told, by the arm that
    answered. The same folder gives the same bytes."""
    experiments = experiments_file(tmp_path / "e.json", arm("ensemble"), arm("student"))
    folder = tmp_path / "log"
    clicks = {"ensemble": 0, "student": 0}
    impressions = dict(clicks)
    with TestClient(make_app(repository, experiments, log=folder)) as client:
        wait_until_ready(client)
        for number in range(60):
            request = request_of(1, 2, 3, request_id=f"r-{number}", unit_id=number % 30)
            answer = client.post("/predict", json=request).json()
            best = int(np.argmax(answer["pctr"]))
            told = [{"request_id": f"r-{number}", "candidate": best, "event": "impression"}]
            impressions[answer["arm"]] += 1
            if number % 3 == 0:
                told.append({**told[0], "event": "click"})
                clicks[answer["arm"]] += 1
            assert client.post("/feedback", json=told).json()["accepted"] == len(told)
        client.post("/feedback", json={"request_id": "nobody's", "candidate": 0, "event": "click"})

    command = ["results", "--experiments", str(experiments), "--log", str(folder), "--as-of", "4000000000"]
    assert main([*command, "--format", "json"]) == 0
    text = capsys.readouterr().out
    assert main([*command, "--format", "json"]) == 0
    assert capsys.readouterr().out == text
    tree = json.loads(text)
    assert {one["arm"]: one["clicks"] for one in tree["arms"]} == clicks
    assert {one["arm"]: one["impressions"] for one in tree["arms"]} == impressions
    assert tree["split"]["units_misplaced"] == 0
    log = tree["log"]
    assert (log["log_exposures"], log["log_events"], log["log_orphan_events"]) == (60, 81, 1)

    assert main(command) == 0
    assert "| log orphan events | 1 |" in " ".join(capsys.readouterr().out.split())
    assert main(["results", "--experiments", str(experiments), "--log", str(folder), str(experiments)]) == 2
    assert "folders, files or a database, got both" in capsys.readouterr().err
