"""The long form of the loop, by commands alone: train, demonstrate, Ctrl-C, learn from the log, the next version."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.end_to_end.small_run import PATIENCE_SECONDS, ROOT, TINY, tiny_run, training

pytestmark = pytest.mark.soak
MODELS = [setting for setting in TINY if not setting.startswith("source.")]


def test_ctrl_c_ends_it_in_order_and_its_log_becomes_version_2(tmp_path: Path):
    """The results are printed, the service is gone, its segments are sealed; `training run` on what was logged
    publishes version 2 of every model."""
    repository, out = tmp_path / "repository", tmp_path / "demo"
    done = training(*tiny_run(tmp_path / "run", "--repository", str(repository)))
    assert done.returncode == 0, done.stderr

    command = [sys.executable, "-m", "training", "demo", "--repository", str(repository), "--port", "0"]
    process = subprocess.Popen(
        [*command, "--rate", "100", "--duration", "10000", "--out", str(out)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    until, said = time.monotonic() + 2 * PATIENCE_SECONDS, []
    for line in process.stdout:  # a line every ten seconds
        said.append(line)
        if "requests" in line and int(line.split(" s  ")[1].split()[0]) > 2500:
            break
        assert time.monotonic() < until, "".join(said)
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=PATIENCE_SECONDS)

    assert process.returncode == 0, "".join(said) + rest
    assert "# student-vs-ensemble, phase 1" in rest
    (folder,) = out.iterdir()
    truth = json.loads((folder / "truth.json").read_text())
    assert truth["requests"]["answered"] > 1000
    assert not list((folder / "log").glob("*.open"))
    assert "stopped" in (folder / "service.txt").read_text()

    schema = repository / "student" / "1" / "schema.json"
    options = ["--schema", str(schema), "--window", "15", "--as-of", "4000000000", "--out", str(folder / "next")]
    done = training("from-log", str(folder / "log"), *options)
    assert done.returncode == 0, done.stderr
    recipe = done.stdout.splitlines()[-1]
    report = json.loads((folder / "next" / "report.json").read_text())
    assert report["counts"]["rows"] == truth["feedback"]["impressions"]
    settings = [part for setting in MODELS for part in ("--set", setting)]
    done = training("run", recipe, *settings, "--out", str(tmp_path / "again"), "--repository", str(repository))
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (repository / "student").iterdir() if path.name.isdigit()} == {"1", "2"}
