"""The journal in PostgreSQL: the tables of `tables.py` and the views of `views.sql`, in a schema of their own.

A batch is one transaction, with how far its segment was read in it (table `segments`): so a record is there once,
whatever dies when. Its key says so a second time. One follower a journal: a lock in the database (advisory, of the
session) keeps others out, wherever they run; the server lets go of it when the connection goes.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from models.journal.frames import is_erased
from service.errors import ConfigError
from service.journal.sinks.follow import Batch, Known, Position
from service.journal.sinks.ship import TargetError
from service.journal.sinks.tables import DATA, FORMAT_VERSION, Row, create_tables, row_of, view_statements

if TYPE_CHECKING:
    import psycopg

    from service.journal.sinks.answers import Ask

    Connection: TypeAlias = psycopg.Connection[tuple[Any, ...]]

logger = logging.getLogger("service.ship")

SCHEMA = "retort"
LOCKS = 0x5E70
"""The first half of the keys of our advisory locks."""
ROWS_AT_ONCE = 10_000
LOCK_SECONDS = 30.0
"""The server takes a moment to see that a follower has died, and longer on a busy machine."""

_INDEXES = tuple(  # by hash: a text of any length has one
    f"CREATE INDEX IF NOT EXISTS {table}_{column} ON {table} USING hash ({column})"
    for table, column in (
        *((table, "request_id") for table in DATA),
        *(("exposures", "unit"), ("failures", "unit")),
    )
)
_REMEMBER = "SELECT segment, place, is_done FROM segments WHERE source = %s AND (NOT is_done OR segment = ANY(%s))"
_MOVE = """
INSERT INTO segments (source, segment, place, is_done, torn, damaged, unreadable, lost_bytes)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s)
ON CONFLICT (source, segment) DO UPDATE SET
  place = excluded.place, is_done = excluded.is_done, torn = segments.torn + excluded.torn,
  damaged = segments.damaged + excluded.damaged, unreadable = segments.unreadable + excluded.unreadable,
  lost_bytes = segments.lost_bytes + excluded.lost_bytes
