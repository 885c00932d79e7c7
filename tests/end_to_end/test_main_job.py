"""The main job as its users run it: a log in, models out, a live service that scores raw ads as the networks do."""

import json
from pathlib import Path

import numpy as np
import pytest

from models.fitting import EncoderFitter
from models.schema import FeatureSchema
from tests.end_to_end.conftest import Interrupted
from tests.end_to_end.small_run import post, tiny_run, training
from training.data.clicks import ClickLog
from training.data.faults import Faults
from training.data.readers import FileSource
from training.fit.metrics import xauc

MODELS = ("student", "control_train", "control_train_valid", "average", "ensemble")


def test_the_report_has_a_line_for_every_model_and_seed(out: Path):
    report = json.loads((out / "report.json").read_text())

    test = report["test"]
    rivals = [test[name] for name in MODELS] + list(test["teachers"].values())
    assert sorted(test["teachers"]) == ["dcnv2", "deepfm", "dnn", "fm", "ipnn", "lr"]
    for entries in rivals:
        assert [entry["seed"] for entry in entries] == [1, 2]
        for entry in entries:
            for figure in ("auc", "logloss", "ece", "predicted_over_actual", "xauc", "xlogloss"):
                assert np.isfinite(entry[figure]), figure
    for model in ("student", "ensemble", "control"):
        cost = report["cost"][model]
        for candidates in ("1", "50", "200"):
            assert 0 < cost[candidates]["p50_ms"] <= cost[candidates]["p99_ms"]
        assert min(cost["parameters_embedding"], cost["parameters_dense"], cost["bytes"]) > 0
    assert (out / "report.html").stat().st_size > 10_000


def test_a_second_run_redoes_nothing_and_makes_no_new_version(out: Path):
    again = training(*tiny_run(out, "--seeds", "2"))

    assert again.returncode == 0, again.stderr
    assert "✓" not in again.stderr
    assert [path.name for path in (out / "repository" / "student").iterdir()] == ["1"]


def test_the_live_service_scores_raw_rows_as_the_bundle_says(out: Path, service: str):
    """Golden rows through HTTP: what training exported is what an ad server is answered, for all three models."""
    for model in ("student", "ensemble", "control"):
        golden = json.loads((out / "repository" / model / "1" / "golden.json").read_text())
        for request in golden["requests"]:
            body = {"context": request["context"], "candidates": request["candidates"]}

            answer = post(f"{service}/models/{model}/predict", body)

            assert answer["model"] == model
            np.testing.assert_allclose(answer["pctr"], request["pctr"], rtol=0, atol=2e-6)


def test_the_live_service_splits_units_between_ensemble_and_student_and_keeps_them_there(out: Path, service: str):
    golden = json.loads((out / "repository" / "student" / "1" / "golden.json").read_text())
    request = golden["requests"][0]

    arms: dict[str, int] = {}
    for unit in range(200):
        body = {"unit_id": unit, "context": request["context"], "candidates": request["candidates"]}
        first, second = post(f"{service}/predict", body), post(f"{service}/predict", body)
        assert first["arm"] == second["arm"]
        assert first["pctr"] == second["pctr"]
        arms[first["arm"]] = arms.get(first["arm"], 0) + 1

    assert sorted(arms) == ["ensemble", "student"]
    assert min(arms.values()) > 60


def test_ctrl_c_in_a_stage_loses_no_finished_stage(interrupted: Interrupted, out: Path):
    assert interrupted.returncode == 130
    assert "finished steps are kept" in interrupted.said
    assert not interrupted.left
    assert any(path.parent.name == "teachers" for path in interrupted.kept)
    assert {path: path.stat().st_mtime_ns for path in interrupted.kept} == interrupted.kept


def test_two_runs_in_one_folder_do_not_meet(tmp_path: Path):
    from training.errors import TrainingError
    from training.run import only_one

    another = pytest.raises(TrainingError, match="another run is working in this folder")
    with only_one(tmp_path), another, only_one(tmp_path):
        pass


def test_a_wrong_command_exits_2_and_a_wrong_recipe_1_with_a_reason_and_no_trace():
    wrong_command = training("run")
    wrong_recipe = training("run", "synthetic", "--set", "student.fit.kd_weight=7")

    assert wrong_command.returncode == 2
    assert wrong_recipe.returncode == 1
    assert "student.fit.kd_weight" in wrong_recipe.stderr
    assert "Traceback" not in wrong_recipe.stderr


@pytest.mark.parametrize("name", ["log.csv.gz", "log.parquet"])
def test_generate_writes_a_log_that_its_schema_reads(name: str, tmp_path: Path):
    """Every row, label, time, unit and truth, and every cell of every field as a value of its type."""
    done = training("generate", str(tmp_path / name), "--rows", "2000", "--days", "3", "--seed", "5")

    facts = json.loads(done.stdout)
    schema, faults = FeatureSchema.from_file(Path(facts["schema"])), Faults()
    log = ClickLog(FileSource((Path(facts["log"]),)), schema)
    fitter, chunks = EncoderFitter(schema), list(log.read(faults))
    for clicks in chunks:
        fitter.update(log.fields(clicks))
    encoder = fitter.finish()
    assert (faults.bad_rows, faults.blank_lines) == (0, 0)
    assert sum(len(clicks) for clicks in chunks) == facts["rows"] == 2000
    assert np.mean(np.concatenate([clicks.label for clicks in chunks])) == pytest.approx(facts["ctr"])
    truth = np.concatenate([clicks.truth for clicks in chunks if clicks.truth is not None])
    assert xauc(truth, truth) == pytest.approx(facts["bayes_xauc"], abs=1e-4)
    for clicks in chunks:
        assert set(encoder.encode_columns(log.fields(clicks)).bad.values()) == {0}


def test_generate_writes_the_same_log_again(tmp_path: Path):
    options = ("--rows", "2000", "--days", "3", "--seed", "5")
    logs = [
        json.loads(training("generate", str(tmp_path / name), *options).stdout)["log"] for name in ("a.csv", "b.csv")
    ]

    assert Path(logs[0]).read_bytes() == Path(logs[1]).read_bytes()
