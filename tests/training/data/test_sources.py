"""Where a recipe's log comes from: files by name, or one of the real logs whose tables are joined."""

import gzip
import os
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from models.schema import FeatureSchema
from tests.training.data.logs import read, write
from training.data.fingerprint import fingerprint
from training.data.kuairand import KuaiRandSource
from training.data.movielens import MovieLensSource
from training.data.prepare import prepare
from training.data.sources import DATA_VARIABLE, SourceSettings, open_source, real_log
from training.data.split import ColumnSplit
from training.errors import DataError
from training.recipe import load_recipe

RECIPES = Path(__file__).parents[3] / "training" / "recipes"
REAL_LOGS = os.environ.get(DATA_VARIABLE)


def real(name: str) -> pytest.MarkDecorator:
    there = REAL_LOGS is not None and (Path(REAL_LOGS) / name).is_dir()
    return pytest.mark.skipif(not there, reason=f"{DATA_VARIABLE} names no folder that contains {name}/")


def settings(**keys: object):
    return TypeAdapter(SourceSettings).validate_python(keys)


def test_files_are_named_one_by_one_or_by_pattern_in_the_order_of_their_names(tmp_path: Path):
    for name in ("b.csv", "a.csv", "first.csv"):
        write(tmp_path / name, "x\n1\n")

    source = open_source(settings(kind="files", paths=["first.csv", "?.csv"]), base=tmp_path)

    assert [f.name for f in source.files] == ["first.csv", "a.csv", "b.csv"]


def test_a_pattern_without_a_file_and_a_file_that_is_not_there_are_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"\*\.csv: no file matches this pattern"):
        open_source(settings(kind="files", paths=["*.csv"]), base=tmp_path)
    with pytest.raises(DataError, match=r"log\.csv: cannot be opened: No such file"):
        open_source(settings(kind="files", paths=["log.csv"]), base=tmp_path)
    with pytest.raises(DataError, match="is a folder; expected a CSV, TSV or Parquet file"):
        open_source(settings(kind="files", paths=["."]), base=tmp_path)


def test_a_setting_that_does_not_exist_is_refused():
    with pytest.raises(ValidationError, match="seperator"):
        settings(kind="files", paths=["a.csv"], seperator=";")


def test_a_real_log_whose_folder_is_not_known_says_what_to_do(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(DATA_VARIABLE, raising=False)

    with pytest.raises(DataError, match=f"give --data FOLDER or set {DATA_VARIABLE}"):
        open_source(settings(kind="kuairand_pure"))


def test_a_folder_given_as_an_option_goes_before_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path / "elsewhere"))
    (tmp_path / "kuairand_pure").mkdir()

    assert real_log("kuairand_pure", tmp_path) == tmp_path / "kuairand_pure"
    with pytest.raises(DataError, match="elsewhere/kuairand_pure: no such folder"):
        real_log("kuairand_pure")


def test_the_folder_of_the_log_itself_is_answered_with_its_parent(tmp_path: Path):
    """--data names the folder that contains kuairand_pure/, and everybody tries the other one first."""
    (tmp_path / "kuairand_pure").mkdir()

    with pytest.raises(DataError, match=f"no such folder; .* Say the folder that contains it: {tmp_path}$"):
        real_log("kuairand_pure", tmp_path / "kuairand_pure")


def test_a_fingerprint_is_the_contents_and_not_the_names(tmp_path: Path):
    one, two, same = (write(tmp_path / n, t) for n, t in (("1", "a"), ("2", "b"), ("3", "a")))

    assert fingerprint([one, two]) == fingerprint([same, two])
    assert len({fingerprint([one, two]), fingerprint([two, one]), fingerprint([one]), fingerprint([one, one])}) == 4


def test_a_fingerprint_is_remembered_until_the_file_changes(tmp_path: Path):
    """The second time nothing is read: bytes changed behind an unchanged size and time go unseen."""
    path, cache = write(tmp_path / "log", "aaaa"), tmp_path / "cache.json"
    first = fingerprint([path], cache)
    times = (path.stat().st_atime_ns, path.stat().st_mtime_ns)

    path.write_text("bbbb")
    os.utime(path, ns=times)
    assert fingerprint([path], cache) == first
    os.utime(path, ns=(1, 1))
    assert fingerprint([path], cache) == fingerprint([path]) != first


