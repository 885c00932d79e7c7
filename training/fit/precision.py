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
from torch.nn import functional

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


def linear(rows: Tensor, weight: Tensor, bias: Tensor | None = None, *, relu: bool = False) -> Tensor:
    """rows weight^T + bias, perhaps ReLU of it: [n, K], [H, K], [H] -> [n, H]. On a CPU, and not for autograd.

    By oneDNN where torch has it: in float32 a tenth faster than by MKL on a CPU that is not Intel's.
    """
    bias = None if bias is None else bias.to(rows.dtype)
    if rows.numel() and _one_dnn_multiplies(rows.dtype):
        found: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "relu" if relu else "none", [], "")
        return found
    found = functional.linear(rows, weight, bias)
    return found.relu_() if relu else found


@functools.cache
def _one_dnn_multiplies(dtype: torch.dtype) -> bool:
    has_one = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not (has_one and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return False
    return dtype != torch.bfloat16 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def in_float32(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """`function` of the tensors, with no product in less than float32 whatever is asked for around it."""
    device = tensors[0].device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return function(*tensors)
    with torch.autocast(device, enabled=False):
        return function(*(tensor.float() for tensor in tensors))
