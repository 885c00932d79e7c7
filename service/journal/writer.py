"""One worker's end of the journal: a record is in the kernel's hands before it counts as logged.

A record is one unbuffered `write` on the event loop, some microseconds; what survives the process is whatever was
written, so `kill -9` loses nothing that was acknowledged. Power failure is another matter: a thread syncs what was
written every `sync_seconds`, so at most that much time (and what the sync itself takes) is lost then. The thread also
seals full segments, removes old ones, and finds out whether a disk that failed works again. Only it closes files.

When the disk fails, nothing is raised: `append` says why the records were not kept, `failure` says it until a write, or
the thread's attempt at one, succeeds. A write that was cut short is taken back, so that the next one stands behind a
whole frame; where even that fails, the next one goes to a new file.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from models.journal.frames import FILE_MAGIC, frame
from models.journal.reading import OPEN, SEALED
from service.journal.segments import forget

logger = logging.getLogger(__name__)

DISK_FULL = "disk_full"
WRITE_ERROR = "write_error"
DROP_REASONS = (DISK_FULL, WRITE_ERROR)
RETENTION_SECONDS = 10.0
PROBE_BYTES = 1 << 16
NOTE_SECONDS = 1.0

_FULL = frozenset((errno.ENOSPC, errno.EDQUOT))


@dataclass(frozen=True, slots=True)
class Bounds:
    """When segments end, are synced, and are removed."""

    segment_bytes: int
    segment_seconds: float
    sync_seconds: float
    keep_seconds: float
    keep_bytes: int


@dataclass(slots=True, eq=False)
class _Segment:
    path: Path
    descriptor: int
    opened: float
    size: int = 0
    synced: int = 0
    is_lost: bool = False
    """Nothing more may be written to it: it was removed, or what was written could not be synced."""


class SegmentWriter:
    """Appends to segments of its own in a folder. `append` belongs to one thread, say the event loop's."""

    def __init__(self, folder: Path, bounds: Bounds) -> None:
        """`OSError` where the folder cannot be made or written in."""
        self.folder = folder
        self._bounds = bounds
        self._number = 0
        self._write_failure: str | None = None
        self._sync_failure: str | None = None
        self._next_note = 0.0
        self._has_noted = False
        self._full: deque[_Segment] = deque()
        self._stopping = threading.Event()
        self._segment: _Segment | None = self._open()
        self._thread = threading.Thread(target=self._look_after, name="journal", daemon=True)
        self._thread.start()

    @property
    def failure(self) -> str | None:
        """Why records are not kept just now, or would not outlive a power failure; None where all is well."""
        return self._write_failure or self._sync_failure

    def append(self, payloads: Sequence[bytes]) -> str | None:
        """Writes records, all or none; None, or one of `DROP_REASONS`."""
        data = b"".join(map(frame, payloads)) if len(payloads) != 1 else frame(payloads[0])
        segment = self._segment
        try:
            if segment is None or segment.is_lost:
                segment = self._rotate()
            elif self._is_full(segment, len(data)):
                with contextlib.suppress(OSError):  # a segment that is too long is better than none
                    segment = self._rotate()
            try:
                _write(segment, data)
            except OSError as error:
                if error.errno in _FULL:
                    raise
                segment = self._rotate()  # whatever it is, it may be this file's alone
                _write(segment, data)
        except OSError as error:
            self._write_failure = f"{error.strerror or error}"
            self._note("the journal cannot be written, records are dropped: %s", error)
            return DISK_FULL if error.errno in _FULL else WRITE_ERROR
        self._write_failure = None
        return None

    def close(self) -> None:
        """Syncs and seals what was written. Nothing may be appended any more."""
        self._stopping.set()
        self._thread.join()
        if self._segment is not None:
            self._full.append(self._segment)
            self._segment = None
        self._seal_full()

    def _is_full(self, segment: _Segment, more: int) -> bool:
        bounds = self._bounds
        too_long = segment.size + more > bounds.segment_bytes and segment.size > len(FILE_MAGIC)
        return too_long or time.monotonic() - segment.opened > bounds.segment_seconds

    def _rotate(self) -> _Segment:
        """A new segment in the place of the present one."""
        opened = self._open()
        if self._segment is not None:
            self._full.append(self._segment)
        self._segment = opened
        return opened

    def _open(self) -> _Segment:
        """A new file with the lock on it. In the moment between the two, somebody who looks for what the dead have left
        may take it for such a file; then another is made."""
        while True:
            segment = self._open_once()
            if segment is not None:
                return segment

    def _open_once(self) -> _Segment | None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._number += 1
        path = self.folder / f"{time.time_ns() // 1_000_000:013d}-{os.getpid()}-{self._number:06d}{OPEN}"
        if path.with_suffix(SEALED).exists():  # of another writer of this process in this millisecond
            return None
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o640)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if not path.exists():
                os.close(descriptor)
                return None
            segment = _Segment(path, descriptor, time.monotonic())
            _write(segment, FILE_MAGIC)
        except OSError:
            os.close(descriptor)
            path.unlink(missing_ok=True)
            raise
        return segment

    def _note(self, message: str, error: OSError) -> None:
        """Tells of a failure, once in `NOTE_SECONDS` at most: on a disk that is almost full every other record fits."""
        if time.monotonic() >= self._next_note:
            self._next_note = time.monotonic() + NOTE_SECONDS
            self._has_noted = True
            logger.error(message, error)

    # The thread's part.

    def _look_after(self) -> None:
        next_forgetting = 0.0
        while not self._stopping.wait(self._bounds.sync_seconds):
            try:
                segment = self._segment
                if segment is not None:
                    self._sync(segment)
                self._seal_full()
                if self.failure is not None:
                    self._probe()
                if self._has_noted and self.failure is None and time.monotonic() >= self._next_note:
                    self._has_noted = False
                    logger.info("the journal is written again")
                if time.monotonic() >= next_forgetting:
                    next_forgetting = time.monotonic() + RETENTION_SECONDS
                    self._forget()
            except Exception:  # without this thread nothing would be synced any more
                logger.exception("looking after the journal failed")

    def _sync(self, segment: _Segment) -> None:
        size = segment.size
        try:
            if os.fstat(segment.descriptor).st_nlink == 0:
                segment.is_lost = True  # somebody removed it: what is written there is gone
                logger.error("the journal's segment %s was removed while it was written to", segment.path)
            if segment.synced < size and not segment.is_lost:
                os.fsync(segment.descriptor)
                if segment.synced == 0:
                    _sync_folder(self.folder)  # or its name would not outlive the power failure
                segment.synced = size
                self._sync_failure = None
        except OSError as error:
            # What could not be synced is not tried again: the kernel may have forgotten it. A new file starts clean.
            segment.is_lost = True
            self._sync_failure = f"{error.strerror or error}"
            self._note("the journal cannot be synced: %s", error)

    def _seal_full(self) -> None:
        while self._full:
            segment = self._full.popleft()
            self._sync(segment)
            try:
                if segment.size > len(FILE_MAGIC):
                    segment.path.rename(segment.path.with_suffix(SEALED))
                else:
                    segment.path.unlink()
                _sync_folder(self.folder)
            except OSError as error:
                logger.warning("the journal's segment %s could not be sealed: %s", segment.path, error)
            os.close(segment.descriptor)

    def _probe(self) -> None:
        """Whether something can be written and synced again; where nobody asks, nobody else would find out."""
        path = self.folder / f"probe-{os.getpid()}"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o640)
            try:
                written = os.write(descriptor, bytes(PROBE_BYTES))
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
                path.unlink(missing_ok=True)
        except OSError:
            return
        if written == PROBE_BYTES:
            self._write_failure = self._sync_failure = None

    def _forget(self) -> None:
        bounds = self._bounds
        try:
            old, large = forget(
                self.folder, keep_seconds=bounds.keep_seconds, keep_bytes=bounds.keep_bytes, now=time.time()
            )
        except OSError as error:
            logger.warning("old segments of the journal could not be removed: %s", error)
            return
        if old:
            logger.info("%d segments of the journal were removed for their age", old)
        if large:
            logger.warning("%d segments of the journal were removed before their time: it had grown too large", large)


def _write(segment: _Segment, data: bytes) -> None:
    """All of it, or nothing and an `OSError`."""
    written = os.write(segment.descriptor, data)
    if written == len(data):
        segment.size += written
        return
    why = OSError(errno.EIO, "the write was cut short")
    try:
        os.write(segment.descriptor, data[written:])
    except OSError as error:
        why = error
    try:
        os.ftruncate(segment.descriptor, segment.size)
    except OSError:
        segment.is_lost = True
    raise why


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
