"""The folder of arrays between the encoder and the learners."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from training.data.encoded_log import VALID, EncodedLog, Part
from training.zoo.embedding import FieldSpec

FIELDS = (
    FieldSpec("user", 10, "context"),
    FieldSpec("position", 3, "context"),
    FieldSpec("ad", 8, "candidate"),
    FieldSpec("tags", 6, "candidate", is_sequence=True),
)


def chunk(rng: np.random.Generator, rows: int) -> dict[str, object]:
    offsets = np.concatenate([[0], rng.integers(0, 3, rows).cumsum()])
    return {
        "ids": rng.integers(0, [10, 3, 8], (rows, 3)),
        "label": rng.integers(0, 2, rows).astype(np.float32),
        "truth": rng.random(rows),
        "unit": rng.integers(0, 2**63, rows).astype(np.uint64),
        "time": rng.integers(0, 2**50, rows),
        "part": rng.integers(0, 5, rows).astype(np.uint8),
        "sequences": {"tags": (rng.integers(0, 6, offsets[-1]), offsets)},
    }


def test_what_was_appended_in_chunks_is_read_as_one_log(tmp_path: Path) -> None:
    """Every column, and every sequence across the seam of two chunks, comes back as it was."""
    rng = np.random.default_rng(0)
    chunks = [chunk(rng, 5), chunk(rng, 0), chunk(rng, 12)]

    with EncodedLog.writer(tmp_path / "log", FIELDS) as writer:
        for columns in chunks:
            writer.append(**columns)
        writer.finish()
    log = EncodedLog.open(tmp_path / "log")

    assert len(log) == 17
    assert log.fields == FIELDS
    for name in ("ids", "label", "unit", "time", "part"):
        np.testing.assert_array_equal(getattr(log, name), np.concatenate([c[name] for c in chunks]))
    np.testing.assert_allclose(log.truth, np.concatenate([c["truth"] for c in chunks]), rtol=1e-6)
    lists = [
        values[offsets[i] : offsets[i + 1]].tolist()
        for values, offsets in (c["sequences"]["tags"] for c in chunks)
        for i in range(len(offsets) - 1)
    ]
    values, offsets = log.sequences["tags"]
    assert [values[offsets[i] : offsets[i + 1]].tolist() for i in range(17)] == lists


def test_a_batch_holds_the_rows_asked_for_in_that_order(tmp_path: Path) -> None:
    """Rows may repeat and come in any order; sequences follow them."""
    with EncodedLog.writer(tmp_path, FIELDS) as writer:
        writer.append(**chunk(np.random.default_rng(1), 30))
        log = writer.finish()
    rows = np.array([7, 2, 7, 29])

    batch = log.batch(rows)

    assert batch.request_index is None
    np.testing.assert_array_equal(batch.context, log.ids[rows, :2])
    np.testing.assert_array_equal(batch.candidates, log.ids[rows, 2:])
    values, offsets = log.sequences["tags"]
    taken, ends = (tensor.numpy() for tensor in batch.sequences["tags"])
    for i, row in enumerate(rows):
        np.testing.assert_array_equal(taken[ends[i] : ends[i + 1]], values[offsets[row] : offsets[row + 1]])
    np.testing.assert_array_equal(log.labels(rows), log.label[rows])


def test_a_sequence_that_is_always_empty_is_still_a_sequence(tmp_path: Path) -> None:
    """A log whose every list is missing opens, and gives empty segments."""
    columns = chunk(np.random.default_rng(6), 4)
    columns["sequences"] = {"tags": (np.zeros(0, dtype=np.int32), np.zeros(5, dtype=np.int64))}

    with EncodedLog.writer(tmp_path, FIELDS) as writer:
        writer.append(**columns)
        log = writer.finish()

    values, offsets = log.batch(np.array([3, 0])).sequences["tags"]
    assert values.tolist() == []
    assert offsets.tolist() == [0, 0, 0]


def test_rows_are_chosen_by_part(tmp_path: Path) -> None:
    """`rows` gives exactly the rows of the parts named."""
    with EncodedLog.writer(tmp_path, FIELDS) as writer:
        writer.append(**chunk(np.random.default_rng(2), 200))
        log = writer.finish()

    train, valid, test = log.rows([Part.TRAIN]), log.rows(VALID), log.rows([Part.TEST])

    assert set(log.part[train]) == {0}
    assert set(log.part[valid]) == {1, 2, 3}
    assert set(log.part[test]) == {4}
    assert len(train) + len(valid) + len(test) == 200


def test_parts_may_be_decided_at_the_end(tmp_path: Path) -> None:
    """A split by time needs the whole log first."""
    columns = chunk(np.random.default_rng(3), 6)
    parts = columns.pop("part")

    with EncodedLog.writer(tmp_path, FIELDS) as writer:
        writer.append(**columns)
        log = writer.finish(part=parts)

    np.testing.assert_array_equal(log.part, parts)


def test_an_unfinished_log_does_not_open(tmp_path: Path) -> None:
    """A run killed while it encoded leaves nothing that looks complete."""
    with EncodedLog.writer(tmp_path, FIELDS) as writer:
        writer.append(**chunk(np.random.default_rng(4), 6))

    with pytest.raises(FileNotFoundError):
        EncodedLog.open(tmp_path)


def test_an_id_outside_its_table_is_refused(tmp_path: Path) -> None:
    """An id of another field's range would silently read another field's vector."""
    columns = chunk(np.random.default_rng(5), 6)
    columns["ids"][3, 1] = 3

    with EncodedLog.writer(tmp_path, FIELDS) as writer, pytest.raises(ValueError, match=r"in 0.+size-1"):
        writer.append(**columns)
