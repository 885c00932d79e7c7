"""Which rows each table has, and that every row is a recipe that can be planned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.training.small_log import write_small_log
from training.ablate.tables import SIX, TABLES, THREE, TITLES, LogFacts, table
from training.ablate.variations import Variations
from training.cli import _TABLES
from training.data.encoded_log import EncodedLog
from training.errors import RecipeError
from training.pipeline.plan import plan
from training.recipe import load_recipe
from training.zoo import NETWORKS

ZOO = tuple(
    f"zoo.{name}={{network: {name}, options: {{dim: 4, hidden: [16]}}, fit: {{learning_rate: 0.003}}}}"
    for name in ("nfm", "dcn", "xdeepfm")
)
LOG = LogFacts(has_history=True, train_days=5)


def made(name: str, log: LogFacts = LOG, overrides: tuple[str, ...] = ()) -> Any:
    return table(name, Variations(load_recipe("synthetic", overrides).recipe), log)


@pytest.mark.parametrize("name", TABLES)
def test_every_row_is_a_recipe_with_the_model_that_it_names(name: str, tmp_path: Path):
    for row in made(name).rows:
        (of_seed,) = plan(load_recipe("synthetic", row.settings), [1], runs=tmp_path, data=None).seeds
        assert row.model in of_seed.fits, row


def test_the_command_lists_every_table_and_every_network_has_a_title():
    assert list(_TABLES) == list(TABLES)
    assert set(TITLES) == set(NETWORKS)


def test_the_tables_have_the_shapes_of_the_paper():
    """All networks and two students; 3 x 2 x 2 cells; 4 students x (4 single teachers + 3T) beside no KD; M and D of 3
    and 6 teachers, each ensemble alone and its student."""
    alone = {row.cells[0] for row in made("baselines").rows if row.model.startswith("zoo.")}
    cells = {row.cells for row in made("schemes").rows}
    by_student = [row.cells[0] for row in made("teachers").rows]
    counted = {row.cells for row in made("count").rows}

    assert alone == set(TITLES.values())
    hints = ("hint x 0.01", "hint x 0.1", "hint x 1")
    assert {(TITLES[t], loss, "pretrain") for t in THREE for loss in ("soft", *hints)} <= cells
    assert {(TITLES[t], loss, "cotrain") for t in THREE for loss in ("soft", "hint x 0.1")} <= cells
    assert by_student == [title for title in ("DNN", "DeepFM", "DCN", "xDeepFM") for _ in range(6)]
    assert {
        (n, m) for n in ("3T(M)", "3T(D), folds", "6T(M)", "6T(D), folds") for m in ("ensemble", "student")
    } < counted
    assert len(SIX) == 6


def test_what_a_log_does_not_have_is_left_out():
    """DIN without a history, parts by days without days."""
    poor = LogFacts(has_history=False, train_days=2)

    assert "DIN" not in {row.cells[0] for row in made("baselines", poor).rows}
    assert not any("days" in row.cells[0] or "leave" in row.cells[0] for row in made("count", poor).rows)


def test_facts_of_a_log(tmp_path: Path):
    assert LogFacts.of(EncodedLog.open(write_small_log(tmp_path / "log", rows=300).folder)) == LogFacts(True, 1)


def test_a_network_is_taken_as_the_recipe_tuned_it_and_said_where_nobody_did():
    recipe = load_recipe("synthetic", [*ZOO, "zoo.nfm=null"]).recipe
    vary = Variations(recipe)

    assert vary.network("dcnv2")["fit"]["learning_rate"] == recipe.teachers["dcnv2"].fit.learning_rate
    assert vary.network("xdeepfm")["options"] == recipe.zoo["xdeepfm"].options
    assert not vary.untuned
    assert vary.network("nfm")["options"]["hidden"] == recipe.control.options["hidden"]
    assert vary.untuned == {"nfm"}


def test_a_student_of_another_network_distils_as_the_recipes_own_and_has_a_control_of_its_shape():
    recipe = load_recipe("synthetic", [*ZOO, "student.fit.temperature=2"]).recipe
    other = load_recipe("synthetic", [*ZOO, "student.fit.temperature=2", *Variations(recipe).student("dcn")]).recipe

    assert other.student.network == other.control.network == "dcn"
    assert other.student.fit.temperature == 2
    assert other.student.fit.learning_rate == recipe.zoo["dcn"].fit.learning_rate
    assert other.control.fit.max_epochs == recipe.student.fit.max_epochs


def test_the_built_in_log_has_every_network_tuned():
    """DIN among them: its log has a history, and what is compared there is judged."""
    vary = Variations(load_recipe("synthetic").recipe)

    rows = table("baselines", vary, LOG).rows

    assert {row.model for row in rows} >= {f"zoo.{name}" for name in NETWORKS}
    assert not vary.untuned


STUDENT_DCN = "students.dcn={network: dcn, options: {dim: 4, hidden: [16], init_sd: 0.7}, fit: {learning_rate: 0.001}}"


def test_a_student_of_another_network_is_taken_as_tuned_for_distilling_and_its_control_as_tuned_on_clicks():
    """What is best on clicks is not what is best on soft labels; weights, losses and temperature stay the recipe's."""
    settings = [*ZOO, "zoo.dcn.options.init_sd=0.2", STUDENT_DCN, "student.fit.kd_weight=0.4"]
    vary = Variations(load_recipe("synthetic", settings).recipe)
    other = load_recipe("synthetic", [*settings, *vary.student("dcn")]).recipe

    assert (other.student.fit.learning_rate, other.student.options["init_sd"]) == (0.001, 0.7)
    assert (other.control.fit.learning_rate, other.control.options["init_sd"]) == (0.003, 0.2)
    assert other.student.fit.kd_weight == 0.4
    assert other.control.fit.max_epochs == other.student.fit.max_epochs == 30
    assert not vary.untuned_students


