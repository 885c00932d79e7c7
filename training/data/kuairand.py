"""KuaiRand-Pure (Gao et al., CIKM 2022, arXiv:2208.08696): exposures of a short-video feed, joined with users, videos
and what each user had watched before.

All that is only known after the exposure (is_click apart, the label) never becomes a column: a model must not read the
answer. `split` is by day, as in `SPLITS`; `dow` and `hour` are the wall clock in Beijing. Read are the publisher's
files as unpacked, or files parted by day and packed, with histories counted: the same columns of the same rows.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from training.data.chunks import Chunk, Source, require_columns
from training.data.faults import Faults
from training.data.readers import FileSource
from training.data.tables import LookUp, end_of_line, floor_divide, whole_numbers

SPLITS = {"train": (20220425, 20220504), "valid": (20220505, 20220506), "test": (20220507, 20220508)}
"""First and last day of each, yyyymmdd. What was before is history."""
ORIGINALS = (
    "log_standard_4_08_to_4_21_pure.csv",
    "log_standard_4_22_to_5_08_pure.csv",
    "user_features_pure.csv",
    "video_features_basic_pure.csv",
)
"""The publisher's files, of those in KuaiRand-Pure/data/, that are read."""
LAST_WATCHED = 50

_LOG = ("is_click", "time_ms", "user_id", "video_id", "tab", "duration_ms")
_USER = (
    "user_active_degree",
    "is_live_streamer",
    "is_video_author",
    "follow_user_num",
    "follow_user_num_range",
    "fans_user_num",
    "fans_user_num_range",
    "friend_user_num",
    "friend_user_num_range",
    "register_days",
    "register_days_range",
    *(f"onehot_feat{i}" for i in range(18)),
)
_VIDEO = (
    "author_id",
    "video_type",
    "upload_dt",
    "upload_type",
    "server_width",
    "server_height",
    "music_id",
    "music_type",
    "tag",
)
_HISTORY = ("history_len", "watch_seq")


def open_kuairand(folder: Path) -> Source:
    """The log in a folder, in whichever form it lies there."""
    return KuaiRandOriginal(folder) if any((folder / name).is_file() for name in ORIGINALS) else KuaiRandSource(folder)


class _Table(Protocol):
    """Columns by key."""

    def take(self, keys: pa.Array, columns: Sequence[str]) -> Mapping[str, pa.Array]: ...


@dataclass(frozen=True)
class KuaiRandSource:
    """The joined exposures, train then valid then test, of files parted by day. A `Source`.

    `folder` holds train, valid, test, users, videos and history, each .csv.gz.
    """

    folder: Path
    _exposures: FileSource = field(init=False, repr=False)
    _users: LookUp = field(init=False, repr=False)
    _videos: LookUp = field(init=False, repr=False)
    _history: _Table = field(init=False, repr=False)

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "_exposures", FileSource(tuple(self.folder / f"{split}.csv.gz" for split in SPLITS)))
        put(self, "_users", LookUp(self.folder / "users.csv.gz", "user_id", _USER))
        put(self, "_videos", LookUp(self.folder / "videos.csv.gz", "video_id", _VIDEO))
        put(self, "_history", LookUp(self.folder / "history.csv.gz", "user_id", _HISTORY))

    @property
    def files(self) -> tuple[Path, ...]:
        tables = ("users", "videos", "history")
        return (*self._exposures.files, *(self.folder / f"{table}.csv.gz" for table in tables))

    def columns(self) -> dict[str, pa.DataType]:
        text = dict.fromkeys((*_LOG, *_USER, *_VIDEO, *_HISTORY, "split"), pa.string())
        return text | {"hour": pa.int64(), "dow": pa.int64()}

    def require(self, wanted: Mapping[str, str]) -> None:
        require_columns(str(self.folder), wanted, self.columns())

    def chunks(self, columns: Sequence[str], faults: Faults) -> Iterator[Chunk]:
        own = [c for c in columns if c in _LOG]
        needed = dict.fromkeys([*own, "user_id", "video_id", "hourmin", "date"])
        for chunk in self._exposures.chunks(tuple(needed), faults):
            chunk, split = self._parted(chunk)
            got = chunk.columns
            joined: dict[str, pa.Array] = {c: got[c] for c in own}
            for table, key, names in (
                (self._users, "user_id", _USER),
                (self._videos, "video_id", _VIDEO),
                (self._history, "user_id", _HISTORY),
            ):
                asked = [c for c in columns if c in names]
                joined |= table.take(got[key], asked) if asked else {}
            if "history_len" in joined:  # a user without a history has one of length 0
                joined["history_len"] = joined["history_len"].fill_null("0")
            if "hour" in columns:
                joined["hour"] = floor_divide(got["hourmin"], 100)
            if "dow" in columns:
                joined["dow"] = _weekdays(got["date"])
            joined["split"] = split
            yield replace(chunk, columns={c: joined[c] for c in columns})

    def _parted(self, chunk: Chunk) -> tuple[Chunk, pa.Array]:
        """Rows that are exposures of the log, and the split of each."""
        return chunk, pa.repeat(Path(chunk.file).name.removesuffix(".csv.gz"), chunk.rows)


