"""A tiny encoded log with clicks that a network can learn: collaborators for the tests of this room."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from training.data.encoded_log import EncodedLog, Part
from training.fit.metrics import sigmoid
from training.zoo.embedding import FieldSpec

FIELDS = (
    FieldSpec("device", 6, "context"),
    FieldSpec("history", 5, "context", is_sequence=True),
    FieldSpec("ad", 12, "candidate"),
)


def write_small_log(folder: Path, *, rows: int, scramble_outside_train: bool = False) -> EncodedLog:
    """Clicks depend on device x ad and on the ad; 60% train, 8% each of valid A, B and C, the rest test."""
    rng = np.random.default_rng(0)
    device, ad = rng.integers(0, 6, rows), rng.integers(0, 12, rows)
    logit = rng.normal(size=(6, 12))[device, ad] + rng.normal(size=12)[ad] - 0.8
    truth = sigmoid(logit)
    label = (rng.random(rows) < truth).astype(np.float32)
    part = np.searchsorted([0.6, 0.68, 0.76, 0.84], np.arange(rows) / rows, side="right").astype(np.uint8)
    if scramble_outside_train:
        outside = part != Part.TRAIN
        label[outside] = np.random.default_rng(1).permutation(label[outside])
    offsets = np.concatenate([[0], rng.integers(0, 3, rows).cumsum()])
    with EncodedLog.writer(folder, FIELDS) as writer:
        writer.append(
            ids=np.stack([device, ad], axis=1),
            label=label,
            truth=truth,
            unit=rng.integers(0, 200, rows).astype(np.uint64),
            time=np.arange(rows) * 1_000_000,
            part=part,
            sequences={"history": (rng.integers(0, 5, offsets[-1]), offsets)},
        )
        return writer.finish()
