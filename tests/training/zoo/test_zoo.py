"""Every network is the formula on its paper's pages, learns, and answers alike in whatever form a batch comes."""

from __future__ import annotations

import copy
import inspect
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.training.zoo.formulas import FORMULAS, slow_logits
from tests.training.zoo.rows import FIELDS, NEEDS_HISTORY, VARIANTS, in_row_form, options, random_batch
from training.errors import NetworkError
from training.fit.loop import embedding_penalty
from training.zoo import NETWORKS, Encoded, FieldEmbedding, FieldSpec, build, default_of, options_of
from training.zoo.embedding import segment_mean

DOCUMENT = (Path(__file__).parents[3] / "docs" / "training.md").read_text(encoding="utf-8")
NO_HINT = {"lr", "fm", "ffm"}


def network_of(variant: str, *, seed: int = 1) -> nn.Module:
    """A small network whose weights are all random: zero biases would hide a missing one."""
    name, changed = VARIANTS[variant]
    torch.manual_seed(seed)
    network = build(name, FIELDS, **options(name) | changed).eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.4)
    return network


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_network_is_its_formula(variant: str) -> None:
    """The fast code equals the equations written one row, one field, one pair at a time, in both forms of a batch."""
    network = network_of(variant)
    batch = random_batch(4, 9, longest=4)

    split_form, _ = network(batch)
    row_form, _ = network(in_row_form(batch))

    expected = slow_logits(variant, network, batch)
    np.testing.assert_allclose(split_form.detach().numpy(), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(row_form.detach().numpy(), expected, rtol=1e-4, atol=1e-5)


def test_every_network_has_a_formula() -> None:
    """A new network is under test as soon as it is in the registry, or this says what is missing."""
    assert set(NETWORKS) <= set(FORMULAS)
    assert set(FORMULAS) <= set(VARIANTS)


@pytest.mark.parametrize("variant", VARIANTS)
def test_split_and_row_form_give_the_same(variant: str) -> None:
    """Computing the context once a request changes the cost and nothing else: 23 candidates of 5 requests, and one."""
    network = network_of(variant, seed=2)
    for batch in (random_batch(5, 23, seed=3), random_batch(1, 1, seed=4), random_batch(3, 7, longest=0)):
        split_logit, split_hint = network(batch)
        row_logit, row_hint = network(in_row_form(batch))

        torch.testing.assert_close(split_logit, row_logit, rtol=1e-5, atol=1e-5)
        if split_hint is not None:
            torch.testing.assert_close(split_hint, row_hint, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_hint_is_the_hidden_vector_before_the_logit(name: str) -> None:
    """LR, FM and FFM have nothing to imitate but their logit; FinalMLP has two streams; the others one perceptron."""
    network = build(name, FIELDS, **options(name)).eval()

    _, hint = network(random_batch(2, 4))

    if name in NO_HINT:
        assert hint is None
    else:
        assert hint.shape == (4, 6 + 8 if name == "finalmlp" else 6)
        assert (hint >= 0).all()


LAST_OF_ALL = {"dnn", "ipnn", "onn", "din"}
"""Networks whose logit is their last layer on the hint and nothing beside."""


@pytest.mark.parametrize("name", sorted(set(NETWORKS) - NO_HINT - {"finalmlp"}))
def test_the_logit_is_the_last_layer_on_the_hint_and_what_stands_beside(name: str) -> None:
    """Another weight on the hint moves the logit by just that times the hint; where nothing stands beside, the logit
    is the last layer on the hint."""
    network, batch = network_of(name, seed=8), random_batch(3, 7)
    with torch.no_grad():
        logit, hint = network(batch)
        if name in LAST_OF_ALL:
            torch.testing.assert_close(logit, network.last(hint).squeeze(1), rtol=1e-5, atol=1e-5)
        change = torch.randn(hint.shape[1])
        network.last.weight[0, -len(change) :] += change  # of what is joined, the hint comes last
        moved, same = network(batch)

    assert torch.equal(hint, same)
    torch.testing.assert_close(moved - logit, hint @ change, rtol=1e-4, atol=1e-4)


def test_finalmlp_hint_is_both_streams_as_the_logit_meets_them() -> None:
    """The logit from the two halves of the hint alone: two linear forms and a bilinear one, head by head."""
    network, batch = network_of("finalmlp", seed=8), random_batch(3, 7)
    weights = {label: value.double() for label, value in network.state_dict().items()}
    with torch.no_grad():
        logit, hint = network(batch)
    first, second = hint.double().split([6, 8], dim=1)

    linear = hint.double() @ weights["last.weight"][0] + weights["last.bias"]
    heads = [stream.unflatten(1, (2, -1)) for stream in (first, second)]  # [N, heads, width / heads]
    expected = linear + torch.einsum("nhi,hij,nhj->n", heads[0], weights["fusion"], heads[1])
    torch.testing.assert_close(logit.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_learns(variant: str) -> None:
    """Each parameter receives a gradient; a part left out of the sum would not."""
    network = network_of(variant, seed=4)

    network(in_row_form(random_batch(6, 40)))[0].sigmoid().sum().backward()

    for label, parameter in network.named_parameters():
        assert parameter.grad is not None, label
        assert parameter.grad.abs().sum() > 0, label


@pytest.mark.parametrize("name", NETWORKS)
def test_embedding_l2_is_half_the_squared_length_of_the_vectors_of_a_row(name: str) -> None:
    """Of every network; of LR, whose vectors are one number wide, of its weights."""
    network = network_of(name)
    batch = in_row_form(random_batch(4, 9))

    penalty = embedding_penalty(network, batch, 0.1)
    penalty.backward()

    vectors = network.embedding(batch).joined().detach()
    expected = sum(0.5 * float(vector @ vector) for row in vectors for vector in row) / len(vectors)
    for history in network.embedding.unpooled:  # DIN's: not pooled, so each element counts
        elements = network.embedding.elements(batch, history)[1:].detach()
        assert len(elements) > 0
        expected += sum(0.5 * float(vector @ vector) for vector in elements) / len(vectors)
    assert penalty.item() == pytest.approx(0.1 * expected, rel=1e-4)
    assert network.embedding.table.grad.abs().max() > 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_are_those_of_the_formula(variant: str) -> None:
    """Of each parameter along a random direction: what the slow formula changes by in float64, central differences."""
    network, batch = network_of(variant, seed=6), random_batch(3, 5)
    network(in_row_form(batch))[0].sigmoid().sum().backward()
    exact = copy.deepcopy(network).double()

    def clicks() -> float:
        return float((1 / (1 + np.exp(-slow_logits(variant, exact, batch)))).sum())

    step, rng = 1e-6, torch.Generator().manual_seed(7)
    for (label, parameter), ours in zip(exact.named_parameters(), network.parameters(), strict=True):
        direction = torch.randn(parameter.shape, generator=rng, dtype=torch.float64)
        before = parameter.detach().clone()
        ends = []
        for sign in (1, -1):
            parameter.data = before + sign * step * direction
            ends.append(clicks())
        parameter.data = before
        slope = (ends[0] - ends[1]) / (2 * step)
        assert float((ours.grad.double() * direction).sum()) == pytest.approx(slope, rel=2e-3, abs=1e-4), label


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_are_the_same_in_both_forms(variant: str) -> None:
    """In the row form, which trains, as in the split form: a layer with a backward of its own is in the first alone."""
    gradients = []
    for form in (lambda batch: batch, in_row_form):
        network = network_of(variant, seed=5)
        network(form(random_batch(4, 30)))[0].sigmoid().sum().backward()
        gradients.append(dict(network.named_parameters()))

    for label, parameter in gradients[0].items():
        torch.testing.assert_close(parameter.grad, gradients[1][label].grad, rtol=1e-3, atol=1e-5, msg=label)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_learns_and_its_seed_says_how(name: str) -> None:
    """On a planted cross of user and ad the loss falls by a fifth in 60 steps; the same seed, the same logits."""
    batch = in_row_form(random_batch(64, 256, seed=6))
    clicked = ((batch.context[:, 0] + batch.candidates[:, 0]) % 3 == 0).float()

    def trained(seed: int) -> tuple[float, float, torch.Tensor]:
        torch.manual_seed(seed)
        network = build(name, FIELDS, **options(name) | {"init_sd": 0.1})
        optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
        losses = []
        for _ in range(60):
            logit, _ = network(batch)
            loss = functional.binary_cross_entropy_with_logits(logit, clicked)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses[0], losses[-1], logit.detach()

    first, last, logit = trained(7)

    assert last < 0.8 * first
    assert torch.equal(logit, trained(7)[2])
    assert not torch.equal(logit, trained(8)[2])


@pytest.mark.parametrize(
    ("name", "count"),
    [(name, n) for name in sorted(set(NETWORKS) - NEEDS_HISTORY) for n in (1, 2) if (name, n) != ("fibinet", 1)],
)
@pytest.mark.parametrize("side", ["context", "candidate"])
def test_fields_may_all_lie_on_one_side(name: str, side: str, count: int) -> None:
    """A log with no context field, with no candidate field or with one field trains and scores like any other."""
    torch.manual_seed(5)
    fields = (FieldSpec("a", 6, side), FieldSpec("b", 4, side))[:count]
    network = build(name, fields, **options(name)).eval()
    ids = torch.tensor([[0, 1], [5, 3], [2, 0]], dtype=torch.int32)[:, :count]
    nothing = torch.zeros(3, 0, dtype=torch.int32)
    context, candidates = (ids, nothing) if side == "context" else (nothing, ids)

    row_form, _ = network(Encoded(context, candidates))
    split, _ = network(Encoded(context, candidates, torch.arange(3, dtype=torch.int32)))

    torch.testing.assert_close(split, row_form, rtol=1e-5, atol=1e-6)


def test_segment_mean_takes_the_given_vector_for_an_empty_segment() -> None:
    """Empty segments at the start, in the middle, at the end, and nothing but empty ones."""
    vectors = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 9.0]])
    empty = torch.tensor([-1.0, -2.0])

    means = segment_mean(vectors, torch.tensor([0, 0, 2, 2, 3, 3]), empty)
    nothing = segment_mean(vectors[:0], torch.tensor([0, 0, 0]), empty)

    torch.testing.assert_close(means, torch.stack([empty, torch.tensor([2.0, 3.0]), empty, vectors[2], empty]))
    torch.testing.assert_close(nothing, torch.stack([empty, empty]))


