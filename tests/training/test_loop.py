"""Fitting: repeatable, stopped by the rows it may see, refitted for a given number of epochs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from tests.training.small_log import FIELDS, write_small_log
from training.data.encoded_log import VALID, EncodedLog, Part
from training.errors import SplitError
from training.fit.loop import FitOptions, FitResult, NetworkSpec, fit, load_fit, load_network, score
from training.fit.metrics import auc, xauc
from training.zoo import NETWORKS

DNN = NetworkSpec(network="dnn", options={"dim": 4, "hidden": [16, 8], "init_sd": 0.1})
QUICK = FitOptions(learning_rate=0.005, batch_rows=256, max_epochs=4, averaged_steps=5)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> EncodedLog:
    return write_small_log(tmp_path_factory.mktemp("log"), rows=5000)


def logits(log: EncodedLog, spec: NetworkSpec, result: FitResult, rows: np.ndarray | None = None) -> np.ndarray:
    network = spec.build(log.fields)
    network.load_state_dict(result.state)
    return score(log, network, rows)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_learns(log: EncodedLog, name: str) -> None:
    """After a few epochs each orders test rows well above chance, by the truth itself."""
    small = {"dim": 4, "hidden": [16, 8], "init_sd": 0.1}
    spec = NetworkSpec(network=name, options={k: v for k, v in small.items() if k in _options(name)})
    options = FitOptions(learning_rate=0.02, batch_rows=128, max_epochs=6, averaged_steps=20)

    result = fit(log, spec, options, seed=1, train=[Part.TRAIN], valid=[Part.VALID_A])

    test = log.rows([Part.TEST])
    assert xauc(log.truth[test], logits(log, spec, result, test)) > 0.62
    assert result.history[-1]["train_loss"] < result.history[0]["train_loss"]


def test_the_same_seed_gives_the_same_weights(log: EncodedLog) -> None:
    """A fit is a function of log, spec, options and seed, whatever was drawn from torch before it."""
    states = []
    for noise in (3, 4):
        torch.manual_seed(noise)
        states.append(fit(log, DNN, QUICK, seed=7, train=[Part.TRAIN], valid=[Part.VALID_A]).state)
    other = fit(log, DNN, QUICK, seed=8, train=[Part.TRAIN], valid=[Part.VALID_A]).state

    for name, tensor in states[0].items():
        torch.testing.assert_close(tensor, states[1][name], rtol=0, atol=0)
    assert any(not torch.equal(tensor, other[name]) for name, tensor in states[0].items())


def test_a_fit_leaves_torchs_generator_as_it_was(log: EncodedLog) -> None:
    """Training must not make the numbers of its caller repeat."""
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)

    fit(log, DNN, QUICK, seed=1, train=[Part.TRAIN], valid=None, epochs=1)

    assert torch.equal(torch.rand(3), expected)


def test_the_best_epoch_is_kept(log: EncodedLog) -> None:
    """Returned weights are those of the epoch with the highest AUC on the rows it stops by."""
    options = FitOptions(learning_rate=0.05, batch_rows=64, max_epochs=12, patience=2, averaged_steps=5)

    result = fit(log, DNN, options, seed=1, train=[Part.TRAIN], valid=[Part.VALID_A])

    aucs = [row["valid_auc"] for row in result.history]
    rows = log.rows([Part.VALID_A])
    assert result.epochs == int(np.argmax(aucs)) + 1
    assert auc(log.label[rows], logits(log, DNN, result, rows)) == pytest.approx(max(aucs))
    assert len(aucs) in (result.epochs + 2, 12)


def test_a_refit_of_the_same_rows_and_epochs_is_the_first_fit_again(log: EncodedLog) -> None:
    """Stopping early changes which weights are kept, never how they are made."""
    first = fit(log, DNN, QUICK, seed=3, train=[Part.TRAIN], valid=[Part.VALID_A])

    again = fit(log, DNN, QUICK, seed=3, train=[Part.TRAIN], valid=None, epochs=first.epochs)

    for name, tensor in first.state.items():
        torch.testing.assert_close(tensor, again.state[name], rtol=0, atol=0)


def test_a_refit_learns_from_validation_rows_too(log: EncodedLog) -> None:
    """Train + validation is more rows than train alone, and other weights."""
    narrow = fit(log, DNN, QUICK, seed=3, train=[Part.TRAIN], valid=None, epochs=2)

    wide = fit(log, DNN, QUICK, seed=3, train=[Part.TRAIN, *VALID], valid=None, epochs=2)

    assert not torch.equal(narrow.state["last.weight"], wide.state["last.weight"])


def test_labels_a_fit_may_not_see_change_nothing(tmp_path: Path) -> None:
    """Labels outside train do not reach the weights of a fit of fixed length."""
    states = [
        fit(
            write_small_log(tmp_path / str(scramble), rows=1500, scramble_outside_train=scramble),
            DNN,
            QUICK,
            seed=1,
            train=[Part.TRAIN],
            valid=None,
            epochs=2,
        ).state
        for scramble in (False, True)
    ]

    for name, tensor in states[0].items():
        torch.testing.assert_close(tensor, states[1][name], rtol=0, atol=0)


def test_the_kept_weights_are_a_running_mean_of_all_steps(log: EncodedLog) -> None:
    """A plain mean of the first n steps, then w <- w + (step - w) / n; with n = 1 it is the last step."""
    one_batch = FitOptions(learning_rate=0.01, batch_rows=len(log), averaged_steps=1)  # an epoch is one step

    def weights(averaged_steps: int, epochs: int) -> torch.Tensor:
        options = one_batch.model_copy(update={"averaged_steps": averaged_steps})
        return fit(log, DNN, options, seed=2, train=[Part.TRAIN], valid=None, epochs=epochs).state["last.weight"]

    steps = [weights(1, epochs) for epochs in range(1, 6)]

    expected = torch.stack(steps[:3]).mean(dim=0)
    for step in steps[3:]:
        expected = expected + (step - expected) / 3
    torch.testing.assert_close(weights(3, 5), expected, rtol=1e-5, atol=1e-7)


def test_progress_counts_rows_up_to_the_whole(log: EncodedLog) -> None:
    """Rows done never fall and end at the total, early stop or not."""
    seen: list[tuple[float, float]] = []

    fit(
        log,
        DNN,
        QUICK,
        seed=1,
        train=[Part.TRAIN],
        valid=None,
        epochs=2,
        progress=lambda done, total, note="": seen.append((done, total)),
    )

    done = [pair[0] for pair in seen]
    assert done == sorted(done)
    assert seen[-1] == (2 * len(log.rows([Part.TRAIN])),) * 2


@pytest.mark.parametrize("name", ["dnn", "autoint", "xdeepfm", "din"])
def test_products_in_bfloat16_learn_the_same(log: EncodedLog, name: str) -> None:
    """Less of a mantissa in training moves what is learned by little; weights and what is scored stay float32."""
    small = {"dim": 4, "hidden": [16, 8], "init_sd": 0.1, "cin_layers": [4], "attention_layers": 1}
    spec = NetworkSpec(network=name, options={key: value for key, value in small.items() if key in _options(name)})

    found = {
        precision: fit(
            log,
            spec,
            QUICK.model_copy(update={"precision": precision}),
            seed=1,
            train=[Part.TRAIN],
            valid=None,
            epochs=1,
        )
        for precision in ("float32", "bfloat16")
    }

    exact, rough = (result.history[-1]["train_loss"] for result in found.values())
    assert exact != rough
    assert rough == pytest.approx(exact, abs=0.003)
    assert {tensor.dtype for tensor in found["bfloat16"].state.values()} == {torch.float32}


def test_a_saved_fit_scores_the_same(log: EncodedLog, tmp_path: Path) -> None:
    """weights.npz and fit.json bring back the network, its epochs and its curve."""
    result = fit(log, DNN, QUICK, seed=1, train=[Part.TRAIN], valid=[Part.VALID_A])
    result.save(tmp_path, DNN)

    network = load_network(tmp_path, FIELDS)

    np.testing.assert_array_equal(score(log, network), logits(log, DNN, result))
    assert load_fit(tmp_path) == (DNN, result.epochs, result.history)


def test_scoring_takes_any_rows_in_any_order(log: EncodedLog) -> None:
    """A row's logit does not depend on the batch it is scored in."""
    result = fit(log, DNN, QUICK, seed=1, train=[Part.TRAIN], valid=None, epochs=1)
    rows = np.array([4000, 3, 77, 3])

    np.testing.assert_allclose(logits(log, DNN, result, rows), logits(log, DNN, result)[rows], atol=1e-6)


def test_a_part_without_clicks_is_refused_by_name(tmp_path: Path) -> None:
    """A split that leaves one kind of row says which part, before any training."""
    log = write_small_log(tmp_path, rows=10)

    with pytest.raises(SplitError, match="valid_a"):
        fit(log, DNN, QUICK, seed=1, train=[Part.TRAIN], valid=[Part.VALID_A])


def test_a_recipe_with_an_unknown_network_or_option_is_refused() -> None:
    """Mistakes are found when the recipe is read, with what would have been right."""
    with pytest.raises(ValidationError, match=r"expected one of .*got 'dnnn'"):
        NetworkSpec(network="dnnn")
    with pytest.raises(ValidationError, match=r"expected options among .*got \['width'\]"):
        NetworkSpec(network="dnn", options={"width": 3})


def _options(name: str) -> set[str]:
    from training.zoo import options_of

    return options_of(name)
