"""What a bundle says of itself: what was trained on what, how well it does and what it costs.

The exporter fills a `ModelCard`; `bundle.write_bundle` adds name, version and time, and that is the `Manifest`.
Nothing here is needed to score, so a reader of another language may take it as plain JSON.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue, model_validator

BUNDLE_FORMAT = 2
"""The newest bundle format this code reads; it writes the oldest one that can say what is to be said.

1 the first; 2 adds `quantization`, and golden rows with a tolerance of up to .05."""

NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,63}$"
"""Model names become folder names, URL parts and metric labels."""


class _Part(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


class PartFacts(_Part):
    """One part of the log: its rows, and the first and last impression's time where the log has times."""

    rows: int = Field(ge=0)
    first: AwareDatetime | None = None
    last: AwareDatetime | None = None


class DataFacts(_Part):
    """The log a model learned from."""

    source: str
    """What a person calls it: a recipe's source, a file's name. No path of the machine."""
    fingerprint: str = Field(pattern=r"^[0-9a-f]{64}$")
    """sha256 over the log's contents: equal where the data is."""
    parts: dict[str, PartFacts]
    """By part: train, valid, test."""


class Teacher(_Part):
    """A teacher and its share of the ensemble, averaged over test rows."""

    name: str
    mean_gate_weight: float = Field(ge=0, le=1)


class Calibration(_Part):
    """pctr = sigmoid(scale * logit + bias), then corrected for negative sampling. All of it is in the graph."""

    scale: float = 1.0
    bias: float = 0.0
    negative_sampling_rate: float = Field(default=1.0, gt=0, le=1)
    """Share of the log's impressions without a click that were kept for training."""

    @property
    def shift(self) -> float:
        """What is added to scale * logit: dropping negatives raised every logit by -ln of their share."""
        return self.bias + math.log(self.negative_sampling_rate)


class FieldReference(_Part):
    """How often each id of a field occurred in training: the most frequent ids, and all the others."""

    ids: tuple[int, ...]
    counts: tuple[int, ...]
    other: int = Field(ge=0)

    @model_validator(mode="after")
    def _check(self) -> FieldReference:
        if len(self.ids) != len(self.counts) or len(set(self.ids)) != len(self.ids):
            raise ValueError("expected one count for each of distinct ids")
        return self

    @classmethod
    def from_ids(cls, ids: NDArray[Any], top: int = 64) -> FieldReference:
        """The reference of ids [n]: missing (0) and unknown (1) always, and the `top` most frequent."""
        return cls.from_counts(np.bincount(ids, minlength=2), top)

    @classmethod
    def from_counts(cls, counts: NDArray[Any], top: int = 64) -> FieldReference:
        """The same of how often each id occurred, [ids], two at least."""
        order = np.argsort(-counts, kind="stable")[:top].tolist()
        kept = sorted({0, 1, *(id_ for id_ in order if counts[id_])})
        listed = [int(counts[id_]) for id_ in kept]
        return cls(ids=tuple(kept), counts=tuple(listed), other=int(counts.sum()) - sum(listed))


