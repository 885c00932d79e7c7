"""Tuning: one grid for both sides, judged alike, on validation rows only."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from training.stages import Step
from training.sweep import best_of, sweep


class Silence:
    """A watcher of a run that nobody watches."""

    def cached(self, step: Step) -> None: ...
    def started(self, step: Step) -> None: ...
    def advanced(self, step: Step, done: float, total: float, note: str) -> None: ...
    def finished(self, step: Step, seconds: float) -> None: ...


def test_the_pair_with_the_highest_mean_wins() -> None:
    """Over seeds, not a lucky one of them; the other side's trials do not count."""

    def trial(side: str, rate: float, seed: int, auc: float) -> dict[str, object]:
        same = {"init_sd": 0.1, "epochs": 3, "valid_logloss": 0.4}
        return same | {"side": side, "learning_rate": rate, "seed": seed, "valid_auc": auc}

    trials = [
        trial("control", 0.1, 1, 0.80),
        trial("control", 0.1, 2, 0.60),
        trial("control", 0.2, 1, 0.71),
        trial("control", 0.2, 2, 0.71),
        trial("student", 0.3, 1, 0.99),
    ]

    best = best_of(trials, "control")

    assert best["learning_rate"] == 0.2
    assert best["valid_auc"] == 0.71


def test_both_sides_try_the_whole_grid(tmp_path: Path) -> None:
    """Every pair, side and seed has its trial, and the winner of each side is the best of its own."""
    network = {"network": "dnn", "options": {"dim": 2, "hidden": [8], "init_sd": 0.1}}
    recipe = {
        "name": "tiny",
        "source": {"kind": "synthetic", "seed": 0, "rows": 3000, "days": 4},
        "split": {"by": "time", "last_days": {"valid": 1, "test": 1}},
        "teachers": {"lr": {"network": "lr", "options": {}, "fit": {"learning_rate": 0.01, "max_epochs": 1}}},
        "student": network | {"fit": {"learning_rate": 0.01, "max_epochs": 1}},
        "control": network | {"fit": {"learning_rate": 0.01, "max_epochs": 1}},
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(recipe))

    found = sweep(
        str(tmp_path / "tiny.yaml"),
        overrides=[],
        seeds=[1, 2],
        out=tmp_path / "out",
        data=None,
        workers=1,
        watcher=Silence(),
        learning_rates=(0.01, 0.03),
        init_sds=(0.1,),
    )

    tried = {(t["side"], t["learning_rate"], t["init_sd"], t["seed"]) for t in found["trials"]}
    assert tried == {
        (side, rate, 0.1, seed) for side in ("student", "control") for rate in (0.01, 0.03) for seed in (1, 2)
    }
    assert found["best"]["student"] == best_of(found["trials"], "student")
    assert json.loads((tmp_path / "out" / "sweep.json").read_text()) == found
