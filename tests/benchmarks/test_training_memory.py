"""The benchmark of training's memory: the steps of a run on a log of a few rows, and what is said of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.prepare_memory import PUBLIC_ROWS
from benchmarks.training_memory import STEPS, do, table, write_log


def test_every_step_of_a_run_is_done_and_watched(tmp_path: Path):
    write_log(tmp_path, 3000)

    found = {name: do(name, str(tmp_path)) for name in STEPS}

    assert all(step["anonymous_mb"] > 1 and step["cpu_seconds"] > 0 for step in found.values())
    assert (tmp_path / "steps" / "student" / "logit.npy").exists()
    assert (tmp_path / "steps" / "measure" / "measure.json").exists()


def test_a_further_row_costs_the_steepest_way_to_the_longest_log():
    """100 bytes a row from the second to the third; the first holds more by chance, and is not believed."""

    def one(rows: int, held: float) -> dict[str, object]:
        step = {"anonymous_mb": held, "mapped_mb": 1.0, "cpu_seconds": 1.0}
        return {"rows": rows, "log_mb": 1.0, "steps": dict.fromkeys(STEPS, step)}

    lines = table([one(1 << 20, 500.0), one(2 << 20, 300.0), one(4 << 20, 500.0)])

    whole = (500 + 100 * (PUBLIC_ROWS - (4 << 20)) / 2**20) / 1024
    assert len(lines) == 2 + 3 + 2
    assert f"gate 100 bytes, {whole:.1f} GB" in lines[-1]
    assert whole == pytest.approx(4.4, abs=0.1)
