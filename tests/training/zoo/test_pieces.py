"""A batch taken piece by piece gives what autograd gives, whoever shares the work."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from training.fit import kernels, precision
from training.fit.precision import products_in
from training.zoo import Encoded, Fields, FieldSpec, build
from training.zoo import pieces as pieces_module

ROWS, IDS, MANY_IDS = 2500, 200, 400
"""Two whole pieces and a short one; fields of few ids beside such a batch, and of many."""
PLAIN = tuple(
    FieldSpec(f"field_{i}", MANY_IDS if i % 2 else IDS, "context" if i < 3 else "candidate") for i in range(6)
)
OF_FEW_IDS = tuple(replace(field, size=IDS) for field in PLAIN)
OF_MANY_IDS = tuple(replace(field, size=MANY_IDS) for field in PLAIN)
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

    ids = torch.from_numpy(
        rng.integers(0, [spec.size for spec in fields if not spec.is_sequence], (ROWS, 6)).astype(np.int32)
    )
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


FIELDS = {"plain": PLAIN, "few": OF_FEW_IDS, "many": OF_MANY_IDS, "sequences": WITH_SEQUENCES}


def by_autograd(name: str, fields: Fields, precision: str, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    with monkeypatch.context() as patched:
        patched.setattr(pieces_module, "applies", lambda *_: False)
        return learned(name, fields, precision)


@pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS.keys())
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_are_those_of_autograd(name: str, fields: Fields, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logit and hint too, to a millionth of their length: the same sums in another order."""
    found, expected = learned(name, fields, "float32"), by_autograd(name, fields, "float32", monkeypatch)

    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert (one - other).norm() <= 2e-6 * other.norm()


@pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS.keys())
@pytest.mark.parametrize("name", NETWORKS)
def test_in_bfloat16_gradients_are_as_near_to_exact_as_autograds(
    name: str, fields: Fields, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logit, hint and gradients are off by no more than one and a half times what autograd's are, a tenth at most."""
    exact = by_autograd(name, fields, "float32", monkeypatch)
    expected = by_autograd(name, fields, "bfloat16", monkeypatch)
    found = learned(name, fields)

    def off(numbers: list[Tensor]) -> Tensor:
        return torch.stack([(one - true).norm() / true.norm() for one, true in zip(numbers, exact, strict=True)])

    assert [one.dtype for one in found] == [one.dtype for one in expected]
    assert off(found).max() <= 0.1
    assert off(found).norm() <= 1.5 * off(expected).norm()


@pytest.mark.parametrize("numbers", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", NETWORKS)
def test_threads_do_not_change_the_bits(name: str, numbers: str) -> None:
    """One thread, two, or more than there are pieces."""
    torch.set_num_threads(1)
    alone = learned(name, WITH_SEQUENCES, numbers)
    for count in (2, 3):
        torch.set_num_threads(count)
        for one, other in zip(learned(name, WITH_SEQUENCES, numbers), alone, strict=True):
            assert torch.equal(one, other)


def test_threads_add_to_one_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is made when it is first asked for: were that by two threads at once, what one adds would be lost."""
    torch.set_num_threads(1)
    alone = learned("dnn", WITH_SEQUENCES, "float32")
    zeros_like = torch.zeros_like

    def slowly(*given: Any, **options: Any) -> Tensor:
        time.sleep(0.02)
        return zeros_like(*given, **options)

    monkeypatch.setattr(torch, "zeros_like", slowly)
    torch.set_num_threads(2)
    for one, other in zip(learned("dnn", WITH_SEQUENCES, "float32"), alone, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", NETWORKS)
def test_where_there_is_no_onednn_torch_multiplies(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other libraries, the same products."""
    expected = learned(name, PLAIN, "float32")
    monkeypatch.setattr(precision, "_one_dnn_multiplies", lambda _: False)

    for one, other in zip(learned(name, PLAIN, "float32"), expected, strict=True):
        assert (one - other).norm() <= 2e-6 * other.norm()
    for one, other in zip(learned(name, PLAIN), expected, strict=True):
        assert (one - other).norm() <= 0.1 * other.norm()


@pytest.mark.parametrize("case", ["small", "dropout", "evaluation", "frozen"])
def test_what_is_not_for_pieces_is_left_to_autograd(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few rows in float32, dropout, scoring, and a network of which a part does not learn."""
    monkeypatch.setattr(pieces_module, "hidden_layer", refuse)
    network = build("dnn", PLAIN, dim=8, hidden=[16], dropout=0.5 if case == "dropout" else 0.0)
    assert isinstance(network, nn.Module)
    if case == "frozen":
        next(network.parameters()).requires_grad_(False)
    if case == "evaluation":
        torch.set_grad_enabled(False)
    try:
        rows = batch(PLAIN)
        with products_in("float32" if case == "small" else "bfloat16"):
            network(Encoded(rows.context[:1000], rows.candidates[:1000]) if case == "small" else rows)
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


@pytest.mark.parametrize("column", [0, 1], ids=["of many", "of few"])
def test_an_unknown_id_is_refused_by_whichever_piece_meets_it(column: int) -> None:
    """In the last one here; nothing is read beyond a field's rows."""
    network = build("dnn", PLAIN, dim=8, hidden=[16])
    wrong = batch(PLAIN)
    wrong.candidates[-1, column] = PLAIN[3 + column].size

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

    assert kernels.gather(table, ids, place, place + 500, place, rounded)

    expected = torch.from_numpy(table).bfloat16()
    assert torch.equal(torch.from_numpy(rounded[:, 0].view(np.int16)), expected.view(torch.int16))
    widened = np.zeros_like(table)
    kernels.scatter(widened, ids, place, place, rounded, 0, 1)
    assert torch.equal(torch.from_numpy(widened), expected.float())
