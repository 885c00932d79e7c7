"""Fit one network to hard labels, stop it early, score rows with it, keep it on disk.

`run_epochs` is the loop, the only one: it steps a `Learner`, which knows what is to be learned. `fit_to` keeps the
best epoch of one network; `distill.py` gives it students, `together.py` trains teachers and student side by side. A
fit is a pure function of the log, the spec, the options and the seed: same inputs, same weights, whatever runs beside
it, and however often it was killed and went on from its `checkpoint.py`. Nothing here prints; `progress` is told rows
done and rows in all.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from training.data.encoded_log import EncodedLog, Part
from training.distillation.shares import Share
from training.errors import SplitError
from training.fit import parallel
from training.fit.allocator import keep_freed_memory
from training.fit.checkpoint import Checkpoint
from training.fit.divergence import Divergence, Setting
from training.fit.metrics import auc, logloss, sigmoid
from training.fit.negatives import EVERY_ROW, Negatives
from training.fit.optimizer import Optimizer
from training.fit.precision import Precision, products_in
from training.fit.schedule import Schedule, factor
from training.fit.warm import Start
from training.zoo import Encoded, Fields, build, check_options
from training.zoo.embedding import FieldEmbedding

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

    def hint_width(self, fields: Fields) -> int | None:
        """H, the width of its hidden layer over such fields; None where it has none. Draws from no one's generator."""
        fields = tuple(replace(spec, size=1) for spec in fields)
        one_row = Encoded(
            torch.zeros((1, _plain(fields, "context")), dtype=torch.int32),
            torch.zeros((1, _plain(fields, "candidate")), dtype=torch.int32),
            None,
            {
                spec.name: (torch.zeros(0, dtype=torch.int32), torch.zeros(2, dtype=torch.int32))
                for spec in fields
                if spec.is_sequence
            },
        )
        with torch.random.fork_rng(devices=[]), torch.inference_mode():
            hint = self.build(fields).eval()(one_row)[1]
        return None if hint is None else int(hint.shape[1])


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
    schedule: Schedule = "constant"
    """How the learning rate falls over max_epochs, wherever training stops: constant, linear or cosine, to 0."""
    warmup_epochs: float = Field(default=0.0, ge=0)
    """Over so many epochs, a fraction or more, it rises to its full height first."""
    embedding_l2: float = Field(default=0.0, ge=0)
    """Added to the loss: this, times half the squared vectors of the ids of a batch, a row."""
    precision: Precision = "float32"
    """Of matrix products in training: float32; bfloat16, faster where the hardware multiplies it and slower elsewhere;
    auto takes bfloat16 where it is faster, so that machines give other numbers."""

    @model_validator(mode="after")
    def _the_learning_rate_gets_up(self) -> Self:
        if self.warmup_epochs >= self.max_epochs:
            raise ValueError(
                f"warmup_epochs: expected less than max_epochs, {self.max_epochs}, got {self.warmup_epochs:g}"
            )
        return self

    def rate_factor(self, done: float) -> float:
        """Of the learning rate, in the step that ends after `done` epochs."""
        return factor(self.schedule, done, warmup_epochs=self.warmup_epochs, max_epochs=self.max_epochs)


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
    share: Share | None = None,
    negatives: Negatives = EVERY_ROW,
    start: Start | None = None,
    place: str = "",
    progress: Progress | None = None,
    checkpoint: Checkpoint | None = None,
) -> FitResult:
    """Train on clicks by cross-entropy: a teacher, or a control.

    With `valid`, stops by AUC on those parts and keeps the best epoch. Without, runs exactly `epochs`, which
    is how a refit trains on rows that it could not also be stopped by. `share` is what a copy of a teacher sees of
    the training rows, `negatives` what all networks see of them; `start` is an earlier fit whose weights it starts
    from; `place` is where the network stands in the recipe, for advice.
    """
    return fit_to(
        log,
        lambda: started(ClickLearner(log, spec, options, place, negatives.correction), start, log.fields),
        options,
        seed=seed,
        train_rows=rows_to_learn_from(log, train, share, negatives),
        valid_rows=None if valid is None else rows_to_learn_from(log, valid),
        better=higher_auc,
        epochs=epochs,
        progress=progress,
        checkpoint=checkpoint,
    )


@dataclass(frozen=True)
class Loss:
    """Of one batch: what is minimised, and figures to show, each a mean over the batch's rows."""

    objective: Tensor
    shown: Mapping[str, Tensor]
    """`train_loss`, the objective less what regularises it, is expected among them."""


