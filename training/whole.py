"""Files that a reader finds whole or not at all."""

from pathlib import Path


def write_whole(path: Path, text: str) -> Path:
    """Replace what stands there; it stays where the disk is full. Returns the path."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text(text, encoding="utf-8")
    return unfinished.replace(path)
