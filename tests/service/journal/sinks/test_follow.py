"""What is new in a journal is read once and whole, whatever its writers, retention and erasure do meanwhile."""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.journal.frames import Skipped, frame, is_erased
from models.journal.reading import OPEN, SEALED, read_payloads, segment_paths
from service.journal.erase import erase_unit
from service.journal.segments import forget
from service.journal.sinks.follow import Batch, Follower, Known, Position
from service.journal.writer import SegmentWriter
from tests.service.journal.test_joined import exposure
from tests.service.journal.test_writer import BOUNDS


class Reader:
    """Somebody who remembers, and begins again now and then."""

    def __init__(self, folder: Path, read_bytes: int = 1 << 20) -> None:
        self.folder = folder
        self.read_bytes = read_bytes
        self.positions: dict[str, Position] = {}
        self.found: list[tuple[str, int, bytes]] = []
        self.batches: list[Batch] = []
        self.begin_again()

    def begin_again(self) -> None:
        self.follower = Follower(self.folder, self.remember, read_bytes=self.read_bytes)

    def remember(self, segments: Collection[str]) -> Known:
        return Known(min(self.positions, default=None), dict(self.positions))

    def look(self, most: int = 1 << 30) -> None:
        """Takes so many batches; whoever stops in the middle has seen the next and forgets it."""
        looking = self.follower.look()
        for number, batch in enumerate(looking):
            if number >= most:
                looking.close()
                self.begin_again()
                return
            self.batches.append(batch)
            self.positions[batch.segment] = batch.position
            self.found += [(batch.segment, place, payload) for place, payload in batch.records]

    def payloads(self) -> list[bytes]:
        """In the order in which they were written, those that were erased left out."""
        assert len({(segment, place) for segment, place, _ in self.found}) == len(self.found)
        return [payload for _, _, payload in sorted(self.found) if not is_erased(payload)]


def record(number: int, unit: str = "u") -> bytes:
    return json.dumps(exposure(f"r-{number}", unit=unit, context={"text": "x" * (number % 7 * 40)})).encode()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=25)
@given(
    st.lists(st.sampled_from(["write", "write", "batch", "look", "glance", "restart", "rotate", "erase"]), max_size=30),
    st.sampled_from([50, 700, 5000]),
)
def test_every_record_is_read_once(tmp_path_factory: pytest.TempPathFactory, doings: list[str], read_bytes: int):
    """In pieces of any size, over rotations, restarts, looks that were broken off, and erasure."""
    folder = tmp_path_factory.mktemp("log")
    writer = SegmentWriter(folder, replace(BOUNDS, segment_bytes=1500, sync_seconds=3600.0))
    reader = Reader(folder, read_bytes)
    number = 0
    for doing in doings:
        if doing in ("write", "batch"):
            many = 1 if doing == "write" else 3
            writer.append([record(number + one, f"unit-{(number + one) % 3}") for one in range(many)])
            number += many
        elif doing == "look":
            reader.look()
        elif doing == "glance":
            reader.look(1)
        elif doing == "restart":
            reader.begin_again()
        elif doing == "rotate":
            writer.close()
            writer = SegmentWriter(folder, replace(BOUNDS, segment_bytes=1500, sync_seconds=3600.0))
        else:
            erase_unit(folder, "unit-1")
    writer.close()
    erased_late = set(read_payloads(folder, Skipped()))
    reader.look()
    reader.look()

    found = reader.payloads()
    assert [payload for payload in found if payload in erased_late] == list(read_payloads(folder, Skipped()))
    assert all(position.is_done for position in reader.positions.values())
    assert reader.follower.unread_bytes == 0
    assert not any(batch.torn or batch.damaged or batch.lost_bytes for batch in reader.batches)


def test_what_a_writer_takes_back_was_never_read(tmp_path: Path):
    """A write that the disk cut short: its whole frames stood there for a moment, then others stand in their place."""
    path = tmp_path / f"1795300000000-1-000001{OPEN}"
    path.write_bytes(b"RETORTJ1" + frame(record(0)))
    reader = Reader(tmp_path)
    reader.look()
    with path.open("r+b") as file:
        end = file.seek(0, os.SEEK_END)
        file.write(frame(record(1)) + frame(record(2))[:30])
        file.flush()
        reader.look()
        file.truncate(end)
        file.seek(end)
        file.write(frame(record(3)) + frame(record(4)))
    reader.look()
    reader.look()

    assert reader.payloads() == [record(0), record(3), record(4)]


def test_damage_is_counted_as_whoever_reads_the_whole_file_counts_it(tmp_path: Path):
    """Also where it is longer than what is read in one piece, and the end is torn."""
    path = tmp_path / f"1795300000000-1-000001{SEALED}"
    damaged = b"RETORTJ1" + frame(record(0)) + b"y" * 3000 + frame(record(1)) + b"\xff" * 9 + frame(record(2))
    path.write_bytes(damaged + frame(record(3))[:-1])
    skipped = Skipped()
    expected = list(read_payloads(tmp_path, skipped))

    reader = Reader(tmp_path, read_bytes=64)
    reader.look()

    assert reader.payloads() == expected == [record(0), record(1), record(2)]
    assert sum(batch.damaged for batch in reader.batches) == skipped.damaged == 2
    assert sum(batch.torn for batch in reader.batches) == skipped.torn == 1


def test_what_was_removed_unread_is_told_with_its_bytes(tmp_path: Path):
    """Seen or never seen, noted by retention or not; what was gone before the first look is nobody's loss."""

    def write(name: str, *numbers: int) -> Path:
        path = tmp_path / f"{name}{SEALED}"
        path.write_bytes(b"RETORTJ1" + b"".join(frame(record(number)) for number in numbers))
        return path

    def remove(*paths: Path) -> None:
        for path in paths:
            os.utime(path, (0, 0))
        assert forget(tmp_path, keep_seconds=1.0, keep_bytes=1 << 30, now=10.0)[0] == len(paths)

    remove(write("1000000000001-1-000001", 0))
    write("1000000000002-1-000001", 1)
    reader = Reader(tmp_path)
    reader.look()
    half = write("1000000000003-1-000001", 2, 3)
    reader.read_bytes = 10
    reader.begin_again()
    reader.look(1)
    read = reader.positions[half.stem].place
    unseen = write("1000000000004-1-000001", 4)
    sizes = {path.stem: path.stat().st_size for path in (half, unseen)}
    remove(half, unseen)
    for _ in range(2):
        reader.begin_again()
        reader.look()

    lost = {batch.segment: batch.lost_bytes for batch in reader.batches if batch.lost_bytes}
    assert lost == {half.stem: sizes[half.stem] - read, unseen.stem: sizes[unseen.stem]}
    assert [path.stem for path in segment_paths(tmp_path)] == ["1000000000002-1-000001"]
