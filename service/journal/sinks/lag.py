"""How far a follower of the log is behind: a small file that it writes, and the service shows as metrics.

`<log>/ship/<sink>.json`, replaced about once a look. It says until when everything is shipped, so a follower that has
died, or hangs, falls further behind with every second, as one does whose other side takes nothing.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from service.metrics import Metrics

FOLDER = "ship"
MOST_SINKS = 16
"""That metrics are shown of."""
MAX_BYTES = 4096
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class Standing:
    """Of one sink."""

    shipped_until: float
    """Every record that was in the log then is shipped, or lost; seconds since 1970."""
    unread_bytes: int = 0
    """What was in the log and not shipped when this was written."""
    lost_bytes: int = 0
    """What was removed unread, as far as this follower has seen since it was started."""


def is_sink_name(name: str) -> bool:
    """Whether a sink may be called so: it is a file's name, and a label."""
    return _NAME.fullmatch(name) is not None


def standing_path(log: Path, sink: str) -> Path:
    """Where it lies."""
    return log / FOLDER / f"{sink}.json"


def write_standing(path: Path, standing: Standing) -> None:
    """Replaces the file; `OSError` where that cannot be. Not synced: a newer one is never far."""
    path.parent.mkdir(mode=0o750, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.touch(mode=0o640)
        temporary.write_text(json.dumps(asdict(standing)) + "\n", encoding="ascii")
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def read_standing(path: Path) -> Standing | None:
    """What stands there; None where that is nothing of ours."""
    try:
        with path.open("rb") as file:
            found = json.loads(file.read(MAX_BYTES))
        standing = Standing(**found)
        numbers = [float(part) for part in asdict(standing).values()]
    except (OSError, ValueError, TypeError, OverflowError):
        return None
    return standing if all(math.isfinite(number) and number >= 0 for number in numbers) else None


def standings(log: Path) -> dict[str, Standing]:
    """Of every sink that this log was ever shipped to; of a folder that somebody fills, the first few."""
    try:
        names = sorted(path.stem for path in (log / FOLDER).glob("*.json"))
    except OSError:
        return {}
    found = (
        (name, read_standing(standing_path(log, name))) for name in islice(filter(is_sink_name, names), MOST_SINKS)
    )
    return {name: standing for name, standing in found if standing is not None}


def lag_seconds(standing: Standing, now: float) -> float:
    """Since when there may be records that are not shipped."""
    return max(now - standing.shipped_until, 0.0)


def show(metrics: Metrics, log: Path, clock: Callable[[], float] = time.time) -> None:
    """From now on the metrics say of every sink of this log how far behind it is."""

    def samples(value: Callable[[Standing], float]) -> Callable[[], list[tuple[tuple[str, ...], float]]]:
        return lambda: [((sink,), value(standing)) for sink, standing in standings(log).items()]

    metrics.ship_lag.values = samples(lambda standing: lag_seconds(standing, clock()))
    metrics.ship_unread.values = samples(lambda standing: float(standing.unread_bytes))
    metrics.ship_lost.values = samples(lambda standing: float(standing.lost_bytes))
