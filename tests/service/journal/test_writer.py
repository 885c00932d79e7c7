"""One worker's end of the journal: rotation, retention, dead writers, and disks that fail."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from models.journal.frames import FILE_MAGIC, Skipped, frame
from models.journal.reading import OPEN, SEALED, read_payloads, segment_paths
from service.journal import writer as writer_module
from service.journal.segments import adopt, forget
from service.journal.writer import DISK_FULL, WRITE_ERROR, Bounds, SegmentWriter
from tests.service.running import ROOT, wait_for

BOUNDS = Bounds(
    segment_bytes=1 << 20, segment_seconds=3600.0, sync_seconds=0.02, keep_seconds=3600.0, keep_bytes=1 << 30
)


@contextmanager
def writing(folder: Path, **bounds: float) -> Iterator[SegmentWriter]:
    writer = SegmentWriter(folder, replace(BOUNDS, **bounds))  # type: ignore[arg-type]
    try:
        yield writer
    finally:
        writer.close()


def read(folder: Path) -> tuple[list[bytes], Skipped]:
    skipped = Skipped()
    return list(read_payloads(folder, skipped)), skipped


def record(number: int) -> bytes:
    return b'{"number":%d}' % number


def test_a_record_is_read_as_soon_as_it_is_written(tmp_path: Path):
    """From the file that is still written to; records of one call stand together."""
    with writing(tmp_path / "log") as writer:
        assert writer.append([record(0)]) is None
        assert writer.append([record(1), record(2)]) is None

        assert read(tmp_path / "log") == ([record(0), record(1), record(2)], Skipped())


def test_what_a_living_writer_has_not_finished_is_no_torn_end(tmp_path: Path):
    """A reader may come between two halves of a write; it is torn only once its writer is gone."""
    with writing(tmp_path) as writer:
        writer.append([record(0)])
        (path,) = segment_paths(tmp_path)
        with path.open("ab") as file:
            file.write(frame(record(1))[:-3])

        assert read(tmp_path) == ([record(0)], Skipped())

    assert read(tmp_path)[1].torn == 1


def test_segments_end_at_their_size(tmp_path: Path):
    """None is longer than the bound, no record is lost on the way, and closed ones are sealed."""
    bound = 4096
    with writing(tmp_path, segment_bytes=bound) as writer:
        for number in range(1000):
            assert writer.append([record(number)]) is None

    assert read(tmp_path) == ([record(number) for number in range(1000)], Skipped())
    paths = segment_paths(tmp_path)
    assert len(paths) > 5
    assert {path.suffix for path in paths} == {SEALED}
    assert max(path.stat().st_size for path in paths) <= bound


def test_segments_end_at_their_age(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The next record after that goes to a new one."""
    now = time.monotonic()
    with writing(tmp_path) as writer:
        writer.append([record(0)])
        monkeypatch.setattr(writer_module.time, "monotonic", lambda: now + 3601)
        writer.append([record(1)])
        monkeypatch.undo()

        assert read(tmp_path)[0] == [record(0), record(1)]
    assert len(segment_paths(tmp_path)) == 2


def test_a_writer_that_wrote_nothing_leaves_nothing(tmp_path: Path):
    """A worker that is started again and again would otherwise fill the folder with empty files."""
    with writing(tmp_path):
        pass

    assert segment_paths(tmp_path) == []


def test_a_dead_writers_end_is_counted_once_and_never_appended_to(tmp_path: Path):
    """A process that is killed leaves an open file; whoever looks first seals it, another finds nothing to do."""
    text = (
        "import os, sys, pathlib\n"
        "from tests.service.journal.test_writer import BOUNDS, SegmentWriter, frame, record\n"
        "writer = SegmentWriter(pathlib.Path(sys.argv[1]), BOUNDS)\n"
        "writer.append([record(0)])\n"
        "os.write(writer._segment.descriptor, frame(record(1))[:-1])\n"
        "os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", text, str(tmp_path)], cwd=ROOT, check=False)
    (left,) = segment_paths(tmp_path)
    before = left.read_bytes()
    assert left.suffix == OPEN

    with writing(tmp_path) as writer:
        files, skipped = adopt(tmp_path)
        again = adopt(tmp_path)
        writer.append([record(2)])

        assert (files, skipped) == (1, Skipped(torn=1, bytes=len(frame(record(1))) - 1))
        assert again == (0, Skipped())
        assert left.with_suffix(SEALED).read_bytes() == before
        assert read(tmp_path)[0] == [record(0), record(2)]