class Histogram(_Part):
    """counts[i] values lie in [edges[i], edges[i + 1]); the last bin holds its right edge too."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]

    @model_validator(mode="after")
    def _check(self) -> Histogram:
        if len(self.edges) != len(self.counts) + 1 or any(b <= a for a, b in pairwise(self.edges)):
            raise ValueError("expected edges that grow, one more than counts")
        return self

    @classmethod
    def of_probabilities(cls, pctr: NDArray[Any], bins: int = 50) -> Histogram:
        """The histogram of probabilities [n] over `bins` equal bins of [0, 1]."""
        counts, edges = np.histogram(pctr, bins=bins, range=(0.0, 1.0))
        return cls(edges=tuple(edges.tolist()), counts=tuple(counts.tolist()))


class Reference(_Part):
    """What training looked like, for drift to be measured against."""

    fields: dict[str, FieldReference]
    pctr: Histogram


class Latency(_Part):
    """Milliseconds of session.run on one core."""

    p50_ms: float = Field(ge=0)
    p99_ms: float = Field(ge=0)


class Cost(_Part):
    """What serving this model takes."""

    parameters_embedding: int = Field(ge=0)
    parameters_dense: int = Field(ge=0)
    bytes: int = Field(ge=0)
    latency: dict[str, Latency]
    """By number of candidates."""


class GraphFigures(_Part):
    """What one of two graphs of a model is measured by."""

    metrics: dict[str, float]
    """auc, logloss, ece, predicted_over_actual and others, on the rows that decided."""
    bytes: int = Field(ge=0)
    latency: dict[str, Latency]
    """By number of candidates, the two graphs taking turns."""


class Quantization(_Part):
    """A graph in smaller numbers was made beside the float32 one: both of them measured, and which is in the bundle."""

    ships: Literal["float32", "quantized"]
    """Which of the two model.onnx is. `cost` and the golden rows are of this one; `test_metrics` and `parity_error`
    are of the float32 one."""
    reasons: tuple[str, ...]
    """Why the quantized one does not ship, with the numbers; none where it does."""
    layers: Literal["float32", "int8"]
    """Of the quantized one: what its dense layers multiply,"""
    tables: Literal["float32", "float16"]
    """and what its embedding tables hold."""
    rows: int = Field(ge=0)
    """Rows that decided: test rows, which no network learned from."""
    calibration_rows: int = Field(ge=0)
    """Training rows that ranges of activations were taken from."""
    bounds: dict[str, float]
    """How much worse it was allowed to be: max_auc_loss, max_logloss_gain, max_ece_gain, max_ratio_shift."""
    logit_rmse: float = Field(ge=0)
    """Root mean squared difference of the two logits, over the standard deviation of the float32 one."""
    rounding: float = Field(ge=0)
    """Largest change of a logit or a pctr where activations change in their last bits, as another processor's order of
    sums changes them: a rounding falls to the other side."""
    float32: GraphFigures
    quantized: GraphFigures

    @model_validator(mode="after")
    def _check(self) -> Quantization:
        if (self.ships == "float32") != bool(self.reasons):
            raise ValueError("expected reasons exactly where the float32 graph ships")
        return self


class ModelCard(_Part):
    """Everything the exporter knows of a model."""

    retort_version: str
    git_commit: str | None = None
    """The commit the model was trained by; null outside a repository."""
    git_dirty: bool = False
    """Whether files differed from that commit."""
    data: DataFacts
    recipe: dict[str, JsonValue]
    """The recipe, whole, as it was run."""
    teachers: tuple[Teacher, ...] = ()
    """In the order of the columns of `teacher_logits`; none where nothing was distilled."""
    temperature: float | None = Field(default=None, gt=0)
    """Of the distillation; null where nothing was distilled."""
    calibration: Calibration
    reference: Reference
    test_metrics: dict[str, dict[str, float]]
    """By model (this one, its teachers, its controls), then by metric, on test rows."""
    parity_error: float = Field(ge=0)
    """Largest |logit of the graph - logit of torch| on the exporter's rows."""
    cost: Cost
    quantization: Quantization | None = Field(default=None, exclude_if=lambda value: value is None)
    """Where a graph in smaller numbers was made beside the float32 one; else the key is left out."""

    @property
    def oldest_format(self) -> int:
        """The oldest bundle format that can say this."""
        return 1 if self.quantization is None else 2


class Manifest(ModelCard):
    """manifest.json: the card, and what `write_bundle` adds."""

    format_version: int = Field(ge=1)
    name: str = Field(pattern=NAME_PATTERN)
    version: int = Field(ge=1)
    created: AwareDatetime
    table_sizes: dict[str, int]
    """By field, the ids its encoder gives: 0 to size - 1. What the graph's embedding table was made for."""
