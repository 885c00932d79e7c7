"""Fields that only the log has: what is clicked at the top is not what is good, and what came after the impression is
not known before it. From the log to `/predict`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from starlette.testclient import TestClient

from models.bundle import Bundle, read_bundle
from models.graph import LOGIT, PCTR, graph_inputs
from models.versions import versions_in
from tests.service.running import make_app, wait_until_ready
from training.data.encoded_log import EncodedLog, Part
from training.data.prepare import load_encoder, serving_ids
from training.errors import RecipeError
from training.export.bundles import publish
from training.fit.loop import load_network
from training.fit.metrics import sigmoid
from training.pipeline.plan import Plan, plan
from training.pipeline.stages import in_order
from training.pipeline.steps import read_json
from training.recipe import load_recipe

ROWS = 6000
SCHEMA = {
    "label": {"column": "click"},
    "fields": [
        {"name": "ad", "type": "string", "role": "candidate", "kind": "categorical"}
        | {"encoding": {"method": "vocabulary"}},
        {"name": "position", "type": "integer", "role": "training_only", "kind": "categorical", "serving_value": 1}
        | {"encoding": {"method": "vocabulary"}},
        {"name": "hour", "type": "integer", "role": "context", "kind": "categorical"}
        | {"encoding": {"method": "vocabulary"}},
        {"name": "dwell", "type": "float", "role": "training_only", "kind": "numeric", "serving_value": None}
        | {"encoding": {"method": "quantile", "buckets": 8}},
    ],
}
NETWORK = {"network": "dnn", "options": {"dim": 4, "hidden": [16], "init_sd": 0.1}}
FIT = {"learning_rate": 0.02, "batch_rows": 128, "max_epochs": 6}
RECIPE = {
    "name": "biased",
    "source": {"kind": "files", "paths": ["log.csv"]},
    "schema_file": "log.schema.json",
    "split": {"by": "column", "column": "part", "train": ["train"], "valid": ["valid"], "test": ["test"]},
    "for_teachers": ["dwell"],
    "teachers": {"dnn": NETWORK | {"fit": FIT}, "lr": {"network": "lr", "fit": FIT}},
    "student": NETWORK | {"fit": FIT},
    "control": NETWORK | {"fit": FIT},
}
AD_LOGITS = np.linspace(-2.5, 0.5, 12)
POSITION_LOGITS = np.array([0.0, -1.0, -2.0, -3.0])


def write_log(folder: Path) -> None:
    """Worse ads were shown higher up; clicks are dearer further down; dwell is known after the click alone."""
    rng = np.random.default_rng(0)
    ad = rng.integers(0, 12, ROWS)
    position = np.clip((ad / 4 + rng.normal(0, 0.7, ROWS)).round(), 0, 3).astype(int)
    click = rng.random(ROWS) < sigmoid(AD_LOGITS[ad] + 1.5 + POSITION_LOGITS[position])
    dwell = rng.exponential(1 + 20 * click)
    part = np.array(["train", "train", "train", "valid", "test"])[np.arange(ROWS) % 5]
    lines = ["part,click,ad,position,hour,dwell"]
    lines += [
        f"{part[row]},{int(click[row])},ad{ad[row]:02},{position[row] + 1},{row % 24},{dwell[row]:.3f}"
        for row in range(ROWS)
    ]
    (folder / "log.csv").write_text("\n".join(lines) + "\n")
    (folder / "log.schema.json").write_text(json.dumps(SCHEMA))
    (folder / "biased.json").write_text(json.dumps(RECIPE))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The log and its recipe, trained, measured and published."""
    folder = tmp_path_factory.mktemp("biased")
    write_log(folder)
    laid_out = planned(folder)
    for step in in_order([laid_out.export]):
        place = step.folder(folder)
        place.mkdir(parents=True, exist_ok=True)
        needs = {name: needed.folder(folder) for name, needed in step.needs.items()}
        places = {"places": dict(step.places)} if step.places else {}
        step.run(place, lambda done, total, note="": None, **step.arguments, **needs, **places)
    publish(laid_out.export.folder(folder), laid_out.prepare.folder(folder), folder / "repository")
    return folder


def planned(folder: Path) -> Plan:
    return plan(load_recipe(str(folder / "biased.json")), [1], runs=folder, data=None)


def bundle(folder: Path, name: str) -> Bundle:
    place = folder / "repository" / name
    return read_bundle(place / str(versions_in(place)[-1]))


ADS = [{"ad": f"ad{number:02}"} for number in range(12)]


