"""`python -m service compact`: the sealed segments of a journal as Parquet files by day. Never in a worker.

A part is made of some segments, under a name that nobody reads, synced, and renamed: killed at any moment, the folder
holds what it held or one part more. Which segments are done stands in the parts themselves, so the next run goes on
where this one ended, and doing it twice changes nothing. The segments stay; retention removes them as ever. Parts of a
day that is over become one (`merge.py`).

While a part is made nobody may erase from the journal, or what was erased would come back with the rename.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import msgspec

from models.journal.compacted import PART, parts
from models.journal.frames import Skipped, frames, is_erased
from models.journal.reading import SEALED, segment_paths
from service.errors import ConfigError
from service.journal.segments import adopt, erasing_lock, removed_segments, retention_lock
from service.journal.sinks.merge import merge
from service.journal.sinks.parquet import (
    MARK,
    NEW,
    BusyError,
    connect,
    create_views,
    data_files,
    engine_error,
    engine_said,
    is_compacted,
    quoted,
    read_mark,
    refuse_pattern,
    seal,
    source_sql,
    sync,
    write_file,
    writing,
)
from service.journal.sinks.tables import DATA, FORMAT_VERSION, SEGMENTS, day_of, read_source, row_of

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

COPIES_FILE = "compacted.txt"
"""In the journal's folder: where it was compacted to, for who erases a unit and must not forget the copies."""
PART_BYTES = 256 << 20
KEEP_DAYS = 90.0
SETTLED_SECONDS = 7200.0
"""So long after its end a day is over: segments that were begun in it are sealed and compacted by then."""

TEACHING = """
examples:
  python -m service compact log --out log-parquet
  17 * * * *  python -m service compact /var/log/retort --out /var/lib/retort/parquet      a line of a crontab
  python -m service results --experiments experiments.yaml --log log-parquet

What is sealed is compacted: a segment is after --log-segment-seconds, an hour, or when its worker stops. Erase a unit
from both folders: python -m service erase-unit --log log log-parquet --unit TEXT

exit codes  0 done, 1 done, but retention had removed segments that were not compacted yet: run it more often; or
            another compaction is at it, 2 wrong option or folder
"""

_encode = msgspec.json.Encoder().encode


@dataclass(slots=True)
class Compacted:
    """What one run did."""

    parts: int = 0
    segments: int = 0
    records: dict[str, int] = field(default_factory=lambda: dict.fromkeys(DATA, 0))
    """By table."""
    unreadable: int = 0
    skipped: Skipped = field(default_factory=Skipped)
    lost: Mapping[str, int] = field(default_factory=dict)
    """Segments that retention removed before they were compacted: name -> bytes."""
    old: int = 0
    """Files that were removed for their age."""
    merged: int = 0
    """So many parts fewer, because those of a day that is over became one."""


def compact(folder: Path, out: Path, *, keep_seconds: float, now: float, part_bytes: int = PART_BYTES) -> Compacted:
    """Compacts what is sealed in `folder` and not yet in `out`, in parts of about `part_bytes` of segments; removes
    days that ended more than `keep_seconds` ago; makes the parts of each day that is over one. Raises `ConfigError`,
    `BusyError`, `OSError`."""
    refuse_pattern(out)
    out.mkdir(parents=True, exist_ok=True)
    with writing(out, wait=False):
        source = _mark(folder, out)
        done = Compacted()
        adopt(folder)
        known = _known_segments(out)
        done.lost = lost_segments(folder, known)
        lost = dict(done.lost)
        new = [path for path in segment_paths(folder) if path.suffix == SEALED and path.stem not in known]
        for batch in _batches(new, part_bytes):
            _make_part(source, folder, out, batch, lost, done)
            lost = {}
        if lost:
            _make_part(source, folder, out, [], lost, done)
        done.old = _forget(folder, out, day_of(now - keep_seconds))
        done.merged = merge(out, day_of(now - SETTLED_SECONDS))
        return done


def compacted_to(folder: Path) -> list[Path]:
    """Where a journal was compacted to, as far as it is still there. Raises `ConfigError`."""
    return [Path(line) for line in _copies(folder) if is_compacted(Path(line))]


def _copies(folder: Path) -> list[str]:
    path = folder / COPIES_FILE
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        return []
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise ConfigError(
            f"{path}: expected the folders that this log was compacted to, one a line, got something else: write them "
            "there, or remove the file where there are none"
        )
    return text.splitlines()


def lost_segments(folder: Path, known: Mapping[str, bool]) -> dict[str, int]:
    """Of the segments that retention removed, those that are not known, with their bytes. What is older than anything
    known was gone before anybody asked."""
    gone = {name: size for name, size in removed_segments(folder).items() if not (folder / f"{name}{SEALED}").exists()}
    return {name: size for name, size in gone.items() if known and name > min(known) and name not in known}


