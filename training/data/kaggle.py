"""The two public logs of Kaggle's click competitions, as downloaded: Criteo's `train.txt` and Avazu's `train.csv`.

    criteo_kaggle/train.txt [.gz]          no header: Label, I1-I13, C1-C26, separated by tabs; 45,840,617 rows
    avazu_kaggle/train.csv [.gz] or .gz    header: id, click, hour, C1, ...; 40,428,967 rows

Columns have the names of the public benchmark's own files (reczoo/Criteo_x4 and Avazu_x4), so one schema reads both. A
published random split is a matter of row numbers: one row lost and it is another split. So with `rows` set, as the
shipped recipes have it, a file of any other length is refused. And whoever has a file can see for himself that its
validation and test rows are the benchmark's, byte for byte:

    python -m training.data.kaggle criteo_x4 --data FOLDER
"""

import argparse
import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.documents import parse_document
from training.data.chunks import Chunk
from training.data.encoded_log import Part
from training.data.faults import Faults, shown
from training.data.readers import FileSource
from training.data.split import FoldsSplit, parts_by_folds
from training.data.text_files import TextFormat, first_line_of
from training.errors import DataError, TrainingError

RECIPES = Path(__file__).parent.parent / "recipes"

CRITEO = "criteo_kaggle"
AVAZU = "avazu_kaggle"

CRITEO_COLUMNS = ("Label", *(f"I{i}" for i in range(1, 14)), *(f"C{i}" for i in range(1, 27)))
AVAZU_COLUMNS = (
    *("id", "click", "hour", "C1", "banner_pos", "site_id", "site_domain", "site_category"),
    *("app_id", "app_domain", "app_category", "device_id", "device_ip", "device_model"),
    *("device_type", "device_conn_type", *(f"C{i}" for i in range(14, 22))),
)

PUBLISHED_MD5 = {
    CRITEO: {"valid.csv": "fba5428b22895016e790e2dec623cb56", "test.csv": "cfc37da0d75c4d2d8778e76997df2976"},
    AVAZU: {"valid.csv": "33232931d84d6452d3f956e936cab2c9", "test.csv": "3ebb774a9ca74d05919b84a3d402986d"},
}
"""Of the benchmark's own files, as github.com/reczoo/Datasets states them."""

_NAMES = {CRITEO: ("train.txt", "train.txt.gz"), AVAZU: ("train.csv", "train.csv.gz", "train.gz")}
ARCHIVES = ("*.tar.gz", "*.tgz", "*.zip", "*.rar", "*.7z")


@dataclass(frozen=True)
class KaggleSource:
    """The rows of one of the two logs, in the file's order. A `Source`.

    `folder` holds the file. `rows`, if given, is how many it must have. Raises `DataError` at once where there is no
    such file, or its first line is not what the log's is.
    """

    log: str
    folder: Path
    rows: int | None = None
    _file: FileSource = field(init=False, repr=False)

    def __post_init__(self) -> None:
        path = _find(self.folder, _NAMES[self.log])
        line = first_line_of(path)[0].decode("utf-8", "replace").rstrip("\r\n")
        if self.log == CRITEO:
            _refuse_other_than_criteo(path, line)
            form = TextFormat(separator="\t", quote=None, header=CRITEO_COLUMNS)
        else:
            _refuse_other_than_avazu(path, line)
            form = TextFormat(separator=",", quote=None)
        object.__setattr__(self, "_file", FileSource((path,), form))

    @property
    def files(self) -> tuple[Path, ...]:
        return self._file.files

    def columns(self) -> dict[str, pa.DataType]:
        return self._file.columns()

    def require(self, wanted: Mapping[str, str]) -> None:
        self._file.require(wanted)

    def chunks(self, columns: Sequence[str], faults: Faults) -> Iterator[Chunk]:
        count = 0
        for chunk in self._file.chunks(columns, faults):
            count += chunk.rows
            yield chunk
        if self.rows is not None and count != self.rows:
            what = "truncated" if count < self.rows else "more than the public file"
            raise DataError(
                f"{self.files[0]}: expected {self.rows:,} rows as in the public file, got {count:,}: {what}? Fetch it "
                "again; to train on another file of this form, which no published figure compares with: "
                "--set source.rows=null"
            )


