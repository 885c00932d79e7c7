"""One epoch of a network of ours over a log of `training_log.py`, in a process of its own.

python -m benchmarks.training_epoch NETWORK LOG SEED BATCH_ROWS THREADS PRECISION       -> one line of JSON
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import training  # isort: skip  # noqa: F401  before torch, as `python -m training` does: it says how threads wait
import numpy as np
import torch
from torch import nn

from training.data.encoded_log import EncodedLog, Part
from training.fit.loop import ClickLearner, FitOptions, NetworkSpec, run_epochs, score, seeded
from training.fit.metrics import logloss, sigmoid
from training.zoo import FieldEmbedding, FieldSpec
from training.zoo.layers import SplitLinear

OPTIONS: dict[str, Any] = {"dim": 16, "hidden": [400, 400, 400], "init_sd": 0.0001}


class Watch:
    """Stops the clock when the epoch has ended, before anything is measured."""

    def __init__(self) -> None:
        self.started, self.cpu = time.perf_counter(), time.process_time()
        self.found: dict[str, float] = {}

    def __call__(self, row: dict[str, float]) -> bool:
        self.found = {"seconds": time.perf_counter() - self.started, "cpu_seconds": time.process_time() - self.cpu}
        return True

    def state_dict(self) -> dict[str, object]:
        return {}

    def load_state_dict(self, state: dict[str, object]) -> None:
        pass


def start_as_fuxictr(network: nn.Module) -> None:
    """Fresh weights as FuxiCTR draws them: dense layers by Xavier's normal law without a bias, ids N(0, .0001^2).

    Ours start as torch's nn.Linear does, with weights about half as large. After a single epoch the loss still shows
    where a network began, and it is not what is compared here.
    """
    for part in network.modules():
        if isinstance(part, FieldEmbedding):
            nn.init.normal_(part.table, std=OPTIONS["init_sd"])
        elif isinstance(part, nn.Linear | SplitLinear):
            nn.init.xavier_normal_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def encoded(path: str, folder: Path) -> EncodedLog:
    """The arrays as a log that training reads."""
    data = np.load(path)
    rows, half = len(data["label"]), len(data["sizes"]) // 2
    fields = tuple(
        FieldSpec(f"f{field:02}", int(size), "context" if field < half else "candidate")
        for field, size in enumerate(data["sizes"])
    )
    part = np.where(np.arange(rows) < data["train_rows"], Part.TRAIN, Part.TEST).astype(np.uint8)
    with EncodedLog.writer(folder, fields) as writer:
        row = np.arange(rows)
        writer.append(ids=data["ids"], label=data["label"], unit=row.astype(np.uint64), time=row, part=part)
        return writer.finish()


def main() -> None:
    network, path, seed, batch_rows, threads, precision = sys.argv[1:]
    torch.set_num_threads(int(threads))
    spec = NetworkSpec(network=network, options=OPTIONS)
    options = FitOptions(batch_rows=int(batch_rows), averaged_steps=1, precision=precision)
    with tempfile.TemporaryDirectory() as folder, seeded(int(seed)):
        log = encoded(path, Path(folder))
        rows, test = log.rows([Part.TRAIN]), log.rows([Part.TEST])
        warm = ClickLearner(log, spec, options)  # kernels are compiled once a machine, not once an epoch
        run_epochs(log, warm, options, seed=0, train_rows=rows[: 2 * int(batch_rows)], epochs=1, after_epoch=Watch())
        learner = ClickLearner(log, spec, options)
        start_as_fuxictr(learner.network)
        watch = Watch()
        run_epochs(log, learner, options, seed=int(seed), train_rows=rows, epochs=1, after_epoch=watch)
        found = watch.found | {"rows": len(rows)}
        found["logloss"] = logloss(log.label[test], sigmoid(score(log, learner.network, test)))
    found["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(found))


if __name__ == "__main__":
    main()
