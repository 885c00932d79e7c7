"""Reports as the Markdown of docs/results.md: every number is one of the report's own."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.training.report.run import measure, report
from training.cli import main
from training.errors import DataError
from training.results import markdown, write_into


def written(folder: Path, name: str, **changes: object) -> Path:
    path = folder / f"{name}.json"
    found = report(measure(1), measure(2), **changes) | {"sweep": None}
    path.write_text(json.dumps(found))
    return path


def test_every_model_stands_there_with_its_mean_and_spread(tmp_path: Path):
    path = written(tmp_path, "one")
    student = [entry["xauc"] for entry in json.loads(path.read_text())["test"]["student"]]

    text = markdown([path])

    row = next(line for line in text.splitlines() if line.startswith("| student |"))
    assert f"{sum(student) / 2:.4f} ± " in row
    for name in ("ensemble", "average", "control_train_valid", "control_train"):
        assert f"| {name} |" in text
    assert text.count("| teacher ") == len(json.loads(path.read_text())["test"]["teachers"])


def test_differences_are_paired_by_seed(tmp_path: Path):
    path = written(tmp_path, "one")
    test = json.loads(path.read_text())["test"]
    pairs = zip(test["student"], test["control_train_valid"], strict=True)
    by_seed = ", ".join(f"{one['xauc'] - other['xauc']:+.4f}" for one, other in pairs)

    assert f"({by_seed})" in next(line for line in markdown([path]).splitlines() if "less control_train_valid" in line)


def test_a_run_is_repeated_by_the_command_that_stands_there(tmp_path: Path):
    """All that was set, quoted for a shell."""
    path = written(tmp_path, "one", overrides=["source.seed=2", "student.options.hidden=[64, 32]"])

    command = "python -m training run synthetic --seeds 2 --set source.seed=2 --set 'student.options.hidden=[64, 32]'"
    assert command in markdown([path])


def test_a_missed_target_is_in_bold_with_its_reason_and_a_sweep_marks_its_best(tmp_path: Path):
    path = written(tmp_path, "one")
    found = json.loads(path.read_text())
    reason = ["by seed: {/test/student/0/auc|figure}", "the best is {/best_teacher|text}"]
    found["targets"] = [
        {"name": "a gain", "relation": "at least", "wanted": 0.01, "found": 0.002, "reached": False, "reason": reason}
    ]
    trial = {"side": "control", "init_sd": 0.1, "seed": 1, "valid_logloss": 0.4, "epochs": 2}
    found["sweep"] = {
        "recipe": {"name": "synthetic"},
        "judged_by": "AUC",
        "grid": {"learning_rate": [0.001, 0.002], "init_sd": [0.1], "seeds": [1]},
        "best": {"control": {"learning_rate": 0.002, "init_sd": 0.1}},
        "trials": [
            trial | {"learning_rate": 0.001, "valid_auc": 0.6},
            trial | {"learning_rate": 0.002, "valid_auc": 0.7},
        ],
    }
    path.write_text(json.dumps(found))

    text = markdown([path])

    assert "| a gain | at least 0.01 | 0.002 | **not reached** |" in text
    auc = found["test"]["student"][0]["auc"]
    assert f"- **a gain**: by seed: {auc:.4f}; the best is {found['best_teacher']}." in text
    assert "| 0.001 | 0.6000, 0.4000 (2) |" in text
    assert "| 0.002 | **0.7000, 0.4000 (2)** |" in text


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"test": {"auc": 0.7}, "train": {}}', '{"table": "count"}'])
def test_what_is_no_report_is_refused_by_name(tmp_path: Path, content: str):
    (tmp_path / "other.json").write_text(content)

    with pytest.raises(DataError, match=r"other\.json: expected the report\.json of a run"):
        markdown([tmp_path / "other.json"])


DOCUMENT = Path(__file__).parents[2] / "docs" / "results.md"


def test_the_published_results_are_what_their_files_say(tmp_path: Path):
    """docs/results.md is made by one command from files that `run` and `ablate` wrote: nobody has edited a figure."""
    shutil.copytree(DOCUMENT.parent / "results", tmp_path / "results")
    copy = Path(shutil.copy(DOCUMENT, tmp_path))

    assert main(["results", "--write", str(copy)]) == 0

    assert copy.read_text(encoding="utf-8") == DOCUMENT.read_text(encoding="utf-8")


def test_every_published_file_is_in_the_document():
    files = sorted(
        path.relative_to(DOCUMENT.parent).as_posix() for path in (DOCUMENT.parent / "results").rglob("*.json")
    )
    named = re.findall(r"(?<=[ \n])results/\S+\.json", DOCUMENT.read_text(encoding="utf-8"))
    assert files
    assert sorted(named) == files


def test_a_block_is_written_from_its_files_and_the_rest_is_left_alone(tmp_path: Path):
    path = written(tmp_path, "one")
    document = tmp_path / "about.md"
    document.write_text(f"# Mine\n\n<!-- results: {path.name} -->\nold\n<!-- results end -->\n\nas it was\n")

    write_into(document)

    before, _, after = document.read_text().partition(f"<!-- results: {path.name} -->\n")
    assert before == "# Mine\n\n"
    assert after == f"\n{markdown([path]).strip()}\n\n<!-- results end -->\n\nas it was\n"


def test_a_document_without_a_block_or_with_a_file_that_is_gone_is_left_as_it_was(tmp_path: Path):
    document = tmp_path / "about.md"
    for text, expected in (
        ("# Mine\n", "expected a block"),
        ("<!-- results: gone.json -->\n<!-- results end -->\n", "gone"),
    ):
        document.write_text(text)
        with pytest.raises(DataError, match=expected):
            write_into(document)
        assert document.read_text() == text
