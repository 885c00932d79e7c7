"""The admin token: read once, from a file or a variable, and refused where it would be easy to guess."""

from __future__ import annotations

import re
from pathlib import Path

from service.errors import ConfigError
from service.settings import Settings

MIN_TOKEN_BYTES = 32

_TOKEN = re.compile(r"[\x21-\x7e]+")


def read_token(settings: Settings) -> str | None:
    """The admin token, or None where none is set. Raises `ConfigError` for one that would not do."""
    path = settings.admin_token_file
    if path is not None and settings.admin_token is not None:
        raise ConfigError("--admin-token-file and RETORT_ADMIN_TOKEN: expected one of the two")
    if path is not None:
        return _checked(_read(path), f"--admin-token-file (RETORT_ADMIN_TOKEN_FILE): {path}")
    if settings.admin_token is not None:
        return _checked(settings.admin_token.get_secret_value(), "RETORT_ADMIN_TOKEN")
    return None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").removesuffix("\n").removesuffix("\r")
    except OSError as error:
        raise ConfigError(f"--admin-token-file (RETORT_ADMIN_TOKEN_FILE): {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        return ""


def _checked(token: str, source: str) -> str:
    if len(token) < MIN_TOKEN_BYTES or not _TOKEN.fullmatch(token):
        raise ConfigError(
            f"{source}: expected a token of at least {MIN_TOKEN_BYTES} printable ASCII characters without blanks; "
            "`openssl rand -hex 32` makes one"
        )
    return token
