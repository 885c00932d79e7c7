"""The repository: which models and versions there are, and which is live."""

import re
import subprocess
from pathlib import Path

import pytest

from models.errors import BundleError, ModelNotFoundError
from models.versions import Repository

DOCS = Path(__file__).parents[2] / "docs" / "bundle.md"
OUTSIDE = ["..", ".", "", "../secret", "student/..", "/etc", "Student", "student\n", "a\x00b", "x" * 65, "é"]


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """student with versions 1, 2 and 10, ensemble with 1, and what does not belong."""
    root = tmp_path / "repository"
    for folder in (
        "student/1",
        "student/10",
        "student/2",
        "ensemble/1",
        "empty",
        "student/.writing-x",
        ".git/1",
        "Bad/1",
    ):
        (root / folder).mkdir(parents=True)
    for file in ("README.md", "student/notes", "student/3.bak", "student/007"):
        (root / file).write_text("x", encoding="utf-8")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "1").mkdir()
    return Repository(root)


def test_models_and_versions_are_listed_in_order(repository: Repository):
    """Names sorted, versions by number; whatever is not named like one is passed over."""
    assert repository.names() == ["ensemble", "student"]
    assert repository.versions("student") == [1, 2, 10]
    assert repository.path("student", 10) == repository.root / "student" / "10"


def test_a_repository_that_is_not_there_is_empty(tmp_path: Path):
    """The trainer may not have run yet."""
    assert Repository(tmp_path / "none").names() == []


@pytest.mark.parametrize("name", [*OUTSIDE, "unknown", "empty"])
def test_a_name_from_outside_never_becomes_a_path(repository: Repository, name: str):
    """Unknown and impossible names are the same to the caller: there is no such model."""
    for ask in (
        lambda: repository.versions(name),
        lambda: repository.live(name),
        lambda: repository.path(name, 1),
    ):
        with pytest.raises(ModelNotFoundError, match="there are: ensemble, student"):
            ask()


@pytest.mark.parametrize("version", [0, 3, -1, 7])
def test_an_unknown_version_is_not_found(repository: Repository, version: int):
    """With those there are."""
    with pytest.raises(ModelNotFoundError, match="there are: 1, 2, 10"):
        repository.path("student", version)


@pytest.mark.parametrize(
    ("text", "expected"), [(None, 10), ("latest", 10), ("latest\n", 10), ("2", 2), ("2\n", 2), ("10\n", 10)]
)
def test_live_is_a_number_or_the_latest(repository: Repository, text: str | None, expected: int):
    """Absent means latest; `echo 2 > live` is how to roll back."""
    if text is not None:
        (repository.root / "student" / "live").write_text(text, encoding="utf-8")

    assert repository.live("student") == expected


@pytest.mark.parametrize(
    "text", ["", "\n", "newest", "02", "-1", "1.0", "2\n\n", " 2", "2\r\n", "0", "LATEST", "\x00", "1" * 20]
)
def test_a_live_file_that_says_anything_else_is_refused(repository: Repository, text: str):
    """No guess at what was meant: the file is named."""
    path = repository.root / "student" / "live"
    path.write_bytes(text.encode())

    with pytest.raises(BundleError, match="expected a version's number, latest or none") as caught:
        repository.live("student")

    assert caught.value.path == path


def test_a_live_version_that_is_not_there_is_refused(repository: Repository):
    """With those there are."""
    (repository.root / "student" / "live").write_text("3", encoding="utf-8")

    with pytest.raises(BundleError, match="names version 3, which is not there; there are: 1, 2, 10"):
        repository.live("student")


@pytest.mark.parametrize("kind", ["link", "dangling", "folder"])
def test_a_live_file_is_a_file(repository: Repository, tmp_path: Path, kind: str):
    """No link, nowhere."""
    path = repository.root / "student" / "live"
    if kind == "folder":
        path.mkdir()
    else:
        (tmp_path / "elsewhere").write_text("1", encoding="utf-8")
        path.symlink_to(tmp_path / ("elsewhere" if kind == "link" else "nowhere"))

    with pytest.raises(BundleError):
        repository.live("student")


def test_the_documented_roll_back_is_one(repository: Repository):
    """What an SRE copies from docs/bundle.md, as it stands there; what it writes beside is no version."""
    (root,) = re.findall(r"cd (models/repository)/student\n", DOCS.read_text(encoding="utf-8"))
    (commands,) = re.findall(r"```sh\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    versions = repository.versions("student")

    subprocess.run(["sh", "-ec", commands.replace(root, str(repository.root))], check=True)

    assert repository.live("student") == 1
    assert repository.versions("student") == versions
    assert not (repository.root / "student" / "live.new").exists()
