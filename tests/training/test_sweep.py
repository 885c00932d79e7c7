"""Tuning: one grid for both sides, judged alike, on validation rows only."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.training.test_choices import done
from training.ablate.variations import Variations
from training.data.encoded_log import EncodedLog, Part
from training.errors import DivergedError, RecipeError
from training.fit.metrics import logloss, sigmoid
from training.pipeline.plan import plan
from training.pipeline.stages import Step
from training.recipe import load_recipe
from training.sweep import best_of, edges_of, sweep


class Silence:
    """A watcher of a run that nobody watches."""

    def cached(self, step: Step) -> None: ...
    def started(self, step: Step) -> None: ...
    def advanced(self, step: Step, done: float, total: float, note: str) -> None: ...
    def finished(self, step: Step, seconds: float) -> None: ...


def test_the_pair_with_the_highest_mean_score_wins() -> None:
    """Over seeds, not a lucky one of them; logloss counts as AUC does; the other side's trials do not."""

    def trial(side: str, rate: float, seed: int, auc: float, logloss: float = 0.4) -> dict[str, object]:
        same = {"init_sd": 0.1, "epochs": 3, "valid_logloss": logloss}
        return same | {"side": side, "learning_rate": rate, "seed": seed, "valid_auc": auc}

    trials = [
        trial("control", 0.1, 1, 0.80),
        trial("control", 0.1, 2, 0.60),
        trial("control", 0.2, 1, 0.71),
        trial("control", 0.2, 2, 0.71),
        trial("control", 0.3, 1, 0.72, logloss=0.42),
        trial("control", 0.3, 2, 0.72, logloss=0.42),
        trial("student", 0.3, 1, 0.99),
    ]

    best = best_of(trials, "control")

    assert best["learning_rate"] == 0.2
    assert best["valid_auc"] == 0.71


