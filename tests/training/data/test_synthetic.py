"""The synthetic world: what it promises about its log, so that numbers measured on it mean something."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from training.data.synthetic import World
from training.data.synthetic.effects import EFFECTS
from training.data.synthetic.inhabitants import FIRST_SECOND
from training.fit.metrics import auc, ece, ece_floor, xauc


@pytest.fixture(scope="module")
def log() -> pa.Table:
    return pa.concat_tables(World(seed=3, rows=40_000).chunks())


def column(log: pa.Table, name: str) -> np.ndarray:
    return log[name].to_numpy()


def test_a_seed_is_a_log() -> None:
    """The same seed writes the same rows, byte for byte; another seed is another world."""
    first, again, other = (pa.concat_tables(World(seed, rows=3000).chunks()) for seed in (5, 5, 6))

    assert first.equals(again)
    assert not first.equals(other)


def test_the_log_of_a_seed_is_the_same_in_every_release() -> None:
    """Numbers measured on it compare from one release to the next: whoever changes a row changes them all.

    Floats are compared to nine digits, because the last bit of an exponential is the machine's own.
    """
    log = pa.concat_tables(World(seed=0, rows=2000).chunks())

    rows = (
        f"{value:.9g}" if isinstance(value, float) else str(value) for row in log.to_pylist() for value in row.values()
    )
    assert (
        hashlib.sha256("\n".join(rows).encode()).hexdigest()
        == "3dc4d4d09cc0bcbbdcb0d8f63d28d2e218733ab2d6228ca873dc6d9c9549be14"
    )


def test_more_rows_are_more_of_the_same_world() -> None:
    """Names, effects and the level of clicks do not depend on how many impressions are drawn."""
    few, many = World(seed=1, rows=2000), World(seed=1, rows=50_000)
    impressions = many.impressions(np.random.default_rng(0), 4, 500)

    np.testing.assert_array_equal(few.true_logit(impressions), many.true_logit(impressions))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_world_is_as_hard_as_it_promises(seed: int) -> None:
    """CTR 10-20% and a Bayes xAUC of .80 to .83, so that gains compare across seeds of the log."""
    truth = np.concatenate([column(table, "true_pctr") for table in World(seed, rows=60_000).chunks()])

    assert 0.10 < truth.mean() < 0.20
    assert 0.80 < xauc(truth, truth) < 0.83


def test_clicks_are_drawn_from_the_truth(log: pa.Table) -> None:
    """The truth is perfectly calibrated: its ECE is that of label noise alone, and its AUC the Bayes AUC."""
    click, truth = column(log, "click"), column(log, "true_pctr")

    assert ece(click, truth) < 2 * ece_floor(truth)
    assert auc(click, truth) == pytest.approx(xauc(truth, truth), abs=0.015)


def test_the_schema_describes_the_log(log: pa.Table) -> None:
    """Every field reads a column that is there, of its type; label, truth and time are no features."""
    schema = World.schema()
    arrow = {"string": pa.string(), "integer": pa.int64(), "float": pa.float64(), "boolean": pa.bool_()}

    columns = {field.source_column: field.type for field in schema.fields if field.source_column}

    for name, type_ in columns.items():
        assert log.schema.field(name).type == arrow[type_], name
    assert set(log.column_names) == set(columns) | {"click", "true_pctr", "time"}
    assert schema.truth.column == "true_pctr"
    assert {"hour", "weekday"} == {field.name for field in schema.fields if field.derived_from}


def test_rows_come_in_the_order_of_time_and_fill_every_day(log: pa.Table) -> None:
    """A split by day finds about as many rows in each, the first on a Monday."""
    seconds = column(log, "time")

    days, rows = np.unique((seconds - FIRST_SECOND) // 86_400, return_counts=True)

    assert (np.diff(seconds) >= 0).all()
    assert days.tolist() == list(range(8))
    assert rows.tolist() == [5000] * 8
    assert (FIRST_SECOND // 86_400 + 3) % 7 == 0


@pytest.mark.parametrize(
    ("child", "parent"),
    [
        ("ad_id", "campaign_id"),
        ("campaign_id", "advertiser_id"),
        ("advertiser_id", "ad_category"),
        ("placement", "publisher_id"),
        ("publisher_id", "publisher_category"),
        ("device_model", "device_brand"),
        ("region", "country"),
        ("user_id", "region"),
    ],
)
def test_children_have_one_parent(log: pa.Table, child: str, parent: str) -> None:
    """An ad belongs to one campaign, a placement to one publisher, and so on up."""
    pairs = log.group_by([child, parent]).aggregate([])

    assert pc.count_distinct(pairs[child]).as_py() == len(pairs)
    assert len(pairs) > pc.count_distinct(pairs[parent]).as_py()


def test_ads_start_and_end(log: pa.Table) -> None:
    """The last day shows ads that the first days never did, and others are gone."""
    day = (column(log, "time") - FIRST_SECOND) // 86_400
    ads = column(log, "ad_id")

    early, late = set(ads[day <= 2]), set(ads[day == 7])

    assert np.isin(ads[day == 7], list(late - early)).mean() > 0.1
    assert np.isin(ads[day <= 2], list(early - late)).mean() > 0.1


def test_popularity_follows_zipf_and_numbers_have_heavy_tails(log: pa.Table) -> None:
    """A tenth of the users make far more than a tenth of the impressions; means lie far above medians."""
    _, counts = np.unique(column(log, "user_id"), return_counts=True)
    counts = np.sort(counts)[::-1]

    assert counts[: len(counts) // 10].sum() > 0.3 * counts.sum()
    for name in ("account_age_days", "bid", "page_words", "seen_today"):
        values = log[name].drop_null().to_numpy()
        assert values.mean() > 1.25 * np.median(values), name


def test_values_are_missing_where_a_real_log_misses_them(log: pa.Table) -> None:
    """A user's age and gender are missing for good; other gaps come and go; ids are always there."""
    shares = {name: log[name].null_count / len(log) for name in log.column_names}

    for name in ("age_band", "gender", "page_words", "discount", "recent_categories"):
        assert 0.02 < shares[name] < 0.5, name
    assert all(shares[name] == 0 for name in ("user_id", "ad_id", "time", "click", "true_pctr"))
    of_user = log.filter(pc.is_null(log["age_band"])).group_by("user_id").aggregate([("age_band", "count")])
    with_age = set(log.filter(pc.is_valid(log["age_band"]))["user_id"].to_pylist())
    assert not set(of_user["user_id"].to_pylist()) & with_age


