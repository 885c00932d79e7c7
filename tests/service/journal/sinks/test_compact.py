"""Sealed segments become Parquet files by day: whole or not at all, each once, and the answers stay the same."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.journal.compacted import parts
from models.journal.frames import frame
from models.journal.reading import SEALED, segment_paths
from service.__main__ import main
from service.answers.rows import Rows
from service.errors import AnswersError, ConfigError
from service.journal.joined import read_journal
from service.journal.segments import forget
from service.journal.sinks.answers import read_folders
from service.journal.sinks.compact import Compacted, compact
from service.journal.sinks.merge import merge
from service.journal.sinks.parquet import BusyError, create_views, data_files, writing
from service.journal.sinks.parquet import erase_unit as erase_from_parts
from service.journal.writer import SegmentWriter
from tests.service.journal.test_joined import NOW, WINDOW, event, exposure
from tests.service.journal.test_writer import BOUNDS
from tests.service.running import ROOT
from tests.service.test_watch import arm, experiments_file

DAY = 86_400.0
LONG = 1000 * DAY


def write(folder: Path, *records: dict[str, Any], segment_bytes: int = 4096) -> None:
    """As a worker does that starts, logs these and stops."""
    writer = SegmentWriter(folder, replace(BOUNDS, segment_bytes=segment_bytes))
    for record in records:
        assert writer.append([json.dumps(record, separators=(",", ":")).encode()]) is None
    writer.close()


def run(folder: Path, out: Path, **options: Any) -> Compacted:
    return compact(folder, out, **{"keep_seconds": LONG, "now": NOW, **options})


def assert_same(rows: Rows, others: Rows) -> None:
    """Number for number, in the same order."""
    assert dict(rows.counts) == dict(others.counts)
    assert rows.bad == others.bad
    for columns, theirs in ((rows.columns, others.columns), (rows.segments, others.segments)):
        assert list(columns) == list(theirs)
        for name in columns:
            np.testing.assert_array_equal(columns[name], theirs[name], err_msg=name)


IDS = st.sampled_from(["a", "b", "c"])
EXPOSURES = st.builds(
    lambda i, after, name, pctr, context: exposure(i, time=NOW + after, experiment=name, pctr=pctr, context=context),
    *(IDS, st.sampled_from([0.0, 0.0, 1.0, 2.5]), st.sampled_from(["e", "e", "other", None])),
    st.lists(st.sampled_from([None, 0.0, 0.1, 1 / 3, 1.0]), max_size=3),
    st.sampled_from([None, {"device": "phone"}, {"device": 7, "arm": "x"}]),
)
EVENTS = st.builds(
    lambda i, kind, candidate, after, received, key: event(
        kind, candidate, after, request_id=i, received=NOW + received, event_id=key
    ),
    *(st.sampled_from(["a", "b", "c", "nobody's"]), st.sampled_from(["impression", "click", "sale"])),
    *(st.sampled_from([None, 0, 1, 2, 3, 99_999]), st.sampled_from([-61.0, 5.0, WINDOW, WINDOW + 10])),
    *(st.sampled_from([6.0, WINDOW + 11]), st.sampled_from([None, "k"])),
)
SHADOWS = st.builds(
    lambda i, after, pctr: {
        **{"kind": "shadow", "request_id": i, "time": NOW + after, "experiment": "e", "arm": "ensemble"},
        **{"model": "ensemble", "version": 2, "pctr": pctr},
    },
    *(IDS, st.sampled_from([0.0, 1.0]), st.lists(st.sampled_from([None, 0.0, 0.2, 0.7]), max_size=3)),
)
FAILURES = st.builds(
    lambda i, name: {
        **{"kind": "failure", "request_id": i, "time": NOW, "unit": "u", "experiment": name, "phase": 1},
        **{"arm": "student", "code": "deadline", "latency_ms": 9.0, "enrolled": True},
    },
    *(st.sampled_from(["a", "b", "f"]), st.sampled_from(["e", "other"])),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=6)
@given(
    st.lists(EXPOSURES | EVENTS | SHADOWS | FAILURES | st.just({"kind": "new"}), min_size=4, max_size=20),
    st.integers(1, 2),
)
def test_the_views_join_as_the_journal_is_joined(
    tmp_path_factory: pytest.TempPathFactory, records: list[dict[str, Any]], machines: int
):
    """Whatever was logged, in whatever order, by how many machines: the same rows, the same counts."""
    base = tmp_path_factory.mktemp("logs")
    folders = [base / f"log-{machine}" for machine in range(machines)]
    for machine, folder in enumerate(folders):
        write(folder, *records[machine::machines], segment_bytes=400)
        run(folder, base / f"out-{machine}", part_bytes=800)

    rows = read_folders([base / f"out-{machine}" for machine in range(machines)], "e", WINDOW, ["device"])

    assert_same(rows, read_journal(folders, "e", WINDOW, ["device"]))


def test_what_cannot_be_read_is_counted_in_the_parts_too(tmp_path: Path):
    """The segment of the first version, with a damaged record and a torn end, answers the same."""
    folder, out = tmp_path / "log", tmp_path / "out"
    shutil.copytree(Path(__file__).parent.parent / "segments", folder)

    done = run(folder, out)

    assert (done.skipped.damaged, done.skipped.torn) == (1, 1)
    assert_same(read_folders([out], "e", WINDOW, ["device"]), read_journal([folder], "e", WINDOW, ["device"]))


def test_the_report_is_the_same_to_the_byte(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """`python -m service results` over the folder, and over what the command made of it."""
    experiments = experiments_file(tmp_path / "e.json", arm("ensemble"), arm("student"))
    name = json.loads(experiments.read_text())["experiments"][0]["name"]
    folder, out = tmp_path / "log", tmp_path / "it's parquet"
    random = np.random.default_rng(6)
    records = []
    for number in range(400):
        arms = ("ensemble", "student")[number % 2]
        scores = random.uniform(0.01, 0.4, 3).tolist()
        one = exposure(
            f"r-{number}", time=NOW + 300 * number, unit=f"u-{number % 150}", experiment=name, arm=arms, pctr=scores
        )
        records.append({**one, "context": {"device": ("phone", "tv")[number % 3 == 0]}})
        records.append(event("impression", number % 3, 300.0 * number + 1, request_id=f"r-{number}"))
        if random.random() < 0.2:
            records += 2 * [event("click", number % 3, 300.0 * number + 9, request_id=f"r-{number}")]
    write(folder, *records)
    torn = sorted(folder.glob(f"*{SEALED}"))[-1]
    torn.write_bytes(torn.read_bytes() + frame(b'{"kind":"event"}') + b"\xffRT\xfe" + b"x" * 30)

    assert main(["compact", str(folder), "--out", str(out), "--counts", "--keep-days", "100000"]) == 0

    said = capsys.readouterr().out
    assert "400 exposures" in said
    assert "1 torn ends, 0 damaged places, 1 unreadable records" in said
    duplicates = sum(record["kind"] == "event" and record["event"] == "click" for record in records) // 2
    assert f"{duplicates} duplicate events" in said
    command = ["results", "--experiments", str(experiments), "--no-replay", "--format", "json", "--segment", "device"]
    assert main([*command, "--log", str(folder)]) == 0
    expected = capsys.readouterr().out
    assert main([*command, "--log", str(out)]) == 0
    assert capsys.readouterr().out == expected
    tree = json.loads(expected)
    assert tree["log"]["log_duplicate_events"] == duplicates > 0
    assert sum(one["clicks"] for one in tree["arms"]) > 0
    assert main([*command, "--log", str(out), str(folder)]) == 2
    assert "what is in both is twice" in capsys.readouterr().err


def test_doing_it_again_adds_what_is_new_and_nothing_else(tmp_path: Path):
    """A part is never touched again; what is still written to waits until it is sealed."""
    folder, out = tmp_path / "log", tmp_path / "out"
    write(folder, exposure("a"), event("click", request_id="a"))
    writer = SegmentWriter(folder, BOUNDS)
    writer.append([json.dumps(exposure("b")).encode()])

    first = run(folder, out)
    again = run(folder, out)
    (part,) = parts(out)
    before = {path: path.stat().st_mtime_ns for path in part.rglob("*")}
    writer.close()
    last = run(folder, out)

    assert (first.segments, first.records["exposures"], first.records["events"]) == (1, 1, 1)
    assert (again.segments, again.parts) == (0, 0)
    assert (last.segments, last.records["exposures"], last.records["events"]) == (1, 1, 0)
    assert {path: path.stat().st_mtime_ns for path in part.rglob("*")} == before
    assert_same(read_folders([out], "e", WINDOW), read_journal([folder], "e", WINDOW))


def test_files_are_by_day_with_the_columns_that_are_documented(tmp_path: Path):
    """Any reader of Parquet finds them; what a record says and no column does is in `rest`."""
    folder, out = tmp_path / "log", tmp_path / "out"
    write(
        folder,
        exposure("a", time=NOW, shadow={"model": "next", "pctr": [0.5]}, candidate_ids=["x", "y", "z"]),
        exposure("b", time=NOW + DAY, context={"device": "tv"}, candidates={"ad": [1, 2, 3]}),
        event("sale", None, request_id="b", event_id="k", value=12.5),
    )
    run(folder, out)

    (part,) = parts(out)
    assert [path.parent.name for path in data_files(part, "exposures")] == ["day=2026-11-21", "day=2026-11-22"]
    exposures = duckdb.connect().execute(
        f"SELECT * EXCLUDE (source, segment, place) FROM '{part}/exposures/*/*.parquet' ORDER BY request_id"
    )
    names = [column[0] for column in exposures.description or ()]
    a, b = (dict(zip(names, row, strict=True)) for row in exposures.fetchall())
    assert (a["pctr"], a["candidate_ids"], a["time"]) == ([0.1, 0.2, 0.3], ["x", "y", "z"], NOW)
    assert json.loads(a["rest"]) == {"shadow": {"model": "next", "pctr": [0.5]}}
    assert (b["context"], b["candidates"], b["rest"]) == ('{"device":"tv"}', '{"ad":[1,2,3]}', None)
    connection = duckdb.connect()
    create_views(connection, [out])
    told = connection.execute("SELECT event, candidate, event_id, rest FROM events").fetchall()
    assert told == [("sale", None, "k", '{"value":12.5}')]
    listed = connection.execute(
        "SELECT candidate, candidate_id, pctr FROM candidates WHERE request_id = 'a'"
    ).fetchall()
    assert sorted(listed) == [(0, "x", 0.1), (1, "y", 0.2), (2, "z", 0.3)]


def test_one_unit_is_erased_from_both_and_does_not_come_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Who names the segments alone is told where else it is; the next run does not bring it back."""
    folder, out = tmp_path / "log", tmp_path / "out"
    for number in range(4):
        unit = ("them", "other")[number % 2]
        write(folder, exposure(f"r-{number}", unit=unit), event("click", request_id=f"r-{number}"))
    run(folder, out)
    write(folder, exposure("late", unit="them"), event("click", request_id="r-0"))

    assert main(["erase-unit", "--log", str(folder), "--unit", "them"]) == 1
    said = capsys.readouterr()
    assert said.out.startswith("6 records erased")
    assert str(out) in said.err
    assert main(["erase-unit", "--log", str(out), str(folder), "--unit", "them"]) == 0
    assert capsys.readouterr().out.startswith("4 records erased")
    assert run(folder, out).records["exposures"] == 0

    rows = read_folders([out], "e", WINDOW)
    assert sorted(rows["request_id"].tolist()) == ["r-1", "r-3"]
    assert rows.counts["log_orphan_events"] == 0
    assert_same(rows, read_journal([folder], "e", WINDOW))
    assert not [path for path in out.rglob("*.parquet") if b"them" in path.read_bytes()]


