"""Criteo's train.txt and Avazu's train.csv: read as downloaded, encoded and split as the public benchmark does it."""

import gzip
import hashlib
from pathlib import Path

import numpy as np
import pytest

from tests.training.data.logs import avazu_text, criteo_text, read, write
from training.data import kaggle
from training.data.encoded_log import EncodedLog, Part
from training.data.kaggle import AVAZU, AVAZU_COLUMNS, CRITEO, CRITEO_COLUMNS, KaggleSource
from training.data.prepare import PrepareReport, load_encoder, prepare
from training.data.sources import open_source
from training.data.split import VALID, FoldsSplit, parts_by_folds
from training.errors import DataError
from training.recipe import load_recipe

ROWS = 1500
FILES = {CRITEO: ("train.txt", criteo_text), AVAZU: ("train.csv", avazu_text)}
RECIPES = {CRITEO: "criteo_x4", AVAZU: "avazu_x4"}


def put(folder: Path, log: str, text: str | bytes, name: str = "") -> Path:
    """A file where --data `folder` has it."""
    (folder / log).mkdir(exist_ok=True)
    return write(folder / log / (name or FILES[log][0]), text)


def prepare_recipe(folder: Path, log: str, *overrides: str) -> PrepareReport:
    loaded = load_recipe(RECIPES[log], overrides or ["source.rows=null"])
    source = open_source(loaded.recipe.source, base=loaded.base, data=folder)
    return prepare(source, loaded.schema, loaded.recipe.split, folder / "out")


@pytest.mark.parametrize("log", FILES)
def test_the_recipe_prepares_a_file_of_the_logs_shape(log: str, tmp_path: Path):
    put(tmp_path, log, FILES[log][1](ROWS))

    report = prepare_recipe(tmp_path, log)

    valid = sum(report.rows[f"valid_{x}"] for x in "abc")
    assert [report.rows["train"], valid, report.rows["test"]] == pytest.approx([1200, 150, 150], abs=2)  # by label
    assert report.label_rate["train"] == pytest.approx(report.label_rate["test"], abs=0.01)
    assert (report.bad_rows, report.bad_cells) == (0, {})


def test_criteo_is_encoded_by_the_benchmarks_rule(tmp_path: Path):
    """floor(ln(x)^2) above 2, smaller counts as they are, nothing known that fewer than 10 training rows hold."""
    put(tmp_path, CRITEO, criteo_text(ROWS))

    prepare_recipe(tmp_path, CRITEO)

    vocabularies = load_encoder(tmp_path / "out").to_vocabularies()
    assert sorted(map(int, vocabularies["I1"]))[:3] == [-1, 0, 1]
    rows = read(KaggleSource(CRITEO, tmp_path / CRITEO))
    log = EncodedLog.open(tmp_path / "out" / "log")
    train = np.flatnonzero(log.part == Part.TRAIN)
    for column, rule in (("I2", lambda x: int(np.log(x) ** 2) if x > 2 else x), ("C3", str)):
        counts: dict[str, int] = {}
        kind = int if column == "I2" else str
        for row in train:
            if cell := rows[row][column]:
                key = str(rule(kind(cell)))
                counts[key] = counts.get(key, 0) + 1
        assert set(vocabularies[column]) == {value for value, count in counts.items() if count >= 10}
        place = [f.name for f in log.fields].index(column)
        missing = np.array([not row[column] for row in rows])
        assert np.array_equal(log.ids[:, place] == 0, missing)


def test_avazus_hour_becomes_hour_weekday_and_weekend_and_its_id_is_dropped(tmp_path: Path):
    """2014-10-21 was a Tuesday; ten days, so that both days of one weekend are met."""
    put(tmp_path, AVAZU, avazu_text(ROWS))

    report = prepare_recipe(tmp_path, AVAZU)

    vocabularies = load_encoder(tmp_path / "out").to_vocabularies()
    assert sorted(map(int, vocabularies["hour"])) == list(range(24))
    assert sorted(map(int, vocabularies["weekday"])) == list(range(7))
    assert set(vocabularies["is_weekend"]) == {"0", "1"}
    assert "id" not in report.vocabulary
    assert report.first_time["train"].startswith("2014-10-21T00:00")
    encoder, log = load_encoder(tmp_path / "out"), EncodedLog.open(tmp_path / "out" / "log")
    first = encoder.encode_context({"hour": 0, "weekday": 1, "is_weekend": False}).ids[0, :3]
    assert log.ids[0, :3].tolist() == first.tolist()


