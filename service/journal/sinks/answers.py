"""The views of `views.sql` -> the rows that answers are made of: the same as `joined.py` makes of the segments."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from service.answers.rows import Rows, make_rows, row_values
from service.errors import AnswersError, ConfigError
from service.journal.joined import COUNTS, read_journal
from service.journal.sinks.parquet import (
    connect,
    create_views,
    engine_error,
    engine_said,
    is_compacted,
    read_mark,
    reading,
)

Ask = Callable[[str], Iterator[tuple[Any, ...]]]
"""A query -> its rows."""

_COLUMNS = (
    *("request_id", "time", "unit", "experiment", "phase", "arm", "served", "enrolled", "forced", "fallback"),
    *("error", "latency_ms", "candidate", "click", "click_time", "pctr", "shadow_arm", "shadow_pctr"),
)
_AT_ONCE = 10_000

_context = msgspec.json.Decoder(dict[str, Any]).decode


def read_log(
    places: Sequence[Path | str], experiment: str, window_seconds: float, segments: Sequence[str] = ()
) -> Rows:
    """The rows of one experiment in folders of the log, or in the database, named by its URL, that it was shipped to.
    Raises `AnswersError`, `ConfigError`."""
    folders = [place for place in places if isinstance(place, Path)]
    if len(folders) == len(places):
        return read_folders(folders, experiment, window_seconds, segments)
    if len(places) > 1:
        raise AnswersError("--log: expected one database and nothing else: logs of several machines go into one")
    return read_database(str(places[0]), experiment, window_seconds, segments)


def read_database(url: str, experiment: str, window_seconds: float, segments: Sequence[str] = ()) -> Rows:
    """The same of everything that was shipped to a database. Raises `AnswersError`, `ConfigError`."""
    from service.journal.sinks import postgres
    from service.journal.sinks.ship import TargetError

    try:
        with postgres.reading(url, experiment, window_seconds) as ask:
            return read_views(ask, experiment, segments)
    except TargetError as error:
        raise AnswersError(f"--log {postgres.shown(url)}: {error}") from None
    except ConfigError as error:
        raise ConfigError(f"--log {postgres.shown(url)}: {error}") from None


def read_folders(folders: Sequence[Path], experiment: str, window_seconds: float, segments: Sequence[str] = ()) -> Rows:
    """The rows of one experiment in folders of segments, or in compacted ones. Raises `AnswersError`, `ConfigError`."""
    compacted = [folder for folder in folders if is_compacted(folder)]
    if not compacted:
        return read_journal(folders, experiment, window_seconds, segments)
    if len(compacted) < len(folders):
        raise AnswersError(
            "--log: expected the service's folders or compacted ones, got both: what is in both is twice"
        )
    sources = [read_mark(folder) for folder in folders]
    if len(set(sources)) < len(sources):
        raise AnswersError("--log: two of these folders were compacted from the same log")
    with (
        tempfile.TemporaryDirectory() as temporary,
        contextlib.closing(connect(Path(temporary))) as connection,
        reading(folders),
    ):

        def ask(query: str) -> Iterator[tuple[Any, ...]]:
            found = connection.execute(query)
            while rows := found.fetchmany(_AT_ONCE):
                yield from rows

        try:
            create_views(connection, folders)
            connection.execute("INSERT INTO windows VALUES (?, ?)", [experiment, window_seconds])
            return read_views(ask, experiment, segments)
        except engine_error() as error:
            raise AnswersError(f"--log: {engine_said(error)}") from None


def read_views(ask: Ask, experiment: str, segments: Sequence[str]) -> Rows:
    """The rows of one experiment out of the views `joined` and `counts`."""
    values: list[list[Any]] = []
    bad = 0
    name = "'" + experiment.replace("'", "''") + "'"
    for *found, context in ask(
        f"SELECT {', '.join(_COLUMNS)}, context FROM joined WHERE experiment = {name} "
        "ORDER BY error, source, segment, place, candidate"
    ):
        row = dict(zip(_COLUMNS, found, strict=True))
        if segments:
            known = {} if context is None else _context(context)
            for segment in segments:
                row.setdefault(segment, known.get(segment))
        try:
            values.append(row_values(row, segments))
        except ValueError:  # a unit with a NUL in it, say
            bad += 1
    return make_rows(values, segments, bad, read_counts(ask, experiment))


def read_counts(ask: Ask, experiment: str) -> dict[str, int]:
    """What was counted while joining, under its names in the report."""
    of_experiment = {"exposures", "misplaced_events", "skewed_events", "late_events", "failures", "shadow_scores"}
    names = [name for name in COUNTS if name != "other_experiments"]
    totals = dict.fromkeys(COUNTS, 0)
    for whose, *numbers in ask(f"SELECT experiment, {', '.join(names)} FROM counts"):
        for name, number in zip(names, map(int, numbers), strict=True):
            if name not in of_experiment or whose == experiment:
                totals[name] += number
            elif name == "exposures":
                totals["other_experiments"] += number
    return {f"log_{name}": totals[name] for name in COUNTS}
