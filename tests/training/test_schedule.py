"""The learning rate over a fit: up, down, and the same whether a table's rows wait or not."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional

from tests.training.small_log import write_small_log
from tests.training.test_optimizer import Small, batch
from training.data.encoded_log import Part
from training.distillation.distill import DistillOptions
from training.fit import optimizer as optimizer_module
from training.fit.checkpoint import Checkpoint
from training.fit.loop import FitOptions, NetworkSpec, fit
from training.fit.optimizer import Optimizer
from training.fit.schedule import factor


def test_it_rises_over_the_warm_up_and_falls_to_nothing_over_the_rest():
    def of(schedule: str, *epochs: float) -> list[float]:
        return [factor(schedule, done, warmup_epochs=2, max_epochs=10) for done in epochs]  # type: ignore[arg-type]

    assert of("constant", 0.5, 1, 2, 6, 10) == [0.25, 0.5, 1, 1, 1]
    assert of("linear", 0.5, 1, 2, 6, 10) == [0.25, 0.5, 1, 0.5, 0]
    assert of("cosine", 0.5, 1, 2, 4, 6, 10) == pytest.approx([0.25, 0.5, 1, (1 + math.sqrt(0.5)) / 2, 0.5, 0])


def test_by_default_it_stays_as_it_is():
    assert {FitOptions().rate_factor(done) for done in (0.001, 1, 5.5, 12)} == {1.0}
    assert {DistillOptions().rate_factor(done) for done in (0.001, 1, 5.5, 30)} == {1.0}


@pytest.mark.parametrize("wanted", [12, 13.5])
def test_a_warm_up_that_never_ends_is_refused(wanted: float):
    with pytest.raises(ValidationError, match="warmup_epochs: expected less than max_epochs, 12, got"):
        FitOptions(warmup_epochs=wanted)


def trained(rates: Callable[[int], float]) -> Small:
    torch.manual_seed(0)
    network = Small(4)
    groups = [
        {"params": list(network.embedding.parameters()), "lr": 0.0005},
        {"params": list(network.layer.parameters())},
    ]
    optimizer = Optimizer(network, groups, learning_rate=0.001, averaged_steps=5, batch_rows=8)
    for step in range(100):
        rows, label = batch(step)
        optimizer.step(functional.binary_cross_entropy_with_logits(network(rows), label), rates(step))
    optimizer.close()
    return network


def test_rows_that_wait_replay_each_step_at_its_own_rate(monkeypatch: pytest.MonkeyPatch):
    """Groups keep their proportions, and a table by rows is the table trained whole."""

    def rates(step: int) -> float:
        return factor("cosine", (step + 1) / 50, warmup_epochs=0.5, max_epochs=2)

    monkeypatch.setattr(optimizer_module, "LARGE", 0.0)
    waiting = trained(rates)
    monkeypatch.setattr(optimizer_module, "LARGE", float("inf"))
    whole, constant = trained(rates), trained(lambda step: 1.0)

    for one, other, third in zip(waiting.parameters(), whole.parameters(), constant.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
        assert (other - third).abs().max() > 1e-3


def test_a_fit_that_was_interrupted_goes_on_at_the_rate_where_it_stood(tmp_path: Path):
    """To the bit, also within an epoch."""
    log = write_small_log(tmp_path / "log", rows=1500)
    spec = NetworkSpec(network="dnn", options={"dim": 4, "hidden": [8], "init_sd": 0.1})
    options = FitOptions(learning_rate=0.01, batch_rows=128, max_epochs=4, schedule="cosine", warmup_epochs=0.5)

    class StoppedError(Exception):
        pass

    def stop(done: float, total: float, note: str = "") -> None:
        if done > 2.4 * total / 4:
            raise StoppedError

    always = Checkpoint(tmp_path / "checkpoint.pt", share_of_time=1e9, within_epoch_seconds=0)
    what = {"seed": 1, "train": [Part.TRAIN], "valid": None, "epochs": 4}
    with pytest.raises(StoppedError):
        fit(log, spec, options, **what, progress=stop, checkpoint=always)
    went_on = fit(log, spec, options, **what, checkpoint=always)
    unbroken = fit(log, spec, options, **what)

    assert all(np.array_equal(went_on.state[name], unbroken.state[name]) for name in unbroken.state)
    constant = fit(log, spec, options.model_copy(update={"schedule": "constant"}), **what)
    assert any(not np.array_equal(constant.state[name], unbroken.state[name]) for name in unbroken.state)
