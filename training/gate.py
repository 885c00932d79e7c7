"""How much to trust each teacher, row by row (arXiv:2011.04106, section 3: the teacher gating network).

    alpha = softmax(w_i z_i + b_i)        z_E = scale * sum_i alpha_i z_i + bias

Four rules, each measured (a gate trained otherwise was worse than the plain average):

- it starts at zero, where alpha is 1/M and the ensemble is the average;
- it learns from its own cross-entropy with clicks on rows the teachers did not train on (validation part B), never
  from the distillation loss, which would have it choose the teacher that is easiest to imitate;
- its numbers have a prior (`PRIOR_SD`), or a gate that switches runs off to where float32 stops agreeing with itself;
- it is kept only where it beats the average on other rows again (part C). Either way scale and bias are fitted on B.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.nn import functional

from training.calibrate import fit_platt

PRIOR_SD = 1.0
"""Of each w_i and b_i: a teacher's say changes by a factor e for a logit of its own, or for being itself."""


@dataclass(frozen=True)
class Gate:
    """A fitted gate over M teachers. The average is the gate whose weights and biases are all zero."""

    weights: tuple[float, ...]
    """w_i, one a teacher."""
    biases: tuple[float, ...]
    """b_i, one a teacher."""
    scale: float
    bias: float
    chosen: Literal["gate", "average"]

    def gate_weights(self, teacher_logits: ArrayLike) -> NDArray[np.float64]:
        """alpha: [n, M] -> [n, M], each row summing to 1."""
        z = np.asarray(teacher_logits, dtype=np.float64)
        score = z * np.array(self.weights) + np.array(self.biases)
        score -= score.max(axis=1, keepdims=True)
        unscaled = np.exp(score)
        return np.asarray(unscaled / unscaled.sum(axis=1, keepdims=True))

    def ensemble_logit(self, teacher_logits: ArrayLike) -> NDArray[np.float64]:
        """z_E: [n, M] -> [n]."""
        z = np.asarray(teacher_logits, dtype=np.float64)
        return np.asarray(self.scale * (self.gate_weights(z) * z).sum(axis=1) + self.bias)

    def to_json(self) -> dict[str, Any]:
        """Plain values, for `from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Gate:
        """What `to_json` gave."""
        return cls(**(values | {"weights": tuple(values["weights"]), "biases": tuple(values["biases"])}))


@dataclass(frozen=True)
class GateResult:
    """The gate to use, the average, and the evidence: cross-entropy of both on rows B and C."""

    gate: Gate
    average: Gate
    evidence: dict[str, float]


class GateModule(nn.Module):
    """The same numbers in torch: learned here, exported in the ensemble's graph."""

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.tensor(gate.weights, dtype=torch.float32))
        self.biases = nn.Parameter(torch.tensor(gate.biases, dtype=torch.float32))
        self.scale = nn.Parameter(torch.tensor(gate.scale, dtype=torch.float32))
        self.bias = nn.Parameter(torch.tensor(gate.bias, dtype=torch.float32))

    def forward(self, teacher_logits: Tensor) -> tuple[Tensor, Tensor]:
        """[N, M] -> ensemble_logit [N] and gate_weights [N, M]."""
        alpha = torch.softmax(teacher_logits * self.weights + self.biases, dim=1)
        return self.scale * (alpha * teacher_logits).sum(dim=1) + self.bias, alpha


def average_of(teachers: int) -> Gate:
    """The plain average of so many teachers, unscaled."""
    return Gate((0.0,) * teachers, (0.0,) * teachers, 1.0, 0.0, "average")


def fit_gate(
    teacher_logits: NDArray[np.floating],
    label: NDArray[np.floating],
    *,
    rows_b: NDArray[np.integer],
    rows_c: NDArray[np.integer],
) -> GateResult:
    """Fit on rows B, decide on rows C. `teacher_logits` [n, M] of teachers that saw neither."""
    z_b, y_b = np.asarray(teacher_logits[rows_b], dtype=np.float64), np.asarray(label[rows_b])
    z_c, y_c = np.asarray(teacher_logits[rows_c], dtype=np.float64), np.asarray(label[rows_c])
    start = average_of(z_b.shape[1])
    average = _rescaled(start, z_b, y_b)
    gate = _rescaled(_learned(start, z_b, y_b), z_b, y_b)
    evidence = {
        f"{name}_ce_{part}": cross_entropy(rival.ensemble_logit(z), y)
        for part, z, y in (("b", z_b, y_b), ("c", z_c, y_c))
        for name, rival in (("average", average), ("gate", gate))
    }
    won = evidence["gate_ce_c"] < evidence["average_ce_c"]
    return GateResult(gate if won else average, average, evidence)


def cross_entropy(logit: ArrayLike, label: ArrayLike) -> float:
    """Mean cross-entropy of labels with the un-tempered sigmoid of a logit."""
    z = np.asarray(logit, dtype=np.float64)
    return float(np.mean(np.logaddexp(0, z) - np.asarray(label, dtype=np.float64) * z))


def _learned(start: Gate, z: NDArray[np.float64], y: NDArray[np.floating]) -> Gate:
    """Minimise CE(y, z_E) over w and b: a few numbers, so the whole part is one batch (L-BFGS, float64).

    With a Gaussian prior of standard deviation `PRIOR_SD` on each number. Without, clicks of some parts can be fitted a
    little better by a gate that switches, and w and b run off to thousands, where float32 no longer agrees with itself.
    """
    module = GateModule(start).double()
    teacher_logits, label = torch.from_numpy(z), torch.from_numpy(y.astype(np.float64))
    optimizer = torch.optim.LBFGS(
        [module.weights, module.biases], max_iter=200, tolerance_grad=1e-7, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = functional.binary_cross_entropy_with_logits(module(teacher_logits)[0], label)
        squares = module.weights.square().sum() + module.biases.square().sum()
        value = value + squares / (2 * PRIOR_SD**2 * len(label))
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    weights, biases = module.weights.detach(), module.biases.detach()
    biases = biases - biases.mean()  # softmax does not see a common shift
    return Gate(tuple(weights.tolist()), tuple(biases.tolist()), 1.0, 0.0, "gate")


def _rescaled(gate: Gate, z: NDArray[np.float64], y: NDArray[np.floating]) -> Gate:
    """The gate with the scale and bias that fit clicks best."""
    platt = fit_platt(gate.ensemble_logit(z), y)
    return Gate(gate.weights, gate.biases, platt.scale, platt.bias, gate.chosen)
