"""`python -m benchmarks.predict` from end to end on a tiny bundle: that it runs, not what it measures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.models.tiny_bundle import write_tiny_bundle

ROOT = Path(__file__).parents[2]


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own, because it pins itself to a core."""
    command = [sys.executable, "-m", "benchmarks.predict", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)


def test_a_quick_run_measures_all_three_and_writes_what_it_found(tmp_path: Path):
    """Table, JSON and document, with the conditions beside the numbers."""
    write_tiny_bundle(tmp_path / "repository", "student")
    write_tiny_bundle(tmp_path / "repository", "ensemble", teachers=2, bias=0.5)
    document = tmp_path / "benchmarks.md"
    document.write_text("<!-- predict: begin -->\n<!-- predict: end -->\n")

    done = bench(
        *("--quick", "--repository", str(tmp_path / "repository")),
        *("--out", str(tmp_path / "out"), "--write", str(document)),
    )

    assert done.returncode == 0, done.stderr
    path = Path(done.stdout.splitlines()[-1])
    result = json.loads(path.read_text(encoding="utf-8"))
    assert {(cell["model"], cell["candidates"], cell["connections"]) for cell in result["cells"]} == {
        *(("student", 1, 8), ("student", 50, 8), ("ensemble", 1, 8), ("ensemble", 50, 8)),
    }
    for cell in result["cells"]:
        assert set(cell["contenders"]) == {"retort", "naive", "session.run"}
        for figures in cell["contenders"].values():
            assert figures["requests"] > 0
            assert figures["requests_per_second"]["median"] > 0
            assert 0 < figures["p50_ms"] <= figures["p99_ms"]
            assert figures["cpu_ms"]["median"] > 0
        assert cell["ratios"].keys() == {"retort / naive", "retort / session.run"}
        assert all(ratio["requests_per_second"]["median"] > 0 for ratio in cell["ratios"].values())
    assert result["generator"][0]["cpu_us"] > 0
    assert result["bundles"]["student"]["sha256"] != result["bundles"]["ensemble"]["sha256"]
    assert {"cpu", "cores", "onnxruntime"} <= set(result["machine"])
    written = document.read_text()
    assert "**ensemble** version 1" in written
    assert "python -m benchmarks.predict --quick" in written
    assert "Retort / naive" in written


def test_without_models_it_says_what_to_run(tmp_path: Path):
    """It trains nothing behind anybody's back."""
    done = bench("--repository", str(tmp_path))

    assert done.returncode == 2
    assert "make train" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [["--candidates", "0"], ["--rounds", "few"]])
def test_a_wrong_option_is_refused(arguments: list[str]):
    assert bench(*arguments).returncode == 2
