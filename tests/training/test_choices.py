"""From a recipe to steps: which there are, and that each scheme's road leads to the same figures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from training.data.encoded_log import EncodedLog, Part
from training.distillation.gate import cross_entropy
from training.fit.metrics import auc
from training.pipeline.plan import Plan, SeedSteps, measured, plan
from training.pipeline.stages import Step, in_order
from training.pipeline.steps import read_json
from training.recipe import load_recipe

DNN = {"network": "dnn", "options": {"dim": 2, "hidden": [8], "init_sd": 0.1}}
FIT = {"learning_rate": 0.01, "max_epochs": 2, "batch_rows": 256}
RECIPE: dict[str, Any] = {
    "name": "tiny",
    "source": {"kind": "synthetic", "seed": 0, "rows": 3000, "days": 4},
    "split": {"by": "time", "last_days": {"valid": 1, "test": 1}},
    "teachers": {"deepfm": DNN | {"network": "deepfm", "fit": FIT}, "dnn": DNN | {"fit": FIT}},
    "student": DNN | {"fit": FIT},
    "control": DNN | {"fit": FIT},
}


def planned(folder: Path, *overrides: str) -> Plan:
    (folder / "tiny.yaml").write_text(yaml.safe_dump(RECIPE))
    return plan(load_recipe(str(folder / "tiny.yaml"), overrides), [1], runs=folder, data=None)


def labels(steps: SeedSteps) -> set[str]:
    """stage/label of every step that a seed's figures need."""
    return {f"{step.stage}/{step.label}".removesuffix("-s1") for step in in_order([steps.measure])}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared by all runs here, as a folder of runs is: what two recipes have in common is done once."""
    return tmp_path_factory.mktemp("runs")


def run(runs: Path, *overrides: str) -> tuple[SeedSteps, dict[str, Any]]:
    """The steps of a recipe, done in this process up to its figures; and those."""
    steps = planned(runs, *overrides).seeds[0]
    return steps, read_json(done(steps.measure, runs) / "measure.json")


def done(wanted: Step, runs: Path) -> Path:
    """The folder of a step, filled with all that it needs in this process."""
    for step in in_order([wanted]):
        folder = step.folder(runs)
        if not folder.exists():
            folder.mkdir(parents=True)
            needs = {name: needed.folder(runs) for name, needed in step.needs.items()}
            places = {"places": dict(step.places)} if step.places else {}
            step.run(folder, lambda rows, total, note="": None, **step.arguments, **needs, **places)
    return wanted.folder(runs)


PRETRAIN = {
    *("log/synthetic-0", "survey/tiny", "encoder/tiny", "prepare/tiny", "control/control", "refit/control"),
    *("teachers/deepfm", "teachers/dnn", "refit/deepfm", "refit/dnn"),
    *("gate/gate", "refit/ensemble", "student/student", "refit/student", "calibrate/platt", "measure/measure"),
}


def test_by_default_teachers_train_first_and_everything_is_refitted(tmp_path: Path):
    assert labels(planned(tmp_path).seeds[0]) == PRETRAIN


def test_hints_are_stored_where_somebody_wants_them_and_only_there(tmp_path: Path):
    """Once a teacher and version, in half precision for a student, whole for a gate; on no one else's road."""
    stored = {f"{stage}/{name}" for stage in ("hints", "refit-hints") for name in ("deepfm", "dnn")}

    by_student = planned(tmp_path, "student.fit.losses={soft: 1, hint: 0.1}").seeds[0]
    by_gate = planned(tmp_path, "gate.form=hints").seeds[0]

    assert labels(by_student) == labels(by_gate) == PRETRAIN | stored
    for steps, dtype in ((by_student, "float16"), (by_gate, "float32")):
        found = {s.arguments["dtype"] for s in in_order([steps.measure]) if s.stage in ("hints", "refit-hints")}
        assert found == {dtype}
    assert by_student.gate.key == planned(tmp_path).seeds[0].gate.key


