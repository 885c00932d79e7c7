"""One small run and one live service over it, shared by every test of the road from end to end."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.small_run import PATIENCE_SECONDS, ROOT, tiny_run, training


@pytest.fixture(scope="session")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run over a small world, two seeds."""
    folder = tmp_path_factory.mktemp("run")
    done = training(*tiny_run(folder, "--seeds", "2"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(folder / "report.json")
    return folder


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
