"""Adam, and the running mean of weights that is measured and kept: for whole tensors, and row by row for large tables.

    m <- b1 m + (1 - b1) g        v <- b2 v + (1 - b2) g^2                 (Kingma and Ba, ICLR 2015, algorithm 1)
    w <- w - rate m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + epsilon)        mean <- mean + share (w - mean)

A batch looks up a few in a hundred rows of a large embedding table; the others have a zero gradient, but dense Adam
moves them all the same, from what is left of m, and takes longer for it than the network for its products. Here such a
row waits: when it is next looked up, and at the end of an epoch, the steps it missed are replayed, with the same
arithmetic, so that all that anybody reads is what dense Adam would have there (to 1e-5, tested). This is not the "lazy"
Adam that leaves missed steps out: that is another optimizer, with other results.

A table is trained by rows where it is large beside what a batch can look up (`LARGE`), in memory of the CPU, in float32
and in one process; elsewhere it is a tensor like any other. On a GPU dense Adam for a table of a gigabyte costs a step
what reading and writing some ten gigabytes of its memory does, a few milliseconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.fit import kernels, parallel
from training.fit.threads import share_out
from training.zoo.embedding import FieldEmbedding, Segments, Wanted, have_kernels, unknown_id

B1, B2, EPSILON = 0.9, 0.999, 1e-8
REPLAYED = 128
"""Steps that are replayed one by one: b1^128 is 1.4e-6 of the last step's pull, less than a float32 weight can show."""
LARGE = 2.0
"""A table of more rows than this times the look-ups of a batch waits; smaller ones are faster whole."""


