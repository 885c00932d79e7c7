"""`python -m service erase-unit`: takes one unit out of a log: its exposures, and the events of its requests.

A segment that holds any is written anew beside itself and renamed into its own place; what could not be read of it is
left behind too. Segments that are being written to belong to their writers: what is in those is counted, and gone when
this is done again after they are sealed.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from models.journal.frames import FILE_MAGIC, Skipped, frame, payloads
from models.journal.reading import SEALED, read_payloads, segment_paths
from service.errors import AnswersError, ConfigError
from service.journal.records import Event, Failure, Shadow
from service.journal.segments import adopt, retention_lock
from service.journal.units import read_unit_key, unit_hasher

TEACHING = """
examples:
  python -m service erase-unit --log log --unit user-831
  python -m service erase-unit --log log --unit user-831 --log-unit-key-file unit.key

exit codes  0 nothing is left of it, 1 some is in segments that are being written to: do it again after
            --log-segment-seconds, or after a restart, 2 wrong option or folder
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
    with retention_lock(folder, fcntl.LOCK_EX):
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

        erased = left = 0
        for path in segment_paths(folder):
            if not path.exists():  # sealed since
                path = path.with_suffix(SEALED)
            found = list(payloads(path.read_bytes(), Skipped()))
            kept = [payload for payload in found if not is_theirs(payload)]
            if path.suffix != SEALED:
                left += len(found) - len(kept)
            elif len(kept) < len(found):
                _replace(path, kept)
                erased += len(found) - len(kept)
    return erased, left


def _replace(path: Path, kept: Sequence[bytes]) -> None:
    facts = path.stat()
    temporary = path.with_suffix(".new")
    with temporary.open("wb") as file:
        os.fchmod(file.fileno(), facts.st_mode & 0o777)
        file.write(FILE_MAGIC)
        file.writelines(map(frame, kept))
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
    parser.add_argument("--log", type=Path, required=True, metavar="FOLDER", help="of the service's log")
    parser.add_argument("--unit", required=True, metavar="TEXT", help="the unit as requests send it")
    parser.add_argument("--log-unit-key-file", type=Path, metavar="PATH", help="where the log holds hashed units")
    options = parser.parse_args(arguments)
    try:
        unit = options.unit
        if options.log_unit_key_file is not None:
            unit = unit_hasher(read_unit_key(options.log_unit_key_file))(unit)
        if not options.log.is_dir():
            raise AnswersError(f"--log: no folder {options.log}")
        erased, left = erase_unit(options.log, unit)
    except (AnswersError, ConfigError) as error:
        print(f"retort: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"retort: --log {options.log}: {error.strerror or error}", file=sys.stderr)
        return 2
    print(f"{erased} records erased, {left} left in segments that are being written to")
    return 1 if left else 0
