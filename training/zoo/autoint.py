"""AutoInt+ (Song et al., CIKM 2019, arXiv:1810.11921, section 4; the perceptron beside it is the plus, section 5).

One interacting layer, x [F, W] -> y [F, heads * d], where each head h has its own Q, K, V:

    alpha_{i,k} = softmax_k(<Q_h x_i, K_h x_k>)        y_i = ReLU([sum_k alpha_{i,k} V_h x_k for each h] + W_res x_i)

    logit = <w, y_1; ...; y_F of the last layer> + <w', MLP([v_1; ...; v_F])> + b

v_i [B, D], y_i [B, heads * d] of F fields; the perceptron's last layer [B, H] is the hint; logit [B].

Inner products are not divided by sqrt(d), as in the paper. On a CPU the attention is trained by `attention.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from training.fit.precision import in_float32
from training.zoo.attention import can_interact, interact
from training.zoo.embedding import Encoded, FieldEmbedding, Fields
from training.zoo.layers import Perceptron, SplitLinear


class AutoInt(nn.Module):
    """Self-attention among fields beside a perceptron. Options: `dim`, `hidden`, `dropout`, `init_sd`;
    `attention_layers`; `heads` of each; `head_dim` d, the width of a head."""

    def __init__(
        self,
        fields: Fields,
        *,
        dim: int,
        hidden: Sequence[int],
        attention_layers: int = 3,
        heads: int = 2,
        head_dim: int = 32,
        dropout: float = 0.0,
        init_sd: float = 0.01,
    ) -> None:
        super().__init__()
        self.embedding = FieldEmbedding(fields, dim, init_sd=init_sd)
        self.heads, self.head_dim = heads, head_dim
        widths = [dim] + [heads * head_dim] * (attention_layers - 1)
        self.interacting = nn.Sequential(*(InteractingLayer(width, heads, head_dim) for width in widths))
        self.last_interacting = nn.Linear(len(fields) * heads * head_dim, 1, bias=False)
        self.first = SplitLinear(self.embedding.widths, hidden[0])
        self.hidden = Perceptron(hidden, dropout=dropout)
        self.last = nn.Linear(hidden[-1], 1)

    def forward(self, batch: Encoded) -> tuple[Tensor, Tensor | None]:
        """N encoded rows -> logit [N] and hint [N, hidden[-1]], the perceptron's last layer."""
        vectors = self.embedding(batch)
        interacted = self._interacted(vectors.joined())
        hint = self.hidden(self.first(vectors))
        return (interacted + self.last(hint)).squeeze(1), hint

    def _interacted(self, rows: Tensor) -> Tensor:
        """[N, F, D] -> the attention's share of the logit, [N, 1]."""
        if self.training and can_interact(rows, self.head_dim):
            return interact(rows, self.heads, list(self.interacting.parameters()), self.last_interacting.weight)
        share: Tensor = self.last_interacting(self.interacting(rows).flatten(1))
        return share


class InteractingLayer(nn.Module):
    """Every field attends to every field: [N, F, width] -> [N, F, heads * head_dim]."""

    def __init__(self, width: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.project = nn.Linear(width, 4 * heads * head_dim, bias=False)  # Q, K, V and W_res, of all heads
        self.heads = (heads, head_dim)

    def forward(self, x: Tensor) -> Tensor:
        return in_float32(self._attended, x)

    def _attended(self, x: Tensor) -> Tensor:
        query, key, value, residual = self.project(x).chunk(4, dim=2)  # [N, F, heads * head_dim]
        query, key, value = (part.unflatten(2, self.heads).transpose(1, 2) for part in (query, key, value))
        attended = functional.scaled_dot_product_attention(query, key, value, scale=1.0)  # [N, heads, F, head_dim]
        return functional.relu(attended.transpose(1, 2).flatten(2) + residual)