def test_days_are_kept_as_long_as_is_said(tmp_path: Path):
    """The rest of the part stays; a segment that was compacted is not compacted again because its day has gone."""
    folder, out = tmp_path / "log", tmp_path / "out"
    write(folder, exposure("a", time=NOW), exposure("b", time=NOW + 3 * DAY))
    write(folder, exposure("c", time=NOW + 3 * DAY))
    run(folder, out, part_bytes=1)

    done = run(folder, out, now=NOW + 3 * DAY, keep_seconds=DAY)

    assert done.old == 4  # one a table
    assert read_folders([out], "e", WINDOW)["request_id"].tolist() == ["b", "c"]
    assert run(folder, out, now=NOW + 3 * DAY, keep_seconds=DAY).segments == 0
    for path in segment_paths(folder):
        path.unlink()
    run(folder, out, now=NOW + 9 * DAY, keep_seconds=DAY)
    assert len(parts(out)) == 1  # the youngest says what is known
    assert read_folders([out], "e", WINDOW)["request_id"].tolist() == []


def hours(folder: Path, out: Path, days: int = 1) -> None:
    """Days of three parts each, of 2026-11-21 on, as a compaction each hour leaves them: nothing is merged yet. A click
    comes in another part than its exposure."""
    for number in range(3 * days):
        at = (number // 3) * DAY + 60.0 * (number % 3)
        unit = "them" if number % 3 == 1 else f"u{number}"
        late = [event("click", 1, at, request_id=f"r{number - 1}", received=NOW + at)] if number % 3 else []
        write(folder, exposure(f"r{number}", time=NOW + at, unit=unit), *late)
        run(folder, out, now=NOW)


def test_the_parts_of_a_day_become_one_when_it_is_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """As many files a day as there are tables, with every record and every count; of today they wait. Erasing and
    retention find what they look for, and what was compacted is not compacted again."""
    folder, out = tmp_path / "log", tmp_path / "out"
    hours(folder, out, days=2)
    torn = segment_paths(folder)[0]
    before = read_folders([out], "e", WINDOW)

    half = run(folder, out, now=NOW + DAY)
    both = run(folder, out, now=NOW + 2 * DAY)
    again = run(folder, out, now=NOW + 2 * DAY)

    assert (half.merged, both.merged, again.merged) == (2, 2, 0)
    assert (half.segments, both.segments, again.segments) == (0, 0, 0)
    first, second = parts(out)
    assert first.name == f"part-{torn.stem}"
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) == [first.name, second.name]
    assert len(list(out.rglob("*.parquet"))) == 2 * 5
    assert_same(read_folders([out], "e", WINDOW), before)
    assert_same(before, read_journal([folder], "e", WINDOW))
    for path in (first, first / "exposures", first / "segments.parquet"):
        assert path.stat().st_mode & 0o777 == (0o640 if path.is_file() else 0o750)

    write(folder, exposure("late", time=NOW + 60.0), event("impression", 2, 60.0, request_id="late"))
    assert run(folder, out, now=NOW + 2 * DAY).merged == 0, "it is behind the second day"
    assert main(["erase-unit", "--log", str(out), str(folder), "--unit", "them"]) == 0
    assert capsys.readouterr().out.startswith("8 records erased")
    assert not [path for path in out.rglob("*.parquet") if b"them" in path.read_bytes()]
    assert_same(read_folders([out], "e", WINDOW), read_journal([folder], "e", WINDOW))
    assert run(folder, out, now=NOW + 2 * DAY, keep_seconds=DAY).old > 0
    assert read_folders([out], "e", WINDOW)["request_id"].tolist() == ["r3", "r5"]