"""


def connect(url: str, *, make: bool = True) -> Connection:
    """A session whose names are those of our schema; where it is not there it is made, or, without `make`, refused.
    Raises `ConfigError` for what will not get better (no psycopg, a URL that is none, no rights, a schema of another
    version), else `TargetError`; neither says anything of a password."""
    try:
        import psycopg
    except ImportError:
        raise ConfigError("psycopg is not installed here: pip install 'retort[postgres]'") from None
    if _understood(url) is None:
        raise ConfigError(
            "expected postgresql://USER:PASSWORD@HOST:PORT/DATABASE as libpq reads it; in user and password every "
            "letter of @ : / ? # [ ] % and space is written as %40 %3A %2F %3F %23 %5B %5D %25 %20 (not shown here: "
            "it may hold a password)"
        )
    with _errors():
        connection = psycopg.connect(
            url,
            autocommit=True,
            connect_timeout=10,
            application_name="retort",
            keepalives_idle=30,
            keepalives_interval=10,
            keepalives_count=3,
            tcp_user_timeout=60_000,
        )
        try:
            _prepare(connection, make=make)
        except BaseException:
            connection.close()
            raise
        return connection


def shown(url: str) -> str:
    """The URL for people: without user, password and options; and where it cannot be told what is what, nothing."""
    facts = _understood(url)
    return "postgresql://…" if facts is None else f"postgresql://{facts.get('host', '')}/{facts.get('dbname', '')}"


def _understood(url: str) -> Mapping[str, Any] | None:
    """What libpq makes of a URL; None where it makes nothing of it, or takes a piece of a password for something
    else: then its errors, and the URL as it is shown, would have that piece in them."""
    try:
        from psycopg import ProgrammingError
        from psycopg.conninfo import conninfo_to_dict
    except ImportError:
        return None
    authority, _, rest = url.partition("://")[2].partition("?")[0].partition("/")
    if authority.count("@") > 1 or "@" in rest:
        return None
    try:
        facts = conninfo_to_dict(url)
    except ProgrammingError:
        return None
    ports = str(facts.get("port") or "0").split(",")
    return facts if all(port.isdecimal() for port in ports if port) else None


def erase_unit(url: str, unit: str) -> int:
    """Takes a unit's exposures, its failures, and what belongs to their requests out: how many records. Erase it from
    the segments first, or what is not shipped yet comes after. Raises as `connect` does."""
    with contextlib.closing(connect(url)) as connection, _errors(), connection.transaction():
        connection.execute(
            "CREATE TEMPORARY TABLE theirs ON COMMIT DROP AS SELECT request_id FROM exposures WHERE unit = %(unit)s "
            "UNION SELECT request_id FROM failures WHERE unit = %(unit)s",
            {"unit": _clean(unit)},
        )
        erased = 0
        for table in ("events", "shadows"):
            erased += connection.execute(
                f"DELETE FROM {table} WHERE request_id IN (SELECT request_id FROM theirs)"
            ).rowcount
        for table in ("exposures", "failures"):
            erased += connection.execute(f"DELETE FROM {table} WHERE unit = %s", [_clean(unit)]).rowcount
        return erased


@contextlib.contextmanager
def reading(url: str, experiment: str, window_seconds: float) -> Iterator[Ask]:
    """Inside, queries are asked of the views as they are at one moment, under that attribution window of the experiment
    whatever the table `windows` says. Nothing is left behind; the right to read is enough. Raises as `connect` does."""
    with (
        contextlib.closing(connect(url, make=False)) as connection,
        _errors(),
        connection.transaction(force_rollback=True),
    ):
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        connection.execute(f"SET LOCAL search_path TO pg_temp, {SCHEMA}")  # what is made here is ours, and found first
        for statement in (statement for statement in create_tables() if " windows " in statement):
            connection.execute(statement)
        connection.execute("INSERT INTO windows VALUES (%s, %s)", [experiment, window_seconds])
        for statement in view_statements():
            connection.execute(statement)

        def ask(query: str) -> Iterator[tuple[Any, ...]]:
            with connection.cursor(name="answers") as cursor:  # the server's: not all rows at once
                cursor.itersize = ROWS_AT_ONCE
                yield from cursor.execute(query)

        yield ask


class PostgresTarget:
    """One database. `ship.Target` says what is promised."""

    def __init__(self, url: str) -> None:
        self.name = shown(url)
        self._url = url
        self._connection: Connection | None = None
        self._source = ""

    def open(self, source: str) -> None:
        self._source = source
        self._connection = connection = connect(self._url)
        import psycopg

        with _errors():
            connection.execute(f"SET lock_timeout = {int(1000 * LOCK_SECONDS)}")
            try:
                connection.execute("SELECT pg_advisory_lock(%s, hashtext(%s))", [LOCKS, source])
            except psycopg.errors.LockNotAvailable:
                raise TargetError("another follower ships this journal there") from None
            connection.execute("SET lock_timeout = 0")
            for table in DATA:
                connection.execute(
                    f"CREATE TEMPORARY TABLE new_{table} (LIKE {table} INCLUDING DEFAULTS) ON COMMIT DELETE ROWS"
                )

    def remember(self, segments: Collection[str]) -> Known:
        with _errors():
            session = self._session()
            oldest = session.execute("SELECT min(segment) FROM segments WHERE source = %s", [self._source]).fetchone()
            rows = session.execute(_REMEMBER, [self._source, list(segments)]).fetchall()
        positions = {name: Position(place, is_done) for name, place, is_done in rows}
        return Known(oldest[0] if oldest else None, positions)

    def write(self, batch: Batch) -> int:
        rows: dict[str, list[Row]] = {table: [] for table in DATA}
        unreadable = 0
        for place, payload in batch.records:
            if is_erased(payload):
                continue
            row = row_of(batch.segment, place, payload)
            if row is None:
                unreadable += 1
            else:
                rows[row.table].append(row)
        with _errors():
            session = self._session()
            with session.transaction():
                for table, found in rows.items():
                    if found:
                        self._insert(session, table, found)
                position = batch.position
                counts = [batch.torn, batch.damaged, unreadable, batch.lost_bytes]
                session.execute(_MOVE, [self._source, batch.segment, position.place, position.is_done, *counts])
        return unreadable

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _session(self) -> Connection:
        if self._connection is None:
            raise TargetError("not connected")
        return self._connection

    def _insert(self, session: Connection, table: str, rows: Sequence[Row]) -> None:
        columns = DATA[table]
        names = ", ".join(columns)
        with session.cursor() as cursor:
            with cursor.copy(f"COPY new_{table} ({names}) FROM STDIN") as copy:
                for row in rows:
                    copy.write_row([_clean(value) for value in self._values(columns, row.values)])
            cursor.execute(f"INSERT INTO {table} ({names}) SELECT {names} FROM new_{table} ON CONFLICT DO NOTHING")

    def _values(self, columns: Mapping[str, str], values: Mapping[str, Any]) -> Iterator[Any]:
        for name in columns:
            yield self._source if name == "source" else values.get(name)


def _prepare(connection: Connection, *, make: bool) -> None:
    """The schema, made once; who may only write or read there finds it made."""
    if connection.execute("SELECT to_regclass(%s) IS NULL", [f"{SCHEMA}.meta"]).fetchone() == (True,):
        if not make:
            raise ConfigError(f"no schema {SCHEMA}: no log was shipped there (python -m service ship)")
        with connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(%s, 0)", [LOCKS])  # of two who do this, one does
            connection.execute(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}")
            connection.execute(f"SET LOCAL search_path TO {SCHEMA}")
            for statement in (*create_tables(), *_INDEXES, *view_statements()):
                connection.execute(statement)
            connection.execute("CREATE TABLE IF NOT EXISTS meta (format_version bigint PRIMARY KEY)")
            connection.execute("INSERT INTO meta VALUES (%s) ON CONFLICT DO NOTHING", [FORMAT_VERSION])
    connection.execute(f"SET search_path TO {SCHEMA}")
    versions = connection.execute("SELECT format_version FROM meta").fetchall()
    if versions != [(FORMAT_VERSION,)]:
        found = ", ".join(str(version) for (version,) in versions)
        raise ConfigError(
            f"schema {SCHEMA}: expected format_version {FORMAT_VERSION}, got {found}: another release made it"
        )


def _clean(value: Any) -> Any:
    """PostgreSQL's texts have no NUL: the replacement character stands for it."""
    if isinstance(value, str):
        return value.replace("\0", "\ufffd")
    if isinstance(value, list):
        return [_clean(one) for one in value]
    return value


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    """What psycopg raises, as `ConfigError` where it will not get better, else as `TargetError`."""
    import psycopg

    try:
        yield
    except (psycopg.ProgrammingError, psycopg.NotSupportedError) as error:
        raise ConfigError(f"PostgreSQL: {_said(error)}") from None
    except psycopg.Error as error:
        raise TargetError(_said(error)) from None


def _said(error: Exception) -> str:
    """The first line; the rest shows what was sent."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
