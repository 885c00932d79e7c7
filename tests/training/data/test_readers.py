"""Files in, rows out: nothing is guessed, and whatever cannot be read is named by file and line."""

import csv
import gzip
import io
import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training.data.logs import read, read_text, write, write_parquet
from training.data import text_files
from training.data.faults import Faults
from training.data.readers import FileSource, TextFormat
from training.errors import DataError


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log.csv"


def test_every_cell_of_a_text_file_is_text(log: Path):
    """Readers never guess types: 007 keeps its zeros and an empty cell is an empty text."""
    rows = read_text(log, "id,price\n007,1.50\n,true\n")

    assert rows == [{"#": 2, "id": "007", "price": "1.50"}, {"#": 3, "id": "", "price": "true"}]


@pytest.mark.parametrize("name", ["log.csv", "log.csv.gz", "log.tsv", "log.tab.gz"])
def test_the_ending_says_the_separator_and_the_first_bytes_say_gzip(tmp_path: Path, name: str):
    separator = "," if "csv" in name else "\t"

    rows = read_text(tmp_path / name, f"a{separator}b\n1{separator}2\n")

    assert rows == [{"#": 2, "a": "1", "b": "2"}]


def test_a_gzip_file_without_the_ending_is_unpacked_all_the_same(log: Path):
    assert read_text(log, gzip.compress(b"a,b\n1,2\n")) == [{"#": 2, "a": "1", "b": "2"}]


def zstd(content: bytes) -> bytes:
    packed: bytes = pa.compress(content, codec="zstd", asbytes=True)
    return packed


def test_zstd_is_unpacked_whole_also_where_files_were_joined(tmp_path: Path):
    """`cat a.zst b.zst` is a zstd file, as it is with gzip."""
    path = write(tmp_path / "log.tsv.zst", zstd(b"a\tb\n1\t2\n") + zstd(b"3\t4\n"))

    rows = read(FileSource((path,)))

    assert rows == [{"#": 2, "a": "1", "b": "2"}, {"#": 3, "a": "3", "b": "4"}]


def test_a_truncated_zstd_file_is_refused_after_the_rows_before_the_break(tmp_path: Path):
    numbers = np.random.default_rng(0).integers(0, 10**9, 100_000).tolist()
    whole = zstd(b"a,b\n" + b"".join(b"%d,%d\n" % (n, i) for i, n in enumerate(numbers)))
    path = write(tmp_path / "log.csv.zst", whole[: len(whole) // 2])

    with pytest.raises(DataError, match=r"log\.csv\.zst:(\d+): the zstd file is truncated or damaged") as refusal:
        read(FileSource((path,)))

    assert int(str(refusal.value).split(":")[1]) > 20_000


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv.zst", b"a,b\n1,2\n", r"ends in \.zst but is not zstd"),
        ("a.csv.gz", zstd(b"a,b\n1,2\n"), r"ends in \.gz but is not gzip"),
        ("a.csv", b"PK\x03\x04\x14\x00", "is packed by zip; expected text, gzip or zstd. Unpack it first"),
        ("a.csv", b"BZh91AY&SY", "is packed by bzip2"),
    ],
)
def test_a_file_packed_otherwise_than_it_says_or_we_can_is_refused(
    tmp_path: Path, name: str, content: bytes, words: str
):
    path = tmp_path / name
    path.write_bytes(content)

    with pytest.raises(DataError, match=words):
        FileSource((path,))


def test_a_last_line_that_breaks_off_is_told_from_other_bad_lines(log: Path):
    """Too few cells and no line break after them: more likely a truncated file than a bad row."""
    faults, other = Faults(None), Faults(None)

    read_text(log, "a,b\n1,2\n3", faults)
    read_text(log, "a,b\n1,2\n3\n", other)

    assert faults.reasons["wrong number of cells"].example.endswith("the file ends within this line: is it truncated?")
    assert "truncated" not in other.reasons["wrong number of cells"].example


