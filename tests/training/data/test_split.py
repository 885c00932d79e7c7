"""Which rows train, validate and test, and that no part is useless."""

import hashlib

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from training.data.chance import scramble, uniform
from training.data.encoded_log import Part
from training.data.split import (
    PART_NAMES,
    UNUSED,
    VALID,
    FilesSplit,
    Split,
    named_files,
    part_validation,
    parts_by_folds,
    parts_by_time,
    refuse_useless_parts,
    thin_training,
)
from training.data.timestamps import zone_of
from training.errors import SplitError

UTC = zone_of("UTC")
HOUR = 3_600_000_000
TRAIN, TEST = int(Part.TRAIN), int(Part.TEST)


def settings(**keys: object):
    return TypeAdapter(Split).validate_python(keys)


def test_fractions_put_the_latest_rows_into_test():
    times = np.random.default_rng(0).permutation(1000) * HOUR

    parts = parts_by_time(settings(by="time", fractions={"valid": 0.2, "test": 0.1}), times, UTC)

    assert [int((parts == p).sum()) for p in (TRAIN, VALID, TEST)] == [700, 200, 100]
    assert times[parts == TRAIN].max() < times[parts == VALID].min()
    assert times[parts == VALID].max() < times[parts == TEST].min()


def test_a_moment_never_falls_into_two_parts():
    """Half the rows share one moment, across which a fraction would cut."""
    times = np.array([1] * 30 + [2] * 50 + [3] * 20) * HOUR

    parts = parts_by_time(settings(by="time", fractions={"valid": 0.3, "test": 0.1}), times, UTC)

    assert all(len(set(parts[times == t])) == 1 for t in times)


def test_last_days_are_calendar_days_of_the_schemas_zone():
    """23:30 UTC is already the next day in Berlin."""
    times = np.array([0, 24, 47, 47.5, 71, 71.5]) * HOUR
    split = settings(by="time", last_days={"valid": 1, "test": 1})

    in_utc = parts_by_time(split, times.astype(np.int64), UTC)
    in_berlin = parts_by_time(split, times.astype(np.int64), zone_of("Europe/Berlin"))

    assert in_utc.tolist() == [TRAIN, VALID, VALID, VALID, TEST, TEST]
    assert in_berlin.tolist() == [TRAIN, TRAIN, VALID, VALID, TEST, TEST]


def test_boundaries_say_where_each_part_begins():
    times = np.arange(6) * 24 * HOUR
    split = settings(
        by="time",
        boundaries={"train": "1970-01-02", "valid": "1970-01-03", "test": "1970-01-04T00:00:00Z", "end": "1970-01-06"},
    )

    assert parts_by_time(split, times, UTC).tolist() == [UNUSED, TRAIN, VALID, TEST, TEST, UNUSED]


def test_boundaries_out_of_order_are_refused():
    split = settings(by="time", boundaries={"valid": "1970-01-04", "test": "1970-01-03"})

    with pytest.raises(SplitError, match="boundaries must follow each other"):
        parts_by_time(split, np.array([0]), UTC)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"by": "time"}, "exactly one of fractions, last_days and boundaries, got none"),
        ({"by": "time", "fractions": {"valid": 0.6, "test": 0.4}}, "must leave rows to train on"),
        ({"by": "column", "train": ["a"], "valid": ["a"]}, "stands in two parts"),
        ({"by": "files", "train": ["*"], "valid": [], "test": ["t"]}, "at least 1 item"),
        ({"by": "dice"}, "dice"),
        ({"by": "column", "validation_shares": [0.5, 0.5, 0.5]}, "three positive shares that add to 1"),
        ({"by": "column", "colum": "split"}, "colum"),
    ],
)
def test_settings_that_mean_nothing_are_refused(keys: dict, words: str):
    with pytest.raises(ValidationError, match=words):
        settings(**keys)


def test_files_are_parted_by_pattern_on_path_or_name():
    split = FilesSplit(train=("logs/day-1*.csv",), valid=("day-20.csv",), test=("*21.csv",))

    found = named_files(split, ["logs/day-18.csv", "logs/day-19.csv", "logs/day-20.csv", "logs/day-21.csv"])

    assert found == {
        "logs/day-18.csv": TRAIN,
        "logs/day-19.csv": TRAIN,
        "logs/day-20.csv": VALID,
        "logs/day-21.csv": TEST,
    }


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["a.csv", "b.csv", "c.csv", "d.csv"], r"file d\.csv: expected it in exactly one of .* got none"),
        (["a.csv", "b.csv", "c.csv", "ab.csv"], r"file ab\.csv: .* got train and valid"),
        (["a.csv", "b.csv"], r"test: no file matches 'c\.csv'"),
    ],
)
def test_a_file_in_no_part_or_in_two_is_refused(files: list[str], words: str):
    split = FilesSplit(train=("a*.csv",), valid=("*b.csv",), test=("c.csv",))

    with pytest.raises(SplitError, match=words):
        named_files(split, files)


def test_validation_is_parted_by_unit_in_the_shares_asked_for():
    """A user's rows are all in A, all in B or all in C; parts outside validation stay."""
    units = scramble(np.repeat(np.arange(3000, dtype=np.uint64), 4))
    parts = np.full(len(units), VALID, np.uint8)
    parts[:400], parts[-400:] = TRAIN, TEST

    parted = part_validation(parts, units, settings(by="column", validation_shares=[0.5, 0.3, 0.2]))

    assert (parted[:400] == TRAIN).all()
    assert (parted[-400:] == TEST).all()
    assert (parted.reshape(-1, 4) == parted[::4, None]).all()
    shares = [(parted[400:-400] == p).mean() for p in (Part.VALID_A, Part.VALID_B, Part.VALID_C)]
    assert shares == pytest.approx([0.5, 0.3, 0.2], abs=0.03)


