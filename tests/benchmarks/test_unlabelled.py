"""The log whose training rows lose their clicks, and the table of what a student makes of them."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from benchmarks.unlabelled import ALONE, BESIDE, LOG, STOPPED, WAYS, WITHOUT, table_of, write
from training.recipe import load_recipe


def test_training_rows_alone_lose_their_click_and_every_way_is_a_recipe(tmp_path: Path) -> None:
    kept, lost = write(tmp_path, rows=2000, days=8, share=0.8)

    without, log = (pq.read_table(tmp_path / name) for name in (WITHOUT, LOG))
    assert (len(without), len(log)) == (lost, 2000 - lost)
    assert kept + lost == 1250  # five days of eight
    assert lost == pytest.approx(1000, abs=60)
    assert not {"click", "true_pctr"} & set(without.column_names)
    loaded = {way: load_recipe(str(tmp_path / "unl.yaml"), overrides).recipe for way, (_, overrides) in WAYS.items()}
    assert [recipe.unlabelled and recipe.unlabelled.stopping_share for recipe in loaded.values()] == [None, 0, 0.2]


def test_differences_are_paired_by_seed() -> None:
    def test(*aucs: float) -> dict[str, list[dict[str, float]]]:
        return {
            "student": [{"xauc": auc} for auc in aucs],
            "ensemble": [{"xauc": 0.70}, {"xauc": 0.72}],
            "control_train": [{"xauc": 0.60}, {"xauc": 0.60}],
        }

    lines = table_of({ALONE: test(0.69, 0.71), BESIDE: test(0.71, 0.73), STOPPED: test(0.70, 0.72)})

    assert lines[2] == f"| {ALONE} | 0.7000 ± 0.0141 |  | -0.0100 (-0.0100 to -0.0100) |"
    assert lines[3] == f"| {BESIDE} | 0.7200 ± 0.0141 | +0.0200 (+0.0200 to +0.0200) | +0.0100 (+0.0100 to +0.0100) |"
    assert lines[5] == "| *its ensemble* | 0.7100 ± 0.0141 | | |"
