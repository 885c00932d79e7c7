"""A journal as a service would write it, of traffic whose truth is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from service.guard.process import GuardRails
from service.journal.writer import SegmentWriter
from service.metrics import Metrics
from tests.service.journal.test_writer import BOUNDS

NOW = 1_795_300_000.0


class Traffic:
    """Two arms, `control` and `treatment`, of an experiment `e` in phase 1."""

    def __init__(self, folder: Path, seed: int = 1) -> None:
        self.folder = folder
        self.time = NOW
        self._writer = SegmentWriter(folder / "log", BOUNDS)
        self._random = np.random.default_rng(seed)
        self._number = 0
        self.metrics = Metrics()
        self.experiments = folder / "e.json"
        self.state = folder / "e.json.state.json"

    def close(self) -> None:
        self._writer.close()

    def state_file(self, rails: dict[str, float], **more: Any) -> Path:
        """Writes the experiment file."""
        arms = [{"name": name, "model": name, "weight": 0.5} for name in ("control", "treatment")]
        analysis = {"attribution_window_seconds": 60.0}
        stated = {"name": "e", "salt": "s", "default": True, "arms": arms, "analysis": analysis, "guard_rails": rails}
        text = json.dumps({"format_version": 1, "experiments": [{**stated, **more}]})
        temporary = self.experiments.with_suffix(".tmp")
        temporary.write_text(text)
        temporary.replace(self.experiments)
        return self.experiments

    def rails(self) -> GuardRails:
        """What judges, by the clock of this traffic."""
        return GuardRails(
            log=self.folder / "log",
            experiments=self.experiments,
            state=self.state,
            metrics=self.metrics,
            now=lambda: self.time,
        )

    def write(self, *records: dict[str, Any]) -> None:
        for record in records:
            assert self._writer.append([json.dumps(record, separators=(",", ":")).encode()]) is None

    def play(
        self,
        requests: int,
        ctr: tuple[float, float] = (0.05, 0.05),
        *,
        pctr: float = 0.05,
        failing: tuple[float, float] = (0.0, 0.0),
        latency_ms: tuple[float, float] = (1.0, 1.0),
        fallbacks: tuple[float, float] = (0.0, 0.0),
        seconds: float = 0.01,
        **more: Any,
    ) -> None:
        """So many requests, each of another unit, one impression each; arms in turns."""
        for _ in range(requests):
            self._number += 1
            self.time += seconds
            which = self._number % 2
            name, common = f"r-{self._number}", {"experiment": "e", "phase": 1, "enrolled": True}
            record = {"request_id": name, "time": self.time, "unit": f"u-{self._number}", **common}
            record |= {"arm": ("control", "treatment")[which], "latency_ms": latency_ms[which], **more}
            if self._random.random() < failing[which]:
                self.write({"kind": "failure", "code": "internal", **record})
                continue
            exposure = {"kind": "exposure", **record, "model": "m", "version": 1, "pctr": [pctr, 0.5]}
            if self._random.random() < fallbacks[which]:
                exposure["fallback"] = "error"
            kinds = ["impression", *(["click"] if self._random.random() < ctr[which] else [])]
            events = [
                {"kind": "event", "request_id": name, "event": kind, "received": self.time + 0.001, "candidate": 0}
                for kind in kinds
            ]
            self.write(exposure, *events)

    def halted(self) -> list[dict[str, Any]]:
        """What stands in the state file."""
        if not self.state.exists():
            return []
        found: list[dict[str, Any]] = json.loads(self.state.read_text()).get("halts", [])
        return found
