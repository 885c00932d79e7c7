"""A recipe is checked whole before anything runs, and says where it is wrong."""

import re
from pathlib import Path

import pytest
import yaml

from training.distillation.gate import GateOptions
from training.errors import RecipeError
from training.recipe import Distilled, Recipe, Teacher, Untaught, load_recipe, shipped
from training.zoo import options_of

DOCUMENT = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
EXAMPLE = DOCUMENT.split("```yaml\n")[1].split("```")[0]


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_recipe_is_valid(name: str):
    loaded = load_recipe(name)

    assert loaded.recipe.name == name
    assert loaded.schema.candidate_fields


def test_the_default_recipe_trains_the_teachers_it_promises():
    assert list(load_recipe("synthetic").recipe.teachers) == ["lr", "fm", "dnn", "deepfm", "dcnv2", "ipnn"]


@pytest.mark.parametrize("name", shipped())
def test_a_recipe_as_a_bundles_manifest_holds_it_is_one(name: str, tmp_path: Path):
    """Whoever has nothing left but the bundle trains it again."""
    loaded = load_recipe(name)
    (tmp_path / "recipe.json").write_text(loaded.recipe.model_dump_json(), encoding="utf-8")
    if loaded.recipe.schema_file is not None:
        (tmp_path / loaded.recipe.schema_file).write_text(loaded.schema.to_json(), encoding="utf-8")

    again = load_recipe(str(tmp_path / "recipe.json"))

    assert (again.recipe, again.schema) == (loaded.recipe, loaded.schema)


def test_the_document_shows_the_default_recipes_source():
    """Whoever changes the default log changes the page that says what it is."""
    source = load_recipe("synthetic").recipe.source.model_dump()

    assert f"source: {{{', '.join(f'{key}: {value}' for key, value in source.items())}}}" in DOCUMENT


def test_an_override_changes_one_value_and_null_drops_one():
    loaded = load_recipe("synthetic", ["student.fit.kd_weight=0.25", "teachers.ipnn=null", "source.seed=7"])

    assert loaded.recipe.student.fit.kd_weight == 0.25
    assert "ipnn" not in loaded.recipe.teachers
    assert loaded.recipe.source.seed == 7


def test_an_override_of_what_a_yaml_anchor_shares_changes_only_the_one_named(tmp_path: Path):
    tree = yaml.safe_load((Path(__file__).parents[2] / "training/recipes/synthetic.yaml").read_text(encoding="utf-8"))
    tree["control"]["fit"] = tree["teachers"]["dnn"]["fit"] = {"learning_rate": 0.02}
    (tmp_path / "shared.yaml").write_text(yaml.safe_dump(tree))
    assert "&id001" in (tmp_path / "shared.yaml").read_text()

    recipe = load_recipe(str(tmp_path / "shared.yaml"), ["control.fit.learning_rate=0.5"]).recipe

    assert recipe.control.fit.learning_rate == 0.5
    assert recipe.teachers["dnn"].fit.learning_rate == 0.02


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("student.fit.kd_weight=2", r"student.fit.kd_weight: expected at most 1, got 2$"),
        (
            "student.fit.kdweight=0.5",
            r"student.fit.kdweight: unknown key. Did you mean kd_weight\? Known here: learning_rate, ",
        ),
        ("teachers.deepfm.network=deepfn", r"\n  teachers.deepfm: network: expected one of .*'deepfm'.*got 'deepfn'"),
        ("teachers.deepfm.options.crosses=2", r"expected options among .*got \['crosses'\]"),
        ("student.options.dim=wide", r"\n  student: options.dim: expected a whole number of at least 1, got 'wide'"),
        ("teachers.fm.options.dim=0", r"\n  teachers.fm: options.dim: expected a whole number of at least 1, got 0"),
        (
            "teachers.dnn.options.hidden=[]",
            r"teachers.dnn: options.hidden: expected a list of whole numbers of at least 1, not empty, got \[\]",
        ),
        ("teachers.dnn.options.dropout=1", r"teachers.dnn: options.dropout: expected a share from 0 to below 1, got 1"),
        ("teachers.dnn.options.init_sd=-1", r"teachers.dnn: options.init_sd: expected a number of at least 0, got -1"),
        (
            "teachers.dcnv2.options.cross_layers=0",
            r"options.cross_layers: expected a whole number of at least 1, got 0",
        ),
        ("teachers={../x: {network: lr, fit: {}}}", r"teachers.*\.\./x"),
        ("control.fit.max_epochs=12", r"control.fit.max_epochs: expected at least the student's, 30, got 12"),
        ("control.fit.patience=2", r"control.fit.patience: expected at least the student's, 3, got 2"),
        ("student.options.hidden=[64]", r"control: expected the student's network and sizes"),
        ("source.kind=kafka", r"source.kind: expected one of 'synthetic', .*, got 'kafka'"),
        ("schema_file=x.yaml", r"schema_file: expected for every log but the synthetic one"),
        ("name.first=x", r"--set name.first=x: name is a single value"),
        ("split.by=column", r"split.last_days: unknown key. Known here: .*column, train, valid, test"),
        (
            "split={by: column, column: 3, train: [[1]]}",
            r"split.train\[0\]: expected text or a whole number, got a list",
        ),
        ("split.last_days.valid=0", r"split.last_days.valid: expected more than 0, got 0"),
        ("source.days=1000", r"source.days: expected at most 365, got 1000"),
        ("student", r"--set student: expected path=value"),
        ("student.fit.kd_weight=[", r"--set student.fit.kd_weight=\[: the value is neither JSON nor YAML: .*line 1"),
    ],
)
def test_a_wrong_value_is_refused_with_its_place(override: str, said: str):
    with pytest.raises(RecipeError, match=said) as caught:
        load_recipe("synthetic", [override])

    assert not re.search("Value error|Input should|Extra inputs|Field required", str(caught.value))


