"""Inner-product neural network, IPNN (Qu et al., ICDM 2016, arXiv:1611.00144, section III.B).

    h_1 = W_z [v_1; ...; v_F] + W_p [<v_i, v_j> for i < j] + b        logit = w MLP(h_1) + b'

The paper factorizes W_p to save memory on hundreds of fields; with tens of fields the products themselves are
small, so W_p is a full matrix here, as in the author's own later code.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.zoo.embedding import Encoded, FieldEmbedding, Fields
from training.zoo.layers import Perceptron, SplitLinear


class IPNN(nn.Module):
    """A perceptron on the embeddings and on all their inner products."""

    above_diagonal: Tensor
    place_of_dot: Tensor

    def __init__(
        self, fields: Fields, *, dim: int, hidden: Sequence[int], dropout: float = 0.0, init_sd: float = 0.01
    ) -> None:
        super().__init__()
        count = len(fields)
        self.embedding = FieldEmbedding(fields, dim, init_sd=init_sd)
        self.first = SplitLinear(self.embedding, hidden[0])
        self.products = nn.Linear(count * (count - 1) // 2, hidden[0], bias=False)
        self.hidden = Perceptron(hidden, dropout=dropout)
        self.last = nn.Linear(hidden[-1], 1)
        i, j = torch.triu_indices(count, count, offset=1)
        self.register_buffer("above_diagonal", i * count + j, persistent=False)
        place = torch.full((count * count,), len(i))  # of all dots among the products, or behind them
        place[i * count + j] = torch.arange(len(i))
        self.register_buffer("place_of_dot", place, persistent=False)

    def forward(self, batch: Encoded) -> tuple[Tensor, Tensor | None]:
        """N encoded rows -> logit [N] and hint [N, hidden[-1]]."""
        vectors = self.embedding(batch)
        rows = vectors.joined()  # [N, F, D]
        dots = torch.bmm(rows, rows.transpose(1, 2)).flatten(1)  # [N, F*F]
        if batch.request_index is None:
            products = self.products(dots.index_select(1, self.above_diagonal))  # [N, hidden[0]]
        else:  # served: a product with zeros is 1.7 times as fast as picking columns
            products = functional.linear(dots, self._weights_of_all_dots())
        hint = self.hidden(self.first(vectors) + products)
        return self.last(hint).squeeze(1), hint

    def _weights_of_all_dots(self) -> Tensor:
        """W_p with zeros for i >= j, [hidden[0], F*F]; a constant of an exported graph."""
        return functional.pad(self.products.weight, (0, 1)).index_select(1, self.place_of_dot)
