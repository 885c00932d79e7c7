"""Parquet: typed columns as they stand in the file, a bounded number of rows at a time."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from training.data.chunks import Chunk
from training.data.faults import Faults
from training.errors import DataError

BATCH_ROWS = 1 << 16


class ParquetFile:
    """One Parquet file. Raises `DataError` at once for a file that cannot be opened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = str(path)
        with self._open() as file:
            schema, self.rows = file.schema_arrow, file.metadata.num_rows
        self.header = tuple(schema.names)
        for name in self.header:
            if self.header.count(name) > 1:
                raise DataError(f"{self.name}: column {name!r} stands twice in the schema; every name must be its own")
        self.types = dict(zip(schema.names, schema.types, strict=True))

    def _open(self) -> pq.ParquetFile:
        try:
            if self.path.stat().st_size == 0:
                raise DataError(f"{self.name}: the file is empty; expected Parquet")
            return pq.ParquetFile(self.path, page_checksum_verification=True)
        except OSError as error:
            raise DataError(f"{self.name}: cannot be opened: {error.strerror or error}") from None
        except pa.ArrowInvalid as error:
            raise DataError(
                f"{self.name}: is not Parquet, or truncated ({_first_line(error)}); "
                "expected a whole Parquet file. "
                "Fetch or write it again"
            ) from None

    def header_advice(self) -> str:
        """Nothing: Parquet has no separators to mistake."""
        return ""

    def chunks(self, columns: Sequence[str], faults: Faults) -> Iterator[Chunk]:
        """The file's rows, at most `BATCH_ROWS` at a time; `columns` must be in the file."""
        done = 0
        with self._open() as file:
            batches = file.iter_batches(BATCH_ROWS, columns=list(columns), use_threads=False)
            while True:
                try:
                    batch = next(batches, None)
                except (pa.ArrowException, OSError) as error:
                    raise DataError(
                        f"{self.name} row {done + 1}: the file is damaged in or after this row "
                        f"({_first_line(error)}); expected it whole. Fetch or write it again"
                    ) from None
                if batch is None:
                    break
                numbers = np.arange(done + 1, done + batch.num_rows + 1, dtype=np.int64)
                done += batch.num_rows
                faults.seen(self.name, batch.num_rows)
                got = dict(zip(batch.schema.names, batch.columns, strict=True))
                for name, column in got.items():
                    self._refuse_bad_text(name, column, numbers)
                    got[name] = _without_views(column)
                yield Chunk(self.name, {c: got[c] for c in columns}, numbers, "row", done / max(1, self.rows))
        faults.close(self.name)

    def pieces(self, groups: int, rows: int) -> Iterator[dict[str, pa.Array]]:
        """About `rows` rows, evenly taken from up to `groups` row groups, evenly spread, the first included."""
        with self._open() as file:
            count = file.metadata.num_row_groups
            chosen = np.unique(np.linspace(0, count - 1, groups).astype(int)).tolist() if count else []
            for group in chosen:
                length = file.metadata.row_group(group).num_rows
                wanted = np.unique(np.linspace(0, length - 1, min(rows // len(chosen) + 1, length)).astype(np.int64))
                before = 0
                for batch in file.iter_batches(BATCH_ROWS, row_groups=[group], use_threads=False):
                    own = wanted[(wanted >= before) & (wanted < before + batch.num_rows)] - before
                    before += batch.num_rows
                    if own.size:
                        whole = pa.table(dict(zip(batch.schema.names, map(_without_views, batch.columns), strict=True)))
                        [taken] = whole.take(pa.array(own)).combine_chunks().to_batches()
                        yield dict(zip(taken.schema.names, taken.columns, strict=True))

    def _refuse_bad_text(self, name: str, column: pa.Array, numbers: npt.NDArray[np.int64]) -> None:
        """Arrow reads strings unchecked; bytes that are not UTF-8 are against the format, so the file is refused."""
        try:
            column.validate(full=True)
        except pa.ArrowInvalid as error:
            for row in range(len(column)):
                try:
                    column[row].as_py()
                except UnicodeDecodeError:
                    raise DataError(
                        f"{self.name} row {numbers[row]}: column {name!r}: expected UTF-8 text, got other bytes"
                    ) from None
            raise DataError(f"{self.name}: column {name!r} is damaged ({_first_line(error)})") from None


def _without_views(column: pa.Array) -> pa.Array:
    """Text views (also in lists) as plain text: Arrow can neither filter nor take them."""
    kind = column.type
    if pa.types.is_string_view(kind):
        return column.cast(pa.string())
    if pa.types.is_list(kind) and pa.types.is_string_view(kind.value_type):
        return column.cast(pa.list_(pa.string()))
    return column


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