def test_a_part_is_not_merged_beyond_a_size(tmp_path: Path):
    """A day of many gigabytes stays several parts."""
    folder, out = tmp_path / "log", tmp_path / "out"
    hours(folder, out)
    sizes = [sum(path.stat().st_size for path in part.rglob("*.parquet")) for part in parts(out)]

    with writing(out, wait=False):
        assert merge(out, "2027-01-01", most_bytes=sizes[0]) == 0
        assert merge(out, "2027-01-01", most_bytes=sizes[0] + sizes[1]) == 1
    assert len(parts(out)) == 2
    assert_same(read_folders([out], "e", WINDOW), read_journal([folder], "e", WINDOW))


def test_killed_at_any_rename_of_merging_every_record_is_there_once(tmp_path: Path):
    """What is done between two of them nobody reads."""
    kill_merging(tmp_path, "rename")


@pytest.mark.soak
def test_killed_at_any_step_of_merging_every_record_is_there_once(tmp_path: Path):
    """Or sync, or removal."""
    kill_merging(tmp_path)


def kill_merging(tmp_path: Path, *calls: str) -> None:
    """Whatever was left is read like any other folder: no record is missing, none is there twice, also for who names
    `part-*` himself. Whoever writes there next goes on, or erases what was to be erased."""
    folder, out, kept = tmp_path / "log", tmp_path / "out", tmp_path / "kept"
    hours(folder, out)
    expected = read_journal([folder], "e", WINDOW)
    module = "tests.service.journal.sinks.killed"
    command = [sys.executable, "-m", module, str(folder), str(out), str(kept), "1", *calls]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)

    assert done.returncode == 0, done.stderr
    left = sorted(path for path in kept.iterdir() if path.name != "before")
    assert len(left) == int(done.stdout) >= 5
    assert {1, 3} == {len(parts(path)) for path in left}
    assert any(list(path.glob("merged-*")) for path in left)
    for path in left:
        assert_same(read_folders([path], "e", WINDOW), expected)
        seen = list(map(str, path.glob("part-*/exposures/*/*.parquet")))
        ids = duckdb.read_parquet(seen).project("request_id").fetchall() if seen else []
        assert len(set(ids)) == len(ids)
    for number, path in enumerate(left):
        if number % 2:
            assert erase_from_parts(path, "them") == 2
            assert not [file for file in path.rglob("*.parquet") if b"them" in file.read_bytes()]
        run(folder, path, now=NOW + DAY)
        assert len(parts(path)) == 1
        assert not [*path.glob("new-*"), *path.glob("merged-*")]
        if not number % 2:
            assert_same(read_folders([path], "e", WINDOW), expected)


