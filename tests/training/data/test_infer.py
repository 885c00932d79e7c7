"""A proposal a person can start from: it loads, it trains, and it says what is odd about the log."""

import gzip
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from models.schema import FeatureSchema
from tests.training.data.logs import write, write_parquet
from training.data import sampling, text_files
from training.data.infer import Inferred, infer_schema, main
from training.data.prepare import prepare
from training.data.readers import FileSource, TextFormat
from training.data.split import Fractions, TimeSplit
from training.errors import DataError

ROWS = 2000
RANDOM = np.random.default_rng(0)
CLICK = RANDOM.random(ROWS) < 0.2
USERS = RANDOM.integers(300, size=ROWS)
ADS = RANDOM.integers(40, size=ROWS)


def as_csv(columns: dict[str, Any]) -> str:
    rows = zip(*(map(str, values) for values in columns.values()), strict=True)
    quoted = (",".join('"' + cell.replace('"', '""') + '"' for cell in row) for row in rows)
    return ",".join(columns) + "\n" + "\n".join(quoted) + "\n"


BASE = {
    "click": CLICK.astype(int).tolist(),
    "time": (1_700_000_000 + np.arange(ROWS) * 60).tolist(),
    "user_id": [f"u{u}" for u in USERS],
    "ad_id": [f"a{a}" for a in ADS],
}


def infer(tmp_path: Path, **columns: Any) -> tuple[FeatureSchema, Inferred]:
    """The proposal for the base log and these columns besides."""
    inferred = infer_schema([write(tmp_path / "log.csv", as_csv(BASE | columns))])
    return FeatureSchema.from_text(inferred.text), inferred


def warned(inferred: Inferred, column: str) -> str:
    return " / ".join(w for w in inferred.warnings if w.startswith(f"{column}:"))


def test_a_plain_log_is_described_whole(tmp_path: Path):
    schema, inferred = infer(
        tmp_path,
        device=[["phone", "desktop", "tablet"][u % 3] for u in USERS],
        price=[f"{a * 0.37 + 0.01:.2f}" for a in ADS],
        position=[i % 5 + 1 for i in range(ROWS)],
        genres=[["action|drama", "comedy", "drama|romance|war", "war"][a % 4] for a in ADS],
        is_new=[["true", "false"][a % 2] for a in ADS],
    )

    assert inferred.warnings == ()
    assert schema.label.column == "click"
    assert schema.unit is not None
    assert schema.unit.column == "user_id"
    assert schema.timestamp is not None
    assert (schema.timestamp.column, schema.timestamp.format, schema.timestamp.unit) == ("time", "epoch", "s")
    described = {f.name: (f.type, f.role, f.kind) for f in schema.fields}
    assert described == {
        "user_id": ("string", "context", "categorical"),
        "device": ("string", "context", "categorical"),
        "hour": ("integer", "context", "categorical"),
        "weekday": ("integer", "context", "categorical"),
        "is_weekend": ("boolean", "context", "categorical"),
        "ad_id": ("string", "candidate", "categorical"),
        "price": ("float", "candidate", "numeric"),
        "genres": ("string", "candidate", "categorical"),
        "is_new": ("boolean", "candidate", "categorical"),
        "position": ("integer", "training_only", "categorical"),
    }
    assert schema.by_name["position"].serving_value == 1
    assert {f.derive for f in schema.context_fields} == {None, "hour", "weekday", "is_weekend"}


def test_what_it_proposes_can_be_trained_on(tmp_path: Path):
    path = write(
        tmp_path / "log.csv", as_csv(BASE | {"price": ADS * 1.5, "tags": [f"t{a % 7};t{a % 11}" for a in ADS]})
    )

    schema = FeatureSchema.from_text(infer_schema([path]).text)
    split = TimeSplit(fractions=Fractions(valid=0.2, test=0.1))
    report = prepare(FileSource((path,)), schema, split, tmp_path / "out")

    assert sum(report.rows.values()) == ROWS
    assert (report.bad_rows, report.bad_cells) == (0, {})


