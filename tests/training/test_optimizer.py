"""Adam by rows is dense Adam: whoever waits is told nothing else, however long, in whatever network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.training.small_log import write_small_log
from training.data.encoded_log import EncodedLog, Part
from training.distillation.distill import DistillOptions, EnsembleTargets, fit_student
from training.distillation.together import Cotrain, Epochs, TeacherSpec, fit_together
from training.fit import optimizer as optimizer_module
from training.fit.loop import FitOptions, NetworkSpec, fit
from training.fit.optimizer import REPLAYED, Optimizer, RowsOfTable, waits
from training.fit.precision import Precision
from training.zoo import NETWORKS, Encoded, FieldEmbedding, FieldSpec, options_of

USERS, ADS = 400, 50
FIELDS = (
    FieldSpec("user", USERS, "context"),
    FieldSpec("seen", ADS, "context", is_sequence=True),
    FieldSpec("ad", ADS, "candidate"),
)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> EncodedLog:
    return write_small_log(tmp_path_factory.mktemp("log"), rows=1500)


@pytest.fixture
def by_rows(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Trains every table by rows, or every one whole, however small it is."""
    return lambda wanted: monkeypatch.setattr(optimizer_module, "LARGE", 0.0 if wanted else float("inf"))


class Small(nn.Module):
    """One table, looked up twice a step, and a dense layer."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.embedding = FieldEmbedding(FIELDS, dim, init_sd=0.1)
        self.layer = nn.Linear(3 * dim, 1)

    def forward(self, batch: Encoded) -> torch.Tensor:
        rows = self.embedding(batch).joined()
        again = self.embedding(batch).joined()
        return self.layer(rows.flatten(1))[:, 0] + (rows * again).sum(dim=(1, 2))


def batch(step: int) -> tuple[Encoded, torch.Tensor]:
    """Eight rows of Zipf's users: most of a table waits, some of it for hundreds of steps or for ever."""
    rng = np.random.default_rng(step)
    user = np.minimum(rng.zipf(1.3, 8) - 1, USERS - 1)
    ad = rng.integers(0, ADS, 8)
    offsets = np.concatenate([[0], rng.integers(0, 3, 8).cumsum()])
    ids, seen = (
        np.asarray(values, dtype=np.int32) for values in (np.stack([user, ad]), rng.integers(2, 9, offsets[-1]))
    )
    encoded = Encoded(
        torch.from_numpy(ids[0][:, None]),
        torch.from_numpy(ids[1][:, None]),
        None,
        {"seen": (torch.from_numpy(seen), torch.from_numpy(offsets))},
    )
    return encoded, torch.from_numpy(((user + ad) % 3 == 0).astype(np.float32))


def train(
    dim: int, averaged_steps: int, steps: range, optimizer: Optimizer | None = None, network: Small | None = None
) -> tuple[Small, Optimizer]:
    if network is None or optimizer is None:
        torch.manual_seed(0)
        network = Small(dim)
        groups = [
            {"params": list(network.embedding.parameters()), "lr": 0.0005},
            {"params": list(network.layer.parameters())},
        ]
        optimizer = Optimizer(network, groups, learning_rate=0.001, averaged_steps=averaged_steps, batch_rows=8)
    for step in steps:
        rows, label = batch(step)
        optimizer.step(functional.binary_cross_entropy_with_logits(network(rows), label))
    return network, optimizer


def weights(network: Small, optimizer: Optimizer) -> list[torch.Tensor]:
    """Means, then the weights of the last step."""
    with optimizer.averaged():
        means = network.embedding.table.detach().clone()
    optimizer.close()
    return [means, network.embedding.table.detach().clone(), network.layer.weight.detach().clone()]