class Learner(nn.Module, ABC):
    """A network together with what it is to learn and whatever is learned beside it; only the network is kept."""

    def __init__(self, spec: NetworkSpec, network: nn.Module, options: FitOptions, place: str = "") -> None:
        super().__init__()
        self.network = network
        self._setting = setting_of(spec, options, place)

    def setting(self, figure: str) -> Setting:
        """Whose settings to look at where a figure of `Loss.shown` runs away."""
        return self._setting

    @abstractmethod
    def loss(self, batch: Encoded, rows: NDArray[np.int64]) -> Loss:
        """Of a batch, given also as row numbers of the log."""

    @abstractmethod
    def measure(self, log: EncodedLog, rows: NDArray[np.int64]) -> dict[str, float]:
        """How well it does on rows it does not train on, to stop by."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What Adam is to train; a group may bring its own learning rate."""
        return [{"params": list(self.parameters())}]


class ClickLearner(Learner):
    """One network and the clicks of the log: L_T = CE(y, sigmoid(z_T))."""

    def __init__(
        self, log: EncodedLog, spec: NetworkSpec, options: FitOptions, place: str = "", correction: float = 0.0
    ) -> None:
        super().__init__(spec, spec.build(log.fields), options, place)
        self.correction = correction
        """Of its logits on rows that were not sampled, see `negatives.py`."""
        self._labels = log.labels
        self._embedding_l2 = options.embedding_l2

    def loss(self, batch: Encoded, rows: NDArray[np.int64]) -> Loss:
        task_loss = functional.binary_cross_entropy_with_logits(self.network(batch)[0], self._labels(rows))
        return Loss(task_loss + embedding_penalty(self.network, batch, self._embedding_l2), {"train_loss": task_loss})

    def measure(self, log: EncodedLog, rows: NDArray[np.int64]) -> dict[str, float]:
        return measure_clicks(score(log, self.network, rows) + self.correction, log.label[rows])


def measure_clicks(logit: NDArray[np.floating], label: NDArray[np.floating]) -> dict[str, float]:
    """AUC and logloss of logits on validation rows with labels."""
    return {"valid_auc": auc(label, logit), "valid_logloss": logloss(label, sigmoid(logit))}


def higher_auc(new: Mapping[str, float], best: Mapping[str, float]) -> bool:
    """What stops a network that learns from clicks."""
    return new["valid_auc"] > best["valid_auc"]


def setting_of(spec: NetworkSpec, options: FitOptions, place: str = "") -> Setting:
    """What a network's message about a runaway loss is to name."""
    return Setting(spec.network, place, options.learning_rate, spec.options.get("init_sd"))


def started(learner: Learner, start: Start | None, fields: Fields) -> Learner:
    """The learner, its network with the weights of an earlier fit if there is one."""
    if start is not None:
        start.into(learner.network, fields)
    return learner


class AfterEpoch(Protocol):
    """What is done when an epoch has ended: measure, keep what is best so far, say when to stop."""

    def __call__(self, row: dict[str, float]) -> bool:
        """With the averaged weights standing in the learner; may add to the row. True ends training."""

    def state_dict(self) -> dict[str, Any]:
        """What it has kept so far, plain."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take that up again."""


