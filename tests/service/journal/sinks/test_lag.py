"""How far behind a follower of the log is: said by it in a file, shown by the service as metrics."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Collection
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from service.__main__ import main
from service.journal.segments import forget
from service.journal.sinks.follow import Batch, Follower, Known, Position
from service.journal.sinks.lag import MOST_SINKS, Standing, read_standing, show, standing_path, write_standing
from service.journal.sinks.ship import Shipper, TargetError, alone
from service.metrics import Metrics
from tests.service.journal.sinks.test_compact import write
from tests.service.journal.test_joined import exposure
from tests.service.running import make_app, metric, wait_until_ready

SINK = "nowhere"


class Memory:
    """Takes batches, as long as it is told to; it forgets nothing."""

    name = "memory"

    def __init__(self) -> None:
        self.is_away = False
        self.positions: dict[str, Position] = {}

    def open(self, source: str) -> None:
        if self.is_away:
            raise TargetError("nobody is there")

    def remember(self, segments: Collection[str]) -> Known:
        return Known(min(self.positions, default=None), dict(self.positions))

    def write(self, batch: Batch) -> int:
        if self.is_away:
            raise TargetError("it is gone")
        self.positions[batch.segment] = batch.position
        return 0

    def close(self) -> None:
        pass


def ship(folder: Path, target: Memory) -> Standing:
    """Looks until nothing is left or the target is away; what was said in the end."""
    shipper = Shipper(folder, target, sink=SINK, poll_seconds=0.01, status_seconds=3600)
    shipper.run(once=True)
    shipper.close()
    found = read_standing(standing_path(folder, SINK))
    assert found is not None
    return found


def test_who_keeps_up_has_shipped_until_now(tmp_path: Path):
    """Also where nothing is logged: a log at rest is no lag."""
    write(tmp_path, *(exposure(f"r{number}") for number in range(50)))
    target, before = Memory(), time.time()

    first = ship(tmp_path, target)
    then = time.time()
    second = ship(tmp_path, target)

    assert (first.unread_bytes, first.lost_bytes) == (0, 0)
    assert before <= first.shipped_until <= then <= second.shipped_until


def test_what_nobody_takes_is_behind_since_it_was_taken_last(tmp_path: Path):
    """Whoever follows then: the lag goes on from what the one before has left."""
    write(tmp_path, exposure("a"))
    target = Memory()
    well = ship(tmp_path, target)
    target.is_away = True
    write(tmp_path, *(exposure(f"r{number}") for number in range(50)))

    broken = ship(tmp_path, target)
    again = ship(tmp_path, target)
    target.is_away = False
    mended = ship(tmp_path, target)

    assert broken.shipped_until == again.shipped_until == well.shipped_until
    assert mended.shipped_until > well.shipped_until
    assert mended.unread_bytes == 0


def test_the_status_line_says_what_the_metrics_say(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Seconds and bytes: of a sink that nobody could write to for a minute, and of one that keeps up."""
    folder, metrics = tmp_path / "log", Metrics()
    write(folder, *(exposure(f"r{number}") for number in range(50)))
    path = standing_path(folder, SINK)
    write_standing(path, Standing(time.time() - 60.0, 70))
    show(metrics, folder)
    target = Memory()

    def told() -> tuple[float, int]:
        """Of the last line."""
        found = re.findall(r"(\d+) bytes are unread, ([0-9.]+) s behind", caplog.text)
        return float(found[-1][1]), int(found[-1][0])

    def shown() -> tuple[float, float]:
        text = metrics.exposition().decode()
        return metric(text, "retort_ship_lag_seconds", sink=SINK), metric(text, "retort_ship_unread_bytes", sink=SINK)

    target.is_away = True
    with caplog.at_level(logging.INFO):
        before = shown()
        ship(folder, target)
        after = shown()
        assert before[0] - 0.1 <= told()[0] <= after[0] + 0.1
        assert told()[1] == before[1] == after[1] == 70

        target.is_away = False
        ship(folder, target)
        assert told()[0] <= shown()[0] + 0.1 < 60.0
        assert told()[1] == shown()[1] == 0


def test_what_has_not_been_read_yet_is_unread_however_many_segments_it_is_in(tmp_path: Path):
    write(tmp_path, *(exposure(f"r{number}") for number in range(50)), segment_bytes=1024)
    there = sum(path.stat().st_size for path in tmp_path.glob("*.seg"))
    follower = Follower(tmp_path, lambda segments: Known())

    looking = follower.look()
    first = next(looking)
    unread = follower.unread_bytes
    looking.close()

    assert len(list(tmp_path.glob("*.seg"))) > 3
    assert first.position.place < unread < there


