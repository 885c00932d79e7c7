"""Several processes on one fit, each with a share of every batch, on one machine or more: started by torchrun.

    gradient = sum_k (n_k / n) gradient_k            process k has n_k of a batch's n rows

Every process sees the same log, draws the same seeds, shuffles alike and ends with the same weights: those of one
process alone, to rounding. What is not a mean over rows is reckoned within a share: the examination of mutual learning,
and which hidden units dropout leaves out. Without torchrun nothing here does anything. `torchrun.py` makes a whole run
of this.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed


@contextmanager
def joined(store: Any = None) -> Iterator[None]:
    """Within, this process is one of those that torchrun started; nothing where it started none.

    They meet in `store`, in torchrun's own without. What lies on GPUs is summed there, one GPU a process.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    with_gpus = torch.cuda.is_available() and distributed.is_nccl_available()
    if with_gpus:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if with_gpus else "gloo", store=store, rank=rank, world_size=size
    )
    try:
        yield
    finally:
        distributed.destroy_process_group()


def is_shared() -> bool:
    """Whether there are others on this fit."""
    return distributed.is_available() and distributed.is_initialized()


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return not is_shared() or distributed.get_rank() == 0


def share_of(rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], float]:
    """This process's rows of a batch, and what they weigh: all of them and 1 without others.

    Where there are fewer rows than processes some have one that weighs nothing, so that all step alike.
    """
    if not is_shared():
        return rows, 1.0
    own = rows[distributed.get_rank() :: distributed.get_world_size()]
    return (own, len(own) / len(rows)) if len(own) else (rows[:1], 0.0)


def sum_gradients(weights: Sequence[Tensor]) -> None:
    """Every process's gradients become the sum of all."""
    if not is_shared():
        return
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    whole = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(whole)
    pieces = torch.split(whole, [gradient.numel() for gradient in gradients])
    for gradient, found in zip(gradients, pieces, strict=True):
        gradient.copy_(found.view_as(gradient))


def first_says(answer: bool) -> bool:
    """The first process's answer, for all: whoever measures on another machine may round otherwise."""
    if not is_shared():
        return answer
    said = torch.tensor([int(answer)])
    distributed.broadcast(said, 0)
    return bool(said.item())


def sum_figures(figures: Mapping[str, float]) -> dict[str, float]:
    """Figures, weighed by their shares, summed over the processes."""
    if not is_shared():
        return dict(figures)
    whole = torch.tensor(list(figures.values()), dtype=torch.float64)
    distributed.all_reduce(whole)
    return dict(zip(figures, whole.tolist(), strict=True))
