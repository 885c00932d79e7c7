"""Every network once more, slowly: one row, one field, one pair at a time, in float64, from its paper's equations.

Nothing is shared with `training/zoo`: not the look-up, not the pooling of sequences, not a layer. A formula gets a
network's weights by name and one candidate with its context, and gives the logit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from torch import nn

from tests.training.zoo.rows import FIELDS
from training.zoo import Encoded

Array = NDArray[np.float64]
Weights = dict[str, Array]


class Row:
    """Ids of one candidate and its context by field: one id, or those of a sequence, where none is the id 0.

    Fields stand in the order of an embedding: context before candidate, plain before sequences on each side.
    """

    def __init__(self, batch: Encoded, candidate: int) -> None:
        request = candidate if batch.request_index is None else int(batch.request_index[candidate])
        self.ids: dict[str, list[int]] = {}
        for side, table, place in (
            ("context", batch.context, request),
            ("candidate", batch.candidates, candidate),
        ):
            on_side = [spec for spec in FIELDS if spec.side == side]
            for column, spec in enumerate(spec for spec in on_side if not spec.is_sequence):
                self.ids[spec.name] = [int(table[place, column])]
            for spec in (spec for spec in on_side if spec.is_sequence):
                values, offsets = batch.sequences[spec.name]
                self.ids[spec.name] = values[offsets[place] : offsets[place + 1]].tolist() or [0]

    def elements(self, table: Array, field: str) -> list[Array]:
        """The vector of each id of a field."""
        before = sum(spec.size for spec in FIELDS[: [spec.name for spec in FIELDS].index(field)])
        return [table[before + id_] for id_ in self.ids[field]]

    def vectors(self, table: Array, *, without: tuple[str, ...] = ()) -> list[Array]:
        """The mean of each field's vectors."""
        return [mean(self.elements(table, field)) for field in self.ids if field not in without]


def mean(vectors: list[Array]) -> Array:
    return sum(vectors) / len(vectors)


def relu(x: Array) -> Array:
    return np.where(x > 0, x, 0.0)


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def pairs(count: int) -> list[tuple[int, int]]:
    return list(combinations(range(count), 2))


def in_order_of_pairs(count: int, in_context: int) -> list[tuple[int, int]]:
    """Pairs within the context first: the order of weights that each pair has one of."""
    return sorted(pairs(count), key=lambda pair: pair[1] >= in_context)


def above(w: Weights, layers: str, first: Array) -> Array:
    """ReLU, then the further layers, (W h + b, ReLU) each."""
    hidden = relu(first)
    for name in named(w, layers, "weight"):
        hidden = relu(w[name] @ hidden + w[name.replace("weight", "bias")])
    return hidden


def named(w: Weights, prefix: str, suffix: str) -> Iterator[str]:
    return (name for name in w if name.startswith(prefix) and name.endswith(suffix))


def mlp(w: Weights, x: Array) -> Array:
    return above(w, "hidden.", w["first.weight"] @ x + w["first.bias"])


def lr(w: Weights, row: Row) -> float:
    return float(w["first_order.bias"] + sum(row.vectors(w["first_order.weights.table"]))[0])


def fm(w: Weights, row: Row) -> float:
    x = row.vectors(w["embedding.table"])
    return lr(w, row) + sum(x[i] @ x[j] for i, j in pairs(len(x)))


def ffm(w: Weights, row: Row) -> float:
    x = [vector.reshape(len(FIELDS), -1) for vector in row.vectors(w["embedding.table"])]
    return lr(w, row) + sum(x[i][j] @ x[j][i] for i, j in pairs(len(x)))


def dnn(w: Weights, row: Row) -> float:
    hidden = mlp(w, np.concatenate(row.vectors(w["embedding.table"])))
    return (w["last.weight"] @ hidden + w.get("last.bias", 0.0)).item()


def widedeep(w: Weights, row: Row) -> float:
    return lr(w, row) + dnn(w, row)


def deepfm(w: Weights, row: Row) -> float:
    return fm(w, row) + dnn(w, row)