def test_what_was_removed_unread_is_lost_for_good(tmp_path: Path):
    """Counted on by whoever follows next."""
    write(tmp_path, exposure("a"))
    target = Memory()
    ship(tmp_path, target)
    lost = []
    for number in range(2):
        write(tmp_path, exposure(f"b{number}"))
        forget(tmp_path, keep_seconds=0.0, keep_bytes=1 << 30, now=time.time() + 60.0)
        lost.append(ship(tmp_path, target).lost_bytes)

    assert 0 < lost[0] < lost[1]


def test_the_service_says_how_far_each_sink_is(repository: Path, tmp_path: Path):
    """With every second that nobody says anything new the lag is a second more: so is that of a dead follower."""
    folder, metrics = tmp_path / "log", Metrics()
    now = 1_000.0
    show(metrics, folder, lambda: now)
    assert metric(metrics.exposition().decode(), "retort_ship_lag_seconds") == 0.0
    folder.mkdir()
    write_standing(standing_path(folder, "kafka"), Standing(990.0, 70, 5))
    write_standing(standing_path(folder, "postgresql"), Standing(999.5))

    def read(name: str, sink: str) -> float:
        return metric(metrics.exposition().decode(), f"retort_ship_{name}", sink=sink)

    assert [read(name, "kafka") for name in ("lag_seconds", "unread_bytes", "lost_bytes")] == [10.0, 70.0, 5.0]
    assert read("lag_seconds", "postgresql") == 0.5
    now = 1_060.0
    assert [read("lag_seconds", sink) for sink in ("kafka", "postgresql")] == [70.0, 60.5]
    now = 900.0  # a clock that was put back
    assert read("lag_seconds", "kafka") == 0.0

    with TestClient(make_app(repository, log=folder)) as client:
        wait_until_ready(client)
        text = client.get("/metrics").text
        assert metric(text, "retort_ship_unread_bytes", sink="kafka") == 70.0


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"{}", b'{"shipped_until": "x"}', b'{"shipped_until": NaN}', b"\xff", b"9" * 10_000]
)
def test_what_is_no_standing_is_no_metric(tmp_path: Path, content: bytes):
    """Nor is a file of another name, nor what somebody fills the folder with beyond a few."""
    metrics = Metrics()
    show(metrics, tmp_path)
    (tmp_path / "ship").mkdir()
    (tmp_path / "ship" / "kafka.json").write_bytes(content)
    (tmp_path / "ship" / 'a"} 1.json').write_text(json.dumps({"shipped_until": 1.0}))

    assert "retort_ship_lag_seconds{" not in metrics.exposition().decode()

    for number in range(100):
        write_standing(standing_path(tmp_path, f"s{number}"), Standing(1.0))
    assert metrics.exposition().decode().count("retort_ship_lag_seconds{") == MOST_SINKS - 1  # one is kafka.json


def test_where_it_cannot_be_said_it_is_shipped_all_the_same(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    write(tmp_path, exposure("a"))
    (tmp_path / "ship").write_text("in the way")
    target = Memory()

    with caplog.at_level(logging.WARNING):
        assert Shipper(tmp_path, target, sink=SINK, poll_seconds=0.01, status_seconds=3600).run(once=True)

    assert target.positions
    assert caplog.text.count("how far it is cannot be written") == 1


def test_two_followers_of_a_folder_have_two_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Or the metrics of one would be the other's."""
    with alone(tmp_path, "kafka://a:1/t", "kafka"):
        assert main(["ship", str(tmp_path), "--to", "kafka://b:1/t", "--once"]) == 2
    assert "another follower of it is called kafka: --name" in capsys.readouterr().err

    assert main(["ship", str(tmp_path), "--to", "kafka://b:1/t", "--name", "../kafka"]) == 2
    assert "--name: expected at most 64" in capsys.readouterr().err


def test_a_clock_that_was_put_back_hides_no_lag(tmp_path: Path):
    """Whoever followed while it was ahead has said that all is shipped until a day that is still to come."""
    write(tmp_path, exposure("a"))
    target = Memory()
    ahead = Standing(time.time() + 1e9)
    for is_away in (True, False):
        (tmp_path / "ship").mkdir(exist_ok=True)
        write_standing(standing_path(tmp_path, SINK), ahead)
        target.is_away = is_away
        assert ship(tmp_path, target).shipped_until <= time.time()