def test_a_damaged_cache_of_fingerprints_is_made_anew(tmp_path: Path):
    path, cache = write(tmp_path / "log", "a"), write(tmp_path / "cache.json", "{half")

    assert fingerprint([path], cache) == fingerprint([path])
    assert fingerprint([path], cache) == fingerprint([path])


LOG_HEADER = "time_ms,date,hourmin,user_id,video_id,tab,duration_ms,is_click,long_view,play_time_ms"


@pytest.fixture
def kuairand(tmp_path: Path) -> Path:
    """Two users, two videos, one exposure a split; user 2 has no history and video 9 stands in no table."""
    from training.data.kuairand import _HISTORY, _USER, _VIDEO

    def table(name: str, key: str, columns: tuple[str, ...], rows: dict[str, dict[str, str]]) -> None:
        lines = [",".join((key, *columns))]
        lines += [",".join((k, *(row.get(c, "5") for c in columns))) for k, row in rows.items()]
        write(tmp_path / f"{name}.csv.gz", "\n".join(lines) + "\n")

    table("users", "user_id", _USER, {"1": {"fans_user_num_range": '"[100,1k)"'}, "2": {}})
    table("videos", "video_id", _VIDEO, {"7": {"tag": '"3,12"'}, "8": {}})
    table("history", "user_id", _HISTORY, {"1": {"history_len": "2", "watch_seq": "8 7"}})
    for split, row in (
        ("train", "1650812741436,20220425,900,1,7,1,49866,1,1,61802"),
        ("valid", "1651678777077,20220505,2300,2,8,0,100,0,0,0"),
        ("test", "1651849371557,20220508,0,2,9,1,25933,0,0,2901"),
    ):
        write(tmp_path / f"{split}.csv.gz", f"{LOG_HEADER}\n{row}\n")
    return tmp_path


def test_kuairand_joins_each_exposure_with_its_user_video_and_history(kuairand: Path):
    rows = read(KuaiRandSource(kuairand))

    assert [(r["split"], r["hour"], r["dow"], r["is_click"]) for r in rows] == [
        ("train", 9, 0, "1"),
        ("valid", 23, 3, "0"),
        ("test", 0, 6, "0"),
    ]
    assert [r["tag"] for r in rows] == ["3,12", "5", None]
    assert [r["fans_user_num_range"] for r in rows] == ["[100,1k)", "5", "5"]
    assert [(r["history_len"], r["watch_seq"]) for r in rows] == [("2", "8 7"), ("0", None), ("0", None)]


def test_what_is_known_only_after_an_exposure_is_no_column(kuairand: Path):
    assert {"long_view", "play_time_ms", "is_like"}.isdisjoint(KuaiRandSource(kuairand).columns())


def test_a_key_that_stands_twice_in_a_joined_table_is_refused(kuairand: Path):
    """Either row would be a guess."""
    path = kuairand / "history.csv.gz"
    path.write_bytes(path.read_bytes() + gzip.compress(b"1,3,7\n"))

    with pytest.raises(DataError, match=r"history\.csv\.gz: user_id '1' stands twice"):
        KuaiRandSource(kuairand)


def test_a_bad_row_in_a_joined_table_refuses_it(kuairand: Path):
    """It would be many rows of the log."""
    path = kuairand / "videos.csv.gz"
    path.write_bytes(path.read_bytes() + gzip.compress(b"10,too few\n"))

    with pytest.raises(DataError, match=r"videos\.csv\.gz:4: expected 10 cells as in the header, got 2"):
        KuaiRandSource(kuairand)


def test_movielens_calls_a_rating_above_3_a_click_and_leaves_3_out(tmp_path: Path):
    write(
        tmp_path / "ratings.csv.gz",
        "userId,movieId,rating,timestamp,split\n1,1,3.5,1260759144,train\n1,2,3.0,1260759144,train\n2,2,0.5,0,test\n",
    )
    write(
        tmp_path / "movies.csv.gz",
        'movieId,title,genres\n1,"Heat, The (1995)",Action|Crime\n2,No Year,(no genres listed)\n',
    )

    rows = read(MovieLensSource(tmp_path))

    kept = [(r["liked"], r["genres"], r["first_genre"], r["year"], r["year_rated"], r["#"]) for r in rows]
    assert kept == [(1, "Action|Crime", "Action", 1995, 2009, 2), (0, None, None, None, 1970, 4)]


