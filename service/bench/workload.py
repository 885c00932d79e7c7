"""Raw ad requests made from a bundle alone: values as often as the manifest says they occurred in training.

A benchmark needs requests that look like the log without needing the log. Each field's values are drawn by the
manifest's reference counts (missing and unknown ones among them), ads come from a pool in which a few are asked for
often (Zipf), and numbers fall between the encoder's edges. Seeded: the same bundle gives the same requests.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.bundle import Bundle
from models.schema import FieldSchema

POOL = 5_000
"""Distinct ads."""

_FIRST_KNOWN = 2  # 0 is missing, 1 unknown


@dataclass(frozen=True)
class AdRequest:
    """One request, raw."""

    unit: str
    context: dict[str, Any]
    candidates: list[dict[str, Any]]

    def body(self, experiment: str) -> bytes:
        """The JSON body of `POST /predict`; the experiment makes one arm, so one model, answer."""
        members = {
            "unit_id": self.unit,
            "experiment": experiment,
            "context": self.context,
            "candidates": self.candidates,
        }
        return json.dumps(members, separators=(",", ":")).encode()


class _FieldSampler:
    """Draws raw values of one field."""

    def __init__(self, field: FieldSchema, bundle: Bundle, random: np.random.Generator) -> None:
        self._field = field
        self._random = random
        self._table: Sequence[str] | Sequence[float] = bundle.encoder.to_vocabularies().get(field.name, ())
        size = bundle.encoder.sizes[field.name]
        counts = np.zeros(size)
        reference = bundle.manifest.reference.fields.get(field.name)
        if reference is None:
            counts[_FIRST_KNOWN:] = 1.0
        else:
            rest = np.setdiff1d(np.arange(_FIRST_KNOWN, size), reference.ids)
            counts[list(reference.ids)] = reference.counts
            counts[rest] = reference.other / max(1, len(rest))
        if not counts.any():
            counts[0] = 1.0
        self._cumulative = np.cumsum(counts / counts.sum())

    def draw(self) -> Any:
        """A raw value as a client sends it; None where it is missing."""
        if not self._field.is_sequence:
            return self._raw(self._id())
        length = int(self._random.integers(1, min(5, self._field.max_length or 5) + 1))
        drawn = [self._raw(self._id()) for _ in range(length)]
        return [value for value in drawn if value is not None]

    def _id(self) -> int:
        place = int(np.searchsorted(self._cumulative, self._random.random(), side="right"))
        return min(place, len(self._cumulative) - 1)

    def _raw(self, id_: int) -> Any:
        if id_ == 0:
            return None
        if self._field.encoding.method in ("quantile", "log_bucket"):
            return self._number(id_ - _FIRST_KNOWN)
        if id_ == 1:
            return _typed(self._field.type, str(2**62 + int(self._random.integers(1_000_000))))
        if self._field.encoding.method == "hash":
            return _typed(self._field.type, str(id_))
        return _typed(self._field.type, str(self._table[id_ - _FIRST_KNOWN]))

    def _number(self, bucket: int) -> int | float:
        """A value somewhere in a bucket of the encoder's edges."""
        edges = [float(edge) for edge in self._table]
        if not edges:
            return 0
        low = edges[bucket - 1] if bucket > 0 else edges[0] - abs(edges[0]) - 1.0
        high = edges[bucket] if bucket < len(edges) else edges[-1] + abs(edges[-1]) + 1.0
        value = low + (high - low) * float(self._random.random())
        return int(value) if self._field.type == "integer" else float(f"{value:.6g}")


def _typed(kind: str, canonical: str) -> Any:
    """A canonical value as the JSON token of its type."""
    if kind == "integer":
        return int(float(canonical)) if "." in canonical or "e" in canonical else int(canonical)
    if kind == "float":
        return float(canonical)
    if kind == "boolean":
        return {"0": False, "1": True}.get(canonical)
    return canonical


def _row(samplers: Mapping[str, _FieldSampler]) -> dict[str, Any]:
    """Members of one object; a missing value is simply not there."""
    drawn = {name: sampler.draw() for name, sampler in samplers.items()}
    return {name: value for name, value in drawn.items() if value is not None}


def make_requests(bundle: Bundle, candidates: int, count: int, seed: int = 1) -> list[AdRequest]:
    """`count` requests of `candidates` ads each, that a service with this bundle can answer."""
    random = np.random.default_rng([seed, candidates])
    context = {field.name: _FieldSampler(field, bundle, random) for field in bundle.schema.context_fields}
    ad = {field.name: _FieldSampler(field, bundle, random) for field in bundle.schema.candidate_fields}
    pool = [_row(ad) for _ in range(POOL)]
    popularity: NDArray[np.float64] = 1.0 / np.arange(1, POOL + 1)
    picks = random.choice(POOL, size=(count, candidates), p=popularity / popularity.sum())
    return [
        AdRequest(f"user-{int(random.integers(1_000_000))}", _row(context), [pool[pick] for pick in row])
        for row in picks.tolist()
    ]
