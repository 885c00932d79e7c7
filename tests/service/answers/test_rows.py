"""The joined log's contract: what is read, and what is refused naming the place."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from service.__main__ import main
from service.answers.rows import COLUMNS, read_rows, rows_of
from service.errors import AnswersError

FULL: dict[str, Any] = {
    "request_id": "r1", "time": 12.5, "unit": "user|1", "arm": "student", "experiment": "e", "phase": 2,
    "enrolled": True, "forced": False, "served": "student", "fallback": "", "error": False, "latency_ms": 1.5,
    "candidate": 3, "pctr": 0.25, "click": True, "click_time": 13.0, "shadow_arm": "ensemble", "shadow_pctr": 0.5,
    "random": False, "propensity": 0.1,
    "target_propensity": 0.0, "earlier_impressions": 4, "earlier_clicks": 1, "device": "phone",
}  # fmt: skip
LEAST = {"request_id": "r2", "time": 1, "unit": 7, "arm": "student"}


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(FULL))
            writer.writeheader()
            writer.writerows(records)
    else:
        path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def test_every_column_is_read_alike_from_json_and_csv(tmp_path: Path):
    assert set(COLUMNS) == set(FULL) - {"device"}

    json_rows, csv_rows = (
        read_rows([write(tmp_path / name, [FULL, LEAST])], ["device"]) for name in ("a.jsonl", "a.csv")
    )

    for name in COLUMNS:
        np.testing.assert_array_equal(json_rows[name], csv_rows[name])
        if name not in ("fallback",):
            assert json_rows[name][0] == FULL[name]
    assert list(csv_rows.segments["device"]) == ["phone", ""]
    assert json_rows["unit"][1] == "7"
    assert json_rows["candidate"][1] == -1
    assert json_rows["enrolled"][1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"unit": None}, "row 0: unit: missing"),
        ({"time": "soon"}, "time: could not convert string to float"),
        ({"time": float("inf")}, "time: expected a finite number"),
        ({"pctr": 0.0}, "pctr: expected a probability between 0 and 1, got '0.0'"),
        ({"pctr": True}, "pctr: expected a number"),
        ({"click": "yes"}, "click: expected true or false, got 'yes'"),
        ({"propensity": 0}, "propensity: expected a probability above 0"),
        ({"target_propensity": 1.5}, "target_propensity: expected a probability from 0 to 1"),
        ({"candidate": -1}, "candidate: expected a whole number from 0"),
        ({"phase": 1.5}, "phase: expected a whole number from 0"),
        ({"latency_ms": -1}, "latency_ms: expected a number from 0"),
        ({"arm": ["student"]}, "arm: expected a text"),
        ({"unit": "x" * 257}, "unit: expected at most 256 bytes"),
        ({"device": "x" * 257}, "device: expected at most 256 bytes"),
        ({"unit": "a\0"}, "unit: expected a text without NUL"),
        ({"unit": "\ud800"}, "unit: expected a text without NUL and lone surrogates"),
        ({"candidate": 10**30}, "candidate: expected a whole number from 0"),
        ({"time": 1.7e12}, "time: expected seconds since 1970"),
    ],
)
def test_what_is_not_what_it_should_be_is_named(change: dict[str, Any], message: str):
    with pytest.raises(AnswersError, match=message):
        rows_of([{**FULL, **change}], ["device"])


def test_a_torn_line_is_counted_and_many_refuse_the_file(tmp_path: Path):
    path = write(tmp_path / "a.jsonl", [{**LEAST, "request_id": str(n)} for n in range(2000)])
    with path.open("a", encoding="utf-8") as file:
        file.write('{"request_id": "to')

    assert read_rows([path]).bad == 1
    assert len(read_rows([path])) == 2000

    torn = tmp_path / "torn.jsonl"
    torn.write_text(json.dumps(LEAST) + '\n{"reque\n[1]\n', encoding="utf-8")
    with pytest.raises(AnswersError, match=r"torn\.jsonl:2: request_id: missing \(2 of 3 rows cannot be read"):
        read_rows([torn])


def test_a_line_nested_without_end_is_a_bad_row(tmp_path: Path):
    path = tmp_path / "deep.jsonl"
    path.write_text("[" * 100_000 + "\n" + "9" * 5000 + "\n", encoding="utf-8")

    with pytest.raises(AnswersError, match="2 of 2 rows cannot be read"):
        read_rows([path])


def test_a_file_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(AnswersError, match=r"gone\.jsonl: No such file"):
        read_rows([tmp_path / "gone.jsonl"])


@pytest.fixture
def experiments(tmp_path: Path) -> Path:
    path = tmp_path / "experiments.yaml"
    arms = [{"name": name, "model": name, "weight": 0.5} for name in ("ensemble", "student")]
    experiment = {"name": "e", "salt": "s", "phase": 2, "default": True, "arms": arms}
    path.write_text(yaml.safe_dump({"format_version": 1, "experiments": [experiment]}), encoding="utf-8")
    return path


def test_the_command_answers_in_three_forms(tmp_path: Path, experiments: Path, capsys: pytest.CaptureFixture[str]):
    log = write(tmp_path / "a.jsonl", [FULL])
    common = ["results", "--experiments", str(experiments), "--log", str(log), "--no-replay"]

    assert main([*common, "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["phase"] == 2
    assert main(common) == 0
    assert capsys.readouterr().out.startswith("# e, phase 2\n")
    assert main([*common, "--format", "html", "--out", str(tmp_path / "a.html")]) == 0
    assert (tmp_path / "a.html").read_text(encoding="utf-8").startswith("<!doctype html>")


@pytest.mark.parametrize("seconds", ["nan", "inf", "1e300", "soon"])
def test_a_now_that_is_no_time_is_refused(experiments: Path, capsys: pytest.CaptureFixture[str], seconds: str):
    with pytest.raises(SystemExit, match="2"):
        main(["results", "--experiments", str(experiments), "--log", "a", "--as-of", seconds])

    assert "--as-of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--experiment", "x"], "--experiment: no 'x' in"),
        (["--log", "/dev/null"], "no row of experiment 'e' among 0"),
        (["--out", "/dev/null/x"], "--out /dev/null/x: Not a directory"),
    ],
)
def test_what_cannot_be_answered_exits_2_and_says_why(
    tmp_path: Path, experiments: Path, capsys: pytest.CaptureFixture[str], extra: list[str], message: str
):
    log = write(tmp_path / "a.jsonl", [FULL])

    assert main(["results", "--experiments", str(experiments), "--log", str(log), *extra]) == 2

    assert message in capsys.readouterr().err
