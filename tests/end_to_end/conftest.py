"""One small run and one live service over it, shared by every test of the road from end to end."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.end_to_end.small_run import PATIENCE_SECONDS, ROOT, tiny_run, training


@dataclass(frozen=True)
class Interrupted:
    """What the first attempt at the run came to: Ctrl-C while its teachers trained."""

    out: Path
    returncode: int
    said: str
    left: list[Path]
    """Folders of steps that were under way, still there."""
    kept: dict[Path, int]
    """Folders of finished steps, and when each was last changed, in nanoseconds."""


@pytest.fixture(scope="session")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Interrupted:
    """SIGINT to the whole group, as a terminal sends it."""
    folder = tmp_path_factory.mktemp("run")
    command = [sys.executable, "-m", "training", *tiny_run(folder, "--seeds", "2")]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 2 * PATIENCE_SECONDS
    while not list(folder.glob("teachers/[!.]*-s1-*")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=PATIENCE_SECONDS)
    return Interrupted(
        out=folder,
        returncode=process.returncode,
        said=said,
        left=list(folder.glob("*/.building-*")),
        kept={path: path.stat().st_mtime_ns for path in folder.glob("*/*-*") if path.is_dir()},
    )


@pytest.fixture(scope="session")
def out(interrupted: Interrupted) -> Path:
    """A finished run over a small world, two seeds: the same command again."""
    done = training(*tiny_run(interrupted.out, "--seeds", "2"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(interrupted.out / "report.json")
    return interrupted.out


@pytest.fixture(scope="session")
def service(out: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The live service over that run's repository; yields its address."""
    said = tmp_path_factory.mktemp("service") / "log"
    command = [sys.executable, "-m", "service", "--repository", str(out / "repository"), "--port", "0"]
    with said.open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        try:
            yield _address(process, said)
        finally:
            process.send_signal(signal.SIGTERM)
            code = process.wait(timeout=PATIENCE_SECONDS)
    assert code == 0, said.read_text()


def _address(process: "subprocess.Popen[bytes]", log: Path) -> str:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        for line in log.read_text().splitlines():
            if "listens on " in line:
                return line.partition("listens on ")[2].split()[0]
        time.sleep(0.1)
    raise AssertionError(f"the service did not come up:\n{log.read_text()}")
