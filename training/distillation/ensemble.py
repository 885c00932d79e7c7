"""What the teachers answered, stored once by row and teacher and shared by every gate and student.

    <teacher>/logit.npy   float32 [n]       its logit of each row of the log
    <teacher>/seen.npy    bool [n]          the rows it learned from
    <hints>/hint.npy      float16 or float32 [n, H]    its hidden layer, where a recipe wants hints; memory-mapped

A teacher's folder is named by a hash of all that made it, so the folder is its version.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from training.data.encoded_log import EncodedLog
from training.distillation.distill import Aggregate, EnsembleTargets, mixed_logit
from training.distillation.gate import Gate
from training.distillation.shares import unseen
from training.fit.loop import Progress, answers

CHUNK_ROWS = 65_536


@dataclass(frozen=True)
class TeacherOutputs:
    """M teachers on the n rows of a log."""

    logits: NDArray[np.float32]
    """[n, M], in the recipe's order."""
    hints: tuple[NDArray[np.floating], ...] = ()
    """[n, H_i] a teacher, mapped from disk; none where nobody wants them."""
    unseen: NDArray[np.bool_] | None = None
    """[n, M]: of each row, the teachers that did not learn from it; None where it makes no difference."""

    @classmethod
    def read(cls, teachers: Mapping[str, Path], hints: Mapping[str, Path] | None = None) -> TeacherOutputs:
        """From the folders of the teachers, and of their hints under the same names."""
        logits = np.stack([np.load(folder / "logit.npy") for folder in teachers.values()], axis=1)
        seen = [np.load(folder / "seen.npy") for folder in teachers.values()]
        mapped = tuple(np.load(hints[name] / "hint.npy", mmap_mode="r") for name in teachers) if hints else ()
        return cls(logits, mapped, unseen(seen))

    def of(self, rows: NDArray[np.integer]) -> TeacherOutputs:
        """The same of those rows alone."""
        hints = tuple(hint[rows] for hint in self.hints)
        return TeacherOutputs(self.logits[rows], hints, None if self.unseen is None else self.unseen[rows])

    def ensemble_logit(self, gate: Gate, *, out_of_sample: bool = False) -> NDArray[np.float64]:
        """z_E of each row by every teacher, or by those that did not learn from it; [n]."""
        logit = np.empty(len(self.logits))
        for rows, z, hints, new in self._chunks(out_of_sample):
            logit[rows] = gate.ensemble_logit(z, hints, new)
        return logit

    def gate_weights(self, gate: Gate, *, out_of_sample: bool = False) -> NDArray[np.float64]:
        """alpha of each row, [n, M]."""
        alpha = np.empty(self.logits.shape)
        for rows, z, hints, new in self._chunks(out_of_sample):
            alpha[rows] = gate.gate_weights(z, hints, new)
        return alpha

    def targets(
        self, gate: Gate, *, aggregate: Aggregate, temperature: float, out_of_sample: bool, with_hints: bool
    ) -> EnsembleTargets:
        """What a student is to imitate.

        With `aggregate: probabilities` each teacher's logit passes through the gate's scale and bias before it is made
        a probability; the mean of the logits so scaled is z_E.
        """
        weights = None
        if with_hints or aggregate == "probabilities":
            weights = self.gate_weights(gate, out_of_sample=out_of_sample)
        if aggregate == "probabilities":
            assert weights is not None
            scale, bias = gate.scales(self.unseen if out_of_sample else None)
            scaled = np.reshape(scale, (-1, 1)) * self.logits.astype(np.float64) + np.reshape(bias, (-1, 1))
            logit = mixed_logit(torch.from_numpy(scaled), torch.from_numpy(weights), temperature).numpy()
        else:
            logit = self.ensemble_logit(gate, out_of_sample=out_of_sample)
        return EnsembleTargets(
            logit.astype(np.float32),
            weights.astype(np.float32) if weights is not None and with_hints else None,
            self.hints if with_hints else (),
        )

    def _chunks(
        self, out_of_sample: bool
    ) -> Iterator[tuple[slice, NDArray[np.float32], list[NDArray[np.floating]], NDArray[np.bool_] | None]]:
        new = self.unseen if out_of_sample else None
        for start in range(0, len(self.logits), CHUNK_ROWS):
            rows = slice(start, start + CHUNK_ROWS)
            hints = [hint[rows] for hint in self.hints]
            yield rows, self.logits[rows], hints, None if new is None else new[rows]


def store_hints(
    path: Path, log: EncodedLog, network: nn.Module, dtype: str, *, progress: Progress | None = None
) -> int:
    """Write the hint of every row as a npy file [n, H], chunk by chunk; H. ValueError where the network has none.

    Beyond what float16 holds a value is cut off there.
    """
    stored: NDArray[np.floating] | None = None
    bound = float(np.finfo(dtype).max)
    for piece, _, hint in answers(log, network, np.arange(len(log))):
        if hint is None:
            raise ValueError("expected a network with a hidden layer, got one that gives no hint")
        if stored is None:
            stored = np.lib.format.open_memmap(path, mode="w+", dtype=np.dtype(dtype), shape=(len(log), hint.shape[1]))
        stored[piece] = hint.clamp(-bound, bound).cpu().numpy()
        if progress is not None:
            progress(piece.stop, len(log), "hints")
    if stored is None:
        raise ValueError("expected a log with rows, got none")
    stored.flush()  # type: ignore[attr-defined]
    return int(stored.shape[1])