@pytest.mark.parametrize(
    ("cells", "form", "unit"),
    [
        ("{0}", "epoch", "s"),
        ("{0}000", "epoch", "ms"),
        ("{0}000000", "epoch", "us"),
        ("{0}.25", "epoch", "s"),
        ("{1:%Y-%m-%dT%H:%M:%SZ}", "iso8601", "s"),
        ("{1:%Y-%m-%d %H:%M:%S}", "iso8601", "s"),
        ("{1:%y%m%d%H}", "%y%m%d%H", "s"),
        ("{1:%Y%m%d}", "%Y%m%d", "s"),
        ("{1:%d.%m.%Y %H:%M}", "%d.%m.%Y %H:%M", "s"),
        ("{1:%m/%d/%Y %H:%M:%S}", "%m/%d/%Y %H:%M:%S", "s"),
        ("{1:%d/%b/%Y:%H:%M:%S} +0000", "%d/%b/%Y:%H:%M:%S %z", "s"),
    ],
)
def test_the_time_is_found_however_it_is_written(tmp_path: Path, cells: str, form: str, unit: str):
    """And it reads back: what is proposed parses every cell of the log."""
    seconds = [1_700_000_000 + i * 7919 for i in range(ROWS)]
    times = [cells.format(s, datetime.fromtimestamp(s, UTC)) for s in seconds]

    schema, inferred = infer(tmp_path, time=times)

    assert schema.timestamp is not None
    assert (schema.timestamp.format, schema.timestamp.unit) == (form, unit)
    assert warned(inferred, "time") == ""
    assert ("hour" in schema.by_name) == (form != "%Y%m%d")


def test_day_and_month_that_cannot_be_told_apart_are_said(tmp_path: Path):
    schema, inferred = infer(tmp_path, time=[f"0{i % 9 + 1}/0{i % 8 + 1}/2024 10:00" for i in range(ROWS)])

    assert schema.timestamp is not None
    assert "day and month cannot be told apart" in warned(inferred, "time")


def test_nanoseconds_are_not_taken_for_anything_else(tmp_path: Path):
    schema, inferred = infer(tmp_path, time=[1_700_000_000_000_000_000 + i for i in range(ROWS)])

    assert schema.timestamp is None
    assert "nanoseconds since 1970 are not read" in warned(inferred, "time")


def test_rows_without_a_time_are_said_to_be_lost(tmp_path: Path):
    _, inferred = infer(tmp_path, time=[1_700_000_000 + i if i % 10 else "" for i in range(ROWS)])

    assert "10.00% of the rows have no time that can be read" in warned(inferred, "time")


@pytest.mark.parametrize(
    ("values", "type_", "words"),
    [
        ([f"{a:03}" for a in ADS], "string", "digits led by zeros, so a string: 007 is not 7"),
        ([f"{a}.0" if a else "" for a in ADS], "integer", ""),
        ([a if a != 7 else "seven" for a in ADS], "integer", "cells are no integer (the first: 'seven')"),
        ([a if a != 7 else "NULL" for a in ADS], "integer", "cells are no integer (the first: 'NULL')"),
        ([a if a % 3 else f"x{a}" for a in ADS], "string", "numbers and other text mixed, so a string"),
        ([f" {a}" for a in ADS], "string", "numbers with blanks around them"),
        (
            [["red", "NA"][a % 2] for a in ADS],
            "string",
            "'NA' is a value like any other; an empty cell would be missing",
        ),
        ([["yes", "no"][a % 2] for a in ADS], "string", ""),
        ([["True", "False", ""][a % 3] for a in ADS], "boolean", ""),
        ([2**64 + int(a) for a in ADS], "string", ""),
        ([f"[{a}, 3]" for a in ADS], "string", "looks like lists in brackets"),
    ],
)
def test_a_type_is_what_all_values_are_and_oddities_are_said(tmp_path: Path, values: list, type_: str, words: str):
    schema, inferred = infer(tmp_path, ad_code=values)

    assert schema.by_name["ad_code"].type == type_
    assert words in warned(inferred, "ad_code")
    if not words:
        assert warned(inferred, "ad_code") == ""


