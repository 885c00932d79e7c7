"""How fast may the student be: what is proposed, what survives a kill, who is chosen, and that it says when unsure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest

from tests.training.test_sweep import Silence, tiny_recipe
from training import search as module
from training.errors import RecipeError, StepError, TrainingError
from training.recipe import load_recipe
from training.report.values import written
from training.report.write import write_search
from training.search import LEAST_NOISE, _Bench, _Found, _noise, conclusion, finalists, judge_finalists, search

SPACE = {"width": (4, 8), "depth": (1, 2), "dim": (2, 4), "kd_weight": (0.5, 0.9), "learning_rate": (0.01, 0.02)}


def searched(folder: Path, **changes: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "overrides": [],
        "trials": 6,
        "seeds": 1,
        "confirm": 2,
        "within": 0.001,
        "out": folder / "out",
        "data": None,
        "workers": 1,
        "watcher": Silence(),
        "space": SPACE,
    }
    return search(tiny_recipe(folder), **settings | changes)


def auc_of(student: Mapping[str, Any] | None, seed: int) -> float:
    """A made-up truth: width is worth a little, dim nothing, clicks help; seeds differ by less than sizes."""
    student = student or {"hidden": [8], "kd_weight": 0.9}
    return 0.7 + 0.001 * width(student) - 0.01 * abs(student["kd_weight"] - 0.5) + 0.0001 * seed


def ratio_of(student: Mapping[str, Any] | None) -> float:
    if student is None:
        return 1.0
    depth = student["depth"] if "depth" in student else len(student["hidden"])
    return 0.1 * width(student) * depth + 0.01 * student["dim"]


def width(student: Mapping[str, Any]) -> int:
    return student["width"] if "width" in student else student["hidden"][0]


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, list[int]]]:
    """Students that are trained by a formula; every (student, seeds) asked for."""
    asked: list[tuple[Any, list[int]]] = []

    def try_all(self: _Bench, points: Sequence[Any], seeds: Sequence[int]) -> list[_Found]:
        asked.extend((point, list(seeds)) for point in points)
        facts = {"p50_ms": 0.06, "p99_ms": 0.09, "parameters_dense": 100, "parameters_embedding": 50, "bytes": 600}
        return [
            _Found(
                [{"epochs": 2, "valid_auc": auc_of(point, seed), "valid_logloss": 0.4} for seed in seeds],
                {"spec": facts, "beside": facts, "ratio": ratio_of(point), "conditions": {"cpu": "a CPU"}},
            )
            for point in points
        ]

    monkeypatch.setattr(_Bench, "try_all", try_all)
    return asked


def test_no_student_is_tried_twice_and_a_space_that_is_used_up_ends_the_search(
    tmp_path: Path, trained: list[tuple[Any, list[int]]]
):
    found = searched(tmp_path, trials=1000)

    students = [json.dumps(row["student"]) for row in found["trials"]]
    assert len(students) == len(set(students)) == found["space_size"] == 2**5


def test_a_search_that_was_killed_ends_as_if_it_had_not_been(tmp_path: Path, trained: list[tuple[Any, list[int]]]):
    """Killed in the middle of a batch: what was told before is kept, what was under way is proposed again."""
    whole = searched(tmp_path, trials=14, out=tmp_path / "whole")
    lines = []

    def die_at_once(*arguments: Any) -> None:
        raise KeyboardInterrupt

    def die(text: str) -> None:
        lines.append(text)
        if len(lines) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        searched(tmp_path, trials=14, say=die)
    before = len(trained)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_finished", die_at_once)  # a batch was trained, nothing of it was kept
        with pytest.raises(KeyboardInterrupt):
            searched(tmp_path, trials=14)
    again = searched(tmp_path, trials=14)

    assert again == whole
    resumed = [point for point, seeds in trained[before:] if seeds == [1] and point is not None]
    assert len(resumed) == 4 + (14 - 4)


def test_more_trials_go_on_with_the_same_search(tmp_path: Path, trained: list[tuple[Any, list[int]]]):
    first = searched(tmp_path, trials=4)
    asked = len(trained)

    second = searched(tmp_path, trials=8)

    assert second["trials"][:4] != []
    assert [row["student"] for row in second["trials"][:4]] == [row["student"] for row in first["trials"]]
    new = [point for point, seeds in trained[asked:] if seeds == [1] and point is not None]
    assert len(new) == 4


def test_what_other_tools_put_into_the_storage_is_let_alone(tmp_path: Path, trained: list[tuple[Any, list[int]]]):
    first = searched(tmp_path, trials=4)
    storage = optuna.storages.RDBStorage(f"sqlite:///{tmp_path / 'out' / 'search.sqlite'}")
    (name,) = optuna.get_all_study_names(storage)
    optuna.load_study(storage=storage, study_name=name).ask()

    assert searched(tmp_path, trials=4) == first


def test_a_storage_that_is_none_is_named(tmp_path: Path, trained: list[tuple[Any, list[int]]]):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "search.sqlite").write_text("no database, but a text of some length")

    with pytest.raises(TrainingError, match=r"search\.sqlite: cannot be used as Optuna's storage \(.*\); move it away"):
        searched(tmp_path)


def test_another_space_is_another_search(tmp_path: Path, trained: list[tuple[Any, list[int]]]):
    """Places in a list mean nothing in another list."""
    searched(tmp_path)

    found = searched(tmp_path, trials=2, space=SPACE | {"width": (16, 32)})

    assert {row["student"]["hidden"][0] for row in found["trials"]} <= {16, 32}
    assert len(found["trials"]) == 2


def test_a_student_that_fails_is_a_trial_with_its_reason_and_the_search_goes_on(
    tmp_path: Path, trained: list[tuple[Any, list[int]]], monkeypatch: pytest.MonkeyPatch
):
    honest = _Bench.try_all

    def try_all(self: _Bench, points: Sequence[Any], seeds: Sequence[int]) -> list[_Found]:
        return [
            _Found(error="loss is NaN: lower learning_rate") if point and point["learning_rate"] == 0.02 else found
            for point, found in zip(points, honest(self, points, seeds), strict=True)
        ]

    monkeypatch.setattr(_Bench, "try_all", try_all)

    found = searched(tmp_path, trials=1000)

    failed = [row for row in found["trials"] if row["error"]]
    assert len(found["trials"]) == 2**5
    assert len(failed) == 2**4
    assert all(row["student"]["learning_rate"] == 0.02 and "NaN" in row["error"] for row in failed)


def test_the_fastest_within_the_loss_is_chosen_by_seeds_that_did_not_find_it(
    tmp_path: Path, trained: list[tuple[Any, list[int]]]
):
    found = searched(tmp_path, trials=32, within=0.0045)

    chosen = found["finalists"][found["chosen"]]
    assert chosen["student"]["hidden"] == [4]
    assert chosen["student"]["dim"] == 2
    assert chosen["loss"]["mean"] == pytest.approx(0.004)
    assert chosen["loss"]["verdict"] == "within"
    assert found["seeds"] == {"searched": [1], "confirmed": [2, 3], "confirmed_count": 2, "are_apart": True}
    assert all(len(row["auc"]) == 2 for row in found["finalists"])


def test_its_settings_make_the_recipe_of_what_was_chosen(tmp_path: Path, trained: list[tuple[Any, list[int]]]):
    """Its control has the same size, or the recipe would be refused."""
    found = searched(tmp_path, trials=32, within=0.0045)

    recipe = load_recipe(tiny_recipe(tmp_path), found["settings"]).recipe
    chosen = found["finalists"][found["chosen"]]["student"]
    for side in (recipe.student, recipe.control):
        assert (side.network, side.options["hidden"], side.options["dim"]) == ("dnn", [4], 2)
        assert side.options["init_sd"] == 0.1
    assert recipe.student.fit.kd_weight == chosen["kd_weight"]
    assert recipe.student.fit.learning_rate == chosen["learning_rate"]


def test_settings_leave_out_what_another_network_does_not_know(tmp_path: Path, trained: list[tuple[Any, list[int]]]):
    own = [f"{side}.{what}" for side in ("student", "control") for what in ("network=dcnv2", "options.cross_layers=2")]

    found = searched(tmp_path, overrides=own, trials=2, space=SPACE | {"network": ("dnn",)})

    bench = _Bench(tiny_recipe(tmp_path), tuple(own), load_recipe(tiny_recipe(tmp_path), own), *[None] * 4)  # type: ignore[arg-type]
    recipe = load_recipe(tiny_recipe(tmp_path), [*own, *bench.settings(found["trials"][0]["student"])]).recipe
    assert recipe.student.network == recipe.control.network == "dnn"
    assert "cross_layers" not in recipe.student.options


def row(name: str, ratio: float, *auc: float, **more: Any) -> dict[str, Any]:
    student = {"network": "dnn", "hidden": [8], "dim": 2, "kd_weight": 0.9, "learning_rate": 0.01}
    return {"trial": 1, "name": name, "ratio": ratio, "auc": list(auc), "student": student, **more}


def test_a_loss_is_paired_by_seed():
    """Seeds move every student alike; what is left between two of them is little."""
    slow, quick = row("slow", 1.0, 0.70, 0.75, 0.72), row("quick", 0.4, 0.6995, 0.7496, 0.7194)

    first, second = judge_finalists([slow, quick], 0.001)

    assert (first["name"], first["chosen"], second["chosen"]) == ("quick", True, False)
    assert first["loss"]["mean"] == pytest.approx(0.0005)
    assert first["loss"]["se"] == pytest.approx(0.0001 / 3**0.5)
    assert first["loss"]["verdict"] == "within"
    assert second["is_best"]


@pytest.mark.parametrize(
    ("quick", "verdict", "chosen"),
    [
        ((0.6995, 0.7492, 0.7198), "within", "quick"),
        ((0.6970, 0.7515, 0.7191), "unsure", "quick"),
        ((0.6960, 0.7500, 0.7200), "unsure", "slow"),
        ((0.6950, 0.7450, 0.7150), "beyond", "slow"),
    ],
)
def test_the_limit_is_called_met_or_missed_only_beyond_the_spread_of_seeds(
    quick: tuple[float, ...], verdict: str, chosen: str
):
    found = judge_finalists([row("slow", 1.0, 0.70, 0.75, 0.72), row("quick", 0.4, *quick)], 0.001)

    assert found[0]["loss"]["verdict"] == verdict
    assert next(one["name"] for one in found if one["chosen"]) == chosen


@pytest.mark.parametrize(
    ("quick", "chosen"),
    [(0.97, "small"), (0.90, "large")],
    ids=["as fast, to within the noise", "faster"],
)
def test_of_students_that_are_as_fast_the_smaller_one_is_taken(quick: float, chosen: str):
    """Latencies 3% apart are one where timing itself is off by 5%; 10% apart they are two. One that is smaller still
    but loses too much, or is slower than that, is not asked."""
    found = judge_finalists(
        [
            row("large", quick, 0.70, 0.75, 0.72, parameters=9000),
            row("small", 1.0, 0.70, 0.75, 0.72, parameters=2000),
            row("slow", 1.2, 0.7001, 0.7501, 0.7201, parameters=1000),
            row("bad", 0.5, 0.60, 0.65, 0.62, parameters=10),
        ],
        0.001,
        noise=0.05,
    )

    assert [one["name"] for one in found if one["chosen"]] == [chosen]


def test_timing_is_off_by_what_the_same_student_differed_from_itself():
    """And by no less than two graphs that are the same differ on a quiet machine."""
    assert _noise({"ratio": 0.93}) == pytest.approx(0.07)
    assert _noise({"ratio": 1.001}) == LEAST_NOISE
    assert _noise(None) == LEAST_NOISE


def test_it_is_said_where_the_smaller_of_two_that_are_as_fast_was_taken():
    """With how far apart timings are that mean nothing, and how small the one that was taken is."""
    rows = [
        row("large", 0.98, 0.70, 0.75, 0.72, parameters=9000, p50_ms=0.049),
        row("small", 1.0, 0.70, 0.75, 0.72, parameters=2000, p50_ms=0.05),
    ]
    said = {}
    for noise in (0.05, 0.001):
        judged = judge_finalists(rows, 0.001, noise)
        found = {"finalists": judged, "within": 0.001, "candidates": 50, "own": {"noise": noise}}
        found["chosen"] = next(index for index, one in enumerate(judged) if one["chosen"])
        found["seeds"] = {"confirmed_count": 3, "are_apart": True}
        said[noise] = conclusion_of(found | {"said": conclusion(found)})

    taken = "was off (5.0%): of two that nobody can tell apart the smaller one is taken (2,000 parameters)"
    assert taken in said[0.05]
    assert "small" in said[0.05]
    assert "nobody can tell apart" not in said[0.001]


def test_finalists_are_on_the_front_near_the_best_and_few():
    trials = [row(str(n), 0.1 * n, 0.7 + 0.0001 * n, mean=0.7 + 0.0001 * n, on_front=True) for n in range(1, 30)]
    trials.append(row("slow and bad", 9.0, 0.7029, mean=0.7028, on_front=False))

    picked = finalists(trials, 0.001, most=4)

    assert [one["name"] for one in picked] == ["9", "10", "11", "29"]


def conclusion_of(found: dict[str, Any]) -> str:
    return " ".join(written({"search": found}, sentence) for sentence in found["said"])


def test_a_choice_that_one_seed_made_says_so(tmp_path: Path, trained: list[tuple[Any, list[int]]]):
    found = searched(tmp_path, trials=32, within=0.0045, confirm=0)

    assert "of one seed nobody knows the spread, and its loss may be above 0.0045 AUC" in conclusion_of(found)
    assert "chosen by the seeds it was found with" in conclusion_of(found)


def test_the_conclusion_is_in_words_and_numbers(tmp_path: Path, trained: list[tuple[Any, list[int]]]):
    found = searched(tmp_path, trials=32, within=0.0045)

    said = conclusion_of(found)
    assert said.startswith("The fastest student within 0.0045 AUC of the best: dnn 4, dim 2, kd_weight 0.5")
    assert "It takes 42% of the time of the recipe’s student: 0.025 ms of one core at 50 candidates." in said
    assert "It loses 0.0040 ± 0.0000 AUC to the best (dnn 8, dim 2" in said
    assert "not certain" not in said


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({"width": (2,), "depth": (3,)}, r"a width of 2 cannot be halved 2 times"),
        ({"width": (0,)}, r"each width to be at least 1, got 0"),
        ({"kd_weight": (1.5,)}, r"kd_weight: expected at most 1, got 1.5"),
        ({"learning_rate": (0.0,)}, r"learning_rate: expected more than 0, got 0"),
        ({"network": ("deepmf",)}, r"expected networks among .*deepfm.*, got deepmf"),
        ({"network": ("lr",)}, r"expected networks with hidden layers and embeddings, got lr"),
        ({"dim": ()}, r"expected at least one dim"),
    ],
)
def test_a_space_that_a_recipe_would_refuse_is_refused_before_anything_is_trained(
    tmp_path: Path, trained: list[tuple[Any, list[int]]], space: dict[str, Any], said: str
):
    with pytest.raises(RecipeError, match=said):
        searched(tmp_path, space=SPACE | space)

    assert trained == []


def test_a_real_search_trains_times_and_draws(tmp_path: Path):
    """Teachers once, a timing a size, test rows unseen by any step; the page by itself."""
    lists = {"width": (4, 8), "depth": (1,), "dim": (2,), "kd_weight": (0.9,), "learning_rate": (0.01,)}

    found = searched(tmp_path, trials=2, confirm=0, within=0.5, space=lists)

    out = tmp_path / "out"
    assert json.loads((out / "search.json").read_text()) == found
    done = {stage.name: len(list(stage.iterdir())) for stage in out.iterdir() if stage.is_dir()}
    assert done["teachers"] == 2
    assert done["size"] == 2
    assert not {"measure", "calibrate", "refit", "control"} & set(done)
    assert all(0 < one["ratio"] < 10 and one["p50_ms"] > 0 for one in found["trials"])
    assert {one["student"]["hidden"][0] for one in found["trials"]} == {4, 8}
    page = write_search(out, found).read_text()
    assert page.count("<svg") == 1
    assert "How fast may the student be?" in page


def test_what_fails_alone_does_not_take_the_others_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Students of a batch run side by side; the one at fault is found, and the recipe's own may not fail."""
    built: list[str] = []

    def run_steps(steps: Sequence[Any], out: Path, *, workers: int, watcher: Any) -> None:
        for step in steps:
            if step.stage == "student" and step.arguments["spec"]["options"]["hidden"] == [4]:
                raise StepError("diverged")
            built.append(step.key)

    monkeypatch.setattr(module, "run_steps", run_steps)
    monkeypatch.setattr(module, "judged", lambda *_: {"epochs": 1, "valid_auc": 0.7, "valid_logloss": 0.4})
    monkeypatch.setattr(module, "read_json", lambda path: {"ratio": 1.0})
    bench = _Bench(tiny_recipe(tmp_path), (), load_recipe(tiny_recipe(tmp_path)), tmp_path, None, 1, Silence())
    points = [
        dict(
            zip(
                ("width", "depth", "dim", "kd_weight", "learning_rate", "network"),
                (w, 1, 2, 0.9, 0.01, "dnn"),
                strict=True,
            )
        )
        for w in (8, 4, 16)
    ]

    found = bench.try_all(points, [1])

    assert [one.error for one in found] == ["", "diverged", ""]
    with pytest.raises(StepError, match="diverged"):
        bench.try_all(points[1:2], [1])
