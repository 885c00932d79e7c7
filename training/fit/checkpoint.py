"""A fit under way, on disk, so that a killed one goes on where it stood and ends with the very same bits.

One file, replaced atomically: a reader finds the last whole state or none. Writing is kept to a share of the time
that training takes, so what is lost to a kill is at most an epoch, or fifty times what a write costs where that is
more; of an epoch longer than two minutes, two minutes. Which numbers make up the state is `loop.py`'s business.

A file that cannot be read, or is of another fit, is passed over with a warning: it only ever saves time.
"""

from __future__ import annotations

import logging
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

logger = logging.getLogger(__name__)

SHARE_OF_TIME = 0.02
"""Of the time since the last write, what the next may cost."""
EXPECTED_BYTES_A_SECOND = 2e8
"""Of a slow disk. Once a state was written, its own time counts."""
WITHIN_EPOCH_SECONDS = 120.0
"""Long epochs are interrupted for a write this often; short ones only end with one."""


class Checkpoint:
    """The file of one fit. State is plain: dicts, lists, numbers, strings and tensors, so that no code is loaded."""

    def __init__(
        self,
        path: Path,
        *,
        share_of_time: float = SHARE_OF_TIME,
        within_epoch_seconds: float = WITHIN_EPOCH_SECONDS,
    ) -> None:
        self.path = path
        self._share, self._within = share_of_time, within_epoch_seconds
        self._written = time.monotonic()
        self._cost = 0.0

    def expect(self, size: int) -> None:
        """Of so many bytes will the state be: until one is written, what that costs is reckoned from this."""
        self._cost = size / EXPECTED_BYTES_A_SECOND

    def behind(self, name: str) -> Checkpoint:
        """That of a fit which follows this one in the same folder."""
        path = self.path.with_name(f"{self.path.stem}-{name}{self.path.suffix}")
        return Checkpoint(path, share_of_time=self._share, within_epoch_seconds=self._within)

    def is_due(self, *, within_epoch: bool) -> bool:
        """Whether writing now is worth what it costs."""
        passed = time.monotonic() - self._written
        return passed >= max(self._cost / self._share, self._within if within_epoch else 0.0)

    def save(self, identity: str, state: dict[str, Any]) -> None:
        """Replace what stands there. A full disk is a warning, no end of the training."""
        started = time.monotonic()
        unfinished = self.path.with_name(f"{self.path.name}.unfinished")
        try:
            unfinished.parent.mkdir(parents=True, exist_ok=True)
            with unfinished.open("wb") as file:
                torch.save({"identity": identity, "state": state}, file)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(self.path)
        except (OSError, RuntimeError) as error:  # torch says RuntimeError where its writer could not write
            logger.warning("%s: no checkpoint could be written: %s", self.path, error)
            with suppress(OSError):
                unfinished.unlink()
        self._written = time.monotonic()
        self._cost = self._written - started

    def load(self, identity: str) -> dict[str, Any] | None:
        """The state that was saved last under this identity; None where there is none to go on from."""
        if not self.path.exists():
            return None
        try:
            found = torch.load(self.path, map_location="cpu", weights_only=True)
            own, state = found["identity"], found["state"]
        except Exception as error:  # whatever a damaged file makes of a reader
            logger.warning("%s: cannot be read, so the fit starts anew: %s", self.path, error)
            return None
        if own != identity:
            logger.warning("%s: is of another fit, so this one starts anew", self.path)
            return None
        assert isinstance(state, dict)
        return state

    def remove(self) -> None:
        """Nothing to go on from any more."""
        self.path.unlink(missing_ok=True)