def ipnn(w: Weights, row: Row) -> float:
    x = row.vectors(w["embedding.table"])
    products = np.array([x[i] @ x[j] for i, j in in_order_of_pairs(6, 3)])
    first = w["first.weight"] @ np.concatenate(x) + w["products.linear.weight"] @ products + w["first.bias"]
    return (w["last.weight"] @ above(w, "hidden.", first) + w["last.bias"]).item()


def onn(w: Weights, row: Row) -> float:
    x = [vector.reshape(len(FIELDS), -1) for vector in row.vectors(w["embedding.table"])]
    copies = np.concatenate([x[i][i] for i in range(len(x))])
    products = np.array([x[i][j] @ x[j][i] for i, j in in_order_of_pairs(6, 3)])
    first = w["first.weight"] @ copies + w["products.linear.weight"] @ products + w["first.bias"]
    return (w["last.weight"] @ above(w, "hidden.", first) + w["last.bias"]).item()


def nfm(w: Weights, row: Row) -> float:
    x = row.vectors(w["embedding.table"])
    pooled = sum(x[i] * x[j] for i, j in pairs(len(x)))
    return lr(w, row) + (w["last.weight"] @ mlp(w, pooled)).item()


def dcn(w: Weights, row: Row) -> float:
    start = np.concatenate(row.vectors(w["embedding.table"]))
    *crosses, last = w["crosses.weight"]
    x = start
    for cross, bias in zip(crosses, w["cross_biases"], strict=True):
        x = start * (x @ cross) + bias + x
    return last @ x + dnn(w, row)


def dcnv2(w: Weights, row: Row) -> float:
    start = np.concatenate(row.vectors(w["embedding.table"]))
    x = start
    for cross in ("first_cross.weight", *named(w, "crosses.", "weight")):
        x = start * (w[cross] @ x + w[cross.replace("weight", "bias")]) + x
    return (w["last.weight"] @ np.concatenate([x, mlp(w, start)]) + w["last.bias"]).item()


def gdcn(w: Weights, row: Row) -> float:
    start = np.concatenate(row.vectors(w["embedding.table"]))
    crosses = ["first_cross.weight", *named(w, "crosses.", "weight")]
    gates = ["first_gate.weight", *named(w, "gates.", "weight")]
    x = start
    for cross, gate in zip(crosses, gates, strict=True):
        x = start * (w[cross] @ x + w[cross.replace("weight", "bias")]) * sigmoid(w[gate] @ x) + x
    return (w["last.weight"] @ np.concatenate([x, mlp(w, start)]) + w["last.bias"]).item()


def xdeepfm(w: Weights, row: Row) -> float:
    start = row.vectors(w["embedding.table"])
    maps, pooled = start, []
    for name in named(w, "cin.", ""):
        maps = [
            sum(w[name][h, i, j] * maps[i] * start[j] for i in range(len(maps)) for j in range(len(start)))
            for h in range(len(w[name]))
        ]
        pooled += [one.sum() for one in maps]
    return lr(w, row) + dnn(w, row) + (w["last_cin.weight"] @ np.array(pooled)).item()


def fibinet(w: Weights, row: Row) -> float:
    x = row.vectors(w["embedding.table"])
    squeezed = relu(w["squeeze.weight"] @ np.array([vector.mean() for vector in x]))
    weights = relu(w["excite.weight"] @ squeezed)
    u = [weight * vector for weight, vector in zip(weights, x, strict=True)]

    def bilinear(vectors: list[Array], matrices: Array) -> Array:
        """Matrices: one in all, one a field, or one a pair."""
        order = in_order_of_pairs(6, 3)
        place = {1: lambda i, j: 0, 6: lambda i, j: i, 15: lambda i, j: order.index((i, j))}[len(matrices)]
        return np.concatenate([(vectors[i] @ matrices[place(i, j)]) * vectors[j] for i, j in order])

    p, q = bilinear(x, w["plain_pairs.weight"]), bilinear(u, w["weighted_pairs.weight"])
    first = w["first.weight"] @ p + w["first_weighted.weight"] @ q + w["first.bias"]
    return lr(w, row) + (w["last.weight"] @ above(w, "hidden.", first)).item()


