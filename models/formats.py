"""How a file of another format version is refused: one sentence, the same for schemas and bundles."""

from __future__ import annotations


def format_refusal(what: str, found: object, newest: int, oldest: int = 1) -> str | None:
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
        return (
            f"written by an older Retort ({what} format {found}; this one reads from {oldest}): "
            "bring it up to date with `python -m training migrate`"
        )
    return None
