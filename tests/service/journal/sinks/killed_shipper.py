"""Ships a folder to an empty database, killed STRIDE steps later each time, until one attempt gets through.

    python -m tests.service.journal.sinks.killed_shipper FOLDER URL STRIDE

A step is anything said to the server once it is open, COMMIT included. Each attempt is a child of this process. After
each, what is in the database is exactly what the positions in it say; some are then gone on with. Prints how many were
killed.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import psycopg

from models.journal.frames import Skipped, frames
from models.journal.reading import segment_paths
from service.journal.sinks.postgres import PostgresTarget
from service.journal.sinks.ship import Shipper
from service.journal.sinks.tables import row_of

ALL = "SELECT segment, place FROM exposures UNION ALL SELECT segment, place FROM events"


def ship(folder: Path, url: str, killed_before: int | None) -> bool:
    """In a child; whether it got through."""
    child = os.fork()
    if child == 0:
        left = killed_before or sys.maxsize
        opened, wait = PostgresTarget.remember, psycopg.Connection.wait

        def watched(self: Any, *arguments: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return wait(self, *arguments, **options)

        def remember(self: PostgresTarget, *arguments: Any) -> Any:
            psycopg.Connection.wait = watched  # type: ignore[method-assign]
            return opened(self, *arguments)

        PostgresTarget.remember = remember  # type: ignore[method-assign]
        Shipper(folder, PostgresTarget(url), sink="sink", poll_seconds=0.001, status_seconds=3600).run(once=True)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return False
    assert os.waitstatus_to_exitcode(status) == 0
    return True


def main(folder: Path, url: str, stride: int) -> None:
    """Until nothing is left to kill."""
    records = set()
    for path in segment_paths(folder):
        for place, payload in frames(path.read_bytes(), Skipped()):
            row = row_of(path.stem, place, payload)
            if row is not None and row.table in ("exposures", "events"):
                records.add((path.stem, place))
    assert ship(folder, url, None)
    steps, killed = 1 - stride, 0
    while True:
        steps += stride
        with psycopg.connect(url, options="-c search_path=retort") as connection:
            connection.execute("TRUNCATE exposures, events, shadows, failures, segments")
        is_through = ship(folder, url, steps)
        with psycopg.connect(url, options="-c search_path=retort") as connection:
            positions = dict(connection.execute("SELECT segment, place FROM segments").fetchall())
            found = connection.execute(ALL).fetchall()
        assert len(found) == len(set(found))
        assert set(found) == {(name, place) for name, place in records if place < positions.get(name, 0)}
        if is_through:
            assert set(found) == records
            break
        killed += 1
        if killed % 5 == 0:
            assert ship(folder, url, None)
            with psycopg.connect(url, options="-c search_path=retort") as connection:
                found = connection.execute(ALL).fetchall()
            assert sorted(found) == sorted(records)
    print(killed)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
