"""The log in PostgreSQL: every record once, whoever dies when, and the same rows and counts as from the segments."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from models.journal.reading import OPEN, segment_paths
from service.__main__ import main
from service.errors import ConfigError
from service.journal.joined import read_journal
from service.journal.segments import adopt, forget
from service.journal.sinks.answers import read_folders, read_views
from service.journal.sinks.postgres import PostgresTarget, connect
from service.journal.sinks.ship import Shipper, TargetError, alone
from service.journal.writer import SegmentWriter
from tests.service.journal.sinks.database import Server, server
from tests.service.journal.sinks.test_compact import assert_same, run, write
from tests.service.journal.test_joined import NOW, WINDOW, event, exposure
from tests.service.journal.test_writer import BOUNDS
from tests.service.running import ROOT, wait_for
from tests.service.test_watch import arm, experiments_file


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    with server() as one:
        yield one


@pytest.fixture
def url(running: Server) -> str:
    """Of an empty database."""
    with psycopg.connect(running.url, autocommit=True) as connection:
        connection.execute("DROP SCHEMA IF EXISTS retort CASCADE")
    return running.url


def shipper(folder: Path, url: str) -> Shipper:
    return Shipper(folder, PostgresTarget(url), sink="sink", poll_seconds=0.02, status_seconds=0.02)


def ship(folder: Path, url: str) -> Shipper:
    one = shipper(folder, url)
    with contextlib.closing(one):
        assert one.run(once=True)
    return one


def ask(url: str, query: str) -> list[tuple[Any, ...]]:
    with contextlib.closing(connect(url)) as connection:
        return connection.execute(query).fetchall()


def log(folder: Path, first: int, last: int) -> None:
    """A worker's life: some exposures, impressions, clicks, twice or late, a shadow, a failure."""
    records: list[dict[str, Any]] = []
    for number in range(first, last):
        name = f"r-{number}"
        at = float(number)
        records.append(
            exposure(name, time=NOW + at, experiment="e" if number % 5 else "other", context={"device": "tv"})
        )
        records.append(event("impression", number % 4, at + 1, request_id=name))
        records += (number % 3) * [event("click", number % 3, at + 2 + WINDOW * (number % 2), request_id=name)]
        if number % 4 == 0:
            facts = {"experiment": "e", "arm": "ensemble", "model": "ensemble", "version": 2, "pctr": [0.5, None, 0.7]}
            records.append({"kind": "shadow", "request_id": name, "time": NOW + at, **facts})
        if number % 7 == 0:
            facts = {
                "unit": "u",
                "experiment": "e",
                "phase": 1,
                "arm": "student",
                "code": "deadline",
                "latency_ms": 9.0,
            }
            records.append({"kind": "failure", "request_id": f"f-{number}", "time": NOW + at, **facts})
    records.append(event("click", request_id="nobody's"))
    records.append({"kind": "new"})
    write(folder, *records)


def assert_answers(url: str, folder: Path) -> None:
    """The views say what the segments say."""
    with contextlib.closing(connect(url)) as connection:
        connection.execute("DELETE FROM windows")
        connection.execute("INSERT INTO windows VALUES ('e', %s)", [WINDOW])

        def ask(query: str) -> Iterator[tuple[Any, ...]]:
            return iter(connection.execute(query).fetchall())

        assert_same(read_views(ask, "e", ["device"]), read_journal([folder], "e", WINDOW, ["device"]))


def test_the_views_say_what_the_segments_and_duckdb_say(tmp_path: Path, url: str):
    """The same text of the views, the same rows, the same counts; and again, it changes nothing."""
    folder, out = tmp_path / "log", tmp_path / "out"
    log(folder, 0, 60)
    torn = segment_paths(folder)[-1]
    torn.write_bytes(torn.read_bytes() + b"\xffRT\xfe" + b"x" * 30)

    first, again = ship(folder, url), ship(folder, url)
    run(folder, out)

    assert (first.refused, again.records) == (1, 0)
    assert_answers(url, folder)
    assert_same(read_folders([out], "e", WINDOW, ["device"]), read_journal([folder], "e", WINDOW, ["device"]))
    assert ask(url, "SELECT sum(torn) FROM segments") == [(1,)]


