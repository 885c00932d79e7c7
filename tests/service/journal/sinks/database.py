"""A PostgreSQL server of a test's own: in a temporary folder, on a socket there, on no port."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

BINARIES = ("initdb", "pg_ctl", "postgres")


def find(binary: str) -> str | None:
    """In the path, or where Debian puts it."""
    beside = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{binary}"))
    return shutil.which(binary) or (str(beside[-1]) if beside else None)


@dataclass(frozen=True)
class Server:
    """It can be stopped and started again."""

    folder: Path
    user: str | None

    @property
    def url(self) -> str:
        owner = self.user or pwd.getpwuid(os.getuid()).pw_name
        return f"postgresql:///postgres?host={self.folder}&user={owner}"

    def start(self) -> None:
        options = f"-k {self.folder} -c listen_addresses='' -c fsync=off"
        self._run("pg_ctl", "-D", f"{self.folder}/data", "-l", f"{self.folder}/log", "-w", "-o", options, "start")

    def stop(self) -> None:
        """At once, as when its machine dies."""
        self._run("pg_ctl", "-D", f"{self.folder}/data", "-m", "immediate", "-w", "stop")

    def make(self) -> None:
        self._run("initdb", "-D", f"{self.folder}/data", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")

    def _run(self, binary: str, *arguments: str) -> None:
        command = [str(find(binary)), *arguments]
        if self.user is not None:  # it refuses to run as root
            command = ["setpriv", f"--reuid={self.user}", f"--regid={self._group}", "--clear-groups", *command]
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120, cwd=self.folder
        )
        assert done.returncode == 0, done.stdout

    @property
    def _group(self) -> int:
        assert self.user is not None
        return pwd.getpwnam(self.user).pw_gid


@contextmanager
def server() -> Iterator[Server]:
    """Running; skips where there is no PostgreSQL."""
    missing = [binary for binary in BINARIES if find(binary) is None]
    if missing:
        pytest.skip(f"no PostgreSQL here: {', '.join(missing)} not found")
    user = None
    folder = Path(tempfile.mkdtemp(prefix="pg"))  # short: the name of a socket has 107 bytes at most
    try:
        if os.getuid() == 0:
            if shutil.which("setpriv") is None:
                pytest.skip("PostgreSQL refuses root, and there is no setpriv to be somebody else")
            user = "nobody"
            shutil.chown(folder, user)
        one = Server(folder, user)
        one.make()
        one.start()
        try:
            yield one
        finally:
            if (folder / "data" / "postmaster.pid").exists():
                one.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
