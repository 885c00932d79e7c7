"""`python -m service ship`: hands a journal on to PostgreSQL or Kafka while it is written. Never in a worker.

Reads the segments, writes what is new, and remembers how far it is where the records are (PostgreSQL: in the same
transaction, so every record is there once) or beside the segments (Kafka: after every delivery was reported, so every
record is there at least once). What the other side cannot take waits in the segments; retention does not wait, and what
it removes unread is counted and said.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from service.errors import ConfigError
from service.journal.sinks.follow import Batch, Follower, Known
from service.journal.sinks.lag import Standing, is_sink_name, lag_seconds, read_standing, standing_path, write_standing
from service.journal.sinks.tables import read_source
from service.logs import configure_logging

logger = logging.getLogger("service.ship")

TEACHING = """
examples:
  python -m service ship log --to postgresql://retort@db.example/clicks
  python -m service ship log --to kafka://broker-1:9092,broker-2:9092/exposure-log --kafka-options librdkafka.conf
  RETORT_SHIP_TO=postgresql://... python -m service ship log --once           from cron, and without a password in `ps`

One process a folder and target, beside the service or where the folder is mounted for writing (it takes turns with
erase-unit by a lock there). Killed, or with the other side away, it goes on where it was. What is told: a line every
--status-seconds with what was shipped, how many bytes are not yet, and by how many seconds it is behind; and to the
service, which shows the last two as metrics (retort_ship_unread_bytes, retort_ship_lag_seconds).

exit codes  0 stopped as asked, or --once is done; 1 --once could not be done, or segments were removed unread;
            2 wrong option or folder, a schema of another version, or another follower ships this
"""
LONGEST_WAIT_SECONDS = 30.0


class TargetError(Exception):
    """The other side cannot take records now; it may be able to later."""


class Target(Protocol):
    """Where records go. Everything raises `TargetError`, after which `open` is called again."""

    name: str
    """For people: without secrets."""

    def open(self, source: str) -> None:
        """Connects; raises `ConfigError` for what will not get better."""

    def remember(self, segments: Collection[str]) -> Known:
        """How far this journal was shipped."""

    def write(self, batch: Batch) -> int:
        """The records and the position, durable when it returns; how many could not be taken, ever."""

    def close(self) -> None:
        """Whatever the state."""


class Shipper:
    """One folder to one target, until told to stop."""

    def __init__(self, folder: Path, target: Target, *, sink: str, poll_seconds: float, status_seconds: float) -> None:
        """`sink`: what metrics call the target."""
        self.stopping = threading.Event()
        self.records = 0
        self.bytes = 0
        self.refused = 0
        self.lost_bytes = 0
        self.lost_segments = 0
        self._folder = folder
        self._target = target
        self._poll_seconds = poll_seconds
        self._status_seconds = status_seconds
        self._follower: Follower | None = None
        self._next_status = 0.0
        self._told = 0, 0
        self._standing = standing_path(folder, sink)
        self._before = read_standing(self._standing) or Standing(shipped_until=time.time())
        """What those before this one have left. The clock may have been put back since."""
        self._shipped_until, self._unread = self._before.shipped_until, self._before.unread_bytes
        self._last_look: float | None = None
        self._next_standing = 0.0
        self._has_said_why = False

    def run(self, *, once: bool) -> bool:
        """Ships until `stopping` is set, or, `once`, until nothing is left: whether everything was. Raises
        `ConfigError`; `OSError` where the folder cannot be read."""
        source = read_source(self._folder)
        wait = self._poll_seconds
        looks = 0
        while not self.stopping.is_set():
            try:
                if self._follower is None:
                    self._target.open(source)
                    self._follower = Follower(self._folder, self._target.remember)
                    looks = 0
                    self._last_look = None
                    logger.info("ships %s (%s) to %s", self._folder, source, self._target.name)
                found = self._ship(self._follower)
                looks += 1
                wait = self._poll_seconds
            except TargetError as error:
                logger.warning("%s cannot take records: %s; trying again in %.0f s", self._target.name, error, wait)
                self._target.close()
                self._follower = None
                self._write_standing()
                self._tell_status()
                if once:
                    return False
                self.stopping.wait(wait)
                wait = min(2 * max(wait, 1.0), LONGEST_WAIT_SECONDS)
                continue
            self._tell_status()
            if once and not found and looks > 1:  # the first look sees what is open, the second reads it
                return True
            self.stopping.wait(min(self._poll_seconds, 0.1) if once else self._poll_seconds)
        return True

    def close(self) -> None:
        """Tells the last of it, and lets the target go."""
        self._next_status = 0.0
        self._tell_status()
        self._target.close()

    def _ship(self, follower: Follower) -> int:
        """What one look found: the number of batches."""
        found = 0
        began = time.time()
        with contextlib.closing(follower.look()) as batches:
            for batch in batches:
                found += 1
                refused = self._target.write(batch)
                self.refused += refused
                self.records += len(batch.records) - refused
                self.bytes += sum(len(payload) for _, payload in batch.records)
                if refused:
                    logger.error("%d records of segment %s are not known here or too large", refused, batch.segment)
                if batch.position.is_done and not batch.records and batch.lost_bytes:
                    self.lost_segments += 1
                    self.lost_bytes += batch.lost_bytes
                    logger.error(
                        "segment %s was removed before it was shipped: %d bytes are lost to %s; give retention more "
                        "room, or see why the other side is slow",
                        *(batch.segment, batch.lost_bytes, self._target.name),
                    )
                self._tell_status()
                self._write_standing()
                if self.stopping.is_set():
                    break
            else:
                # Of a segment that is written to, what came since the look before is left for the next one.
                until = began if follower.unread_bytes == 0 else self._last_look
                self._shipped_until = self._shipped_until if until is None else until
                self._last_look = began
                self._write_standing(at_once=True)
                return found
        return found

    def _write_standing(self, *, at_once: bool = False) -> None:
        """Says how far it is, for the service's metrics: at once, or where that was not said for a second."""
        if not at_once and time.monotonic() < self._next_standing:
            return
        self._next_standing = time.monotonic() + 1.0
        try:
            write_standing(self._standing, self._stands())
            self._has_said_why = False
        except OSError as error:  # shipping goes on, and the metrics say that nobody knows of it
            if not self._has_said_why:
                logger.warning("how far it is cannot be written to %s: %s", self._standing, error.strerror or error)
            self._has_said_why = True

    def _stands(self) -> Standing:
        """What the metrics and the status line both say. While the other side is away, what is unread is what was when
        one last looked."""
        if self._follower is not None:
            self._unread = self._follower.unread_bytes
        self._shipped_until = min(self._shipped_until, time.time())  # or a clock put back would hide every lag
        return Standing(self._shipped_until, self._unread, self._before.lost_bytes + self.lost_bytes)

    def _tell_status(self) -> None:
        now = time.monotonic()
        if now < self._next_status:
            return
        self._next_status = now + self._status_seconds
        stands = self._stands()
        records, size = self.records - self._told[0], self.bytes - self._told[1]
        self._told = self.records, self.bytes
        logger.info(
            "shipped %d records (%d bytes); %d bytes are unread, %.1f s behind; in all %d records, %d refused, "
            "%d segments (%d bytes) lost",
            *(records, size, stands.unread_bytes, lag_seconds(stands, time.time()), self.records, self.refused),
            *(self.lost_segments, self.lost_bytes),
        )


