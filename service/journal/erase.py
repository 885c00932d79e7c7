"""`python -m service erase-unit`: takes one unit out of a log: its exposures, and the events of its requests.

A segment that holds any is written anew beside itself and renamed into its own place. It keeps its length: what was
erased, and what could not be read, is NUL bytes then, so whoever follows the log (service/journal/sinks/) loses
neither his place nor a count. Segments that are being written to belong to their writers: what is in those is counted,
and gone when this is done again after they are sealed.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from models.journal.frames import FILE_MAGIC, Skipped, erased, frame, frames
from models.journal.reading import SEALED, read_payloads, segment_paths
from models.journal.units import looks_hashed
from service.errors import AnswersError, ConfigError
from service.journal.records import Event, Failure, Shadow
from service.journal.segments import adopt, erasing_lock, retention_lock
from service.journal.sinks.compact import compacted_to
from service.journal.sinks.parquet import erase_unit as erase_from_parts
from service.journal.sinks.parquet import is_compacted
from service.journal.sinks.ship import TargetError, is_database
from service.journal.units import read_unit_key, unit_hasher

TEACHING = """
examples:
  python -m service erase-unit --log log --unit user-831
  python -m service erase-unit --log log --unit user-831 --log-unit-key-file unit.key
  python -m service erase-unit --log log log-parquet postgresql://… --unit user-831      and where the log went

exit codes  0 nothing is left of it, 1 some is in segments that are being written to: do it again after
            --log-segment-seconds, or after a restart; or in a folder that was not named, 2 wrong option or folder,
            or the log holds hashed units and no key was named
"""


class _Exposure(msgspec.Struct, tag_field="kind", tag="exposure"):
    request_id: str
    unit: str


_Record = _Exposure | Failure | Event | Shadow
_decoder: msgspec.json.Decoder[_Record] = msgspec.json.Decoder(_Record)


def _read(payload: bytes) -> _Record | None:
    try:
        return _decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def erase_unit(folder: Path, unit: str) -> tuple[int, int]:
    """(how many records were erased, how many are left in segments that are being written to).

    `unit` is what the log says, so a hash where it holds hashes. `OSError` where the folder cannot be read or written.
    """
    with erasing_lock(folder, fcntl.LOCK_EX), retention_lock(folder, fcntl.LOCK_EX):
        adopt(folder)
        requests = set()
        for payload in read_payloads(folder, Skipped()):
            record = _read(payload)
            if isinstance(record, _Exposure) and record.unit == unit:
                requests.add(record.request_id)

        def is_theirs(payload: bytes) -> bool:
            record = _read(payload)
            if isinstance(record, (_Exposure, Failure)):
                return record.unit == unit
            return record is not None and record.request_id in requests

        gone = left = 0
        for path in segment_paths(folder):
            if not path.exists():  # sealed since
                path = path.with_suffix(SEALED)
            data = path.read_bytes()
            found = {place: is_theirs(payload) for place, payload in frames(data, Skipped())}
            number = sum(found.values())
            if path.suffix != SEALED:
                left += number
            elif number:
                _replace(path, _without(data, found))
                gone += number
    return gone, left


def holds_hashes(folder: Path) -> bool:
    """Whether the first exposure of a log's segments has a unit that looks hashed; of a folder without any, no."""
    for payload in read_payloads(folder, Skipped()):
        record = _read(payload)
        if isinstance(record, _Exposure):
            return looks_hashed(record.unit)
    return False


def _without(data: bytes, found: Mapping[int, bool]) -> bytes:
    """The bytes of a segment with only those frames readable of which `found` says, by their place, that they stay."""
    kept = bytearray(len(data))
    if data.startswith(FILE_MAGIC):
        kept[: len(FILE_MAGIC)] = FILE_MAGIC
    for place, payload in frames(data, Skipped()):
        whole = frame(erased(len(payload)) if found[place] else payload)
        kept[place : place + len(whole)] = whole
    return bytes(kept)


def _replace(path: Path, data: bytes) -> None:
    facts = path.stat()
    temporary = path.with_suffix(".new")
    with temporary.open("wb") as file:
        os.fchmod(file.fileno(), facts.st_mode & 0o777)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.utime(temporary, ns=(facts.st_atime_ns, facts.st_mtime_ns))  # it is as old as it was: retention goes by that
    temporary.replace(path)


def main(arguments: Sequence[str]) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m service erase-unit",
        description="Takes one unit out of the exposure log: its exposures, and the events of its requests.",
        epilog=TEACHING,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--log",
        required=True,
        nargs="+",
        metavar="FOLDER",
        help="of the service's log; and where it went: folders it was compacted to, postgresql://…",
    )
    parser.add_argument("--unit", required=True, metavar="TEXT", help="the unit as requests send it")
    parser.add_argument("--log-unit-key-file", type=Path, metavar="PATH", help="where the log holds hashed units")
    options = parser.parse_args(arguments)
    try:
        unit = options.unit
        if options.log_unit_key_file is not None:
            unit = unit_hasher(read_unit_key(options.log_unit_key_file))(unit)
        gone = left = 0
        folders = [Path(log) for log in options.log if not is_database(log)]
        for folder in folders:
            if not folder.is_dir():
                raise AnswersError(f"--log: no folder {folder}")
        copies: list[Path] = []
        # Segments first: what is being made of them is finished before they change, and is there to be erased then.
        for folder in sorted(folders, key=is_compacted):
            if is_compacted(folder):
                gone += erase_from_parts(folder, unit)
                continue
            erased_here, left_here = erase_unit(folder, unit)
            gone, left = gone + erased_here, left + left_here
            copies += compacted_to(folder)
        for log in filter(is_database, options.log):
            from service.journal.sinks.postgres import erase_unit as erase_from_database

            gone += erase_from_database(log, unit)
    except (AnswersError, ConfigError, TargetError) as error:
        print(f"retort: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"retort: --log {error.filename or folder}: {error.strerror or error}", file=sys.stderr)
        return 2
    if not gone and not left and options.log_unit_key_file is None and any(map(holds_hashes, folders)):
        print(
            "retort: nothing was found, and the units of this log look hashed: name the key, --log-unit-key-file",
            file=sys.stderr,
        )
        return 2
    forgotten = [copy for copy in copies if copy not in {folder.resolve() for folder in folders}]
    for copy in forgotten:
        print(f"retort: it was compacted to {copy} too: name that folder as well", file=sys.stderr)
    print(f"{gone} records erased, {left} left in segments that are being written to")
    return 1 if left or forgotten else 0
