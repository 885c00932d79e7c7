"""report.json: the shape that scripts read, and numbers that follow from the measures of every seed."""

import json
import math
import re
from typing import Any

import pytest

from tests.training.report.run import COSTS, ODD, PREPARED, RECIPE, cost, figures, measure, real_report, report
from training.recipe import load_recipe
from training.report import write_report
from training.report.values import look_up


def target(found: dict, words: str) -> dict:
    """The one target whose name holds these words."""
    (only,) = [target for target in found["targets"] if words in target["name"]]
    return only


def is_shown_from_the_run(found: dict, missed: dict) -> bool:
    """Whether every sentence of the reason holds numbers, and each of them is in the report."""
    places = [re.findall(r"\{(/[^|{}]*)\|\w+\}", sentence) for sentence in missed["reason"]]
    return bool(places) and all(at and all(look_up(found, place) is not None for place in at) for at in places)


def test_every_model_has_one_entry_a_seed():
    """test.<model>: a list with seed, auc, logloss, ece, predicted_over_actual, and xauc, xlogloss where known."""
    test = report()["test"]

    assert set(test) == {"student", "control_train", "control_train_valid", "average", "ensemble", "teachers"}
    assert set(test["teachers"]) == {"fm", ODD}
    for entries in (test["student"], test["control_train_valid"], test["teachers"][ODD]):
        assert [entry["seed"] for entry in entries] == [1, 2, 3]
        for entry in entries:
            assert {"auc", "logloss", "ece", "predicted_over_actual", "xauc", "xlogloss"} <= set(entry)
    assert test["student"][1]["xauc"] == measure(2)["test"]["student"]["xauc"]


def test_costs_are_where_scripts_look_for_them():
    """cost.<model>.<candidates>.p50_ms and p99_ms, sizes beside them, teachers under a key of their own."""
    cost = report()["cost"]

    assert set(cost) == {"student", "control", "ensemble", "teachers"}
    for model in (cost["student"], cost["ensemble"], cost["teachers"]["fm"]):
        assert {"parameters_embedding", "parameters_dense", "bytes"} < set(model)
        assert all(set(model[count]) == {"p50_ms", "p99_ms"} for count in ("1", "50", "200"))


def test_spreads_are_over_seeds():
    found = report()
    values = [entry["xauc"] for entry in found["test"]["student"]]

    spread = found["summary"]["test"]["student"]["xauc"]

    mean = sum(values) / 3
    assert spread["mean"] == pytest.approx(mean)
    assert spread["sd"] == pytest.approx(math.sqrt(sum((value - mean) ** 2 for value in values) / 2))
    assert (spread["least"], spread["most"]) == (min(values), max(values))


def test_one_seed_has_no_spread():
    """Null, not zero: nothing is known of it."""
    found = report(measure(1))

    assert found["summary"]["test"]["student"]["xauc"]["sd"] is None
    assert found["answer"]["gain"]["of"] == 1


def test_differences_are_taken_within_a_seed():
    """Their spread is that of the differences, not of the two models."""
    pair = next(p for p in report()["differences"] if (p["model"], p["against"]) == ("student", "control_train_valid"))

    gain = pair["metrics"]["xauc"]
    assert gain["by_seed"] == pytest.approx([0.0126, 0.0128, 0.0130])
    assert gain["sd"] == pytest.approx(0.0002)
    assert (gain["better_in"], gain["of"]) == (3, 3)


def test_a_lower_loss_is_better():
    pair = next(p for p in report()["differences"] if (p["model"], p["against"]) == ("student", "control_train_valid"))

    assert pair["metrics"]["logloss"]["mean"] < 0
    assert pair["metrics"]["logloss"]["better_in"] == 3


@pytest.mark.parametrize(
    ("gains", "verdict"),
    [
        ((0.010, 0.012, 0.011), "wins"),
        ((0.01, 0.02, 0.01), "open"),  # ahead in three of three, as a coin is once in eight
        ((0.01, 0.01, -0.01), "open"),
        ((-0.01, -0.02, -0.01), "open"),
        ((-0.010, -0.012, -0.011), "loses"),
        ((0.01, 0.02), "few"),
        ((-0.01, -0.02), "few"),
        ((0.02,), "few"),
    ],
)
def test_a_student_wins_where_ablate_would_say_that_it_does(gains: tuple[float, ...], verdict: str):
    """One rule for both: the interval over at least three seeds lies above zero, or below."""
    found = report(*(measure(seed, gain=gain) for seed, gain in enumerate(gains, start=1)))

    assert found["answer"]["verdict"] == verdict
    assert found["answer"]["against"] == "control_train_valid"


def test_the_answer_weighs_gain_against_cost():
    answer = report()["answer"]

    assert answer["times_cheaper_than_ensemble"]["50"] == pytest.approx(0.7491 / 0.0592)
    assert answer["kept_of_ensemble_gain"] == pytest.approx(0.0128 / 0.0115)


