"""What a log holds instead of a unit where it is kept under a keyed hash (service/journal/units.py)."""

from __future__ import annotations

HEX_DIGITS = 32


def looks_hashed(unit: str) -> bool:
    """Whether a log says such a thing instead of a unit. A unit may look so by itself, one of many hardly does."""
    return len(unit) == HEX_DIGITS and set(unit) <= set("0123456789abcdef")
