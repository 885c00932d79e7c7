"""Every network is the formula on its first page, whichever of the two forms a batch comes in."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from training.zoo import NETWORKS, Encoded, FieldEmbedding, FieldSpec, build, options_of
from training.zoo.embedding import segment_mean

FIELDS = (
    FieldSpec("user", 50, "context"),
    FieldSpec("device", 7, "context"),
    FieldSpec("history", 30, "context", is_sequence=True),
    FieldSpec("ad", 40, "candidate"),
    FieldSpec("size", 9, "candidate"),
    FieldSpec("tags", 30, "candidate", is_sequence=True),
)


def options(name: str) -> dict[str, object]:
    """Small, with vectors large enough that every term of a formula shows."""
    small = {"dim": 5, "hidden": (12, 6), "init_sd": 0.5, "cross_layers": 3}
    return {option: value for option, value in small.items() if option in options_of(name)}


def random_batch(requests: int, candidates: int, *, seed: int = 0) -> Encoded:
    """A batch in the split form; segments of 0 to 3 elements."""
    rng = np.random.default_rng(seed)

    def ids(rows: int, side: str) -> Tensor:
        sizes = [spec.size for spec in FIELDS if spec.side == side and not spec.is_sequence]
        return torch.from_numpy(rng.integers(0, sizes, (rows, len(sizes))).astype(np.int32))

    def sequence(rows: int) -> tuple[Tensor, Tensor]:
        offsets = np.concatenate([[0], rng.integers(0, 4, rows).cumsum()]).astype(np.int32)
        values = rng.integers(0, 30, offsets[-1]).astype(np.int32)
        return torch.from_numpy(values), torch.from_numpy(offsets)

    index = torch.from_numpy(np.sort(rng.integers(0, requests, candidates)).astype(np.int32))
    sequences = {"history": sequence(requests), "tags": sequence(candidates)}
    return Encoded(ids(requests, "context"), ids(candidates, "candidate"), index, sequences)


def in_row_form(batch: Encoded) -> Encoded:
    """The same rows with every context repeated for each of its candidates."""
    values, offsets = batch.sequences["history"]
    segments = [values[offsets[i] : offsets[i + 1]] for i in batch.request_index]
    ends = torch.tensor([0] + [len(segment) for segment in segments]).cumsum(0)
    sequences = {"history": (torch.cat(segments), ends), "tags": batch.sequences["tags"]}
    return Encoded(batch.context[batch.request_index], batch.candidates, None, sequences)


def slow_vectors(embedding: FieldEmbedding, batch: Encoded) -> list[list[Tensor]]:
    """For every candidate the list of its field vectors, context first, one look-up at a time."""
    first_row, row = {}, 0
    for spec in FIELDS:
        first_row[spec.name], row = row, row + spec.size

    def vectors(side: str, ids: Tensor, i: int) -> list[Tensor]:
        plain = [spec for spec in FIELDS if spec.side == side and not spec.is_sequence]
        found = [embedding.table[first_row[spec.name] + int(ids[i, k])] for k, spec in enumerate(plain)]
        for spec in (spec for spec in FIELDS if spec.side == side and spec.is_sequence):
            values, offsets = batch.sequences[spec.name]
            segment = values[offsets[i] : offsets[i + 1]].tolist() or [0]
            found.append(sum(embedding.table[first_row[spec.name] + value] for value in segment) / len(segment))
        return found

    request = range(len(batch.candidates)) if batch.request_index is None else batch.request_index.tolist()
    return [
        vectors("context", batch.context, request[n]) + vectors("candidate", batch.candidates, n)
        for n in range(len(batch.candidates))
    ]


def slow_mlp(network: nn.Module, first: Tensor) -> Tensor:
    hidden = first.relu()
    for layer in network.hidden.layers:
        if isinstance(layer, nn.Linear):
            hidden = (layer.weight @ hidden + layer.bias).relu()
    return hidden


def slow_first_layer(network: nn.Module, x: list[Tensor]) -> Tensor:
    return network.first.weight @ torch.cat(x) + network.first.bias


def slow_dots(x: list[Tensor]) -> list[Tensor]:
    return [x[i] @ x[j] for i in range(len(x)) for j in range(i + 1, len(x))]


def slow_logits(name: str, network: nn.Module, batch: Encoded) -> Tensor:
    """The docstring's equation, row by row."""
    if hasattr(network, "first_order"):
        weights = slow_vectors(network.first_order.weights, batch)
        first_order = [network.first_order.bias + sum(w) for w in weights]
    if name == "lr":
        return torch.cat(first_order)
    logits = []
    for n, x in enumerate(slow_vectors(network.embedding, batch)):
        if name == "fm":
            logit = first_order[n] + sum(slow_dots(x))
        elif name == "dnn":
            logit = network.last.weight @ slow_mlp(network, slow_first_layer(network, x)) + network.last.bias
        elif name == "deepfm":
            deep = network.last.weight @ slow_mlp(network, slow_first_layer(network, x))
            logit = first_order[n] + sum(slow_dots(x)) + deep
        elif name == "dcnv2":
            x0 = torch.cat(x)
            crossed = x0
            for cross in [network.first_cross, *network.crosses]:
                crossed = x0 * (cross.weight @ crossed + cross.bias) + crossed
            deep = slow_mlp(network, slow_first_layer(network, x))
            logit = network.last.weight @ torch.cat([crossed, deep]) + network.last.bias
        elif name == "ipnn":
            first = slow_first_layer(network, x) + network.products.weight @ torch.stack(slow_dots(x))
            logit = network.last.weight @ slow_mlp(network, first) + network.last.bias
        else:
            raise NotImplementedError(f"write the slow form of {name!r} here")
        logits.append(logit.reshape(1))
    return torch.cat(logits)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_its_formula(name: str) -> None:
    """The fast code equals the equation written one row, one field, one pair at a time."""
    torch.manual_seed(1)
    network = build(name, FIELDS, **options(name)).eval()
    for parameter in network.parameters():  # zero biases would hide a missing one
        nn.init.normal_(parameter, std=0.4)
    batch = random_batch(4, 9)

    logit, _ = network(batch)

    assert logit.shape == (9,)
    torch.testing.assert_close(logit, slow_logits(name, network, batch), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_split_and_row_form_give_the_same_logits(name: str) -> None:
    """Computing the context once a request changes the cost and nothing else."""
    torch.manual_seed(2)
    network = build(name, FIELDS, **options(name)).eval()
    batch = random_batch(5, 23, seed=3)

    split_logit, split_hint = network(batch)
    row_logit, row_hint = network(in_row_form(batch))

    torch.testing.assert_close(split_logit, row_logit, rtol=1e-5, atol=1e-5)
    if split_hint is not None:
        torch.testing.assert_close(split_hint, row_hint, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_only_networks_with_a_hidden_layer_give_a_hint(name: str) -> None:
    """LR and FM have nothing to imitate but their logit; the others give their last hidden layer."""
    network = build(name, FIELDS, **options(name)).eval()

    _, hint = network(random_batch(2, 4))

    if name in ("lr", "fm"):
        assert hint is None
    else:
        assert hint.shape == (4, 6)
        assert (hint >= 0).all()


@pytest.mark.parametrize("name", NETWORKS)
def test_every_parameter_learns(name: str) -> None:
    """Each parameter receives a gradient; a part left out of the sum would not."""
    torch.manual_seed(4)
    network = build(name, FIELDS, **options(name))

    network(in_row_form(random_batch(6, 40)))[0].sigmoid().sum().backward()

    for label, parameter in network.named_parameters():
        assert parameter.grad is not None, label
        assert parameter.grad.abs().sum() > 0, label


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("side", ["context", "candidate"])
def test_fields_may_all_lie_on_one_side(name: str, side: str) -> None:
    """A log with no context field, or with no candidate field, trains and scores like any other."""
    torch.manual_seed(5)
    fields = (FieldSpec("a", 6, side), FieldSpec("b", 4, side))
    network = build(name, fields, **options(name)).eval()
    ids = torch.tensor([[0, 1], [5, 3], [2, 0]], dtype=torch.int32)
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


def test_an_empty_sequence_is_the_id_0() -> None:
    """A request without history and one whose history is the single missing id score the same."""
    torch.manual_seed(6)
    network = build("dnn", FIELDS, **options("dnn")).eval()
    one = torch.ones(1, 2, dtype=torch.int32)
    tags = (torch.tensor([3, 4]), torch.tensor([0, 2]))

    empty, _ = network(
        Encoded(one, one, None, {"history": (torch.tensor([]).int(), torch.tensor([0, 0])), "tags": tags})
    )
    missing, _ = network(Encoded(one, one, None, {"history": (torch.tensor([0]), torch.tensor([0, 1])), "tags": tags}))

    torch.testing.assert_close(empty, missing)


def test_teachers_and_student_never_share_embeddings() -> None:
    """Two networks over the same fields own two tables."""
    first, second = build("dnn", FIELDS, dim=4, hidden=(8,)), build("dnn", FIELDS, dim=4, hidden=(8,))

    assert first.embedding.table.data_ptr() != second.embedding.table.data_ptr()


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    """A mistyped network or option in a recipe says what there is."""
    with pytest.raises(ValueError, match=r"expected one of .*'deepfm'.* got 'deepfmm'"):
        build("deepfmm", FIELDS)
    with pytest.raises(ValueError, match=r"network 'dnn': expected options among .*'dim'.* got \['dims'\]"):
        build("dnn", FIELDS, dims=4)


def test_fields_out_of_order_or_twice_are_refused() -> None:
    """The order of ids is a contract: context before candidate, each name once."""
    with pytest.raises(ValueError, match="context fields before candidate"):
        FieldEmbedding((FieldSpec("ad", 3, "candidate"), FieldSpec("user", 3, "context")), 4)
    with pytest.raises(ValueError, match="distinct"):
        FieldEmbedding((FieldSpec("ad", 3, "candidate"), FieldSpec("ad", 3, "candidate")), 4)
    with pytest.raises(ValueError, match="size of at least 1"):
        FieldSpec("ad", 0, "candidate")
