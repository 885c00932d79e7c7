"""`python -m service bench`: what is measured is a real service that answers right, or nothing is."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.bundle import read_bundle
from service.__main__ import main
from service.bench import command
from service.errors import ConfigError
from service.scoring.scorer import Scorer
from tests.models.tiny_bundle import write_tiny_bundle

QUICK = ("--candidates", "1", "5", "--callers", "2", "--rounds", "1", "--seconds", "0.05")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with two versions of a student, the first of them live, and a model of another name."""
    repository = tmp_path_factory.mktemp("models")
    for name in ("student", "student", "ensemble"):
        write_tiny_bundle(repository, name)
    (repository / "student" / "live").write_text("1\n")
    return repository


@pytest.fixture(scope="module")
def found(models: Path) -> dict[str, Any]:
    """One short measurement by the command itself. Servers take seconds to start, so there is one."""
    cores = os.sched_getaffinity(0)
    options = command.make_parser().parse_args(["--models", str(models), *QUICK])
    bundle = command.find_bundle(options.models, options.model, options.version)
    result = command.run(
        bundle, options.candidates, callers=options.callers, rounds=options.rounds, seconds=options.seconds, cold=True
    )
    assert os.sched_getaffinity(0) == cores  # what it was pinned to for the while
    return result


def test_every_number_of_candidates_has_its_three_rows(found: dict[str, Any]):
    """session.run alone first, then one caller, then several; each really asked."""
    titles = ["session.run", "1 caller", "2 callers"]
    assert [(row["candidates"], row["what"]) for row in found["rows"]] == [(n, t) for n in (1, 5) for t in titles]
    assert all(row["requests"] > 0 and 0 < row["p50_ms"] <= row["p99_ms"] for row in found["rows"])
    assert (found["model"], found["version"], found["graph"]) == ("student", 1, "float32")


def test_the_service_is_given_in_times_of_session_run(found: dict[str, Any]):
    """Processor time over processor time; session.run has no such ratio."""
    for row in found["rows"]:
        ratio = row["times_session_run"]
        if row["what"] == "session.run":
            assert ratio is None
        else:
            assert 1 < ratio["least"] <= ratio["median"] <= ratio["greatest"]  # a service costs more than its graph


def test_what_is_printed_holds_every_figure(found: dict[str, Any]):
    """For a person a table; for a script the same as JSON."""
    text = command.as_text(found)

    assert text.count("session.run") == 1 + 2
    assert text.count("by 2 callers") == 2
    assert "no cache of candidates" in text
    assert f"{found['rows'][0]['p50_ms']:.3f}" in text
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_a_busy_machine_is_said_to_be_one(found: dict[str, Any]):
    machine = found["machine"] | {"cores": 2}

    busy, idle = (found | {"machine": machine | {"load_before": load}} for load in (5.0, 0.1))

    assert "This machine was busy" in command.as_text(busy)
    assert "This machine was busy" not in command.as_text(idle)


def test_answers_that_are_not_the_graphs_are_not_measured(models: Path, monkeypatch: pytest.MonkeyPatch):
    """Were the service to answer wrong, its speed would mean nothing."""
    bundle = read_bundle(models / "student" / "1")
    scorer = Scorer(bundle)
    requests = command.make_requests(bundle, 3, 2)
    feeds = [command._feed(bundle, request) for request in requests]
    right = [scorer.run(["pctr"], feed)[0] for feed in feeds]
    answers: Sequence[Any] = [right[0], np.clip(right[1] + 1e-3, 0, 1)]
    monkeypatch.setattr(command, "ask_once", lambda _, raw: json.dumps({"pctr": answers[raw].tolist()}).encode())

    command._check(scorer, feeds[:1], [0], port=1)
    with pytest.raises(command.BenchError, match="request 1: the service answers otherwise"):
        command._check(scorer, feeds, [0, 1], port=1)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--model", "control"], "--model: expected one of ensemble, student, got 'control'"),
        (["--version", "7"], "--version: expected one of 1, 2 of model student, got 7"),
    ],
)
def test_a_model_that_is_not_there_is_answered_with_those_that_are(
    models: Path, arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
):
    """Exit code 2, before anything is started."""
    assert main(["bench", "--models", str(models), *arguments]) == 2
    assert says in capsys.readouterr().err


def test_a_damaged_bundle_is_refused(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Exit code 3, with the file at fault."""
    damaged = write_tiny_bundle(tmp_path, "student") / "model.onnx"
    damaged.chmod(0o644)
    damaged.write_bytes(damaged.read_bytes()[:-1])

    assert main(["bench", "--models", str(tmp_path)]) == 3
    assert "model.onnx" in capsys.readouterr().err


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="--models: no folder"):
        command.find_bundle(tmp_path / "nowhere", None, None)


def test_help_teaches(capsys: pytest.CaptureFixture[str]):
    """How to read what comes out, with examples."""
    with pytest.raises(SystemExit) as ended:
        main(["bench", "--help"])

    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "how to read it" in text
    assert "python -m service bench --models models/repository" in text
