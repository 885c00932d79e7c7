"""`python -m training` beside `run`: the log that `generate` writes, and refusals without a stack trace."""

import csv
import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from models.schema import FeatureSchema
from training.cli import main
from training.recipe import SyntheticSettings, load_recipe


@pytest.fixture(autouse=True)
def _signals_as_before() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def test_generate_writes_the_log_that_the_shipped_recipe_trains_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """What no option says is the recipe's, and the schema beside the log is the one that `run` uses."""
    recipe = load_recipe("synthetic")
    assert isinstance(recipe.recipe.source, SyntheticSettings)

    code = main(["generate", str(tmp_path / "log.csv"), "--rows", "2000"])

    facts = json.loads(capsys.readouterr().out)
    assert code == 0
    assert (facts["rows"], facts["days"]) == (2000, recipe.recipe.source.days)
    schema = FeatureSchema.from_file(Path(facts["schema"]))
    assert schema == recipe.schema
    with Path(facts["log"]).open(encoding="utf-8", newline="") as log:
        header = next(csv.reader(log))
    assert {field.column or field.name for field in schema.fields if field.derived_from is None} <= set(header)


def test_a_folder_that_cannot_be_made_is_named_without_a_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "taken").write_text("a file, where a folder is wanted")

    code = main(["run", "synthetic", "--out", str(tmp_path / "taken" / "run")])

    assert code == 1
    assert capsys.readouterr().err == f"error: {tmp_path}/taken/run: Not a directory\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["log.csv", "--rows", "2"], r"source\.rows: expected at least 1000, got 2"),
        (["log.csv", "--rows", "2000", "--days", "1"], r"source\.days: expected at least 3, got 1"),
        (["log.csv", "--seed", "-1"], r"source\.seed: expected at least 0, got -1"),
        (["log.txt", "--rows", "2000"], r"log\.txt: .*expected \.parquet, \.csv"),
        (["taken/log.csv", "--rows", "2000"], r"taken/log\.csv: .*cannot be written"),
    ],
)
def test_generate_refuses_what_it_cannot_do_with_a_reason_and_no_trace(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    Path("taken").write_text("a file, where a folder is wanted")

    code = main(["generate", *arguments])

    assert code == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert re.search(said, error)
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
