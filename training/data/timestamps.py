"""When a row happened: epoch numbers, ISO 8601 or a pattern -> microseconds since the epoch, and what
derives from them.

A time without a zone is one of the schema's timezone. Where clocks are put back an hour happens twice; the
first is meant. Times outside the years 1900 to 2199 are bad: that is what milliseconds read as seconds look
like, and the year 1 that some languages write for "no time".
"""

import zoneinfo
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from training.data.faults import shown
from training.errors import DataError

Micros = npt.NDArray[np.int64]

EPOCH_UNITS = {"s": 1_000_000, "ms": 1_000, "us": 1}
"""Microseconds in one unit of an epoch timestamp."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_FIRST = (datetime(1900, 1, 1, tzinfo=UTC) - _EPOCH) // _MICROSECOND
_LAST = (datetime(2200, 1, 1, tzinfo=UTC) - _EPOCH) // _MICROSECOND - 1
_QUARTER = 15 * 60 * 1_000_000
_DAY = 24 * 3600 * 1_000_000


def zone_of(name: str) -> zoneinfo.ZoneInfo:
    """The timezone by its IANA name; `DataError` when the machine does not know it."""
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        raise DataError(
            f"timezone {name!r} is not known here; expected an IANA name like Europe/Berlin "
            "(where the system has no time zones at all: pip install tzdata)"
        ) from None


def parse_times(
    column: pa.Array, form: str, unit: str, zone: zoneinfo.ZoneInfo
) -> tuple[Micros, npt.NDArray[np.bool_]]:
    """A column of times -> (microseconds since the epoch [n], whether each could be read [n]).

    `form` is "epoch", "iso8601" or a strptime pattern; `unit` is s, ms or us and matters to epoch only. A
    Parquet timestamp or date says itself what it is and takes neither. Unreadable times are 0 and False.
    """
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = column.type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return _from_arrow_time(column, zone)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        if form != "epoch":
            raise DataError(
                f"timestamp: the schema says {form!r}, and the column holds numbers ({kind}); expected text"
            )
        return _from_numbers(column, unit)
    if pa.types.is_null(kind):
        return np.zeros(len(column), np.int64), np.zeros(len(column), np.bool_)
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise DataError(f"timestamp: expected text, numbers or timestamps, got a column of {kind}")
    if form == "epoch":
        return _from_numbers(column, unit)
    return _by_distinct_value(column, _iso_parser(zone) if form == "iso8601" else _pattern_parser(form, zone))


def expected_time(form: str, unit: str) -> str:
    """How a message names what a timestamp should have been."""
    if form == "epoch":
        return {"s": "seconds", "ms": "milliseconds", "us": "microseconds"}[unit] + " since 1970"
    return "an ISO 8601 time" if form == "iso8601" else f"a time written {shown(form)}"


def _from_arrow_time(column: pa.Array, zone: zoneinfo.ZoneInfo) -> tuple[Micros, npt.NDArray[np.bool_]]:
    has_zone = pa.types.is_timestamp(column.type) and column.type.tz is not None
    good = ~column.is_null().to_numpy(zero_copy_only=False)
    naive = column.cast(pa.timestamp("us", tz=column.type.tz if has_zone else None), safe=False)
    micros = naive.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
    if not has_zone:
        micros = _local_to_epoch(micros, zone)
    return _checked(micros, good)


def _from_numbers(column: pa.Array, unit: str) -> tuple[Micros, npt.NDArray[np.bool_]]:
    """Epoch numbers or their text. Whole numbers are exact; fractions are rounded to a microsecond."""
    scale = EPOCH_UNITS[unit]
    if pa.types.is_floating(column.type):
        return _from_floats(column.cast(pa.float64()).fill_null(np.nan).to_numpy(zero_copy_only=False), scale)
    if pa.types.is_integer(column.type):
        whole = column
    else:
        if not pc.all(pc.match_substring_regex(column, r"^-?[0-9]{1,18}$"), min_count=0).as_py():
            return _by_distinct_value(column, lambda text: _epoch_text(text, scale))
        whole = pc.cast(column, pa.int64())
    good = ~whole.is_null().to_numpy(zero_copy_only=False)
    numbers = whole.fill_null(0).to_numpy(zero_copy_only=False)
    limit = _LAST // scale + 1
    good &= (numbers <= limit) & (numbers >= -limit if numbers.dtype.kind == "i" else True)
    return _checked(np.where(good, numbers, 0).astype(np.int64) * scale, good)


def _from_floats(numbers: npt.NDArray[np.float64], scale: int) -> tuple[Micros, npt.NDArray[np.bool_]]:
    good = np.abs(np.nan_to_num(numbers, nan=np.inf)) <= _LAST / scale + 1
    return _checked(np.rint(np.where(good, numbers, 0.0) * scale).astype(np.int64), good)


def _epoch_text(text: str, scale: int) -> int | None:
    try:
        if text.isascii() and text.lstrip("+-").isdigit():
            return int(text) * scale if len(text) < 24 else None
        if text.isascii() and all(c.isdigit() or c in "+-.eE" for c in text):
            return round(float(text) * scale)
    except (ValueError, OverflowError):
        pass
    return None


def _iso_parser(zone: zoneinfo.ZoneInfo) -> Callable[[str], int | None]:
    def parse(text: str) -> int | None:
        try:
            return _to_micros(datetime.fromisoformat(text), zone)
        except (ValueError, OverflowError):
            return None

    return parse


def _pattern_parser(pattern: str, zone: zoneinfo.ZoneInfo) -> Callable[[str], int | None]:
    def parse(text: str) -> int | None:
        try:
            return _to_micros(datetime.strptime(text, pattern), zone)
        except (ValueError, OverflowError):
            return None

    return parse


def _to_micros(when: datetime, zone: zoneinfo.ZoneInfo) -> int:
    if when.tzinfo is None:
        when = when.replace(tzinfo=zone)
    return (when - _EPOCH) // _MICROSECOND


def _by_distinct_value(column: pa.Array, parse: Callable[[str], int | None]) -> tuple[Micros, npt.NDArray[np.bool_]]:
    coded = column.cast(pa.string()).fill_null("").dictionary_encode()
    parsed = [parse(text) for text in coded.dictionary.to_pylist()]
    fits = np.array([p is not None and _FIRST <= p <= _LAST for p in parsed], dtype=np.bool_)
    values = np.array([p if f else 0 for p, f in zip(parsed, fits, strict=True)], dtype=np.int64)
    codes = coded.indices.to_numpy()
    return values[codes], fits[codes]


def _checked(micros: Micros, good: npt.NDArray[np.bool_]) -> tuple[Micros, npt.NDArray[np.bool_]]:
    good = good & (micros >= _FIRST) & (micros <= _LAST)
    return np.where(good, micros, 0), good


def local_micros(micros: Micros, zone: zoneinfo.ZoneInfo) -> Micros:
    """The wall clock of each moment, as microseconds since 1970-01-01 00:00 of the same clock [n].

    One look into the zone's tables a quarter of an hour: every change of clocks since 1900 falls on such a
    boundary of UTC but for a few of zones' first years.
    """
    if zone.key == "UTC" or not len(micros):
        return micros
    quarters, where = np.unique(micros // _QUARTER, return_inverse=True)
    offsets = [
        (_EPOCH + timedelta(microseconds=int(q) * _QUARTER)).astimezone(zone).utcoffset() or timedelta()
        for q in quarters
    ]
    return micros + np.array([o // _MICROSECOND for o in offsets], dtype=np.int64)[where]


def _local_to_epoch(local: Micros, zone: zoneinfo.ZoneInfo) -> Micros:
    if zone.key == "UTC" or not len(local):
        return local
    quarters, where = np.unique(local // _QUARTER, return_inverse=True)
    naive = datetime(1970, 1, 1)
    offsets = [
        (naive + timedelta(microseconds=int(q) * _QUARTER)).replace(tzinfo=zone).utcoffset() or timedelta()
        for q in quarters
    ]
    return local - np.array([o // _MICROSECOND for o in offsets], dtype=np.int64)[where]


def derive(what: str, micros: Micros, zone: zoneinfo.ZoneInfo) -> npt.NDArray[np.int64] | npt.NDArray[np.bool_]:
    """`hour` 0-23, `weekday` 0-6 (Monday 0) or `is_weekend` (Saturday or Sunday) on the zone's wall clock [n]."""
    local = local_micros(micros, zone)
    if what == "hour":
        return (local // 3_600_000_000) % 24
    weekday = (local // _DAY + 3) % 7  # 1970-01-01 was a Thursday
    if what == "weekday":
        return weekday
    if what == "is_weekend":
        return weekday >= 5
    raise ValueError(f"cannot derive {what!r} from a timestamp; expected hour, weekday or is_weekend")


def local_days(micros: Micros, zone: zoneinfo.ZoneInfo) -> Micros:
    """The calendar day of each moment, as days since 1970-01-01 [n]."""
    return local_micros(micros, zone) // _DAY


def start_of_day(day: int, zone: zoneinfo.ZoneInfo) -> int:
    """The moment a calendar day (days since 1970-01-01) begins, in microseconds since the epoch."""
    return int(_local_to_epoch(np.array([day * _DAY], dtype=np.int64), zone)[0])


def to_iso(micros: int, zone: zoneinfo.ZoneInfo | None = None) -> str:
    """A moment for people: ISO 8601 in the zone (default UTC), to the second."""
    return (_EPOCH + timedelta(microseconds=micros)).astimezone(zone or UTC).isoformat(timespec="seconds")
