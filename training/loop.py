"""Fit one network to hard labels, stop it early, score rows with it, keep it on disk.

`fit_to` is the loop itself and knows of neither clicks nor teachers: it is given a loss and a measure to stop
by, and `distill.py` gives it others. A fit is a pure function of the log, the spec, the options and the seed:
same inputs, same weights, whatever runs beside it. Nothing here prints; `progress` is told rows done and rows
in all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from training.encoded_log import EncodedLog, Part
from training.errors import DivergedError, SplitError
from training.metrics import auc, logloss, sigmoid
from training.zoo import Encoded, Fields, build, check_options

SCORE_ROWS = 8192


class Progress(Protocol):
    """Called now and then with rows done, rows in all, and a short note."""

    def __call__(self, done: float, total: float, note: str = "") -> None: ...


class NetworkSpec(BaseModel):
    """Which network, and how large."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    network: str
    """A name in `zoo.NETWORKS`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """What the network's constructor takes; docs/training.md lists them."""

    @model_validator(mode="after")
    def _is_known(self) -> NetworkSpec:
        check_options(self.network, self.options)
        return self

    def build(self, fields: Fields) -> nn.Module:
        """A fresh network; its weights come from torch's global generator."""
        return build(self.network, fields, **self.options)


class FitOptions(BaseModel):
    """How to train: Adam on shuffled batches, a number of epochs."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    learning_rate: float = Field(default=1e-3, gt=0)
    batch_rows: int = Field(default=1024, ge=1)
    max_epochs: int = Field(default=12, ge=1)
    """Epochs at most when stopping early."""
    patience: int = Field(default=2, ge=1)
    """Stop after this many epochs in a row without a better one; the best epoch's weights are kept."""
    averaged_steps: int = Field(default=100, ge=1)
    """Weights are averaged exponentially over about so many last steps; the average is what is measured and kept.
    Adam's own last step is off by up to a fifth in predicted over actual. 1 keeps the last step."""
    embedding_l2: float = Field(default=0.0, ge=0)
    """Added to the loss: this, times half the squared vectors of the ids of a batch, a row."""


