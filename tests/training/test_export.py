"""From trained networks to bundles in a repository: whole, true to the networks, and made once."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest

from models.bundle import read_bundle
from models.golden import check_golden
from models.graph import LOGIT, PCTR, graph_inputs
from models.versions import Repository
from tests.training.served import RECIPE, exported, prepared_log, read, without
from training.data.encoded_log import EncodedLog, Part
from training.distillation.calibrate import Platt
from training.export.bundles import git_state, publish
from training.export.cost import open_session
from training.fit.metrics import sigmoid


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared_log(tmp_path_factory.mktemp("log"))


@pytest.fixture(scope="module")
def built(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(prepared, tmp_path_factory.mktemp("built"))


@pytest.fixture
def repository(built: Path, prepared: Path, tmp_path: Path) -> Path:
    publish(built, prepared, tmp_path / "repository")
    return tmp_path / "repository"


def test_three_models_are_published_as_versions_one(built: Path, prepared: Path, tmp_path: Path):
    published = publish(built, prepared, tmp_path)

    assert [(model.name, model.version, model.is_new) for model in published] == [
        ("control", 1, True),
        ("ensemble", 1, True),
        ("student", 1, True),
    ]
    assert Repository(tmp_path).names() == ["control", "ensemble", "student"]


@pytest.mark.parametrize("name", ["student", "control", "ensemble"])
def test_a_bundle_scores_its_golden_rows(name: str, repository: Path):
    """As the service does at load: verify every byte, encode raw rows, run the graph, compare."""
    bundle = read_bundle(repository / name / "1")
    session = open_session(bundle.model_path)

    def score(context, candidates):
        rows = bundle.encoder.encode_context(context), bundle.encoder.encode_candidates(candidates)
        return session.run([LOGIT, PCTR], graph_inputs([rows[0]], [rows[1]]))

    check_golden(bundle.golden, score, bundle.path)
    candidates = [row for request in bundle.golden.requests for row in request.candidates]
    assert {} in candidates  # everything missing
    assert any(row.get("tags") and len(row["tags"]) > 4 for row in candidates)  # longer than the field keeps
    assert any(abs(row.get("price") or 0) > 1e300 for row in candidates)


def test_the_manifest_says_what_was_trained_on_what(prepared: Path, repository: Path):
    bundle = read_bundle(repository / "student" / "1")

    manifest = bundle.manifest
    assert manifest.recipe == RECIPE
    assert manifest.data.source == "log.csv"
    assert manifest.data.fingerprint == read(prepared / "report.json")["fingerprint"]
    assert {name: part.rows for name, part in manifest.data.parts.items()} == {"train": 150, "valid": 75, "test": 75}
    assert [(teacher.name, teacher.mean_gate_weight) for teacher in manifest.teachers] == [("dnn", 0.7), ("fm", 0.3)]
    assert (manifest.calibration.scale, manifest.calibration.negative_sampling_rate) == (0.8, 0.25)
    assert manifest.test_metrics == {
        "student": {"auc": 0.7, "logloss": 0.4},  # gauc is undefined there, so it is not said
        "control_train_valid": {"auc": 0.69, "logloss": 0.41},
        "teachers/fm": {"auc": 0.66},
    }
    assert manifest.git_commit is None or len(manifest.git_commit) == 40
    assert 0 < manifest.parity_error <= 1e-5


def test_only_what_was_distilled_names_teachers_and_temperature(repository: Path):
    found = {
        name: (len(manifest.teachers), manifest.temperature)
        for name in ("student", "ensemble", "control")
        for manifest in [read_bundle(repository / name / "1").manifest]
    }

    assert found == {"student": (2, 1.0), "ensemble": (2, None), "control": (0, None)}


def test_the_reference_is_what_drift_is_measured_against(prepared: Path, repository: Path):
    """Ids of served fields in training rows, and this model's pctr on test rows, which it did not train on."""
    log = EncodedLog.open(prepared / "log")
    reference = read_bundle(repository / "control" / "1").manifest.reference

    assert set(reference.fields) == {"tags", "user", "price"}  # no position: nobody sends it
    assert sum(reference.fields["user"].counts) + reference.fields["user"].other == 150
    logit = np.linspace(-3, 1, len(log))[log.rows([Part.TEST])]
    pctr = sigmoid(Platt(0.8, -0.4).apply(logit) + np.log(0.25))
    assert reference.pctr.counts == tuple(np.histogram(pctr, bins=50, range=(0, 1))[0].tolist())


