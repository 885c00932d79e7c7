"""What a log is, in 64 hex digits: sha256 over the contents of its files, remembered while they do not change."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from training.errors import DataError
from training.pipeline.stages import Report

_BLOCK = 1 << 22


def fingerprint(files: Sequence[Path], cache: Path | None = None, progress: Report | None = None) -> str:
    """A hash that changes when the contents, number or order of the files do; names and folders do not matter.

    `cache` is a JSON file (made when absent) that keeps each file's hash by path, size and time of change,
    so that a large log is read for this once.
    """
    known = _read_cache(cache)
    digest = hashlib.sha256()
    total = sum(_size(f) for f in files)
    done = 0
    for file in files:
        facts = _facts(file)
        key = str(file.absolute())
        entry = known.get(key)
        if entry is None or entry[:2] != facts:
            own = hashlib.sha256()
            with file.open("rb") as stream:
                while block := stream.read(_BLOCK):
                    own.update(block)
                    done += len(block)
                    if progress is not None:
                        progress(done, total, f"hashing {file.name}")
            entry = [*facts, own.hexdigest()]
            known[key] = entry
        else:
            done += int(facts[0])
        digest.update(bytes.fromhex(str(entry[2])))
    if cache is not None:
        _write_cache(cache, known)
    return digest.hexdigest()


def facts_of(files: Sequence[Path]) -> list[list[int]]:
    """Size and time of change of each file, to notice one that changes while it is read."""
    return [_facts(file) for file in files]


def _facts(file: Path) -> list[int]:
    try:
        stat = file.stat()
    except OSError as error:
        raise DataError(f"{file}: cannot be opened: {error.strerror or error}") from None
    return [stat.st_size, stat.st_mtime_ns]


def _size(file: Path) -> int:
    return _facts(file)[0]


def _read_cache(cache: Path | None) -> dict[str, list[int | str]]:
    """The cache's entries; an absent or damaged cache is an empty one, because it can be made again."""
    if cache is None or not cache.exists():
        return {}
    try:
        entries = json.loads(cache.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(entries, dict):
        return {}
    return {k: v for k, v in entries.items() if isinstance(v, list) and len(v) == 3}


def _write_cache(cache: Path, entries: dict[str, list[int | str]]) -> None:
    cache.parent.mkdir(parents=True, exist_ok=True)
    temporary = cache.with_name(f".{cache.name}.{os.getpid()}")
    temporary.write_text(json.dumps(entries, indent=1), encoding="utf-8")
    temporary.replace(cache)
