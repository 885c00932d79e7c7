"""From a log to arrays of ids: three passes over it, each a step of its own that need not be done twice.

    survey       label, time and unit of every row; the split draws its lines       parts.npy, survey.json
    fit_encoder  vocabularies and edges, on training rows and nothing else          vocabularies/
    encode       every row to the memory-mapped arrays of `EncodedLog`              log/, report.json, golden_rows.json

Memory holds one chunk and, in turn: about 30 bytes a row; the values of vocabularies while they are counted, those
beyond `fitting.MOST_VALUES` on disk; the encoder and a byte a row. `prepare` does all three. A folder is built beside
its place and renamed when it is whole.
"""

import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from models.encoder import EncodedColumns, Encoder
from models.errors import EncodeError
from models.fitting import EncoderFitter
from models.manifest import FieldReference
from models.schema import FeatureSchema
from models.values import EXPECTED
from training.data.chance import scramble
from training.data.chunks import Chunk, Source
from training.data.clicks import ClickLog, Clicks
from training.data.encoded_log import EncodedLog, Part
from training.data.faults import Count, Faults, shown
from training.data.fingerprint import facts_of, fingerprint
from training.data.golden_rows import Row, golden_requests, raw_rows, spread_out, to_text
from training.data.split import (
    PART_NAMES,
    UNLABELLED_NAMES,
    UNUSED,
    ColumnSplit,
    FilesSplit,
    FoldsSplit,
    Parts,
    Split,
    TimeSplit,
    named_files,
    part_unlabelled,
    part_validation,
    parts_by_folds,
    parts_by_time,
    refuse_useless_parts,
    thin_training,
)
from training.data.timestamps import to_iso
from training.errors import DataError, SplitError
from training.pipeline.stages import Report
from training.zoo.embedding import Fields, FieldSpec

GOLDEN_SAMPLE = 32
"""Rows of the test part that become golden rows."""
REFERENCE_IDS = 64
"""Ids of a field counted one by one for the drift gauge; the rest are counted together."""


class FaultCount(BaseModel):
    """How often something was wrong, where first, and what it was there."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    count: int
    first: str
    example: str = ""


class _Survey(BaseModel):
    """survey.json: what the first pass found, for the two behind it and for the report.

    Parts are train, valid_a, valid_b, valid_c and test; rates are shares from 0 to 1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    FILE: ClassVar[str] = "survey.json"

    fingerprint: str
    """sha256 over the contents of the files."""
    files: tuple[str, ...]
    rows: dict[str, int]
    """By part, and `unused`: rows the split leaves out; `unlabelled` and `unlabelled_stop` where there are such."""
    label_rate: dict[str, float]
    first_time: dict[str, str]
    """The earliest moment by part, ISO 8601 in the schema's timezone; empty without a timestamp."""
    last_time: dict[str, str]
    bad_rows: int
    """Rows that could not be read, and were skipped."""
    bad_row_reasons: dict[str, FaultCount]
    blank_lines: int
    seconds: float

    @classmethod
    def read(cls, folder: Path) -> Self:
        """What a step left in its folder."""
        return cls.model_validate_json((folder / cls.FILE).read_text(encoding="utf-8"))


class PrepareReport(_Survey):
    """report.json: what became of a log."""

    FILE: ClassVar[str] = "report.json"

    bad_cells: dict[str, FaultCount]
    """Cells that are no value of their field's type, by field; each was taken as missing."""
    missing: dict[str, dict[str, float]]
    """Share of ids that mean missing, by field and part; an empty sequence is one such id."""
    unknown: dict[str, dict[str, float]]
    """Share of ids that mean unknown, not (often enough) in training rows, by field and part."""
    vocabulary: dict[str, int]
    """Ids of each field, missing and unknown included."""
    reference: dict[str, FieldReference]
    """Ids of each field in training rows, for the drift gauge."""
    seconds: float
    """Of the three passes together."""


