"""From a log to arrays of ids: fitted on training rows alone, complete or absent, and honest about every cell."""

import itertools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models import fitting
from models.manifest import FieldReference
from models.schema import FeatureSchema
from tests.training.data.logs import NUMERIC, schema, write, write_parquet
from training.data import prepare as prepare_module
from training.data import text_files
from training.data.encoded_log import EncodedLog, Part
from training.data.prepare import PrepareReport, load_encoder, load_golden_rows, prepare
from training.data.readers import FileSource
from training.data.split import ColumnSplit, FilesSplit, LastDays, TimeSplit
from training.errors import DataError, SplitError

PARTS = ("train", "valid", "test")
DAY = 86_400


def rows_of(ads: dict[str, list[str]], each: int = 24) -> list[dict[str, str]]:
    """`each` rows a part, clicks and ads by turns; users so many that A, B and C all get some."""
    return [
        {"part": part, "click": str(i % 2), "ad": ads[part][i % len(ads[part])], "user": f"u{i % 12}", "n": str(i)}
        for part in PARTS
        for i in range(each)
    ]


def csv_of(rows: list[dict[str, str]]) -> str:
    return "\n".join([",".join(rows[0]), *(",".join(row.values()) for row in rows)]) + "\n"


SAME = {part: ["a", "b"] for part in PARTS}
BY_PART = ColumnSplit(column="part")


def simple_schema(**keys: Any) -> FeatureSchema:
    return schema(
        {"name": "ad"}, {"name": "user", "role": "context"}, {"name": "n", "type": "integer"} | NUMERIC, **keys
    )


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return write(tmp_path / "log.csv", csv_of(rows_of(SAME)))


def test_a_value_seen_only_after_training_is_unknown(tmp_path: Path):
    """Vocabularies and edges come from training rows and nothing else."""
    ads = {"train": ["a"], "valid": ["a", "valid only"], "test": ["a", "test only"]}
    path = write(tmp_path / "log.csv", csv_of(rows_of(ads)))

    report = prepare(FileSource((path,)), simple_schema(), BY_PART, tmp_path / "out")

    encoder = load_encoder(tmp_path / "out")
    assert encoder.to_vocabularies()["ad"] == ["a"]
    assert (report.unknown["ad"]["train"], report.unknown["ad"]["test"]) == (0, 0.5)
    assert encoder.encode_candidates([{"ad": "valid only"}, {"ad": "test only"}]).ids[:, 0].tolist() == [1, 1]


def test_edges_of_a_number_come_from_training_rows_only(tmp_path: Path):
    rows = rows_of(SAME)
    for row in rows:
        row["n"] = row["n"] if row["part"] == "train" else "1000000"
    path = write(tmp_path / "log.csv", csv_of(rows))

    prepare(FileSource((path,)), simple_schema(), BY_PART, tmp_path / "out")

    assert max(load_encoder(tmp_path / "out").to_vocabularies()["n"]) < 24


def test_a_prepared_folder_holds_every_row_in_the_logs_order(log: Path, tmp_path: Path):
    report = prepare(FileSource((log,)), simple_schema(unit={"column": "user"}), BY_PART, tmp_path / "out")

    encoded = EncodedLog.open(tmp_path / "out" / "log")
    assert [f.name for f in encoded.fields] == ["user", "ad", "n"]
    assert encoded.label.tolist() == [0, 1] * 36
    assert np.isin(encoded.part[:24], Part.TRAIN).all()
    assert np.isin(encoded.part[24:48], [Part.VALID_A, Part.VALID_B, Part.VALID_C]).all()
    assert np.isin(encoded.part[48:], Part.TEST).all()
    assert encoded.ids[:, 1].tolist() == [2, 3] * 36
    assert len(set(encoded.unit.tolist())) == 12
    assert sum(report.rows.values()) == 72
    assert report.rows["unused"] == 0
    assert report.vocabulary == {"ad": 4, "user": 14, "n": 6}
    assert report.reference["ad"].model_dump() == {"ids": (0, 1, 2, 3), "counts": (0, 0, 12, 12), "other": 0}
    assert PrepareReport.read(tmp_path / "out") == report


