"""A folder of Parquet files made by `compact`: what lies where, its tables and views in DuckDB, one unit out of it.

    <folder>/compacted.json                                     of which journal it is
    <folder>/part-<first segment>/exposures/day=2026-11-22/*.parquet
    <folder>/part-<first segment>/events/…   shadows/…   failures/…
    <folder>/part-<first segment>/segments.parquet              which segments are in it, and what of them is not
    <folder>/merged-<first segment>/…                           parts of a day made one, until those are gone
    <folder>/new-*                                              what a process that died was making: not part of it

A part appears whole, by one rename; which there are says `models/journal/compacted.py`. The tables and their columns:
`tables.py`. Days are UTC, of when the service answered or received.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from models.journal.compacted import MERGED, PART, REPLACES, parts, replaced
from service.errors import AnswersError, ConfigError
from service.journal.segments import retention_lock
from service.journal.sinks.tables import DATA, FORMAT_VERSION, SEGMENTS, create_tables, view_statements

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

MARK = "compacted.json"
NEW = "new-"

_TEMPORARY = "parquet.rewritten"


def is_compacted(folder: Path) -> bool:
    """Whether `compact` made it."""
    return (folder / MARK).is_file()


def read_mark(folder: Path) -> str:
    """The journal whose records are there (`tables.read_source`). Raises `ConfigError`."""
    path = folder / MARK
    try:
        mark = json.loads(path.read_text(encoding="utf-8"))
        version, source = mark["format_version"], str(mark["source"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: expected the mark of a compacted log, got {type(error).__name__}") from None
    if version != FORMAT_VERSION:
        raise ConfigError(f"{path}: expected format_version {FORMAT_VERSION}, got {version}: compact into a new folder")
    return source


def connect(temporary: Path | None = None) -> DuckDBPyConnection:
    """A DuckDB of its own, in memory, that reaches for nothing outside; what does not fit goes to `temporary`.

    Raises `ConfigError` where the extra is not installed.
    """
    try:
        import duckdb
    except ImportError:
        raise ConfigError("DuckDB is not installed here: pip install 'retort[analysis]'") from None
    settings: dict[str, str | bool | int | float | list[str]] = {
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
    }
    if temporary is not None:
        settings["temp_directory"] = str(temporary)
    return duckdb.connect(config=settings)


def engine_error() -> type[Exception]:
    """What DuckDB raises: a full disk, a file that is none of its own."""
    import duckdb

    return duckdb.Error


def engine_said(error: Exception) -> str:
    """What it says, without the query it was asked."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def data_files(part: Path, table: str) -> list[Path]:
    """The files of one of `DATA`, by day."""
    return sorted((part / table).glob("day=*/*.parquet"))


def quoted(text: str | Path) -> str:
    """As SQL writes a text."""
    return "'" + str(text).replace("'", "''") + "'"


def refuse_pattern(folder: Path) -> None:
    """DuckDB takes some letters of a path for a pattern; `ConfigError` where one is in it."""
    if any(letter in str(folder) for letter in "*?["):
        raise ConfigError(f"{folder}: expected a path without *, ? and [, which DuckDB takes for a pattern")


def source_sql(files: Sequence[Path]) -> str:
    """The files as a table of DuckDB."""
    return f"read_parquet([{', '.join(map(quoted, files))}], hive_partitioning = false)"


def create_views(connection: DuckDBPyConnection, folders: Sequence[Path]) -> None:
    """The tables over these folders' files, then the views of `views.sql`. `source` is the folder's place in the list,
    because of equal events the first by the key counts, and folders are read in the order in which they were named."""
    for statement in create_tables():
        connection.execute(statement)
    for table, columns in {**DATA, "segments": SEGMENTS}.items():
        selects = []
        names = ", ".join(name for name in columns if name != "source")
        for place, folder in enumerate(folders):
            refuse_pattern(folder)
            files: list[Path] = []
            for part in parts(folder):
                files += [part / "segments.parquet"] if table == "segments" else data_files(part, table)
            if files:
                selects.append(f"SELECT '{place:06d}' AS source, {names} FROM {source_sql(files)}")
        if selects:
            connection.execute(f"DROP TABLE {table}")
            connection.execute(f"CREATE VIEW {table} AS {' UNION ALL '.join(selects)}")
    for statement in view_statements():
        connection.execute(statement)


class BusyError(Exception):
    """Another process writes into the folder."""