def test_the_separator_can_be_said(tmp_path: Path):
    rows = read_text(tmp_path / "train.txt", "a;b\n1;2,5\n", separator=";")

    assert rows == [{"#": 2, "a": "1", "b": "2,5"}]


def test_names_can_be_given_for_a_file_without_a_header(tmp_path: Path):
    rows = read_text(tmp_path / "train.tsv", "1\t2\n3\t4\n", header=("a", "b"))

    assert rows == [{"#": 1, "a": "1", "b": "2"}, {"#": 2, "a": "3", "b": "4"}]


def test_a_byte_order_mark_crlf_and_quoted_line_breaks_leave_line_numbers_right(log: Path):
    rows = read_text(log, '\ufeffa,b\r\n1,"two\r\nlines"\r\n3,"say ""x"", y"\r\n4,'.encode())

    assert rows == [
        {"#": 2, "a": "1", "b": "two\r\nlines"},
        {"#": 4, "a": "3", "b": 'say "x", y'},
        {"#": 5, "a": "4", "b": ""},
    ]


def test_where_nothing_is_quoted_a_quote_is_a_character(log: Path):
    assert read_text(log, 'a,b\n"x,5" tv\n', quote=None) == [{"#": 2, "a": '"x', "b": '5" tv'}]


@pytest.mark.parametrize(
    ("bad", "reason", "words"),
    [
        (b"1,2,3\n", "wrong number of cells", "expected 2 cells as in the header, got 3"),
        (b"1\n", "wrong number of cells", "expected 2 cells as in the header, got 1"),
        (b'"x"y,2\n', "broken quote", "a quote that does not close where its cell ends"),
        (b'1,"x\n', "broken quote", "a quote that does not close where its cell ends"),
        (b"\xff,2\n", "not UTF-8", "bytes that are not UTF-8; expected UTF-8 text"),
        (b"1,\xed\xa0\x80\n", "not UTF-8", "bytes that are not UTF-8; expected UTF-8 text"),
        (b"1,a\0b\n", "NUL byte", "a NUL byte in the row; expected text"),
        (b"1,a\rb\n", "stray carriage return", "expected lines to end in LF or CRLF"),
    ],
)
def test_an_unreadable_row_is_skipped_and_counted_with_its_line(log: Path, bad: bytes, reason: str, words: str):
    """The rows around it are read, and the report says where it was and what was expected."""
    faults = Faults(0.5)

    rows = read_text(log, b"a,b\nx,1\n" + bad + b"y,2\nz,3\n", faults)

    assert [(r["#"], r["a"]) for r in rows] == [(2, "x"), (4, "y"), (5, "z")]
    assert list(faults.reasons) == [reason]
    assert faults.reasons[reason].count == 1
    assert str(faults.reasons[reason].first) == f"{log}:3"
    assert words in faults.reasons[reason].example


def test_a_quote_opened_by_mistake_swallows_no_other_row(log: Path):
    """The next quote, lines later, would close it: only the line that opened it is bad."""
    faults = Faults(0.5)
    lines = ["a,b", '1,"oops', *(f"{i},fine" for i in range(2, 50)), '50,"quoted"', "51,fine"]

    rows = read_text(log, "\n".join(lines), faults)

    assert [r["a"] for r in rows] == [str(i) for i in range(2, 52)]
    assert (faults.bad_rows, str(faults.reasons["broken quote"].first)) == (1, f"{log}:2")