def test_sequences_hold_up_to_six_categories(log: pa.Table) -> None:
    """Joined by the separator the schema names, of the very categories that ads have."""
    categories = set(column(log, "ad_category"))
    lists = [cell.split("|") for cell in log["recent_categories"].drop_null().to_pylist()]

    assert {len(one) for one in lists} == set(range(1, 7))
    assert {name for one in lists for name in one} == categories


def test_every_kind_of_effect_is_in_the_truth() -> None:
    """Shares of the variance are as `EFFECTS` says: each term, measured on fresh impressions, has its part."""
    world = World(seed=2, rows=1000)
    codes = [world.impressions(np.random.default_rng(day), day, 6000) for day in range(world.days)]
    joined = {name: np.concatenate([part[name] for part in codes]) for name in codes[0]}

    variances = [values.var() for values in world.effects(joined)]

    shares = np.array([effect.share for effect in EFFECTS])
    np.testing.assert_allclose(variances / np.sum(variances), shares / shares.sum(), rtol=0.25)
    assert {effect.kind for effect in EFFECTS} == {"main", "pair", "triple", "cross", "curve", "slope", "drift"}


@pytest.mark.parametrize("name", ["log.parquet", "log.csv", "log.csv.gz", "log.tsv"])
def test_every_format_holds_the_same_log(tmp_path: Path, name: str) -> None:
    """Parquet keeps types; text reads back to the same values, missing ones among them."""
    expected = pa.concat_tables(World(seed=4, rows=1500).chunks())

    report = World(seed=4, rows=1500).write(tmp_path / name)

    if name.endswith("parquet"):
        found = pq.read_table(tmp_path / name)
    else:
        found = pyarrow.csv.read_csv(
            tmp_path / name,
            parse_options=pyarrow.csv.ParseOptions(delimiter="\t" if ".tsv" in name else ","),
            convert_options=pyarrow.csv.ConvertOptions(column_types=expected.schema, strings_can_be_null=True),
        )
    assert found.equals(expected)
    assert report.rows == 1500
    assert report.ctr == pytest.approx(column(expected, "click").mean())
    assert report.bayes_xauc == pytest.approx(xauc(column(expected, "true_pctr"), column(expected, "true_pctr")))


def test_a_log_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    """Whoever stops half way leaves no file that looks like a log."""

    def stop(done: float, total: float, note: str = "") -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        World(seed=0, rows=1000).write(tmp_path / "log.csv", progress=stop)

    assert list(tmp_path.iterdir()) == []


def test_a_format_it_cannot_write_is_refused(tmp_path: Path) -> None:
    """Before any row is drawn, naming those it can."""
    with pytest.raises(ValueError, match=r"log\.json: expected \.parquet, \.csv"):
        World(seed=0, rows=1000).write(tmp_path / "log.json")
