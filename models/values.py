"""Canonical form: one value is the same whether a CSV cell, a Parquet column or a JSON body brought it.

Three questions, answered here and nowhere else:

    read_text      what a text cell of a log says, read as the JSON token would be
    check_value    whether a Python value (from JSON, or from a typed column) fits a field's type, and as what
                   (check_values: the same of a long list, whether all of it fits)
    canonical      the string under which a checked value stands in a vocabulary or is hashed

A checked value is None (missing), str, int, float or bool; nothing else. Types are strict: "7" is no integer
and `true` is no 1. Most functions here take one value; the encoder calls them for distinct values only.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

ValueType: TypeAlias = Literal["string", "integer", "float", "boolean"]
Value: TypeAlias = str | int | float | bool | None

SMALLEST_INTEGER = -(2**63)
LARGEST_INTEGER = 2**64 - 1

# `\d+(\.\d*)?` is `\d+\.?\d*` written so that a long cell that does not match costs linear time.
_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_INTEGER = re.compile(r"[+-]?\d+", re.ASCII)
_BOOLEANS = {"true": True, "false": False, "1": True, "0": False}

EXPECTED: dict[str, str] = {
    "string": "a string",
    "integer": "an integer of at most 64 bits",
    "float": "a finite number",
    "boolean": "true or false",
}
"""How an error names what a field of each type takes."""


class WrongTypeError(ValueError):
    """A value that does not fit its type. `got` says what came, never the value itself."""

    def __init__(self, got: str) -> None:
        super().__init__(got)
        self.got = got


def describe(value: object) -> str:
    """Words for the type of a JSON value: what an error may say about it without echoing it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int):
        return "an integer" if SMALLEST_INTEGER <= value <= LARGEST_INTEGER else "an integer beyond 64 bits"
    if isinstance(value, float):
        return "a number" if math.isfinite(value) else "a number that is not finite"
    if isinstance(value, str):
        return "a string"
    if isinstance(value, (list, tuple)):
        return "a list"
    if isinstance(value, dict):
        return "an object"
    return f"a Python {type(value).__name__}"


def check_value(type_: ValueType, value: object) -> Value:
    """The value as its field means it: None where missing, else a str, int, float or bool as its type says.

    None and "" are missing for every type. An integral float becomes an int for type integer; an int becomes the
    nearest float64 for type float. Raises `WrongTypeError` for anything else: another type, an integer beyond 64 bits
    (signed or unsigned), a number that is not finite, a string that is not valid Unicode (it holds a lone surrogate).
    """
    if value is None or (type(value) is str and not value):
        return None
    if type_ == "string":
        if type(value) is str:
            return _valid_unicode(value)
    elif type_ == "boolean":
        if type(value) is bool:
            return value
    elif type(value) is int:
        if SMALLEST_INTEGER <= value <= LARGEST_INTEGER:
            return value if type_ == "integer" else float(value)
    elif type(value) is float and math.isfinite(value):
        if type_ == "float":
            return value
        if not value.is_integer():
            raise WrongTypeError("a number with a fraction")
        if SMALLEST_INTEGER <= value <= LARGEST_INTEGER:
            return int(value)
        raise WrongTypeError("a number beyond 64 bits")
    raise WrongTypeError(describe(value))


def check_values(type_: ValueType, values: Sequence[object]) -> list[object]:
    """The values that are not missing, where `check_value` takes every one; for lists of any length.

    Looks at one value of each kind that could be refused, so that a list of 100,000 costs a few milliseconds.
    Raises `WrongTypeError` for one of those that do not fit, not always for the first.
    """
    kinds = set(map(type, values))
    if kinds <= {str, type(None)}:
        present: list[Any] = list(filter(None, values))
    else:
        present = [value for value in values if value is not None and value != ""]
    for kind in set(map(type, present)):
        same: list[Any] = present if len(kinds) == 1 else [value for value in present if type(value) is kind]
        if kind is str:
            suspects = ["".join(same)]  # which holds a lone surrogate where one of them does
        elif kind is int:
            suspects = [min(same), max(same)]
        elif kind is float and type_ == "integer":
            suspects = [min(same), max(same), next((value for value in same if not value.is_integer()), same[0])]
        elif kind is float:
            suspects = [next((value for value in same if not math.isfinite(value)), same[0])]
        else:
            suspects = same[:1]
        for suspect in suspects:
            check_value(type_, suspect)
    return present


def read_text(type_: ValueType, text: str | None) -> Value:
    """A text cell as a checked value of its field's type; None where the cell is empty.

    A number is ASCII `[+-]?(\\d+\\.?\\d*|\\.\\d+)([eE][+-]?\\d+)?` and nothing else: no blanks, no NaN, no
    thousands separators. Digits alone are an exact integer, anything else a float64, just as in JSON; so
    "9007199254740993" and "9007199254740993.0" differ. Booleans are true, false (in any case), 1 and 0.
    Raises `WrongTypeError` for a cell that does not read as its type.
    """
    if not text:
        return None
    if type_ == "string":
        return _valid_unicode(text)
    if type_ == "boolean":
        value = _BOOLEANS.get(text.lower()) if text.isascii() else None
        if value is None:
            raise WrongTypeError("text that is neither true, false, 1 nor 0")
        return value
    if _INTEGER.fullmatch(text):
        digits = text.lstrip("+-").lstrip("0") or "0"
        if len(digits) > 20:  # beyond 64 bits; and int() of a very long text would be slow, or refuse
            raise WrongTypeError("an integer beyond 64 bits")
        return check_value(type_, -int(digits) if text[0] == "-" else int(digits))
    if not _NUMBER.fullmatch(text):
        raise WrongTypeError("text that is no number")
    return check_value(type_, float(text))


def canonical(value: str | int | float | bool) -> str:
    """The one spelling of a checked value.

    Integers and integral floats are decimal digits (1e23 is "99999999999999991611392", -0.0 is "0"), booleans
    "1" and "0", other floats the shortest decimal that reads back as the same float64, as Python's `repr`
    writes it ("0.1", "1e-05"), strings themselves.
    """
    if type(value) is str:
        return value
    if type(value) is float and not value.is_integer():
        return repr(value)
    return str(int(value))


def _valid_unicode(text: str) -> str:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise WrongTypeError("a string holding a lone surrogate") from None
    return text
