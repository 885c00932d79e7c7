"""What takes the memory of a fit, and so which setting to lower when there is not enough.

Said before a fit begins (`stages.IF_OUT_OF_MEMORY`), because a process that the kernel kills for its memory cannot say
it any more. Sizes of weights are exact, from the networks themselves, built without memory; a batch's are a rule of
thumb. On a GPU the best epoch lies in the CPU's memory, and a log in the GPU's only where it takes no more than half of
what is free.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from training.fit.loop import NetworkSpec
from training.zoo import FieldEmbedding, Fields

HELD = 6
"""Times that weights are held at the peak: themselves, gradient, Adam's two moments, running mean, best epoch."""
PER_EMBEDDED_NUMBER = 4
"""Floats that a batch holds for each number it looks up: itself, joined, and their gradients. Rule of thumb."""
FLOAT_BYTES = 4


def what_to_lower(
    fields: Fields, networks: Mapping[str, NetworkSpec], batch_rows: tuple[str, int], device: str = "cpu"
) -> str:
    """For people: needs within a hundredth of the largest, that one first, each with its setting and its value.

    `networks` are trained at once on `device`, by their places in the recipe; `batch_rows` is the place of that
    setting, and it.
    """
    needs: list[tuple[float, str]] = []
    largest = max(fields, key=lambda spec: spec.size)
    batch = 0.0
    for place, spec in networks.items():
        table, dense, looked_up = _sizes(spec, fields)
        batch += PER_EMBEDDED_NUMBER * FLOAT_BYTES * batch_rows[1] * looked_up
        dim = f"{place}.options.dim (it is {spec.options['dim']}), or " if "dim" in spec.options else ""
        size = HELD * FLOAT_BYTES * table
        vocabulary = f"max_size, or hash buckets, of field {largest.name!r} in the schema ({largest.size:,} ids)"
        needs.append((size, f"{_shown(size)} of embeddings: lower {dim}{vocabulary}"))
        if "hidden" in spec.options:
            size = HELD * FLOAT_BYTES * dense
            hidden = f"{place}.options.hidden (it is {spec.options['hidden']})"
            needs.append((size, f"{_shown(size)} of dense layers: lower {hidden}"))
    needs.append((batch, f"about {_shown(batch)} for a batch: lower {batch_rows[0]} (it is {batch_rows[1]})"))
    needs.sort(key=lambda need: -need[0])
    told = [text for size, text in needs if size >= needs[0][0] / 100]
    # A GPU has one step at a time already.
    other = "train on the CPU: --set device=cpu" if device != "cpu" else "let fewer steps run side by side: --workers 1"
    return f"it needs {'; '.join(told)}. Or {other}"


def _sizes(spec: NetworkSpec, fields: Fields) -> tuple[int, int, int]:
    """Numbers in the embedding tables, in all other weights, and those looked up for a row."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        network = spec.build(fields)
    embeddings = [module for module in network.modules() if isinstance(module, FieldEmbedding)]
    table = sum(embedding.table.numel() for embedding in embeddings)
    looked_up = sum(sum(embedding.widths) for embedding in embeddings)
    return table, sum(weight.numel() for weight in network.parameters()) - table, looked_up


def _shown(size: float) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
