"""`python -m benchmarks.stages`, and the bundle it is meant for, on tiny ones: that they run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from benchmarks.wide_bundle import write_wide_bundle
from benchmarks.workload import make_requests
from models.bundle import read_bundle
from service.scoring.scorer import Scorer

ROOT = Path(__file__).parents[2]


def test_a_wide_bundle_is_a_bundle_like_any_other(tmp_path: Path):
    """It loads, its golden rows pass, requests are made from it, and its scores differ from ad to ad."""
    bundle = read_bundle(write_wide_bundle(tmp_path, (50, 20), (40, 20, 10)))

    scorer = Scorer(bundle)

    (request,) = make_requests(bundle, 20, 1)
    encoder = bundle.encoder
    pctr = scorer.score([encoder.encode_context(request.context)], [encoder.encode_candidates(request.candidates)])
    assert len(np.unique(pctr)) > 3


def test_every_stage_is_measured_and_the_whole_beside_it(tmp_path: Path):
    """A row a stage, a column a number of candidates, written into the document."""
    write_wide_bundle(tmp_path / "repository", (50, 20), (40, 20, 10))
    document = tmp_path / "benchmarks.md"
    document.write_text("<!-- stages: begin -->\n<!-- stages: end -->\n")
    command = [
        *(sys.executable, "-m", "benchmarks.stages", "--repository", str(tmp_path / "repository"), "--models", "wide"),
        *("--candidates", "1", "5", "--requests", "5", "--rounds", "1", "--seconds", "0.1", "--write", str(document)),
    ]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=240)

    assert done.returncode == 0, done.stderr
    written = document.read_text()
    assert "| stage, us of CPU | N = 1 | N = 5 |" in written
    for name in ("HTTP, head known", "encode the context", "run", "reply, with metrics", "whole / session.run"):
        assert f"| {name} |" in written