def test_the_report_is_the_same_to_the_byte(tmp_path: Path, url: str, capsys: pytest.CaptureFixture[str]):
    """`python -m service results` over the folder, over Parquet and over the database, by whom reads there alone; under
    the window of the experiment file, whatever was inserted there. Nothing is left behind."""
    experiments = experiments_file(
        tmp_path / "e.json", arm("ensemble"), arm("student"), analysis={"attribution_window_seconds": WINDOW}
    )
    folder, out = tmp_path / "log", tmp_path / "out"
    log(folder, 0, 20)
    ship(folder, url)
    run(folder, out)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("INSERT INTO retort.windows VALUES ('e', 1)")
        if not connection.execute("SELECT 1 FROM pg_roles WHERE rolname = 'reader'").fetchone():
            connection.execute("CREATE ROLE reader LOGIN")
        connection.execute("GRANT USAGE ON SCHEMA retort TO reader")
        connection.execute("GRANT SELECT ON ALL TABLES IN SCHEMA retort TO reader")
    before = ask(url, "SELECT relname, relnamespace FROM pg_class ORDER BY oid")

    texts = []
    for place in (str(folder), str(out), re.sub("user=[^&]*", "user=reader", url)):
        command = ["results", "--experiments", str(experiments), "--no-replay", "--segment", "device"]
        command += ["--as-of", str(NOW + 9 * WINDOW), "--format", "json", "--log", place]
        assert main(command) == 0
        texts.append(capsys.readouterr().out)

    assert texts[0] == texts[1] == texts[2]
    tree = json.loads(texts[0])
    assert sum(one["clicks"] for one in tree["arms"]) > 0
    assert tree["log"]["log_late_events"] > 0
    assert tree["log"]["log_duplicate_events"] > 0
    assert ask(url, "SELECT * FROM windows") == [("e", 1.0)]
    assert ask(url, "SELECT relname, relnamespace FROM pg_class ORDER BY oid") == before


def test_where_nothing_was_shipped_results_say_so(tmp_path: Path, url: str, capsys: pytest.CaptureFixture[str]):
    """And make no schema there; nor is a database read beside anything else, or said with its password."""
    experiments = experiments_file(tmp_path / "e.json", arm("ensemble"), arm("student"))
    results = ["results", "--experiments", str(experiments), "--log"]
    gone = "postgresql://me:secret@127.0.0.1:1/db"
    for logs, said in (
        ([url], "no log was shipped there"),
        ([url, str(tmp_path)], "one database and nothing else"),
        ([url, str(experiments)], "got both"),
        ([gone], "--log postgresql://127.0.0.1/db: "),
    ):
        assert main([*results, *logs]) == 2
        told = capsys.readouterr().err
        assert said in told
        assert "secret" not in told
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT to_regnamespace('retort')").fetchall() == [(None,)]


def test_what_is_being_written_is_followed(tmp_path: Path, url: str):
    """Over a rotation, a worker that dies, and a next one; with a record that PostgreSQL's texts cannot hold."""
    folder = tmp_path / "log"
    writer = SegmentWriter(folder, BOUNDS)
    writer.append([json.dumps(exposure("a", unit="a\0b")).encode()])
    one = shipper(folder, url)
    thread = threading.Thread(target=one.run, kwargs={"once": False})
    thread.start()
    try:
        shipped(url, ["a"])
        writer._rotate()
        writer.append([json.dumps(exposure("b")).encode()])
        shipped(url, ["a", "b"])
        writer.close()
        dead = folder / f"1795300000000-1-000001{OPEN}"
        dead.write_bytes(segment_paths(folder)[0].read_bytes().replace(b"RETORTJ1", b"RETORTJ1") + b"\xffRT\xfe torn")
        shipped(url, ["a", "a", "b"])
        adopt(folder)
        wait_for(lambda: ask(url, "SELECT count(*) FROM segments WHERE is_done") == [(3,)], "all of them are done")
    finally:
        one.stopping.set()
        thread.join()
        one.close()

    assert ask(url, "SELECT sum(torn), sum(damaged) FROM segments") == [(1, 0)]
    assert ask(url, "SELECT DISTINCT unit FROM exposures WHERE request_id = 'a'") == [("a\ufffdb",)]


