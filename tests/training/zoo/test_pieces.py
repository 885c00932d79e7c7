"""A batch taken piece by piece in bfloat16 gives what autograd gives, whoever shares the work."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from training import kernels
from training.precision import products_in
from training.zoo import Encoded, Fields, FieldSpec, build
from training.zoo import pieces as pieces_module

ROWS, IDS = 2500, 200
"""Two whole pieces and a short one."""
PLAIN = tuple(FieldSpec(f"field_{i}", IDS, "context" if i < 3 else "candidate") for i in range(6))
WITH_SEQUENCES = (
    *PLAIN[:3],
    FieldSpec("seen", IDS, "context", is_sequence=True),
    *PLAIN[3:],
    FieldSpec("tags", IDS, "candidate", is_sequence=True),
)
NETWORKS = ("dnn", "widedeep", "deepfm")


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def batch(fields: Fields) -> Encoded:
    rng = np.random.default_rng(0)

    def elements() -> tuple[Tensor, Tensor]:
        offsets = np.concatenate([[0], rng.integers(0, 4, ROWS).cumsum()])
        return torch.from_numpy(rng.integers(0, IDS, offsets[-1]).astype(np.int32)), torch.from_numpy(offsets)

    ids = torch.from_numpy(rng.integers(0, IDS, (ROWS, 6)).astype(np.int32))
    return Encoded(ids[:, :3], ids[:, 3:], None, {spec.name: elements() for spec in fields if spec.is_sequence})


def learned(name: str, fields: Fields, precision: Any = "bfloat16", **options: Any) -> list[Tensor]:
    """Logit, hint and every gradient, of a loss on both."""
    torch.manual_seed(0)
    network = build(name, fields, dim=8, hidden=[48, 32, 24], init_sd=0.3, **options)
    label = torch.rand(ROWS).round()
    with products_in(precision):
        logit, hint = network(batch(fields))
        loss = functional.binary_cross_entropy_with_logits(logit, label) + 0.1 * hint.float().square().mean()
    loss.backward()
    gradients = [weight.grad for weight in network.parameters()]
    return [logit.detach().float(), hint.detach().float(), *gradients]


def refuse(*_: Any, **__: Any) -> Any:
    raise AssertionError("expected autograd to be asked")


@pytest.mark.parametrize("fields", [PLAIN, WITH_SEQUENCES], ids=["plain", "sequences"])
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_are_those_of_autograd(name: str, fields: Fields, monkeypatch: pytest.MonkeyPatch) -> None:
    """To a hundredth of their length, where one product in bfloat16 is off by half of that; and nearer to float32's
    than twice what autograd's are."""
    exact = learned(name, fields, "float32")
    found = learned(name, fields)
    with monkeypatch.context() as patched:
        patched.setattr(pieces_module, "applies", lambda *_: False)
        expected = learned(name, fields)

    for one, other, true in zip(found, expected, exact, strict=True):
        assert one.dtype == other.dtype
        assert (one - other).norm() <= 0.01 * other.norm()
        assert (one - true).norm() <= 2 * (other - true).norm() + 1e-6


@pytest.mark.parametrize("name", NETWORKS)
def test_threads_do_not_change_the_bits(name: str) -> None:
    """One thread, two, or more than there are pieces."""
    torch.set_num_threads(1)
    alone = learned(name, PLAIN)
    for count in (2, 3):
        torch.set_num_threads(count)
        for one, other in zip(learned(name, PLAIN), alone, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("case", ["float32", "dropout", "evaluation", "frozen"])
def test_what_is_not_for_pieces_is_left_to_autograd(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """float32, dropout, scoring, and a network of which a part does not learn."""
    monkeypatch.setattr(pieces_module, "hidden_layer", refuse)
    network = build("dnn", PLAIN, dim=8, hidden=[16], dropout=0.5 if case == "dropout" else 0.0)
    assert isinstance(network, nn.Module)
    if case == "frozen":
        next(network.parameters()).requires_grad_(False)
    if case == "evaluation":
        torch.set_grad_enabled(False)
    try:
        with products_in("float32" if case == "float32" else "bfloat16"):
            network(batch(PLAIN))
    finally:
        torch.set_grad_enabled(True)


def test_a_batch_of_one_row_and_of_none_is_a_batch() -> None:
    """One row is a short piece; none has gradients of zero."""
    network = build("deepfm", PLAIN, dim=8, hidden=[16])
    for rows in (1, 0):
        ids = torch.ones(rows, 6, dtype=torch.int32)
        with products_in("bfloat16"):
            logit, hint = network(Encoded(ids[:, :3], ids[:, 3:]))
        logit.float().sum().backward()
        assert (len(logit), len(hint)) == (rows, rows)


def test_an_unknown_id_is_refused_by_whichever_piece_meets_it() -> None:
    """In the last one here; nothing is read beyond a field's rows."""
    network = build("dnn", PLAIN, dim=8, hidden=[16])
    wrong = batch(PLAIN)
    wrong.candidates[-1, 0] = IDS

    with products_in("bfloat16"), pytest.raises(IndexError, match="outside"):
        network(wrong)


def test_vectors_are_rounded_as_torch_rounds_them() -> None:
    """To the nearest, ties to even, signs and small numbers included; and back without a loss."""
    rng = np.random.default_rng(0)
    table = rng.normal(size=(500, 3)).astype(np.float32) * np.float32(10) ** rng.integers(-30, 30, (500, 1))
    table = table.astype(np.float32)
    table[:4, 0] = np.array([0x3F808000, 0x3F818000, 0x80000000, 0x00000001], dtype=np.uint32).view(np.float32)
    ids, place = np.arange(500, dtype=np.int32)[:, None], np.zeros(1, dtype=np.int64)
    rounded = np.empty((500, 1, 3), dtype=np.uint16)

    assert kernels.gather_rounded(table.view(np.uint32), ids, place, place + 500, place, rounded)

    expected = torch.from_numpy(table).bfloat16()
    assert torch.equal(torch.from_numpy(rounded[:, 0].view(np.int16)), expected.view(torch.int16))
    widened = np.zeros_like(table)
    kernels.scatter_rounded(widened, ids, place, place, rounded, 0, 1)
    assert torch.equal(torch.from_numpy(widened), expected.float())