def test_a_student_that_the_recipe_does_not_name_is_said_to_be_untuned():
    """Its network may be tuned on clicks and judged there; only as a student it is not."""
    vary = Variations(load_recipe("synthetic", [*ZOO, STUDENT_DCN]).recipe)
    rows = {row.cells: row for row in table("teachers", vary, LOG).rows}

    assert vary.untuned_students == {"deepfm", "xdeepfm"}
    assert not vary.untuned
    assert rows["DeepFM", "DCN"].is_student(vary.untuned_students)
    assert not rows["DeepFM", "no KD"].is_student(vary.untuned_students)
    assert not rows["DCN", "DeepFM"].is_student(vary.untuned_students)
    assert not rows["DNN", "DeepFM"].is_student(vary.untuned_students)


def rows_of(name: str, *overrides: str) -> dict[tuple[str, ...], Any]:
    """Of a table, each row's recipe."""
    rows = made(name, overrides=overrides).rows
    return {row.cells: load_recipe("synthetic", [*overrides, *row.settings]).recipe for row in rows}


def test_mutual_learning_is_weighed_as_by_its_authors_whatever_the_recipes_loss():
    """One half; settings of losses that peers do not have fall away."""
    found = rows_of("schemes", "student.fit.temperature=2", "student.fit.aggregate=probabilities")

    mutual = found["3T", "mutual", "one stage"].student.fit
    assert (mutual.kd_weight, mutual.temperature, mutual.aggregate) == (0.5, 1.0, "logits")
    assert found["3T", "soft", "pretrain"].student.fit.temperature == 2


def test_a_row_changes_of_the_gate_what_it_compares_and_no_more():
    """But for the scheme: a gate that learns with its teachers has no choice of rows or losses."""
    found = rows_of("gates", "gate={form: full, hints_l2: 0.7, learns_by: distillation}")
    together = rows_of("gates", "scheme=cotrain")

    gate = found["hints", "train", "ensemble"].gate
    assert (gate.form, gate.learns_on, gate.learns_by, gate.hints_l2) == ("hints", "train", "clicks", 0.7)
    assert not gate.fallback
    assert {recipe.scheme.kind for cells, recipe in together.items() if cells[0] != "no KD"} == {"pretrain"}


@pytest.mark.parametrize(("merges", "said"), [("true", "train + validation"), ("false", "train")])
def test_the_fair_control_has_the_rows_that_the_recipes_student_has(merges: str, said: str):
    override = f"merge_validation={merges}"
    student = next(row for row in made("controls", overrides=(override,)).rows if row.cells == ("DNN of the ensemble",))

    assert student.against == (f"DNN, clicks of {said}",)
    assert rows_of("controls", override)[student.against].merge_validation is (merges == "true")


def test_less_data_is_less_of_what_the_recipe_takes():
    found = rows_of("data", "split.train_share=0.5")

    assert [found[f"{percent}%", "student"].split.train_share for percent in (10, 30, 100)] == [0.05, 0.15, 0.5]
    assert not any(recipe.merge_validation for recipe in found.values())  # or 10% would have all of validation too


def test_a_row_knows_which_networks_it_brings():
    """For a verdict on a network that nobody tuned is none."""
    rows = {row.cells: row for row in made("teachers").rows}
    alone = {row.cells: row for row in made("baselines").rows}

    assert rows["DNN", "3T"].uses(["xdeepfm"])
    assert rows["DCN", "no KD"].uses(["dcn"])
    assert not rows["DNN", "DeepFM"].uses(["xdeepfm", "dcn"])
    assert alone["DCN", "clicks"].uses(["dcn"])
    assert not alone["FM", "clicks"].uses(["dcn"])


def test_a_network_that_the_control_cannot_lend_its_size_takes_anothers():
    """A control that is a logistic regression has no widths."""
    lr = [f"{side}.{setting}" for side in ("student", "control") for setting in ("network=lr", "options={}")]
    recipe = load_recipe("synthetic", [*lr, "zoo=null"]).recipe

    assert Variations(recipe).network("dcn")["options"] == {"dim": 8, "hidden": [128, 64]}
    alone = load_recipe("synthetic", [*lr, "zoo=null", "teachers={lr: {network: lr, fit: {}}}"]).recipe
    assert Variations(alone).network("dcn")["options"] == {"dim": 8, "hidden": [64, 32]}


def test_tables_share_what_they_have_in_common(tmp_path: Path):
    """DeepFM alone, in 3T and in 6T is one fit."""
    keys = set()
    for name in ("baselines", "teachers", "count"):
        for row in made(name).rows:
            (of_seed,) = plan(load_recipe("synthetic", row.settings), [1], runs=tmp_path, data=None).seeds
            keys |= {fit.first.key for place, fit in of_seed.fits.items() if place.endswith(".deepfm")}

    assert len(keys) == 1


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("zoo={deep: {network: lr, fit: {}}}", r"zoo.deep: expected the network's own name, lr"),
        ("zoo={lr: {network: lr, fit: {}, copies: {by: seeds, count: 2}}}", r"zoo.lr: expected no copies"),
        ("students={deep: {network: lr, fit: {}}}", r"students.deep: expected the network's own name, lr"),
        (
            "students={dcnv2: {network: dcnv2, options: {dim: 8, hidden: [16]}, fit: {}}}",
            r"students.dcnv2: expected the sizes that dcnv2 has on clicks.*\[128, 64\].*got.*\[16\]",
        ),
    ],
)
def test_a_zoo_is_of_plain_networks_and_students_of_the_size_of_their_controls(override: str, said: str):
    with pytest.raises(RecipeError, match=said):
        load_recipe("synthetic", [override])
