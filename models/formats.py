"""How a file of another format version is refused: one sentence, the same for schemas and bundles."""

from __future__ import annotations

from typing import Literal

_WHEN_OLDER = {
    "schema": "write it anew as docs/schema.md says, or have one proposed by `python -m training infer-schema FILE`",
    "bundle": (
        "train it again by `python -m training run RECIPE`, its recipe is in manifest.json; "
        "until then serve it with the Retort that wrote it"
    ),
}


def format_refusal(what: Literal["schema", "bundle"], found: object, newest: int, oldest: int = 1) -> str | None:
    """Why a file of format `found` cannot be read by code that reads `oldest` to `newest`; None where it can.

    >>> format_refusal("bundle", 3, newest=2)
    'written by a newer Retort (bundle format 3; this one reads up to 2): upgrade this installation'
    """
    if type(found) is not int or found < 1:
        return f"expected a {what} format version, a whole number from 1"
    if found > newest:
        return (
            f"written by a newer Retort ({what} format {found}; this one reads up to {newest}): "
            "upgrade this installation"
        )
    if found < oldest:
        return f"written by an older Retort ({what} format {found}; this one reads from {oldest}): {_WHEN_OLDER[what]}"
    return None
