"""KuaiRand-Pure (Gao et al., CIKM 2022, arXiv:2208.08696): 14 days of exposures of a short-video feed,
three tables joined.

Each row of train/valid/test.csv.gz is an exposure; users.csv.gz, videos.csv.gz and history.csv.gz are looked up by user
and video. All that is only known after the exposure (is_click apart, the label) never becomes a column: a model must
not read the answer. `split` holds the file's own split, `dow` and `hour` the wall clock in Beijing.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from training.data.chunks import Chunk, require_columns
from training.data.faults import Faults
from training.data.readers import FileSource
from training.data.tables import LookUp, floor_divide

SPLITS = ("train", "valid", "test")

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


@dataclass(frozen=True)
class KuaiRandSource:
    """The joined exposures, train then valid then test. `folder` holds the six .csv.gz files. A `Source`."""

    folder: Path
    _exposures: FileSource = field(init=False, repr=False)
    _users: LookUp = field(init=False, repr=False)
    _videos: LookUp = field(init=False, repr=False)
    _history: LookUp = field(init=False, repr=False)

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
            got = chunk.columns
            joined: dict[str, pa.Array] = {c: got[c] for c in own}
            for table, key, names in (
                (self._users, "user_id", _USER),
                (self._videos, "video_id", _VIDEO),
                (self._history, "user_id", _HISTORY),
            ):
                joined |= table.take(got[key], [c for c in columns if c in names])
            if "history_len" in joined:  # a user without a history has one of length 0
                joined["history_len"] = joined["history_len"].fill_null("0")
            if "hour" in columns:
                joined["hour"] = floor_divide(got["hourmin"], 100)
            if "dow" in columns:
                joined["dow"] = _weekdays(got["date"])
            if "split" in columns:
                split = Path(chunk.file).name.removesuffix(".csv.gz")
                joined["split"] = pa.repeat(split, chunk.rows)
            yield replace(chunk, columns={c: joined[c] for c in columns})


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
