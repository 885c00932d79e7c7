"""The small public logs as their publishers' archives unpack: generated files of those layouts, and the columns of the
shipped schemas."""

from __future__ import annotations

import csv
import gzip
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training.data.logs import read
from training.data.kuairand import _USER, KuaiRandSource
from training.data.open_bandit import OpenBanditOriginal
from training.data.prepare import prepare
from training.data.public_logs import open_log
from training.errors import DataError
from training.recipe import load_recipe

# Headers as the publishers have them (github.com/chongminggao/KuaiRand, README; st-tech/zr-obp, obd/).
KUAIRAND_LOG = (
    *("user_id", "video_id", "date", "hourmin", "time_ms", "is_click", "is_like", "is_follow", "is_comment"),
    *("is_forward", "is_hate", "long_view", "play_time_ms", "duration_ms", "profile_stay_time", "comment_stay_time"),
    *("is_profile_enter", "is_rand", "tab"),
)
KUAIRAND_USER = ("user_id", "user_active_degree", "is_lowactive_period", *_USER[1:])
KUAIRAND_VIDEO = (
    *("video_id", "author_id", "video_type", "upload_dt", "upload_type", "visible_status", "video_duration"),
    *("server_width", "server_height", "music_id", "music_type", "tag"),
)
OBD_LOG = (
    *("", "timestamp", "item_id", "position", "click", "propensity_score"),
    *(f"user_feature_{i}" for i in range(4)),
)
ITEMS = {"all": 3, "men": 2, "women": 2}