@pytest.mark.parametrize("log", FILES)
def test_a_packed_file_and_windows_line_ends_give_the_same_rows(log: str, tmp_path: Path):
    name, text = FILES[log][0], FILES[log][1](50)
    for folder in ("plain", "packed", "windows"):
        (tmp_path / folder).mkdir()
    put(tmp_path / "plain", log, text)
    put(tmp_path / "packed", log, text, f"{name}.gz")
    put(tmp_path / "windows", log, text.replace("\n", "\r\n"))

    plain, packed, windows = (read(KaggleSource(log, tmp_path / f / log)) for f in ("plain", "packed", "windows"))

    assert plain == packed == windows


def test_avazu_is_found_under_the_name_kaggle_gives_it(tmp_path: Path):
    put(tmp_path, AVAZU, avazu_text(3), "train.gz")

    assert len(read(KaggleSource(AVAZU, tmp_path / AVAZU))) == 3


HEADER = "\t".join(CRITEO_COLUMNS) + "\n"


@pytest.mark.parametrize(
    ("log", "text", "words"),
    [
        (CRITEO, "", r"train\.txt: the file is empty"),
        (CRITEO, HEADER + criteo_text(3), r"train\.txt:1: expected a row, because the public file has no header line"),
        (CRITEO, criteo_text(3).replace("\t", ","), r"train\.txt:1: expected 40 cells between tabs .* got 1 in"),
        (CRITEO, "\n".join(line[2:] for line in criteo_text(3).split("\n")), r"got 39; the test file has no labels"),
        (CRITEO, "x" + criteo_text(3)[1:], r"train\.txt:1: label column 'Label': expected 0 or 1, got 'x'"),
        (AVAZU, "", r"train\.csv: the file is empty"),
        (
            AVAZU,
            avazu_text(3).split("\n", 1)[1],
            r"train\.csv:1: expected the header id,click,.* Is the header line lost",
        ),
        (AVAZU, avazu_text(3).replace(",", "\t"), r"train\.csv:1: expected the header id,click"),
        (AVAZU, avazu_text(3).replace("id,click,", "id,", 1), r"expected a column 'click'; the test file has none"),
        (AVAZU, avazu_text(3).replace(",C21", "", 1), r"train\.csv:1: expected the header .* which names 'C21'"),
    ],
)
def test_a_wrong_file_is_refused_by_its_first_line(log: str, text: str, words: str, tmp_path: Path):
    put(tmp_path, log, text)

    with pytest.raises(DataError, match=words):
        prepare_recipe(tmp_path, log)


@pytest.mark.parametrize("log", FILES)
def test_a_file_cut_within_its_last_line_is_refused(log: str, tmp_path: Path):
    put(tmp_path, log, FILES[log][1](ROWS)[:-60])

    with pytest.raises(
        DataError, match=rf":{ROWS + (log == AVAZU)}: expected \d+ cells .* the file ends within this line"
    ):
        prepare_recipe(tmp_path, log)


@pytest.mark.parametrize("log", FILES)
def test_a_file_cut_between_two_lines_is_refused_by_its_number_of_rows(log: str, tmp_path: Path):
    """Every line of it is good, but the split goes by row numbers and would be another one."""
    put(tmp_path, log, FILES[log][1](ROWS))
    number = {CRITEO: "45,840,617", AVAZU: "40,428,967"}[log]

    with pytest.raises(
        DataError, match=rf"expected {number} rows as in the public file, got 1,500: truncated\?.*rows=null"
    ):
        prepare_recipe(tmp_path, log, "name=whole")


@pytest.mark.parametrize("log", FILES)
def test_a_row_that_cannot_be_read_refuses_the_file(log: str, tmp_path: Path):
    """One row skipped, and every row behind it is in another part than the leaderboard's."""
    lines = FILES[log][1](ROWS).split("\n")
    lines[700] += {CRITEO: "\tmore", AVAZU: ",more"}[log]
    put(tmp_path, log, "\n".join(lines))

    with pytest.raises(DataError, match=r":701: expected \d+ cells .*more than max_bad_rows allows \(0\.00%\)"):
        prepare_recipe(tmp_path, log)


