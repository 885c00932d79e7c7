"""What happens to a journal's files beside being written and read: dead writers' are sealed, old ones forgotten.

A file that is `.open` and not locked is a dead writer's (`models/journal/reading.py`). It is never appended to: what
can be read of it stays, its torn end is counted once, by whoever renames it to `.seg`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from models.journal.frames import Skipped, payloads
from models.journal.reading import OPEN, SEALED, segment_paths

REMOVED = "removed.txt"
"""What retention removed, for those who had not read it yet and must count it as lost (service/journal/sinks/)."""
REMEMBERED_REMOVALS = 10_000


def adopt(folder: Path) -> tuple[int, Skipped]:
    """Seals what dead writers left: (how many files, what of them cannot be read). Each file is counted by one caller.

    Other processes may do the same at the same time.
    """
    files, skipped = 0, Skipped()
    for path in segment_paths(folder):
        if path.suffix != OPEN:
            continue
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            continue
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                continue  # its writer lives, or somebody else looks after it
            if not path.exists():  # somebody else was quicker
                continue
            with os.fdopen(os.dup(descriptor), "rb") as file:
                for _ in payloads(file.read(), skipped):
                    pass
            path.rename(path.with_suffix(SEALED))
            files += 1
        finally:
            os.close(descriptor)
    return files, skipped


def forget(folder: Path, *, keep_seconds: float, keep_bytes: int, now: float) -> tuple[int, int]:
    """Removes sealed segments that nothing was written to for `keep_seconds`, then the oldest until at most
    `keep_bytes` are left: (how many for their age, how many for their size). What is being written is let be.

    One process does it at a time: where another is at it, nothing is done.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(retention_lock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB))
        except BlockingIOError:
            return 0, 0
        sizes = {}
        total = 0
        old: list[Path] = []
        for path in segment_paths(folder):
            try:
                facts = path.stat()
            except FileNotFoundError:
                continue
            if path.suffix == SEALED and facts.st_mtime + keep_seconds < now:
                old.append(path)
                continue
            total += facts.st_size
            if path.suffix == SEALED:
                sizes[path] = facts.st_size
        large: list[Path] = []
        for path, size in sizes.items():
            if total <= keep_bytes:
                break
            large.append(path)
            total -= size
        if old or large:
            with contextlib.suppress(OSError):  # on a full disk room is worth more than a note
                _note_removed(folder, [*old, *large])
        for path in (*old, *large):
            path.unlink(missing_ok=True)
        return len(old), len(large)


def removed_segments(folder: Path) -> dict[str, int]:
    """Segments that retention removed: the name without its suffix -> bytes. The last `REMEMBERED_REMOVALS` or more."""
    try:
        lines = (folder / REMOVED).read_text(encoding="ascii", errors="replace").splitlines()
    except FileNotFoundError:
        return {}
    found = {}
    for line in lines:
        name, _, size = line.partition(" ")
        if (
            size.isdigit()
        ):  # a line that was cut off has none, or a wrong one: it is there to be counted, not to be exact
            found[name] = int(size)
    return found


def _note_removed(folder: Path, paths: list[Path]) -> None:
    """Before they are removed, so that none goes without a note; who finds a segment both noted and there believes
    the segment."""
    notes = {**removed_segments(folder), **{path.stem: path.stat().st_size for path in paths}}
    if len(notes) > 2 * REMEMBERED_REMOVALS:
        notes = dict(list(notes.items())[-REMEMBERED_REMOVALS:])
    temporary = folder / f"{REMOVED}.new"
    temporary.write_text("".join(f"{name} {size}\n" for name, size in notes.items()), encoding="ascii")
    temporary.replace(folder / REMOVED)


def retention_lock(folder: Path, operation: int) -> contextlib.AbstractContextManager[None]:
    """Inside, nobody else removes or replaces segments. `BlockingIOError` where somebody does and `operation` does not
    wait."""
    return _locked(folder / "retention.lock", operation)


def erasing_lock(folder: Path, operation: int) -> contextlib.AbstractContextManager[None]:
    """Inside (`LOCK_SH`), nobody erases from the segments: held by who hands records on, from reading them until they
    are where one erases next. Apart from retention's, which waits for nobody."""
    return _locked(folder / "erase.lock", operation)


@contextlib.contextmanager
def _locked(path: Path, operation: int) -> Iterator[None]:
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o640)
    try:
        fcntl.flock(lock, operation)
        yield
    finally:
        os.close(lock)
