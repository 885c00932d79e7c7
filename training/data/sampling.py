"""A bounded look at a log of any size: its head, and rows scattered over the rest.

Small files are read whole. Large plain text is opened at evenly spaced places; of large Parquet files some row groups
are read; packed text cannot be opened in the middle, so only the beginning of a large one is seen. `Sample.words` says
which of these it was, because a proposal is only as good as the rows behind it.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from training.data.chunks import Chunk
from training.data.faults import Faults
from training.data.parquet_files import ParquetFile
from training.data.readers import FileSource
from training.data.text_files import BLOCK_BYTES, TextFile

READ_WHOLE_BYTES = 64 << 20
"""Files that come to no more than this together are read whole."""
PIECES = 24
"""How many places of a larger file are looked at."""
PIECE_BYTES = 1 << 22
"""How much of a text file is read at each."""


@dataclass(frozen=True)
class Sample:
    """Some rows of a log, all columns, in the log's order."""

    columns: dict[str, pa.Array]
    rows: int
    is_whole: bool
    """Whether these are all rows of the log."""
    words: str
    """Which rows these are, for a person."""
    faults: Faults
    """Rows that could not be read, where they could be counted."""


def draw_sample(source: FileSource, rows: int) -> Sample:
    """At most about `rows` rows: all, or thinned evenly, or head and scattered pieces of large files."""
    faults = Faults(None)
    kinds = source.columns()
    small = sum(_weight(file) for file in source.opened) <= READ_WHOLE_BYTES
    batches: list[dict[str, pa.Array]] = []
    looked = 0
    for file in source.opened:
        share = max(1, rows * _weight(file) // sum(_weight(f) for f in source.opened))
        pieces = _whole(file, faults) if small else _scattered(file, share, faults)
        for piece in pieces:
            length = len(next(iter(piece.values())))
            looked += length
            batches.append({c: piece[c] if c in piece else pa.nulls(length, kinds[c]) for c in kinds})
    columns = {c: _joined([batch[c] for batch in batches], kind) for c, kind in kinds.items()}
    if looked > rows:
        # The first half of the budget is the head, so that what is printed is what a person sees in the file.
        head = rows // 4
        kept = np.unique(np.concatenate([np.arange(head), np.linspace(head, looked - 1, rows - head).astype(np.int64)]))
        columns = {c: column.take(pa.array(kept)) for c, column in columns.items()}
        words = f"{len(kept):,} of {looked:,} rows, the first {head:,} and others evenly after them"
        return Sample(columns, len(kept), False, words if small else f"{words}, from places over the files", faults)
    words = f"all {looked:,} rows" if small else f"{looked:,} rows from the head and from places over the files"
    return Sample(columns, looked, small, words, faults)


def _weight(file: TextFile | ParquetFile) -> int:
    """Bytes that reading the file whole would put into memory, roughly."""
    if isinstance(file, ParquetFile):
        return max(1, int(file.rows) * len(file.header) * 8)
    size = file.path.stat().st_size
    return size * 8 if file.is_packed else max(1, size)


def _whole(file: TextFile | ParquetFile, faults: Faults) -> Iterator[dict[str, pa.Array]]:
    chunk: Chunk
    for chunk in file.chunks(file.header, faults):
        yield chunk.columns


def _scattered(file: TextFile | ParquetFile, rows: int, faults: Faults) -> Iterator[dict[str, pa.Array]]:
    if isinstance(file, ParquetFile):
        yield from file.pieces(PIECES, rows)
        return
    if file.is_packed:
        blocks = READ_WHOLE_BYTES // BLOCK_BYTES
        yield from (chunk.columns for chunk in itertools.islice(file.chunks(file.header, faults), blocks))
        return
    size = file.path.stat().st_size
    for place in np.linspace(0, max(0, size - PIECE_BYTES), PIECES).astype(np.int64).tolist():
        got = file.piece(file.header, place, PIECE_BYTES)
        if got and len(got[0]):
            yield dict(zip(file.header, got, strict=True))


def _joined(parts: list[pa.Array], kind: pa.DataType) -> pa.Array:
    """The parts as one array; text where files of one log disagree about the type."""
    parts = [p.dictionary_decode() if pa.types.is_dictionary(p.type) else p for p in parts]
    kinds = {p.type for p in parts if not pa.types.is_null(p.type)}
    if not parts:
        return pa.nulls(0, kind)
    if len(kinds) > 1:
        parts = [
            p.cast(pa.string()) if not pa.types.is_nested(p.type) else pa.nulls(len(p), pa.string()) for p in parts
        ]
        return pa.concat_arrays(parts)
    if kinds:
        [only] = kinds
        parts = [p.cast(only) for p in parts]
    return pa.concat_arrays(parts)
