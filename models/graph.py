"""The graph's inputs and outputs by name, and how encoded rows become them.

    inputs    context        int32 [R, Fc]   context fields that are no sequence, in schema order
              candidates     int32 [N, Fa]   candidate fields that are no sequence, in schema order
              request_index  int32 [N]       which request (0 to R - 1) a candidate belongs to; never decreases
              <field>_ids    int32 [K]       and
              <field>_offsets int32 [R + 1] or [N + 1], for each sequence field
    outputs   logit, pctr    float32 [N]     uncalibrated log-odds, and the calibrated probability
              teacher_logits, gate_weights  float32 [N, M], of an ensemble alone

An input of width 0 exists all the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from models.encoder import EncodedRows
from models.schema import FeatureSchema

CONTEXT = "context"
CANDIDATES = "candidates"
REQUEST_INDEX = "request_index"
LOGIT = "logit"
PCTR = "pctr"
TEACHER_LOGITS = "teacher_logits"
GATE_WEIGHTS = "gate_weights"


_ZEROS = np.zeros(1000, dtype=np.int32)
_ZEROS.flags.writeable = False


def ids_input(field: str) -> str:
    """The input with a sequence field's ids."""
    return f"{field}_ids"


def offsets_input(field: str) -> str:
    """The input that says where each row of a sequence field starts."""
    return f"{field}_offsets"


def input_names(schema: FeatureSchema) -> tuple[str, ...]:
    """Every input a graph for this schema has, in the order of the exporter."""
    sequences = (
        name for field in schema.sequence_fields for name in (ids_input(field.name), offsets_input(field.name))
    )
    return (CONTEXT, CANDIDATES, REQUEST_INDEX, *sequences)


def graph_inputs(contexts: Sequence[EncodedRows], candidates: Sequence[EncodedRows]) -> dict[str, NDArray[np.int32]]:
    """The inputs of one run over R requests: contexts of one row each, and each request's candidates.

    Request r's logits are the outputs from sum(n[:r]) on, n being the requests' numbers of candidates.
    """
    counts = [len(rows.ids) for rows in candidates]
    alone = len(counts) == 1 and counts[0] <= len(_ZEROS)
    inputs = {
        CONTEXT: _joined([rows.ids for rows in contexts]),
        CANDIDATES: _joined([rows.ids for rows in candidates]),
        REQUEST_INDEX: _ZEROS[: counts[0]] if alone else np.repeat(np.arange(len(counts), dtype=np.int32), counts),
    }
    for side in (contexts, candidates):
        for name in side[0].sequences:
            ids, offsets = zip(*(rows.sequences[name] for rows in side), strict=True)
            inputs[ids_input(name)] = _joined(ids)
            if len(offsets) > 1:
                starts = np.cumsum([0, *(part[-1] for part in offsets[:-1])], dtype=np.int32)
                moved = [part[1:] + start for part, start in zip(offsets, starts, strict=True)]
                inputs[offsets_input(name)] = np.concatenate((offsets[0][:1], *moved))
            else:
                inputs[offsets_input(name)] = offsets[0]
    return inputs


def _joined(parts: Sequence[NDArray[np.int32]]) -> NDArray[np.int32]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