def autoint(w: Weights, row: Row) -> float:
    x = row.vectors(w["embedding.table"])
    for name in named(w, "interacting.", "weight"):
        query, key, value, residual = np.split(w[name], 4)  # each [heads * head_dim, width]
        heads = [slice(0, 3), slice(3, 6)]
        above_x = []
        for i in range(len(x)):
            parts = []
            for head in heads:
                scores = np.array([(query[head] @ x[i]) @ (key[head] @ x[k]) for k in range(len(x))])
                attention = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
                parts.append(sum(attention[k] * (value[head] @ x[k]) for k in range(len(x))))
            above_x.append(relu(np.concatenate(parts) + residual @ x[i]))
        x = above_x
    return (w["last_interacting.weight"] @ np.concatenate(x)).item() + dnn(w, row)


def finalmlp(w: Weights, row: Row) -> float:
    x = row.vectors(w["embedding.table"])
    e = np.concatenate(x)
    outs = []
    for stream, seen in (("1", np.concatenate(x[:3])), ("2", np.concatenate(x[3:]))):
        layers = [w[name] for name in named(w, f"gate_{stream}.", "")]  # W, b, W, b
        gate = 2 * sigmoid(layers[2] @ relu(layers[0] @ seen + layers[1]) + layers[3])
        first = w[f"first_{stream}.weight"] @ (gate * e) + w[f"first_{stream}.bias"]
        outs.append(above(w, f"hidden_{stream}.", first))
    heads = len(w["fusion"])
    parts = zip(np.split(outs[0], heads), w["fusion"], np.split(outs[1], heads), strict=True)
    fused = sum(left @ matrix @ right for left, matrix, right in parts)
    return (w["last.weight"] @ np.concatenate(outs) + w["last.bias"]).item() + fused


def din(w: Weights, row: Row, target: str | None = None, looked_at: int = 20) -> float:
    table = w["embedding.table"]
    x = row.vectors(table, without=("history",))
    if target is None:
        query = w["whole.weight"] @ np.concatenate(x[2:])
    else:
        query = mean(row.elements(table, target))

    def prelu(name: str, values: Array) -> Array:
        return np.where(values > 0, values, w[name] * values)

    interest = np.zeros_like(query)
    for element in row.elements(table, "history")[-looked_at:]:
        unit = "attentions.0."
        of_element = w[unit + "of_element.weight"] @ element + w[unit + "of_element.bias"]
        of_query = w[unit + "of_query.weight"] @ query
        hidden = prelu(
            unit + "layers.0.weight", of_element + of_query + w[unit + "of_product.weight"] @ (element * query)
        )
        hidden = w[unit + "layers.1.weight"] @ hidden + w[unit + "layers.1.bias"]
        hidden = prelu(unit + "layers.2.weight", hidden)
        weight = w[unit + "layers.3.weight"] @ hidden + w[unit + "layers.3.bias"]
        interest = interest + weight * element
    return (w["last.weight"] @ mlp(w, np.concatenate([*x, interest])) + w["last.bias"]).item()


FORMULAS: dict[str, Callable[[Weights, Row], float]] = {
    "lr": lr,
    "fm": fm,
    "ffm": ffm,
    "dnn": dnn,
    "widedeep": widedeep,
    "ipnn": ipnn,
    "nfm": nfm,
    "deepfm": deepfm,
    "dcn": dcn,
    "xdeepfm": xdeepfm,
    "fibinet": fibinet,
    "autoint": autoint,
    "dcnv2": dcnv2,
    "finalmlp": finalmlp,
    "gdcn": gdcn,
    "onn": onn,
    "din": din,
    "din, one field attends": lambda w, row: din(w, row, target="ad"),
    "din, tags attend to two": lambda w, row: din(w, row, target="tags", looked_at=2),
}
"""The formula of every network; variants of a network that another formula says are here too."""


def slow_logits(variant: str, network: nn.Module, batch: Encoded) -> Array:
    """The formula of a variant, row by row: [N]."""
    formula = FORMULAS.get(variant, FORMULAS[variant.split(",")[0]])
    weights = {name: value.double().numpy() for name, value in network.state_dict().items()}
    return np.array([formula(weights, Row(batch, candidate)) for candidate in range(len(batch.candidates))])
