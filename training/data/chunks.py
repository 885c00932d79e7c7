"""What a source of rows gives: chunks of named columns, with the place of each row in its file.

Columns are Arrow arrays: text files give strings only (readers never guess types), Parquet gives its own
types. What the schema makes of them is `clicks.py`'s business.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from training.data.faults import Faults, Place, closest
from training.errors import DataError


@dataclass(frozen=True)
class Chunk:
    """Some consecutive rows of one file."""

    file: str
    """The file, as the user named it."""
    columns: dict[str, pa.Array]
    """Each asked-for column, all of the same length."""
    numbers: npt.NDArray[np.int64]
    """For each row the line it begins on (text, from 1), or its row number (Parquet, from 1)."""
    unit: str
    """What `numbers` counts: "line" or "row"."""
    read: float
    """Share of the source's bytes read once this chunk is done, 0 to 1, for a progress bar."""

    @property
    def rows(self) -> int:
        return len(self.numbers)

    def place(self, row: int) -> Place:
        return Place(self.file, int(self.numbers[row]), self.unit)


class Source(Protocol):
    """Rows from somewhere, readable from the start any number of times, each time the same."""

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file the rows come from, for the fingerprint."""
        ...

    def columns(self) -> dict[str, pa.DataType]:
        """Every column by name; text is `pa.string()`. Refuses a file whose header cannot be used."""
        ...

    def require(self, wanted: Mapping[str, str]) -> None:
        """Refuse with a `DataError` when a file lacks one of these columns; each comes with who wants it."""
        ...

    def chunks(self, columns: Sequence[str], faults: Faults) -> Iterator[Chunk]:
        """The rows in order, with these columns only.

        Which rows are skipped as unreadable never depends on `columns`. After the last chunk of a file the source calls
        `faults.close(file)`, so a consumer that finds more bad rows in a chunk reports them before asking for the next.
        """
        ...


def require_columns(place: str, wanted: Mapping[str, str], available: Iterable[str], advice: str = "") -> None:
    """`DataError` for the first wanted column that is not available; `advice` replaces the nearest name."""
    names = list(available)
    for name, why in wanted.items():
        if name not in names:
            listed = ", ".join(names[:12]) + (f", … {len(names)} in all" if len(names) > 12 else "")
            raise DataError(
                f"{place}: expected a column {name!r} ({why}), got {listed}." + (advice or closest(name, names))
            )