def test_without_merging_validation_nothing_is_trained_twice(tmp_path: Path):
    """What was stopped by validation rows is what is served."""
    steps = planned(tmp_path, "merge_validation=false").seeds[0]

    assert labels(steps) == {label for label in PRETRAIN if not label.startswith("refit/")}
    assert all(steps.fits[name].again is steps.fits[name].first for name in ("student", "control", "ensemble"))
    assert steps.fits["ensemble"].again is steps.gate


def test_copies_are_teachers_of_their_own(tmp_path: Path):
    """Each with its seed; of parted rows, each with its own share of one partition."""
    changes = ("teachers.dnn.copies={by: folds, count: 3}", "teachers.deepfm.copies={by: seeds, count: 2}")
    steps = planned(tmp_path, *changes).seeds[0]

    assert list(steps.teachers) == ["deepfm-1", "deepfm-2", "dnn-1", "dnn-2", "dnn-3"]
    arguments = [fit.again.arguments for fit in steps.teachers.values()]
    assert len({argument["seed"] for argument in arguments}) == 5
    shares = [argument.get("share") for argument in arguments]
    assert shares[:2] == [None, None]
    assert [share["index"] for share in shares[2:]] == [0, 1, 2]
    assert len({share["seed"] for share in shares[2:]}) == 1
    assert steps.fit_of("teachers.dnn").first.label == "dnn-1-s1"


def test_a_change_to_the_student_trains_no_teacher_again(tmp_path: Path):
    """Teachers are stored by version and shared by all students; the gate's form is no matter of theirs either."""
    before = planned(tmp_path).seeds[0]

    student = planned(tmp_path, "student.fit.kd_weight=0.5", "student.fit.aggregate=probabilities").seeds[0]
    gate = planned(tmp_path, "gate.form=full").seeds[0]

    assert student.gate.key == before.gate.key
    assert student.fits["student"].first.key != before.fits["student"].first.key
    assert {name: fit.again.key for name, fit in gate.teachers.items()} == {
        name: fit.again.key for name, fit in before.teachers.items()
    }
    assert gate.gate.key != before.gate.key


def figures(facts: Mapping[str, Any]) -> set[str]:
    return {*facts["test"], *(f"teachers/{name}" for name in facts["test"]["teachers"])}


@pytest.mark.parametrize(
    "changes",
    [
        ("scheme=cotrain", "student.fit.losses={soft: 1, hint: 0.1}"),
        ("scheme={kind: cotrain, teacher_weight: 0}", "gate.form=hints", "merge_validation=false"),
        ("scheme=mutual", "student.fit.kd_weight=0.5"),
        (
            "student.fit.losses={soft: 1, hint: 0.1, mse: 0.1}",
            "student.fit.fine_tune={epochs: 1, learning_rate: 0.001}",
        ),
        ("gate={form: hints, learns_on: train, fallback: false}", "student.fit.auxiliary_head=true"),
        ("gate={form: stacking, fallback: false}", "student.fit.stop_by=valid_auc"),
        ("gate={form: full, learns_by: distillation, fallback: false}",),
    ],
)
def test_every_road_leads_to_the_same_figures(runs: Path, changes: tuple[str, ...]):
    """Student, ensemble, average, controls and every teacher, and what the gate gave each."""
    steps, facts = run(runs, *changes)

    models = {"student", "control_train", "control_train_valid", "average", "ensemble", "teachers"}
    assert figures(facts) == models | {"teachers/deepfm", "teachers/dnn"}
    assert set(facts["gate"]["mean_weights"]) == {"deepfm", "dnn"}
    assert sum(facts["gate"]["mean_weights"].values()) == pytest.approx(1)
    student = np.load(steps.fits["student"].again.folder(runs) / "logit.npy")
    assert np.isfinite(student).all()
    assert facts["fits"]["student"]["epochs"] in (1, 2)
    assert all("valid_kl" in row for row in facts["fits"]["student"]["history"][:1])
    assert all("valid_auc" in row for fit in facts["fits"]["teachers"].values() for row in fit["history"])