def test_rows_of_one_user_never_validate_on_two_sides(log: Path, tmp_path: Path):
    prepare(FileSource((log,)), simple_schema(unit={"column": "user"}), BY_PART, tmp_path / "out")

    encoded = EncodedLog.open(tmp_path / "out" / "log")
    valid = (encoded.part >= Part.VALID_A) & (encoded.part <= Part.VALID_C)
    for unit in set(encoded.unit.tolist()):
        assert len(set(encoded.part[valid & (encoded.unit == unit)].tolist())) == 1


def test_a_log_can_be_split_by_days(tmp_path: Path):
    rows = [f"{i % 2},a,{i * DAY // 40}" for i in range(160)]
    path = write(tmp_path / "log.csv", "click,ad,time\n" + "\n".join(rows) + "\n")
    timestamp = {"column": "time", "format": "epoch", "unit": "s"}
    split = TimeSplit(last_days=LastDays(valid=1, test=1))

    report = prepare(FileSource((path,)), schema({"name": "ad"}, timestamp=timestamp), split, tmp_path / "out")

    assert (report.rows["train"], report.rows["test"]) == (80, 40)
    assert report.first_time["test"] == "1970-01-04T00:00:00+00:00"
    assert report.last_time["train"] == "1970-01-02T23:24:00+00:00"


def test_a_log_can_be_split_by_files(tmp_path: Path):
    rows = "".join(f"{i % 2},{ad}\n" for i in range(30) for ad in "ab")
    files = tuple(write(tmp_path / f"{part}.csv", "click,ad\n" + rows) for part in PARTS)
    split = FilesSplit(train=("train.csv",), valid=("valid.csv",), test=("test.csv",))

    report = prepare(FileSource(files), schema({"name": "ad"}), split, tmp_path / "out")

    assert (report.rows["train"], report.rows["test"]) == (60, 60)


def test_rows_that_the_split_ignores_are_counted_and_not_encoded(tmp_path: Path):
    rows = rows_of(SAME)
    rows[5]["part"] = "other"
    path = write(tmp_path / "log.csv", csv_of(rows))

    report = prepare(
        FileSource((path,)), simple_schema(), ColumnSplit(column="part", ignore=("other",)), tmp_path / "out"
    )

    assert report.rows["unused"] == 1
    assert len(EncodedLog.open(tmp_path / "out" / "log")) == 71


def test_a_value_of_the_split_column_that_no_part_names_is_refused(tmp_path: Path):
    rows = rows_of(SAME)
    rows[5]["part"] = "other"
    path = write(tmp_path / "log.csv", csv_of(rows))

    with pytest.raises(
        SplitError, match=r"log\.csv:7: split column 'part': expected one of train, valid, test, got 'other'"
    ):
        prepare(FileSource((path,)), simple_schema(), BY_PART, tmp_path / "out")


def test_a_split_by_time_needs_a_timestamp(log: Path, tmp_path: Path):
    with pytest.raises(SplitError, match="by time needs a timestamp"):
        prepare(FileSource((log,)), simple_schema(), TimeSplit(last_days=LastDays(valid=1, test=1)), tmp_path / "out")


def test_a_split_that_leaves_a_part_useless_is_refused_before_anything_is_encoded(tmp_path: Path):
    rows = [row | {"click": "0"} if row["part"] == "test" else row for row in rows_of(SAME)]
    path = write(tmp_path / "log.csv", csv_of(rows))

    with pytest.raises(SplitError, match="part 'test' has 24 rows and all of them have label 0"):
        prepare(FileSource((path,)), simple_schema(), BY_PART, tmp_path / "out")

    assert not (tmp_path / "out").exists()


def test_a_bad_number_is_missing_and_counted_with_its_first_place(tmp_path: Path):
    """The row stays: its other cells are good."""
    rows = rows_of(SAME)
    rows[3]["n"], rows[40]["n"], rows[41]["n"] = "twelve", "1,000".replace(",", " "), ""
    path = write(tmp_path / "log.csv", csv_of(rows))

    report = prepare(FileSource((path,)), simple_schema(), BY_PART, tmp_path / "out")

    assert report.bad_cells["n"].model_dump() == {
        "count": 2,
        "first": f"{path}:5",
        "example": "expected an integer of at most 64 bits, got 'twelve': text that is no number",
    }
    assert EncodedLog.open(tmp_path / "out" / "log").ids[[3, 40, 41], 2].tolist() == [0, 0, 0]
    assert report.missing["n"]["train"] == pytest.approx(1 / 24)
    assert report.bad_rows == 0