ALL_HINTS = ["teachers.lr=null", "teachers.fm=null"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["student.fit.losses={hint: 1}"],
            r"student.fit.losses.hint: expected teachers with a hidden layer, got lr, fm without one; "
            r"drop them: --set teachers.lr=null --set teachers.fm=null",
        ),
        (["gate.form=hints"], r"gate.form: hints: expected teachers with a hidden layer, got lr, fm without one"),
        (
            [
                *(f"{side}.{setting}" for side in ("student", "control") for setting in ("network=lr", "options={}")),
                "student.fit.losses={hint: 1}",
                *ALL_HINTS,
            ],
            r"student: expected a network with a hidden layer for losses.hint or auxiliary_head, got lr",
        ),
        (
            ["student.fit.losses={hint: 1}", "student.fit.kd_weight=1", *ALL_HINTS],
            r"losses.hint: expected kd_weight below",
        ),
        (["gate.form=stacking", "student.fit.aggregate=probabilities"], r"say student.fit.aggregate: logits"),
        (
            ["gate.form=stacking", "student.fit.losses={hint: 1}", *ALL_HINTS],
            r"no weights for hints; say gate.form: st",
        ),
        (
            ["gate.form=stacking", "teachers.dnn.copies={by: bags, count: 2}"],
            r"stacking cannot leave teachers out of a row's label; say student.fit.taught_by: all",
        ),
        (
            ["scheme=cotrain", "teachers.dnn.copies={by: folds, count: 2}"],
            r"scheme cotrain: expected every teacher to see every batch, got copies by folds; say by: seeds",
        ),
        (["scheme=cotrain", "gate.form=stacking"], r"scheme cotrain: expected a gate that is a softmax, got stacking"),
        (
            ["scheme=mutual", "student.fit.temperature=2", "student.fit.losses={mse: 1}"],
            r"scheme mutual: .* expected student.fit without losses, temperature; kd_weight is all it takes",
        ),
        (["scheme=cotrained"], r"scheme.*: expected one of 'pretrain', 'cotrain', 'mutual', got 'cotrained'"),
        (["scheme={kind: pretrain, teacher_weight: 1}"], r"scheme.teacher_weight: unknown key"),
        (["scheme={kind: cotrain, teacher_weight: -1}"], r"scheme.teacher_weight: expected at least 0, got -1"),
        (["teachers.dnn.copies={by: users, count: 2}"], r"teachers.dnn.copies.by: expected .*'seeds'.*got 'users'"),
        (
            ["teachers.dnn-2={network: lr, fit: {}}", "teachers.dnn.copies={by: seeds, count: 2}"],
            r"teachers: expected other names beside the copies', got \['dnn-2'\] twice; rename one",
        ),
        (["gate.form=fulll"], r"gate.form: expected 'average', .*got 'fulll'"),
        (["student.fit.losses={kl: 1}"], r"student.fit.losses"),
        (["student.fit.losses={soft: -1}"], r"losses.soft: expected a weight above 0, got -1"),
    ],
)
def test_choices_that_do_not_go_together_are_refused_with_what_would(overrides: list[str], said: str):
    with pytest.raises(RecipeError, match=said):
        load_recipe("synthetic", overrides)