def _find(folder: Path, names: Sequence[str]) -> Path:
    found = [folder / name for name in names if (folder / name).exists()]
    if len(found) > 1:
        raise DataError(f"{folder}: expected one of {', '.join(names)}, got {len(found)} of them; leave one there")
    if found and found[0].is_dir():
        raise DataError(f"{found[0]}: is a folder; expected the file itself")
    if found:
        return found[0]
    archives = sorted(path.name for pattern in ARCHIVES for path in folder.glob(pattern))
    advice = f"; unpack {archives[0]} there first" if archives else ""
    raise DataError(f"{folder}: expected {' or '.join(names)} in it, got neither{advice}")


def _refuse_other_than_criteo(path: Path, line: str) -> None:
    cells, wanted = line.split("\t"), len(CRITEO_COLUMNS)
    if cells[0].lower() in ("label", "click"):
        raise DataError(
            f"{path}:1: expected a row, because the public file has no header line, got one ({shown(line)}). "
            "Read a file with a header by `source: {kind: files}`, or remove it: tail -n +2"
        )
    if len(cells) == wanted - 1:
        raise DataError(
            f"{path}:1: expected {wanted} cells (Label, I1-I13, C1-C26), got {len(cells)}; "
            "the test file has no labels, take train.txt"
        )
    if len(cells) != wanted:
        raise DataError(
            f"{path}:1: expected {wanted} cells between tabs (Label, I1-I13, C1-C26), "
            f"got {len(cells)} in {shown(line)}; is it the public train.txt, unpacked?"
        )


def _refuse_other_than_avazu(path: Path, line: str) -> None:
    header = line.removeprefix("\ufeff").split(",")
    absent = [name for name in AVAZU_COLUMNS if name not in header]
    if absent == ["click"]:
        raise DataError(f"{path}:1: expected a column 'click'; the test file has none, take train.csv")
    if absent:
        raise DataError(
            f"{path}:1: expected the header {','.join(AVAZU_COLUMNS[:5])},..., which names {absent[0]!r}; "
            f"got {shown(line)}. Is the header line lost? Is it the public train.csv, unpacked?"
        )


def md5_of_parts(source: KaggleSource, split: FoldsSplit) -> dict[str, str]:
    """The md5 of valid.csv and test.csv as the benchmark writes them: a header line, then the part's rows in order."""
    header = tuple(source.columns())
    label = CRITEO_COLUMNS[0] if source.log == CRITEO else AVAZU_COLUMNS[1]
    clicks = [pc.equal(chunk.columns[label], "1") for chunk in source.chunks((label,), Faults(0.0))]
    parts = parts_by_folds(split, np.concatenate([c.to_numpy(zero_copy_only=False) for c in clicks]))
    digests = {name: hashlib.md5(f"{','.join(header)}\n".encode()) for name in PUBLISHED_MD5[source.log]}
    done = 0
    for chunk in source.chunks(header, Faults(0.0)):
        own = parts[done : done + chunk.rows]
        done += chunk.rows
        lines = pc.binary_join_element_wise(*(chunk.columns[c] for c in header), ",")
        for name, is_own in (("valid.csv", (own != Part.TRAIN) & (own != Part.TEST)), ("test.csv", own == Part.TEST)):
            digests[name].update("".join(f"{line}\n" for line in lines.filter(pa.array(is_own)).to_pylist()).encode())
    return {name: digest.hexdigest() for name, digest in digests.items()}


def main(argv: Sequence[str]) -> int:
    """Compare a log's validation and test rows with the benchmark's; 0 where both are the same."""
    from training.data.sources import DATA_VARIABLE, KaggleSettings, open_source

    parser = argparse.ArgumentParser(
        prog="python -m training.data.kaggle",
        description="Whether the rows that validate and test are the public benchmark's, by the md5 it publishes.",
    )
    parser.add_argument("recipe", choices=["criteo_x4", "avazu_x4"])
    parser.add_argument("--data", type=Path, metavar="DIR", help=f"as for `run`; default: {DATA_VARIABLE}")
    options = parser.parse_args(argv)
    try:
        # Not by `load_recipe`: what reads a log would depend on all that a recipe can say, and be redone with it.
        recipe: Any = parse_document((RECIPES / f"{options.recipe}.yaml").read_text(encoding="utf-8"))
        source = open_source(KaggleSettings.model_validate(recipe["source"]), data=options.data)
        assert isinstance(source, KaggleSource)
        found = md5_of_parts(source, FoldsSplit.model_validate(recipe["split"]))
    except TrainingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    published = PUBLISHED_MD5[source.log]
    for name, md5 in found.items():
        said = "the benchmark's" if md5 == published[name] else f"NOT the benchmark's, {published[name]}"
        print(f"{md5}  {name}  {said}")
    return int(found != published)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