def test_bad_rows_are_in_the_report_and_in_no_array(log: Path, tmp_path: Path):
    with log.open("a") as file:
        file.write("too,few\n\n")

    report = prepare(FileSource((log,)), simple_schema(max_bad_rows=0.05), BY_PART, tmp_path / "out")

    assert report.bad_rows == 1
    assert report.bad_row_reasons["wrong number of cells"].first == f"{log}:74"
    assert report.blank_lines == 1
    assert len(EncodedLog.open(tmp_path / "out" / "log")) == 72


def test_a_log_with_a_header_and_no_rows_is_refused(tmp_path: Path):
    path = write(tmp_path / "log.csv", "part,click,ad,user,n\n")

    with pytest.raises(DataError, match=r"log\.csv: no rows that can be read; expected at least one"):
        prepare(FileSource((path,)), simple_schema(), BY_PART, tmp_path / "out")


@pytest.mark.parametrize("when", ["survey", "fit_encoder", "encode"])
def test_an_interrupted_prepare_leaves_nothing(log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str):
    """Neither a folder that looks finished nor scraps of one; and the next attempt succeeds."""
    before = set(tmp_path.iterdir())

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, when, interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare(FileSource((log,)), simple_schema(), BY_PART, tmp_path / "out")

    assert set(tmp_path.iterdir()) == before
    prepare(FileSource((log,)), simple_schema(), BY_PART, tmp_path / "out")


def test_what_a_killed_prepare_left_is_cleared(log: Path, tmp_path: Path):
    scraps = tmp_path / ".out.unfinished" / "log"
    scraps.mkdir(parents=True)
    (scraps / "ids.npy").write_bytes(b"half")

    prepare(FileSource((log,)), simple_schema(), BY_PART, tmp_path / "out")

    assert sorted(p.name for p in tmp_path.iterdir()) == ["log.csv", "out"]


def test_a_folder_that_holds_something_is_not_written_into(log: Path, tmp_path: Path):
    write(tmp_path / "keep.txt", "mine")

    with pytest.raises(DataError, match="is not empty"):
        prepare(FileSource((log,)), simple_schema(), BY_PART, tmp_path)


def test_an_empty_folder_is_filled(log: Path, tmp_path: Path):
    (tmp_path / "out").mkdir()

    prepare(FileSource((log,)), simple_schema(), BY_PART, tmp_path / "out")

    assert EncodedLog.open(tmp_path / "out" / "log")


@pytest.mark.parametrize("when", ["survey", "fit_encoder", "encode"])
def test_a_file_that_changes_while_it_is_read_is_refused(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
):
    """In whichever of the three readings it happens."""
    original = getattr(prepare_module, when)

    def touching(source: FileSource, *arguments: Any, **keys: Any) -> Any:
        files_of = type(source).chunks

        def chunks(self: FileSource, columns: Any, faults: Any) -> Any:
            os.utime(log, (1, 1))
            return files_of(self, columns, faults)

        with monkeypatch.context() as patch:
            patch.setattr(FileSource, "chunks", chunks)
            return original(source, *arguments, **keys)

    monkeypatch.setattr(prepare_module, when, touching)

    with pytest.raises(DataError, match="changed while it was read"):
        prepare(FileSource((log,)), simple_schema(), BY_PART, tmp_path / "out")


def test_a_log_that_changed_between_two_readings_is_refused(log: Path, tmp_path: Path):
    """As a run that goes on after a day may find it: the rows that were parted are not those that are encoded."""
    folders = [tmp_path / name for name in ("surveyed", "fitted", "encoded")]
    for folder in folders:
        folder.mkdir()
    surveyed, fitted, encoded = folders
    prepare_module.survey(FileSource((log,)), simple_schema(), BY_PART, surveyed)
    prepare_module.fit_encoder(FileSource((log,)), simple_schema(), surveyed, fitted)

    log.write_text(log.read_text().replace("u1,", "u2,"))

    with pytest.raises(DataError, match="changed since its rows were parted; run the same command again"):
        prepare_module.encode(FileSource((log,)), simple_schema(), surveyed, fitted, encoded)


