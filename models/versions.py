"""The repository: which models there are, in which versions, and which version is live.

    <root>/<name>/<version>/   a bundle; versions are 1, 2, 3, ..., written once and never edited
    <root>/<name>/live         a version's number, `latest` or `none`; absent means latest. Roll-back is writing it

Anything else in there (a bundle half written, an editor's backup) is passed over. Names that come from outside
never become a path before they were checked.
"""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path
from typing import Literal, TypeAlias

from models.checksums import read_regular
from models.errors import BundleError, ModelNotFoundError
from models.manifest import NAME_PATTERN

LIVE_FILE = "live"
LATEST: Literal["latest"] = "latest"
NONE: Literal["none"] = "none"
"""In a live file: the model is not to be served."""

Wish: TypeAlias = int | Literal["latest", "none"]

_NAME = re.compile(NAME_PATTERN.removesuffix("$"))
_VERSION = re.compile(r"[1-9][0-9]{0,8}", re.ASCII)


class Repository:
    """Bundles under one root. Reads the disk each time it is asked; holds nothing."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def names(self) -> list[str]:
        """Models that have a version, sorted; none where there is no such folder."""
        if not self.root.is_dir():
            return []
        found = (entry.name for entry in self.root.iterdir() if is_model_name(entry.name) and entry.is_dir())
        return sorted(name for name in found if versions_in(self.root / name))

    def versions(self, name: str) -> list[int]:
        """The model's versions, ascending. Raises `ModelNotFoundError`."""
        versions = versions_in(self.root / name) if is_model_name(name) else []
        if not versions:
            raise ModelNotFoundError(f"no model of this name in the repository; there are: {_listed(self.names())}")
        return versions

    def live(self, name: str) -> int:
        """The version to serve: the one that `live` names, or the latest. Raises as `wish` does, and
        `ModelNotFoundError` for a model that is not to be served."""
        wish = self.wish(name)
        if wish == NONE:
            raise ModelNotFoundError(f"the live file of {name} says {NONE}: it is not served")
        return self.versions(name)[-1] if wish == LATEST else wish

    def wish(self, name: str) -> Wish:
        """What the model's live file says; `latest` where there is none.

        Raises `ModelNotFoundError` for an unknown model; `BundleError` for a live file that says neither a
        number, `latest` nor `none`, or a version that is not there.
        """
        versions = self.versions(name)
        path = self.root / name / LIVE_FILE
        if not path.exists() and not path.is_symlink():
            return LATEST
        try:
            text = read_regular(path).decode("utf-8", errors="replace").removesuffix("\n")
        except OSError as error:
            raise BundleError(path, f"cannot be read: {error.strerror}") from None
        if text == LATEST:
            return LATEST
        if text == NONE:
            return NONE
        if not _VERSION.fullmatch(text):
            raise BundleError(path, "expected a version's number, latest or none")
        if int(text) not in versions:
            raise BundleError(path, f"names version {text}, which is not there; there are: {_listed(versions)}")
        return int(text)

    def write_live(self, name: str, wish: Wish) -> None:
        """Makes the live file say so, all of it or nothing. Raises `ModelNotFoundError` for an unknown model or
        version, `OSError` where it cannot be written."""
        if isinstance(wish, int):
            self.path(name, wish)
        else:
            self.versions(name)
        path = self.root / name / LIVE_FILE
        beside = path.with_name(f".{LIVE_FILE}.{secrets.token_hex(8)}")
        try:
            with beside.open("x", encoding="ascii") as file:
                file.write(f"{wish}\n")
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)

    def path(self, name: str, version: int) -> Path:
        """The folder of one version. Raises `ModelNotFoundError`."""
        versions = self.versions(name)
        if version not in versions:
            raise ModelNotFoundError(f"model {name} has no such version; there are: {_listed(versions)}")
        return self.root / name / str(version)


def is_model_name(name: str) -> bool:
    """Whether a model may be called so, and the name be part of a path."""
    return _NAME.fullmatch(name) is not None


def is_version(name: str) -> bool:
    """Whether a folder of this name is a version: a whole number from 1, without leading zeros."""
    return _VERSION.fullmatch(name) is not None


def versions_in(folder: Path) -> list[int]:
    """Every number in a model's folder, ascending. What lies under it, reading the bundle will tell."""
    try:
        return sorted(int(entry.name) for entry in folder.iterdir() if is_version(entry.name))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _listed(items: list[str] | list[int]) -> str:
    return ", ".join(map(str, items)) or "none"
