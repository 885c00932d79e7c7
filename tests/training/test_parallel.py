"""Two processes on one fit end where one process alone does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from tests.training.small_log import write_small_log
from training.data.encoded_log import EncodedLog, Part
from training.fit import parallel
from training.fit.loop import FitOptions, NetworkSpec, fit

ROOT = Path(__file__).parents[2]
SPEC = NetworkSpec(network="deepfm", options={"dim": 3, "hidden": [8, 4], "init_sd": 0.1})
OPTIONS = FitOptions(batch_rows=128, averaged_steps=5, embedding_l2=1e-3)


def fitted(log: EncodedLog) -> dict[str, torch.Tensor]:
    """The last batch of an epoch is one row: one process has nothing of it."""
    rows = [Part.TRAIN]
    assert len(log.rows(rows)) % OPTIONS.batch_rows == 1
    result = fit(log, SPEC, OPTIONS, seed=1, train=rows, valid=[Part.VALID_A])
    return result.state | {"train_loss": torch.tensor([row["train_loss"] for row in result.history])}


def test_two_processes_of_torchrun_are_one(tmp_path: Path) -> None:
    """Weights, the curve and the epoch stopped at agree to rounding, and both processes have the same bits."""
    log = write_small_log(tmp_path / "log", rows=1068)
    program = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]

    done = subprocess.run(
        [*program, "-m", "tests.training.test_parallel", str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stderr
    found = [np.load(tmp_path / f"{rank}.npz") for rank in (0, 1)]
    for name, tensor in fitted(log).items():
        assert np.array_equal(found[0][name], found[1][name])
        np.testing.assert_allclose(found[0][name], tensor.numpy(), rtol=0, atol=1e-5)


def test_a_process_alone_has_every_row() -> None:
    """Outside of torchrun nothing is shared."""
    rows = np.arange(5)

    with parallel.joined():
        own, weight = parallel.share_of(rows)

    assert own is rows
    assert weight == 1.0
    assert parallel.is_first()


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    with parallel.joined():
        np.savez(folder / f"{os.environ['RANK']}.npz", **fitted(EncodedLog.open(folder / "log")))
