"""How the program logs: one line an event on stderr, as text for people or as JSON for machines.

Only the program calls this; modules say `logger = logging.getLogger(__name__)`. Startup, model changes and
failures are logged; facts about single requests are metrics.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from datetime import UTC, datetime
from typing import Literal


class _JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, process, message and, for failures, the traceback."""

    def format(self, record: logging.LogRecord) -> str:
        members: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": os.getpid(),
            "message": record.getMessage(),
        }
        if (facts := getattr(record, "facts", None)) is not None:  # an audited change: members, not text in text
            members = {**members, **facts, "message": "audit"}
        if record.exc_info:
            members["traceback"] = self.formatException(record.exc_info)
        return json.dumps(members)


def configure_logging(level: str, form: Literal["text", "json"]) -> None:
    """Sends every logger's records to stderr, from `level` on."""
    handler = logging.StreamHandler(sys.stderr)
    if form == "json":
        handler.setFormatter(_JsonFormatter())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(process)d %(name)s: %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.getLogger("service.admin.audit").setLevel(logging.INFO)  # who changed what is told at every level
    # uvicorn tells of each connection's ordinary end at info; we say ourselves when we start and stop.
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
