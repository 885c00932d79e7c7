"""Which rows train, validate and test: by time, a column, files or random folds; validation parted into A, B and C.

Time is the honest one for clicks: a model is asked about tomorrow. A moment never falls into two parts. Validation rows
are parted by a hash of their unit, so that no user is on both sides of a decision; without a unit, by row.
"""

import fnmatch
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import PurePath
from typing import Annotated, Literal
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, model_validator

from training.data.chance import uniform
from training.data.encoded_log import Part
from training.data.timestamps import local_days, start_of_day, to_iso
from training.errors import SplitError

Parts = npt.NDArray[np.uint8]

UNUSED = 255
"""The part of a row that the split leaves out; it is counted and never encoded."""
VALID = int(Part.VALID_A)
"""What a validation row is called until `part_validation` has parted them."""


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class _Split(_Settings):
    validation_shares: tuple[float, float, float] = (1 / 3, 1 / 3, 1 / 3)
    """How much of validation goes to A (stops training), B (fits the gate) and C (decides, calibrates)."""
    validation_seed: NonNegativeInt = 0
    """Another seed parts validation another way."""
    train_share: float = Field(default=1.0, gt=0, le=1)
    """The share of training rows that is used, drawn by row: what less data would have given. A smaller share is part
    of a larger one."""

    @model_validator(mode="after")
    def _shares_are_shares(self) -> "_Split":
        if min(self.validation_shares) <= 0 or abs(sum(self.validation_shares) - 1) > 1e-6:
            raise ValueError(
                f"validation_shares: expected three positive shares that add to 1, got {self.validation_shares}"
            )
        return self


class Fractions(_Settings):
    """The latest `test` of the rows, and the `valid` before them."""

    valid: float = Field(gt=0, lt=1)
    test: float = Field(gt=0, lt=1)

    @model_validator(mode="after")
    def _something_is_left(self) -> "Fractions":
        if self.valid + self.test >= 1:
            raise ValueError(f"fractions: valid + test must leave rows to train on, got {self.valid} + {self.test}")
        return self


class LastDays(_Settings):
    """The last `test` calendar days of the log in the schema's timezone, and the `valid` days before them."""

    valid: PositiveInt
    test: PositiveInt


class Boundaries(_Settings):
    """The moments at which validation and test begin; without an offset they are in the schema's timezone."""

    train: datetime | None = None
    """Rows before it are left out; None takes all."""
    valid: datetime
    test: datetime
    end: datetime | None = None
    """Rows from it on are left out; None takes all."""


class TimeSplit(_Split):
    """Past trains, future tests. Exactly one of the three ways to draw the lines."""

    by: Literal["time"] = "time"
    fractions: Fractions | None = None
    last_days: LastDays | None = None
    boundaries: Boundaries | None = None

    @model_validator(mode="after")
    def _one_way(self) -> "TimeSplit":
        given = [name for name in ("fractions", "last_days", "boundaries") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"expected exactly one of fractions, last_days and boundaries, got {given or 'none'}")
        return self


class ColumnSplit(_Split):
    """A column says it. A value named nowhere refuses the log; values under `ignore` leave their rows out."""

    by: Literal["column"] = "column"
    column: str = "split"
    train: tuple[str | int, ...] = ("train",)
    valid: tuple[str | int, ...] = ("valid",)
    test: tuple[str | int, ...] = ("test",)
    ignore: tuple[str | int, ...] = ()

    def values(self) -> dict[str, int]:
        """Each value, as text, and its part."""
        sides = ((self.train, Part.TRAIN), (self.valid, VALID), (self.test, Part.TEST), (self.ignore, UNUSED))
        return {str(value): int(part) for values, part in sides for value in values}

    @model_validator(mode="after")
    def _each_value_once(self) -> "ColumnSplit":
        if len(self.values()) < sum(map(len, (self.train, self.valid, self.test, self.ignore))):
            raise ValueError("a value of the split column stands in two parts")
        return self


class FilesSplit(_Split):
    """Whole files. Patterns (`*`, `?`) are matched against a file's path and against its name."""

    by: Literal["files"] = "files"
    train: tuple[str, ...] = Field(min_length=1)
    valid: tuple[str, ...] = Field(min_length=1)
    test: tuple[str, ...] = Field(min_length=1)

    def part_of(self, file: str) -> int:
        """The part of a file; `SplitError` when it is in none or in two."""
        sides = {
            "train": (self.train, Part.TRAIN),
            "valid": (self.valid, VALID),
            "test": (self.test, Part.TEST),
        }
        found = {
            name: int(part)
            for name, (patterns, part) in sides.items()
            if any(fnmatch.fnmatch(file, p) or fnmatch.fnmatch(PurePath(file).name, p) for p in patterns)
        }
        if len(found) != 1:
            came = "none" if not found else " and ".join(found)
            raise SplitError(f"split: file {file}: expected it in exactly one of train, valid and test, got {came}")
        return next(iter(found.values()))


