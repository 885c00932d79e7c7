"""A teacher that attends to what a user looked at, beside the others: trained, exported within the ensemble, served."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from models.bundle import read_bundle
from tests.service.running import make_app, wait_until_ready
from training.pipeline.steps import read_json
from training.recipe import load_recipe
from training.run import run


@pytest.mark.soak
def test_din_is_a_teacher_where_the_log_has_a_history(tmp_path: Path) -> None:
    """As the recipe's zoo has it: its ensemble answers `/predict` as it was trained, and by what the history holds."""
    din = load_recipe("synthetic").recipe.zoo["din"]
    small = {"dim": 4, "hidden": [8], "init_sd": 0.3}
    fit = {"learning_rate": 0.02, "batch_rows": 200, "max_epochs": 1}
    teachers: dict[str, Any] = {
        "din": {"network": "din", "options": {**din.options, **small}, "fit": fit},
        "dnn": {"network": "dnn", "options": small, "fit": fit},
    }
    other = {"network": "dnn", "options": small, "fit": fit | {"patience": 1}}
    settings = {"teachers": teachers, "student": other, "control": other, "gate": {"form": "average"}, "zoo": {}}
    overrides = [f"{key}={value!r}" for key, value in settings.items()]
    overrides += ["source.rows=3000", "source.days=4", "split.last_days.valid=1"]

    report = read_json(
        run("synthetic", overrides=overrides, seeds=[1], out=tmp_path, repository=None, data=None, workers=2)
    )

    assert set(report["summary"]["test"]["teachers"]) == {"din", "dnn"}
    bundle = read_bundle(tmp_path / "repository" / "ensemble" / "1")
    golden = next(
        request for request in bundle.golden.requests if len(str(request.context.get("recent_categories") or "")) > 12
    )
    body = {"context": dict(golden.context), "candidates": list(golden.candidates)}
    with TestClient(make_app(tmp_path / "repository")) as client:
        wait_until_ready(client)
        answer = client.post("/models/ensemble/predict", json=body).json()["pctr"]
        nothing = {"context": body["context"] | {"recent_categories": []}, "candidates": body["candidates"]}
        without = client.post("/models/ensemble/predict", json=nothing).json()["pctr"]
    assert answer == pytest.approx(list(golden.pctr), abs=1e-5)
    assert without != pytest.approx(answer, abs=1e-5)
