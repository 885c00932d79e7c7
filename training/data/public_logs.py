"""What the public logs that Retort knows by name consist of, for whoever has to find them: files, where their originals
are. docs/logs.md says what is in the files and how a log in another form is read.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from training.data import kuairand, movielens, open_bandit
from training.data.chunks import Source
from training.data.sources import (
    KaggleSettings,
    OpenBanditSettings,
    RealSettings,
    SourceSettings,
    open_source,
    real_log,
)
from training.errors import DataError


@dataclass(frozen=True)
class PublicLog:
    """Files of a log's folder, each with the names that it may have, and the page of its publisher."""

    files: tuple[tuple[str, ...], ...]
    page: str
    originals: tuple[str, ...] = ()
    """The publisher's own files, that will do as well."""

    def missing(self, folder: Path) -> list[str]:
        """Files that are not there, by the first of their names: of the publisher's own, where one of those is."""
        if any((folder / name).is_file() for name in self.originals):
            return [name for name in self.originals if not (folder / name).is_file()]
        return [names[0] for names in self.files if not any((folder / name).is_file() for name in names)]

    @property
    def wanted(self) -> str:
        """All files, for people."""
        prepared = ", ".join(" or ".join(names) for names in self.files)
        return f"{prepared}; or as published {', '.join(self.originals)}" if self.originals else prepared


PUBLIC_LOGS = {
    "kuairand_pure": PublicLog(
        tuple((f"{name}.csv.gz",) for name in ("train", "valid", "test", "users", "videos", "history")),
        "https://kuairand.com",
        kuairand.ORIGINALS,
    ),
    "ml_latest_small": PublicLog(
        tuple((f"{name}.gz", name) for name in movielens.ORIGINALS),
        "https://grouplens.org/datasets/movielens/latest/",
    ),
    "obd_small": PublicLog(
        (("obd.csv.gz",),),
        "https://github.com/st-tech/zr-obp",
        open_bandit.originals(OpenBanditSettings(kind="obd_small").campaigns),
    ),
    "criteo_kaggle": PublicLog(
        (("train.txt", "train.txt.gz"),), "https://www.kaggle.com/competitions/criteo-display-ad-challenge"
    ),
    "avazu_kaggle": PublicLog(
        (("train.csv", "train.csv.gz", "train.gz"),), "https://www.kaggle.com/competitions/avazu-ctr-prediction"
    ),
}
"""By the `kind` of a recipe's source, which is the folder's name."""


def open_log(settings: SourceSettings, *, base: Path, data: Path | None) -> Source:
    """As `sources.open_source`, and where a public log's folder or a file of it is missing, `DataError` that says which
    files it has, where its original is, and where it is written what is in them."""
    if not isinstance(settings, RealSettings):
        return open_source(settings, base=base, data=data)
    log = PUBLIC_LOGS[settings.kind]
    if isinstance(settings, OpenBanditSettings):
        log = replace(log, originals=open_bandit.originals(settings.campaigns))
    try:
        folder = real_log(settings.kind, Path(settings.folder) if settings.folder else data)
    except DataError as error:
        raise DataError(f"{error}. {_advice(settings.kind, log)}") from None
    missing = [] if isinstance(settings, KaggleSettings) else log.missing(folder)  # those look for themselves
    if missing:
        raise DataError(f"{folder}: {', '.join(missing)}: no such file. {_advice(settings.kind, log)}")
    return open_source(settings, base=base, data=data)


def _advice(kind: str, log: PublicLog) -> str:
    return (
        f'The folder {kind}/ has {log.wanted}: docs/logs.md ("Public logs") says what is in them and how to make them '
        f"of what {log.page} publishes"
    )