@contextlib.contextmanager
def writing(folder: Path, *, wait: bool) -> Iterator[None]:
    """Inside, nobody else makes parts or rewrites them, and what a process that died was making is gone. Raises
    `BusyError` where somebody does and one does not wait."""
    lock = os.open(folder / "compact.lock", os.O_RDWR | os.O_CREAT, 0o640)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise BusyError(f"{folder}: another process compacts into it") from None
        for left in folder.glob(f"{NEW}*"):
            shutil.rmtree(left)
        finish_merging(folder)
        yield
    finally:
        os.close(lock)


def finish_merging(out: Path) -> None:
    """Removes what merged parts replace, and gives them their own names: also of a process that died. The caller is the
    only one who writes there."""
    for merged in sorted(out.glob(f"{MERGED}*")):
        with retention_lock(out, fcntl.LOCK_EX):
            for number, name in enumerate(replaced(merged)):
                with contextlib.suppress(FileNotFoundError):
                    (out / name).rename(out / f"{NEW}replaced-{number}")
            merged.rename(part := out / merged.name.replace(MERGED, PART, 1))
            sync(out)
        for left in out.glob(f"{NEW}replaced-*"):
            shutil.rmtree(left)
        (part / REPLACES).unlink(missing_ok=True)


@contextlib.contextmanager
def reading(folders: Sequence[Path]) -> Iterator[None]:
    """Inside, no file of these folders is removed or replaced; new parts may appear. Raises `AnswersError`."""
    with contextlib.ExitStack() as stack:
        for folder in folders:
            try:
                stack.enter_context(retention_lock(folder, fcntl.LOCK_SH))
            except PermissionError:
                continue  # who may not write there may read all the same, and is told if a file goes meanwhile
            except OSError as error:
                if not os.access(folder, os.R_OK):
                    raise AnswersError(f"{folder}: {error.strerror or error}") from None
        yield


def erase_unit(folder: Path, unit: str) -> int:
    """Takes a unit's exposures, its failures, and what belongs to their requests out of every part; how many records.

    A file is written anew and renamed into its place: exposures and failures last, because they say which requests are
    the unit's, so who is stopped in the middle begins again. Raises `ConfigError` where DuckDB is not installed, and
    `AnswersError` for a file that it cannot read.
    """
    refuse_pattern(folder)
    with (
        contextlib.closing(connect()) as connection,
        _readable(folder),
        writing(folder, wait=True),
        retention_lock(folder, fcntl.LOCK_EX),
    ):
        files = {table: [path for part in parts(folder) for path in data_files(part, table)] for table in DATA}
        connection.execute("CREATE TABLE theirs (request_id text)")
        with_unit = [*files["exposures"], *files["failures"]]
        for path in with_unit:
            connection.execute(f"INSERT INTO theirs SELECT request_id FROM {source_sql([path])} WHERE unit = ?", [unit])
        erased = 0
        for path in (*files["events"], *files["shadows"]):
            erased += _rewrite(connection, path, "request_id IN (SELECT request_id FROM theirs)")
        for path in with_unit:
            erased += _rewrite(connection, path, f"unit = {quoted(unit)}")
        return erased


@contextlib.contextmanager
def _readable(folder: Path) -> Iterator[None]:
    try:
        yield
    except engine_error() as error:
        raise AnswersError(
            f"{folder}: {engine_said(error)}; nothing is known to be erased there: where segments of a damaged part "
            "are still there, remove the part and compact again, then erase again"
        ) from None


def _rewrite(connection: DuckDBPyConnection, path: Path, condition: str) -> int:
    """The file without the rows that meet the condition: how many there were."""
    found = connection.execute(f"SELECT count(*) FROM {source_sql([path])} WHERE {condition}").fetchone()
    number = int(found[0]) if found else 0
    if number:
        facts = path.stat()
        temporary = path.with_name(_TEMPORARY)
        write_file(connection, f"SELECT * FROM {source_sql([path])} WHERE NOT ({condition})", temporary)
        temporary.chmod(facts.st_mode & 0o777)
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    return number


def write_file(connection: DuckDBPyConnection, query: str, path: Path, *, days: bool = False) -> None:
    """The rows of a query as a Parquet file, or, where `days`, as a folder with a file for each `day` among them."""
    by = ", PARTITION_BY (day)" if days else ""
    connection.execute(f"COPY ({query}) TO {quoted(path)} (FORMAT parquet, COMPRESSION zstd{by})")


def seal(folder: Path) -> None:
    """Everything in a new folder, and its names, outlives a power failure from here on, with the rights of a log."""
    for path in sorted(folder.rglob("*"), reverse=True):
        path.chmod(0o750 if path.is_dir() else 0o640)
        sync(path)
    sync(folder)


def sync(path: Path) -> None:
    """What was written to a file, or the names in a folder, outlives a power failure from here on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
