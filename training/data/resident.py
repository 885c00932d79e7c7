"""A whole encoded log in a device's memory, so that a batch is gathered there and only its row numbers travel.

    ids [n, F] int32      label [n] float32      a sequence: ids [K] int32, offsets [n + 1] int64

The numbers are those that `EncodedLog` reads from disk. 45.8 million rows of 39 fields take 7.3 GB.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.zoo.embedding import unknown_id

CHUNK_ROWS = 1 << 20
SHARE_OF_FREE = 0.5
"""Of a GPU's free memory, what a log may take; the rest is for weights and batches."""

Number = TypeVar("Number", bound=np.generic)
Sequences = Mapping[str, tuple[NDArray[np.int32], NDArray[np.int64]]]


class ResidentLog:
    """Arrays of a log, copied to `device` chunk by chunk; IndexError at an id that its field has not."""

    def __init__(
        self,
        ids: NDArray[np.int32],
        label: NDArray[np.float32],
        sequences: Sequences,
        sizes: Sequence[int],
        device: torch.device,
    ) -> None:
        self.ids = _on(ids, device, check=lambda chunk: refuse_unknown(chunk, sizes))
        self.label = _on(label, device)
        self.sequences = {name: (_on(values, device), _on(ends, device)) for name, (values, ends) in sequences.items()}

    def rows(self, rows: NDArray[np.integer]) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
        """Ids [B, F] and sequences of a batch."""
        at = self._at(rows)
        return self.ids.index_select(0, at), {name: _segments(*pair, at) for name, pair in self.sequences.items()}

    def labels(self, rows: NDArray[np.integer]) -> Tensor:
        """Clicks, float32 [B]."""
        return self.label.index_select(0, self._at(rows))

    def _at(self, rows: NDArray[np.integer]) -> Tensor:
        return torch.from_numpy(rows.astype(np.int64, copy=False)).to(self.ids.device)


def bytes_of(ids: NDArray[np.int32], label: NDArray[np.float32], sequences: Sequences) -> int:
    """What these take on a device."""
    return ids.nbytes + label.nbytes + sum(values.nbytes + ends.nbytes for values, ends in sequences.values())


def fits(size: int, device: torch.device) -> bool:
    """Whether so many bytes may lie on a GPU; never on the CPU, where the file itself is mapped."""
    return device.type == "cuda" and size <= SHARE_OF_FREE * torch.cuda.mem_get_info(device)[0]


def refuse_unknown(ids: NDArray[np.int32], sizes: Sequence[int]) -> None:
    """IndexError where a row [n, F] has an id outside 0..size-1 of its field: a GPU would not say which, or where."""
    if len(ids) and (ids.min(initial=0) < 0 or (ids.max(axis=0) >= np.asarray(sizes)).any()):
        raise unknown_id()


def _on(array: NDArray[Number], device: torch.device, check: Callable[[NDArray[Number]], None] | None = None) -> Tensor:
    """A copy, chunk by chunk, each checked before it travels."""
    whole = torch.empty(array.shape, dtype=torch.from_numpy(np.empty(0, array.dtype)).dtype, device=device)
    for start in range(0, len(array), CHUNK_ROWS):
        chunk = np.array(array[start : start + CHUNK_ROWS])
        if check is not None:
            check(chunk)
        whole[start : start + len(chunk)] = torch.from_numpy(chunk)
    return whole


def _segments(values: Tensor, offsets: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The segments of `rows`, as (ids, offsets) of their own."""
    starts = offsets.index_select(0, rows)
    counts = offsets.index_select(0, rows + 1) - starts
    taken = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    moved = torch.repeat_interleave(starts - taken[:-1], counts)
    return values.index_select(0, torch.arange(len(moved), device=moved.device) + moved), taken
