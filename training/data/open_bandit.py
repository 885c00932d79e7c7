"""Open Bandit (Saito et al., NeurIPS 2021, arXiv:2008.07146) as downloaded: impressions of a randomised experiment of
two policies in three campaigns of a fashion shop.

    {random,bts}/{all,men,women}/{all,men,women}.csv     an unnamed row number, timestamp, item_id, position, click,
                                                         propensity_score, user_feature_0 .. 3, user-item_affinity_0 ..
    {random,bts}/{all,men,women}/item_context.csv        item_id, item_feature_0 .. 3

Items are counted anew in each campaign, so `item_key` is one with the campaign's first letter before it. Affinities, a
column an item, become three: `affinity_item` of the item shown, `affinity_sum` and `affinity_nnz`, how many are not
zero. `split` is by day (UTC).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from training.data.chunks import Chunk, require_columns
from training.data.faults import Faults, shown
from training.data.readers import FileSource
from training.data.tables import LookUp, end_of_line, whole_numbers
from training.errors import DataError

POLICIES = ("random", "bts")
CAMPAIGNS = ("all", "men", "women")
LAST_DAYS = {"train": "2019-11-28", "valid": "2019-11-29", "test": "2019-11-30"}

_LOG = (
    *("timestamp", "item_id", "position", "click", "propensity_score"),
    *(f"user_feature_{i}" for i in range(4)),
)
_ITEM = tuple(f"item_feature_{i}" for i in range(4))
_AFFINITY = ("affinity_item", "affinity_sum", "affinity_nnz")
_IS_AFFINITY = re.compile(r"user-item_affinity_(\d+)")


def originals(campaigns: Sequence[str]) -> tuple[str, ...]:
    """The publisher's files that are read for these campaigns."""
    return tuple(
        f"{policy}/{name}/{file}.csv" for policy in POLICIES for name in campaigns for file in (name, "item_context")
    )


@dataclass(frozen=True)
class _Campaign:
    """One campaign under one policy: its impressions and its items."""

    policy: str
    name: str
    log: FileSource
    items: LookUp
    affinities: tuple[str, ...]
    """Columns, by item."""

    @classmethod
    def read(cls, folder: Path, policy: str, name: str) -> "_Campaign":
        path, items = folder / policy / name / f"{name}.csv", folder / policy / name / "item_context.csv"
        for file in (path, items):
            end_of_line(file)
        log = FileSource((path,))
        log.require(dict.fromkeys(_LOG, "the original log has it"))
        numbers = {int(found[1]): c for c in log.columns() if (found := _IS_AFFINITY.fullmatch(c))}
        if sorted(numbers) != list(range(len(numbers))) or not numbers:
            raise DataError(
                f"{path}:1: expected columns user-item_affinity_0, 1, ... without a gap, got those of {sorted(numbers)}"
            )
        affinities = tuple(numbers[item] for item in range(len(numbers)))
        return cls(policy, name, log, LookUp(items, "item_id", _ITEM), affinities)


