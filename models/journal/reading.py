"""The files of a journal: `<milliseconds since 1970>-<process>-<number>`, then `.open` while written and `.seg` after.

A file has one writer in its whole life, which holds a lock (`flock`) on it; the kernel lets go of the lock when the
process dies, whatever it died of. So a file that is `.open` and not locked is a dead writer's. Names sort by age.
"""

from __future__ import annotations

import fcntl
import stat
from collections.abc import Iterator
from pathlib import Path

from models.journal.frames import Skipped, payloads

OPEN = ".open"
SEALED = ".seg"


def segment_paths(folder: Path) -> list[Path]:
    """Every segment of a folder, oldest first. What has such a name and is no file, a folder or a pipe, is none."""
    named = (path for path in folder.iterdir() if path.suffix in (OPEN, SEALED) and path.stem[:1].isdigit())
    found = [path for path in named if not _is_other(path)]
    return sorted(found, key=lambda path: path.name)


def _is_other(path: Path) -> bool:
    """Whether it is there and no regular file. One that is not there may have been sealed since, under another name."""
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False


def read_payloads(folder: Path, skipped: Skipped) -> Iterator[bytes]:
    """Every record's bytes, file by file; what cannot be read is counted. `OSError` where the folder cannot be read.

    A file that is still written to ends wherever its writer was when it was read: that is no torn end. A file that
    retention removes meanwhile is as if it had not been there.
    """
    for path in segment_paths(folder):
        here = Skipped()
        try:
            data, is_alive = _read(path)
        except FileNotFoundError:
            try:
                data, is_alive = _read(path.with_suffix(SEALED))  # sealed since
            except FileNotFoundError:
                continue
        yield from payloads(data, here)
        if is_alive:
            here.torn, here.bytes = 0, 0 if not here.damaged else here.bytes
        skipped.add(here)


def _read(path: Path) -> tuple[bytes, bool]:
    """(the file's bytes, whether somebody writes to it)."""
    with path.open("rb") as file:
        is_alive = path.suffix == OPEN and _is_locked(file.fileno())
        return file.read(), is_alive


def _is_locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    return False
