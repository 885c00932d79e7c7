"""One line for every change that somebody asked for, and for every time it was not granted.

Each is one JSON object in the log, whatever `--log-format`: who (which token, from where), what, on which model, with
what result. Never a token, never what else a request held; a name from the wire only where it is a model's name.
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime

from models.versions import is_model_name

logger = logging.getLogger(__name__)

Fact = int | float | str | None | dict[str, dict[str, float]]


def record(who: str | None, address: str | None, action: str, model: str | None, result: str, **facts: Fact) -> None:
    """Writes the line. `result` is `ok`, or the code of the refusal; `facts` are numbers and our own words."""
    line = {
        "audit": action,
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "who": who,
        "address": address,
        "model": model if model is not None and is_model_name(model) else None,
        **facts,
        "result": result,
    }
    level = logging.INFO if result == "ok" else logging.WARNING
    logger.log(level, "%s", json.dumps(line), extra={"facts": line})