def test_a_quote_that_never_closes_costs_one_line_even_in_a_file_of_many_blocks(
    log: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(text_files, "BLOCK_BYTES", 64)
    faults = Faults(0.5)

    rows = read_text(log, 'a,b\n1,"oops\n' + "".join(f"{i},fine\n" for i in range(2, 200)), faults)

    assert [(r["#"], r["a"]) for r in rows] == [(i + 1, str(i)) for i in range(2, 200)]
    assert faults.bad_rows == 1


def test_a_record_of_several_lines_that_does_not_fit_counts_all_its_lines(log: Path):
    """It may be rows that a stray quote has swallowed, and those are not lost silently."""
    faults = Faults(None)

    rows = read_text(log, 'a,b\n"1,x\n2,y\n3,z"\n4,w\n', faults)

    assert [r["a"] for r in rows] == ["4"]
    assert faults.reasons["wrong number of cells"].count == 3


def test_blank_lines_are_no_rows_and_are_reported(log: Path):
    faults = Faults(0.0)

    rows = read_text(log, "a,b\n\n1,2\n\r\n3,4\n\n", faults)

    assert [r["#"] for r in rows] == [3, 5]
    assert faults.to_json()["blank_lines"] == 3


def test_a_file_with_too_many_bad_rows_is_refused_with_the_first(log: Path):
    """One in a thousand is borne; more is a file that is not what it is taken for."""
    good = "1,2\n" * 1000

    read_text(log, "a,b\n" + good + "1\n", Faults(0.001))
    with pytest.raises(DataError) as refusal:
        read_text(log, "a,b\n" + good + "1\n1,2\n1,2,3\n", Faults(0.001))

    assert str(refusal.value) == (
        f"{log}:1002: expected 2 cells as in the header, got 1; 2 of 1003 rows of this file cannot be read (0.20%), "
        "more than max_bad_rows allows (0.10%). Mend the file, or raise max_bad_rows in the schema"
    )


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", b"", "a.csv: the file is empty; expected a header line"),
        ("a.csv", b"\xef\xbb\xbf", "a.csv: the file is empty; expected a header line"),
        ("a.csv", b"x,y,x\n1,2,3\n", "a.csv:1: column 'x' stands twice in the header"),
        ("a.csv", b"\xff\xfex\0", "a.csv: is UTF-16 text; expected UTF-8"),
        ("a.csv", b'"x,y\n1,2\n', "a.csv:1: the header cannot be read"),
        ("a.csv", b"\xff,y\n1,2\n", "a.csv:1: the header cannot be read"),
        ("a.txt", b"x y\n1 2\n", "a.txt: cannot tell the separator from the ending '.txt'"),
        ("a.parquet", b"", "a.parquet: the file is empty; expected Parquet"),
        ("a.parquet", b"x,y\n1,2\n", "a.parquet: is not Parquet, or truncated"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_at_once(tmp_path: Path, name: str, content: bytes, words: str):
    (tmp_path / name).write_bytes(content)

    with pytest.raises(DataError) as refusal:
        FileSource((tmp_path / name,))

    assert words in str(refusal.value)


def test_plain_text_that_calls_itself_gzip_is_refused(tmp_path: Path):
    (tmp_path / "a.csv.gz").write_bytes(b"x,y\n")

    with pytest.raises(DataError, match=r"a\.csv\.gz: ends in \.gz but is not gzip"):
        FileSource((tmp_path / "a.csv.gz",))


def test_a_truncated_gzip_file_is_refused_with_the_line_where_it_breaks_off(tmp_path: Path):
    numbers = np.random.default_rng(0).integers(10**9, size=20_000)
    whole = gzip.compress(b"a,b\n" + b"".join(b"%d,%d\n" % (n, i) for i, n in enumerate(numbers)))
    path = tmp_path / "log.csv.gz"
    path.write_bytes(whole[: len(whole) // 2])
    source = FileSource((path,))

    with pytest.raises(DataError, match=r"log\.csv\.gz:(\d+): the gzip file is truncated or damaged") as refusal:
        read(source)

    line = int(str(refusal.value).split(":")[1])
    assert 9_000 < line < 11_000


def test_a_truncated_parquet_file_is_refused(tmp_path: Path):
    path = write_parquet(tmp_path / "log.parquet", {"a": list(range(1000))})
    path.write_bytes(path.read_bytes()[:-20])

    with pytest.raises(DataError, match=r"log\.parquet: is not Parquet, or truncated"):
        FileSource((path,))


def test_a_parquet_file_damaged_inside_is_refused_with_a_row(tmp_path: Path):
    values = np.random.default_rng(0).integers(10**9, size=5000)
    path = write_parquet(tmp_path / "log.parquet", {"a": values}, write_page_checksum=True)
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    path.write_bytes(bytes(damaged))

    with pytest.raises(DataError, match=r"log\.parquet row 1: the file is damaged in or after this row"):
        read(FileSource((path,)))


def test_parquet_text_that_is_not_utf8_is_refused_with_its_row(tmp_path: Path):
    texts = pa.array([b"fine", b"\xff"]).view(pa.string())
    source = FileSource((write_parquet(tmp_path / "log.parquet", {"a": texts}),))

    with pytest.raises(DataError, match=r"log\.parquet row 2: column 'a': expected UTF-8 text, got other bytes"):
        read(source)


def test_a_missing_column_names_who_wants_it_and_what_it_might_be_called(log: Path):
    source = FileSource((write(log, "user_id,click\n1,0\n"),))

    with pytest.raises(DataError) as refusal:
        source.require({"click": "the label", "userid": "the unit"})

    assert str(refusal.value) == (
        f"{log}:1: expected a column 'userid' (the unit), got user_id, click. Did you mean 'user_id'?"
    )


def test_a_header_in_one_piece_is_taken_for_a_wrong_separator(log: Path):
    source = FileSource((write(log, "user_id;click\n1;0\n"),))

    with pytest.raises(DataError, match="The whole header is one cell: is the separator ';', not ','\\?"):
        source.require({"click": "the label"})


def test_files_may_order_their_columns_differently(tmp_path: Path):
    one, two = write(tmp_path / "1.csv", "a,b\n1,2\n"), write(tmp_path / "2.tsv", "b\tc\ta\n4\t5\t3\n")

    rows = read(FileSource((one, two)), ["a", "b"])

    assert rows == [{"#": 2, "a": "1", "b": "2"}, {"#": 2, "a": "3", "b": "4"}]


def test_only_a_column_called_optional_may_be_absent_from_a_file(tmp_path: Path):
    files = (write(tmp_path / "1.csv", "a,b\n1,2\n"), write(tmp_path / "2.csv", "a\n3\n"))

    with pytest.raises(DataError, match=r"2\.csv:1: expected a column 'b'"):
        read(FileSource(files), ["a", "b"])
    rows = read(FileSource(files, optional_columns=frozenset({"b"})), ["a", "b"])

    assert rows == [{"#": 2, "a": "1", "b": "2"}, {"#": 2, "a": "3", "b": None}]


def test_a_column_that_is_in_no_file_is_refused_though_optional(log: Path):
    source = FileSource((write(log, "a\n1\n"),), optional_columns=frozenset({"b"}))

    with pytest.raises(DataError, match="expected a column 'b'"):
        read(source, ["a", "b"])


def test_a_file_named_twice_is_refused(log: Path):
    write(log, "a\n1\n")

    with pytest.raises(DataError, match="named twice"):
        FileSource((log, log))


def test_parquet_columns_keep_their_types(tmp_path: Path):
    path = write_parquet(
        tmp_path / "log.parquet",
        {"i": pa.array([1, None]), "x": [0.5, 1.0], "b": [True, False], "s": ["a", ""], "l": [["a"], None]},
    )

    rows = read(FileSource((path,)), ["l", "s", "b", "x", "i"])

    assert rows[0] == {"#": 1, "l": ["a"], "s": "a", "b": True, "x": 0.5, "i": 1}
    assert rows[1] == {"#": 2, "l": None, "s": "", "b": False, "x": 1.0, "i": None}


def test_parquet_text_views_are_read_as_text(tmp_path: Path):
    """As Polars and DuckDB write them; Arrow cannot filter them as they are."""
    views = pa.array(["x", None, "a longer text than fits a view"], pa.string_view())
    lists = pa.array([["x"], [], None], pa.list_(pa.string_view()))
    path = write_parquet(tmp_path / "log.parquet", {"a": views, "b": lists})

    [chunk] = FileSource((path,)).chunks(["a", "b"], Faults(None))

    assert [chunk.columns[c].type for c in "ab"] == [pa.string(), pa.list_(pa.string())]
    assert chunk.columns["a"].to_pylist() == views.to_pylist()


def test_a_log_is_read_in_bounded_pieces(log: Path, monkeypatch: pytest.MonkeyPatch):
    """A block of text is all that is held; pieces join without loss or doubling."""
    monkeypatch.setattr(text_files, "BLOCK_BYTES", 1000)
    source = FileSource((write(log, "a,b\n" + "".join(f"{i},{i}\n" for i in range(5000))),))

    chunks = list(source.chunks(["a"], Faults(0.0)))

    assert max(c.rows for c in chunks) < 300
    assert [n for c in chunks for n in c.numbers.tolist()] == list(range(2, 5002))
    assert chunks[-1].read == 1.0
    assert all(a.read <= b.read for a, b in itertools.pairwise(chunks))


def test_which_rows_are_skipped_never_depends_on_the_columns_asked_for(log: Path):
    """A first pass that reads the label alone and a later one that reads all see the same rows."""
    source = FileSource((write(log, b"a,b\n1,2\n2,\xff\n3\n4,5\n"),))

    assert [r["#"] for r in read(source, ["a"])] == [r["#"] for r in read(source, ["a", "b"])] == [2, 5]


cells = st.text(st.sampled_from('ab1 ",;\n\r\té☃\ufeff'), max_size=6)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(cells, cells), min_size=1, max_size=8), st.integers(8, 64))
def test_what_a_csv_writer_wrote_is_read_back(tmp_path_factory: pytest.TempPathFactory, rows, block: int):
    """Any text survives, whatever quotes, separators and line breaks it holds, whatever the block size."""
    text = io.StringIO()
    csv.writer(text, quoting=csv.QUOTE_ALL).writerows([("a", "b"), *rows])
    path = tmp_path_factory.mktemp("csv") / "log.csv"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, "BLOCK_BYTES", block)
        got = read_text(path, text.getvalue(), Faults(0.0))

    assert [(r["a"], r["b"]) for r in got] == rows


lines = st.lists(
    st.sampled_from(
        [
            b"1,2",
            b"a b,\xc3\xa9",
            b"",
            b",",
            b"1,2,3",
            b"\xff,1",
            b"x,\0",
            b"p\rq,1",
            b'"q",1',
            b'1,"x',
            b"\xef\xbb\xbf,1",
        ]
    ),
    max_size=12,
)


@settings(max_examples=200, deadline=None)
@given(lines, st.sampled_from([b"\n", b"\r\n"]), st.integers(4, 40))
def test_both_ways_of_parsing_see_the_same_rows(tmp_path_factory: pytest.TempPathFactory, rows, end, block: int):
    """Arrow's parser takes the plain blocks only; without it rows, lines and faults are the same."""
    content = b"a,b\n" + b"".join(row + end for row in rows)
    path = tmp_path_factory.mktemp("csv") / "log.csv"
    outcomes = []
    for is_plain in (text_files.TextFile._is_plain, lambda self, block: False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(text_files, "BLOCK_BYTES", block)
            patch.setattr(text_files.TextFile, "_is_plain", is_plain)
            faults = Faults(None)
            outcomes.append((read_text(path, content, faults), faults.to_json()))

    assert outcomes[0] == outcomes[1]


def test_the_same_file_gives_the_same_rows_each_time(log: Path):
    source = FileSource((write(log, "a,b\n1,2\n3,4\n"),), TextFormat())

    assert read(source) == read(source)
