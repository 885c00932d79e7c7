"""SHA256SUMS: every other file of a bundle with its sha256, in the format of `sha256sum`.

One line a file: 64 lower-case hexadecimal digits, two spaces, the path with `/`, a newline; sorted by path. The
file has to be exactly what `render` makes of its contents, so that no bit of it can differ unnoticed, and its
paths are relative and plain, so that none leads outside.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path

from models.errors import BundleError

SUMS_FILE = "SHA256SUMS"

_PART = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
_LINE = re.compile(rf"([0-9a-f]{{64}})  ({_PART}(?:/{_PART})*)")


def render(sums: Mapping[str, str]) -> bytes:
    """The text of SHA256SUMS for {path: sha256}."""
    return "".join(f"{sums[path]}  {path}\n" for path in sorted(sums)).encode("ascii")


def parse(data: bytes, source: Path) -> dict[str, str]:
    """{path: sha256} of the text of SHA256SUMS; raises `BundleError` for anything `render` would not write."""
    sums: dict[str, str] = {}
    text = data.decode("ascii", errors="replace")
    for number, line in enumerate(text.removesuffix("\n").split("\n"), 1):
        match = _LINE.fullmatch(line)
        if not match:
            raise BundleError(source, f"line {number}: expected 64 hexadecimal digits, two spaces and a plain path")
        sums[match[2]] = match[1]
    if render(sums) != data:
        raise BundleError(source, "expected each path once, sorted, each line ended by a newline")
    if SUMS_FILE in sums:
        raise BundleError(source, "lists itself")
    return sums


def hash_file(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_below(folder: Path) -> set[str]:
    """Paths, with `/`, of every file below a folder; `BundleError` for what is neither file nor folder."""
    found: set[str] = set()
    pending = [""]
    while pending:
        prefix = pending.pop()
        with os.scandir(folder / prefix) as entries:
            for entry in entries:
                path = prefix + entry.name
                mode = entry.stat(follow_symlinks=False).st_mode
                if stat.S_ISLNK(mode):
                    raise BundleError(folder / path, "is a symbolic link, which a bundle never holds")
                if stat.S_ISDIR(mode):
                    pending.append(path + "/")
                elif stat.S_ISREG(mode):
                    found.add(path)
                else:
                    raise BundleError(folder / path, "is no regular file")
    return found


def read_regular(path: Path) -> bytes:
    """The bytes of a file that is one; `BundleError` where it is absent, a link or a folder."""
    try:
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            raise BundleError(path, "is a symbolic link, which a bundle never holds")
        if not stat.S_ISREG(mode):
            raise BundleError(path, "is a folder" if stat.S_ISDIR(mode) else "is no regular file")
        return path.read_bytes()
    except FileNotFoundError:
        raise BundleError(path, "is missing") from None


def check(folder: Path, sums: Mapping[str, str]) -> None:
    """Every file listed is there and unchanged, and there is no other; else `BundleError` naming the file."""
    found = files_below(folder) - {SUMS_FILE}
    for path in sorted(found - sums.keys()):
        raise BundleError(folder / path, f"is not listed in {SUMS_FILE}")
    for path in sorted(sums.keys() - found):
        is_folder = (folder / path).is_dir()
        raise BundleError(folder / path, "is a folder" if is_folder else f"is missing, but {SUMS_FILE} lists it")
    for path, expected in sums.items():
        if hash_file(folder / path) != expected:
            raise BundleError(folder / path, f"is damaged: its sha256 is not the one in {SUMS_FILE}")