@pytest.mark.parametrize("name", ["student", "ensemble", "control"])
def test_the_exported_graph_is_the_network_with_the_serving_values_put_in(name: str, folder: Path):
    """torch over the fixed ids against ONNX Runtime, which is not even asked for them; golden rows, too, lack them."""
    steps, served = planned(folder).seeds[0], bundle(folder, name)
    prepared = planned(folder).prepare.folder(folder)
    encoder, fields = load_encoder(prepared), EncodedLog.open(prepared / "log").fields
    feed = graph_inputs([encoder.encode_context({"hour": 3})], [encoder.encode_candidates(ADS)])
    session = onnxruntime.InferenceSession(served.model_path)
    logit, _ = session.run([LOGIT, PCTR], feed)

    assert feed["context"].shape == (1, 1)
    assert all(set(request.context) <= {"hour"} for request in served.golden.requests)
    assert all(set(row) <= {"ad"} for request in served.golden.requests for row in request.candidates)
    assert encoder.serving_ids().tolist() == [encoder.to_vocabularies()["position"].index("1") + 2, 0]
    if name != "ensemble":
        network = load_network(steps.fits[name].again.folder(folder), fields)
        log = EncodedLog.open(prepared / "log").with_fixed(serving_ids(prepared))
        hour, ads = feed["context"][0, 0], feed["candidates"][:, 0]
        rows = np.array([np.flatnonzero((log.ids[:, -1] == ad) & (log.ids[:, 0] == hour))[0] for ad in ads])
        with torch.inference_mode():
            np.testing.assert_allclose(logit, network(log.batch(rows))[0].numpy(), atol=1e-5)


def test_predict_neither_needs_the_fields_nor_heeds_them(folder: Path):
    """Given in a request they are ignored like any other name that is no field, and counted."""
    plain = {"context": {"hour": 3}, "candidates": ADS}
    given = {
        "context": {"hour": 3, "position": 4, "dwell": 50.0},
        "candidates": [row | {"position": 4, "dwell": 50.0} for row in ADS],
    }
    with TestClient(make_app(folder / "repository")) as client:
        wait_until_ready(client)
        answers = [client.post("/models/student/predict", json=body).json() for body in (plain, given)]
        metrics = client.get("/metrics").text

    assert answers[0]["pctr"] == answers[1]["pctr"]
    ignored = next(line for line in metrics.splitlines() if line.startswith("retort_ignored_fields_total "))
    assert float(ignored.split()[1]) == 2 + 2 * len(ADS)


def test_what_is_served_orders_ads_by_what_they_are_worth_not_by_where_they_stood(folder: Path):
    """At one position the truth is the ad's own logit; by raw click rates the best ads look no better than the rest."""
    with TestClient(make_app(folder / "repository")) as client:
        wait_until_ready(client)
        answer = client.post("/models/student/predict", json={"context": {"hour": 3}, "candidates": ADS}).json()
    pctr = np.array(answer["pctr"])
    prepared = planned(folder).prepare.folder(folder)
    log, encoder = EncodedLog.open(prepared / "log"), load_encoder(prepared)
    ids = encoder.encode_candidates(ADS).ids[:, 0]
    rows = log.rows([Part.TRAIN])
    raw = np.array([log.label[rows][log.ids[rows, -1] == id_].mean() for id_ in ids])

    def order(values: np.ndarray) -> float:
        return float(np.corrcoef(np.argsort(np.argsort(values)), np.arange(12))[0, 1])

    assert order(pctr) > 0.9
    assert order(raw) < order(pctr)
    truth = sigmoid(AD_LOGITS + 1.5 + POSITION_LOGITS[0])
    assert np.abs(pctr - truth).mean() < np.abs(raw - truth).mean() / 2


def test_a_privileged_field_is_the_teachers_alone(folder: Path):
    """Dwell gives clicks away. Teachers learn from it and say so; what the student and the control say of a row does
    not depend on it, in training, in what is measured, and where they serve."""
    steps = planned(folder).seeds[0]
    facts = read_json(steps.measure.folder(folder) / "measure.json")
    log = EncodedLog.open(planned(folder).prepare.folder(folder) / "log")
    test = log.rows([Part.TEST])

    assert facts["test"]["teachers"]["dnn"]["auc"] > facts["test"]["student"]["auc"] + 0.05
    for place, sees in (("teachers.dnn", True), ("student", False), ("control", False)):
        fit = steps.fits[place]
        for step in (fit.first, fit.again):
            network, stored = load_network(step.folder(folder), log.fields), np.load(step.folder(folder) / "logit.npy")
            with torch.inference_mode():
                blindfold = network(log.with_fixed({"dwell": 0}).batch(test))[0].numpy()
            assert (np.abs(stored[test] - blindfold).max() < 1e-5) is not sees, place


def test_figures_as_served_stand_beside_those_of_the_log(folder: Path):
    """With the values that stand in: the ensemble's lead over the student came from what no request brings."""
    facts = read_json(planned(folder).seeds[0].measure.folder(folder) / "measure.json")
    served, logged = facts["as_served"], facts["test"]

    assert set(served) == {"student", "control_train_valid", "ensemble", "teachers"}
    assert served["teachers"]["dnn"]["auc"] < logged["teachers"]["dnn"]["auc"] - 0.05
    assert served["ensemble"]["auc"] < logged["ensemble"]["auc"] - 0.02


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("for_teachers=[hour]", r"for_teachers: expected training_only fields \(dwell, position\), got 'hour'"),
        ("scheme=cotrain", r"for_teachers: expected teachers that see rows of their own, got scheme cotrain"),
    ],
)
def test_a_recipe_that_cannot_hide_it_is_refused(change: str, said: str, tmp_path: Path):
    write_log(tmp_path)

    with pytest.raises(RecipeError, match=said):
        load_recipe(str(tmp_path / "biased.json"), [change])