class BestEpoch:
    """Keeps the weights of the best epoch of one network: as measured, or the last of a given number."""

    def __init__(
        self,
        network: nn.Module,
        measure: Callable[[], dict[str, float]] | None,
        better: Callable[[Mapping[str, float], Mapping[str, float]], bool],
        *,
        patience: int,
        epochs: int | None,
    ) -> None:
        self.network, self.measure, self.better = network, measure, better
        self.patience, self.epochs = patience, epochs
        self.row: dict[str, float] | None = None
        self.state: dict[str, Tensor] = {}

    def __call__(self, row: dict[str, float]) -> bool:
        if self.measure is None:
            is_best = row["epoch"] == self.epochs
        else:
            row |= self.measure()
            is_best = self.row is None or self.better(row, self.row)
        if is_best:
            self.row, self.state = row, copy_of_state(self.network)
        return self.row is not None and row["epoch"] - self.row["epoch"] >= self.patience

    def state_dict(self) -> dict[str, Any]:
        return {"row": self.row, "state": self.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.row, self.state = state["row"], state["state"]


def fit_to(
    log: EncodedLog,
    build: Callable[[], Learner],
    options: FitOptions,
    *,
    seed: int,
    train_rows: NDArray[np.int64],
    valid_rows: NDArray[np.int64] | None,
    better: Callable[[Mapping[str, float], Mapping[str, float]], bool],
    epochs: int | None = None,
    progress: Progress | None = None,
    checkpoint: Checkpoint | None = None,
) -> FitResult:
    """Train one network. With `valid_rows`, measure it there after each epoch and keep the best: `better(new, best)`
    compares two rows of the history. Without, run exactly `epochs` and keep the last.

    `build` is called within the seeded generator.
    """
    if (valid_rows is None) == (epochs is None):
        raise ValueError("expected either rows to stop by or a number of epochs, not both and not neither")
    if epochs is not None and epochs < 1:
        raise ValueError(f"epochs: expected at least 1, got {epochs}")

    with seeded(seed):
        learner = build()
        best = BestEpoch(
            learner.network,
            None if valid_rows is None else lambda: learner.measure(log, valid_rows),
            better,
            patience=options.patience,
            epochs=epochs,
        )
        history = run_epochs(
            log,
            learner,
            options,
            seed=seed,
            train_rows=train_rows,
            epochs=options.max_epochs if epochs is None else epochs,
            after_epoch=best,
            progress=progress,
            checkpoint=checkpoint,
        )
    assert best.row is not None
    return FitResult(best.state, int(best.row["epoch"]), history)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within, torch draws from this seed; afterwards its generator stands where it stood."""
    in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if in_use else []):
        torch.manual_seed(seed)
        yield


@dataclass
class _Standing:
    """Where training stands, between two batches: what a checkpoint holds beside weights, moments and generators."""

    epoch: int = 1
    batches: int = 0
    """Done in this epoch."""
    rows: int = 0
    """Seen in this epoch."""
    totals: dict[str, float] = field(default_factory=dict)
    """Sums of this epoch's figures over rows."""
    history: list[dict[str, float]] = field(default_factory=list)
    is_over: bool = False

    def begin_epoch(self) -> None:
        self.epoch, self.batches, self.rows, self.totals = self.epoch + 1, 0, 0, {}


def run_epochs(
    log: EncodedLog,
    learner: Learner,
    options: FitOptions,
    *,
    seed: int,
    train_rows: NDArray[np.int64],
    epochs: int,
    after_epoch: AfterEpoch,
    progress: Progress | None = None,
    checkpoint: Checkpoint | None = None,
) -> list[dict[str, float]]:
    """The loop: shuffle, step, average, tell; one row an epoch of what was shown and measured.

    The learner is moved to the log's device, and left there with its last step's weights. With a checkpoint, goes on
    from where that stands.
    """
    keep_freed_memory()
    shuffler = np.random.default_rng([seed, 1])
    learner.to(log.device)
    optimizer = Optimizer(
        learner,
        learner.parameter_groups(),
        learning_rate=options.learning_rate,
        averaged_steps=options.averaged_steps,
        batch_rows=min(options.batch_rows, len(train_rows)),
    )
    divergence = Divergence(learner.setting)
    at = _Standing()
    shuffled_from = shuffler.bit_generator.state

    def save() -> None:
        assert checkpoint is not None
        if not parallel.is_first():
            return
        checkpoint.save(
            identity,
            {
                "standing": asdict(at),
                "learner": learner.state_dict(),
                "optimizer": optimizer.state_dict(),
                "shuffled_from": json.dumps(shuffled_from),
                "torch": _generators(),
                "divergence": divergence.state_dict(),
                "kept": after_epoch.state_dict(),
            },
        )

    place: list[str | int] = [log.device.type, optimizer.tables_by_rows]
    identity = "" if checkpoint is None else _identity(learner, options, seed, train_rows, epochs, place)
    if checkpoint is not None:  # weights, two moments, the running mean, the best epoch
        checkpoint.expect(5 * sum(weight.nbytes for weight in learner.parameters()))
    if checkpoint is not None and (state := checkpoint.load(identity)) is not None:
        at = _Standing(**state["standing"])
        learner.load_state_dict(state["learner"])
        optimizer.load_state_dict(state["optimizer"])
        shuffler.bit_generator.state = json.loads(state["shuffled_from"])
        _set_generators(state["torch"])
        divergence.load_state_dict(state["divergence"])
        after_epoch.load_state_dict(state["kept"])

    while at.epoch <= epochs and not at.is_over:
        learner.train()
        shuffled_from = shuffler.bit_generator.state
        for rows in batches(shuffler.permutation(train_rows), options.batch_rows, skip=at.batches):
            own, weight = parallel.share_of(rows)
            with products_in(options.precision, log.device.type):
                loss = learner.loss(log.batch(own), own)
            done = at.epoch - 1 + (at.rows + len(rows)) / len(train_rows)
            optimizer.step(loss.objective * weight, options.rate_factor(done))
            figures = parallel.sum_figures({name: value * weight for name, value in _numbers(loss.shown).items()})
            if refusal := divergence.after_step(figures, at.epoch, optimizer.steps):
                if checkpoint is not None:  # going on from there would end here again
                    checkpoint.remove()
                raise refusal
            for name, value in figures.items():
                at.totals[name] = at.totals.get(name, 0.0) + value * len(rows)
            at.rows += len(rows)
            at.batches += 1
            if progress is not None:
                progress((at.epoch - 1) * len(train_rows) + at.rows, epochs * len(train_rows), f"epoch {at.epoch}")
            if checkpoint is not None and checkpoint.is_due(within_epoch=True) and at.rows < len(train_rows):
                save()
        row = {"epoch": at.epoch} | {name: total / at.rows for name, total in at.totals.items()}
        with optimizer.averaged():
            at.is_over = parallel.first_says(after_epoch(row))
        at.history.append(row)
        at.begin_epoch()
        shuffled_from = shuffler.bit_generator.state
        if checkpoint is not None and checkpoint.is_due(within_epoch=False):
            save()
    optimizer.close()
    if progress is not None:
        progress(epochs * len(train_rows), epochs * len(train_rows), f"ended with epoch {len(at.history)}")
    return at.history


def _numbers(shown: Mapping[str, Tensor]) -> dict[str, float]:
    """Figures of a step as numbers: one wait for a GPU, not one a figure."""
    found = torch.stack([value.detach().double() for value in shown.values()]).tolist()
    return dict(zip(shown, found, strict=True))


def _identity(
    learner: Learner, options: FitOptions, seed: int, rows: NDArray[np.int64], epochs: int, place: Sequence[str | int]
) -> str:
    """What two fits that could go on from one another's state have in common; `place` is where its tables lie."""
    shapes = [[name, list(weight.shape)] for name, weight in learner.named_parameters()]
    facts = [options.model_dump(mode="json"), seed, epochs, shapes, list(place)]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    digest.update(np.ascontiguousarray(rows).data)
    return digest.hexdigest()


def _generators() -> list[Tensor]:
    """Where torch's random numbers stand: dropout draws from them."""
    has_cuda = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return [torch.random.get_rng_state(), *(torch.cuda.get_rng_state_all() if has_cuda else ())]


def _set_generators(states: Sequence[Tensor]) -> None:
    torch.random.set_rng_state(states[0])
    if states[1:] and len(states) == 1 + torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states[1:])


