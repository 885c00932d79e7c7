"""What is new in a journal since one last looked, segment by segment, also in those that are being written to.

How far each was read is the reader's to keep (`Position`): a place never moves, because segments are only appended to,
and what is erased keeps its length. Of a segment that is being written to, only what was there when one looked before
is read: a writer takes back at once what the disk did not take whole, and until then it looks like a record.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

from models.journal.frames import FILE_MAGIC, HEAD_BYTES, Skipped, frames
from models.journal.reading import OPEN, SEALED, segment_paths
from service.journal.segments import erasing_lock, removed_segments

READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Position:
    """How far one segment was read."""

    place: int = 0
    is_done: bool = False
    """It is sealed and was read to its end, or it is gone."""


@dataclass(frozen=True, slots=True)
class Known:
    """What a reader remembers of a journal when it begins."""

    oldest: str | None = None
    """The first segment it ever read; None where it never read any."""
    positions: Mapping[str, Position] = field(default_factory=dict)
    """Of every segment that is not done, and of those it is asked for."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Some records of one segment, and how far it was read with them."""

    segment: str
    records: list[tuple[int, bytes]]
    """Place and payload; those that were erased are among them."""
    position: Position
    torn: int = 0
    damaged: int = 0
    lost_bytes: int = 0
    """What was removed before it was read."""


class Follower:
    """Reads a folder on and on. `remember`, asked once, says what was read before, of these segments among others."""

    def __init__(
        self, folder: Path, remember: Callable[[Collection[str]], Known], *, read_bytes: int = READ_BYTES
    ) -> None:
        self._folder = folder
        self._remember = remember
        self._read_bytes = read_bytes
        self._positions: dict[str, Position] | None = None
        self._sizes: dict[str, int] = {}
        """Of each segment that is not done, how long it was when it was read last."""
        self._there: dict[str, int] = {}
        """The same, when one last looked: also of those whose turn has not come yet."""
        self._oldest: str | None = None

    @property
    def unread_bytes(self) -> int:
        """What was there at the last look and was not read, or could not be yet."""
        positions = self._positions or {}
        read = {name: max(positions.get(name, Position()).place, len(FILE_MAGIC)) for name in self._there}
        return sum(max(size - read[name], 0) for name, size in self._there.items())

    def look(self) -> Generator[Batch, None, None]:
        """Everything that is new, oldest segment first. A batch counts as read when the next one is asked for; until
        then nobody erases from the folder. `OSError` where it cannot be read."""
        paths = {path.stem: path for path in segment_paths(self._folder)}
        removed = {name: size for name, size in removed_segments(self._folder).items() if name not in paths}
        positions = self._begin(paths, removed)
        waiting = [(name, path) for name, path in paths.items() if not positions.setdefault(name, Position()).is_done]
        self._there = {name: _size(path) for name, path in waiting}
        for name, path in waiting:
            yield from self._read(name, path, positions)
        for name in removed:
            if self._oldest is not None and name > self._oldest:
                positions.setdefault(name, Position())
        yield from self._lost(paths, removed, positions)
        for name in [name for name, position in positions.items() if position.is_done]:
            if name not in paths and name not in removed:
                del positions[name]

    def _begin(self, paths: Collection[str], removed: Collection[str]) -> dict[str, Position]:
        if self._positions is None:
            known = self._remember({*paths, *removed})
            self._positions = dict(known.positions)
            self._oldest = known.oldest
            if known.oldest is None:  # whoever has never read misses nothing that was gone before
                self._positions.update({name: Position(is_done=True) for name in removed if name not in paths})
        if self._oldest is None:
            self._oldest = min(paths, default=None)
        return self._positions

    def _read(self, name: str, path: Path, positions: dict[str, Position]) -> Iterator[Batch]:
        before = self._sizes.get(name, 0)
        wanted = self._read_bytes
        while not positions[name].is_done:
            with erasing_lock(self._folder, fcntl.LOCK_SH):
                file = _open(path)
                if file is None:
                    return
                with file:
                    size = os.fstat(file.fileno()).st_size
                    self._sizes[name] = self._there[name] = size
                    is_sealed = file.name.endswith(SEALED)
                    end = size if is_sealed else min(size, before)
                    place = positions[name].place
                    stop = min(end, place + wanted)
                    file.seek(place)
                    data = file.read(max(stop - place, 0))
                skipped = Skipped()
                records = [(place + at, payload) for at, payload in frames(data, skipped)]
                if not records and stop < end:
                    wanted *= 2  # a record longer than that, or much damage
                    continue
                wanted = self._read_bytes
                if is_sealed and stop >= end:
                    batch = Batch(name, records, Position(size, is_done=True), skipped.torn, skipped.damaged)
                elif records:
                    reached = records[-1][0] + HEAD_BYTES + len(records[-1][1])
                    batch = Batch(name, records, Position(reached), damaged=skipped.damaged)
                else:
                    return
                yield batch
                positions[name] = batch.position
        self._sizes.pop(name, None)
        self._there.pop(name, None)

    def _lost(
        self, paths: Collection[str], removed: Mapping[str, int], positions: dict[str, Position]
    ) -> Iterator[Batch]:
        """What is gone and was not read whole. The bytes of one that nobody noted and nobody saw are not known: 0."""
        for name, position in list(positions.items()):
            if position.is_done or name in paths:
                continue
            file = _open(self._folder / f"{name}{OPEN}")
            if file is not None:  # it came after the list was made
                file.close()
                continue
            size = removed.get(name, self._sizes.pop(name, position.place))
            self._sizes.pop(name, None)
            done = replace(position, is_done=True)
            is_empty = size <= len(FILE_MAGIC)  # its writer removed it: there was nothing in it
            yield Batch(name, [], done, lost_bytes=0 if is_empty else max(size - position.place, 0))
            positions[name] = done


def _size(path: Path) -> int:
    """Of the segment under the name it has now; 0 where it is gone."""
    file = _open(path)
    if file is None:
        return 0
    with file:
        return os.fstat(file.fileno()).st_size


def _open(path: Path) -> BinaryIO | None:
    """The segment under the name it has now; None where it is gone."""
    for now in (path, path.with_suffix(SEALED)):
        try:
            return now.open("rb")
        except FileNotFoundError:
            pass
    return None
