"""Copies of a teacher: which rows each sees, and who may label a row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from tests.training.small_log import FIELDS, write_small_log
from training.data.encoded_log import EncodedLog, Part
from training.distillation.shares import DAY_US, Copies, unseen
from training.errors import SplitError
from training.fit.loop import rows_to_learn_from

ROWS, DAYS = 3000, 7


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> EncodedLog:
    """Rows of seven days in no order, the third without any."""
    rng = np.random.default_rng(0)
    day = rng.choice([0, 1, 3, 4, 5, 6, 7], ROWS)
    with EncodedLog.writer(tmp_path_factory.mktemp("log"), FIELDS) as writer:
        writer.append(
            ids=np.zeros((ROWS, 2), dtype=np.int32),
            label=(rng.random(ROWS) < 0.3).astype(np.float32),
            unit=np.zeros(ROWS, dtype=np.uint64),
            time=day * DAY_US + rng.integers(0, DAY_US, ROWS),
            part=rng.choice([0, 0, 0, 1], ROWS).astype(np.uint8),
            sequences={"history": (np.zeros(0, dtype=np.int32), np.zeros(ROWS + 1, dtype=np.int64))},
        )
        return writer.finish()


def shares(log: EncodedLog, by: str, count: int = 3, seed: int = 5) -> list[np.ndarray]:
    rows = log.rows([Part.TRAIN])
    copies = Copies(by=by, count=count)
    found = [copies.share(index, seed) for index in range(count)]
    return [rows if share is None else share.of(log, rows) for share in found]


def test_seeds_share_all_rows(log: EncodedLog):
    for rows in shares(log, "seeds"):
        np.testing.assert_array_equal(rows, log.rows([Part.TRAIN]))


@pytest.mark.parametrize("by", ["disjoint", "days"])
def test_disjoint_and_days_give_each_row_to_one_copy(log: EncodedLog, by: str):
    """Nothing twice, nothing left out, and never a row that is not to be learned from."""
    parts = shares(log, by)

    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), log.rows([Part.TRAIN]))


@pytest.mark.parametrize(("by", "part"), [("folds", "disjoint"), ("leave_one_out", "days")])
def test_folds_and_leave_one_out_give_each_copy_the_others_parts(log: EncodedLog, by: str, part: str):
    """Each row is new to exactly one copy: the one whose part it is."""
    for whole, own in zip(shares(log, by), shares(log, part), strict=True):
        np.testing.assert_array_equal(np.sort(np.concatenate([whole, own])), log.rows([Part.TRAIN]))


def test_random_parts_are_as_equal_as_can_be_and_days_whole(log: EncodedLog):
    """Parts of rows differ by one row at most; a day is in one stretch, stretches follow each other."""
    assert np.ptp([len(rows) for rows in shares(log, "disjoint", 4)]) <= 1
    days = [set((log.time[rows] // DAY_US).tolist()) for rows in shares(log, "days", 3)]
    assert days == [{0, 1, 3}, {4, 5}, {6, 7}]


def test_a_bag_has_as_many_rows_drawn_with_replacement(log: EncodedLog):
    """About 1 - 1/e of all rows are in it, some several times; bags differ."""
    first, second, _ = shares(log, "bags")

    total = len(log.rows([Part.TRAIN]))
    assert len(first) == total
    assert len(np.unique(first)) / total == pytest.approx(1 - np.exp(-1), abs=0.03)
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("by", ["folds", "disjoint", "bags"])
def test_a_partition_is_a_function_of_its_seed(log: EncodedLog, by: str):
    """All copies of a teacher must cut the same parts; another run of training cuts others."""
    again, other = shares(log, by), shares(log, by, seed=6)

    for rows, same, else_ in zip(shares(log, by), again, other, strict=True):
        np.testing.assert_array_equal(rows, same)
        assert not np.array_equal(rows, else_)


def test_more_copies_than_days_are_refused(log: EncodedLog):
    """A log without times has one day."""
    share = Copies(by="days", count=8).share(0, 1)

    with pytest.raises(SplitError, match="copies by days: expected at least 8 days of rows to learn from, got 7"):
        rows_to_learn_from(log, [Part.TRAIN], share)


def test_a_share_of_one_kind_of_row_is_refused_by_name(tmp_path: Path):
    log = write_small_log(tmp_path, rows=16)

    share = Copies(by="disjoint", count=8).share(7, 1)  # a single row

    with pytest.raises(SplitError, match="train, copy 8 of 8 by disjoint: expected clicks and non-clicks, got 1 rows"):
        rows_to_learn_from(log, [Part.TRAIN], share)


def test_one_copy_is_no_ensemble():
    with pytest.raises(ValidationError, match="greater than or equal to 2"):
        Copies(by="folds", count=1)


def test_a_row_is_labelled_by_the_teachers_that_did_not_learn_from_it():
    """By all where each did; and where that is the same for all teachers there is nothing to tell apart."""
    seen = [np.array([True, True, False, True]), np.array([False, True, False, True])]

    found = unseen(seen)

    assert found is not None
    np.testing.assert_array_equal(found, [[False, True], [True, True], [True, True], [True, True]])
    assert unseen([seen[0], seen[0]]) is None