def test_a_scheme_is_a_word_or_a_mapping():
    """`cotrain` is short for what has the same kind and every default."""
    short, long = load_recipe("synthetic", ["scheme=cotrain"]), load_recipe("synthetic", ["scheme={kind: cotrain}"])

    assert short.recipe.scheme == long.recipe.scheme
    assert load_recipe("synthetic").recipe.scheme.kind == "pretrain"


def test_stacking_may_weigh_copies_that_see_other_rows_where_all_label_every_row():
    choices = ["gate.form=stacking", "teachers.dnn.copies={by: bags, count: 2}", "student.fit.taught_by=all"]

    names = load_recipe("synthetic", choices).recipe.teacher_names

    assert names == ["lr", "fm", "dnn-1", "dnn-2", "deepfm", "dcnv2", "ipnn"]


def test_an_unknown_recipe_is_answered_with_the_known_ones():
    with pytest.raises(RecipeError, match=r"recipe 'sinthetic': expected a file, or one of .*synthetic"):
        load_recipe("sinthetic")


def test_a_recipe_that_is_no_mapping_or_no_yaml_is_refused(tmp_path: Path):
    for text in ("- a\n- b\n", "a: [", "\x00", "name: a\nname: b"):
        (tmp_path / "recipe.yaml").write_text(text)
        with pytest.raises(RecipeError, match=r"recipe\.yaml"):
            load_recipe(str(tmp_path / "recipe.yaml"))


def test_the_documented_recipe_is_good_and_shows_every_key(tmp_path: Path):
    """docs/training.md is where someone with a log of their own starts from."""
    (tmp_path / "clicks.yaml").write_text(EXAMPLE, encoding="utf-8")
    schema = Path(__file__).parents[2] / "training" / "recipes" / "ml_latest_small.schema.yaml"
    (tmp_path / "clicks.schema.yaml").write_text(schema.read_text(encoding="utf-8"), encoding="utf-8")

    load_recipe(str(tmp_path / "clicks.yaml"))

    shown = yaml.safe_load(EXAMPLE)
    teacher, fit = shown["teachers"]["dcnv2"], Teacher.model_fields["fit"].annotation
    assert set(shown) == set(Recipe.model_fields)
    assert set(teacher) == set(Teacher.model_fields)
    assert set(shown["gate"]) == set(GateOptions.model_fields)
    assert set(teacher["options"]) == options_of("dcnv2")
    assert fit is not None
    assert set(teacher["fit"]) == set(fit.model_fields)
    student_fit = Distilled.model_fields["fit"].annotation
    assert student_fit is not None
    assert set(shown["student"]["fit"]) == set(student_fit.model_fields) - set(fit.model_fields)


def test_the_defaults_that_the_documented_recipe_names_are_the_defaults():
    shown = yaml.safe_load(EXAMPLE)

    for settings, written in (
        (Teacher.model_fields["fit"].annotation, shown["teachers"]["dcnv2"]["fit"]),
        (Distilled.model_fields["fit"].annotation, shown["student"]["fit"]),
        (GateOptions, shown["gate"]),
    ):
        assert settings is not None
        assert {name: settings.model_fields[name].default for name in written} == written
    assert "Default 12, student's and control's 30" in EXAMPLE
    assert "Default 2, student's and control's 3\n" in EXAMPLE
    for setting in (Distilled, Untaught):
        fit = setting.model_fields["fit"].annotation
        assert fit is not None
        assert (fit.model_fields["max_epochs"].default, fit.model_fields["patience"].default) == (30, 3)
