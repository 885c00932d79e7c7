"""Any log in files: CSV, TSV (plain, gzip or zstd) and Parquet, one or many, as one stream of chunks.

Files of one log may order their columns differently. A column that some file lacks must be named in `optional_columns`;
its rows are then missing that value. Anything else that a header lacks refuses the file at once.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa

from training.data.chunks import Chunk, require_columns
from training.data.faults import Faults
from training.data.parquet_files import ParquetFile
from training.data.text_files import TextFile, TextFormat
from training.errors import DataError

__all__ = ["FileSource", "TextFormat", "open_file"]


def open_file(path: Path, form: TextFormat) -> TextFile | ParquetFile:
    """A reader by what the file is: its first bytes for Parquet, its ending for text."""
    if path.is_dir():
        raise DataError(
            f"{path}: is a folder; expected a CSV, TSV or Parquet file. Name what is in it by a pattern: {path.name}/*"
        )
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise DataError(f"{path}: cannot be opened: {error.strerror or error}") from None
    if magic == b"PAR1" or path.suffix.lower() in (".parquet", ".pq"):
        return ParquetFile(path)
    return TextFile(path, form)


@dataclass(frozen=True)
class FileSource:
    """The rows of some files, in the order given. A `Source`.

    Headers are read, and refused where they cannot be used, when the source is made.
    """

    files: tuple[Path, ...]
    text: TextFormat = field(default_factory=TextFormat)
    optional_columns: frozenset[str] = frozenset()
    _opened: dict[Path, TextFile | ParquetFile] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.files:
            raise DataError("no file to read: expected at least one CSV, TSV or Parquet file")
        doubles = {str(f) for f in self.files if self.files.count(f) > 1}
        if doubles:
            raise DataError(f"{min(doubles)}: named twice; each file's rows would be counted twice")
        object.__setattr__(self, "_opened", {path: open_file(path, self.text) for path in self.files})

    @property
    def opened(self) -> tuple[TextFile | ParquetFile, ...]:
        """A reader a file, in order."""
        return tuple(self._opened.values())

    def columns(self) -> dict[str, pa.DataType]:
        found: dict[str, pa.DataType] = {}
        for file in self._opened.values():
            for name in file.header:
                kind = file.types[name] if isinstance(file, ParquetFile) else pa.string()
                if name not in found or pa.types.is_null(found[name]):
                    found[name] = kind
        return found

    def require(self, wanted: Mapping[str, str]) -> None:
        available = self.columns()
        spared = {c for c in self.optional_columns if c in available}
        for path, file in self._opened.items():
            place = f"{path}:1" if isinstance(file, TextFile) else str(path)
            needed = {name: why for name, why in wanted.items() if name in file.header or name not in spared}
            require_columns(place, needed, file.header, file.header_advice())

    def chunks(self, columns: Sequence[str], faults: Faults) -> Iterator[Chunk]:
        self.require(dict.fromkeys(columns, "asked for"))  # every header before the first row
        available = self.columns()
        total = sum(max(1, p.stat().st_size) for p in self.files)
        before = 0
        for path, file in self._opened.items():
            size = max(1, path.stat().st_size)
            present = [c for c in columns if c in file.header]
            for chunk in file.chunks(present, faults):
                absent = {c: pa.nulls(chunk.rows, available[c]) for c in columns if c not in file.header}
                share = (before + chunk.read * size) / total
                yield replace(chunk, columns=chunk.columns | absent, read=share)
            before += size