@pytest.mark.parametrize("separator", ["|", ";", ",", ", ", " "])
def test_the_separator_of_a_column_of_lists_is_found(tmp_path: Path, separator: str):
    lists = [separator.join(f"{(a * k) % 13}" for k in range(1, a % 5 + 2)) for a in ADS]

    schema, _ = infer(tmp_path, topics=lists)

    field = schema.by_name["topics"]
    assert (field.kind, field.separator, field.type, field.max_length) == ("sequence", separator, "integer", 5)


@pytest.mark.parametrize(
    "values",
    [
        [f"Song {a} of the night ({a + 1950})" for a in ADS],
        [["[0,10)", "[10,100)", "[100,1k)"][a % 3] for a in ADS],
        [f"{a / 7:.4f},{a / 3:.4f}" for a in ADS],
        [f"2024-01-{a % 28 + 1:02} 10:00:00" for a in ADS],
    ],
)
def test_text_that_merely_holds_a_separator_is_no_list(tmp_path: Path, values: list):
    schema, _ = infer(tmp_path, ad_thing=values)

    assert "ad_thing" not in schema.by_name or schema.by_name["ad_thing"].kind == "categorical"


def test_a_column_of_row_ids_is_left_out(tmp_path: Path):
    schema, inferred = infer(tmp_path, impression=[f"{i:032x}" for i in range(ROWS)], row=list(range(ROWS)))

    assert not {"impression", "row"} & set(schema.by_name)
    assert "looks like a row id: 2,000 values in 2,000 rows" in warned(inferred, "impression")
    assert "looks like a row id" in warned(inferred, "row")


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        (
            "landed",
            [f"page{i % 3}" if c else "none" for i, c in enumerate(CLICK)],
            "alone it ranks held-out rows with AUC",
        ),
        ("seconds_on_page", [i % 50 + 3.5 if c else 0 for i, c in enumerate(CLICK)], "AUC 1.000"),
        ("reached", [int(c and i % 3 == 0) for i, c in enumerate(CLICK)], "with '1' there is always a click"),
        ("is_like", [int(i % 90 == 0) for i in range(ROWS)], "by its name known only after the impression"),
        ("watch_time_ms", [i * 37 % 700 for i in range(ROWS)], "by its name known only after the impression"),
    ],
)
def test_a_column_that_gives_the_label_away_is_left_out(tmp_path: Path, name: str, values: list, words: str):
    schema, inferred = infer(tmp_path, **{name: values})

    assert name not in schema.by_name
    assert words in warned(inferred, name)
    assert f"  # - {{name: {name}," in inferred.text


def test_many_rare_values_do_not_look_like_a_leak(tmp_path: Path):
    """By heart each of 900 users' clicks are known; on held-out rows they are not."""
    schema, inferred = infer(tmp_path, publisher=[f"p{x}" for x in RANDOM.integers(900, size=ROWS)])

    assert "publisher" in schema.by_name
    assert warned(inferred, "publisher") == ""


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (["same"] * ROWS, "constant ('same')"),
        ([""] * ROWS, "missing in every row"),
        ([["train", "test"][i % 2] for i in range(ROWS)], "says which part a row is in"),
    ],
)
def test_a_column_that_cannot_help_is_left_out(tmp_path: Path, values: list, words: str):
    schema, inferred = infer(tmp_path, thing=values)

    assert "thing" not in schema.by_name
    assert words in warned(inferred, "thing")


def test_a_column_belongs_to_the_ad_when_the_ad_determines_it(tmp_path: Path):
    """Its name says nothing: `shade` is the same wherever the ad is, `mood` is not."""
    schema, inferred = infer(tmp_path, shade=[f"s{a % 6}" for a in ADS], mood=[f"m{i % 6}" for i in range(ROWS)])

    assert (schema.by_name["shade"].role, schema.by_name["mood"].role) == ("candidate", "context")
    assert inferred.text.count("role guessed") == 2


