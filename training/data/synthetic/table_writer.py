"""Tables into one file, a piece at a time, in the format that the file's name says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet


class TableWriter:
    """Writes tables to `path` in the format that `name` ends in; a context manager. ValueError for another format."""

    def __init__(self, path: Path, name: str) -> None:
        stem = name.removesuffix(".gz")
        kind = Path(stem).suffix
        if kind not in (".csv", ".tsv") and not (kind == ".parquet" and stem == name):
            raise ValueError(f"{name}: expected .parquet, .csv, .csv.gz, .tsv or .tsv.gz")
        self._path, self._kind, self._zipped = path, kind, stem != name
        self._writer: Any = None
        self._sink: Any = None

    def __enter__(self) -> TableWriter:
        return self

    def write_table(self, table: pa.Table) -> None:
        """Add a table's rows; all tables have the first one's columns."""
        if self._writer is None:
            self._open(table.schema)
        self._writer.write_table(table)

    def _open(self, schema: pa.Schema) -> None:
        if self._kind == ".parquet":
            self._sink = pa.OSFile(str(self._path), "wb")
            self._writer = pyarrow.parquet.ParquetWriter(self._sink, schema)
        else:
            self._sink = pa.output_stream(str(self._path), compression="gzip" if self._zipped else None)
            separator = "\t" if self._kind == ".tsv" else ","
            options = pyarrow.csv.WriteOptions(delimiter=separator, quoting_style="needed")
            self._writer = pyarrow.csv.CSVWriter(self._sink, schema, write_options=options)

    def __exit__(self, *_: object) -> None:
        for opened in (self._writer, self._sink):
            if opened is not None:
                opened.close()
