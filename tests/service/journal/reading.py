"""What tests read from a journal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from models.journal.frames import Skipped
from models.journal.reading import read_payloads


def records(folder: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """Every record, in order, of that kind; nothing may have been damaged."""
    skipped = Skipped()
    found = [json.loads(payload) for payload in read_payloads(folder, skipped)]
    assert skipped.damaged == 0
    return [record for record in found if kind in (None, record["kind"])]