@dataclass(frozen=True)
class FitResult:
    """Weights, the number of epochs that made them, and one row a trained epoch of what was measured."""

    state: dict[str, Tensor]
    epochs: int
    history: list[dict[str, float]]

    def save(self, folder: Path, spec: NetworkSpec) -> None:
        """Write weights.npz and fit.json into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        weights: dict[str, Any] = {name: tensor.numpy() for name, tensor in self.state.items()}
        np.savez(folder / "weights.npz", **weights)
        facts = {"spec": spec.model_dump(), "epochs": self.epochs, "history": self.history}
        (folder / "fit.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")


def load_fit(folder: Path) -> tuple[NetworkSpec, int, list[dict[str, float]]]:
    """Spec, epochs and history of a saved fit."""
    facts = json.loads((folder / "fit.json").read_text(encoding="utf-8"))
    return NetworkSpec(**facts["spec"]), facts["epochs"], facts["history"]


def load_network(folder: Path, fields: Fields) -> nn.Module:
    """The network of a saved fit, in evaluation mode."""
    network = load_fit(folder)[0].build(fields)
    with np.load(folder / "weights.npz", allow_pickle=False) as weights:
        network.load_state_dict({name: torch.from_numpy(weights[name]) for name in weights.files})
    return network.eval()


def fit(
    log: EncodedLog,
    spec: NetworkSpec,
    options: FitOptions,
    *,
    seed: int,
    train: Sequence[Part],
    valid: Sequence[Part] | None,
    epochs: int | None = None,
    progress: Progress | None = None,
) -> FitResult:
    """Train on clicks by cross-entropy: a teacher, or a control.

    With `valid`, stops by AUC on those parts and keeps the best epoch. Without, runs exactly `epochs`, which
    is how a refit trains on rows that it could not also be stopped by.
    """
    label = np.asarray(log.label, dtype=np.float32)
    valid_rows = None if valid is None else rows_to_learn_from(log, valid)

    def task_loss(logit: Tensor, rows: NDArray[np.int64]) -> Tensor:
        return functional.binary_cross_entropy_with_logits(logit, torch.from_numpy(label[rows]))

    def measure(logit: NDArray[np.float32], rows: NDArray[np.int64]) -> dict[str, float]:
        return {"valid_auc": auc(label[rows], logit), "valid_logloss": logloss(label[rows], sigmoid(logit))}

    return fit_to(
        log,
        spec,
        options,
        seed=seed,
        train_rows=rows_to_learn_from(log, train),
        loss=task_loss,
        valid_rows=valid_rows,
        measure=measure,
        better=lambda new, best: new["valid_auc"] > best["valid_auc"],
        epochs=epochs,
        progress=progress,
    )


def fit_to(
    log: EncodedLog,
    spec: NetworkSpec,
    options: FitOptions,
    *,
    seed: int,
    train_rows: NDArray[np.int64],
    loss: Callable[[Tensor, NDArray[np.int64]], Tensor],
    valid_rows: NDArray[np.int64] | None,
    measure: Callable[[NDArray[np.float32], NDArray[np.int64]], dict[str, float]],
    better: Callable[[Mapping[str, float], Mapping[str, float]], bool],
    epochs: int | None = None,
    progress: Progress | None = None,
) -> FitResult:
    """The loop: shuffle, step, measure, stop.

    `loss(logit [B], rows [B])` is the mean over a batch; `measure(logit [n], valid_rows)` is taken after each
    epoch and `better(new, best)` compares two of its results. Give either `valid_rows` or `epochs`.
    """
    if (valid_rows is None) == (epochs is None):
        raise ValueError("expected either rows to stop by or a number of epochs, not both and not neither")
    if epochs is not None and epochs < 1:
        raise ValueError(f"epochs: expected at least 1, got {epochs}")
    last_epoch = options.max_epochs if epochs is None else epochs
    shuffler = np.random.default_rng([seed, 1])
    history: list[dict[str, float]] = []
    best: dict[str, float] | None = None
    best_state: dict[str, Tensor] = {}

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = spec.build(log.fields)
        optimizer = torch.optim.Adam(network.parameters(), lr=options.learning_rate, fused=True)
        trained = list(network.parameters())
        averaged = [parameter.detach().clone() for parameter in trained]
        step = 0
        for epoch in range(1, last_epoch + 1):
            network.train()
            total, seen = 0.0, 0
            for rows in batches(shuffler.permutation(train_rows), options.batch_rows):
                batch_loss = loss(network(log.batch(rows))[0], rows)
                objective = batch_loss
                if options.embedding_l2:
                    objective = objective + options.embedding_l2 * embedding_penalty(network, log.batch(rows))
                optimizer.zero_grad()
                objective.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                step += 1
                # The first steps weigh as in a plain mean, so that the random start is soon forgotten.
                share = max(1 / step, 1 / options.averaged_steps)
                torch._foreach_lerp_(averaged, [parameter.detach() for parameter in trained], share)
                total += batch_loss.item() * len(rows)
                seen += len(rows)
                if progress is not None:
                    done = (epoch - 1) * len(train_rows) + seen
                    progress(done, last_epoch * len(train_rows), f"epoch {epoch}")
            if not np.isfinite(total):
                raise DivergedError(
                    f"network {spec.network!r}: the loss became {total / seen} in epoch {epoch}; "
                    f"lower learning_rate (it is {options.learning_rate})"
                )
            row: dict[str, float] = {"epoch": epoch, "train_loss": total / seen}
            _exchange(trained, averaged)
            if valid_rows is not None:
                row |= measure(score(log, network, valid_rows), valid_rows)
                if best is None or better(row, best):
                    best, best_state = row, copy_of_state(network)
            history.append(row)
            if epoch == last_epoch and best is None:
                best, best_state = row, copy_of_state(network)
            _exchange(trained, averaged)
            if best is not None and epoch - best["epoch"] >= options.patience:
                break
    assert best is not None
    if progress is not None:
        progress(last_epoch * len(train_rows), last_epoch * len(train_rows), f"kept epoch {best['epoch']:.0f}")
    return FitResult(best_state, int(best["epoch"]), history)


def _exchange(first: Sequence[Tensor], second: Sequence[Tensor]) -> None:
    """Swap the values of two lists of tensors."""
    with torch.no_grad():
        for one, other in zip(first, second, strict=True):
            kept = one.clone()
            one.copy_(other)
            other.copy_(kept)


def embedding_penalty(network: nn.Module, batch: Encoded) -> Tensor:
    """Half the squared length of the vectors that the batch looks up, a row."""
    return 0.5 * network.embedding(batch).joined().square().sum(dim=(1, 2)).mean()  # type: ignore[operator, no-any-return]


def copy_of_state(network: nn.Module) -> dict[str, Tensor]:
    """A network's weights that later steps do not change."""
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


def batches(rows: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    """Consecutive pieces of `rows`; the last may be short."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def score(
    log: EncodedLog,
    network: nn.Module,
    rows: NDArray[np.integer] | None = None,
    *,
    progress: Progress | None = None,
) -> NDArray[np.float32]:
    """Logits of `rows` (of the whole log without), float32, in evaluation mode."""
    rows = np.arange(len(log)) if rows is None else rows
    logit = np.empty(len(rows), dtype=np.float32)
    network.eval()
    with torch.inference_mode():
        for start in range(0, len(rows), SCORE_ROWS):
            piece = rows[start : start + SCORE_ROWS]
            logit[start : start + len(piece)] = network(log.batch(piece))[0].numpy()
            if progress is not None:
                progress(start + len(piece), len(rows), "scoring")
    return logit


def rows_to_learn_from(log: EncodedLog, parts: Sequence[Part]) -> NDArray[np.int64]:
    """Rows of the parts; `SplitError` where there is nothing to learn from or to stop by."""
    rows = log.rows(parts)
    names = " + ".join(part.name.lower() for part in parts)
    if len(rows) == 0:
        raise SplitError(f"{names}: expected rows, got none; look at the split of the recipe")
    if len(np.unique(log.label[rows])) < 2:
        raise SplitError(f"{names}: expected clicks and non-clicks, got {len(rows)} rows of one kind")
    return rows
