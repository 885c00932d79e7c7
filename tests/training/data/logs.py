"""Small logs for these tests: written to files, read back whole."""

import gzip
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
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


def criteo_text(rows: int, seed: int = 0) -> str:
    """Lines as in Criteo's train.txt: no header, tabs, empty cells, negative counts, tokens that repeat."""
    random = np.random.default_rng(seed)
    lines = []
    for _ in range(rows):
        label = random.random() < 0.25
        counts = np.floor(np.exp(random.random(13) * 8)).astype(int) - 2 + 5 * label
        tokens = [f"{int(r**3 * 40) * 2654435761 % 2**32:08x}" for r in random.random(26)]
        cells = [*map(str, counts.tolist()), *tokens]
        lines.append("\t".join([str(int(label)), *(c if random.random() > 0.1 else "" for c in cells)]))
    return "\n".join(lines) + "\n"


def avazu_text(rows: int, seed: int = 0) -> str:
    """Lines as in Avazu's train.csv: a header, an id a row, YYMMDDHH from 2014-10-21 on."""
    from training.data.kaggle import AVAZU_COLUMNS

    random = np.random.default_rng(seed)
    lines = [",".join(AVAZU_COLUMNS)]
    for row in range(rows):
        day, hour = divmod(row * 240 // rows, 24)
        label = int(random.random() < 0.17)
        tokens = [f"{int(r**3 * 30) * 2654435761 % 2**32:08x}" for r in random.random(9)]
        numbers = random.integers(0, 4, 12).astype(str).tolist()
        cells = [numbers[0], numbers[1], *tokens, *numbers[2:4], *numbers[4:12]]
        lines.append(",".join([str(10**18 + row * 7919), str(label), f"1410{21 + day:02d}{hour:02d}", *cells]))
    return "\n".join(lines) + "\n"
