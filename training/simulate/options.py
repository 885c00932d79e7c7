"""What options of this room may say: numbers with bounds, refused in words."""

from __future__ import annotations

import argparse
import math


def positive_number(text: str) -> float:
    """Above 0."""
    number = _number(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return number


def share(text: str) -> float:
    """From 0 to 1."""
    number = _number(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"expected a share from 0 to 1, got {text!r}")
    return number


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def whole(text: str) -> int:
    """From 0."""
    if not (text.isascii() and text.isdecimal() and len(text) <= 9):
        raise argparse.ArgumentTypeError(f"expected a whole number from 0, got {text!r}")
    return int(text)


def positive_whole(text: str) -> int:
    """From 1."""
    number = whole(text)
    if number == 0:
        raise argparse.ArgumentTypeError("expected a whole number from 1, got 0")
    return number