def test_names_become_names_of_fields(tmp_path: Path):
    """Whatever the header says; the column keeps its own name."""
    columns = {
        "Ad Größe": ADS.tolist(),
        "ad size": ADS.tolist(),
        "AD_SIZE": ADS.tolist(),
        "2nd ad": ADS.tolist(),
        "on": ADS.tolist(),
    }

    schema, _ = infer(tmp_path, **columns)

    by_column = {f.source_column: f.name for f in schema.fields}
    assert [by_column[c] for c in columns] == ["Ad_Gr_e", "ad_size", "AD_SIZE_2", "_2nd_ad", "on"]


def test_parquet_types_are_taken_as_they_are(tmp_path: Path):
    """Integers with gaps are stored as floats; lists need no separator; what no field can be is left out."""
    path = write_parquet(
        tmp_path / "log.parquet",
        {
            "click": pa.array(CLICK),
            "at": pa.array([datetime(2024, 1, 1, i % 24, tzinfo=UTC) for i in range(ROWS)]),
            "user_id": pa.array(USERS),
            "ad_id": pa.array([f"a{a}" for a in ADS]).dictionary_encode(),
            "ad_level": pa.array([float(a) if a else None for a in ADS]),
            "ad_tags": pa.array([[f"t{a % 5}", f"t{a % 3}"] for a in ADS]),
            "raw": pa.array([{"a": 1}] * ROWS),
        },
    )

    inferred = infer_schema([path])
    schema = FeatureSchema.from_text(inferred.text)

    described = {f.name: (f.type, f.kind, f.separator) for f in schema.fields if not f.derive}
    assert described == {
        "user_id": ("integer", "categorical", None),
        "ad_id": ("string", "categorical", None),
        "ad_level": ("integer", "categorical", None),
        "ad_tags": ("string", "sequence", None),
    }
    assert schema.timestamp is not None
    assert schema.timestamp.column == "at"
    assert "of type struct" in warned(inferred, "raw")
    split = TimeSplit(fractions=Fractions(valid=0.2, test=0.1))
    assert sum(prepare(FileSource((path,)), schema, split, tmp_path / "out").rows.values()) == ROWS


def test_known_probabilities_of_a_synthetic_log_are_the_truth(tmp_path: Path):
    schema, _ = infer(tmp_path, true_pctr=RANDOM.random(ROWS).tolist())

    assert schema.truth is not None
    assert "true_pctr" not in schema.by_name


def test_the_label_can_be_named(tmp_path: Path):
    path = write(tmp_path / "log.csv", as_csv(BASE | {"bought": (CLICK & (ADS < 9)).astype(int)}))

    assert FeatureSchema.from_text(infer_schema([path], label="bought").text).label.column == "bought"
    with pytest.raises(
        DataError,
        match=r"--label boght: no such column\. Did you mean 'bought'\? Only 0 and 1 are in \S.*; all columns: \S",
    ):
        infer_schema([path], label="boght")
    with pytest.raises(DataError, match="--label ad_id: expected only 0 and 1, got 'a"):
        infer_schema([path], label="ad_id")


def test_a_log_without_a_label_is_refused_with_what_to_do(tmp_path: Path):
    path = write(tmp_path / "ratings.csv", as_csv({"user": USERS, "rating": RANDOM.integers(1, 6, size=ROWS)}))

    with pytest.raises(DataError, match="no column holds only 0 and 1, so there is no label: make one"):
        infer_schema([path])


def test_several_columns_that_might_be_the_label_are_asked_about(tmp_path: Path):
    path = write(tmp_path / "log.csv", as_csv({"ad": ADS, "left": ADS % 2, "right": USERS % 2}))

    with pytest.raises(DataError, match=r"which column is the label\? Say --label with one of left, right"):
        infer_schema([path])


