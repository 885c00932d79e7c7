"""The benchmark of preparing makes a log of Criteo's shape, and measures a real preparation of it."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.prepare_memory import PASSES, TOKENS, expected_distinct, line_of, run, support, write_log
from tests.training.data.logs import read
from training.data.kaggle import CRITEO, CRITEO_COLUMNS, KaggleSource


def test_the_log_reads_as_criteos(tmp_path: Path):
    """Labels, counts with negative ones among them, tokens of eight digits, empty cells; another seed, another log."""
    (tmp_path / CRITEO).mkdir()
    write_log(tmp_path / CRITEO / "train.txt", 3000)

    rows = read(KaggleSource(CRITEO, tmp_path / CRITEO))

    assert len(rows) == 3000
    assert set(rows[0]) == {"#", *CRITEO_COLUMNS}
    assert np.mean([row["Label"] == "1" for row in rows]) == pytest.approx(0.256, abs=0.03)
    assert min(int(row["I2"]) for row in rows) == -2
    assert {len(row["C1"]) for row in rows} == {8}
    assert np.mean([row["C22"] == "" for row in rows]) == pytest.approx(0.76, abs=0.03)


@pytest.mark.parametrize("distinct", [24, 5000, 60_000])
def test_values_are_as_many_as_were_asked_for(distinct: int):
    """Drawn by Zipf's law from as many as are needed to meet so many in so many rows."""
    rows = 200_000
    size = support(distinct, rows)
    random = np.random.default_rng(0)

    met = len(np.unique(np.exp(random.random(rows) * np.log(size + 1)).astype(np.int64)))

    assert met == pytest.approx(distinct, rel=0.03)
    assert expected_distinct(size, rows) == pytest.approx(met, rel=0.03)


def test_all_published_columns_are_there():
    assert len(TOKENS) == 26
    assert sum(TOKENS) == 33_762_577


def test_a_run_measures_every_pass_and_leaves_nothing(tmp_path: Path):
    found = run(3000, tmp_path)

    assert found["rows"] == 3000
    assert set(PASSES) <= set(found["passes"])
    assert all(found["passes"][name]["peak_mb"] > 50 for name in PASSES)
    assert line_of(found).count("|") == 13
    assert list(tmp_path.iterdir()) == []
