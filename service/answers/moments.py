"""The sums over units that every estimator here is made of.

A unit is a user or a device; its impressions resemble each other, so it counts as one observation with totals x_u
(impressions, clicks, ...). All that is ever needed of an arm's units is sum_u x_u x_u^T with x_u[0] = 1: it holds
their number, their totals and every product of two totals, and from it comes the variance of any ratio of totals by
the delta method (Deng, Knoblich and Lu, KDD 2018, arXiv:1803.06336, section 3).

Moments of *different* units are added. A unit that comes back tomorrow is the same unit: its totals are added first
(`fold.py`), and its square is taken of the sum. Adding moments of two days that share units would call a heavy
user several light ones, and every interval too narrow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """sum_u x_u x_u^T of one arm, [K+1, K+1]; or of many experiments at once, [..., K+1, K+1].

    `names` are those of x_u[1:]; x_u[0] is 1.
    """

    names: tuple[str, ...]
    gram: Array

    @classmethod
    def of_units(cls, **totals: ArrayLike) -> Moments:
        """From each unit's totals, `name=[..., U]`, all of one shape."""
        columns = [np.asarray(column, dtype=np.float64) for column in totals.values()]
        x = np.stack([np.ones(columns[0].shape), *columns], axis=-1)  # [..., U, K+1]
        return cls(tuple(totals), np.swapaxes(x, -1, -2) @ x)

    @classmethod
    def none(cls, names: tuple[str, ...]) -> Moments:
        """Of no units at all."""
        return cls(names, np.zeros((len(names) + 1, len(names) + 1)))

    def __add__(self, other: Moments) -> Moments:
        """The moments of two groups that share no unit, taken together."""
        if self.names != other.names:
            raise ValueError(f"expected moments of {self.names}, got those of {other.names}")
        return Moments(self.names, self.gram + other.gram)

    @property
    def units(self) -> Array:
        """How many units, [...]."""
        return self.gram[..., 0, 0]

    def total(self, name: str) -> Array:
        """Sum of one of the totals over all units, [...]."""
        return self.gram[..., 0, self._place(name)]

    def spread(self, weights: Mapping[str, ArrayLike]) -> Array:
        """sum_u (sum_k w_k x_uk)^2, [...]: for weights with which the sum is 0, its variance, clustered by unit."""
        places = [self._place(name) for name in weights]
        columns = [np.asarray(weight, dtype=np.float64) for weight in weights.values()]
        w = np.stack(np.broadcast_arrays(*columns), axis=-1)  # [..., k]
        part = self.gram[..., places, :][..., :, places]  # [..., k, k]
        return np.asarray(np.maximum(np.einsum("...i,...ij,...j->...", w, part, w), 0.0))

    def ratio(self, over: str, under: str) -> Array:
        """R = sum `over` / sum `under`, [...]; NaN where `under` is 0."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(self.total(over) / self.total(under))

    def ratio_variance(self, over: str, under: str) -> Array:
        """V of that ratio, clustered by unit: sum_u (c_u - R m_u)^2 / (sum_u m_u)^2, [...]."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(self.spread({over: 1.0, under: -self.ratio(over, under)}) / self.total(under) ** 2)

    def _place(self, name: str) -> int:
        return self.names.index(name) + 1
