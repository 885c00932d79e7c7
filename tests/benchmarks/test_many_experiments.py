"""The benchmark of the experiment file measures what it says, in short."""

from pathlib import Path

import pytest

from benchmarks import many_experiments
from tests.models.tiny_bundle import write_tiny_bundle


def test_a_line_for_each_number_of_experiments(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for name in ("ensemble", "student"):
        write_tiny_bundle(tmp_path, name)

    assert many_experiments.main(["--repository", str(tmp_path), "--numbers", "1", "80", "--repeats", "2"]) == 0

    rows = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][1:]
    assert [int(row[1]) for row in rows] == [1, 80]
    assert all(float(row[column].replace(",", "")) > 0 for row in rows for column in (2, 3, 5, 6))
