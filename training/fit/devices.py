"""Where networks are trained and scored: the CPU, or CUDA GPUs where torch has some.

    auto      every GPU that torch sees, and the CPU where it sees none
    cpu       the CPU, whatever else there is
    cuda      every GPU; refused where there is none
    cuda:1    that GPU alone

A GPU takes one step of a run at a time, so that each has its memory to itself; of several, each takes its own. What is
not a network on batches of rows stays on the CPU: reading a log, the gate's few numbers, graphs and their timing.
"""

from __future__ import annotations

import gc
import os
import re

import torch

from training.errors import RecipeError
from training.pipeline import torchrun

CPU = torch.device("cpu")
SETTING = r"^(auto|cpu|cuda(:(0|[1-9][0-9]*))?)$"
"""What a recipe may say."""


def gpus(setting: str) -> tuple[str, ...]:
    """The GPUs that `setting` means on this machine, `cuda:0` and so on; none where the CPU is meant.

    Of the processes that torchrun started each has one GPU, by its number on the machine. RecipeError where there are
    fewer than are asked for.
    """
    if re.fullmatch(SETTING, setting) is None:
        raise RecipeError(f"device: expected auto, cpu, cuda or cuda:<number>, got {setting!r}")
    if setting == "cpu":
        return ()
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        if setting == "auto":
            return ()
        build = "is built without CUDA" if torch.version.cuda is None else "sees no GPU"
        raise RecipeError(
            f"device: {setting}: expected a CUDA GPU, but torch {torch.__version__} {build}; say device: cpu, or auto"
        )
    _, has_number, number = setting.partition(":")
    if torchrun.processes() > 1:
        own = int(os.environ.get("LOCAL_RANK", "0"))
        if has_number:
            raise RecipeError(f"device: {setting}: expected cuda, of which each process of torchrun takes its own")
        if own >= count:
            raise RecipeError(
                f"device: {setting}: expected a GPU a process, got process {own} of torchrun and {count} GPUs; start "
                f"torchrun with --nproc-per-node {count}, or say device: cpu"
            )
        return (f"cuda:{own}",)
    if has_number and int(number) >= count:
        raise RecipeError(f"device: {setting}: expected a number below {count}, as many GPUs as torch sees")
    return (setting,) if has_number else tuple(f"cuda:{index}" for index in range(count))


def give_memory_back() -> None:
    """What torch has kept for later of a GPU's memory, to whoever comes next: between two steps of one process."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        gc.collect()
        torch.cuda.empty_cache()