@pytest.mark.parametrize("name", ["dnn", "din"])
def test_an_empty_sequence_is_the_id_0(name: str) -> None:
    """A request without history and one whose history is the single missing id score the same, pooled or attended."""
    torch.manual_seed(6)
    network = build(name, FIELDS, **options(name)).eval()
    one = torch.ones(1, 2, dtype=torch.int32)
    tags = (torch.tensor([3, 4]), torch.tensor([0, 2]))

    empty, _ = network(
        Encoded(one, one, None, {"history": (torch.tensor([]).int(), torch.tensor([0, 0])), "tags": tags})
    )
    missing, _ = network(Encoded(one, one, None, {"history": (torch.tensor([0]), torch.tensor([0, 1])), "tags": tags}))

    torch.testing.assert_close(empty, missing)


def test_din_looks_at_the_last_elements_and_no_further() -> None:
    """What came before the last `max_length` ads changes nothing; their order does not either."""
    network = network_of("din, tags attend to two")
    one, index = torch.ones(1, 2, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)

    def logit(history: list[int]) -> torch.Tensor:
        sequences = {
            name: (torch.tensor(ids), torch.tensor([0, len(ids)]))
            for name, ids in {"history": history, "tags": [7]}.items()
        }
        return network(Encoded(one, one, index, sequences))[0]

    assert torch.equal(logit([3, 4]), logit([9, 8, 3, 4]))
    torch.testing.assert_close(logit([3, 4]), logit([4, 3]))
    assert not torch.allclose(logit([3, 4]), logit([4]))