def test_another_seed_parts_validation_independently():
    units = np.arange(20_000, dtype=np.uint64)

    one, two = uniform(units, 1), uniform(units, 2)

    assert abs(np.corrcoef(one, two)[0, 1]) < 0.03
    assert one.min() >= 0
    assert max(one.max(), two.max()) < 1


def test_a_share_of_training_rows_is_drawn_by_row_and_nothing_else_is_touched():
    """10% of the rows are among the 30%; validation and test stay whole."""
    parts = np.repeat(np.array([TRAIN, VALID, TEST], np.uint8), [30_000, 500, 500])

    def kept(share: float) -> np.ndarray:
        split = TypeAdapter(Split).validate_python({"by": "folds", "train_share": share})
        thinned = thin_training(parts, split)
        assert (thinned[30_000:] == parts[30_000:]).all()
        assert set(np.unique(thinned[:30_000])) <= {TRAIN, UNUSED}
        return thinned[:30_000] == TRAIN

    assert kept(1.0).all()
    assert abs(kept(0.3).mean() - 0.3) < 0.01
    assert abs(kept(0.1).mean() - 0.1) < 0.01
    assert not (kept(0.1) & ~kept(0.3)).any()


def test_the_hash_is_even_and_neighbours_are_independent():
    found = uniform(np.arange(100_000, dtype=np.uint64), 0)

    counts = np.histogram(found, bins=20, range=(0, 1))[0]
    assert ((counts - 5000) ** 2 / 5000).sum() < 50  # chi-squared of 19 degrees: P < .0001
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 0.02


def test_scrambled_numbers_are_the_published_splitmix64():
    """First outputs of the reference implementation with seed 0."""
    steps = np.arange(3, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)

    assert scramble(steps).tolist() == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


@pytest.mark.parametrize("name", list(PART_NAMES.values()))
@pytest.mark.parametrize("fault", ["empty", "one label"])
def test_a_part_without_rows_of_both_labels_is_refused_by_name(name: str, fault: str):
    part = {n: p for p, n in PART_NAMES.items()}[name]
    parts = np.repeat(np.array(list(PART_NAMES), np.uint8), 10)
    clicks = np.tile([True, False], 25)
    if fault == "empty":
        parts[parts == part] = UNUSED
    else:
        clicks[parts == part] = True

    with pytest.raises(SplitError, match=f"part '{name}' (is empty|has 10 rows and all of them have label 1)"):
        refuse_useless_parts(parts, clicks, np.arange(50))


def test_parts_with_rows_of_both_labels_pass():
    refuse_useless_parts(np.repeat(np.array(list(PART_NAMES), np.uint8), 2), np.tile([True, False], 5), None)


def folds(clicks: np.ndarray, count: int = 10, seed: int = 2018) -> np.ndarray:
    """The fold of each row, found by asking for each in turn as the test part."""
    found = np.full(len(clicks), -1)
    for fold in range(count):
        split = settings(by="folds", count=count, seed=seed, test=[fold], valid=[(fold + 1) % count])
        found[parts_by_folds(split, clicks) == TEST] = fold
    return found


def test_folds_are_those_of_scikit_learn_0_19():
    """By which the public benchmark splits Criteo_x4 and Avazu_x4 (test fold 0, validation fold 1). The expected folds
    were made by the code of scikit-learn 0.19.1's StratifiedKFold(10, shuffle=True, random_state=2018)."""
    few = np.array([c == "1" for c in "010010001001001000100100100010010010001001001000101110000010001"])
    many = np.random.RandomState(1).random_sample(5000) < 0.2

    text = "".join(map(str, folds(many)))

    assert "".join(map(str, folds(few))) == "523230019830491571040972651318986741846185222064597477529033668"
    assert hashlib.sha256(text.encode()).hexdigest() == (
        "3b2f1652c8ff12a74f21c238cc07f1872ad82d61f123c25e4720388df6a2a2fa"
    )


def test_every_fold_has_its_share_of_both_labels_and_the_first_ones_what_is_left_over():
    """So Avazu_x4's test part (fold 0) has 3,356,391 rows without a click and validation (fold 1) 3,356,390."""
    clicks = np.arange(1237) % 5 == 0  # 248 clicked, 989 not

    found = folds(clicks)

    assert np.bincount(found[clicks]).tolist() == [25] * 8 + [24] * 2
    assert np.bincount(found[~clicks]).tolist() == [99] * 9 + [98]


def test_another_seed_gives_other_folds_and_fewer_rows_than_folds_still_fall_into_one():
    clicks = np.arange(200) % 40 == 0  # 5 clicked: fewer than folds

    assert not np.array_equal(folds(clicks), folds(clicks, seed=1))
    assert sorted(np.unique(folds(clicks)).tolist()) == list(range(10))


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"test": [0], "valid": [0]}, "different folds"),
        ({"test": [10]}, "different folds of 0 to 9"),
        ({"count": 3, "test": [0, 1], "valid": [2]}, "some left to train on"),
        ({"count": 2}, "greater than or equal to 3"),
    ],
)
def test_folds_that_leave_nothing_or_overlap_are_refused(keys: dict, words: str):
    with pytest.raises(ValidationError, match=words):
        settings(by="folds", **keys)
