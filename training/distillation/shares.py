"""Which training rows each copy of a teacher sees: ensembles of one architecture, S and D of arXiv:2011.04106, Table 4.

    seeds           all rows; copies differ in their start and in the order of their batches (S)
    folds           all rows but its own part of rows drawn at random: every row is new to one copy
    disjoint        its own part of rows drawn at random, and nothing else
    bags            as many rows as there are, drawn with replacement: a row is new to a copy with probability 1/e
    days            its own stretch of consecutive days, and nothing else
    leave_one_out   all rows but those of its own stretch of consecutive days

The paper does not say how its D parts the data; these are the usual ways. Rows are drawn by row, not by user: a
network that never saw a user has nothing to say of the user's id. Of a log whose users come once, parts by days are
parts by user.

`unseen` turns what the copies saw into labels out of sample: of each row, the teachers that did not learn from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from training.data.encoded_log import EncodedLog
from training.errors import SplitError

DAY_US = 86_400_000_000

By = Literal["seeds", "folds", "disjoint", "bags", "days", "leave_one_out"]


class Copies(BaseModel):
    """One teacher as several: how they differ, and how many there are."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    by: By
    """What each copy sees of the training rows."""
    count: int = Field(ge=2, le=100)
    """How many copies; also the number of parts that rows or days are cut into."""

    def share(self, index: int, seed: int) -> Share | None:
        """What copy `index` (from 0) sees; None where it is everything. All copies of a teacher take one `seed`."""
        return None if self.by == "seeds" else Share(self.by, self.count, index, seed)


@dataclass(frozen=True)
class Share:
    """What one copy sees of the rows there are to learn from."""

    by: By
    count: int
    index: int
    seed: int

    def of(self, log: EncodedLog, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows of this copy; from bags, a row may come several times."""
        if self.by == "bags":
            drawn = np.random.default_rng([self.seed, self.index]).integers(0, len(rows), len(rows))
            return rows[np.sort(drawn)]
        part = self._days(log.time[rows]) if self.by in ("days", "leave_one_out") else self._at_random(len(rows))
        is_own: NDArray[np.bool_] = part == self.index
        kept = is_own if self.by in ("days", "disjoint") else ~is_own
        return rows[kept]

    def __str__(self) -> str:
        return f"copy {self.index + 1} of {self.count} by {self.by}"

    def _at_random(self, rows: int) -> NDArray[np.int64]:
        """The part of each row, drawn; parts are as equal as can be."""
        return np.asarray(np.random.default_rng(self.seed).permutation(rows) % self.count)

    def _days(self, time: NDArray[np.int64]) -> NDArray[np.int64]:
        """The part of each row: stretches of equally many days that have rows."""
        days, place = np.unique(time // DAY_US, return_inverse=True)
        if len(days) < self.count:
            raise SplitError(
                f"copies by {self.by}: expected at least {self.count} days of rows to learn from, got {len(days)}; "
                "ask for fewer copies, or by: folds"
            )
        return (place * self.count) // len(days)


def unseen(seen: Sequence[NDArray[np.bool_]]) -> NDArray[np.bool_] | None:
    """[n, M]: of each row, the teachers that did not learn from it; all of them where every one did.

    None where that is every teacher of every row, as it is when all learned from the same rows.
    """
    new = ~np.stack(seen, axis=1)  # [n, M]
    new[~new.any(axis=1)] = True
    return None if new.all() else new