def _plain(fields: Fields, side: str) -> int:
    return sum(spec.side == side and not spec.is_sequence for spec in fields)


def embedding_penalty(network: nn.Module, batch: Encoded, weight: float) -> Tensor | float:
    """`weight` times half the squared length of the vectors that the batch looks up, a row: a pooled sequence is one
    vector, of an unpooled one each element is."""
    if not weight:
        return 0.0
    embedding: FieldEmbedding = network.embedding  # type: ignore[assignment]
    penalty: Tensor = embedding(batch).joined().square().sum(dim=(1, 2)).mean()
    for name in embedding.unpooled:
        penalty = penalty + embedding.elements(batch, name)[1:].square().sum() / len(batch.candidates)
    return weight * (0.5 * penalty)


def copy_of_state(network: nn.Module) -> dict[str, Tensor]:
    """A network's weights that later steps do not change, in the CPU's memory."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in network.state_dict().items()}


def batches(rows: NDArray[np.int64], size: int, *, skip: int = 0) -> Iterator[NDArray[np.int64]]:
    """Consecutive pieces of `rows` but the first `skip`; the last may be short."""
    for start in range(skip * size, len(rows), size):
        yield rows[start : start + size]


def answers(
    log: EncodedLog, network: nn.Module, rows: NDArray[np.integer]
) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
    """Logits and hints of `rows` in evaluation mode, piece by piece: which of them, [b], and [b, H] or None.

    The network stands on the log's device, and so do they.
    """
    keep_freed_memory()
    network.eval()
    for start in range(0, len(rows), SCORE_ROWS):
        piece = slice(start, min(start + SCORE_ROWS, len(rows)))
        with torch.inference_mode():
            logit, hint = network(log.batch(rows[piece]))
        yield piece, logit, hint


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
    for piece, found, _ in answers(log, network, rows):
        logit[piece] = found.cpu().numpy()
        if progress is not None:
            progress(piece.stop, len(rows), "scoring")
    return logit


def rows_to_learn_from(
    log: EncodedLog, parts: Sequence[Part], share: Share | None = None, negatives: Negatives = EVERY_ROW
) -> NDArray[np.int64]:
    """Rows of the parts, or a copy's share of them; `SplitError` where there is nothing to learn from or to stop by."""
    rows = negatives.of(log, log.rows(parts))
    names = " + ".join(part.name.lower() for part in parts)
    if negatives.keep < 1:
        names += f", of the others than clicks a share of {negatives.keep:g} (negatives.keep)"
    if len(rows) == 0:
        raise SplitError(f"{names}: expected rows, got none; look at the split of the recipe")
    if share is not None:
        rows = share.of(log, rows)
        names = f"{names}, {share}"
    if len(np.unique(log.label[rows])) < 2:
        raise SplitError(f"{names}: expected clicks and non-clicks, got {len(rows)} rows of one kind")
    return rows
