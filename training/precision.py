"""Which numbers matrix products of training are made of: float32, or bfloat16 where the hardware multiplies those.

bfloat16 has float32's range and 8 bits of mantissa. Weights, moments, embedding tables, sums over fields and everything
that is measured or exported stay float32; attention does too (`in_float32`), which bfloat16 makes slower on a CPU.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor

Precision = Literal["float32", "bfloat16", "auto"]


def products_in(precision: Precision, device: str = "cpu") -> AbstractContextManager[object]:
    """Within, products of a forward pass are made in this precision, and those of its gradients likewise."""
    if precision == "float32" or (precision == "auto" and not multiplies_bfloat16(device)):
        return nullcontext()
    return torch.autocast(device, dtype=torch.bfloat16)


@functools.cache
def multiplies_bfloat16(device: str = "cpu") -> bool:
    """Whether the hardware has instructions for it; elsewhere bfloat16 is slower than float32."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    found = torch.cpu.get_capabilities()
    return bool(found.get("amx_bf16") or found.get("avx512_bf16"))


def in_float32(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """`function` of the tensors, with no product in less than float32 whatever is asked for around it."""
    device = tensors[0].device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return function(*tensors)
    with torch.autocast(device, enabled=False):
        return function(*(tensor.float() for tensor in tensors))