def test_a_rating_that_is_no_number_refuses_the_log(tmp_path: Path):
    write(tmp_path / "ratings.csv.gz", "userId,movieId,rating,timestamp,split\n1,1,good,1,train\n")
    write(tmp_path / "movies.csv.gz", "movieId,title,genres\n1,A (1995),Action\n")

    with pytest.raises(
        DataError, match=r"ratings\.csv\.gz:2: column 'rating': expected 0\.5 to 5\.0 in halves, got 'good'"
    ):
        read(MovieLensSource(tmp_path))


def test_open_bandit_learns_neither_who_chose_an_item_nor_by_what_chance():
    """The policy and its propensity say who chose, not who clicks; the place is known to no request."""
    schema = FeatureSchema.from_file(RECIPES / "obd_small.schema.yaml")

    assert not {"policy", "propensity_score", "item_id"} & {f.source_column for f in schema.fields}
    assert [f.name for f in schema.training_only_fields] == ["position"]


@real("obd_small")
def test_open_bandit_is_prepared_whole(tmp_path: Path):
    """Every row and every click that its README counts."""
    loaded = load_recipe("obd_small")

    report = prepare(open_source(loaded.recipe.source), loaded.schema, loaded.recipe.split, tmp_path / "out")

    clicks = {part: round(report.rows[part] * rate) for part, rate in report.label_rate.items()}
    assert (report.rows["train"], clicks["train"]) == (29_161, 138)
    assert sum(report.rows[f"valid_{x}"] for x in "abc") == 5_471
    assert sum(clicks[f"valid_{x}"] for x in "abc") == 30
    assert (report.rows["test"], clicks["test"]) == (5_368, 39)
    assert (report.bad_rows, report.bad_cells) == (0, {})


@pytest.mark.parametrize("name", ["kuairand_pure", "ml_latest_small"])
def test_the_schemas_of_the_real_logs_are_good(name: str):
    """45 canonical fields of KuaiRand, 7 of MovieLens; outcomes are not among them."""
    schema = FeatureSchema.from_file(RECIPES / f"{name}.schema.yaml")

    assert len(schema.fields) == {"kuairand_pure": 45, "ml_latest_small": 7}[name]
    assert schema.unit is not None
    assert [f.name for f in schema.sequence_fields] == {"kuairand_pure": ["tag"], "ml_latest_small": ["genres"]}[name]


def test_the_optional_history_of_kuairand_works_when_its_marks_are_taken_away():
    text = (RECIPES / "kuairand_pure.schema.yaml").read_text()

    schema = FeatureSchema.from_text(
        text.replace("  # - {name: watch_seq", "  - {name: watch_seq").replace("  #    enc", "     enc")
    )

    assert schema.by_name["watch_seq"].max_length == 50
    assert len(schema.fields) == 46


@real("kuairand_pure")
def test_kuairand_is_prepared_whole(tmp_path: Path):
    """Every row of the published split, none bad; the label rates its README states."""
    schema = FeatureSchema.from_file(RECIPES / "kuairand_pure.schema.yaml")

    report = prepare(open_source(settings(kind="kuairand_pure")), schema, ColumnSplit(), tmp_path / "out")

    assert (report.rows["train"], report.rows["test"]) == (171_671, 29_434)
    assert sum(report.rows[f"valid_{x}"] for x in "abc") == 27_224
    assert report.label_rate["train"] == pytest.approx(0.4433, abs=5e-5)
    assert report.label_rate["test"] == pytest.approx(0.4467, abs=5e-5)
    assert (report.bad_rows, report.bad_cells) == (0, {})
    assert report.missing["onehot_feat4"]["train"] == pytest.approx(0.03, abs=0.01)
    assert max(rate for field in ("tab", "hour", "dow", "video_type") for rate in report.missing[field].values()) == 0


@real("ml_latest_small")
def test_movielens_is_prepared_whole(tmp_path: Path):
    schema = FeatureSchema.from_file(RECIPES / "ml_latest_small.schema.yaml")

    report = prepare(open_source(settings(kind="ml_latest_small")), schema, ColumnSplit(), tmp_path / "out")

    assert (report.rows["train"], report.rows["test"]) == (64_145, 7_934)
    assert sum(report.rows[f"valid_{x}"] for x in "abc") == 7_861
    assert report.label_rate["train"] == pytest.approx(0.777, abs=5e-4)
    assert (report.bad_rows, report.bad_cells) == (0, {})
    assert report.vocabulary["genres"] > 15
