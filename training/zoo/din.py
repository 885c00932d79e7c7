"""Deep interest network, DIN (Zhou et al., KDD 2018, arXiv:1706.06978, section 4.3): what a user did, seen from the ad.

    e_1, ..., e_T  a user's recent ads        q  the candidate        w_t = MLP_a([e_t; q; e_t * q])
    u = sum_t w_t e_t        logit = w MLP([v_1; ...; v_F; u]) + b

e_t, q, u, v_i [B, D], w_t [B], of up to T elements a row; the perceptron's last layer [B, H] is the hint; logit [B].

In place of the mean over a sequence field of the context stands u, one for each such field. Weights are not
normalized, as in the paper, so that their sum says how much interest there is. An empty sequence is the single id 0, as
everywhere.

Departures: PReLU in MLP_a, which the paper compares with, and not Dice, whose batch statistics would not fit the
average of weights over steps that the training loop keeps. The authors' code also feeds e_t - q, which a layer on e_t
and q has already. A sequence and the candidate field that meets it have tables of their own, as their vocabularies are
their own.

What MLP_a's first layer does with e_t, and the perceptron's with the other fields of the context, is computed once a
request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from training.errors import NetworkError
from training.zoo.embedding import Embedded, Encoded, FieldEmbedding, Fields
from training.zoo.layers import Perceptron, SplitLinear


class DIN(nn.Module):
    """A perceptron on fields and attended histories. Options: `dim`, `hidden`, `dropout`, `init_sd`;

    `targets` maps sequence fields of the context to the candidate field that attends to each, as in
    {recent_ads: ad}: sequences left out are pooled as usual. Without it every sequence of the context is attended to by
    the candidate as a whole, q = W [its vectors]. `attention_hidden` are the widths of MLP_a; `max_length` how many
    elements, the last ones, are looked at.
    """

    def __init__(
        self,
        fields: Fields,
        *,
        dim: int,
        hidden: Sequence[int],
        targets: Mapping[str, str] | None = None,
        attention_hidden: Sequence[int] = (36,),
        max_length: int = 20,
        dropout: float = 0.0,
        init_sd: float = 0.01,
    ) -> None:
        super().__init__()
        self.targets = _checked(fields, targets)
        self.embedding = FieldEmbedding(fields, dim, init_sd=init_sd, unpooled=tuple(self.targets))
        candidates = [spec for spec in fields if spec.side == "candidate"]
        order = [spec.name for spec in sorted(candidates, key=lambda spec: spec.is_sequence)]  # as in `Embedded`
        self.target_places = [order.index(target) for target in self.targets.values()] if targets else []
        self.whole = None if targets else nn.Linear(len(candidates) * dim, dim, bias=False)
        self.attentions = nn.ModuleList(TargetAttention(dim, attention_hidden, max_length) for _ in self.targets)
        context_width, candidate_width = self.embedding.widths
        self.first = SplitLinear((context_width, candidate_width + len(self.targets) * dim), hidden[0])
        self.hidden = Perceptron(hidden, dropout=dropout)
        self.last = nn.Linear(hidden[-1], 1)

    def forward(self, batch: Encoded) -> tuple[Tensor, Tensor | None]:
        """N encoded rows -> logit [N] and hint [N, hidden[-1]], the perceptron's last layer."""
        vectors: Embedded = self.embedding(batch)
        interests = [
            attention(self.embedding.elements(batch, history), batch.sequences[history][1], query, vectors).unsqueeze(1)
            for history, attention, query in zip(self.targets, self.attentions, self._queries(vectors), strict=True)
        ]
        candidates = torch.cat([vectors.candidates, *interests], dim=1)  # [N, Fa + histories, D]
        hint = self.hidden(self.first(Embedded(vectors.context, candidates, vectors.request_index)))
        return self.last(hint).squeeze(1), hint

    def _queries(self, vectors: Embedded) -> list[Tensor]:
        """q of each history, [N, D]."""
        if self.whole is None:
            return [vectors.candidates[:, place] for place in self.target_places]
        return [self.whole(vectors.candidates.flatten(1))] * len(self.targets)


def _checked(fields: Fields, targets: Mapping[str, str] | None) -> dict[str, str]:
    """The histories to attend to, each with its target ("" without); NetworkError for a field that is not there or not
    of the kind."""
    histories = [spec.name for spec in fields if spec.is_sequence and spec.side == "context"]
    candidates = [spec.name for spec in fields if spec.side == "candidate"]
    if not histories or not candidates:
        raise NetworkError(
            "network 'din': expected a sequence among the context's fields, which a candidate's fields attend to; got "
            f"the sequences {histories} and the candidate's fields {candidates}"
        )
    if not targets:
        return dict.fromkeys(histories, "")
    for history, target in targets.items():
        if history not in histories:
            raise NetworkError(
                f"network 'din': targets: expected sequences of the context {histories}, got {history!r}"
            )
        if target not in candidates:
            raise NetworkError(
                f"network 'din': targets.{history}: expected one of the candidate's fields {candidates}, got {target!r}"
            )
    return dict(targets)


class TargetAttention(nn.Module):
    """sum_t w_t e_t over the last T = `length` elements of each request's sequence, w_t by what the candidate is.

    A width of MLP_a, R requests, N candidates, K elements of all sequences together.
    """

    def __init__(self, dim: int, hidden: Sequence[int], length: int) -> None:
        super().__init__()
        self.length = length
        self.of_element = nn.Linear(dim, hidden[0])  # MLP_a's first layer, in the parts that meet e_t, q and e_t * q
        self.of_query = nn.Linear(dim, hidden[0], bias=False)
        self.of_product = nn.Linear(dim, hidden[0], bias=False)
        layers: list[nn.Module] = [nn.PReLU()]
        for width_in, width_out in pairwise(hidden):
            layers += [nn.Linear(width_in, width_out), nn.PReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(hidden[-1], 1))

    def forward(self, elements: Tensor, offsets: Tensor, query: Tensor, vectors: Embedded) -> Tensor:
        """Elements [1 + K, D], the vector of a missing value first, offsets [R + 1] and q [N, D] -> u [N, D]; `vectors`
        are asked only whose request a candidate's is."""
        rows, is_known = self._last_elements(offsets)  # [R, T]
        per_request = torch.unflatten(elements.index_select(0, rows.flatten()), 0, rows.shape)  # e, [R, T, D]
        e = vectors.spread(per_request)  # [N, T, D]
        first = vectors.spread(self.of_element(per_request)) + self.of_query(query).unsqueeze(1)
        weights: Tensor = self.layers(first + self.of_product(e * query.unsqueeze(1)))  # [N, T, 1]
        weights = weights * vectors.spread(is_known).unsqueeze(2)
        return (weights * e).sum(dim=1)

    def _last_elements(self, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of `elements` [R, T], and 1 where there is an element; the last is always there: id 0 if no other is."""
        offsets = offsets.long()
        steps = torch.arange(self.length, device=offsets.device)
        places = offsets[1:].unsqueeze(1) - self.length + steps  # [R, T]
        exists = places >= offsets[:-1].unsqueeze(1)
        is_known = exists | (steps == self.length - 1)
        return torch.where(exists, places + 1, 0), is_known.to(self.of_element.weight.dtype)
