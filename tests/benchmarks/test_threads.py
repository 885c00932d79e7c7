"""The benchmark of threads beside the event loop, in short."""

import sys

import pytest

from benchmarks import threads


def test_a_line_for_each_interval_and_the_process_is_left_as_it_was(capsys: pytest.CaptureFixture[str]):
    before = sys.getswitchinterval()

    assert threads.main(["--rounds", "2", "--requests", "5"]) == 0

    rows = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][1:]
    assert [int(row[2]) for row in rows] == [10, 10, 10]
    assert sys.getswitchinterval() == before