def shipped(url: str, ids: list[str]) -> None:
    def are_there() -> bool:
        with contextlib.suppress(ConfigError, TargetError, psycopg.Error):
            return [name for (name,) in ask(url, "SELECT request_id FROM exposures ORDER BY 1")] == ids
        return False

    wait_for(are_there, f"{ids} are there")


def test_killed_anywhere_every_record_is_there_once(tmp_path: Path, url: str):
    """At every fourth thing that it says to the server."""
    kill(tmp_path, url, stride=4)


@pytest.mark.soak
def test_killed_everywhere_every_record_is_there_once(tmp_path: Path, url: str):
    """At every one."""
    kill(tmp_path, url, stride=1)


def kill(tmp_path: Path, url: str, *, stride: int) -> None:
    """The follower, by kill -9, between any two of its transactions and within one; then it goes on."""
    folder = tmp_path / "log"
    log(folder, 0, 8)
    command = [sys.executable, "-m", "tests.service.journal.sinks.killed_shipper", str(folder), url, str(stride)]

    killed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)

    assert killed.returncode == 0, killed.stderr
    assert int(killed.stdout) > 20 // stride
    assert_answers(url, folder)


def test_with_the_server_gone_it_waits_and_goes_on(tmp_path: Path, url: str, running: Server):
    """Stopped as if its machine had died; what is logged meanwhile comes after."""
    folder = tmp_path / "log"
    log(folder, 0, 5)
    one = shipper(folder, url)
    thread = threading.Thread(target=one.run, kwargs={"once": False})
    thread.start()
    try:
        wait_for(lambda: has_shipped(url, 5), "the first are there")
        running.stop()
        try:
            log(folder, 5, 10)
            wait_for(lambda: one._follower is None, "it has seen that nobody is there")
            assert not shipper(folder, url).run(once=True)
        finally:
            running.start()
        wait_for(lambda: has_shipped(url, 10), "the others are there")
    finally:
        one.stopping.set()
        thread.join()
        one.close()
    assert_answers(url, folder)


def has_shipped(url: str, number: int) -> bool:
    with contextlib.suppress(ConfigError, TargetError, psycopg.Error):
        return ask(url, "SELECT count(DISTINCT request_id) FROM exposures") == [(number,)]
    return False


def test_one_follower_a_journal(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch):
    """On this machine by a lock in the folder, from another by one in the database."""
    folder = tmp_path / "log"
    log(folder, 0, 1)
    with alone(folder, url, "postgresql"):
        assert main(["ship", str(folder), "--to", url, "--once"]) == 2
    source = (folder / "source.id").read_text() if (folder / "source.id").exists() else None
    ship(folder, url)
    source = source or (folder / "source.id").read_text()
    first, second = PostgresTarget(url), PostgresTarget(url)
    try:
        first.open(source)
        monkeypatch.setattr("service.journal.sinks.postgres.LOCK_SECONDS", 0.1)
        with pytest.raises(TargetError, match="another follower"):
            second.open(source)
    finally:
        second.close()
        first.close()


def test_what_retention_removed_unread_is_counted_once(tmp_path: Path, url: str, caplog: pytest.LogCaptureFixture):
    """What was shipped before it was removed is not lost, and what was gone before the first look was never ours."""
    folder = tmp_path / "log"
    write(folder, exposure("before"))
    remove_all(folder)
    write(folder, exposure("a"))
    ship(folder, url)
    remove_all(folder)
    write(folder, exposure("unread"))
    (size,) = [path.stat().st_size for path in segment_paths(folder)]
    remove_all(folder)
    write(folder, exposure("b"))

    one = ship(folder, url)

    assert (one.lost_segments, one.lost_bytes) == (1, size)
    assert "was removed before it was shipped" in caplog.text
    assert ship(folder, url).lost_segments == 0
    assert ask(url, "SELECT sum(lost_bytes) FROM counts") == [(size,)]
    assert ask(url, "SELECT request_id FROM exposures ORDER BY 1") == [("a",), ("b",)]