class Optimizer:
    """Trains a module's parameters until it is closed: look-ups of its large tables go through it meanwhile.

    `groups` as for torch's optimizers: `params`, and perhaps `lr`. `batch_rows` is the size of a batch.
    """

    def __init__(
        self,
        module: nn.Module,
        groups: Sequence[dict[str, Any]],
        *,
        learning_rate: float,
        averaged_steps: int,
        batch_rows: int,
    ) -> None:
        self.averaged_steps = averaged_steps
        self.steps = 0
        rates = {id(weight): group.get("lr", learning_rate) for group in groups for weight in group["params"]}
        found = (part for part in module.modules() if isinstance(part, FieldEmbedding))
        large = [table for table in found if id(table.table) in rates and waits(table, batch_rows)]
        self._tables = [RowsOfTable(table, rates[id(table.table)]) for table in large]
        for table in self._tables:
            table.embedding.trained_by = table
        by_rows = {id(table.table) for table in large}
        rest = [
            group | {"params": [weight for weight in group["params"] if id(weight) not in by_rows]} for group in groups
        ]
        rest = [group for group in rest if group["params"]]
        self._dense = (
            torch.optim.Adam(rest, lr=learning_rate, betas=(B1, B2), eps=EPSILON, fused=True) if rest else None
        )
        self._rates = [] if self._dense is None else [group["lr"] for group in self._dense.param_groups]
        self._trained: list[Tensor] = [weight for group in rest for weight in group["params"]]
        self._means = [weight.detach().clone() for weight in self._trained]

    @property
    def tables_by_rows(self) -> int:
        """How many tables are trained by rows."""
        return len(self._tables)

    def step(self, objective: Tensor, rate_factor: float = 1.0) -> None:
        """Down the gradient of a batch's objective, at the learning rates times a factor."""
        if self._dense is not None:
            self._dense.zero_grad()
        objective.backward()  # type: ignore[no-untyped-call]
        parallel.sum_gradients(self._trained)
        self.steps += 1
        # The first steps weigh as in a plain mean, so that the random start is soon forgotten.
        share = max(1 / self.steps, 1 / self.averaged_steps)
        if self._dense is not None:
            for group, rate in zip(self._dense.param_groups, self._rates, strict=True):
                group["lr"] = rate * rate_factor
            self._dense.step()
            torch._foreach_lerp_(self._means, [weight.detach() for weight in self._trained], share)
        for table in self._tables:
            table.step(share, rate_factor)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within, the means stand in the module, whole."""
        _exchange(self._trained, self._means)
        for table in self._tables:
            table.show_means()
        try:
            yield
        finally:
            _exchange(self._trained, self._means)

    def state_dict(self) -> dict[str, Any]:
        """All that going on needs: dicts, lists, numbers and tensors. Weights of tables trained by rows are in it."""
        return {
            "steps": self.steps,
            "dense": None if self._dense is None else self._dense.state_dict(),
            "means": self._means,
            "tables": [table.state_dict() for table in self._tables],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.steps = state["steps"]
        if self._dense is not None:
            self._dense.load_state_dict(state["dense"])
            torch._foreach_copy_(self._means, state["means"])
        for table, found in zip(self._tables, state["tables"], strict=True):
            table.load_state_dict(found, self.steps)

    def close(self) -> None:
        """The module looks up for itself again, and has the weights of the last step."""
        for table in self._tables:
            table.embedding.trained_by = None
            table.show_weights()


def waits(embedding: FieldEmbedding, batch_rows: int) -> bool:
    """Whether rows of this table wait for their next look-up."""
    table, fields = embedding.table, embedding.context_fields + embedding.candidate_fields
    return (
        have_kernels(table)
        and table.dtype == torch.float32
        and len(table) > LARGE * batch_rows * max(fields, 1)
        and not parallel.is_shared()
    )


class RowsOfTable:
    """Adam for one table, where every row is as far as its last look-up.

    `state` [rows, 4, D] holds a row's w, m, v and mean side by side, because they are read and written together. The
    table's own parameter is only a picture meanwhile: of the means while they are shown, of w when training has ended.
    """

    def __init__(self, embedding: FieldEmbedding, learning_rate: float) -> None:
        self.embedding, self.learning_rate = embedding, learning_rate
        table = embedding.table.detach()
        self._state = torch.zeros(len(table), 4, embedding.dim)
        self._state[:, 0] = table
        self._state[:, 3] = table
        self._marks = np.zeros((len(table), 2), dtype=np.int32)
        self._done = 0
        """Steps."""
        self._steps = np.zeros((3, 1), dtype=np.float32)
        self._forgotten = np.zeros(1)
        k = np.arange(REPLAYED + 1)
        self._decays = np.stack([B1**k, B2 ** (k / 2), B2**k]).astype(np.float32)
        self._count = 0
        """Of the rows that the step under way has looked up: the next four hold so many."""
        self._touched = np.empty(0, dtype=np.int32)
        self._since = np.empty(0, dtype=np.int32)
        self._weights = torch.empty(0, embedding.dim)
        self._gradient = torch.empty(0, embedding.dim)

    @property
    def weights(self) -> Tensor:
        """Of the rows of this step, caught up: [rows, D]."""
        return self._weights

    @property
    def gradient(self) -> Tensor:
        """Of the rows of this step."""
        return self._gradient

    @property
    def whole_gradient(self) -> None:
        """Nothing for autograd: rows are trained here."""

    def locate(self, wanted: Wanted) -> Wanted:
        """What is wanted as places among the rows of this step, which are caught up."""
        segments = wanted.segments
        before = self._count
        self._reserve(before + wanted.plain.size + sum(len(one.ids) + 1 for one in segments))
        plain = self._number(wanted.plain, *wanted.where[:2])
        ids = [self._number_range(one.ids, one.first, one.size) for one in segments]
        empty = [int(self._number_range(np.zeros(1, dtype=np.int32), one.empty, 1)[0]) for one in segments]
        self._catch_up(self._touched, self._since, self._weights, slice(before, self._count))
        where = np.stack([np.zeros_like(wanted.where[0]), np.full_like(wanted.where[1], self._count), wanted.where[2]])
        return Wanted(
            wanted.fields,
            plain,
            where,
            tuple(
                Segments(numbers, one.offsets, 0, self._count, missing, one.place)
                for one, numbers, missing in zip(segments, ids, empty, strict=True)
            ),
        )

    def step(self, share: float, rate_factor: float = 1.0) -> None:
        """Adam for the rows that were looked up; all others wait."""
        self._done += 1
        rate, scale = self._note(share, rate_factor)

        def update(piece: slice) -> None:
            kernels.update(
                self._state.numpy(),
                self._touched[piece],
                self._gradient.numpy()[piece],
                *(rate, scale, share, B1, B2, EPSILON),
            )

        _in_pieces(update, slice(0, self._count))
        self._gradient[: self._count].zero_()
        self._count = 0

    def show_means(self) -> None:
        """The means, up to the last step, into the table."""
        self._show(3)

    def show_weights(self) -> None:
        """The weights of the last step."""
        self._show(0)

    def _show(self, which: int) -> None:
        met = self._marks[:, 0]
        touched = np.flatnonzero((met > 0) & (met < self._done)).astype(np.int32)
        if len(touched):
            self._catch_up(touched, met[touched], None, slice(0, len(touched)))
            met[touched] = self._done
        with torch.no_grad():
            self.embedding.table.copy_(self._state[:, which])

    def state_dict(self) -> dict[str, Any]:
        """Between two steps."""
        arrays = {"met": self._marks[:, 0].copy(), "steps": self._steps, "forgotten": self._forgotten}
        return {"state": self._state} | {name: torch.from_numpy(array) for name, array in arrays.items()}

    def load_state_dict(self, state: dict[str, Any], done: int) -> None:
        self._done, self._count = done, 0
        self._state.copy_(state["state"])
        self._marks[:, 0] = state["met"].numpy()
        self._steps, self._forgotten = state["steps"].numpy().copy(), state["forgotten"].numpy().copy()

    def _note(self, share: float, rate_factor: float) -> tuple[float, float]:
        """What the step just done has multiplied, kept for rows that miss it."""
        t = self._done
        if t >= len(self._forgotten):
            self._steps = np.concatenate([self._steps, np.zeros((3, 1024 + t), dtype=np.float32)], axis=1)
            self._forgotten = np.concatenate([self._forgotten, np.zeros(1024 + t)])
        rate, scale = self.learning_rate * rate_factor / (1 - B1**t), (1 - B2**t) ** -0.5
        self._steps[:, t] = rate, scale, share
        self._forgotten[t] = self._forgotten[t - 1] + math.log(max(1 - share, 1e-300))
        return rate, scale

    def _reserve(self, count: int) -> None:
        """Room for so many rows in a step, a table's rows at most."""
        count = min(count, len(self._marks) + 1)
        have = len(self._touched)
        if count > have:
            more = max(count, 2 * have) - have
            self._touched, self._since = (
                np.concatenate([a, np.empty(more, a.dtype)]) for a in (self._touched, self._since)
            )
            empty = torch.zeros(more, self.embedding.dim)
            self._weights, self._gradient = (torch.cat([a, empty]) for a in (self._weights, self._gradient))

    def _number(self, ids: NDArray[np.integer], first: NDArray[np.int64], size: NDArray[np.int64]) -> NDArray[np.int32]:
        """[N, P] -> the same places, numbered within the step."""
        local = np.empty(ids.shape, dtype=np.int32)
        count = kernels.touch(
            ids, first, size, self._done + 1, self._marks, self._touched, self._since, self._count, local
        )
        if count < 0:
            raise unknown_id()
        self._count = count
        return local

    def _number_range(self, ids: NDArray[np.integer], first: int, size: int) -> NDArray[np.int32]:
        """Those of one field, [K]."""
        return self._number(ids[:, None], np.array([first]), np.array([size]))[:, 0]

    def _catch_up(
        self, touched: NDArray[np.int32], since: NDArray[np.int32], weights: Tensor | None, rows: slice
    ) -> None:
        """Up to the last step done; `weights` receive w."""
        none = np.empty((0, self.embedding.dim), dtype=np.float32)

        def catch_up(piece: slice) -> None:
            kernels.catch_up(
                self._state.numpy(),
                touched[piece],
                since[piece],
                self._done,
                self._steps,
                self._forgotten,
                self._decays,
                EPSILON,
                none if weights is None else weights.numpy()[piece],
            )

        _in_pieces(catch_up, rows)


def _in_pieces(work: Callable[[slice], None], rows: slice) -> None:
    """Rows are independent of one another, so the numbers do not depend on how many threads share them."""
    count = rows.stop - rows.start
    pieces = 1 if count < 4096 else torch.get_num_threads()
    share_out(
        lambda piece: work(slice(rows.start + count * piece // pieces, rows.start + count * (piece + 1) // pieces)),
        pieces,
    )


def _exchange(first: Sequence[Tensor], second: Sequence[Tensor]) -> None:
    """Swap the values of two lists of tensors."""
    with torch.no_grad():
        for one, other in zip(first, second, strict=True):
            kept = one.clone()
            one.copy_(other)
            other.copy_(kept)