def test_a_segment_that_was_removed_too_early_is_counted_and_loud(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Once: it stands in the table `segments` from then on."""
    folder, out = tmp_path / "log", tmp_path / "out"
    write(folder, exposure("a"))
    run(folder, out)
    write(folder, exposure("b"))
    (path,) = [path for path in segment_paths(folder) if b'"b"' in path.read_bytes()]
    size = path.stat().st_size
    forget(folder, keep_seconds=0.0, keep_bytes=1 << 30, now=path.stat().st_mtime + 1)
    write(folder, exposure("c"))

    command = ["compact", str(folder), "--out", str(out), "--keep-days", "100000"]
    assert main(command) == 1
    assert f"1 segments ({size} bytes) were removed by retention" in capsys.readouterr().err
    assert main(command) == 0

    assert read_folders([out], "e", WINDOW)["request_id"].tolist() == ["a", "c"]
    connection = duckdb.connect()
    create_views(connection, [out])
    assert connection.execute("SELECT sum(lost_bytes) FROM counts").fetchall() == [(size,)]


def test_what_cannot_work_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Two journals in one folder, two at it at the same time, and a machine without DuckDB."""
    folder, out = tmp_path / "log", tmp_path / "out"
    write(folder, exposure("a"))
    write(tmp_path / "another", exposure("b"))
    run(folder, out)

    with pytest.raises(ConfigError, match="another journal"):
        run(tmp_path / "another", out)
    with writing(out, wait=False), pytest.raises(BusyError):
        run(folder, out)
    with pytest.raises(AnswersError, match="same log"):
        read_folders([out, out], "e", WINDOW)
    with pytest.raises(ConfigError, match="without"):
        run(folder, tmp_path / "out[1]")
    monkeypatch.setitem(sys.modules, "duckdb", None)
    assert main(["compact", str(folder), "--out", str(out)]) == 2
    assert "pip install 'retort[analysis]'" in capsys.readouterr().err
    experiments = experiments_file(tmp_path / "e.json", arm("ensemble"), arm("student"))
    assert main(["results", "--experiments", str(experiments), "--log", str(out)]) == 2
    assert "pip install 'retort[analysis]'" in capsys.readouterr().err


def test_killed_at_some_step_it_leaves_the_old_or_the_new(tmp_path: Path):
    """At every fifth, and at each of the last."""
    kill(tmp_path, stride=5)


@pytest.mark.soak
def test_killed_at_any_step_it_leaves_the_old_or_the_new(tmp_path: Path):
    """At every one."""
    kill(tmp_path, stride=1)


def kill(tmp_path: Path, *, stride: int) -> None:
    """Really killed, before each call that changes a name or makes bytes durable. What was left is read like any other
    folder, and the next run finishes it: every record once."""
    folder, out, kept = tmp_path / "log", tmp_path / "out", tmp_path / "kept"
    write(folder, exposure("a"))
    run(folder, out)
    write(folder, exposure("b", time=NOW + DAY), event("click", request_id="a"))

    command = [
        sys.executable,
        "-m",
        "tests.service.journal.sinks.killed",
        str(folder),
        str(out),
        str(kept),
        str(stride),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)

    assert done.returncode == 0, done.stderr
    left = sorted(path for path in kept.iterdir() if path.name != "before")
    assert int(done.stdout) > 20
    assert len(left) >= int(done.stdout) // stride
    counts = [len(parts(path)) for path in left]
    border = counts.index(2)
    assert counts == [1] * border + [2] * (len(left) - border)
    for path, expected in ((left[border - 1], ["a"]), (left[border], ["a", "b"]), (left[-1], ["a", "b"])):
        rows = read_folders([path], "e", WINDOW)
        assert rows["request_id"].tolist() == expected
        assert rows["click"].tolist() == [len(expected) == 2, False][: len(expected)]
        run(folder, path)
        assert_same(read_folders([path], "e", WINDOW), read_journal([folder], "e", WINDOW))
        assert not list(path.glob("new-*"))


@pytest.mark.parametrize("content", [b"", b"\n", bytes(4), b"\xff\xfe", b"two words", b"x" * 65], ids=repr)
def test_a_log_that_lost_its_name_is_handed_on_nowhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes
):
    """Two logs without one would be taken for each other elsewhere, and a record of each two be dropped as known."""
    folder, out = tmp_path / "log", tmp_path / "out"
    write(folder, exposure("a"))
    (folder / "source.id").write_bytes(content)

    for command in (
        ["compact", str(folder), "--out", str(out)],
        ["ship", str(folder), "--to", "kafka://127.0.0.1:1/topic", "--once"],
    ):
        assert main(command) == 2
        assert "source.id: expected the name of this log" in capsys.readouterr().err
    assert not list(out.glob("part-*"))

    (folder / "source.id").write_text("machine-1\n")
    assert main(["compact", str(folder), "--out", str(out)]) == 0