def test_costs_are_given_for_every_model_and_teacher(built: Path):
    """The shape that scripts read: cost.<model>.<candidates>.p50_ms, and sizes beside it."""
    cost = read(built / "cost.json")["cost"]

    assert set(cost) == {"student", "control", "ensemble", "teachers"}
    assert set(cost["teachers"]) == {"dnn", "fm"}
    for model in (cost["student"], cost["ensemble"], cost["teachers"]["fm"]):
        assert set(model) == {"1", "50", "200", "parameters_embedding", "parameters_dense", "bytes"}
        assert all(0 < model[count]["p50_ms"] <= model[count]["p99_ms"] for count in ("1", "50", "200"))
    weights = ("parameters_embedding", "parameters_dense")
    assert all(cost["ensemble"][key] >= cost["teachers"]["dnn"][key] + cost["teachers"]["fm"][key] for key in weights)
    assert cost["student"]["bytes"] == (built / "student" / "model.onnx").stat().st_size
    assert not (built / "teachers").exists()  # measured, but no models to serve


def test_publishing_again_makes_no_new_version(built: Path, prepared: Path, repository: Path):
    """A pipeline that runs again over a full cache leaves the repository as it is."""
    before = sorted(repository.rglob("*"))

    again = publish(built, prepared, repository)

    assert not any(model.is_new for model in again)
    assert sorted(repository.rglob("*")) == before


def test_other_milliseconds_are_no_reason_for_a_new_version(
    built: Path, prepared: Path, repository: Path, tmp_path: Path
):
    """The same networks, built and measured again, perhaps by another commit."""
    again = exported(prepared, tmp_path / "again", only="student")

    assert read(again / "student" / "card.json")["cost"] != read(built / "student" / "card.json")["cost"]
    assert not any(model.is_new for model in publish(again, prepared, repository))


@pytest.mark.parametrize("what", ["weights", "recipe"])
def test_a_changed_model_is_the_next_version(what: str, prepared: Path, repository: Path, tmp_path: Path):
    """And what did not change stays at its version."""
    recipe = RECIPE | ({"description": "other"} if what == "recipe" else {})
    seed = 5 if what == "weights" else 0
    changed = exported(prepared, tmp_path / "next", seed=seed, recipe=recipe, only="student")

    (published,) = publish(changed, prepared, repository)

    assert (published.name, published.version, published.is_new) == ("student", 2, True)
    assert Repository(repository).versions("control") == [1]


def test_a_damaged_newest_version_is_replaced_by_a_sound_one(built: Path, prepared: Path, repository: Path):
    """The damaged one stays where it is, as evidence, and is refused by whoever loads it."""
    model = repository / "student" / "1" / "model.onnx"
    model.chmod(0o644)
    model.write_bytes(model.read_bytes()[:-1])

    published = {found.name: found for found in publish(built, prepared, repository)}

    assert (published["student"].version, published["student"].is_new) == (2, True)
    assert not published["ensemble"].is_new


def test_an_emptied_repository_is_filled_again(built: Path, prepared: Path, repository: Path):
    """What was built is kept in the run's folder, so nothing is exported or measured anew."""
    shutil.rmtree(repository)

    assert all(model.is_new for model in publish(built, prepared, repository))


def test_a_graph_refers_to_no_file_but_its_own(repository: Path):
    for model in repository.glob("*/1/model.onnx"):
        tensors = onnx.load(model, load_external_data=False).graph.initializer
        locations = {entry.value for t in tensors for entry in t.external_data if entry.key == "location"}
        assert locations <= {"model.onnx.data"}


def test_the_commit_is_that_of_the_source_tree_and_null_outside_git(tmp_path: Path):
    """Files that differ from it are said to; files that git does not know are not."""

    def git(*arguments: str) -> None:
        who = ("-c", "user.name=t", "-c", "user.email=t@example.org")
        subprocess.run(["git", "-C", str(tmp_path), *who, *arguments], check=True, capture_output=True)

    assert git_state(tmp_path) == (None, False)

    git("init")
    (tmp_path / "code.py").write_text("x = 1\n")
    git("add", "code.py")
    git("commit", "-m", "first")
    commit, dirty = git_state(tmp_path)
    assert commit is not None
    assert (len(commit), dirty) == (40, False)

    (tmp_path / "notes.txt").write_text("not in git\n")
    assert git_state(tmp_path) == (commit, False)
    (tmp_path / "code.py").write_text("x = 2\n")
    assert git_state(tmp_path) == (commit, True)


def test_a_card_is_json_with_every_key(built: Path):
    """What is not known is null, never left out."""
    card = read(built / "control" / "card.json")

    assert card["temperature"] is None
    assert set(without(card, "cost")) >= {"git_commit", "git_dirty", "data", "recipe", "calibration", "reference"}
