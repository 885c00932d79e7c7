"""Tables filled: from figures made up for the purpose, and from a tiny log by the command itself."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.training.test_choices import RECIPE
from training.__main__ import main
from training.ablate.markdown import overview, section
from training.ablate.paired import UNTUNED
from training.ablate.run import filled, planned, write_table
from training.ablate.tables import Claim, LogFacts, Row, Table, table
from training.ablate.variations import Variations
from training.errors import RecipeError
from training.pipeline.plan import plan
from training.recipe import load_recipe

CONTROL, ENSEMBLE, STUDENT = ("control",), ("ensemble",), ("student",)
TABLE = Table(
    "made-up",
    "Made up",
    ("model",),
    (
        Row(CONTROL, (), "control"),
        Row(ENSEMBLE, (), "ensemble", CONTROL),
        Row(STUDENT, (), "student", CONTROL, ENSEMBLE),
    ),
    (
        Claim("the student beats the control", ((STUDENT, CONTROL),)),
        Claim("the student beats both", ((STUDENT, CONTROL), (STUDENT, ENSEMBLE))),
    ),
)


def figures(*aucs: float) -> list[dict[str, Any]]:
    test = [{"auc": auc, "logloss": 0.5 - auc / 10} for auc in aucs]
    return [{"test": entry, "train": {"auc": 0.9}, "before_refit": entry} for entry in test]


def made_up(seeds: int = 3) -> dict[str, Any]:
    measured = {
        CONTROL: figures(0.700, 0.701, 0.702)[:seeds],
        ENSEMBLE: figures(0.720, 0.721, 0.723)[:seeds],
        STUDENT: figures(0.715, 0.716, 0.718)[:seeds],
    }
    asked = {"recipe": {"name": "clicks"}, "asked": "my/clicks.yaml", "overrides": ["zoo={fm: null}"]}
    reason = "student: expected a hidden layer"
    left_out = [{"cells": ["3T", "hint", scheme], "reason": reason} for scheme in ("cotrain", "pretrain")]
    facts = {"seeds": [1, 2, 3][:seeds], "created": "2026-11-21T00:00:00", "conditions": {"cpu": "a CPU"}}
    found = {"table": "made-up", "untuned": ["fm"], "left_out": left_out}
    return asked | facts | found | filled(TABLE, measured)


def test_a_table_has_differences_shares_of_a_gap_and_verdicts():
    student = made_up()["rows"][2]
    claims = made_up()["claims"]

    assert student["difference"]["by_seed"] == pytest.approx([0.015, 0.015, 0.016])
    assert student["less_ensemble"]["mean"] == pytest.approx(-0.005)
    assert student["share_of_ensembles_gain"] == pytest.approx(0.046 / 0.061)
    assert [[pair["verdict"] for pair in claim["pairs"]] for claim in claims] == [["holds"], ["holds", "does not hold"]]


def test_a_pair_with_a_network_that_nobody_tuned_is_not_judged():
    """Whoever won may have won by tuning: the difference is shown, and no verdict."""
    zoo = 'zoo={"fm": {"network": "fm"}}'
    rows = (replace(TABLE.rows[0], settings=(zoo,)), *TABLE.rows[1:])
    measured = {CONTROL: figures(0.7, 0.7, 0.7), ENSEMBLE: figures(0.8, 0.8, 0.8), STUDENT: figures(0.8, 0.8, 0.9)}

    found = filled(replace(TABLE, rows=rows), measured, ["fm"])

    assert [[pair["verdict"] for pair in claim["pairs"]] for claim in found["claims"]] == [[UNTUNED], [UNTUNED, "open"]]
    said = "\n".join(section(made_up() | found))
    assert "| the student beats both | 0 | 1 | 0 | 1 |" in said


def test_a_pair_with_a_student_that_nobody_tuned_is_not_judged():
    """Its control, the same network on clicks, is: that one was tuned."""
    student = 'student={"network": "dcn"}'
    rows = (replace(TABLE.rows[0], settings=(student,)), TABLE.rows[1], replace(TABLE.rows[2], settings=(student,)))
    claims = (*TABLE.claims, Claim("the ensemble beats the control", ((ENSEMBLE, CONTROL),)))
    measured = {CONTROL: figures(0.7, 0.7, 0.7), ENSEMBLE: figures(0.8, 0.8, 0.8), STUDENT: figures(0.8, 0.8, 0.9)}

    found = filled(replace(TABLE, rows=rows, claims=claims), measured, untuned_students=["dcn"])

    verdicts = [[pair["verdict"] for pair in claim["pairs"]] for claim in found["claims"]]
    assert verdicts == [[UNTUNED], [UNTUNED, UNTUNED], ["holds"]]
    said = "\n".join(section(made_up() | found | {"untuned_students": ["dcn"]}))
    assert "Nobody tuned a student dcn on this log: the recipe's students do not name" in said


def test_the_markdown_has_the_command_the_numbers_and_what_nobody_tuned():
    text = "\n".join(section(made_up()))

    assert "python -m training ablate my/clicks.yaml --table made-up --seeds 3 --set 'zoo={fm: null}'" in text
    assert "| student | 0.7163 ± 0.0015 | 0.4284 ± 0.0002 | 0.9000 ± 0.0000 | control | +0.0153 (+0.0139 to " in text
    assert " -0.0050 (-0.0050 to -0.0050) | 75% |" in text
    assert "Nobody tuned fm on this log" in text
    assert "Left out: 3T, hint, cotrain; 3T, hint, pretrain. student: expected a hidden layer." in text
    assert "| the student beats both | 1 | 0 | 1 | 0 | -0.0050 to +0.0153, median +0.0052 |" in text


def test_an_overview_has_each_claim_by_log():
    """Of one recipe, another log is another column: nothing takes the place of something else."""
    clicks, other = (made_up() | {"overrides": overrides} for overrides in ([], ["source.seed=3"]))
    few = made_up(seeds=2) | {"recipe": {"name": "few"}, "overrides": []}
    text = "\n".join(overview([clicks, other, few]))

    assert "| table | claim | clicks | clicks, source.seed=3 | few |" in text
    assert "| made-up | the student beats both | 1 of 2 (1 against) | 1 of 2 (1 against) | not judged |" in text


def test_fewer_than_three_seeds_make_no_claim_and_no_share():
    facts = made_up(seeds=2)
    text = "\n".join(section(facts))

    assert facts["rows"][2]["share_of_ensembles_gain"] is None
    assert "75%" not in text
    assert "| the student beats the control | not judged: fewer than 3 seeds |" in text


def test_the_command_fills_a_table_and_goes_on_where_it_stood(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """By the program itself, in processes of its own; a second time there is nothing to do. Every network starts from
    scratch, so that it is with its likes that it is compared."""
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(RECIPE | {"warm_start": "runs/monday"}))
    command = ["ablate", str(tmp_path / "tiny.yaml"), "--table", "data", "controls", "--seeds", "1"]
    command += ["--out", str(tmp_path / "out")]

    assert main(command) == 0
    first = capsys.readouterr()
    assert main(command) == 0
    again = capsys.readouterr()

    paths = [Path(line) for line in first.out.splitlines()]
    assert paths == [tmp_path / "out" / "tables" / f"{name}.json" for name in ("data", "controls")]
    data, controls = (json.loads(path.read_text()) for path in paths)
    by_share = {tuple(row["cells"]): row["seeds"][0]["test"]["xauc"] for row in data["rows"]}
    alone = {tuple(row["cells"]): row["seeds"][0]["test"]["xauc"] for row in controls["rows"]}
    assert by_share["100%", "no KD"] == alone[("DNN, clicks of train",)]
    assert len({by_share[share, "no KD"] for share in ("10%", "30%", "100%")}) == 3
    assert "distillation helps at every size" in first.err
    assert data["overrides"] == ["warm_start=null"]
    assert "✓" in first.err
    done, total = max((int(a), int(b)) for a, b in re.findall(r"(\d+) of (\d+) steps", first.err))
    assert done == total > len(data["rows"]) + len(controls["rows"])  # of both tables together
    assert "✓" not in again.err
    assert again.out == first.out


def test_a_row_that_runs_away_is_left_out_and_the_table_filled(tmp_path: Path):
    """One student that diverges takes no other row along, and the table says what to lower."""
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(RECIPE))
    command = ["ablate", str(tmp_path / "tiny.yaml"), "--table", "controls", "--seeds", "1"]
    command += ["--set", "student.fit.learning_rate=1e30", "--out", str(tmp_path / "out")]

    assert main(command) == 0

    found = json.loads((tmp_path / "out" / "tables" / "controls.json").read_text())
    left_out = {tuple(each["cells"]): each["reason"] for each in found["left_out"]}
    assert ("DNN of the ensemble",) in left_out
    assert all("lower learning_rate" in reason for reason in left_out.values())
    kept = {tuple(row["cells"]) for row in found["rows"]}
    assert ("ensemble",) in kept
    assert not kept & set(left_out)
    compared = {
        tuple(pair[side]) for claim in found["claims"] for pair in claim["pairs"] for side in ("better", "worse")
    }
    assert not compared & set(left_out)


def test_what_a_recipe_rules_out_is_left_out_before_anything_is_trained(tmp_path: Path):
    """A student without a hidden layer imitates none: those rows, and what is said of them, are not there."""
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(RECIPE))
    lr = [f"{side}.{setting}" for side in ("student", "control") for setting in ("network=lr", "options={}")]

    def steps_of(row: Row) -> list[Any]:
        loaded = load_recipe(str(tmp_path / "tiny.yaml"), [*lr, *row.settings])
        return [of_seed.measure for of_seed in plan(loaded, [1], runs=tmp_path, data=None).seeds]

    wanted = table("schemes", Variations(load_recipe(str(tmp_path / "tiny.yaml"), lr).recipe), LogFacts(False, 2))
    steps, left_out = planned(wanted, steps_of)
    found = wanted.without(left_out)

    assert {cells[1] for cells in left_out} == {"hint x 0.01", "hint x 0.1", "hint x 1", "soft + hint"}
    assert "expected a network with a hidden layer" in left_out["3T", "hint x 1", "pretrain"]
    assert str(tmp_path) not in "".join(left_out.values())
    assert {row.cells for row in found.rows} == set(steps) == {row.cells for row in wanted.rows} - set(left_out)
    claimed = {cells[1] for claim in found.claims for pair in claim.pairs for cells in pair}
    assert claimed == {"soft", "mse", "mutual", "no KD"}


def test_a_recipe_that_rules_out_every_row_is_refused():
    def steps_of(row: Row) -> list[Any]:
        raise RecipeError("clicks.yaml:\n  no")

    with pytest.raises(RecipeError, match="no"):
        planned(TABLE, steps_of)


def test_a_row_without_its_rival_is_compared_with_nobody():
    found = TABLE.without({CONTROL})

    assert [row.cells for row in found.rows] == [ENSEMBLE, STUDENT]
    assert all(row.against is None for row in found.rows)
    assert [claim.pairs for claim in found.claims] == [((STUDENT, ENSEMBLE),)]
    assert "difference" not in filled(found, {ENSEMBLE: figures(0.7), STUDENT: figures(0.7)})["rows"][1]


def test_a_table_that_cannot_be_written_leaves_the_last_one_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_table(tmp_path, {"table": "made-up", "n": 1})

    def full(path: Path, text: str, encoding: str) -> None:
        path.write_bytes(b"{")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        write_table(tmp_path, {"table": "made-up", "n": 2})

    assert json.loads((tmp_path / "tables" / "made-up.json").read_text())["n"] == 1


def test_a_table_that_is_not_there_is_refused_with_those_that_are(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["ablate", "synthetic", "--table", "teacher"])

    assert "baselines" in capsys.readouterr().err
