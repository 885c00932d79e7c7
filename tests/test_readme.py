"""What the README says to type works as typed."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands() -> list[str]:
    """Every indented line of the README that starts a program of ours."""
    lines = (line.partition("#")[0].strip() for line in README.splitlines() if line.startswith("    "))
    return [line for line in lines if line.startswith(("python -m", "make "))]


def test_the_first_screen_has_the_two_commands():
    first_screen = README.splitlines()[:16]

    assert any(line.strip().startswith("make run") for line in first_screen)
    assert any(line.strip().startswith("make test") for line in first_screen)


@pytest.mark.parametrize("target", sorted(set(re.findall(r"`?make ([a-z-]+)", README))))
def test_every_make_target_it_names_exists(target: str):
    done = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", [line for line in commands() if line.startswith("python -m")])
def test_every_option_it_names_is_one_the_program_has(command: str):
    """Asked of the program's own --help."""
    words = shlex.split(command.replace("[", " ").replace("]", " "))
    program = [word for word in words[2:4] if not word.startswith("-")]

    done = subprocess.run([sys.executable, "-m", *program, "--help"], cwd=ROOT, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    for word in words:
        if word.startswith("--"):
            assert word in done.stdout


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_to_a_file_leads_somewhere(document: Path):
    for target in re.findall(r"\]\(([^)#]+)", document.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (document.parent / target).exists(), target
