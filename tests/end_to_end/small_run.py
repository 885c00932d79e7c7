"""The main job in small: a world of 12,000 impressions, networks of a few units, two epochs."""

import json
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent

PATIENCE_SECONDS = 120.0
"""How long tests wait for what takes a moment on a quiet machine: processes that start while others use every core."""

TINY = ["source.rows=12000", "source.days=4"]
for _name in ("fm", "dnn", "deepfm", "dcnv2", "ipnn"):
    TINY.append(f"teachers.{_name}.options.dim=4")
for _name in ("lr", "fm", "dnn", "deepfm", "dcnv2", "ipnn"):
    TINY.append(f"teachers.{_name}.fit.max_epochs=2")
for _name in ("student", "control"):
    TINY += [f"{_name}.options.hidden=[32]", f"{_name}.options.dim=4", f"{_name}.fit.max_epochs=2"]


def training(*arguments: str, timeout: float = 1200) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "training", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def tiny_run(out: Path, *more: str) -> list[str]:
    return ["run", "synthetic", "--out", str(out), *(a for s in TINY for a in ("--set", s)), *more]


def post(url: str, body: Any) -> dict[str, Any]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as answer:
        return dict(json.load(answer))
