"""Frames: what was written whole is read, whatever happened to its neighbours."""

from __future__ import annotations

import json
import os
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from models.journal.frames import FILE_MAGIC, HEAD_BYTES, MAGIC, MAX_PAYLOAD_BYTES, Skipped, frame, payloads
from models.journal.reading import read_payloads

RECORDS = st.lists(
    st.dictionaries(st.text(max_size=5), st.text(max_size=20), max_size=3).map(
        lambda members: json.dumps(members, ensure_ascii=False).encode("utf-8", "replace")
    ),
    min_size=1,
    max_size=8,
)


def read(data: bytes) -> tuple[list[bytes], Skipped]:
    skipped = Skipped()
    return list(payloads(data, skipped)), skipped


@given(RECORDS)
def test_what_was_written_is_read_in_order(records: list[bytes]):
    """And nothing is counted as skipped."""
    found, skipped = read(FILE_MAGIC + b"".join(map(frame, records)))

    assert found == records
    assert skipped == Skipped()


@given(RECORDS, st.data())
def test_a_changed_byte_loses_its_own_record_alone(records: list[bytes], data: st.DataObject):
    """Wherever it is in a frame (magic, length, checksum, payload) and whatever it becomes; it is counted once."""
    which = data.draw(st.integers(0, len(records) - 1))
    content = bytearray(FILE_MAGIC + b"".join(map(frame, records)))
    start = len(FILE_MAGIC) + sum(len(frame(record)) for record in records[:which])
    place = start + data.draw(st.integers(0, len(frame(records[which])) - 1))
    content[place] ^= data.draw(st.integers(1, 255))

    found, skipped = read(bytes(content))

    assert found == records[:which] + records[which + 1 :]
    is_last = which == len(records) - 1
    assert (skipped.damaged, skipped.torn) == ((0, 1) if is_last else (1, 0))
    assert skipped.bytes == len(frame(records[which]))


@given(RECORDS, st.data())
def test_a_file_cut_anywhere_keeps_every_record_before_the_cut(records: list[bytes], data: st.DataObject):
    """The end that is left of the record at the cut is counted, unless the cut is between two."""
    content = FILE_MAGIC + b"".join(map(frame, records))
    cut = data.draw(st.integers(len(FILE_MAGIC), len(content)))
    ends = [len(FILE_MAGIC)]
    for record in records:
        ends.append(ends[-1] + len(frame(record)))
    whole = max(number for number, end in enumerate(ends) if end <= cut)

    found, skipped = read(content[:cut])

    assert found == records[:whole]
    assert skipped == Skipped(torn=int(cut > ends[whole]), bytes=cut - ends[whole])


@given(RECORDS, st.binary(max_size=40))
def test_foreign_bytes_between_frames_cost_no_record(records: list[bytes], noise: bytes):
    """Even where they look like the beginning of a frame."""
    for foreign in (noise, MAGIC, MAGIC + noise, frame(b"{}")[:-1]):
        content = FILE_MAGIC + foreign + b"".join(map(frame, records))
        found, _ = read(content)

        assert found[-len(records) :] == records


def test_a_file_that_is_none_of_ours_is_one_damaged_end():
    """Whatever stands in it; a length beyond the bound is not believed."""
    too_long = MAGIC + (MAX_PAYLOAD_BYTES + 1).to_bytes(4, "little") + bytes(4)

    for content in (b"hello", b"\0" * 1000, too_long, MAGIC, MAGIC * 5):
        found, skipped = read(content)
        assert found == []
        assert skipped == Skipped(torn=1, bytes=len(content))
    assert read(b"") == ([], Skipped())
    assert len(frame(b"")) == HEAD_BYTES


def test_what_has_a_segments_name_and_is_no_file_is_none(tmp_path: Path):
    """A folder that a mount or a copy left behind; a pipe, which whoever opens it would wait at for ever, as at a
    device without an end. What is in the log is read all the same."""
    (tmp_path / "1795300000000-1-0.seg").mkdir()
    os.mkfifo(tmp_path / "1795300000000-1-1.seg")
    os.mkfifo(tmp_path / "1795300000000-1-2.open")
    (tmp_path / "1795300000000-1-3.seg").symlink_to("/dev/zero")
    (tmp_path / "1795300000000-1-4.seg").symlink_to("nowhere")
    (tmp_path / "1795300000001-1-0.seg").write_bytes(FILE_MAGIC + frame(b"here"))

    assert list(read_payloads(tmp_path, Skipped())) == [b"here"]
