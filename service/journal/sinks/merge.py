"""Parts of days that are over become one part a day: a folder that is compacted each hour keeps some files a day.

The merged part is made under a name that nobody reads, synced, and renamed to one that says which parts it replaces
(`models/journal/compacted.py`): from then on these count no more, whenever they are removed. Killed at any moment the
folder holds every record once, for everybody who asks `parts`. Who names `part-*` himself, in a shell of DuckDB say,
finds none twice; while the names change, for some milliseconds, he may find some not at all.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from models.journal.compacted import MERGED, PART, REPLACES, parts
from service.journal.sinks.parquet import NEW, connect, data_files, finish_merging, seal, source_sql, sync, write_file
from service.journal.sinks.tables import DATA

MERGE_BYTES = 512 << 20
"""A part is not made larger than this by merging."""


def merge(out: Path, today: str, *, most_bytes: int = MERGE_BYTES) -> int:
    """Makes one part of neighbours whose last day is the same and before `today`; how many parts there are fewer. The
    caller is the only one who writes into the folder (`parquet.writing`)."""
    fewer = 0
    for group in _groups(out, today, most_bytes):
        temporary = out / f"{NEW}{os.getpid()}"
        temporary.mkdir(mode=0o750)
        try:
            _fill(temporary, group)
            seal(temporary)
            merged = out / group[0].name.replace(PART, MERGED, 1)
            temporary.rename(merged)
            sync(out)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)  # where the disk is full, say
        finish_merging(out)
        fewer += len(group) - 1
    return fewer


def _groups(out: Path, today: str, most_bytes: int) -> Iterator[list[Path]]:
    """Parts that become one: two at least."""
    there = parts(out)
    days: dict[Path, str] = {}
    last = ""
    for part in there:  # what has no day, because all of it was lost or is forgotten, goes with what was before it
        days[part] = last = max((path.parent.name for table in DATA for path in data_files(part, table)), default=last)
    for day, same in groupby(there, days.__getitem__):
        if day >= f"day={today}":
            continue
        group: list[Path] = []
        size = 0
        for part in same:
            here = sum(path.stat().st_size for path in part.rglob("*.parquet"))
            if size + here > most_bytes:
                if len(group) > 1:
                    yield group
                group, size = [], 0
            group.append(part)
            size += here
        if len(group) > 1:
            yield group


def _fill(temporary: Path, group: Sequence[Path]) -> None:
    """The files of the merged part: one a table and day, its rows as they stood."""
    with contextlib.closing(connect(temporary)) as connection:
        connection.execute("SET threads = 1")  # beside workers that score, and in order
        for table in DATA:
            by_day: dict[str, list[Path]] = {}
            for part in group:
                for path in data_files(part, table):
                    by_day.setdefault(path.parent.name, []).append(path)
            for day, files in by_day.items():
                (temporary / table / day).mkdir(parents=True)
                write_file(connection, f"SELECT * FROM {source_sql(files)}", temporary / table / day / "data_0.parquet")
        segments = source_sql([part / "segments.parquet" for part in group])
        write_file(connection, f"SELECT * FROM {segments}", temporary / "segments.parquet")
    names = [part.name for part in group]
    (temporary / REPLACES).write_text(json.dumps(names), encoding="ascii")