@pytest.mark.parametrize(("dim", "averaged_steps"), [(1, 1), (9, 100)])
def test_rows_that_wait_end_where_dense_adam_takes_them(
    by_rows: Callable[[bool], None], dim: int, averaged_steps: int
) -> None:
    """Weights and means agree to 1e-5 after 300 steps, also of rows that waited for longer than is replayed."""
    by_rows(False)
    dense = weights(*train(dim, averaged_steps, range(300)))
    by_rows(True)
    network, optimizer = train(dim, averaged_steps, range(300))
    (rows,) = optimizer._tables
    waited = 300 - rows._marks[rows._marks[:, 0] > 0, 0]
    found = weights(network, optimizer)

    assert waited.max() > REPLAYED
    assert (rows._marks[:, 0] == 0).any()
    for one, other in zip(found, dense, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    assert (dense[1] - train(dim, averaged_steps, range(0))[0].embedding.table).abs().max() > 0.03  # it did learn


def test_means_looked_at_between_steps_change_nothing(by_rows: Callable[[bool], None]) -> None:
    """An epoch's end catches everybody up; training goes on as if nobody had looked."""
    by_rows(True)
    network, optimizer = train(8, 20, range(60))
    with optimizer.averaged():
        pass
    looked = weights(*train(8, 20, range(60, 120), optimizer, network))

    for one, other in zip(looked, weights(*train(8, 20, range(120))), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_the_state_goes_on_to_the_same_bits(by_rows: Callable[[bool], None]) -> None:
    """Saved between two steps and loaded into a fresh optimizer, training ends with identical weights."""
    by_rows(True)
    straight = weights(*train(8, 20, range(120)))
    network, optimizer = train(8, 20, range(60))
    saved = {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
    fresh, going_on = train(8, 20, range(0))
    fresh.load_state_dict(saved["network"])
    going_on.load_state_dict(saved["optimizer"])

    resumed = weights(*train(8, 20, range(60, 120), going_on, fresh))

    for one, other in zip(resumed, straight, strict=True):
        assert torch.equal(one, other)


def test_threads_do_not_change_the_numbers() -> None:
    """Rows shared out among threads give the bits that one thread gives."""
    rng = np.random.default_rng(0)
    fields = (FieldSpec("user", 50_000, "context"), FieldSpec("ad", 50_000, "candidate"))
    ids = [torch.from_numpy(rng.integers(0, 50_000, (6000, 1)).astype(np.int32)) for _ in range(8)]
    before, found = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            torch.manual_seed(0)
            embedding = FieldEmbedding(fields, 4)
            optimizer = Optimizer(
                embedding, [{"params": [embedding.table]}], learning_rate=0.01, averaged_steps=5, batch_rows=6000
            )
            assert isinstance(optimizer._tables[0], RowsOfTable)
            for user, ad in zip(ids[:4], ids[4:], strict=True):
                optimizer.step(embedding(Encoded(user, ad)).joined().square().sum(dim=2).log().sum())
            optimizer.close()
            found.append(embedding.table.detach())
        finally:
            torch.set_num_threads(before)

    assert torch.equal(*found)


def test_only_large_tables_wait() -> None:
    """A table that a batch could look up whole is faster whole."""
    fields = (FieldSpec("user", 10_000, "context"), FieldSpec("ad", 10_000, "candidate"))

    assert waits(FieldEmbedding(fields, 4), batch_rows=100)
    assert not waits(FieldEmbedding(fields, 4), batch_rows=10_000)
    assert not waits(FieldEmbedding(fields, 4).double(), batch_rows=100)


def test_an_id_outside_its_field_is_refused_in_training_too(by_rows: Callable[[bool], None]) -> None:
    """Nothing is trained that lies beyond a field."""
    by_rows(True)
    network, _ = train(4, 5, range(1))
    rows, _ = batch(0)

    with pytest.raises(IndexError, match="got one outside"):
        network(Encoded(rows.context + USERS, rows.candidates, None, rows.sequences))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_may_be_trained_by_rows(log: EncodedLog, by_rows: Callable[[bool], None], name: str) -> None:
    """First-order weights, wide tables, sequences pooled or attended to, and L2: the same fit to 1e-5."""
    small = {"dim": 3, "hidden": [8, 4], "init_sd": 0.1}
    spec = NetworkSpec(network=name, options={key: value for key, value in small.items() if key in options_of(name)})
    options = FitOptions(batch_rows=100, averaged_steps=5, embedding_l2=0.0 if name == "lr" else 1e-3)

    def state() -> dict[str, torch.Tensor]:
        return fit(log, spec, options, seed=1, train=[Part.TRAIN], valid=None, epochs=2).state

    by_rows(False)
    dense = state()
    by_rows(True)
    found = state()

    for weight, tensor in dense.items():
        torch.testing.assert_close(found[weight], tensor, rtol=0, atol=1e-5)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_rows_are_trained_from_pieces_of_a_batch_too(
    log: EncodedLog, by_rows: Callable[[bool], None], precision: Precision
) -> None:
    """Gradients come piece by piece (`pieces.py`): a step of all rows at once ends where dense Adam's."""
    spec = NetworkSpec(network="deepfm", options={"dim": 3, "hidden": [8, 4], "init_sd": 0.1})
    options = FitOptions(batch_rows=1500, averaged_steps=5, precision=precision)

    def state() -> dict[str, torch.Tensor]:
        return fit(log, spec, options, seed=1, train=list(Part), valid=None, epochs=1).state

    by_rows(False)
    dense = state()
    by_rows(True)

    for weight, tensor in state().items():
        torch.testing.assert_close(tensor, dense[weight], rtol=0, atol=1e-6)


def test_students_and_networks_together_may_be_trained_by_rows(
    log: EncodedLog, by_rows: Callable[[bool], None]
) -> None:
    """Distillation and co-training step the same optimizer: several tables, each with its own learning rate."""
    student = NetworkSpec(network="dnn", options={"dim": 3, "hidden": [8, 4], "init_sd": 0.1})
    teachers = {
        name: TeacherSpec(NetworkSpec(network=name, options={"dim": 2, "init_sd": 0.1}), FitOptions(learning_rate=rate))
        for name, rate in (("fm", 0.002), ("ffm", 0.001))
    }
    options = DistillOptions(batch_rows=100, averaged_steps=20)
    targets = EnsembleTargets(np.random.default_rng(0).normal(-1, 1, len(log)))

    def states() -> list[dict[str, torch.Tensor]]:
        alone = fit_student(log, student, options, targets, seed=1, train=[Part.TRAIN], valid=None, epochs=2)
        found = fit_together(
            log,
            Cotrain(kind="cotrain"),
            teachers,
            student,
            options,
            form="per_teacher",
            seed=1,
            train=[Part.TRAIN],
            valid=None,
            epochs=Epochs(2, 1),
        )
        return [alone.state, found.student.state, *(teacher.state for teacher in found.teachers.values())]

    by_rows(False)
    dense = states()
    by_rows(True)
    found = states()

    for one, other in zip(dense, found, strict=True):
        for weight, tensor in one.items():
            torch.testing.assert_close(other[weight], tensor, rtol=0, atol=1e-5)


def test_a_killed_fit_by_rows_goes_on_to_the_same_bits(
    log: EncodedLog, by_rows: Callable[[bool], None], tmp_path: Path
) -> None:
    """A checkpoint holds what rows that wait are waiting for."""
    from training.fit.checkpoint import Checkpoint

    by_rows(True)
    spec = NetworkSpec(network="deepfm", options={"dim": 3, "hidden": [8, 4], "init_sd": 0.1})
    options = FitOptions(batch_rows=100, averaged_steps=20)
    calls = {"train": [Part.TRAIN], "valid": None, "seed": 1, "epochs": 3}
    straight = fit(log, spec, options, **calls)

    def killed(done: float, total: float, note: str = "") -> None:
        if done > 0.5 * total:
            raise KeyboardInterrupt

    checkpoint = Checkpoint(tmp_path / "fit.pt", share_of_time=1e9, within_epoch_seconds=0)
    with pytest.raises(KeyboardInterrupt):
        fit(log, spec, options, **calls, progress=killed, checkpoint=checkpoint)
    assert (tmp_path / "fit.pt").exists()
    resumed = fit(log, spec, options, **calls, checkpoint=checkpoint)

    for weight, tensor in straight.state.items():
        assert torch.equal(resumed.state[weight], tensor)