def test_a_model_measured_alone_has_the_figures_of_a_run(runs: Path):
    """Tables of `ablate` and reports are of one kind: after refit and before it, calibrated, of all traffic."""
    steps, facts = run(runs, "negatives.keep=0.5")
    places = {
        "student": ("student",),
        "control": ("control_train_valid",),
        "ensemble": ("ensemble",),
        "average": ("average",),
        "teachers.dnn": ("teachers", "dnn"),
    }

    for place, path in places.items():
        step = measured(steps.fits[place], steps.measure.needs["prepared"], f"{place.rpartition('.')[2]}-s1")
        found = read_json(done(step, runs) / "figures.json")
        for part in ("test", "train", "before_refit"):
            expected = facts[part]
            for name in path:
                expected = expected[name.removesuffix("_valid") if part == "before_refit" else name]
            assert found[part] == pytest.approx(expected), (place, part)


def test_a_refit_of_a_co_training_is_a_co_training(runs: Path):
    """Teachers and student of the refit come from one run over train + validation, with the first run's gate."""
    steps, _ = run(runs, "scheme=cotrain", "gate.fallback=false")

    again = steps.fits["student"].again.needs["source"]
    assert again is not None
    assert {fit.again.needs["source"].key for fit in steps.teachers.values()} == {again.key}
    first = again.needs["first"]
    raw = read_json(first.folder(runs) / "gate.json")
    served = read_json(steps.gate.folder(runs) / "gate.json")["gate"]
    assert (served["matrix"], served["biases"]) == (raw["matrix"], raw["biases"])
    assert (raw["scale"], raw["bias"]) == (1.0, 0.0) != (served["scale"], served["bias"])
    assert not (again.folder(runs) / "gate.json").exists()
    seen = np.load(steps.teachers["dnn"].again.folder(runs) / "seen.npy")
    assert seen.sum() > np.load(steps.fit_of("teachers.dnn").first.folder(runs) / "seen.npy").sum()


def test_labels_of_copies_come_from_those_that_did_not_see_the_row(runs: Path):
    """And from all copies where a recipe says so: other students, the same teachers and gate; both kinds of labels are
    measured on the training rows."""
    copies = ("teachers.deepfm=null", "teachers.dnn.copies={by: folds, count: 3}")

    unseen, facts = run(runs, *copies)
    everyone, _ = run(runs, *copies, "student.fit.taught_by=all")

    assert unseen.gate.key == everyone.gate.key
    students = [np.load(steps.fits["student"].again.folder(runs) / "logit.npy") for steps in (unseen, everyone)]
    assert not np.array_equal(*students)
    log = EncodedLog.open(unseen.measure.needs["prepared"].folder(runs) / "log")
    rows = log.rows([Part.TRAIN])
    fits = [unseen.gate.needs[f"teacher:dnn-{number}"].folder(runs) for number in (1, 2, 3)]
    z, seen = (np.stack([np.load(fit / file)[rows] for fit in fits], 1) for file in ("logit.npy", "seen.npy"))
    found, gate = facts["gate"]["labels"], facts["gate"]["gate"]
    assert found["share_by_some"] == 1.0
    scale, bias = gate["scale_of_some"]
    assert found["unseen"]["auc"] == pytest.approx(auc(log.label[rows], z[~seen]))
    assert found["unseen"]["logloss"] == pytest.approx(cross_entropy(scale * z[~seen] + bias, log.label[rows]))
    assert found["all"]["auc"] != found["unseen"]["auc"]
    assert list(facts["test"]["teachers"]) == ["dnn-1", "dnn-2", "dnn-3"]


def test_stored_hints_are_the_teachers_hidden_layers(runs: Path):
    """One row a row of the log, as wide as the hidden layer, in a folder of its own beside the fit's."""
    steps, _ = run(runs, "gate={form: hints, learns_on: train, fallback: false}", "student.fit.auxiliary_head=true")

    hints = steps.gate.needs["hints:dnn"].folder(runs) / "hint.npy"
    stored = np.load(hints, mmap_mode="r")
    assert stored.shape == (3000, 8)
    assert (stored >= 0).all()  # behind a ReLU
    assert stored.any()