def tiny_recipe(folder: Path) -> str:
    """A recipe of two teachers and a student; 3000 rows."""
    network = {"network": "dnn", "options": {"dim": 2, "hidden": [8], "init_sd": 0.1}}
    fit = {"learning_rate": 0.02, "max_epochs": 1}
    recipe = {
        "name": "tiny",
        "source": {"kind": "synthetic", "seed": 0, "rows": 3000, "days": 4},
        "split": {"by": "time", "last_days": {"valid": 1, "test": 1}},
        "teachers": {
            "lr": {"network": "lr", "options": {}, "fit": fit},
            "fm": {"network": "fm", "options": {"dim": 2, "init_sd": 0.1}, "fit": fit},
        },
        "student": network | {"fit": fit},
        "control": network | {"fit": fit},
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    return str(folder / "tiny.yaml")


def swept(folder: Path, **changes: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "overrides": [],
        "seeds": [1, 2],
        "out": folder / "out",
        "data": None,
        "workers": 1,
        "watcher": Silence(),
        "learning_rates": (0.01, 0.03),
        "init_sds": (0.2,),
    }
    return sweep(tiny_recipe(folder), **settings | changes)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """One sweep of all sides: its folder and what it found."""
    folder = tmp_path_factory.mktemp("sweep")
    return folder, swept(folder)


def test_every_side_tries_the_whole_grid(whole: tuple[Path, dict[str, Any]]) -> None:
    """Every pair, side and seed has its trial, and the winner of each side is the best of its own."""
    folder, found = whole

    sides = ("teachers.lr", "teachers.fm", "control", "student")
    tried = [(t["side"], t["learning_rate"], t["init_sd"], t["seed"]) for t in found["trials"]]
    assert len(tried) == len(set(tried))
    assert set(tried) == set(itertools.product(sides, (0.01, 0.03), (0.2,), (1, 2)))
    assert found["best"] == {side: best_of(found["trials"], side) for side in sides}
    assert json.loads((folder / "out" / "sweep.json").read_text()) == found


def test_its_settings_make_a_run_of_what_it_found(whole: tuple[Path, dict[str, Any]]) -> None:
    """As `--set` values they give the recipe whose student learnt from the teachers found, already fitted."""
    folder, found = whole

    loaded = load_recipe(tiny_recipe(folder), found["settings"])
    steps = plan(loaded, [1, 2], runs=folder / "out", data=None).seeds

    assert loaded.recipe.student.fit.learning_rate == found["best"]["student"]["learning_rate"]
    assert loaded.recipe.teachers["fm"].options["init_sd"] == found["best"]["teachers.fm"]["init_sd"]
    for of_seed in steps:
        for name in ("student", "control", *(f"teachers.{teacher}" for teacher in of_seed.teachers)):
            assert (of_seed.fits[name].first.folder(folder / "out") / "fit.json").exists()


def test_a_side_left_out_stays_as_the_recipe_has_it(tmp_path: Path) -> None:
    found = swept(tmp_path, sides=["control"], seeds=[1])

    assert set(found["best"]) == {"control"}
    assert load_recipe(tiny_recipe(tmp_path), found["settings"]).recipe.student.fit.learning_rate == 0.02


STUDENTS = "students={fm: {network: fm, options: {dim: 2}, fit: {max_epochs: 2}}}"


def test_students_of_other_networks_are_tuned_on_the_ensemble_as_ablate_trains_them(tmp_path: Path) -> None:
    """Each pair is a distillation of the recipe's ensemble by that network. The recipe's own student and what was found
    for it stay as they are, its teachers are those of the run in the folder; a table of the recipe found finds its
    students done."""
    run = plan(load_recipe(tiny_recipe(tmp_path)), [1], runs=tmp_path / "out", data=None).seeds[0]
    done(run.gate, tmp_path / "out")
    (tmp_path / "out" / "sweep.json").write_text("{}")

    found = swept(tmp_path, sides=["students"], seeds=[1], overrides=[STUDENTS])

    assert [(trial["side"], trial["learning_rate"]) for trial in found["trials"]] == [
        ("students.fm", 0.01),
        ("students.fm", 0.03),
    ]
    assert {path.name for path in (tmp_path / "out" / "teachers").iterdir()} == {
        fit.first.folder(tmp_path / "out").name for fit in run.teachers.values()
    }
    assert len(list((tmp_path / "out" / "student").iterdir())) == 2
    loaded = load_recipe(tiny_recipe(tmp_path), found["settings"])
    best = load_recipe(tiny_recipe(tmp_path), [*found["settings"], *Variations(loaded.recipe).student("fm")])
    (of_table,) = plan(best, [1], runs=tmp_path / "out", data=None).seeds
    assert of_table.fits["student"].first.is_done(tmp_path / "out")
    assert best.recipe.student.fit.learning_rate == found["best"]["students.fm"]["learning_rate"]
    assert json.loads((tmp_path / "out" / "sweep_students.json").read_text()) == found
    assert (tmp_path / "out" / "sweep.json").read_text() == "{}"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([], "side students: expected networks under the recipe's students, got none"),
        (
            ["students={dnn: {network: dnn, options: {dim: 2, hidden: [8]}, fit: {}}}"],
            "dnn is the recipe's own student, which the side student tunes; say --set students.dnn=null",
        ),
    ],
)
def test_students_that_cannot_be_tuned_are_refused(tmp_path: Path, overrides: list[str], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        swept(tmp_path, sides=["students"], overrides=overrides)


def test_with_fewer_negatives_trials_are_judged_as_they_would_be_served(tmp_path: Path) -> None:
    """Validation rows are all there: without the correction every logloss would be that of a model that bids three
    times too much."""
    found = swept(tmp_path, sides=["control"], seeds=[1], overrides=["negatives.keep=0.3"], learning_rates=(0.02,))

    laid_out = plan(load_recipe(tiny_recipe(tmp_path), found["settings"]), [1], runs=tmp_path / "out", data=None)
    log = EncodedLog.open(laid_out.prepare.folder(tmp_path / "out") / "log")
    rows = log.rows([Part.VALID_A])
    logit = np.load(laid_out.seeds[0].fits["control"].first.folder(tmp_path / "out") / "logit.npy")[rows]
    (trial,) = found["trials"]
    assert trial["valid_logloss"] == pytest.approx(logloss(log.label[rows], sigmoid(logit + np.log(0.3))), abs=1e-6)
    assert trial["valid_logloss"] < logloss(log.label[rows], sigmoid(logit))


def test_a_side_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="'pupil'"):
        swept(tmp_path, sides=["pupil"])


def test_what_is_best_at_the_edge_of_its_grid_is_said() -> None:
    """A control whose grid ended too low loses to anything; a single value is no grid."""
    best = {
        "control": {"learning_rate": 0.004, "init_sd": 0.1},
        "student": {"learning_rate": 0.002, "init_sd": 0.1},
    }

    edges = edges_of(best, {"learning_rate": [0.001, 0.002, 0.004], "init_sd": [0.1]})

    assert edges == ["control: the best learning_rate, 0.004, is the largest tried; add one beyond it"]


def test_a_pair_that_diverges_is_written_down_and_not_chosen(tmp_path: Path) -> None:
    """Whoever widens a grid until it is too wide loses a trial, not the sweep."""
    found = swept(tmp_path, sides=["control"], seeds=[1], learning_rates=(0.01, 1e30))

    ran_away = [trial for trial in found["trials"] if "diverged" in trial]
    assert [trial["learning_rate"] for trial in ran_away] == [1e30]
    assert "lower learning_rate" in ran_away[0]["diverged"]
    assert found["best"]["control"]["learning_rate"] == 0.01
    with pytest.raises(DivergedError, match="control: every pair of the grid diverged"):
        swept(tmp_path, sides=["control"], seeds=[1], learning_rates=(1e30,))