def test_a_truncated_gzip_file_is_refused_with_the_line(tmp_path: Path):
    whole = gzip.compress(criteo_text(ROWS).encode())
    path = put(tmp_path, CRITEO, "x", "train.txt.gz")
    path.write_bytes(whole[: len(whole) // 2])

    with pytest.raises(DataError, match=r"train\.txt\.gz:\d+: the gzip file is truncated or damaged"):
        prepare_recipe(tmp_path, CRITEO)


def test_what_is_not_unpacked_or_stands_twice_is_said(tmp_path: Path):
    (tmp_path / CRITEO).mkdir()
    with pytest.raises(DataError, match=r"criteo_kaggle: expected train\.txt or train\.txt\.gz in it, got neither$"):
        KaggleSource(CRITEO, tmp_path / CRITEO)
    put(tmp_path, CRITEO, b"", "dac.tar.gz")
    with pytest.raises(DataError, match=r"got neither; unpack dac\.tar\.gz there first"):
        KaggleSource(CRITEO, tmp_path / CRITEO)
    put(tmp_path, CRITEO, criteo_text(1))
    put(tmp_path, CRITEO, criteo_text(1), "train.txt.gz")
    with pytest.raises(DataError, match="got 2 of them; leave one there"):
        KaggleSource(CRITEO, tmp_path / CRITEO)
    (tmp_path / AVAZU / "train.csv").mkdir(parents=True)
    with pytest.raises(DataError, match=r"train\.csv: is a folder"):
        KaggleSource(AVAZU, tmp_path / AVAZU)


@pytest.mark.parametrize(("log", "recipe"), RECIPES.items())
def test_the_benchmarks_own_files_are_read_by_the_same_schema(log: str, recipe: str, tmp_path: Path):
    """Who has train.csv, valid.csv and test.csv of the benchmark needs neither the raw file nor our split."""
    text = FILES[log][1](300)
    rows = text.split("\n")[(log == AVAZU) : -1]
    header = ",".join(CRITEO_COLUMNS if log == CRITEO else AVAZU_COLUMNS)
    for name, part in (("train", rows[:150]), ("valid", rows[150:250]), ("test", rows[250:])):
        write(tmp_path / f"{name}.csv", "\n".join([header, *part]).replace("\t", ",") + "\n")
    files = [f"{tmp_path}/{name}.csv" for name in ("train", "valid", "test")]
    overrides = [
        f"source={{kind: files, paths: {files}, quote: null}}",
        "split={by: files, train: [train.csv], valid: [valid.csv], test: [test.csv]}",
    ]

    report = prepare_recipe(tmp_path, log, *overrides)

    assert (report.rows["train"], report.rows["test"]) == (150, 50)


@pytest.mark.parametrize("log", FILES)
def test_parts_can_be_compared_with_the_benchmarks_files(log: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The command writes nothing, but knows what md5 the benchmark's script would give these rows: those whose fold is
    1 or 0, in their order, under a header, separated by commas."""
    text = FILES[log][1](ROWS)
    put(tmp_path, log, text)
    lines = [line.replace("\t", ",") for line in text.split("\n")[(log == AVAZU) : -1]]
    clicks = np.array([line.split(",")[log == AVAZU] == "1" for line in lines])
    parts = parts_by_folds(FoldsSplit(), clicks)
    header = ",".join(CRITEO_COLUMNS if log == CRITEO else AVAZU_COLUMNS)
    expected = {
        name: hashlib.md5(
            "".join(f"{line}\n" for line in [header, *np.array(lines)[parts == part]]).encode()
        ).hexdigest()
        for name, part in (("valid.csv", VALID), ("test.csv", Part.TEST))
    }
    found = kaggle.md5_of_parts(KaggleSource(log, tmp_path / log), FoldsSplit())

    assert found == expected
    assert kaggle.main([RECIPES[log], "--data", str(tmp_path)]) == 1  # too few rows to be the public file
    assert "expected 4" in capsys.readouterr().err


def test_the_command_says_whether_the_parts_are_the_benchmarks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    put(tmp_path, AVAZU, avazu_text(200))
    found = kaggle.md5_of_parts(KaggleSource(AVAZU, tmp_path / AVAZU), FoldsSplit())
    shorter = (kaggle.RECIPES / "avazu_x4.yaml").read_text().replace("rows: 40_428_967", "rows: 200")
    (tmp_path / "avazu_x4.yaml").write_text(shorter)
    monkeypatch.setattr(kaggle, "RECIPES", tmp_path)

    assert kaggle.main(["avazu_x4", "--data", str(tmp_path)]) == 1
    assert capsys.readouterr().out.count("NOT the benchmark's") == 2
    monkeypatch.setitem(kaggle.PUBLISHED_MD5, AVAZU, found)
    assert kaggle.main(["avazu_x4", "--data", str(tmp_path)]) == 0
    assert "NOT" not in capsys.readouterr().out
