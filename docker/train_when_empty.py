"""Runs a training command only where the repository holds no model yet: what `docker compose up` starts first.

    python train_when_empty.py REPOSITORY -- COMMAND...

Exits 0 at once when REPOSITORY holds a model version, whoever put it there: bundles are never trained over. A
training that was interrupted half-way through its exports leaves a marker file, and is taken up again (its finished
stages are cached, so it resumes). Otherwise the exit code is the command's own; SIGTERM and SIGINT are passed on to it.
Needs nothing but the standard library, and knows nothing of bundles beyond where their checksums lie.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

MARKER = ".training-unfinished"


def holds_a_model(repository: Path) -> bool:
    """Whether any <name>/<version>/ with its checksums lies there; a version folder appears complete or not at all."""
    return any(path.parent.name.isdecimal() for path in repository.glob("*/*/SHA256SUMS"))


def train_when_empty(repository: Path, command: list[str]) -> int:
    """The command's exit code, or 0 where there was nothing to do."""
    marker = repository / MARKER
    if marker.exists():
        print(f"{repository}: an earlier training was interrupted, taking it up again", flush=True)
    elif holds_a_model(repository):
        print(f"{repository}: holds models already, nothing to train", flush=True)
        return 0
    marker.touch()
    # The handlers stand before the child does, so that a signal in between cannot end us and leave it running.
    child: list[subprocess.Popen[bytes]] = []
    caught: list[int] = []

    def pass_on(number: int, _frame: FrameType | None) -> None:
        caught.append(number)
        for process in child:
            process.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, pass_on)
    child.append(subprocess.Popen(command))
    for number in caught:
        child[0].send_signal(number)
    code = child[0].wait()
    if code == 0:
        marker.unlink(missing_ok=True)
    return code if code >= 0 else 128 - code  # a negative code is the signal that ended it, as shells count


def main(arguments: list[str]) -> int:
    """Parses REPOSITORY -- COMMAND..."""
    if len(arguments) < 3 or arguments[1] != "--":
        print(__doc__, file=sys.stderr)
        return 2
    repository = Path(arguments[0])
    if not repository.is_dir():
        print(f"{repository}: expected a folder, the volume that bundles are written to", file=sys.stderr)
        return 2
    return train_when_empty(repository, arguments[2:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