def table(path: Path, header: Sequence[str], rows: Iterable[Mapping[str, Any]], otherwise: Any = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows([row.get(name, otherwise) for name in header] for row in rows)
    return path


def exposure(user: int, video: int, date: int, time: int, click: int = 0) -> dict[str, int]:
    return {
        "user_id": user,
        "video_id": video,
        "date": date,
        "hourmin": 2300,
        "time_ms": time,
        "is_click": click,
        "play_time_ms": 9000 * click,
        "duration_ms": 5000,
        "tab": 1,
    }


def kuairand(data: Path, later: Sequence[Mapping[str, int]] = ()) -> Path:
    """User 1 was shown three videos before 04-25, one of them in the later log; user 2 none."""
    folder = data / "KuaiRand-Pure" / "data"
    before = [exposure(1, 7, 20220410, 200), exposure(1, 8, 20220409, 100)]
    own = [
        exposure(1, 7, 20220425, 400, click=1),
        exposure(1, 9, 20220424, 300),
        exposure(2, 7, 20220505, 500),
        exposure(2, 8, 20220508, 600, click=1),
    ]
    table(folder / "log_standard_4_08_to_4_21_pure.csv", KUAIRAND_LOG, before)
    table(folder / "log_standard_4_22_to_5_08_pure.csv", KUAIRAND_LOG, later or own)
    table(folder / "log_random_4_22_to_5_08_pure.csv", KUAIRAND_LOG, [])
    users: list[dict[str, Any]] = [{"user_id": user, "fans_user_num_range": "[100,1k)"} for user in range(1, 41)]
    table(folder / "user_features_pure.csv", KUAIRAND_USER, users, "5")
    table(folder / "video_features_basic_pure.csv", KUAIRAND_VIDEO, [{"video_id": 7, "tag": "3,12"}, {"video_id": 8}])
    return folder


def impressions(campaign: str, seed: int, rows: int) -> list[dict[str, Any]]:
    random = np.random.default_rng(seed)
    found: list[dict[str, Any]] = []
    for row in range(rows):
        shown = {
            "": row,
            "timestamp": f"2019-11-{24 + row * 7 // rows} 12:00:0{row % 10}.5+00:00",
            "position": 1 + row % 3,
        }
        shown |= {"item_id": int(random.integers(ITEMS[campaign])), "click": int(random.random() < 0.3)}
        shown |= {"propensity_score": 0.5} | {f"user_feature_{i}": f"{seed}{i}" * 16 for i in range(4)}
        found.append(shown | {f"user-item_affinity_{i}": float(i * (row % 2)) for i in range(ITEMS[campaign])})
    return found


def open_bandit(data: Path, campaigns: Sequence[str] = ("all", "men", "women"), rows: int = 14) -> Path:
    folder = data / "open_bandit_dataset"
    for policy in ("random", "bts"):
        for seed, name in enumerate(campaigns):
            header = (*OBD_LOG, *(f"user-item_affinity_{i}" for i in range(ITEMS[name])))
            table(folder / policy / name / f"{name}.csv", header, impressions(name, seed, rows))
            items = [{"": i, "item_id": i, "item_feature_0": 0.5 - i} for i in range(ITEMS[name])]
            header = ("", "item_id", *(f"item_feature_{i}" for i in range(4)))
            table(folder / policy / name / "item_context.csv", header, items, f"{seed}abc")
    return folder


def test_kuairand_as_unpacked_has_the_rows_splits_and_histories(tmp_path: Path):
    """Exposures before 04-25 are no rows: they are what a user watched, in the order of time."""
    kuairand(tmp_path)
    source = open_log(load_recipe("kuairand_pure").recipe.source, base=tmp_path, data=tmp_path)

    rows = read(source)

    assert [(r["split"], r["hour"], r["dow"], r["is_click"], r["#"]) for r in rows] == [
        ("train", 23, 0, "1", 2),
        ("valid", 23, 3, "0", 4),
        ("test", 23, 6, "1", 5),
    ]
    assert [(r["history_len"], r["watch_seq"]) for r in rows] == [("3", "8 7 9"), ("0", None), ("0", None)]
    assert [r["tag"] for r in rows] == ["3,12", "3,12", "0"]
    assert rows[0]["fans_user_num_range"] == "[100,1k)"
    assert not {"long_view", "play_time_ms", "is_like"} & set(source.columns())
    assert set(source.columns()) == {*rows[0]} - {"#"} == set(KuaiRandSource.columns(source))  # type: ignore[arg-type]


def test_of_a_long_history_the_last_fifty_videos_stay(tmp_path: Path):
    later = [exposure(1, 100 + k, 20220423, 10_000 + k) for k in range(60)] + [exposure(1, 7, 20220501, 99_999)]
    kuairand(tmp_path, later)

    (row,) = read(open_log(load_recipe("kuairand_pure").recipe.source, base=tmp_path, data=tmp_path))

    assert row["history_len"] == "62"
    assert row["watch_seq"] == " ".join(str(100 + k) for k in range(10, 60))


def test_the_same_log_in_both_layouts_is_the_same_rows(tmp_path: Path):
    """What was parted by day and packed with its histories, joined from the publisher's own files."""
    original = kuairand(tmp_path)
    unpacked = read(open_log(load_recipe("kuairand_pure").recipe.source, base=tmp_path, data=tmp_path))
    packed = tmp_path / "packed" / "kuairand_pure"
    packed.mkdir(parents=True)
    for name, table_ in (("users", "user_features_pure"), ("videos", "video_features_basic_pure")):
        with (original / f"{table_}.csv").open("rb") as raw, gzip.open(packed / f"{name}.csv.gz", "wb") as out:
            shutil.copyfileobj(raw, out)
    with gzip.open(packed / "history.csv.gz", "wt") as out:
        out.write("user_id,history_len,watch_seq\n1,3,8 7 9\n")
    lines = (original / "log_standard_4_22_to_5_08_pure.csv").read_text().splitlines()
    for split, line in (("train", lines[1]), ("valid", lines[3]), ("test", lines[4])):
        with gzip.open(packed / f"{split}.csv.gz", "wt") as out:
            out.write(f"{lines[0]}\n{line}\n")

    both = read(open_log(load_recipe("kuairand_pure").recipe.source, base=tmp_path, data=packed.parent))

    assert [{k: v for k, v in row.items() if k != "#"} for row in both] == [
        {k: v for k, v in row.items() if k != "#"} for row in unpacked
    ]


def test_kuairand_as_unpacked_is_prepared_by_the_shipped_recipe(tmp_path: Path):
    random = np.random.default_rng(0)
    days = [20220424, *range(20220425, 20220431), *range(20220501, 20220509)]
    rows = [
        exposure(int(user), 7 + k % 2, day, 1000 + k, click=int(random.random() < 0.5))
        for k, (day, user) in enumerate(zip(np.repeat(days, 40).tolist(), random.integers(1, 41, 40 * 15), strict=True))
    ]
    kuairand(tmp_path, rows)
    loaded = load_recipe("kuairand_pure")

    source = open_log(loaded.recipe.source, base=tmp_path, data=tmp_path)
    report = prepare(source, loaded.schema, loaded.recipe.split, tmp_path / "out")

    assert sum(report.rows.values()) == 14 * 40
    assert report.rows["test"] == 80
    assert (report.bad_rows, report.bad_cells) == (0, {})


def test_open_bandit_as_unpacked_joins_items_and_sums_affinities(tmp_path: Path):
    """men and women, as in the small joined file, unless the recipe says otherwise; hashes are as they are."""
    open_bandit(tmp_path)
    source = open_log(load_recipe("obd_small").recipe.source, base=tmp_path, data=tmp_path)

    rows = read(source)

    assert [(r["policy"], r["campaign"]) for r in rows[::14]] == [
        *(("random", "men"), ("random", "women"), ("bts", "men"), ("bts", "women"))
    ]
    second = rows[1]
    assert second["item_key"] == f"m{second['item_id']}"
    assert second["item_feature_0"] == str(0.5 - int(second["item_id"]))
    assert (second["affinity_item"], second["affinity_sum"], second["affinity_nnz"]) == (float(second["item_id"]), 1, 1)
    assert (rows[0]["affinity_sum"], rows[0]["affinity_nnz"]) == (0, 0)
    assert [r["split"] for r in rows[:14]] == ["train"] * 10 + ["valid"] * 2 + ["test"] * 2


def test_the_third_campaign_of_open_bandit_is_read_where_a_recipe_asks(tmp_path: Path):
    """Its items are counted anew, and it has more of them."""
    open_bandit(tmp_path, campaigns=("all",))
    settings = load_recipe("obd_small", ["source.campaigns=[all]"]).recipe.source

    rows = read(open_log(settings, base=tmp_path, data=tmp_path))

    assert {r["item_key"] for r in rows} <= {"a0", "a1", "a2"}
    assert {r["affinity_nnz"] for r in rows} == {0, 2}
    with pytest.raises(DataError, match=r"men/men\.csv"):
        open_log(load_recipe("obd_small").recipe.source, base=tmp_path, data=tmp_path)


def test_open_bandit_as_unpacked_is_prepared_by_the_shipped_recipe(tmp_path: Path):
    open_bandit(tmp_path, rows=140)
    loaded = load_recipe("obd_small")

    source = open_log(loaded.recipe.source, base=tmp_path, data=tmp_path)
    report = prepare(source, loaded.schema, loaded.recipe.split, tmp_path / "out")

    assert (sum(report.rows.values()), report.rows["train"], report.rows["test"]) == (560, 400, 80)
    assert (report.bad_rows, report.bad_cells) == (0, {})


def test_movielens_as_unpacked_is_parted_by_an_md5_of_each_rating(tmp_path: Path):
    """The split that docs/logs.md states, of some ratings of the real log, without a column for it."""
    folder = tmp_path / "ml-latest-small"
    known = {("1", "31"): "train", ("1", "1129"): "valid", ("1", "1293"): "valid", ("2", "47"): "test"}
    ratings = [{"userId": user, "movieId": movie, "rating": 4.0, "timestamp": 1260759144} for user, movie in known]
    table(folder / "ratings.csv", ("userId", "movieId", "rating", "timestamp"), ratings)
    table(folder / "movies.csv", ("movieId", "title", "genres"), [{"movieId": 31, "title": "A (1995)"}], "Drama")

    rows = read(open_log(load_recipe("ml_latest_small").recipe.source, base=tmp_path, data=tmp_path))

    assert {(r["userId"], r["movieId"]): r["split"] for r in rows} == known
    assert [(r["year"], r["liked"]) for r in rows[:2]] == [(1995, 1), (None, 1)]


@pytest.mark.parametrize(
    ("damaged", "said"),
    [
        ("log_standard_4_22_to_5_08_pure.csv", "ends in the middle of a line; is the download"),
        ("video_features_basic_pure.csv", "ends in the middle of a line; is the download"),
    ],
)
def test_a_download_that_broke_off_is_refused(damaged: str, said: str, tmp_path: Path):
    path = kuairand(tmp_path) / damaged
    path.write_bytes(path.read_bytes()[:-5])

    with pytest.raises(DataError, match=rf"{damaged}: {said}"):
        open_log(load_recipe("kuairand_pure").recipe.source, base=tmp_path, data=tmp_path)


def test_a_file_of_the_publishers_that_is_missing_is_named(tmp_path: Path):
    (kuairand(tmp_path) / "user_features_pure.csv").unlink()
    (open_bandit(tmp_path) / "bts" / "women" / "item_context.csv").unlink()

    with pytest.raises(DataError, match=r"KuaiRand-Pure/data: user_features_pure.csv: no such file"):
        open_log(load_recipe("kuairand_pure").recipe.source, base=tmp_path, data=tmp_path)
    with pytest.raises(DataError, match=r"open_bandit_dataset: bts/women/item_context.csv: no such file"):
        open_log(load_recipe("obd_small").recipe.source, base=tmp_path, data=tmp_path)


@pytest.mark.parametrize(
    ("recipe", "file", "header", "said"),
    [
        (
            "kuairand_pure",
            "log_standard_4_08_to_4_21_pure.csv",
            "user_id,date",
            "expected a column 'video_id' .*histor",
        ),
        ("kuairand_pure", "user_features_pure.csv", "user_id,age", "column 'user_active_degree' is needed"),
        ("obd_small", "random/men/men.csv", "timestamp,item_id,position,click", "expected a column 'propensity_score'"),
        ("obd_small", "random/men/item_context.csv", "item_id,item_feature_0", "column 'item_feature_1' is needed"),
    ],
)
def test_another_file_under_a_publishers_name_is_refused(
    recipe: str, file: str, header: str, said: str, tmp_path: Path
):
    folder = kuairand(tmp_path) if recipe == "kuairand_pure" else open_bandit(tmp_path)
    (folder / file).write_text(f"{header}\n{'1,' * header.count(',')}1\n")

    with pytest.raises(DataError, match=rf"{Path(file).name}:1: {said}"):
        open_log(load_recipe(recipe).recipe.source, base=tmp_path, data=tmp_path)


def test_gaps_in_affinities_and_values_that_are_none_are_refused_with_their_place(tmp_path: Path):
    folder = open_bandit(tmp_path)
    path = folder / "random" / "men" / "men.csv"
    text = path.read_text()

    path.write_text(text.replace("affinity_1", "affinity_2"))
    with pytest.raises(
        DataError, match=r"men\.csv:1: expected columns user-item_affinity_0, 1, .* got those of \[0, 2\]"
    ):
        OpenBanditOriginal(folder)
    path.write_text(text.replace(",0.0,0.0\n", ",0.0,lots\n", 1))
    with pytest.raises(DataError, match=r"men\.csv:2: column 'user-item_affinity_1': expected a number, got 'lots'"):
        read(OpenBanditOriginal(folder))
    path.write_text(text.replace("2019-11-30", "2020-11-30", 1))
    with pytest.raises(DataError, match=r"men\.csv:14: column 'timestamp': expected a day from 2019-11-24"):
        read(OpenBanditOriginal(folder))


def test_a_day_that_is_none_of_kuairands_is_refused(tmp_path: Path):
    """Rows are parted by day, and one of another year would be training data."""
    kuairand(tmp_path, [exposure(1, 7, 20230501, 1)])

    with pytest.raises(
        DataError, match=r"pure\.csv:2: column 'date': expected .* from 20220408 to 20220508, got '2023"
    ):
        read(open_log(load_recipe("kuairand_pure").recipe.source, base=tmp_path, data=tmp_path))


def test_an_archive_that_is_not_unpacked_is_named(tmp_path: Path):
    (tmp_path / "KuaiRand-Pure.tar.gz").write_bytes(b"\x1f\x8b")

    with pytest.raises(
        DataError, match=r"KuaiRand-Pure/data/ with its files .*; unpack KuaiRand-Pure\.tar\.gz there first"
    ):
        open_log(load_recipe("kuairand_pure").recipe.source, base=tmp_path, data=tmp_path)


def test_the_archives_own_folder_is_answered_with_the_one_that_contains_it(tmp_path: Path):
    folder = kuairand(tmp_path)

    with pytest.raises(
        DataError, match=rf"expected kuairand_pure/ or KuaiRand-Pure/data/ .* contains it: {tmp_path}\."
    ):
        open_log(load_recipe("kuairand_pure").recipe.source, base=tmp_path, data=folder)