class FoldsSplit(_Split):
    """Random folds, each with its share of the clicks. For comparing with published random splits: such a split
    tells what a model knows about days it has seen, and flatters every one that learns ids by heart."""

    by: Literal["folds"] = "folds"
    count: int = Field(default=10, ge=3, le=1000)
    """How many folds of equal size."""
    seed: int = Field(default=2018, ge=0, lt=2**32)
    """Of the shuffling; `parts_by_folds` says whose."""
    valid: tuple[NonNegativeInt, ...] = Field(default=(1,), min_length=1)
    """Folds that validate, from 0."""
    test: tuple[NonNegativeInt, ...] = Field(default=(0,), min_length=1)
    """Folds that test, from 0; all others train."""

    @model_validator(mode="after")
    def _folds_are_there(self) -> "FoldsSplit":
        named = (*self.valid, *self.test)
        if len(set(named)) < len(named) or max(named) >= self.count or len(named) >= self.count:
            raise ValueError(
                f"expected valid and test to be different folds of 0 to {self.count - 1}, and some left to train on, "
                f"got {list(self.valid)} and {list(self.test)}"
            )
        return self


Split = Annotated[TimeSplit | ColumnSplit | FilesSplit | FoldsSplit, Field(discriminator="by")]
"""The `split:` block of a recipe."""


