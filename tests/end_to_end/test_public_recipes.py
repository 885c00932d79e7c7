"""The recipes of the two public logs, from a file as downloaded to `/predict`; on a few lines of the same shape."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from models.bundle import read_bundle
from tests.service.running import make_app, wait_until_ready
from tests.training.data.logs import avazu_text, criteo_text
from training.pipeline.steps import read_json
from training.run import run

ROWS = 1500
FILES = {"criteo_x4": ("criteo_kaggle/train.txt", criteo_text), "avazu_x4": ("avazu_kaggle/train.csv", avazu_text)}


def smaller() -> list[str]:
    """As shipped, but for the number of rows, a teacher less, and sizes for so few of them."""
    settings = ["source.rows=null", "teachers.dnn=null"]
    for place in ("teachers.deepfm", "teachers.dcnv2", "student", "control"):
        settings += [f"{place}.options.hidden=[16, 8]", f"{place}.options.dim=4", f"{place}.options.init_sd=0.1"]
        settings += [f"{place}.fit.batch_rows=200", f"{place}.fit.learning_rate=0.02"]
        settings += [f"{place}.fit.max_epochs=2", f"{place}.fit.patience=1"]
    return settings


def by_model(figures: dict[str, Any]) -> dict[str, Any]:
    teachers = figures.pop("teachers")
    assert list(teachers) == ["deepfm", "dcnv2"]
    return figures | teachers


@pytest.mark.parametrize("recipe", ["criteo_x4", pytest.param("avazu_x4", marks=pytest.mark.soak)])
def test_a_file_as_downloaded_is_trained_reported_and_served(recipe: str, tmp_path: Path) -> None:
    name, text = FILES[recipe]
    log = tmp_path / name
    log.parent.mkdir()
    log.write_text(text(ROWS))

    report = read_json(
        run(
            recipe,
            overrides=smaller(),
            seeds=[1],
            out=tmp_path / "out",
            repository=None,
            data=tmp_path,
            workers=2,
        )
    )

    assert report["data"]["rows"] == ROWS
    assert all(0 < figures["auc"]["mean"] < 1 for figures in by_model(report["summary"]["test"]).values())
    assert (tmp_path / "out" / "report.html").stat().st_size > 100_000
    golden = read_bundle(tmp_path / "out" / "repository" / "student" / "1").golden.requests[0]
    with TestClient(make_app(tmp_path / "out" / "repository")) as client:
        wait_until_ready(client)
        body = {"context": golden.context, "candidates": list(golden.candidates)}
        answer = client.post("/models/student/predict", json=body).json()
    assert answer["pctr"] == pytest.approx(list(golden.pctr), abs=1e-5)