def _mark(folder: Path, out: Path) -> str:
    """Binds the two folders to each other; the name of the journal."""
    source = read_source(folder)
    if not (out / MARK).exists():
        _write_text(out / MARK, json.dumps({"format_version": FORMAT_VERSION, "source": source}) + "\n")
    elif read_mark(out) != source:
        raise ConfigError(f"--out {out}: it holds another journal than {folder}: one folder a journal")
    named = _copies(folder)
    if str(out.resolve()) not in named:
        _write_text(folder / COPIES_FILE, "".join(f"{name}\n" for name in (*named, out.resolve())))
    return source


def _write_text(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.new")
    temporary.write_text(text, encoding="utf-8")
    sync(temporary)
    temporary.replace(path)
    sync(path.parent)


def _known_segments(out: Path) -> dict[str, bool]:
    """The segments in the parts: name -> whether it is there, or was lost."""
    files = [part / "segments.parquet" for part in parts(out)]
    if not files:
        return {}
    with contextlib.closing(connect()) as connection:
        rows = connection.execute(f"SELECT segment, lost_bytes = 0 FROM {source_sql(files)}").fetchall()
    return dict(rows)


def _batches(paths: Sequence[Path], part_bytes: int) -> Iterator[list[Path]]:
    batch: list[Path] = []
    size = 0
    for path in paths:
        here = path.stat().st_size if path.exists() else 0
        if batch and size + here > part_bytes:
            yield batch
            batch, size = [], 0
        batch.append(path)
        size += here
    if batch:
        yield batch


class _Staged:
    """Rows on their way into a Parquet file: a line of JSON each, of which DuckDB makes columns."""

    def __init__(self, path: Path, columns: Mapping[str, str]) -> None:
        self.path = path
        self.rows = 0
        self._columns = columns
        self._longest = 0
        self._file: IO[bytes] = path.open("wb")

    def add(self, values: Mapping[str, Any]) -> None:
        line = _encode(values)
        self._longest = max(self._longest, len(line))
        self._file.write(line + b"\n")
        self.rows += 1

    def write(self, connection: DuckDBPyConnection, to: Path, *, days: bool) -> None:
        """As Parquet; the lines are removed."""
        self._file.close()
        if self.rows:
            kinds = {**self._columns, **({"day": "text"} if days else {})}
            columns = ", ".join(f"{name}: {quoted(kind)}" for name, kind in kinds.items())
            lines = (
                f"read_json({quoted(self.path)}, format = 'newline_delimited', columns = {{{columns}}}, "
                f"maximum_object_size = {max(1 << 24, 2 * self._longest)})"
            )
            write_file(connection, f"SELECT * FROM {lines}", to, days=days)
        self.path.unlink()

    def write_none(self, connection: DuckDBPyConnection, to: Path) -> None:
        """A file without rows, so that who names the files of every part by a pattern finds one."""
        to.mkdir(parents=True)
        columns = ", ".join(f"CAST(NULL AS {kind}) AS {name}" for name, kind in self._columns.items())
        write_file(connection, f"SELECT {columns} WHERE false", to / "none.parquet")


def _make_part(
    source: str, folder: Path, out: Path, paths: Sequence[Path], lost: Mapping[str, int], done: Compacted
) -> None:
    temporary = out / f"{NEW}{os.getpid()}"
    temporary.mkdir(mode=0o750)
    try:
        with erasing_lock(folder, fcntl.LOCK_SH):
            names = _fill_part(source, temporary, paths, lost, done)
            if names:
                _close_part(temporary, out / f"{PART}{min(names)}")
                done.parts += 1
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # where the disk is full, say


def _fill_part(
    source: str, temporary: Path, paths: Sequence[Path], lost: Mapping[str, int], done: Compacted
) -> list[str]:
    """Writes the files of a part; the segments that are in it, or were lost."""
    staged = {table: _Staged(temporary / f"{table}.json", columns) for table, columns in DATA.items()}
    segments = _Staged(temporary / "segments.json", SEGMENTS)
    facts = {"source": source, "is_done": True, "torn": 0, "damaged": 0, "unreadable": 0, "lost_bytes": 0}
    names = list(lost)
    for name, size in lost.items():
        segments.add({**facts, "segment": name, "place": 0, "lost_bytes": size})
    for path in paths:
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            continue  # retention was quicker; the next run finds its note
        names.append(path.stem)
        skipped, unreadable = Skipped(), 0
        for place, payload in frames(data, skipped):
            if is_erased(payload):
                continue
            row = row_of(path.stem, place, payload)
            if row is None:
                unreadable += 1
                continue
            staged[row.table].add({"source": source, **row.values, "day": day_of(row.at)})
        counted = {"torn": skipped.torn, "damaged": skipped.damaged, "unreadable": unreadable}
        segments.add({**facts, "segment": path.stem, "place": len(data), **counted})
        done.segments += 1
        done.unreadable += unreadable
        done.skipped.add(skipped)
    for table in DATA:
        done.records[table] += staged[table].rows
    with contextlib.closing(connect(temporary)) as connection:
        connection.execute("SET threads = 1")  # beside workers that score
        for table in DATA:
            staged[table].write(connection, temporary / table, days=True)
        days = sorted(path.name for path in temporary.glob("*/day=*"))
        for table in DATA:
            if days and not staged[table].rows:
                staged[table].write_none(connection, temporary / table / days[0])
        segments.write(connection, temporary / "segments.parquet", days=False)
    return names


def _close_part(temporary: Path, part: Path) -> None:
    seal(temporary)
    temporary.rename(part)
    sync(part.parent)


def _forget(folder: Path, out: Path, first_day: str) -> int:
    """Removes the days before `first_day`; a part of which nothing is left goes when its segments have gone."""
    removed = 0
    with retention_lock(out, fcntl.LOCK_EX):
        for part in parts(out):
            for table in DATA:
                for path in data_files(part, table):
                    if path.parent.name.removeprefix("day=") < first_day:
                        path.unlink()
                        removed += 1
        for part in parts(out):
            if any(data_files(part, table) for table in DATA):
                break
            with contextlib.closing(connect()) as connection:
                rows = connection.execute(f"SELECT segment FROM {source_sql([part / 'segments.parquet'])}").fetchall()
            if part == parts(out)[-1] or any((folder / f"{name}{SEALED}").exists() for (name,) in rows):
                break
            gone = out / f"{NEW}gone"
            part.rename(gone)
            shutil.rmtree(gone)
    return removed


def _count_all(out: Path) -> dict[str, int]:
    """What the view `counts` says of the whole folder."""
    with contextlib.closing(connect()) as connection:
        create_views(connection, [out])
        names = ("duplicate_exposures", "duplicate_events", "orphan_events", "misplaced_events", "skewed_events")
        sums = ", ".join(f"coalesce(sum({name}), 0)" for name in names)
        found = connection.execute(f"SELECT {sums} FROM counts").fetchone()
        return dict(zip(names, map(int, found or ()), strict=True))


def main(arguments: Sequence[str]) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m service compact",
        description="The sealed segments of the exposure log as Parquet files by day, for DuckDB and others.",
        epilog=TEACHING,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="of the service's log")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="of the Parquet files")
    parser.add_argument(
        "--keep-days", type=float, default=KEEP_DAYS, metavar="X", help=f"older days are removed [{KEEP_DAYS:g}]"
    )
    parser.add_argument("--counts", action="store_true", help="count duplicates and orphans in the whole of it, too")
    options = parser.parse_args(arguments)
    try:
        if not options.keep_days > 0:
            raise ConfigError(f"--keep-days: expected a number above 0, got {options.keep_days:g}")
        if not options.folder.is_dir():
            raise ConfigError(f"no folder {options.folder}")
        if options.out.resolve() == options.folder.resolve():
            raise ConfigError("--out: expected another folder than that of the log")
        connect().close()
        done = compact(options.folder, options.out, keep_seconds=86_400 * options.keep_days, now=time.time())
        counts = _count_all(options.out) if options.counts else {}
    except ConfigError as error:
        print(f"retort: {error}", file=sys.stderr)
        return 2
    except BusyError as error:
        print(f"retort: {error}", file=sys.stderr)
        return 1
    except engine_error() as error:
        print(f"retort: --out {options.out}: {engine_said(error)}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"retort: {error.filename or options.out}: {error.strerror or error}", file=sys.stderr)
        return 2
    said = ", ".join(f"{number} {table}" for table, number in done.records.items())
    print(
        f"{done.segments} segments in {done.parts} parts: {said}; "
        f"{done.skipped.torn} torn ends, {done.skipped.damaged} damaged places, {done.unreadable} unreadable records; "
        f"{done.old} files removed for their age, {done.merged} parts merged into others of their day"
    )
    for name, number in counts.items():
        print(f"{number} {name.replace('_', ' ')}")
    if done.lost:
        print(
            f"retort: {len(done.lost)} segments ({sum(done.lost.values())} bytes) were removed by retention before "
            "they were compacted: they are lost to the Parquet files; compact more often, or raise --log-keep-bytes",
            file=sys.stderr,
        )
        return 1
    return 0
