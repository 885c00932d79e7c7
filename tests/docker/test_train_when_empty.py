"""What `docker compose up` starts first: training, but never over models that are there."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docker.serving import PATIENCE_SECONDS

SCRIPT = Path(__file__).parents[2] / "docker/train_when_empty.py"

EXPORTS = """
import pathlib, sys
for name in sys.argv[2:]:
    folder = pathlib.Path(sys.argv[1]) / name / "1"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "SHA256SUMS").write_text("")
"""


def run(repository: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """The script with a command, from whose output a test can tell whether it ran."""
    return subprocess.run(
        [sys.executable, str(SCRIPT), str(repository), "--", *command], capture_output=True, text=True, check=False
    )


def trained(repository: Path) -> subprocess.CompletedProcess[str]:
    return run(repository, sys.executable, "-c", EXPORTS + "print('trained')", str(repository), "student", "ensemble")


def test_an_empty_repository_is_trained_into_and_a_second_start_does_nothing(tmp_path: Path):
    """`docker compose up` a second time serves at once."""
    first = trained(tmp_path)
    second = trained(tmp_path)

    assert (first.returncode, first.stdout) == (0, "trained\n")
    assert second.returncode == 0
    assert "holds models already" in second.stdout
    assert "trained" not in second.stdout


def test_models_that_somebody_else_put_there_are_left_alone(tmp_path: Path):
    """A user's own bundle under any name is reason enough not to train."""
    (tmp_path / "mine" / "7").mkdir(parents=True)
    (tmp_path / "mine" / "7" / "SHA256SUMS").touch()

    done = trained(tmp_path)

    assert done.returncode == 0
    assert not (tmp_path / "student").exists()


def test_files_that_are_no_models_do_not_count(tmp_path: Path):
    """A read-me, a lost+found, or a bundle that was never renamed into place make no repository."""
    (tmp_path / "README.md").touch()
    (tmp_path / "lost+found").mkdir()
    (tmp_path / "student" / ".tmp-3").mkdir(parents=True)
    (tmp_path / "student" / ".tmp-3" / "SHA256SUMS").touch()

    assert trained(tmp_path).stdout == "trained\n"


def test_a_training_that_died_between_two_exports_is_taken_up_again(tmp_path: Path):
    """Half of its models lie there, but they are ours: the next start finishes the work."""
    half = run(tmp_path, sys.executable, "-c", EXPORTS + "sys.exit(3)", str(tmp_path), "student")
    again = trained(tmp_path)

    assert half.returncode == 3
    assert again.returncode == 0
    assert again.stdout.endswith("trained\n")
    assert (tmp_path / "ensemble").exists()
    assert "holds models already" in trained(tmp_path).stdout


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_the_training_and_its_exit_code_comes_back(tmp_path: Path, number: signal.Signals):
    """`docker compose stop` lets the training save what it has; the script is process 1 there."""
    program = (
        "import signal, sys, time\n"
        "for n in (signal.SIGTERM, signal.SIGINT): signal.signal(n, lambda n, _: sys.exit(40 + n))\n"
        "print('working', flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen(
        [sys.executable, str(SCRIPT), str(tmp_path), "--", sys.executable, "-c", program], stdout=subprocess.PIPE
    ) as script:
        assert script.stdout is not None
        assert script.stdout.readline() == b"working\n"
        script.send_signal(number)

        assert script.wait(timeout=PATIENCE_SECONDS) == 40 + number


def test_a_training_ended_by_a_signal_is_a_failure(tmp_path: Path):
    """Out of memory looks like this; the service must not start then."""
    done = run(tmp_path, sys.executable, "-c", "import os; os.kill(os.getpid(), 9)")

    assert done.returncode == 128 + 9


@pytest.mark.parametrize("arguments", [[], ["/nowhere"], ["/nowhere", "--", "true"], [".", "true", "--"]])
def test_a_wrong_command_line_teaches(arguments: list[str]):
    """Exit code 2, and something to read."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS
    )

    assert done.returncode == 2
    assert "REPOSITORY" in done.stderr or "expected a folder" in done.stderr
