"""One moment is one number, however a log writes it; what derives from it is the wall clock of the schema's zone."""

from datetime import UTC, date, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.data.timestamps import derive, local_days, parse_times, start_of_day, to_iso, zone_of
from training.errors import DataError

UTC_ZONE = zone_of("UTC")
BERLIN = zone_of("Europe/Berlin")
NOON = 1_650_888_000_000_000  # 2022-04-25 12:00 UTC, a Monday


def micros(cells: list, form: str = "epoch", unit: str = "s", zone=UTC_ZONE, kind: pa.DataType | None = None) -> list:
    """Microseconds, None where a cell cannot be read."""
    times, good = parse_times(pa.array(cells, kind), form, unit, zone)
    return [int(t) if g else None for t, g in zip(times, good, strict=True)]


@pytest.mark.parametrize(
    ("cell", "form", "unit"),
    [
        ("1650888000", "epoch", "s"),
        ("1650888000.0", "epoch", "s"),
        ("1.650888e9", "epoch", "s"),
        ("1650888000000", "epoch", "ms"),
        ("1650888000000000", "epoch", "us"),
        (1650888000, "epoch", "s"),
        (1650888000.0, "epoch", "s"),
        ("2022-04-25T12:00:00Z", "iso8601", "s"),
        ("2022-04-25 12:00", "iso8601", "s"),
        ("2022-04-25T14:00:00+02:00", "iso8601", "s"),
        ("22042512", "%y%m%d%H", "s"),
        ("25/Apr/2022:14:00:00 +0200", "%d/%b/%Y:%H:%M:%S %z", "s"),
        (datetime(2022, 4, 25, 12), "iso8601", "s"),
        (datetime(2022, 4, 25, 12, tzinfo=UTC), "epoch", "ms"),
    ],
)
def test_noon_is_noon_however_it_is_written(cell: object, form: str, unit: str):
    assert micros([cell], form, unit) == [NOON]


def test_a_time_without_a_zone_is_the_schemas():
    assert micros(["2022-04-25 14:00"], "iso8601", zone=BERLIN) == [NOON]
    assert micros(["22042514"], "%y%m%d%H", zone=BERLIN) == [NOON]
    assert micros([datetime(2022, 4, 25, 14)], zone=BERLIN) == [NOON]
    assert micros([date(2022, 4, 25)], zone=BERLIN) == [NOON - 14 * 3_600_000_000]


def test_an_hour_that_happens_twice_is_the_first():
    """Clocks went back at 03:00 on 30 October 2022; 02:30 was first 00:30 UTC."""
    for cell in ("2022-10-30 02:30", datetime(2022, 10, 30, 2, 30)):
        [time] = micros([cell], "iso8601", zone=BERLIN)

        assert to_iso(time) == "2022-10-30T00:30:00+00:00"


@pytest.mark.parametrize(
    ("cell", "form", "unit"),
    [
        ("", "epoch", "s"),
        (None, "epoch", "s"),
        ("noon", "epoch", "s"),
        (" 1650888000", "epoch", "s"),
        ("0x62667ac0", "epoch", "s"),
        ("1_650_888_000", "epoch", "s"),
        ("nan", "epoch", "s"),
        ("1e999", "epoch", "s"),
        ("9" * 400, "epoch", "s"),
        ("1650888000000", "epoch", "s"),
        (float("nan"), "epoch", "s"),
        (2**63 - 1, "epoch", "us"),
        ("2022-13-01", "iso8601", "s"),
        ("0001-01-01T00:00:00Z", "iso8601", "s"),
        ("", "iso8601", "s"),
        ("22042524", "%y%m%d%H", "s"),
    ],
)
def test_what_is_no_time_is_bad_and_leaves_the_others_alone(cell: object, form: str, unit: str):
    """Milliseconds read as seconds are the year 54000: bad, not far in the future."""
    whole = {"epoch": 1650888000 * {"s": 1, "us": 1_000_000}[unit], "iso8601": "2022-04-25T12:00:00Z"}
    good = whole.get(form, "22042512")
    good = str(good) if isinstance(cell, str | None) else type(cell)(good)

    assert micros([good, cell, good], form, unit) == [NOON, None, NOON]


def test_numbers_need_a_schema_that_says_epoch():
    with pytest.raises(DataError, match="the schema says 'iso8601', and the column holds numbers"):
        micros([1650888000], "iso8601")


def test_an_unknown_timezone_is_refused():
    with pytest.raises(DataError, match="timezone 'Mars/Olympus' is not known here; expected an IANA name"):
        zone_of("Mars/Olympus")


@given(st.lists(st.datetimes(datetime(1950, 1, 1), datetime(2150, 1, 1)), min_size=1, max_size=20))
@pytest.mark.parametrize("zone", [UTC_ZONE, BERLIN, zone_of("Asia/Kathmandu"), zone_of("America/St_Johns")], ids=str)
def test_derived_fields_are_the_zones_wall_clock(zone, moments: list[datetime]):
    """Column by column the same as asking `datetime` one by one, half-hour zones and changes of clocks included."""
    aware = [m.replace(tzinfo=UTC).astimezone(zone) for m in moments]
    times = np.array([round((a - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(microseconds=1)) for a in aware])

    assert derive("hour", times, zone).tolist() == [a.hour for a in aware]
    assert derive("weekday", times, zone).tolist() == [a.weekday() for a in aware]
    assert derive("is_weekend", times, zone).tolist() == [a.weekday() >= 5 for a in aware]
    assert local_days(times, zone).tolist() == [a.toordinal() - date(1970, 1, 1).toordinal() for a in aware]


def test_a_day_begins_at_midnight_of_the_zone():
    [day] = local_days(np.array([NOON]), BERLIN)

    assert to_iso(start_of_day(int(day), BERLIN), BERLIN) == "2022-04-25T00:00:00+02:00"