@pytest.mark.parametrize(
    ("fields", "targets", "said"),
    [
        (FIELDS[3:], None, r"expected a sequence among the context's fields.* got the sequences \[\]"),
        (FIELDS[:3], None, r"got the sequences \['history'\] and the candidate's fields \[\]"),
        (FIELDS, {"tags": "ad"}, r"targets: expected sequences of the context \['history'\], got 'tags'"),
        (FIELDS, {"history": "user"}, r"targets.history: expected one of the candidate's fields \['ad'.*got 'user'"),
    ],
)
def test_din_says_what_it_misses(fields: tuple[FieldSpec, ...], targets: dict[str, str] | None, said: str) -> None:
    """A log without a history, or a target that is not there, is refused before any training."""
    with pytest.raises(NetworkError, match=said):
        build("din", fields, dim=4, hidden=(8,), targets=targets)


def test_teachers_and_student_never_share_embeddings() -> None:
    """Two networks over the same fields own two tables."""
    first, second = build("dnn", FIELDS, dim=4, hidden=(8,)), build("dnn", FIELDS, dim=4, hidden=(8,))

    assert first.embedding.table.data_ptr() != second.embedding.table.data_ptr()


@pytest.mark.parametrize(
    ("name", "changed", "said"),
    [
        ("deepfmm", {}, r"expected one of .*'deepfm'.* got 'deepfmm'"),
        ("dnn", {"dims": 4}, r"network 'dnn': expected options among .*'dim'.* got \['dims'\]"),
        ("fm", {"hidden": [8]}, r"network 'fm': expected options among .* got \['hidden'\]"),
        ("dnn", {"dim": 0}, r"options.dim: expected a whole number of at least 1, got 0 for network 'dnn'"),
        ("dnn", {"dim": True}, "dim: expected a whole number of at least 1, got True"),
        ("dnn", {"hidden": []}, r"hidden: expected a list of whole numbers of at least 1, not empty, got \[\]"),
        ("dnn", {"hidden": 64}, "hidden: expected a list .* got 64"),
        ("dnn", {"dropout": 1}, "dropout: expected a share from 0 to below 1, got 1"),
        ("dnn", {"init_sd": "1e-3"}, "init_sd: expected a number of at least 0, got '1e-3'"),
        ("dcn", {"cross_layers": 0}, "cross_layers: expected a whole number of at least 1, got 0"),
        ("fibinet", {"bilinear": "none"}, "bilinear: expected all, each or interaction, got 'none'"),
        ("din", {"targets": ["ad"]}, "targets: expected a mapping of sequence fields .* got"),
        ("finalmlp", {"heads": 5}, r"heads: expected a divisor of the streams' last widths 6 and 8, got 5"),
    ],
)
def test_what_a_network_does_not_know_is_refused(name: str, changed: dict[str, object], said: str) -> None:
    """A mistyped network, option or value in a recipe says what there is."""
    known = options(name) if name in NETWORKS else {}
    with pytest.raises(NetworkError, match=said):
        build(name, FIELDS, **known | changed)