def test_old_segments_are_removed_and_then_the_oldest_until_the_rest_fits(tmp_path: Path):
    """By the time of the last write; what is open stays whatever its age; other files are none of ours."""
    now = time.time()
    for number, (age, suffix) in enumerate([(100, SEALED), (50, SEALED), (10, SEALED), (5, SEALED), (900, OPEN)]):
        path = tmp_path / f"{number:013d}-1-000001{suffix}"
        path.write_bytes(bytes(1000))
        os.utime(path, (now - age, now - age))
    (tmp_path / "notes.seg").write_bytes(bytes(10))

    assert forget(tmp_path, keep_seconds=80, keep_bytes=3000, now=now) == (1, 1)

    assert [path.name[:13] for path in segment_paths(tmp_path)] == [f"{number:013d}" for number in (2, 3, 4)]
    assert (tmp_path / "notes.seg").exists()
    assert forget(tmp_path, keep_seconds=80, keep_bytes=3000, now=now) == (0, 0)


@contextmanager
def failing(
    monkeypatch: pytest.MonkeyPatch, number: int, *, cut: int | None = None, times: int = 1 << 30
) -> Iterator[Callable[[], int]]:
    """Inside, writes fail with this error, `times` times; `cut` bytes of each first write reach the file."""
    real = os.write
    failures = 0

    def write(descriptor: int, data: bytes) -> int:
        nonlocal failures
        if failures >= times:
            return real(descriptor, data)
        if cut is not None and len(data) > cut:
            return real(descriptor, data[:cut])
        failures += 1
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as context:
        context.setattr(writer_module.os, "write", write)
        yield lambda: failures


@pytest.mark.parametrize("cut", [None, 5])
@pytest.mark.parametrize(
    ("number", "reason"), [(errno.ENOSPC, DISK_FULL), (errno.EDQUOT, DISK_FULL), (errno.EIO, WRITE_ERROR)]
)
def test_a_failing_disk_costs_the_records_of_its_time_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, reason: str, cut: int | None
):
    """Also where half a record reached the file: nothing is raised, and what comes after stands behind whole frames."""
    with writing(tmp_path, sync_seconds=60.0) as writer:
        assert writer.append([record(0)]) is None
        with failing(monkeypatch, number, cut=cut):
            assert writer.append([record(1)]) == reason
            assert writer.append([record(2), record(3)]) == reason
            assert writer.failure == os.strerror(number)
        assert writer.append([record(4)]) is None
        assert writer.failure is None

    assert read(tmp_path) == ([record(0), record(4)], Skipped())


def test_a_fault_of_one_file_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An error that is not the disk's being full is answered with a new file, once a record."""
    with writing(tmp_path, sync_seconds=60.0) as writer:
        writer.append([record(0)])
        with failing(monkeypatch, errno.EFBIG, times=1) as failures:
            assert writer.append([record(1)]) is None
            assert failures() == 1

    assert read(tmp_path) == ([record(0), record(1)], Skipped())
    assert len(segment_paths(tmp_path)) == 2


def test_a_disk_that_works_again_is_found_out_without_anybody_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Who is sent no requests because it cannot log would else never be sent any again."""
    with writing(tmp_path) as writer:
        with failing(monkeypatch, errno.ENOSPC):
            assert writer.append([record(0)]) == DISK_FULL
            assert writer.failure is not None

        wait_for(lambda: writer.failure is None, "the thread has tried to write")
    assert [path for path in tmp_path.iterdir() if path.name.startswith("probe")] == []


def no_sync(descriptor: int) -> None:
    """`os.fsync` of a disk that fails."""
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_what_cannot_be_synced_is_said_and_followed_by_a_new_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The kernel may have dropped what it could not write; going on in the same file would hide it."""
    with writing(tmp_path) as writer:
        with monkeypatch.context() as context:
            context.setattr(writer_module.os, "fsync", no_sync)
            writer.append([record(0)])
            wait_for(lambda: writer.failure is not None, "the sync has failed")
        assert writer.append([record(1)]) is None
        wait_for(lambda: writer.failure is None, "the new file is synced")

    assert read(tmp_path)[0] == [record(0), record(1)]
    assert len(segment_paths(tmp_path)) == 2


