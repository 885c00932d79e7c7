"""What a schema makes of a log's columns, and what it refuses."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.training.data.logs import schema, write, write_parquet
from training.data.clicks import ClickLog, Clicks, to_column, unit_hashes
from training.data.faults import Faults
from training.data.readers import FileSource
from training.errors import DataError

TIME = {"column": "time", "format": "epoch", "unit": "s"}


def click_log(path: Path, *fields: dict[str, Any], **keys: Any) -> ClickLog:
    return ClickLog(FileSource((path,)), schema(*(fields or ({"name": "ad"},)), **keys))


def only(log: ClickLog, faults: Faults | None = None) -> Clicks:
    [clicks] = log.read(faults or Faults(0.0))
    return clicks


@pytest.mark.parametrize(
    ("cells", "labels"),
    [
        ("0\n1\n", [0, 1]),
        ("0.0\n1.0\n", [0, 1]),
        ("false\nTRUE\n", [0, 1]),
        ("00\n1e0\n", [0, 1]),
    ],
)
def test_a_label_is_zero_or_one_in_any_spelling_of_the_number(tmp_path: Path, cells: str, labels: list[int]):
    rows = "".join(f"{cell},x\n" for cell in cells.split())

    assert only(click_log(write(tmp_path / "log.csv", "click,ad\n" + rows))).label.tolist() == labels


@pytest.mark.parametrize("values", [[0, 1], [0.0, 1.0], [False, True], ["0", "1"]])
def test_a_parquet_label_may_be_a_number_a_boolean_or_text(tmp_path: Path, values: list):
    path = write_parquet(tmp_path / "log.parquet", {"click": values, "ad": ["a", "b"]})

    assert only(click_log(path)).label.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("cell", "came"), [("2", "'2'"), ("", "nothing"), ("yes", "'yes'"), ("0.5", "'0.5'"), ("-0.1", "'-0.1'")]
)
def test_any_other_label_refuses_the_log_at_once(tmp_path: Path, cell: str, came: str):
    """One such row says that the column is not what it is taken for; none is skipped."""
    path = write(tmp_path / "log.csv", "click,ad\n" + "0,x\n" * 5000 + f"{cell},x\n")

    with pytest.raises(DataError) as refusal:
        only(click_log(path))

    assert str(refusal.value).startswith(f"{path}:5002: label column 'click': expected 0 or 1, got {came}.")


def test_a_parquet_label_that_is_null_names_its_row(tmp_path: Path):
    path = write_parquet(tmp_path / "log.parquet", {"click": [0, None], "ad": ["a", "b"]})

    with pytest.raises(DataError, match=r"log\.parquet row 2: label column 'click': expected 0 or 1, got nothing"):
        only(click_log(path))


def test_a_row_without_a_readable_time_is_unreadable(tmp_path: Path):
    """It is skipped in every pass alike, and counted towards the share that refuses the file."""
    path = write(tmp_path / "log.csv", "click,ad,time\n0,a,5\n1,b,noon\n1,c,\n0,d,7\n")
    faults = Faults(0.5)

    clicks = only(click_log(path, timestamp=TIME), faults)

    assert clicks.time.tolist() == [5_000_000, 7_000_000]
    assert [c.time.tolist() for c in click_log(path, timestamp=TIME).survey(Faults(None))] == [[5_000_000, 7_000_000]]
    assert clicks.chunk.numbers.tolist() == [2, 5]
    assert faults.to_json()["reasons"] == {
        "bad timestamp": {
            "count": 2,
            "first": f"{path}:3",
            "example": "timestamp column 'time': expected seconds since 1970, got 'noon'",
        }
    }
    with pytest.raises(DataError, match=r"log\.csv:3: timestamp column 'time': .*; 2 of 4 rows"):
        only(click_log(path, timestamp=TIME), Faults(0.4))


def test_the_known_truth_must_be_a_probability(tmp_path: Path):
    path = write(tmp_path / "log.csv", "click,ad,p\n0,a,0.25\n1,b,1.5\n")

    with pytest.raises(
        DataError, match=r"log\.csv:3: truth column 'p': expected a probability from 0 to 1, got '1\.5'"
    ):
        only(click_log(path, truth={"column": "p"}))


def test_a_unit_is_the_same_in_text_and_numbers_and_a_row_without_one_is_its_own():
    """What an experiment would hash: the text, or the integer's decimal digits."""
    own = np.array([1, 2, 3], np.uint64)

    from_text = unit_hashes(pa.array(["831", "x", ""]), otherwise=own)
    from_integers = unit_hashes(pa.array([831, 7, None]), otherwise=own)
    from_floats = unit_hashes(pa.array([831.0, 7.5, float("nan")]), otherwise=own)

    assert from_text[0] == from_integers[0] == from_floats[0] == 0x209EB5F20AB018FF
    assert from_text[2] == from_integers[2] == from_floats[2] == 3
    assert len({int(h) for h in (*from_text[:2], *from_integers[1:2], *from_floats[1:2])}) == 4