def test_a_share_of_a_gain_means_something_only_beyond_three_standard_errors():
    """Of an ensemble that is now above and now below the control no share is kept."""

    def with_ensemble(*gains: float) -> dict[str, Any]:
        found = []
        for seed, gain in enumerate(gains, start=1):
            one = measure(seed)
            one["test"]["ensemble"] = figures(one["test"]["control_train_valid"]["xauc"] + gain)
            found.append(one)
        return report(*found)["answer"]

    assert with_ensemble(0.010, 0.011, 0.012)["kept_of_ensemble_gain"] == pytest.approx(0.0128 / 0.011)
    assert with_ensemble(0.001, 0.011, 0.021)["kept_of_ensemble_gain"] is None
    assert with_ensemble(-0.010, -0.011, -0.012)["kept_of_ensemble_gain"] is None


@pytest.mark.parametrize(("seeds", "is_judged"), [(1, False), (2, False), (3, True)])
def test_a_share_of_a_gain_takes_three_seeds(seeds: int, is_judged: bool):
    """In the answer and in what the recipe promises; of fewer the difference from the ensemble stands alone."""
    found = report(*(measure(seed) for seed in range(1, seeds + 1)))

    assert (found["answer"]["kept_of_ensemble_gain"] is not None) == is_judged
    assert any("share of the ensemble" in target["name"] for target in found["targets"]) == is_judged
    assert found["answer"]["student_less_ensemble"]["mean"] == pytest.approx(0.0009 + 0.0002 * (seeds + 1) / 2)


def test_intervals_are_those_of_the_mean_of_pairs():
    """Student's t of two degrees of freedom, 4.303, over the seeds' differences."""
    gain = report(measure(1, gain=0.010), measure(2, gain=0.012), measure(3, gain=0.014))["answer"]["gain"]

    assert gain["by_seed"] == pytest.approx([0.0102, 0.0124, 0.0146])
    reach = 4.303 * 0.0022 / 3**0.5
    assert (gain["low"], gain["high"]) == (pytest.approx(0.0124 - reach), pytest.approx(0.0124 + reach))


def test_a_real_log_is_judged_by_what_can_be_known():
    """Without the truth: AUC and logloss, the same differences paired by seed, and nothing that has to be reached."""
    found = real_report(1, 2)

    assert found["headline"] == {"auc": "auc", "logloss": "logloss"}
    assert found["bayes"] == {"test": None, "log": None}
    assert found["targets"] == []
    assert (found["answer"]["targets"], found["answer"]["targets_reached"]) == (0, 0)
    pairs = {(pair["model"], pair["against"]): pair["metrics"] for pair in found["differences"]}
    for against in ("control_train_valid", "ensemble", "best_teacher", "average"):
        for metric in ("auc", "logloss"):
            assert len(pairs["student", against][metric]["by_seed"]) == 2
            assert pairs["student", against][metric]["sd"] is not None


def test_targets_are_those_of_the_built_in_log():
    found = report()

    assert [target["wanted"] for target in found["targets"][:4]] == [0.008, 0.010, -0.005, 3]
    assert all(target["reached"] and not target["reason"] for target in found["targets"])
    assert found["answer"]["targets_reached"] == found["answer"]["targets"] == len(found["targets"]) == 9
    gain = found["targets"][1]
    assert (gain["found"], gain["sd"]) == (pytest.approx(0.0128), pytest.approx(0.0002))


@pytest.mark.parametrize("changes", [{"source": {"kind": "files", "paths": ["simulated.csv"]}}, {"name": "cotrain"}])
def test_another_recipe_is_promised_nothing_though_the_truth_is_known(changes: dict):
    """Somebody else's simulation, or another method on the built-in log: figures in expectation, and no targets."""
    found = report(recipe=RECIPE | changes)

    assert found["headline"]["auc"] == "xauc"
    assert found["targets"] == []


def test_the_shipped_recipe_is_the_one_that_promises():
    """Whoever renames it, or its source, takes its targets away."""
    assert report(recipe=load_recipe("synthetic").recipe.model_dump(mode="json"))["targets"]


@pytest.mark.parametrize(
    ("gain", "words"),
    [
        (0.009, "student over the control, xAUC"),
        (0.004, "student against the control, logloss"),
        (-0.001, "seeds in which the student is better"),
        (-0.003, "student over the best single teacher"),
        (0.010, "share of the ensemble's gain"),
    ],
)
def test_what_is_not_reached_says_why(gain: float, words: str):
    """Every sentence of a reason is about this run."""
    found = report(*(measure(seed, gain=gain) for seed in (1, 2, 3)))

    missed = target(found, words)

    assert not missed["reached"]
    assert is_shown_from_the_run(found, missed)