def remove_all(folder: Path) -> None:
    last = max(path.stat().st_mtime for path in segment_paths(folder))
    forget(folder, keep_seconds=0.0, keep_bytes=1 << 30, now=last + 1)
    assert not segment_paths(folder)


def test_one_unit_is_erased_there_too(tmp_path: Path, url: str, capsys: pytest.CaptureFixture[str]):
    """From the segments first: the follower has its place in them after that, and ships what is left."""
    folder = tmp_path / "log"
    write(folder, exposure("a", unit="them"), event("click", request_id="a"), exposure("b"))
    ship(folder, url)
    write(folder, exposure("c", unit="them"), exposure("d"))

    assert main(["erase-unit", "--log", url, str(folder), "--unit", "them"]) == 0

    assert capsys.readouterr().out.startswith("5 records erased")
    ship(folder, url)
    assert ask(url, "SELECT request_id FROM exposures ORDER BY 1") == [("b",), ("d",)]
    assert ask(url, "SELECT count(*) FROM events") == [(0,)]


def test_the_command_tells_what_it_did(tmp_path: Path, url: str):
    """A process of its own, stopped by SIGTERM with exit code 0; its lines hold no password."""
    folder = tmp_path / "log"
    log(folder, 0, 10)
    command = [
        sys.executable,
        "-m",
        "service",
        "ship",
        str(folder),
        "--poll-seconds",
        "0.05",
        "--status-seconds",
        "0.05",
    ]
    environment = {**os.environ, "RETORT_SHIP_TO": f"{url}&password=secret"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            lines = []
            for line in process.stderr:
                lines.append(line)
                if "; 0 bytes are unread" in line and "in all 0" not in line:
                    break
            process.send_signal(signal.SIGTERM)
            lines += process.stderr.readlines()
            assert process.wait(60) == 0
        finally:
            process.kill()
    assert "secret" not in "".join(lines)
    assert_answers(url, folder)


def test_a_schema_of_another_release_is_refused(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch):
    """And so are a URL that is none and a machine without psycopg."""
    folder = tmp_path / "log"
    log(folder, 0, 1)
    ship(folder, url)
    with psycopg.connect(url) as connection:
        connection.execute("UPDATE retort.meta SET format_version = 99")
    with pytest.raises(ConfigError, match="got 99"):
        shipper(folder, url).run(once=True)
    for wrong in ("postgresql://h/db?nonsense=1", "mysql://h/db", "kafka://h"):
        assert main(["ship", str(folder), "--to", wrong, "--once"]) == 2
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigError, match=r"pip install 'retort\[postgres\]'"):
        shipper(folder, url).run(once=True)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:100%SECRET@127.0.0.1:1/clicks",
        "postgresql://me:pa/SECRET@127.0.0.1:1/clicks",
        "postgresql://me:12/SECRET@127.0.0.1:1/clicks",
        "postgresql://me:pa@SECRET@127.0.0.1:1/clicks",
        "postgresql://me:pa SECRET@127.0.0.1:1/clicks",
        "postgresql://me:pa[SECRET@127.0.0.1:1/clicks",
        "postgresql://me:pa\u2100SECRET@127.0.0.1:1/clicks",
        "postgresql://127.0.0.1:SECRET/clicks",
        "postgresql://127.0.0.1:1/clicks?password=SECRET",
    ],
)
@pytest.mark.parametrize("command", ["results", "ship", "erase-unit"])
def test_a_password_is_in_no_error(
    tmp_path: Path, url: str, command: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    """Also not a piece of one with letters in it that a URL takes for something else."""
    folder = tmp_path / "log"
    log(folder, 0, 1)
    spec = experiments_file(tmp_path / "e.json", arm("ensemble"), arm("student"))
    arguments = {
        "results": ["--experiments", str(spec), "--log", url],
        "ship": [str(folder), "--once", "--to", url],
        "erase-unit": ["--log", url, "--unit", "u"],
    }

    assert main([command, *arguments[command]]) != 0

    captured = capsys.readouterr()
    assert "SECRET" not in captured.out + captured.err + caplog.text
    assert "127.0.0.1" in captured.err + caplog.text or "%40" in captured.err + caplog.text