@contextlib.contextmanager
def alone(folder: Path, target: str, sink: str) -> Iterator[None]:
    """Raises `ConfigError` where another process ships the folder to that target, or calls its own so."""
    with contextlib.ExitStack() as stack:
        for name, what in (
            (target_id(target), "another follower ships it there"),
            (sink, f"another follower of it is called {sink}: --name tells the two apart"),
        ):
            path = folder / f"ship-{name}.lock"
            lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o640)
            stack.callback(os.close, lock)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(f"{folder}: {what} ({path.name} is locked)") from None
        yield


def target_id(target: str) -> str:
    """Of one target one short name, that says nothing of it."""
    return hashlib.sha256(target.encode()).hexdigest()[:12]


def is_database(url: str) -> bool:
    """Whether it names one of PostgreSQL."""
    return url.partition("://")[0] in ("postgresql", "postgres")


def make_target(url: str, folder: Path, options: Path | None) -> Target:
    """What a URL names. Raises `ConfigError`, also where the extra is not installed."""
    if is_database(url):
        from service.journal.sinks.postgres import PostgresTarget

        if options is not None:
            raise ConfigError("--kafka-options: expected with kafka:// alone")
        return PostgresTarget(url)
    if url.startswith("kafka://"):
        from service.journal.sinks.kafka import KafkaTarget

        return KafkaTarget(url, folder / f"ship-{target_id(url)}.json", options)
    raise ConfigError("--to (RETORT_SHIP_TO): expected postgresql://… or kafka://…")


def main(arguments: Sequence[str]) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m service ship",
        description="Hands the exposure log on to PostgreSQL or Kafka while it is written.",
        epilog=TEACHING,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="of the service's log")
    parser.add_argument(
        "--to", default=os.environ.get("RETORT_SHIP_TO"), metavar="URL", help="postgresql://… or kafka://…/topic"
    )
    parser.add_argument(
        "--kafka-options", type=Path, metavar="PATH", help="options of librdkafka, name=value a line: security, say"
    )
    parser.add_argument("--name", metavar="NAME", help="what metrics call the target [postgresql, or kafka]")
    parser.add_argument("--once", action="store_true", help="stop when nothing is left; exit code 1 if that cannot be")
    parser.add_argument("--poll-seconds", type=float, default=1.0, metavar="X", help="between two looks [1]")
    parser.add_argument("--status-seconds", type=float, default=10.0, metavar="X", help="between two lines [10]")
    parser.add_argument("--log-format", choices=("text", "json"), default="text", help="[text]")
    options = parser.parse_args(arguments)
    configure_logging("info", options.log_format)
    try:
        if not options.to:
            raise ConfigError("--to (RETORT_SHIP_TO): expected postgresql://… or kafka://…")
        if not options.folder.is_dir():
            raise ConfigError(f"no folder {options.folder}")
        for name in ("poll_seconds", "status_seconds"):
            if not 0 < getattr(options, name) <= 3600:
                raise ConfigError(f"--{name.replace('_', '-')}: expected a number above 0, at most 3600")
        sink = options.name or ("postgresql" if is_database(options.to) else "kafka")
        if not is_sink_name(sink):
            raise ConfigError("--name: expected at most 64 lower-case letters, digits, `.`, `_` and `-`")
        with alone(options.folder, options.to, sink):
            shipper = Shipper(
                options.folder,
                make_target(options.to, options.folder, options.kafka_options),
                sink=sink,
                poll_seconds=options.poll_seconds,
                status_seconds=options.status_seconds,
            )
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: shipper.stopping.set())
            with contextlib.closing(shipper):
                is_whole = shipper.run(once=options.once)
    except ConfigError as error:
        print(f"retort: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"retort: {error.filename or options.folder}: {error.strerror or error}", file=sys.stderr)
        return 2
    return 0 if is_whole and not (options.once and shipper.lost_segments) else 1
