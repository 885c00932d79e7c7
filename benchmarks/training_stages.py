"""`python -m benchmarks.training_stages`: where an epoch of `training_speed.py` goes, stage by stage.

Every stage is a function of the loop that is timed as it stands, less what other stages take within it; processor time
is over all threads. The products of a DNN step alone are measured in the same process, before and after.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import training  # isort: skip  # noqa: F401  before torch, as `python -m training` does
import torch

from benchmarks import training_log
from benchmarks.machine import commit, facts
from benchmarks.training_epoch import OPTIONS, Watch, encoded
from benchmarks.training_speed import floor
from training.data.encoded_log import EncodedLog, Part
from training.fit import loop
from training.fit.loop import ClickLearner, FitOptions, NetworkSpec, seeded
from training.fit.optimizer import Optimizer, RowsOfTable
from training.zoo import pieces
from training.zoo.embedding import Wanted

STAGES: tuple[tuple[Any, str, str], ...] = (
    (pieces._HiddenLayer, "forward", "perceptron forth, with its look-ups"),
    (pieces._HiddenLayer, "backward", "perceptron back, with gradients by rows"),
    (ClickLearner, "loss", "forth, the rest"),
    (torch.Tensor, "backward", "back, the rest"),
    (RowsOfTable, "_number", "numbering the rows of a batch"),
    (RowsOfTable, "_catch_up", "catching rows up"),
    (Wanted, "gather", "other look-ups"),
    (Wanted, "scatter", "summing gradients by rows"),
    (RowsOfTable, "step", "Adam by rows"),
    (torch.optim.Adam, "step", "Adam of dense layers"),
    (Optimizer, "step", "step, the rest"),
    (EncodedLog, "batch", "reading the batch"),
    (RowsOfTable, "__init__", "once: laying the table out"),
    (RowsOfTable, "_show", "once: the table at the epoch's end"),
)


class Clock:
    """Wall and processor seconds by stage, each less the stages within it."""

    def __init__(self) -> None:
        self.spent: dict[str, list[float]] = {}
        self._within: list[list[float]] = []

    def timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            started = time.perf_counter(), time.process_time()
            self._within.append([0.0, 0.0])
            try:
                return function(*arguments, **options)
            finally:
                whole = time.perf_counter() - started[0], time.process_time() - started[1]
                within = self._within.pop()
                spent = self.spent.setdefault(stage, [0.0, 0.0])
                for kind in (0, 1):
                    spent[kind] += whole[kind] - within[kind]
                    if self._within:
                        self._within[-1][kind] += whole[kind]

        return timed


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training_stages", description=__doc__.split("\n\n")[0])
    parser.add_argument("--network", default="dnn", help="default dnn")
    parser.add_argument("--precision", default="bfloat16", help="float32 or bfloat16 (default)")
    parser.add_argument("--rows", type=int, default=400_000, metavar="N", help="rows of the epoch (default 400,000)")
    parser.add_argument("--batch-rows", type=int, default=4096, metavar="N", help="rows of a batch (default 4096)")
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count(), metavar="N", help="of torch (default: all cores)"
    )
    asked = parser.parse_args(arguments)
    products = floor(1, asked.batch_rows)
    torch.set_num_threads(asked.threads)
    clock = Clock()
    for owner, name, stage in STAGES:
        function = clock.timed(stage, getattr(owner, name))
        setattr(owner, name, staticmethod(function) if owner is pieces._HiddenLayer else function)
    options = FitOptions(batch_rows=asked.batch_rows, averaged_steps=1, precision=asked.precision)
    spec = NetworkSpec(network=asked.network, options=OPTIONS)
    with tempfile.TemporaryDirectory() as folder, seeded(0):
        path = Path(folder) / "log.npz"
        training_log.write(path, asked.rows, 1)
        log = encoded(str(path), Path(folder))
        rows = log.rows([Part.TRAIN])
        run = clock.timed("the loop, the rest", loop.run_epochs)
        for train_rows in (rows[: 2 * asked.batch_rows], rows):  # kernels are compiled in the first
            clock.spent.clear()
            learner = ClickLearner(log, spec, options)
            run(log, learner, options, seed=0, train_rows=train_rows, epochs=1, after_epoch=Watch())
    steps = -(-asked.rows // asked.batch_rows)
    machine = facts()
    print(
        f"`python -m benchmarks.training_stages --network {asked.network} --precision {asked.precision} "
        f"--threads {asked.threads}`, commit {commit()}, {machine['cpu']}, {machine['cores']} cores, torch "
        f"{torch.__version__}, load {os.getloadavg()[0]:.1f}; {asked.rows:,} rows, {steps} steps\n"
    )
    print("| ms a step | wall | processor |\n|---|---:|---:|")
    for stage, (wall, processor) in sorted(clock.spent.items(), key=lambda found: -found[1][1]):
        print(f"| {stage} | {1e3 * wall / steps:.1f} | {1e3 * processor / steps:.1f} |")
    wall, processor = (1e3 * sum(spent[kind] for spent in clock.spent.values()) / steps for kind in (0, 1))
    print(f"| all | {wall:.1f} | {processor:.1f} |\n")
    print("\n".join([*products, *floor(1, asked.batch_rows)]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