def test_fibinet_says_what_it_misses() -> None:
    """Pairs need two fields."""
    with pytest.raises(NetworkError, match="expected at least two fields to make pairs of, got 1"):
        build("fibinet", FIELDS[:1], dim=4, hidden=(8,))


def test_an_option_without_a_default_has_to_be_given() -> None:
    """How large a network is, a recipe says."""
    with pytest.raises(NetworkError, match=r"network 'dnn': expected the options \['hidden'\] too"):
        build("dnn", FIELDS, dim=4)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_documents_its_paper_its_options_and_their_defaults(name: str) -> None:
    """Paper, equation and shapes in the file's docstring, options in the class's, defaults in docs/training.md."""
    network = NETWORKS[name]

    paper = re.sub(r"(?<=\S)\n(?=\S)", " ", sys.modules[network.__module__].__doc__)  # paragraphs as one line
    assert re.search(r"[12][09]\d\d", paper.split("\n\n")[0])
    assert "logit = " in paper
    assert "logit [B]" in paper
    assert re.search(r"\[B, [DF1]", paper)  # and the shapes of what it is made of
    assert ("is the hint" in paper or "are the hint" in paper) == (name not in NO_HINT)
    assert all(f"`{option}`" in inspect.getdoc(network) for option in options_of(name))
    row = next(line for line in DOCUMENT.splitlines() if line.startswith(f"| `{name}` |"))
    for option in options_of(name) - {"dim", "hidden", "dropout", "init_sd"}:
        default = default_of(name, option)
        shown = {None: "null"}.get(default, list(default) if isinstance(default, tuple) else default)
        assert f"`{option}: {shown}`" in row


def test_fields_out_of_order_or_twice_are_refused() -> None:
    """The order of ids is a contract: context before candidate, each name once."""
    with pytest.raises(ValueError, match="context fields before candidate"):
        FieldEmbedding((FieldSpec("ad", 3, "candidate"), FieldSpec("user", 3, "context")), 4)
    with pytest.raises(ValueError, match="distinct"):
        FieldEmbedding((FieldSpec("ad", 3, "candidate"), FieldSpec("ad", 3, "candidate")), 4)
    with pytest.raises(ValueError, match="size of at least 1"):
        FieldSpec("ad", 0, "candidate")


def test_an_id_outside_its_field_is_refused() -> None:
    """The compiled look-up checks what torch's would: nothing is read from beyond a table, or from the next field."""
    fields = (FieldSpec("user", 3, "context"), FieldSpec("seen", 4, "context", is_sequence=True))
    embedding = FieldEmbedding((*fields, FieldSpec("ad", 5, "candidate")), 2)

    def batch(user: int, seen: int) -> Encoded:
        ids = torch.tensor([[user]], dtype=torch.int32), torch.tensor([[4]], dtype=torch.int32)
        return Encoded(*ids, None, {"seen": (torch.tensor([seen], dtype=torch.int32), torch.tensor([0, 1]))})

    assert embedding(batch(2, 3)).joined().shape == (1, 3, 2)
    for user, seen in ((3, 0), (-1, 0), (0, 4), (0, -1)):
        with pytest.raises(IndexError, match=r"id in 0\.\.size-1 of its field, got one outside"):
            embedding(batch(user, seen))