def test_a_file_that_somebody_removes_is_not_written_to_for_ever(tmp_path: Path):
    """`rm` of a segment in use loses what is in it; what comes later is kept, also where the folder is gone."""
    folder = tmp_path / "log"
    with writing(folder) as writer:
        writer.append([record(0)])
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()

        def is_kept_again() -> bool:
            writer.append([record(1)])
            return folder.is_dir() and record(1) in read(folder)[0]

        wait_for(is_kept_again, "records are kept again")


def test_a_tiny_file_system_that_is_full_and_then_is_not(tmp_path: Path):
    """The real thing: one megabyte of tmpfs, filled by the journal itself; needs the right to mount."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("no right to mount a tmpfs here; the injected errors above stand for it")
    try:
        with writing(tmp_path, sync_seconds=0.02) as writer:
            kept, number = [], 0
            padding = b"x" * 3000
            while writer.append([padding + record(number)]) is None:
                kept.append(padding + record(number))
                number += 1
                assert number < 1000
            assert writer.failure == os.strerror(errno.ENOSPC)
            assert read(tmp_path) == (kept, Skipped())

            os.truncate(segment_paths(tmp_path)[0], len(FILE_MAGIC))
            wait_for(lambda: writer.failure is None, "the thread has found room")
            assert writer.append([record(7)]) is None
            assert read(tmp_path) == ([record(7)], Skipped())
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def test_a_folder_that_cannot_be_made_is_said_at_once(tmp_path: Path):
    """Before anything is served."""
    (tmp_path / "file").write_text("")

    with pytest.raises(OSError, match="directory"):
        SegmentWriter(tmp_path / "file" / "log", BOUNDS)


def test_a_file_that_is_taken_for_a_dead_writers_before_it_is_locked_is_not_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Another worker starts at that very moment and seals it; the writer makes another."""
    real = writer_module.fcntl.flock
    sealed = []

    def flock(descriptor: int, operation: int) -> None:
        if not sealed:
            sealed.append(adopt(tmp_path))
        real(descriptor, operation)

    with monkeypatch.context() as context:
        context.setattr(writer_module, "fcntl", SimpleNamespace(flock=flock, LOCK_EX=writer_module.fcntl.LOCK_EX))
        with writing(tmp_path) as writer:
            assert sealed == [(1, Skipped())]
            writer.append([record(0)])
            assert [path.suffix for path in segment_paths(tmp_path)] == [SEALED, OPEN]

    assert read(tmp_path) == ([record(0)], Skipped())


def test_a_sync_that_failed_is_forgiven_without_anybody_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Where the log is required, nobody is sent here until it is."""
    with writing(tmp_path) as writer:
        with monkeypatch.context() as context:
            context.setattr(writer_module.os, "fsync", no_sync)
            writer.append([record(0)])
            wait_for(lambda: writer.failure is not None, "the sync has failed")
        wait_for(lambda: writer.failure is None, "the thread has synced a file of its own")


def test_a_disk_on_which_every_other_record_fits_does_not_flood_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """One line a second at most says that it fails; one that it is over, once it is."""
    now = time.monotonic()
    with writing(tmp_path) as writer, caplog.at_level("INFO", "service.journal.writer"):
        with monkeypatch.context() as context:
            context.setattr(writer_module.time, "monotonic", lambda: now)
            for _ in range(50):
                with failing(monkeypatch, errno.ENOSPC):
                    writer.append([record(0)])
                assert writer.append([record(1)]) is None
            assert [line.levelname for line in caplog.records] == ["ERROR"]

        wait_for(lambda: len(caplog.records) > 1, "it is said to be over")
    assert caplog.messages[1:] == ["the journal is written again"]