@dataclass(frozen=True)
class KuaiRandOriginal(KuaiRandSource):
    """The joined exposures of the publisher's own files, in the order of the later log. A `Source`.

    `folder` holds the four of `ORIGINALS`. Exposures before the first day of training, in both logs, are no rows: they
    are counted into each user's history.
    """

    def __post_init__(self) -> None:
        put = object.__setattr__
        for path in self.files:
            end_of_line(path)
        before, later, users, videos = self.files
        put(self, "_exposures", FileSource((later,)))
        put(self, "_users", LookUp(users, "user_id", _USER))
        put(self, "_videos", LookUp(videos, "video_id", _VIDEO))
        put(self, "_history", _Watched(FileSource((before, later))))

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(self.folder / name for name in ORIGINALS)

    def _parted(self, chunk: Chunk) -> tuple[Chunk, pa.Array]:
        days = _days(chunk)
        keep = days >= SPLITS["train"][0]
        kept = {name: column.filter(pa.array(keep)) for name, column in chunk.columns.items()}
        last_days = [last for _, last in SPLITS.values()]
        places = np.searchsorted(last_days, days[keep])
        return replace(chunk, columns=kept, numbers=chunk.numbers[keep]), pa.array(np.array(list(SPLITS))[places])


class _Watched:
    """What each user was shown before the first day of training, counted from the logs when first asked for:
    `history_len`, how many videos, and `watch_seq`, the last of them by time, separated by blanks."""

    def __init__(self, logs: FileSource) -> None:
        self._logs = logs
        logs.require(dict.fromkeys(("user_id", "video_id", "time_ms", "date"), "the users' histories"))

    @functools.cached_property
    def _table(self) -> pa.Table:
        wanted = ("user_id", "time_ms", "video_id")
        nothing = np.array([], np.int64)
        parts: list[list[npt.NDArray[np.int64]]] = [[nothing] * len(wanted)]
        for chunk in self._logs.chunks((*wanted, "date"), Faults()):
            is_before = _days(chunk) < SPLITS["train"][0]
            parts.append([whole_numbers(chunk, column)[is_before] for column in wanted])
        user, time, video = (np.concatenate(column) for column in zip(*parts, strict=True))
        order = np.lexsort((time, user))
        users, starts = np.unique(user[order], return_index=True)
        ends = np.append(starts[1:], len(user))
        videos = video[order]
        columns = {
            "user_id": users.astype(str),
            "history_len": (ends - starts).astype(str),
            "watch_seq": [
                " ".join(videos[max(start, end - LAST_WATCHED) : end].astype(str))
                for start, end in zip(starts, ends, strict=True)
            ],
        }
        return pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})

    def take(self, keys: pa.Array, columns: Sequence[str]) -> Mapping[str, pa.Array]:
        """These columns for each user, null for one without a history."""
        rows = pc.index_in(keys, value_set=self._table["user_id"].combine_chunks())
        return {c: self._table[c].combine_chunks().take(rows) for c in columns}


def _days(chunk: Chunk) -> npt.NDArray[np.int64]:
    """The day of each row [n], yyyymmdd; a day that is none of the log's refuses it, because the split is by day."""
    return whole_numbers(chunk, "date", least=20220408, most=SPLITS["test"][1])


def _weekdays(dates: pa.Array) -> pa.Array:
    """yyyymmdd -> Monday 0 to Sunday 6; null where it is no date."""
    coded = dates.dictionary_encode()
    days: list[int | None] = []
    for text in coded.dictionary.to_pylist():
        try:
            days.append(datetime.strptime(text, "%Y%m%d").weekday())
        except ValueError:
            days.append(None)
    return pc.take(pa.array(days, pa.int64()), coded.indices)