def test_fields_derived_from_the_time_are_in_the_schemas_timezone(tmp_path: Path):
    """Friday 23:30 UTC is Saturday 01:30 in Berlin."""
    path = write(tmp_path / "log.csv", "click,ad,time\n0,a,2022-04-29T23:30:00Z\n")
    derived = [
        {"name": what, "derived_from": "timestamp", "derive": what, "type": kind, "role": "context"}
        for what, kind in (("hour", "integer"), ("weekday", "integer"), ("is_weekend", "boolean"))
    ]
    log = click_log(path, {"name": "ad"}, *derived, timestamp={"column": "time", "timezone": "Europe/Berlin"})

    columns = log.fields(only(log))

    assert {name: columns[name].values.tolist() for name in ("hour", "weekday", "is_weekend")} == {
        "hour": [1],
        "weekday": [5],
        "is_weekend": [True],
    }


def test_a_field_may_read_a_column_of_another_name_and_two_may_read_one(tmp_path: Path):
    path = write(tmp_path / "log.csv", "click,Ad Id\n0,a\n")
    log = click_log(path, {"name": "ad", "column": "Ad Id"}, {"name": "ad_again", "column": "Ad Id"})

    columns = log.fields(only(log))

    assert {name: column.values.tolist() for name, column in columns.items()} == {"ad": ["a"], "ad_again": ["a"]}


@pytest.mark.parametrize(
    ("field", "values", "words"),
    [
        ({}, [7], "expected type string, got column 'ad' of Parquet type int64; say type: integer"),
        ({"type": "boolean"}, [1], "expected type boolean, .* say type: integer"),
        ({"type": "integer"}, [True], "expected type integer, .* say type: boolean"),
        ({}, [["a"]], "expected type string, .* make it a sequence field"),
        ({"kind": "sequence", "max_length": 3}, ["a|b"], "expected a list of string, .* say the field's `separator`"),
        ({"kind": "sequence", "max_length": 3}, [[7]], "expected a list of string, .* say type: integer"),
        ({"kind": "sequence", "max_length": 3}, [7], "expected a list of string, .* or write lists"),
        ({}, [b"\xff"], "expected type string, .* write it as a string, a number or a boolean"),
    ],
)
def test_a_parquet_type_that_can_never_fit_is_refused_before_any_row(
    tmp_path: Path, field: dict, values: list, words: str
):
    path = write_parquet(tmp_path / "log.parquet", {"click": [0], "ad": values})

    with pytest.raises(DataError, match=f"log\\.parquet: field 'ad': {words}"):
        click_log(path, {"name": "ad"} | field)


@pytest.mark.parametrize("role", ["label", "unit"])
def test_a_column_of_lists_is_no_label_and_no_unit(tmp_path: Path, role: str):
    path = write_parquet(tmp_path / "log.parquet", {"click": [0], "ad": ["a"], "l": [[1]]})

    with pytest.raises(
        DataError, match=f"column 'l' \\(the {role}\\): expected text or numbers, got Parquet type list"
    ):
        click_log(path, **{role: {"column": "l"}})


@pytest.mark.parametrize(
    ("array", "rows"),
    [
        (pa.array(["a", None, "", "a"]), ["a", None, "", "a"]),
        (pa.array(["a", None]).dictionary_encode(), ["a", None]),
        (pa.array(["a", None], pa.large_string()), ["a", None]),
        (pa.array([1, None, 3]), [1, None, 3]),
        (pa.array([2**64 - 1, None], pa.uint64()), [2**64 - 1, None]),
        (pa.array([0.5, None, 2.0], pa.float32()), [0.5, None, 2.0]),
        (pa.array([True, None, False]), [True, None, False]),
        (pa.array([None, None]), [None, None]),
        (pa.array(["1.50", None]).cast(pa.decimal128(5, 2)), [1.5, None]),
        (pa.array(["7", None]).cast(pa.decimal128(5, 0)), [7, None]),
        (pa.array([["a", None], None, [], ["b", "a"]]), [["a", None], [], [], ["b", "a"]]),
        (pa.array([["x"], ["a", None], None, [], ["b"]]).slice(1), [["a", None], [], [], ["b"]]),
        (pa.array([[1, 2], None], pa.list_(pa.int64(), 2)), [[1, 2], []]),
        (pa.array([[1], None, [2, None]], pa.large_list(pa.int32())), [[1], [], [2, None]]),
    ],
)
def test_an_arrow_array_reaches_the_encoder_cell_by_cell(array: pa.Array, rows: list):
    column = to_column(array)

    cells: list[object] = column.values.tolist()
    if column.missing is not None:
        cells = [None if m else c for m, c in zip(column.missing, cells, strict=True)]
    if column.codes is not None:
        cells = [None if c == -1 else cells[c] for c in column.codes]
    if column.offsets is not None:
        cells = [cells[a:b] for a, b in zip(column.offsets, column.offsets[1:], strict=False)]
    assert cells == rows
    assert len(column) == len(rows)