def test_an_ensemble_without_gain_says_which_step_gives_none():
    weak = measure(1)
    weak["test"]["ensemble"]["xauc"] = weak["test"]["control_train_valid"]["xauc"]

    found = report(weak)
    missed = target(found, "ensemble over the control")

    assert (missed["reached"], missed["found"]) == (False, 0)
    assert is_shown_from_the_run(found, missed)
    assert "the gate on top of that" in missed["reason"][1]


def test_a_student_off_the_truth_is_compared_with_its_ensemble_and_with_itself_before_the_refit():
    off = measure(1)
    off["test"]["student"]["xece"] = 0.05

    found = report(off)
    missed = target(found, "calibration error")

    assert (missed["reached"], missed["found"]) == (False, 0.05)
    assert is_shown_from_the_run(found, missed)


def test_the_steps_of_a_gain_add_up_to_it():
    """What a reason takes apart: best teacher, average, gate, student."""
    found = report(measure(1), measure(2))
    by_pair = {(pair["model"], pair["against"]): pair["metrics"]["xauc"]["mean"] for pair in found["differences"]}

    steps = [("best_teacher", "control_train_valid"), ("average", "best_teacher"), ("ensemble", "average")]
    assert sum(by_pair[step] for step in steps) == pytest.approx(by_pair["ensemble", "control_train_valid"])
    steps = [("ensemble", "control_train_valid"), ("student", "ensemble")]
    assert sum(by_pair[step] for step in steps) == pytest.approx(by_pair["student", "control_train_valid"])


def test_a_seed_counts_only_where_the_student_is_better_in_both():
    """Better xAUC in one seed and better logloss in another is better in none; the reason names the seeds."""
    ranks_worse, loses_more = measure(1), measure(2)
    ranks_worse["test"]["student"]["xauc"] = 0.6
    loses_more["test"]["student"]["logloss"] = 0.9

    missed = target(report(ranks_worse, loses_more, measure(3)), "seeds in which")

    assert (missed["wanted"], missed["found"]) == (3, 1)
    assert ["{/seeds/0|count}" in missed["reason"][0], "{/seeds/1|count}" in missed["reason"][1]] == [True, True]


def test_an_ensemble_that_predicts_too_many_clicks_is_said_to():
    """Beside the level of the parts, and how far chance alone moves it."""
    off = measure(1)
    off["test"]["ensemble"]["predicted_over_actual"] = 0.79

    found = report(off)
    missed = target(found, "predicted over actual")

    assert (missed["reached"], missed["found"]) == (False, pytest.approx(0.21))
    assert is_shown_from_the_run(found, missed)
    noise = {part["part"]: part["level_noise"] for part in found["parts"]}
    assert noise["valid_c"] == pytest.approx(math.sqrt((1 - 0.159) / (660 * 0.159)))


def test_a_student_that_is_not_cheap_says_where_the_time_goes():
    """At one candidate, at many, and how many parameters there are to multiply."""
    costs = COSTS | {"cost": COSTS["cost"] | {"ensemble": cost(0.2)}}

    found = report(costs=costs)
    missed = target(found, "cheaper")

    assert not missed["reached"]
    assert is_shown_from_the_run(found, missed)
    said = " ".join(missed["reason"])
    assert all(place in said for place in ("/cost/student/1/p50_ms", "/cost/ensemble/50/p50_ms", "parameters_dense"))


def test_a_figure_that_rows_do_not_define_is_null():
    """gAUC where no unit has both clicks and non-clicks."""
    nothing = measure(1)
    nothing["test"]["student"]["gauc"] = None

    found = report(nothing, measure(2))

    assert found["test"]["student"][0]["gauc"] is None
    assert found["summary"]["test"]["student"]["gauc"] is None
    assert all("gauc" not in pair["metrics"] for pair in found["differences"] if pair["model"] == "student")


def test_files_are_named_without_their_folders():
    """A report is sent around; where a file lay is nobody's business."""
    found = report()

    assert found["data"]["files"] == ["clicks.csv"]
    assert "/secret" in json.dumps(PREPARED)
    assert "/secret" not in json.dumps(found)


def test_both_files_are_written_whole(tmp_path):
    """The path of report.json comes back: it is the last line that a run prints."""
    found = report()

    path = write_report(tmp_path / "run", found)

    assert path == tmp_path / "run" / "report.json"
    assert json.loads(path.read_text(encoding="utf-8")) == found
    assert sorted(file.name for file in path.parent.iterdir()) == ["report.html", "report.json"]


def test_json_holds_no_nan(tmp_path):
    broken = report()
    broken["kl_ensemble_student"] = [float("nan")]

    with pytest.raises(ValueError, match="Out of range float"):
        write_report(tmp_path, broken)
    assert not (tmp_path / "report.json").exists()
