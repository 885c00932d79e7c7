"""Counts: how often each string was seen, exactly, in bounded memory.

Tens of millions of distinct values (device ids, hashed tokens) are more than a process should hold while it reads a
log, and nearly all of them are too rare to be kept in the end. So counts that have grown large are put aside in files,
parted by the string's hash; one part after another is then added up, which gives the same counts as one dict would.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import compress, count
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

PARTS = 64
"""Files that counts are put aside in. Adding up takes the memory of the fullest, about a 64th of all values."""


class Counts:
    """String -> how often it was added. About 200 bytes a distinct string held in memory."""

    def __init__(self) -> None:
        self._slots = _numbering()
        self._counts = np.zeros(1024, dtype=np.int64)
        self._aside: Path | None = None

    def __len__(self) -> int:
        """Distinct strings held in memory; those put aside are not among them."""
        return len(self._slots)

    def add(self, strings: Sequence[str], counts: NDArray[np.int64]) -> None:
        """Each of `strings` was seen so often; one may stand there several times."""
        slots = np.fromiter(map(self._slots.__getitem__, strings), np.int64, len(strings))
        if len(self._slots) > len(self._counts):
            grown = np.zeros(max(len(self._slots), 2 * len(self._counts)), dtype=np.int64)
            grown[: len(self._counts)] = self._counts
            self._counts = grown
        np.add.at(self._counts, slots, counts)

    def put_aside(self, folder: Path) -> None:
        """Empty the memory into files of `folder`, which is made where absent and belongs to this object alone."""
        folder.mkdir(parents=True, exist_ok=True)
        self._aside = folder
        strings = np.fromiter(self._slots, dtype=object, count=len(self._slots))
        # Python's own hash: another one in another process, but these files are of this one.
        parts = np.fromiter(map(hash, strings), np.int64, len(strings)) % PARTS
        order = np.argsort(parts, kind="stable")
        ends = np.cumsum(np.bincount(parts, minlength=PARTS))
        for part, rows in enumerate(np.split(order, ends[:-1])):
            if len(rows):
                line = json.dumps([strings[rows].tolist(), self._counts[rows].tolist()])
                with (folder / f"{part}.json").open("a", encoding="utf-8") as file:
                    file.write(line + "\n")
        self._slots = _numbering()
        self._counts = np.zeros(1024, dtype=np.int64)

    def at_least(self, least: int) -> list[tuple[str, int]]:
        """The strings seen so often or more, with their counts, in no order. More may be added afterwards."""
        if self._aside is None:
            return _frequent(self._slots, self._counts, least)
        self.put_aside(self._aside)
        return [found for part in self._added_up(self._aside) for found in part.at_least(least)]

    def _added_up(self, folder: Path) -> Iterator[Counts]:
        for file in folder.glob("*.json"):
            whole = Counts()
            with file.open(encoding="utf-8") as lines:
                for line in lines:
                    strings, counts = json.loads(line)
                    whole.add(strings, np.array(counts, dtype=np.int64))
            yield whole


def _numbering() -> defaultdict[str, int]:
    """A dict that gives a key it has not got the next number: 0, 1, 2, ...

    Not by its own `__len__`: what refers to itself is not freed when it is let go.
    """
    return defaultdict(count().__next__)


def _frequent(slots: dict[str, int], counts: NDArray[np.int64], least: int) -> list[tuple[str, int]]:
    own = counts[: len(slots)]  # a dict keeps the order of its keys, so slot i is key i
    kept = own >= least
    return list(zip(compress(slots, kept.tolist()), own[kept].tolist(), strict=True))