@pytest.mark.parametrize("content", [bytes(4), b"\xff\xfe"], ids=repr)
def test_whoever_erases_is_told_where_it_is_not_known_what_copies_there_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes
):
    """A power failure leaves such a file. Nothing is said to be gone that may be somewhere else too."""
    folder, out = tmp_path / "log", tmp_path / "out"
    write(folder, exposure("a", unit="them"))
    (folder / "compacted.txt").write_bytes(content)

    for command in (
        ["erase-unit", "--log", str(folder), "--unit", "them"],
        ["compact", str(folder), "--out", str(out)],
    ):
        assert main(command) == 2
        assert "compacted.txt: expected the folders" in capsys.readouterr().err


@pytest.mark.parametrize("table", ["exposures", "events", "segments"])
def test_a_damaged_file_is_named_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], table: str):
    """Exit code 2: 1 would say that a unit is in segments that are still written to, and will be gone by itself."""
    folder, out = tmp_path / "log", tmp_path / "out"
    write(folder, exposure("a", unit="them"), event("click", request_id="a"))
    run(folder, out)
    (broken,) = out.rglob("segments.parquet" if table == "segments" else f"{table}/*/*.parquet")
    broken.write_bytes(bytes(3000))
    experiments = experiments_file(tmp_path / "e.json", arm("a", weight=0.5), arm("b", weight=0.5))
    commands = [["results", "--experiments", str(experiments), "--log", str(out)]]
    commands += [["erase-unit", "--log", str(out), "--unit", "them"]] if table != "segments" else []
    commands += [["compact", str(folder), "--out", str(out)]] if table == "segments" else []

    for command in commands:
        assert main(command) == 2
        said = capsys.readouterr()
        assert broken.name in said.err
        assert said.err.count("\n") == 1
        assert not said.out
