"""Attention by hand is the formula's, forth and back, of any number of fields and on any number of threads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from training.fit.precision import products_in
from training.zoo import attention

SHAPES = {  # rows, fields, width of a field, heads, width of a head
    "as Criteo": (70, 39, 16, 2, 32),
    "more rows than a thread takes": (attention.CHUNK + attention.PIECE + 1, 5, 4, 1, 8),
    "as many fields as a tile has rows": (3, 4, 5, 1, 16),
    "as many fields as two vectors": (4, 32, 8, 1, 32),
    "one more": (4, 33, 8, 3, 48),
    "heads of half a vector": (9, 21, 8, 2, 24),
    "one row": (1, 5, 8, 2, 16),
}
LAYERS = 3


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def drawn(shape: tuple[int, ...], spread: float = 1.0) -> list[Tensor]:
    """Rows [N, F, W], what weighs the last layer [1, F * H * D], and a projection of each layer [4 * H * D, width]."""
    rows, fields, width, heads, dim = shape
    generator = torch.Generator().manual_seed(0)

    def normal(*sizes: int) -> Tensor:
        return spread * torch.randn(*sizes, generator=generator) / sizes[-1] ** 0.5

    joined = heads * dim
    projections = [normal(4 * joined, width)] + [normal(4 * joined, joined) for _ in range(LAYERS - 1)]
    return [normal(rows, fields, width), normal(1, fields * joined), *projections]


def by_the_formula(rows: Tensor, last: Tensor, *projections: Tensor, heads: int) -> Tensor:
    """Head by head."""
    for projection in projections:
        query, key, value, residual = (rows @ projection.T).chunk(4, dim=2)
        dim = query.shape[2] // heads
        parts = []
        for h in range(heads):
            of = slice(h * dim, (h + 1) * dim)
            scores = torch.einsum("nid,nkd->nik", query[..., of], key[..., of])
            scores = (scores - scores.amax(dim=2, keepdim=True)).exp()
            weights = scores / scores.sum(dim=2, keepdim=True)
            parts.append(torch.einsum("nik,nkd->nid", weights, value[..., of]) + residual[..., of])
        rows = torch.cat(parts, dim=2).clamp_min(0)
    return rows.flatten(1) @ last.T


def learned(given: list[Tensor], heads: int, above: Tensor) -> list[Tensor]:
    """By hand: the share of the logit, and its gradient by everything."""
    rows, last, *projections = tensors = [tensor.clone().requires_grad_() for tensor in given]
    found = attention.interact(rows, heads, projections, last)
    found.backward(above)
    return [found.detach(), *(tensor.grad for tensor in tensors if tensor.grad is not None)]


def upstream(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape[0], 1, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_it_is_its_formula(shape: tuple[int, ...], threads: int):
    torch.set_num_threads(threads)
    given, above, heads = drawn(shape), upstream(shape), shape[3]
    assert attention.can_interact(given[0], shape[4])
    doubles = [tensor.double().requires_grad_() for tensor in given]
    meant = by_the_formula(*doubles, heads=heads)
    meant.backward(above.double())
    found = learned(given, heads, above)
    assert len(found) == 1 + len(doubles)
    for ours, plain in zip(found, [meant.detach(), *(tensor.grad for tensor in doubles)], strict=True):
        assert plain is not None
        torch.testing.assert_close(ours.double(), plain, rtol=1e-4, atol=2e-6 * float(plain.abs().max()))


def test_the_number_of_threads_does_not_change_a_bit():
    shape = SHAPES["more rows than a thread takes"]
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(learned(drawn(shape), shape[3], upstream(shape)))
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))


def test_where_products_are_bfloat16_attention_is_float32_all_the_same():
    shape = SHAPES["as Criteo"]
    exact = learned(drawn(shape), shape[3], upstream(shape))
    with products_in("bfloat16"):
        mixed = learned(drawn(shape), shape[3], upstream(shape))
    assert all(torch.equal(one, two) for one, two in zip(exact, mixed, strict=True))


def test_large_scores_neither_overflow_nor_become_nan():
    """exp(88) is the last that float32 holds; inner products here are in the thousands."""
    shape = (3, 7, 8, 1, 16)
    rows, last, projection, *_ = drawn(shape, spread=20)
    found = learned([rows, last, projection], 1, upstream(shape))
    assert (rows[0] @ projection.T).square().sum(dim=1).max() > 1000
    assert all(tensor.isfinite().all() for tensor in found)


def test_a_number_that_is_none_is_not_hidden():
    """A fit stops at the first NaN: it must vanish neither among the scores of a row nor in a ReLU."""
    shape = (3, 7, 8, 1, 16)
    rows, *rest = drawn(shape)
    rows[1, 2] = torch.nan
    shares, of_rows, *_ = learned([rows, *rest], 1, upstream(shape))
    assert shares[1].isnan().all()
    assert of_rows[1].isnan().any()
    assert shares[[0, 2]].isfinite().all()


@pytest.mark.parametrize(
    ("rows", "dim"),
    [(torch.zeros(2, 3, 4), 16), (torch.zeros(2, 9, 4), 12), (torch.zeros(2, 9, 4, dtype=torch.float64), 16)],
    ids=["three fields", "heads of 12", "double precision"],
)
def test_what_it_does_not_know_is_left_to_torch(rows: Tensor, dim: int):
    assert not attention.can_interact(rows, dim)
