"""Small tables read whole, and looked up by key: what a source that joins tables needs.

The big table of a join is streamed; only the small ones (users, items) are held in memory.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from training.data.chunks import Chunk
from training.data.faults import Faults, shown
from training.data.text_files import TextFile, TextFormat
from training.errors import DataError

Derivation = Callable[[pa.Array], pa.Array]


class LookUp:
    """A table by its key column: `columns` for a column of keys, null where a key is not in it."""

    def __init__(self, path: Path, key: str, columns: Sequence[str]) -> None:
        """Reads the file whole. `DataError` for a key that is absent or stands twice, or a column that is absent."""
        file = TextFile(path, TextFormat())
        for name in (key, *columns):
            if name not in file.header:
                raise DataError(f"{path}:1: column {name!r} is needed and not in the header ({', '.join(file.header)})")
        faults = Faults(0.0)  # a lost row of a small table would be many rows of the log
        chunks = list(file.chunks((key, *columns), faults))
        table = {c: pa.concat_arrays([chunk.columns[c] for chunk in chunks]) for c in (key, *columns)}
        self.keys = table[key]
        self.columns: dict[str, pa.Array] = {c: table[c] for c in columns}
        counts = pc.value_counts(self.keys)
        twice = counts.filter(pc.greater(counts.field("counts"), 1))
        if len(twice):
            raise DataError(f"{path}: {key} {twice[0]['values'].as_py()!r} stands twice; expected one row a {key}")

    def derive(self, name: str, source: str, how: Derivation) -> None:
        """A further column, made of another one once for the whole table."""
        self.columns[name] = how(self.columns[source])

    def take(self, keys: pa.Array, columns: Sequence[str]) -> Mapping[str, pa.Array]:
        """These columns for each key [n]."""
        rows = pc.index_in(keys, value_set=self.keys)
        return {c: self.columns[c].take(rows) for c in columns}


def floor_divide(text: pa.Array, by: int) -> pa.Array:
    """Whole numbers in text, divided and rounded down; null where the text is no whole number."""
    good = pc.match_substring_regex(text, r"^-?[0-9]{1,18}$")
    numbers = pc.if_else(good, text, pa.scalar(None, pa.string())).cast(pa.int64())
    filled = np.floor_divide(numbers.fill_null(0).to_numpy(zero_copy_only=False), by)
    return pa.array(filled, mask=numbers.is_null().to_numpy(zero_copy_only=False))


def whole_numbers(chunk: Chunk, column: str, *, least: int = 0, most: int = 2**62) -> npt.NDArray[np.int64]:
    """A column of a chunk as int64 [n]; `DataError` with the first place of what is none, or not within the bounds.

    For what a source itself must know of a row, where a value that is missing would be a guess.
    """
    text = chunk.columns[column]
    is_good = pc.match_substring_regex(text, r"^[0-9]{1,18}$").fill_null(False)
    numbers = pc.if_else(is_good, text, pa.scalar("-1")).cast(pa.int64()).to_numpy(zero_copy_only=False)
    wrong = np.flatnonzero((numbers < least) | (numbers > most))
    if len(wrong):
        row = int(wrong[0])
        bounds = f" from {least} to {most}" if most < 2**62 else ""
        raise DataError(
            f"{chunk.place(row)}: column {column!r}: expected a whole number{bounds}, got {shown(text[row].as_py())}"
        )
    found: npt.NDArray[np.int64] = numbers
    return found


def end_of_line(path: Path) -> None:
    """`DataError` for a text file that ends within a line: a download that broke off. Packed files tell by themselves;
    a file that is not there, or empty, is for its reader to refuse."""
    if path.suffix == ".csv" and path.is_file() and path.stat().st_size:
        with path.open("rb") as file:
            file.seek(-1, 2)
            if file.read() != b"\n":
                raise DataError(f"{path}: ends in the middle of a line; is the download or the unpacking incomplete?")
