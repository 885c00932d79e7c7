"""The `source:` block of a recipe: which log, and where it lies."""

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from training.data.chunks import Source
from training.data.kaggle import ARCHIVES, KaggleSource
from training.data.kuairand import open_kuairand
from training.data.movielens import MovieLensSource
from training.data.open_bandit import OpenBanditOriginal
from training.data.readers import FileSource
from training.data.text_files import TextFormat
from training.errors import DataError

DATA_VARIABLE = "RETORT_TRAINING_DATA"
UNPACKED = {
    "kuairand_pure": ("KuaiRand-Pure/data",),
    "ml_latest_small": ("ml-latest-small",),
    "obd_small": ("obd", "open_bandit_dataset"),
}
"""Other names of a public log's folder: what its publisher's archive unpacks to."""


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class FilesSettings(_Settings):
    """CSV, TSV (plain, .gz or .zst) and Parquet files, read in the order given."""

    kind: Literal["files"] = "files"
    paths: tuple[str, ...] = Field(min_length=1)
    """Files, or patterns with `*` and `?` whose matches are taken in the order of their names."""
    separator: str | None = Field(default=None, min_length=1, max_length=1)
    """Of text files; null takes it from the ending: comma for .csv, tab for .tsv and .tab."""
    quote: Annotated[str, Field(min_length=1, max_length=1)] | None = '"'
    """Of text files; null where cells are never quoted."""
    header: tuple[str, ...] | None = Field(default=None, min_length=1)
    """The columns' names, for text files without a header line."""
    optional_columns: tuple[str, ...] = ()
    """Columns that some files may lack; the values of those files are then missing."""


class KuaiRandSettings(_Settings):
    """KuaiRand-Pure: exposures, users, videos and histories, joined."""

    kind: Literal["kuairand_pure"]
    folder: str | None = None
    """The folder that contains kuairand_pure/, or KuaiRand-Pure/data/ as unpacked; null takes --data or
    RETORT_TRAINING_DATA."""


class MovieLensSettings(_Settings):
    """MovieLens latest-small: ratings and movies, joined."""

    kind: Literal["ml_latest_small"]
    folder: str | None = None
    """The folder that contains ml_latest_small/, or ml-latest-small/ as unpacked; null takes --data or
    RETORT_TRAINING_DATA."""


class KaggleSettings(_Settings):
    """Criteo's train.txt or Avazu's train.csv, as Kaggle's competitions gave them out; also .gz."""

    kind: Literal["criteo_kaggle", "avazu_kaggle"]
    folder: str | None = None
    """The folder that contains criteo_kaggle/ or avazu_kaggle/; null takes --data or RETORT_TRAINING_DATA."""
    rows: PositiveInt | None = None
    """How many rows the file must have; null takes any number."""


class OpenBanditSettings(_Settings):
    """Open Bandit: impressions of two policies of a fashion shop, a randomised experiment. Joined in one file, or the
    publisher's own folders, of the small version or the whole."""

    kind: Literal["obd_small"]
    folder: str | None = None
    """The folder that contains obd_small/, or as unpacked obd/ or open_bandit_dataset/; null takes --data or
    RETORT_TRAINING_DATA."""
    campaigns: tuple[Literal["all", "men", "women"], ...] = Field(default=("men", "women"), min_length=1)
    """Of the publisher's folders, which are read; a joined file is read whole."""


RealSettings = KuaiRandSettings | MovieLensSettings | KaggleSettings | OpenBanditSettings
"""The public logs that Retort knows by name."""


class Unlabelled(_Settings):
    """Rows without clicks, that the student learns from as the ensemble labels them: no teacher, no encoder does."""

    source: FilesSettings
    """Files with the columns of the log's schema. A label is not asked for, nor looked at."""
    stopping_share: float = Field(default=0.0, ge=0, lt=1)
    """So much of them, by unit, stops the student by its distillation loss, in place of validation part A."""


SourceSettings = Annotated[FilesSettings | RealSettings, Field(discriminator="kind")]


def open_source(settings: SourceSettings, *, base: Path = Path(), data: Path | None = None) -> Source:
    """The source that a recipe describes.

    Paths are relative to `base`. `data` is the folder of real logs; without it RETORT_TRAINING_DATA says
    where. Raises `DataError` for files that are not there or whose headers cannot be used.
    """
    if isinstance(settings, FilesSettings):
        text = TextFormat(settings.separator, settings.quote, settings.header)
        return FileSource(_matches(settings.paths, base), text, frozenset(settings.optional_columns))
    folder = real_log(settings.kind, Path(settings.folder) if settings.folder else data)
    if isinstance(settings, KaggleSettings):
        return KaggleSource(settings.kind, folder, settings.rows)
    if isinstance(settings, OpenBanditSettings):
        if (folder / "obd.csv.gz").is_file():
            return FileSource((folder / "obd.csv.gz",))
        return OpenBanditOriginal(folder, settings.campaigns)
    return open_kuairand(folder) if isinstance(settings, KuaiRandSettings) else MovieLensSource(folder)


def real_log(name: str, data: Path | None = None) -> Path:
    """The folder of the real log `name`, in `data` or else in what RETORT_TRAINING_DATA names: the one of its name,
    else what its publisher's archive unpacks to."""
    said = data or (Path(os.environ[DATA_VARIABLE]) if os.environ.get(DATA_VARIABLE) else None)
    if said is None:
        raise DataError(
            f"{name}: the log's folder is not known; give --data FOLDER or set {DATA_VARIABLE}, "
            f"either to the folder that contains {name}/"
        )
    names = (name, *UNPACKED.get(name, ()))
    there = next((said / folder for folder in names if (said / folder).is_dir()), None)
    if there is None:
        contains = next((said.parents[folder.count("/")] for folder in names if said.match(folder)), None)
        meant = f". Say the folder that contains it: {contains}" if contains is not None and said.is_dir() else ""
        packed = sorted(path.name for pattern in ARCHIVES for path in said.glob(pattern))
        meant = meant or (f"; unpack {', '.join(packed)} there first" if packed else "")
        wanted = " or ".join(f"{folder}/" for folder in names)
        raise DataError(f"{said / name}: no such folder; expected {wanted} with its files in {said}{meant}")
    return there


def _matches(paths: tuple[str, ...], base: Path) -> tuple[Path, ...]:
    found: list[Path] = []
    for path in paths:
        whole = base / path
        if not any(c in path for c in "*?["):
            found.append(whole)
            continue
        matched = sorted(Path(whole.anchor).glob(str(whole.relative_to(whole.anchor))))
        if not matched:
            raise DataError(f"{whole}: no file matches this pattern")
        found += matched
    return tuple(dict.fromkeys(found))
