"""The main job as its users run it: a log in, models out, a live service that scores raw ads as the networks do."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent.parent

TINY = ["source.rows=12000", "source.days=4"]
for _name in ("fm", "dnn", "deepfm", "dcnv2", "ipnn"):
    TINY.append(f"teachers.{_name}.options.dim=4")
for _name in ("lr", "fm", "dnn", "deepfm", "dcnv2", "ipnn"):
    TINY.append(f"teachers.{_name}.fit.max_epochs=2")
for _name in ("student", "control"):
    TINY += [f"{_name}.options.hidden=[32]", f"{_name}.options.dim=4", f"{_name}.fit.max_epochs=2"]

MODELS = ("student", "control_train", "control_train_valid", "average", "ensemble")


def training(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "training", *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=600,
    )


def tiny_run(out: Path, *more: str) -> list[str]:
    return ["run", "synthetic", "--out", str(out), *(a for s in TINY for a in ("--set", s)), *more]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run over a small world, two seeds."""
    folder = tmp_path_factory.mktemp("run")
    done = training(*tiny_run(folder, "--seeds", "2"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(folder / "report.json")
    return folder


@pytest.fixture(scope="module")
def service(out: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The live service over that run's repository; yields its address."""
    said = tmp_path_factory.mktemp("service") / "log"
    command = [sys.executable, "-m", "service", "--repository", str(out / "repository"), "--port", "0"]
    with said.open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        try:
            yield _address(process, said)
        finally:
            process.send_signal(signal.SIGTERM)
            code = process.wait(timeout=30)
    assert code == 0, said.read_text()


def _address(process: "subprocess.Popen[bytes]", log: Path) -> str:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        for line in log.read_text().splitlines():
            if "listens on " in line:
                return line.partition("listens on ")[2].split()[0]
        time.sleep(0.1)
    raise AssertionError(f"the service did not come up:\n{log.read_text()}")


def post(url: str, body: Any) -> dict[str, Any]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return dict(json.load(answer))


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


def test_ctrl_c_in_a_stage_loses_no_finished_stage(tmp_path: Path):
    """SIGINT to the whole group, as a terminal sends it, while teachers train; then the same command again."""
    command = [sys.executable, "-m", "training", *tiny_run(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("teachers/[!.]*-s1-*")):
        assert time.monotonic() < deadline
        time.sleep(0.05)

    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=30)

    assert process.returncode == 130
    assert "finished steps are kept" in said
    assert not list(tmp_path.glob("*/.building-*"))
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*-*") if path.is_dir()}
    assert any(path.parent.name == "teachers" for path in kept)

    again = training(*tiny_run(tmp_path))

    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


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


def test_generate_writes_a_log_that_its_schema_reads(tmp_path: Path):
    done = training("generate", str(tmp_path / "log.csv.gz"), "--rows", "2000", "--days", "3", "--seed", "5")
    again = training("generate", str(tmp_path / "again.csv.gz"), "--rows", "2000", "--days", "3", "--seed", "5")

    facts = json.loads(done.stdout)
    assert facts["rows"] == 2000
    assert 0.5 < facts["bayes_xauc"] < 1
    other = json.loads(again.stdout)
    assert gzip.decompress(Path(facts["log"]).read_bytes()) == gzip.decompress(Path(other["log"]).read_bytes())