@dataclass(frozen=True)
class OpenBanditOriginal:
    """The impressions of both policies in some campaigns, file by file. A `Source`.

    `folder` holds random/ and bts/. Raises `DataError` at once where a campaign is not there for both policies.
    """

    folder: Path
    campaigns: tuple[str, ...] = ("men", "women")
    _parts: tuple[_Campaign, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        parts = tuple(_Campaign.read(self.folder, policy, name) for policy in POLICIES for name in self.campaigns)
        object.__setattr__(self, "_parts", parts)

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(file for part in self._parts for file in (*part.log.files, _items_of(part)))

    def columns(self) -> dict[str, pa.DataType]:
        text = dict.fromkeys((*_LOG, *_ITEM, "campaign", "policy", "item_key", "split"), pa.string())
        return text | dict.fromkeys(_AFFINITY, pa.float64())

    def require(self, wanted: Mapping[str, str]) -> None:
        require_columns(str(self.folder), wanted, self.columns())

    def chunks(self, columns: Sequence[str], faults: Faults) -> Iterator[Chunk]:
        self.require(dict.fromkeys(columns, "asked for"))
        sizes = [part.log.files[0].stat().st_size for part in self._parts]
        for number, part in enumerate(self._parts):
            before, own = sum(sizes[:number]), sizes[number]
            for chunk in _rows(part, columns, faults):
                yield replace(chunk, read=(before + chunk.read * own) / sum(sizes))


def _items_of(part: _Campaign) -> Path:
    return part.log.files[0].parent / "item_context.csv"


def _rows(part: _Campaign, columns: Sequence[str], faults: Faults) -> Iterator[Chunk]:
    """A campaign's rows with these columns."""
    has_affinity = bool(set(columns) & set(_AFFINITY))
    needed = [*(c for c in columns if c in _LOG), "item_id", "timestamp", *(part.affinities if has_affinity else ())]
    for chunk in part.log.chunks(tuple(dict.fromkeys(needed)), faults):
        got = chunk.columns
        made: dict[str, pa.Array] = {c: got[c] for c in columns if c in _LOG}
        made |= part.items.take(got["item_id"], [c for c in columns if c in _ITEM])
        made |= {
            name: pa.repeat(value, chunk.rows) for name, value in (("campaign", part.name), ("policy", part.policy))
        }
        if "item_key" in columns:
            made["item_key"] = pc.binary_join_element_wise(part.name[0], got["item_id"], "")
        if "split" in columns:
            made["split"] = _splits(chunk)
        if has_affinity:
            made |= _summed(chunk, part.affinities)
        yield replace(chunk, columns={c: made[c] for c in columns})


def _splits(chunk: Chunk) -> pa.Array:
    """train, valid or test by the day of `timestamp`; a day that is none of the log's refuses it."""
    coded = pc.utf8_slice_codeunits(chunk.columns["timestamp"], 0, 10).dictionary_encode()
    parts = []
    for code, day in enumerate(coded.dictionary.to_pylist()):
        if not re.fullmatch(r"2019-11-(2[4-9]|30)", day):
            row = int(np.flatnonzero(coded.indices.to_numpy(zero_copy_only=False) == code)[0])
            raise DataError(
                f"{chunk.place(row)}: column 'timestamp': expected a day from 2019-11-24 to 2019-11-30, by which the "
                f"rows are parted, got {shown(chunk.columns['timestamp'][row].as_py())}"
            )
        parts.append(next(part for part, last in LAST_DAYS.items() if day <= last))
    return pa.array(parts, pa.string()).take(coded.indices)


def _summed(chunk: Chunk, affinities: Sequence[str]) -> dict[str, pa.Array]:
    """The three that stand for a column an item."""
    item = whole_numbers(chunk, "item_id", most=len(affinities) - 1)
    each: npt.NDArray[np.float64] = np.stack([_numbers(chunk, c) for c in affinities])  # [items, n]
    made = (each[item, np.arange(chunk.rows)], each.sum(axis=0), (each != 0).sum(axis=0).astype(np.float64))
    return {name: pa.array(values) for name, values in zip(_AFFINITY, made, strict=True)}


def _numbers(chunk: Chunk, column: str) -> npt.NDArray[np.float64]:
    text = chunk.columns[column]
    try:
        found: npt.NDArray[np.float64] = text.cast(pa.float64()).to_numpy(zero_copy_only=False)
        wrong = np.flatnonzero(~np.isfinite(found))
    except pa.ArrowInvalid:
        is_good = pc.match_substring_regex(text, r"^[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?$").fill_null(False)
        wrong = np.flatnonzero(~is_good.to_numpy(zero_copy_only=False))
    if len(wrong):
        row = int(wrong[0])
        raise DataError(f"{chunk.place(row)}: column {column!r}: expected a number, got {shown(text[row].as_py())}")
    return found
