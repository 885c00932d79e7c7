"""JSON as clients send it: what a body says, or a refusal that says what is wrong with it and where.

Every decoder has an input it takes long over or lets through: the one in use is msgspec's, another reads bodies full of
exponents, and integers beyond 64 bits are looked for in what neither refuses.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec
import orjson

from models.values import LARGEST_INTEGER, SMALLEST_INTEGER
from service.errors import Code, Refusal
from service.scoring.candidates import has_wide_integer, holds_wide_integer

LONG_BODY = 1 << 15
"""Shorter bodies cost little whatever is in them."""
MANY_EXPONENTS = 3000
_DIGITS_TO_ZERO = bytes(
    ord("0") if ord("0") <= byte <= ord("9") else ord("e") if byte in b"eE" else ord(" ") for byte in range(256)
)
_DIGITS = re.compile(rb"[0-9]+")
_NO_WIDE_INTEGER = re.compile(
    rb"(?:[^\"0-9]++"
    rb"|\"[^\"\\]*+(?:\\.[^\"\\]*+)*+\""
    rb"|[0-9]++(?:\.[0-9]++(?:[eE][+-]?+[0-9]++)?+|[eE][+-]?+[0-9]++)"
    rb"|[0-9]{1,18}+(?![0-9]))*+",
    re.DOTALL,
)
"""JSON tokens up to the next integer of 19 digits or more; without backtracking, so in linear time."""
_NO_HALF_PAIR = re.compile(rb"(?:[^\\]++|\\u[dD][89abAB]..\\u[dD][c-fC-F]..|\\(?!u[dD][89a-fA-F]).)*+", re.DOTALL)
"""Text up to the next escaped surrogate that is not part of a pair."""
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")


def have_many_exponents(body: bytes) -> bool:
    """Whether msgspec would take long over the numbers of a long body."""
    return len(body) > LONG_BODY and body.translate(_DIGITS_TO_ZERO).count(b"0e") > MANY_EXPONENTS


def _decode_exponents(body: bytes) -> Any:
    """What msgspec makes of a body, from another decoder: msgspec takes 7 us for 5e-324, which makes half a second
    of a megabyte. This one makes floats of integers beyond 64 bits, so they are looked for."""
    if has_wide_integer(body):
        place = 0
        while (place := _NO_WIDE_INTEGER.match(body, place).end()) < len(body):  # type: ignore[union-attr]
            digits = _DIGITS.match(body, place)
            if digits is None:
                break  # no JSON
            negative = body[place - 1 : place] == b"-"
            value = int(digits[0]) if len(digits[0]) <= 20 else 1 << 64
            if value > (-SMALLEST_INTEGER if negative else LARGEST_INTEGER):
                raise Refusal(Code.NUMBER_OUT_OF_RANGE, "an integer is beyond what 64 bits can hold")
            place = digits.end()
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        if "infinity" in error.msg:
            raise Refusal(Code.NUMBER_OUT_OF_RANGE, "a number is beyond what 64 bits can hold") from None
        if "depth" in error.msg:
            raise Refusal(Code.TOO_DEEP, "lists and objects are nested too deeply") from None
        raise _malformed(body, f"malformed at character {error.pos}") from None


def _malformed(body: bytes, what: str) -> Refusal:
    """The refusal of what is no JSON. Decoders have many words for half of a surrogate pair, "truncated" among them."""
    place = _NO_HALF_PAIR.match(body).end()  # type: ignore[union-attr]
    if _SURROGATE.match(body, place):
        what = "a string holds half of a surrogate pair"
    return Refusal(Code.MALFORMED_JSON, f"expected JSON: {what}")


def decode_json(body: bytes, has_many_exponents: bool | None = None) -> Any:
    """What a body says, or `Refusal`. Integers beyond 64 bits are let through: see `refuse_wide_integers`.

    `has_many_exponents` says it of all the texts of one request, where there are more than one.
    """
    if has_many_exponents is None:
        has_many_exponents = have_many_exponents(body)
    try:
        if has_many_exponents:
            return _decode_exponents(body)
        return msgspec.json.decode(body)
    except msgspec.ValidationError:
        raise Refusal(Code.NUMBER_OUT_OF_RANGE, "a number is beyond what 64 bits can hold") from None
    except UnicodeDecodeError:
        raise _malformed(body, "invalid UTF-8") from None
    except msgspec.DecodeError as error:
        what = str(error).removeprefix("JSON is malformed: ")
        raise _malformed(body, "it ends too early" if what == "Input data was truncated" else what) from None
    except RecursionError:
        raise Refusal(Code.TOO_DEEP, "lists and objects are nested too deeply") from None


def refuse_wide_integers(members: Any, body: bytes) -> None:
    """Refuses integers beyond 64 bits in members that nobody reads, where the decoder lets them pass.

    Where a field does read them, the encoder refuses them itself, so only requests with ignored members come here.
    """
    if holds_wide_integer(members, body):
        raise Refusal(Code.NUMBER_OUT_OF_RANGE, "an integer is beyond what 64 bits can hold")
