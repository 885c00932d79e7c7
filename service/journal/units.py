"""Units under a keyed hash: the log then holds no user's id, and yet says which requests were one user's.

    hex(HMAC-SHA256(key, unit in UTF-8))[:32]

The key stays with whoever may link the log to users: the same on every machine, or their units differ.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from pathlib import Path

from models.journal.units import HEX_DIGITS
from service.errors import ConfigError

MIN_KEY_BYTES = 16


def read_unit_key(path: Path) -> bytes:
    """The key in a file, without a line break at its end. Raises `ConfigError` for one that is easily guessed."""
    try:
        key = path.read_bytes().rstrip(b"\r\n")
    except OSError as error:
        raise ConfigError(f"--log-unit-key-file (RETORT_LOG_UNIT_KEY_FILE): {path}: {error.strerror}") from None
    if len(key) < MIN_KEY_BYTES:
        raise ConfigError(
            f"--log-unit-key-file (RETORT_LOG_UNIT_KEY_FILE): {path}: expected at least {MIN_KEY_BYTES} bytes; "
            "`openssl rand -hex 32` makes them"
        )
    return key


def unit_hasher(key: bytes) -> Callable[[str], str]:
    """Unit -> what the log says instead."""

    def hashed(unit: str) -> str:
        return hmac.digest(key, unit.encode(), "sha256").hex()[:HEX_DIGITS]

    return hashed