def parts_by_folds(split: FoldsSplit, clicks: npt.NDArray[np.bool_]) -> Parts:
    """Train, `VALID` or test for each row [n], given which were clicked [n].

    The rows of each label are shuffled by themselves (numpy's legacy generator, seeded anew for each label) and cut
    into folds; the first `n % count` are one row longer. That is StratifiedKFold(count, shuffle=True,
    random_state=seed) of scikit-learn 0.19 to 0.21, by which Criteo_x4 and Avazu_x4 are split; from 0.22 on it shuffles
    otherwise. Takes 6 bytes a row on top.
    """
    part_of_fold = np.full(split.count, int(Part.TRAIN), np.uint8)
    part_of_fold[list(split.valid)] = VALID
    part_of_fold[list(split.test)] = int(Part.TEST)
    parts = np.empty(len(clicks), np.uint8)
    for label in (False, True):
        rows = clicks == label
        n = int(np.count_nonzero(rows))
        if not n:
            continue
        shuffled = np.arange(max(n, split.count), dtype=np.int32 if n < 2**31 else np.int64)
        np.random.RandomState(split.seed).shuffle(shuffled)
        sizes = np.full(split.count, len(shuffled) // split.count)
        sizes[: len(shuffled) % split.count] += 1
        own = np.empty(len(shuffled), np.uint8)
        own[shuffled] = np.repeat(part_of_fold, sizes)
        parts[rows] = own[:n]  # fewer rows than folds: what is beyond them falls away
    return parts


def parts_by_time(split: TimeSplit, times: npt.NDArray[np.int64], zone: ZoneInfo) -> Parts:
    """Train, `VALID` or test for each moment [n] (microseconds since the epoch)."""
    if not len(times):
        raise SplitError("split: the log has no rows")
    start, end = None, None
    if split.fractions is not None:
        # The two moments at which the later parts begin; all rows of one moment fall on one side.
        ordered = np.sort(times)
        n = len(times)
        test = int(ordered[min(n - 1, round(n * (1 - split.fractions.test)))])
        valid = int(ordered[min(n - 1, round(n * (1 - split.fractions.test - split.fractions.valid)))])
    elif split.last_days is not None:
        last = int(local_days(times.max(keepdims=True), zone)[0])
        test = start_of_day(last + 1 - split.last_days.test, zone)
        valid = start_of_day(last + 1 - split.last_days.test - split.last_days.valid, zone)
    else:
        assert split.boundaries is not None
        b = split.boundaries
        valid, test = _moment(b.valid, zone), _moment(b.test, zone)
        start = _moment(b.train, zone) if b.train else None
        end = _moment(b.end, zone) if b.end else None
        given = [t for t in (start, valid, test, end) if t is not None]
        if given != sorted(set(given)):
            raise SplitError("split: boundaries must follow each other in time: train, valid, test, end")
    parts = np.full(len(times), int(Part.TRAIN), np.uint8)
    parts[times >= valid] = VALID
    parts[times >= test] = int(Part.TEST)
    if start is not None:
        parts[times < start] = UNUSED
    if end is not None:
        parts[times >= end] = UNUSED
    return parts


def part_validation(parts: Parts, units: npt.NDArray[np.uint64], split: _Split) -> Parts:
    """The same parts with validation rows parted into A, B and C by their unit's hash [n]."""
    parted = parts.copy()
    rows = np.flatnonzero(parts == VALID)
    ends = np.cumsum(split.validation_shares)[:2]
    parted[rows] = VALID + np.searchsorted(ends, uniform(units[rows], split.validation_seed), side="right")
    return parted


def thin_training(parts: Parts, split: _Split) -> Parts:
    """The same parts with training rows beyond `train_share` left out [n]."""
    if split.train_share == 1:
        return parts
    rows = np.flatnonzero(parts == int(Part.TRAIN))
    thinned = parts.copy()
    thinned[rows[uniform(rows.astype(np.uint64), 0) >= split.train_share]] = UNUSED
    return thinned


PART_NAMES: Mapping[int, str] = {
    int(Part.TRAIN): "train",
    int(Part.VALID_A): "valid_a",
    int(Part.VALID_B): "valid_b",
    int(Part.VALID_C): "valid_c",
    int(Part.TEST): "test",
}


UNLABELLED_NAMES: Mapping[int, str] = {
    int(Part.UNLABELLED): "unlabelled",
    int(Part.UNLABELLED_STOP): "unlabelled_stop",
}


def part_unlabelled(units: npt.NDArray[np.uint64], stopping_share: float, split: _Split) -> Parts:
    """Of rows without labels, by their unit's hash [n], which teach the student and which stop it; `SplitError` where a
    part that was asked for is empty."""
    stops = uniform(units, split.validation_seed) < stopping_share
    parts = np.where(stops, int(Part.UNLABELLED_STOP), int(Part.UNLABELLED)).astype(np.uint8)
    if not len(parts) or stops.all() or (stopping_share > 0 and not stops.any()):
        raise SplitError(
            f"unlabelled: expected rows to learn from{', and rows to stop by' if stopping_share else ''}, got "
            f"{int((~stops).sum())} and {int(stops.sum())}; give more rows, or another stopping_share"
        )
    return parts


def refuse_useless_parts(parts: Parts, clicks: npt.NDArray[np.bool_], times: npt.NDArray[np.int64] | None) -> None:
    """`SplitError` naming the first part that is empty or holds one label only."""
    for part, name in PART_NAMES.items():
        rows = parts == part
        count, clicked = int(rows.sum()), int(clicks[rows].sum())
        if count and 0 < clicked < count:
            continue
        what = "is empty" if not count else f"has {count} rows and all of them have label {int(clicked > 0)}"
        others = ", ".join(f"{other} {int((parts == p).sum())}" for p, other in PART_NAMES.items())
        span = (
            f" The log runs from {to_iso(int(times.min()))} to {to_iso(int(times.max()))}."
            if times is not None and len(times)
            else ""
        )
        raise SplitError(
            f"split: part {name!r} {what}; every part needs rows of both labels. "
            f"Rows by part: {others}.{span} " + _advice(name)
        )


def _advice(name: str) -> str:
    if name.startswith("valid_"):
        return (
            "Give validation more rows, or other validation_shares, or part it by row (leave `unit` out of the schema)."
        )
    return "Draw the lines of the split elsewhere."


def _moment(when: datetime, zone: ZoneInfo) -> int:
    if when.tzinfo is None:
        when = when.replace(tzinfo=zone)
    return round(when.timestamp() * 1_000_000)


def named_files(split: FilesSplit, files: Sequence[str]) -> dict[str, int]:
    """The part of each file; `SplitError` when a file is in none or two, or a pattern matches nothing."""
    found = {file: split.part_of(file) for file in files}
    for name in ("train", "valid", "test"):
        for pattern in getattr(split, name):
            if not any(fnmatch.fnmatch(f, pattern) or fnmatch.fnmatch(PurePath(f).name, pattern) for f in files):
                raise SplitError(f"split: {name}: no file matches {pattern!r}; files: {', '.join(files)}")
    return found