def test_how_the_log_is_cut_into_chunks_changes_nothing(log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Any block size gives the same bytes in every array."""
    one = prepare(FileSource((log,)), simple_schema(), BY_PART, tmp_path / "one")
    monkeypatch.setattr(text_files, "BLOCK_BYTES", 50)
    two = prepare(FileSource((log,)), simple_schema(), BY_PART, tmp_path / "two")

    files = sorted(p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*") if p.is_file())
    assert one.model_copy(update={"seconds": 0}) == two.model_copy(update={"seconds": 0})
    for file in files:
        if file.name != "report.json":
            assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file


def test_progress_only_grows_and_ends_at_its_total(log: Path, tmp_path: Path):
    said: list[tuple[float, float]] = []

    def listen(done: float, total: float, note: str = "") -> None:
        if not note.startswith("hashing"):
            said.append((done, total))

    prepare(FileSource((log,)), simple_schema(), BY_PART, tmp_path / "out", listen)

    assert [done for done, _ in said] == sorted(done for done, _ in said)
    assert said[-1][0] == said[-1][1] == 3 * 72


def test_files_of_any_format_give_the_same_arrays(tmp_path: Path):
    """CSV text, typed Parquet columns and Parquet text are one log."""
    rows = rows_of(SAME)
    texts = {name: [row[name] for row in rows] for name in rows[0]}
    typed = texts | {"n": [int(n) for n in texts["n"]], "click": [c == "1" for c in texts["click"]]}
    sources = {
        "csv": write(tmp_path / "log.csv", csv_of(rows)),
        "gz": write(tmp_path / "log.csv.gz", csv_of(rows)),
        "tsv": write(tmp_path / "log.tsv", csv_of(rows).replace(",", "\t")),
        "text": write_parquet(tmp_path / "text.parquet", texts),
        "typed": write_parquet(tmp_path / "typed.parquet", typed),
    }

    for name, path in sources.items():
        prepare(FileSource((path,)), simple_schema(unit={"column": "user"}), BY_PART, tmp_path / name)

    first, *others = [EncodedLog.open(tmp_path / name / "log") for name in sources]
    for other in others:
        for array in ("ids", "label", "part", "unit", "time"):
            assert np.array_equal(getattr(first, array), getattr(other, array)), array


EVERY_KIND = schema(
    {"name": "user", "role": "context"},
    {"name": "hour", "derived_from": "timestamp", "derive": "hour", "type": "integer", "role": "context"},
    {"name": "weekend", "derived_from": "timestamp", "derive": "is_weekend", "type": "boolean", "role": "context"},
    {"name": "seen", "type": "string", "role": "context", "kind": "sequence", "separator": "|", "max_length": 3},
    {"name": "position", "type": "integer", "role": "training_only", "serving_value": 1},
    {"name": "ad", "type": "integer", "encoding": {"method": "hash", "buckets": 50}},
    {"name": "price", "type": "float"} | NUMERIC,
    {"name": "is_new", "type": "boolean"},
    {"name": "weight", "type": "float"},
    {"name": "topics", "type": "integer", "kind": "sequence", "separator": " ", "max_length": 2, "keep": "first"},
    timestamp={"column": "time", "format": "epoch", "unit": "s"},
)
EVERY_COLUMN = ["part", "click", "time", "user", "seen", "position", "ad", "price", "is_new", "weight", "topics"]


def lists(sequence: tuple[np.ndarray, np.ndarray]) -> list[list[int]]:
    """Ids and offsets as one list a row."""
    ids, offsets = sequence
    return [ids[a:b].tolist() for a, b in itertools.pairwise(offsets)]


def every_kind_rows(count: int) -> list[list[str]]:
    random = np.random.default_rng(7)

    def one(*values: str) -> str:
        return str(random.choice(values))

    return [
        [
            *(PARTS[i * 3 // count], str(i % 2), str(i * 7000)),
            one("u1", "u2", "é☃", ""),
            one("", "a", "a|b|c|d", "|a||zz"),
            one("1", "2", ""),
            one("7", "8.0", "", "18446744073709551615"),
            one("0.1", "1e3", "", "-0", "bad", "2.50"),
            one("true", "0", "", "maybe"),
            one("0.5", ".5", "1e-7", ""),
            one("", "1 2 3", "2", "x 2"),
        ]
        for i in range(count)
    ]


def test_golden_rows_are_rows_of_the_test_part_as_a_request_would_bring_them(tmp_path: Path):
    """The online path gives each sampled row the very ids that the log path wrote: one value, one id."""
    rows = every_kind_rows(93)
    path = write(tmp_path / "log.csv", csv_of([dict(zip(EVERY_COLUMN, row, strict=True)) for row in rows]))

    prepare(FileSource((path,)), EVERY_KIND, BY_PART, tmp_path / "out")

    encoder, encoded = load_encoder(tmp_path / "out"), EncodedLog.open(tmp_path / "out" / "log")
    requests = load_golden_rows(tmp_path / "out")
    test = encoded.rows([Part.TEST])
    candidates = [c for request in requests[:8] for c in request["candidates"]][: len(test)]
    online = encoder.encode_candidates(candidates)
    assert len(test) == 31  # fewer than the sample takes, so all of them
    assert np.array_equal(online.ids, encoded.ids[test][:, 4:])
    assert lists(online.sequences["topics"]) == [lists(encoded.sequences["topics"])[row] for row in test]
    for request, row in zip(requests[:8], test[::4], strict=True):
        context = encoder.encode_context(request["context"])
        assert context.ids[0].tolist() == encoded.ids[row, :3].tolist()
        assert lists(context.sequences["seen"]) == [lists(encoded.sequences["seen"])[row]]


def test_golden_rows_hold_the_hard_cases_too(tmp_path: Path):
    """Missing, null, unknown and extreme values, empty and over-long sequences: every one a request can bring."""
    rows = every_kind_rows(93)
    path = write(tmp_path / "log.csv", csv_of([dict(zip(EVERY_COLUMN, row, strict=True)) for row in rows]))

    prepare(FileSource((path,)), EVERY_KIND, BY_PART, tmp_path / "out")

    encoder, requests = load_encoder(tmp_path / "out"), load_golden_rows(tmp_path / "out")
    assert json.loads(json.dumps(requests, allow_nan=False)) == requests
    assert all(len(request["candidates"]) >= 1 for request in requests)
    contexts = [encoder.encode_context(request["context"]) for request in requests]
    candidates = [encoder.encode_candidates(request["candidates"]) for request in requests]
    assert any(not request["context"] for request in requests)
    assert any(context.unknown.get("user") for context in contexts)
    assert any(not c["topics"] for request in requests for c in request["candidates"] if "topics" in c)
    assert max(len(c.get("topics", [])) for request in requests for c in request["candidates"]) > 2
    assert {abs(c["price"]) for request in requests for c in request["candidates"] if c.get("price") is not None} >= {
        1.7976931348623157e308,
        5e-324,
    }
    assert not any("position" in request["context"] for request in requests)
    assert all(c.ids.max() >= 0 for c in candidates)


texts = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=5)
integers = st.integers(-(2**63), 2**64 - 1)
floats = st.floats(allow_nan=False, allow_infinity=False)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(texts, integers, floats, st.booleans(), st.lists(texts.filter(lambda t: "|" not in t), max_size=4)),
        min_size=4,
        max_size=8,
    )
)
def test_a_value_has_one_id_whether_csv_parquet_or_json_brought_it(
    tmp_path_factory: pytest.TempPathFactory, values: list
):
    """The log is written as CSV and as typed Parquet; both give equal arrays, and a request gives the same ids."""
    folder = tmp_path_factory.mktemp("same")
    both = schema(
        {"name": "s"},
        {"name": "i", "type": "integer"},
        {"name": "x", "type": "float"},
        {"name": "b", "type": "boolean"},
        {"name": "l", "kind": "sequence", "separator": "|", "max_length": 3},
        {"name": "xn", "column": "x", "type": "float"} | NUMERIC,
    )
    rows = [(part, k, *row) for part in PARTS for _ in range(8) for row in values for k in (0, 1)]
    columns: dict[str, Any] = dict(
        zip(("part", "click", "s", "i", "x", "b", "l"), zip(*rows, strict=True), strict=True)
    )
    kind = pa.uint64() if max(columns["i"]) >= 2**63 else pa.int64()
    if kind == pa.uint64() and min(columns["i"]) < 0:
        columns["i"] = tuple(abs(i) for i in columns["i"])
        values = [(s, abs(i), x, b, tags) for s, i, x, b, tags in values]
    parquet = write_parquet(folder / "log.parquet", columns | {"i": pa.array(columns["i"], kind)})
    quoted = [
        columns["part"],
        columns["click"],
        columns["s"],
        columns["i"],
        map(repr, columns["x"]),
        columns["b"],
        map("|".join, columns["l"]),
    ]
    lines = [",".join('"' + str(cell).replace('"', '""') + '"' for cell in row) for row in zip(*quoted, strict=True)]
    csv = write(folder / "log.csv", "part,click,s,i,x,b,l\n" + "\n".join(lines) + "\n")

    for name, path in (("csv", csv), ("parquet", parquet)):
        report = prepare(FileSource((path,)), both, BY_PART, folder / name)
        assert report.bad_cells == {}

    one, two = EncodedLog.open(folder / "csv" / "log"), EncodedLog.open(folder / "parquet" / "log")
    assert np.array_equal(one.ids, two.ids)
    assert [a.tolist() for a in one.sequences["l"]] == [a.tolist() for a in two.sequences["l"]]
    online = load_encoder(folder / "csv").encode_candidates(
        [{"s": s, "i": i, "x": x, "b": b, "l": tags, "xn": x} for s, i, x, b, tags in values]
    )
    assert np.array_equal(online.ids, one.ids[: 2 * len(values) : 2])
    assert lists(online.sequences["l"]) == lists(one.sequences["l"])[: 2 * len(values) : 2]


def test_the_reference_for_drift_counts_the_ids_of_training_rows(tmp_path: Path):
    """The same as counting the encoded training rows, missing and unknown always among them."""
    rows = [row | {"ad": f"ad{i * i % 97}"} for i, row in enumerate(rows_of(SAME, each=300))]
    path = write(tmp_path / "log.csv", csv_of(rows))

    report = prepare(FileSource((path,)), simple_schema(), BY_PART, tmp_path / "out")

    encoded = EncodedLog.open(tmp_path / "out" / "log")
    train = encoded.rows([Part.TRAIN])
    for column, name in enumerate(["user", "ad", "n"]):
        assert report.reference[name] == FieldReference.from_ids(encoded.ids[train, column])


def test_a_column_that_one_file_may_lack_is_missing_there(tmp_path: Path):
    rows = "".join(f"{i % 2},{ad},{i}\n" for i in range(30) for ad in "ab")
    with_n = [write(tmp_path / f"{part}.csv", "click,ad,n\n" + rows) for part in ("train", "valid")]
    without = write(tmp_path / "test.csv", "click,ad\n" + "0,a\n1,b\n" * 9)
    split = FilesSplit(train=("train.csv",), valid=("valid.csv",), test=("test.csv",))
    fields = schema({"name": "ad"}, {"name": "n", "type": "integer"} | NUMERIC)

    with pytest.raises(DataError, match=r"test\.csv:1: expected a column 'n' \(field 'n' reads it\), got click, ad\."):
        prepare(FileSource((*with_n, without)), fields, split, tmp_path / "out")
    source = FileSource((*with_n, without), optional_columns=frozenset({"n"}))
    report = prepare(source, fields, split, tmp_path / "out")

    assert (report.missing["n"]["train"], report.missing["n"]["test"]) == (0, 1)


@pytest.mark.parametrize("limit", [3, 100])
def test_values_counted_on_disk_give_the_same_arrays(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
):
    """How many values memory may hold while they are counted changes nothing, and leaves no file behind."""
    monkeypatch.setattr(text_files, "BLOCK_BYTES", 50)
    prepare(FileSource((log,)), simple_schema(), BY_PART, tmp_path / "memory")
    monkeypatch.setattr(fitting, "MOST_VALUES", limit)

    prepare(FileSource((log,)), simple_schema(), BY_PART, tmp_path / "disk")

    files = sorted(p.relative_to(tmp_path / "memory") for p in (tmp_path / "memory").rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(tmp_path / "disk") for p in (tmp_path / "disk").rglob("*") if p.is_file())
    for file in files:
        if file.name != "report.json":
            assert (tmp_path / "memory" / file).read_bytes() == (tmp_path / "disk" / file).read_bytes(), file
