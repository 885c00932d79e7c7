"""MovieLens latest-small (Harper & Konstan 2015) as clicks: a rating above 3 is one, exactly 3 says neither
and is left out.

The convention of AutoInt on MovieLens-1M. Read are ratings.csv and movies.csv as unpacked, or packed as .csv.gz.
`split` is the log's column of this name, else at random by rating, from an md5 of user and movie. Of a movie, `genres`
is the whole list, separated by |, `first_genre` its first; `year` is the release year at the end of the title.
`year_rated` is the year of the rating.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from training.data.chunks import Chunk, require_columns
from training.data.faults import Faults, shown
from training.data.readers import FileSource
from training.data.tables import LookUp, end_of_line, floor_divide
from training.errors import DataError

ORIGINALS = ("ratings.csv", "movies.csv")
"""The publisher's files that are read."""

_LOG = ("userId", "movieId", "timestamp", "split")
_MOVIE = ("title", "genres", "first_genre", "year")
_YEAR = re.compile(r"\((\d{4})(?:[-–]\d{0,4})?\)\s*$")  # (1995), and series as (2009– )


@dataclass(frozen=True)
class MovieLensSource:
    """Ratings joined with their movies. `folder` holds `ORIGINALS`, each plain or .gz. A `Source`."""

    folder: Path
    _ratings: FileSource = field(init=False, repr=False)
    _movies: LookUp = field(init=False, repr=False)

    def __post_init__(self) -> None:
        log, table = (_packed_or_not(self.folder / name) for name in ORIGINALS)
        for file in (log, table):
            end_of_line(file)
        movies = LookUp(table, "movieId", ("title", "genres"))
        movies.derive("genres", "genres", lambda genres: _without(genres, "(no genres listed)"))
        movies.derive("first_genre", "genres", lambda genres: pc.replace_substring_regex(genres, r"\|.*", ""))
        movies.derive("year", "title", _years)
        object.__setattr__(self, "_ratings", FileSource((log,)))
        object.__setattr__(self, "_movies", movies)

    @property
    def files(self) -> tuple[Path, ...]:
        return (*self._ratings.files, _packed_or_not(self.folder / ORIGINALS[1]))

    def columns(self) -> dict[str, pa.DataType]:
        text = dict.fromkeys((*_LOG, "title", "genres", "first_genre"), pa.string())
        return text | {"liked": pa.int8(), "year": pa.int64(), "year_rated": pa.int64()}

    def require(self, wanted: Mapping[str, str]) -> None:
        require_columns(str(self.folder), wanted, self.columns())

    def chunks(self, columns: Sequence[str], faults: Faults) -> Iterator[Chunk]:
        is_parted = "split" in self._ratings.columns()
        own = [c for c in columns if c in _LOG and (is_parted or c != "split")]
        needed = tuple(dict.fromkeys([*own, "rating", "userId", "movieId", "timestamp"]))
        for chunk in self._ratings.chunks(needed, faults):
            rating = _ratings(chunk)
            keep = rating != 3.0
            got = {name: column.filter(pa.array(keep)) for name, column in chunk.columns.items()}
            joined: dict[str, pa.Array] = {c: got[c] for c in own}
            joined |= self._movies.take(got["movieId"], [c for c in columns if c in _MOVIE])
            if "split" in columns and not is_parted:
                joined["split"] = _splits(got["userId"], got["movieId"])
            if "liked" in columns:
                joined["liked"] = pa.array((rating[keep] > 3).astype(np.int8))
            if "year_rated" in columns:
                joined["year_rated"] = _year_of(got["timestamp"])
            yield replace(chunk, columns={c: joined[c] for c in columns}, numbers=chunk.numbers[keep])


def _packed_or_not(path: Path) -> Path:
    packed = path.with_name(f"{path.name}.gz")
    return packed if packed.is_file() or not path.is_file() else path


def _splits(users: pa.Array, movies: pa.Array) -> pa.Array:
    """Tenths of all ratings by md5: eight of them train, one valid, one test."""
    tenths = (
        int(hashlib.md5(f"{user}:{movie}".encode()).hexdigest(), 16) % 10
        for user, movie in zip(users.to_pylist(), movies.to_pylist(), strict=True)
    )
    return pa.array([("train", "valid", "test")[max(0, tenth - 7)] for tenth in tenths], pa.string())


def _ratings(chunk: Chunk) -> npt.NDArray[np.float64]:
    """The ratings as numbers [n]; a rating that is none refuses the log, because the label comes from it."""
    coded = chunk.columns["rating"].dictionary_encode()
    codes = coded.indices.to_numpy()
    numbers = []
    for code, text in enumerate(coded.dictionary.to_pylist()):
        if not re.fullmatch(r"[0-5](\.[05])?", text):
            row = int(np.flatnonzero(codes == code)[0])
            raise DataError(f"{chunk.place(row)}: column 'rating': expected 0.5 to 5.0 in halves, got {shown(text)}")
        numbers.append(float(text))
    ratings: npt.NDArray[np.float64] = np.array(numbers, np.float64)[codes]
    return ratings


def _without(column: pa.Array, word: str) -> pa.Array:
    return pc.if_else(pc.equal(column, word), pa.scalar(None, pa.string()), column)


def _years(titles: pa.Array) -> pa.Array:
    found = (_YEAR.search(title) for title in titles.to_pylist())
    return pa.array([int(match.group(1)) if match else None for match in found], pa.int64())


def _year_of(seconds: pa.Array) -> pa.Array:
    """The year (UTC) of each epoch in text; null where it is none."""
    days = floor_divide(seconds, 24 * 3600)
    coded = days.dictionary_encode()
    years = [datetime.fromtimestamp(day * 86400, UTC).year for day in coded.dictionary.to_pylist()]
    return pc.take(pa.array(years, pa.int64()), coded.indices)
