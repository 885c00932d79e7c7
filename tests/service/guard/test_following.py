"""A journal that grows is read once, whatever happens to its files meanwhile."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from models.journal.frames import FILE_MAGIC, frame, take_whole
from models.journal.reading import segment_paths
from service.guard.following import Follower
from service.journal.writer import SegmentWriter
from tests.service.journal.test_writer import BOUNDS


def record(number: int) -> bytes:
    return b'{"kind":"event","number":%d}' % number


def follower(folder: Path, since: float = 0.0, max_bytes: int = 1 << 30) -> Follower:
    return Follower(folder, since, max_bytes)


def test_every_record_comes_once_over_segments_that_are_rotated_and_sealed(tmp_path: Path):
    """A segment changes its name when it is full; it is the same segment."""
    writer = SegmentWriter(tmp_path, replace(BOUNDS, segment_bytes=200))
    following = follower(tmp_path)
    found: list[bytes] = []
    for number in range(50):
        assert writer.append([record(number)]) is None
        if number % 7 == 0:
            found += following.new_payloads()
    writer.close()
    found += following.new_payloads()

    assert found == [record(number) for number in range(50)]
    assert len(segment_paths(tmp_path)) > 5
    assert list(following.new_payloads()) == []


def test_half_a_record_is_waited_for(tmp_path: Path):
    """Its writer is in the middle of it."""
    path = tmp_path / "0000000000001-1-000001.open"
    whole = FILE_MAGIC + frame(record(1)) + frame(record(2))
    following = follower(tmp_path)
    path.write_bytes(whole[:-5])
    assert list(following.new_payloads()) == [record(1)]
    assert list(following.new_payloads()) == []

    path.write_bytes(whole)

    assert list(following.new_payloads()) == [record(2)]


def test_a_damaged_record_costs_itself_alone(tmp_path: Path):
    """And a torn end of a file that is sealed is not waited for."""
    damaged = bytearray(FILE_MAGIC + frame(record(1)) + frame(record(2)) + frame(record(3)))
    damaged[len(FILE_MAGIC) + len(frame(record(1))) + 20] ^= 1
    (tmp_path / "0000000000001-1-000001.seg").write_bytes(bytes(damaged[:-3]))
    (tmp_path / "0000000000002-1-000002.seg").write_bytes(FILE_MAGIC + frame(record(4)))

    assert list(follower(tmp_path).new_payloads()) == [record(1), record(4)]


def test_what_is_removed_is_forgotten(tmp_path: Path):
    """By retention, while it is followed."""
    path = tmp_path / "0000000000001-1-000001.open"
    path.write_bytes(FILE_MAGIC + frame(record(1)))
    following = follower(tmp_path)
    assert list(following.new_payloads()) == [record(1)]

    path.unlink()

    assert list(following.new_payloads()) == []


def test_of_an_old_log_the_newest_part_is_read(tmp_path: Path):
    """By size, and by age; what comes later is read whole."""
    for number in range(4):
        path = tmp_path / f"000000000000{number}-1-00000{number}.seg"
        path.write_bytes(FILE_MAGIC + frame(record(number)))
    size = path.stat().st_size
    newest = follower(tmp_path, max_bytes=2 * size)

    assert list(newest.new_payloads()) == [record(2), record(3)]
    assert list(follower(tmp_path, since=time.time() + 60).new_payloads()) == []
    (tmp_path / "0000000000009-1-000009.open").write_bytes(FILE_MAGIC + frame(record(9)))
    assert list(newest.new_payloads()) == [record(9)]


def test_what_need_not_be_read_again_ends_behind_a_whole_record():
    """Wherever the bytes end."""
    data = FILE_MAGIC + frame(record(1)) + frame(record(22))
    for size in range(len(data) + 1):
        whole, done = take_whole(data[:size])
        again, rest = take_whole(data[done:])
        assert whole + again == [record(1), record(22)]
        assert done + rest == len(data)
