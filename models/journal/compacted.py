"""Which parts there are in a folder that `python -m service compact` made: each record in one of them, at any moment.

    part-<first segment>/       as it was made, or several of a day made one
    merged-<first segment>/     several made one, and whole; `replaces.json` in it names those, which are still there
    new-*/                      not whole, or no longer any

Parts are made one by renaming, and several names cannot change at once. So the one that takes their place says whose
place it takes, until they are gone; then it is called what the first of them was. Whoever is killed in between leaves
what reads the same, and the next who writes there goes on (`service/journal/sinks/merge.py`).
"""

from __future__ import annotations

import json
from pathlib import Path

PART = "part-"
MERGED = "merged-"
REPLACES = "replaces.json"


def parts(folder: Path) -> list[Path]:
    """Those that are whole and not replaced, oldest first."""
    named = [path for path in folder.iterdir() if path.name.startswith((PART, MERGED)) and path.is_dir()]
    merged = [path for path in named if path.name.startswith(MERGED)]
    gone = {name for path in merged for name in replaced(path)}
    found = [path for path in named if path.name not in gone]
    return sorted(found, key=lambda path: (path.name.partition("-")[2], path.name))


def replaced(merged: Path) -> list[str]:
    """The names of the parts that are in a merged one."""
    try:
        return [str(name) for name in json.loads((merged / REPLACES).read_text(encoding="ascii"))]
    except FileNotFoundError:  # it has its own name by now
        return []