def prepare(
    source: Source,
    schema: FeatureSchema,
    split: Split,
    folder: Path,
    progress: Report | None = None,
    *,
    fingerprint_cache: Path | None = None,
    unlabelled: Source | None = None,
    stopping_share: float = 0.0,
) -> PrepareReport:
    """Encode a log into `folder` (absent, or an empty one): log/, schema.json, vocabularies/,
    golden_rows.json, report.json. `unlabelled` and `stopping_share` as for `survey`.

    Raises `DataError` for a log that is not what the schema says and `SplitError` for a split that leaves a
    part without rows of both labels. Whatever stops it, `folder` stays as it was.
    """
    if folder.exists() and any(folder.iterdir()):
        raise DataError(f"{folder}: is not empty; expected a new folder to prepare the log into")
    building = folder.parent / f".{folder.name}.unfinished"
    shutil.rmtree(building, ignore_errors=True)
    whole, surveyed, fitted = (building / name for name in ("whole", "surveyed", "fitted"))
    for place in (whole, surveyed, fitted):
        place.mkdir(parents=True)
    cache = fingerprint_cache or building / "fingerprints.json"
    try:
        rows: dict[str, Any] = {"fingerprint_cache": cache, "unlabelled": unlabelled}
        survey(source, schema, split, surveyed, _third(progress, 0), stopping_share=stopping_share, **rows)
        fit_encoder(source, schema, surveyed, fitted, _third(progress, 1), **rows)
        report = encode(source, schema, surveyed, fitted, whole, _third(progress, 2), **rows)
        whole.rename(folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return report


def _third(progress: Report | None, before: int) -> Report | None:
    """Progress of one of three passes as progress of all; of hashing as it is."""
    if progress is None:
        return None
    tell = progress

    def listen(done: float, total: float, note: str = "") -> None:
        if note.startswith("hashing"):
            tell(done, total, note)
        else:
            tell(before * total + done, 3 * total, note)

    return listen


def load_encoder(folder: Path) -> Encoder:
    """The encoder of a prepared folder."""
    schema = FeatureSchema.from_file(folder / "schema.json")
    vocabularies = {
        file.name.removesuffix(".json"): json.loads(file.read_text(encoding="utf-8"))
        for file in (folder / "vocabularies").glob("*.json")
    }
    return Encoder(schema, vocabularies)


def serving_ids(folder: Path) -> dict[str, int]:
    """By training-only field of a prepared folder, the id that stands in for it when serving."""
    encoder = load_encoder(folder)
    names = [field.name for field in encoder.schema.training_only_fields]
    return dict(zip(names, encoder.serving_ids().tolist(), strict=True))


def load_golden_rows(folder: Path) -> list[dict[str, Any]]:
    """The golden requests of a prepared folder: raw context and candidates, without answers."""
    document = json.loads((folder / "golden_rows.json").read_text(encoding="utf-8"))
    requests: list[dict[str, Any]] = document["requests"]
    return requests


def fields_of(encoder: Encoder) -> Fields:
    """The fields as networks see them: context, training_only behind them, candidate; in schema order."""
    schema, sizes = encoder.schema, encoder.sizes
    context = (*schema.context_fields, *schema.training_only_fields)
    return (
        *(FieldSpec(f.name, sizes[f.name], "context", f.is_sequence) for f in context),
        *(FieldSpec(f.name, sizes[f.name], "candidate", f.is_sequence) for f in schema.candidate_fields),
    )


class _Pass:
    """One reading of a log from end to end: a context manager that refuses a log which is not the one surveyed, or
    changes while it is read."""

    def __init__(
        self,
        log: ClickLog,
        progress: Report | None,
        fingerprint_cache: Path | None,
        rows: int | None = None,
        surveyed: str | None = None,
    ) -> None:
        self.log = log
        self.started = time.monotonic()
        self._progress = progress
        self._rows = rows
        self._done = 0
        files = log.files
        self._facts = facts_of(files)
        self.fingerprint = fingerprint(files, fingerprint_cache, progress)
        if surveyed is not None and self.fingerprint != surveyed:
            names = ", ".join(map(str, files))
            raise DataError(f"a file of {names} changed since its rows were parted; run the same command again")

    def done(self, clicks: Clicks, note: str) -> slice:
        """These rows are dealt with; where they stand in the log."""
        before, self._done = self._done, self._done + len(clicks)
        if self._progress is not None:
            self._progress(self._done, self._rows or self._done / max(clicks.chunk.read, 1e-9), note)
        return slice(before, self._done)

    def __enter__(self) -> "_Pass":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        files = ", ".join(map(str, self.log.files))
        if error is not None:
            return
        if facts_of(self.log.files) != self._facts:
            raise DataError(f"a file of {files} changed while it was read; prepare it again")
        if self._rows is not None and self._done != self._rows:
            raise DataError(f"{files}: had {self._rows} rows at first and {self._done} later; prepare it again")

    @property
    def rows(self) -> int:
        """Dealt with so far."""
        return self._done

    @property
    def seconds(self) -> float:
        return round(time.monotonic() - self.started, 3)


def survey(
    source: Source,
    schema: FeatureSchema,
    split: Split,
    folder: Path,
    progress: Report | None = None,
    *,
    fingerprint_cache: Path | None = None,
    unlabelled: Source | None = None,
    stopping_share: float = 0.0,
) -> None:
    """First pass, into `folder`: the part of every readable row (parts.npy), and what needs no encoder (survey.json).

    `unlabelled` are rows without clicks, behind all others; a `stopping_share` of them, by unit, is to stop the
    student. Raises as `prepare` does.
    """
    if isinstance(split, TimeSplit) and schema.timestamp is None:
        raise SplitError("split: by time needs a timestamp, and the schema names none; split by a column or files")
    stated = _StatedParts(split, [str(f) for f in source.files])
    log = ClickLog(source, schema, stated.columns, unlabelled=unlabelled)
    faults = Faults(schema.max_bad_rows)
    labels: list[npt.NDArray[np.bool_]] = []
    times: list[npt.NDArray[np.int64]] = []
    units: list[npt.NDArray[np.uint64]] = []
    said: list[Parts] = []
    with _Pass(log, progress, fingerprint_cache) as reading:
        for clicks in log.survey(faults):
            if schema.timestamp is not None:
                times.append(clicks.time)
            if schema.unit is not None:
                units.append(clicks.unit)
            if not np.isnan(clicks.label).any():  # behind these come those without
                labels.append(clicks.label > 0)
                said.append(stated.of(clicks.chunk))
            reading.done(clicks, "looking at labels and times")
    n = sum(map(len, labels))
    if not n:
        raise DataError(f"{source.files[0]}: no rows that can be read; expected at least one")
    label, every_moment = _joined(labels), _joined(times) if times else None
    moment = None if every_moment is None else every_moment[:n]
    if isinstance(split, TimeSplit):
        assert moment is not None
        parts = parts_by_time(split, moment, log.zone)
    else:
        parts = parts_by_folds(split, label) if isinstance(split, FoldsSplit) else _joined(said)
    unit = _joined(units) if units else scramble(np.arange(reading.rows, dtype=np.uint64))
    parts = thin_training(part_validation(parts, unit[:n], split), split)
    refuse_useless_parts(parts, label, moment)
    if unlabelled is not None:
        parts = np.concatenate([parts, part_unlabelled(unit[n:], stopping_share, split)])
    names = _names_of(parts)
    rows = {name: int((parts == part).sum()) for part, name in names.items()}
    first, last = {}, {}
    for part, name in names.items() if every_moment is not None else ():
        assert every_moment is not None
        own = every_moment[parts == part]
        first[name], last[name] = to_iso(int(own.min()), log.zone), to_iso(int(own.max()), log.zone)
    np.save(folder / "parts.npy", parts)
    found = _Survey(
        fingerprint=reading.fingerprint,
        files=tuple(str(f) for f in source.files),
        rows=rows | {"unused": int((parts == UNUSED).sum())},
        label_rate={name: float(label[parts[:n] == part].mean()) for part, name in PART_NAMES.items()},
        first_time=first,
        last_time=last,
        bad_rows=faults.bad_rows,
        bad_row_reasons={reason: _fault(count) for reason, count in faults.reasons.items()},
        blank_lines=faults.blank_lines,
        seconds=reading.seconds,
    )
    _write(folder / _Survey.FILE, found.model_dump_json(indent=1) + "\n")


def _names_of(parts: Parts) -> dict[int, str]:
    """Names of the parts there are; those of rows with labels are always there."""
    return {**PART_NAMES, **{part: name for part, name in UNLABELLED_NAMES.items() if (parts == part).any()}}


def first_times(surveyed: Path) -> dict[str, str]:
    """Of a survey, the earliest moment by part; empty without a timestamp."""
    return _Survey.read(surveyed).first_time


def _joined(pieces: list[Any]) -> Any:
    """The pieces as one array; they are given up on the way."""
    whole = np.concatenate(pieces)
    pieces.clear()
    return whole


class _StatedParts:
    """What the split's column, or the file, says of each row; zeros where time or chance decides."""

    def __init__(self, split: Split, files: list[str]) -> None:
        self._split = split
        self._files = named_files(split, files) if isinstance(split, FilesSplit) else {}
        self.columns = (split.column,) if isinstance(split, ColumnSplit) else ()

    def of(self, chunk: Chunk) -> Parts:
        split = self._split
        if isinstance(split, FilesSplit):
            return np.full(chunk.rows, self._files[chunk.file], np.uint8)
        if not isinstance(split, ColumnSplit):
            return np.zeros(chunk.rows, np.uint8)
        column = chunk.columns[split.column]
        coded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
        stated = split.values()
        values = [*coded.dictionary.to_pylist(), None]
        found = [stated.get(str(v)) for v in values]
        codes = coded.indices.fill_null(len(values) - 1).to_numpy(zero_copy_only=False)
        for code, part in enumerate(found):
            if part is None and (rows := np.flatnonzero(codes == code)).size:
                came = "nothing" if values[code] in (None, "") else shown(values[code])
                raise SplitError(
                    f"{chunk.place(int(rows[0]))}: split column {split.column!r}: expected one of "
                    f"{', '.join(stated)}, got {came}. Name it under train, valid, test or ignore"
                )
        parts: Parts = np.array([p or 0 for p in found], np.uint8)[codes]
        return parts


def fit_encoder(
    source: Source,
    schema: FeatureSchema,
    surveyed: Path,
    folder: Path,
    progress: Report | None = None,
    *,
    fingerprint_cache: Path | None = None,
    earlier: Path | None = None,
    unlabelled: Source | None = None,
) -> None:
    """Second pass, into `folder`: vocabularies and edges from the training rows of a survey.

    `earlier` is the folder of an earlier `prepare`, whose encoder is extended.
    """
    parts, facts = np.load(surveyed / "parts.npy", mmap_mode="r"), _Survey.read(surveyed)
    scratch = folder / "counts"
    fitter = EncoderFitter(schema, scratch=scratch, earlier=load_encoder(earlier) if earlier else None)
    log = ClickLog(source, schema, unlabelled=unlabelled)
    with _Pass(log, progress, fingerprint_cache, len(parts), facts.fingerprint) as reading:
        for clicks in log.read(Faults(None)):
            keep = parts[reading.done(clicks, "learning vocabularies from training rows")] == int(Part.TRAIN)
            if keep.any():
                chosen = clicks.select(keep)
                with _Named(chosen.chunk):
                    fitter.update(log.fields(chosen))
    (folder / "vocabularies").mkdir()
    for name, values in fitter.finish().to_vocabularies().items():
        _write(folder / "vocabularies" / f"{name}.json", json.dumps(values, ensure_ascii=False, allow_nan=False))
    _write(folder / "schema.json", schema.to_json())
    _write(folder / "seconds.json", json.dumps(reading.seconds))
    shutil.rmtree(scratch, ignore_errors=True)


def encode(
    source: Source,
    schema: FeatureSchema,
    surveyed: Path,
    fitted: Path,
    folder: Path,
    progress: Report | None = None,
    *,
    fingerprint_cache: Path | None = None,
    unlabelled: Source | None = None,
) -> PrepareReport:
    """Third pass, into `folder`: ids of every row, the golden rows, and the report; all that `prepare` promises."""
    parts, facts = np.load(surveyed / "parts.npy", mmap_mode="r"), _Survey.read(surveyed)
    encoder = load_encoder(fitted)
    fields = fields_of(encoder)
    plain = [f.name for f in fields if not f.is_sequence]
    tally = _Tally(schema, fields, _names_of(np.asarray(parts)))
    golden = spread_out(np.flatnonzero(parts == int(Part.TEST)), GOLDEN_SAMPLE)
    sample: list[Row] = []
    log = ClickLog(source, schema, unlabelled=unlabelled)
    with (
        _Pass(log, progress, fingerprint_cache, len(parts), facts.fingerprint) as reading,
        EncodedLog.writer(folder / "log", fields) as writer,
    ):
        for clicks in log.read(Faults(None)):
            where = reading.done(clicks, "encoding")
            own = np.asarray(parts[where])
            picked = golden[(golden >= where.start) & (golden < where.stop)] - where.start
            if picked.size:
                sample += raw_rows(log, clicks, picked.tolist())
            used = own != UNUSED
            if used.any():
                chosen, own = clicks.select(used), own[used]
                with _Named(chosen.chunk):
                    encoded = encoder.encode_columns(log.fields(chosen))
                tally.add(chosen, own, encoded)
                writer.append(
                    ids=np.stack([encoded.ids[name] for name in plain], axis=1)
                    if plain
                    else np.zeros((len(chosen), 0), np.int32),
                    label=chosen.label,
                    unit=chosen.unit,
                    time=chosen.time,
                    truth=chosen.truth,
                    part=own,
                    sequences=encoded.sequences,
                )
        writer.finish()
    shutil.copytree(fitted / "vocabularies", folder / "vocabularies")
    _write(folder / "schema.json", schema.to_json())
    _write(folder / "golden_rows.json", to_text(golden_requests(schema, sample)))
    earlier = facts.seconds + float(json.loads((fitted / "seconds.json").read_text(encoding="utf-8")))
    report = PrepareReport(
        **facts.model_dump(exclude={"seconds"}),
        vocabulary=dict(encoder.sizes),
        seconds=round(earlier + reading.seconds, 3),
        **tally.summary(),
    )
    _write(folder / PrepareReport.FILE, report.model_dump_json(indent=1) + "\n")
    return report


class _Tally:
    """Counts over encoded chunks: missing and unknown by field and part, bad cells, ids of training rows."""

    def __init__(self, schema: FeatureSchema, fields: Fields, names: Mapping[int, str]) -> None:
        self._schema = schema
        self._names = names
        self._counts = {f.name: np.zeros(f.size, np.int64) for f in fields}
        self._values = {f.name: dict.fromkeys(names, 0) for f in fields}
        self._missing = {f.name: dict.fromkeys(names, 0) for f in fields}
        self._unknown = {f.name: dict.fromkeys(names, 0) for f in fields}
        self._bad: dict[str, Count] = {}

    def add(self, clicks: Clicks, parts: Parts, encoded: EncodedColumns) -> None:
        rows_of = {part: parts == part for part in np.unique(parts).tolist()}
        for part, rows in rows_of.items():
            for name, ids in encoded.ids.items():
                self._count(name, part, ids if rows.all() else ids[rows])
            for name, (elements, offsets) in encoded.sequences.items():
                own = elements if rows.all() else elements[np.repeat(rows, np.diff(offsets))]
                self._count(name, part, own)
        for name, count in encoded.bad.items():
            if count:
                cell = encoded.first_bad[name]
                place, kind = clicks.chunk.place(cell.row), self._schema.by_name[name].type
                words = f"expected {EXPECTED[kind]}, got {shown(cell.text)}: {cell.got}"
                known = self._bad.setdefault(name, Count(0, place, words))
                known.count += count

    def _count(self, name: str, part: int, ids: npt.NDArray[np.int32]) -> None:
        self._values[name][part] += len(ids)
        self._missing[name][part] += int((ids == 0).sum())
        self._unknown[name][part] += int((ids == 1).sum())
        if part == int(Part.TRAIN):
            counts = np.bincount(ids)
            self._counts[name][: len(counts)] += counts

    def summary(self) -> dict[str, Any]:
        return {
            "bad_cells": {name: _fault(count) for name, count in self._bad.items()},
            "missing": self._rates(self._missing),
            "unknown": self._rates(self._unknown),
            "reference": {name: _reference(counts) for name, counts in self._counts.items()},
        }

    def _rates(self, counts: Mapping[str, Mapping[int, int]]) -> dict[str, dict[str, float]]:
        return {
            name: {self._names[part]: count / max(1, self._values[name][part]) for part, count in by_part.items()}
            for name, by_part in counts.items()
        }


class _Named:
    """Turns what the encoder refuses into a `DataError` that names the file."""

    def __init__(self, chunk: Chunk) -> None:
        self.chunk = chunk

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, EncodeError):
            place = self.chunk.place(error.row) if error.row is not None else self.chunk.file
            raise DataError(
                f"{place}: field {error.field!r}: expected {error.expected}, got {error.got}; "
                "mend the schema or the file"
            ) from None


def _reference(counts: npt.NDArray[np.int64]) -> FieldReference:
    """The counts [ids] as the manifest keeps them: missing and unknown always, and the most frequent ids."""
    frequent = np.argsort(-counts, kind="stable")[:REFERENCE_IDS]
    kept = sorted({0, 1, *frequent[counts[frequent] > 0].tolist()})
    listed = [int(counts[id_]) if id_ < len(counts) else 0 for id_ in kept]
    return FieldReference(ids=tuple(kept), counts=tuple(listed), other=int(counts.sum()) - sum(listed))


def _fault(count: Count) -> FaultCount:
    return FaultCount(count=count.count, first=str(count.first), example=count.example)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
