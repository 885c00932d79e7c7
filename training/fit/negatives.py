"""Training on a share of the non-clicks, and what undoes it: a constant added to every logit.

A row without a click is kept with probability w, by a hash of its number, so that every network of a run sees the same
rows; a click is always kept. Then P(click | x, kept) = p' is p / (p + w (1 - p)), and so

    p = p' / (p' + (1 - p') / w)        logit p = logit p' + ln w            He et al., ADKDD 2014, section 6.3

exactly, for every x. Who learns, learns among kept rows: networks, their soft labels, and a gate that learns on
training rows all speak of p'. Validation and test rows are not sampled. Wherever a logit meets them (to stop training,
to fit scale and bias of gate and calibration, to be measured), `correction` is added, and it ends the exported graph.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from training.data.chance import uniform
from training.data.encoded_log import EncodedLog

_SALT = 1 << 63
"""So that no seed draws the rows that `split.train_share` does."""


class Negatives(BaseModel):
    """Which rows without a click are trained on."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    keep: float = Field(default=1.0, gt=0, le=1)
    """w, the share of them that is kept."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Another one keeps others."""

    @property
    def correction(self) -> float:
        """ln w: what turns the logit of kept rows into that of all rows."""
        return math.log(self.keep)

    def of(self, log: EncodedLog, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Of these rows, all clicks and a share of the others."""
        if self.keep == 1:
            return rows
        return rows[(log.label[rows] > 0) | (uniform(rows.astype(np.uint64), _SALT + self.seed) < self.keep)]


EVERY_ROW = Negatives()