@pytest.mark.parametrize(
    "prices",
    [
        [f"{a + 1},{a * 7 % 100:02}" for a in ADS],
        [f"{a},5" if a % 3 else str(a) for a in ADS],
        [f"-{a},{a}" if a else "" for a in ADS],
    ],
)
def test_decimal_commas_are_named_and_make_no_list(tmp_path: Path, prices: list[str]):
    """8,12 is neither a number nor the list of 8 and 12: a person is told to write 8.12."""
    schema, inferred = infer(tmp_path, price=prices)

    field = schema.by_name["price"]
    assert (field.type, field.kind) == ("string", "categorical")
    assert "numbers with a decimal comma" in warned(inferred, "price")


def test_rows_that_cannot_be_read_are_counted_and_too_many_foretold(tmp_path: Path):
    """Training would refuse the file; better to know before the schema is edited."""
    lines = [f"{i % 2},a{i % 7}" for i in range(2000)]
    lines[10] += ",extra"
    few = infer_schema([write(tmp_path / "few.csv", "click,ad_id\n" + "\n".join(lines) + "\n")])
    lines[20], lines[30] = "1", "0"
    many = infer_schema([write(tmp_path / "many.csv", "click,ad_id\n" + "\n".join(lines) + "\n")])

    assert few.warnings[0].startswith("1 of 2000 rows cannot be read (0.05%); the first: ")
    assert many.warnings[0].startswith(
        "3 of 2000 rows cannot be read (0.15%), more than max_bad_rows allows (0.1%), so training refuses it; "
        "the first: "
    )
    assert "few.csv:12: expected 2 cells as in the header, got 3" in few.warnings[0]


def test_a_wrong_separator_is_named(tmp_path: Path):
    path = write(tmp_path / "log.csv", "click;ad\n0;a\n1;b\n")

    with pytest.raises(DataError, match="is the separator ';', not ','"):
        infer_schema([path])
    assert FeatureSchema.from_text(infer_schema([path], TextFormat(separator=";")).text).label.column == "click"


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "parquet"])
def test_a_large_log_is_looked_at_here_and_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str):
    """A bounded number of rows, and the text says which they were."""
    monkeypatch.setattr(sampling, "READ_WHOLE_BYTES", 20_000)
    monkeypatch.setattr(text_files, "BLOCK_BYTES", 4_000)
    monkeypatch.setattr(sampling, "BLOCK_BYTES", 4_000)
    path = tmp_path / f"log.{kind}"
    if kind == "parquet":
        write_parquet(path, BASE, row_group_size=100)
    else:
        text = as_csv(BASE).encode()
        path.write_bytes(gzip.compress(text) if kind == "csv.gz" else text)

    inferred = infer_schema([path], sample_rows=500)

    looked = inferred.text.splitlines()[0]
    assert "of" in looked
    assert "rows, the first" in looked
    assert "all" not in looked
    assert FeatureSchema.from_text(inferred.text).label.column == "click"


def test_the_command_prints_yaml_and_warns_beside_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = write(tmp_path / "log.csv", as_csv(BASE | {"row": range(ROWS)}))

    assert main([str(path)]) == 0

    out, err = capsys.readouterr()
    assert FeatureSchema.from_text(out).label.column == "click"
    assert err.startswith("! row: looks like a row id")


def test_the_command_never_overwrites_a_file_a_person_may_have_edited(tmp_path: Path):
    path, output = write(tmp_path / "log.csv", as_csv(BASE)), tmp_path / "schema.yaml"

    assert main([str(path), "--output", str(output)]) == 0

    assert FeatureSchema.from_file(output).label.column == "click"
    with pytest.raises(DataError, match="stands already"):
        main([str(path), "--output", str(output)])


def test_a_header_can_be_given_to_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = write(tmp_path / "train.txt", "\n".join(f"{int(c)}\t{a}" for c, a in zip(CLICK, ADS, strict=True)) + "\n")

    main([str(path), "--separator", "\\t", "--header", "click,ad"])

    assert set(FeatureSchema.from_text(capsys.readouterr().out).by_name) == {"ad"}


def test_the_proposal_can_be_read_as_json_once_loaded(tmp_path: Path):
    """What a bundle will hold is the same schema."""
    schema, _ = infer(tmp_path)

    assert FeatureSchema.from_text(json.dumps(json.loads(schema.to_json()))) == schema
