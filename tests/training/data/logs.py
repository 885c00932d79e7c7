"""Small logs for these tests: written to files, read back whole."""

import gzip
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from models.schema import FeatureSchema
from training.data.chunks import Source
from training.data.faults import Faults
from training.data.readers import FileSource, TextFormat


def write(path: Path, content: bytes | str) -> Path:
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def write_parquet(path: Path, columns: Mapping[str, Any], **options: Any) -> Path:
    pq.write_table(pa.table(columns), path, **options)
    return path


def read(source: Source, columns: Sequence[str] | None = None, faults: Faults | None = None) -> list[dict[str, Any]]:
    """Every row as {column: value}, with its line or row number under "#"."""
    rows = []
    for chunk in source.chunks(columns or list(source.columns()), faults or Faults(None)):
        names = list(chunk.columns)
        for number, *cells in zip(chunk.numbers.tolist(), *(chunk.columns[n].to_pylist() for n in names), strict=True):
            rows.append({"#": number} | dict(zip(names, cells, strict=True)))
    return rows


def read_text(path: Path, content: bytes | str, faults: Faults | None = None, **form: Any) -> list[dict[str, Any]]:
    return read(FileSource((write(path, content),), TextFormat(**form)), faults=faults)


def schema(*fields: dict[str, Any], **keys: Any) -> FeatureSchema:
    """A schema over a label `click`; fields are candidates, categorical strings by vocabulary unless said."""
    usual = {"type": "string", "role": "candidate", "kind": "categorical", "encoding": {"method": "vocabulary"}}
    document = {"label": {"column": "click"}, "fields": [usual | f for f in fields]} | keys
    return FeatureSchema.model_validate(document)


NUMERIC = {"kind": "numeric", "encoding": {"method": "quantile", "buckets": 4}}
