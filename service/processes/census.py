"""What the supervisor knows of its workers, in a file beside theirs that whoever is scraped reads.

A worker that dies before it can count (its libraries do not load, it is killed at once) says nothing of itself, and
one that is missing even less. The supervisor knows, but answers no scrape and holds no metrics library.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import NamedTuple

logger = logging.getLogger(__name__)

FILE = "workers.json"


class Census(NamedTuple):
    """The workers of one service, counted since it was started."""

    wanted: int
    ready: int
    """How many serve now."""
    starts: int
    restarts: int
    """Of the starts, those in the place of a worker that had ended."""


def write_census(directory: Path, census: Census) -> None:
    """Replaces what stands there; where the disk refuses, that is logged and the old one stays."""
    path = directory / FILE
    try:
        new = path.with_suffix(".new")
        new.write_text(json.dumps(census._asdict()), encoding="utf-8")
        new.replace(path)
    except OSError as error:
        logger.warning("%s: cannot be written, so that metrics of workers are old: %s", path, error.strerror or error)


def read_census(directory: Path) -> Census | None:
    """What stands there; None where nothing does, as where there is no supervisor."""
    try:
        return Census(**json.loads((directory / FILE).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
