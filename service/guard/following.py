"""A journal that is being written to, read as it grows: every record once, file by file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from models.journal.frames import MAGIC, take_whole
from models.journal.reading import SEALED, segment_paths

READ_BYTES = 1 << 24
"""At once. A record that is longer, or so much that is no record, is passed over."""


@dataclass(slots=True)
class _File:
    size: int = 0
    """Read so far."""
    is_done: bool = False


class Follower:
    """What comes to a folder's segments. A file that is erased from meanwhile is not read again."""

    def __init__(self, folder: Path, since: float, max_bytes: int) -> None:
        """Of what is there already, it reads the segments that were written to after `since`, in seconds since 1970,
        and of these the newest `max_bytes`."""
        self.folder = folder
        self._since = since
        self._max_bytes = max_bytes
        self._files: dict[str, _File] | None = None

    def new_payloads(self) -> Iterator[bytes]:
        """Every record that was written since the last call. `OSError` where the folder cannot be read."""
        paths = segment_paths(self.folder)
        if self._files is None:
            self._files = self._at_first(paths)
        stems = {path.stem for path in paths}
        for stem in [stem for stem in self._files if stem not in stems]:
            del self._files[stem]
        for path in paths:
            yield from self._read(path, self._files.setdefault(path.stem, _File()))

    def _at_first(self, paths: list[Path]) -> dict[str, _File]:
        left = self._max_bytes
        found = {}
        for path in reversed(paths):
            try:
                facts = path.stat()
            except FileNotFoundError:
                continue
            left -= facts.st_size
            found[path.stem] = _File(is_done=left < 0 or facts.st_mtime < self._since)
        return found

    def _read(self, path: Path, file: _File) -> Iterator[bytes]:
        while not file.is_done:
            try:
                data, is_sealed = _bytes_from(path, file.size)
            except FileNotFoundError:
                return  # removed by retention
            whole, size = take_whole(data)
            file.size += size if size or len(data) < READ_BYTES else READ_BYTES - len(MAGIC)
            yield from whole
            if len(data) < READ_BYTES:
                # A sealed file gets no longer: what is torn off its end stays so.
                file.is_done = is_sealed
                return


def _bytes_from(path: Path, place: int) -> tuple[bytes, bool]:
    """(at most `READ_BYTES` of a file, whether it was sealed before they were read)."""
    is_sealed = path.suffix == SEALED or not path.exists()
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        descriptor = os.open(path.with_suffix(SEALED), os.O_RDONLY)
        is_sealed = True
    try:
        return os.pread(descriptor, READ_BYTES, place), is_sealed
    finally:
        os.close(descriptor)
