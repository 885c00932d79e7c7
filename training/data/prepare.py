"""From a log to arrays of ids: the `prepare` stage.

    survey   label, time and unit of every row; the split draws its lines          (small columns only)
    fit      vocabularies and edges, on training rows and nothing else
    encode   every row to the memory-mapped arrays of `EncodedLog`, chunk by chunk

Memory holds one chunk, the vocabularies, and about 20 bytes a row during the survey, 1 afterwards. The
folder is built beside its place and renamed when it is whole.
"""

import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
from training.data.chunks import Chunk, Source
from training.data.clicks import ClickLog, Clicks
from training.data.faults import Count, Faults, shown
from training.data.fingerprint import facts_of, fingerprint
from training.data.golden_rows import Row, golden_requests, raw_rows, spread_out, to_text
from training.data.split import (
    PART_NAMES,
    UNUSED,
    ColumnSplit,
    FilesSplit,
    FoldsSplit,
    Parts,
    Split,
    TimeSplit,
    named_files,
    part_validation,
    parts_by_folds,
    parts_by_time,
    refuse_useless_parts,
)
from training.data.timestamps import to_iso
from training.encoded_log import EncodedLog, Part
from training.errors import DataError, SplitError
from training.stages import Report
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


class PrepareReport(BaseModel):
    """What became of a log. Parts are train, valid_a, valid_b, valid_c and test; rates are shares from 0 to 1."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    fingerprint: str
    """sha256 over the contents of the files."""
    files: tuple[str, ...]
    rows: dict[str, int]
    """By part, and `unused`: rows the split leaves out."""
    label_rate: dict[str, float]
    first_time: dict[str, str]
    """The earliest moment by part, ISO 8601 in the schema's timezone; empty without a timestamp."""
    last_time: dict[str, str]
    bad_rows: int
    """Rows that could not be read, and were skipped."""
    bad_row_reasons: dict[str, FaultCount]
    blank_lines: int
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

    @classmethod
    def read(cls, folder: Path) -> "PrepareReport":
        """The report of a prepared folder."""
        return cls.model_validate_json((folder / "report.json").read_text(encoding="utf-8"))


def prepare(
    source: Source,
    schema: FeatureSchema,
    split: Split,
    folder: Path,
    progress: Report | None = None,
    *,
    fingerprint_cache: Path | None = None,
) -> PrepareReport:
    """Encode a log into `folder` (absent, or an empty one): log/, schema.json, vocabularies/,
    golden_rows.json, report.json.

    Raises `DataError` for a log that is not what the schema says and `SplitError` for a split that leaves a
    part without rows of both labels. Whatever stops it, `folder` stays as it was.
    """
    if folder.exists() and any(folder.iterdir()):
        raise DataError(f"{folder}: is not empty; expected a new folder to prepare the log into")
    building = folder.parent / f".{folder.name}.unfinished"
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    try:
        report = _Preparation(source, schema, split, progress).run(building, fingerprint_cache)
        building.rename(folder)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    return report


def load_encoder(folder: Path) -> Encoder:
    """The encoder of a prepared folder."""
    schema = FeatureSchema.from_file(folder / "schema.json")
    vocabularies = {
        file.name.removesuffix(".json"): json.loads(file.read_text(encoding="utf-8"))
        for file in (folder / "vocabularies").glob("*.json")
    }
    return Encoder(schema, vocabularies)


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


class _Preparation:
    """One run of `prepare`: what its three passes share."""

    def __init__(self, source: Source, schema: FeatureSchema, split: Split, progress: Report | None) -> None:
        self.schema = schema
        self.split = split
        self.progress = progress
        extra = (split.column,) if isinstance(split, ColumnSplit) else ()
        if isinstance(split, TimeSplit) and schema.timestamp is None:
            raise SplitError("split: by time needs a timestamp, and the schema names none; split by a column or files")
        self.files = named_files(split, [str(f) for f in source.files]) if isinstance(split, FilesSplit) else {}
        self.log = ClickLog(source, schema, extra)
        self.rows = 0

    def run(self, folder: Path, fingerprint_cache: Path | None) -> PrepareReport:
        started = time.monotonic()
        files = self.log.source.files
        facts = facts_of(files)
        digest = fingerprint(files, fingerprint_cache, self.progress)
        faults = Faults(self.schema.max_bad_rows)
        parts, summary = self._survey(faults)
        encoder = self._fit(parts)
        summary |= self._encode(folder, encoder, parts)
        if facts_of(files) != facts:
            raise DataError(f"a file of {', '.join(map(str, files))} changed while it was read; prepare it again")
        report = PrepareReport(
            fingerprint=digest,
            files=tuple(str(f) for f in files),
            bad_rows=faults.bad_rows,
            bad_row_reasons={reason: _fault(count) for reason, count in faults.reasons.items()},
            blank_lines=faults.blank_lines,
            vocabulary=dict(encoder.sizes),
            seconds=round(time.monotonic() - started, 3),
            **summary,
        )
        _write(folder / "report.json", report.model_dump_json(indent=1) + "\n")
        return report

    def _report(self, stage: int, rows: int, total: float, note: str) -> None:
        if self.progress is not None:
            self.progress(stage * total + rows, 3 * total, note)

    def _survey(self, faults: Faults) -> tuple[Parts, dict[str, Any]]:
        """First pass: the part of every readable row, and the facts about rows that need no encoder."""
        labels, times, units, raw_parts = [], [], [], []
        for clicks in self.log.survey(faults):
            labels.append(clicks.label > 0)
            times.append(clicks.time)
            units.append(clicks.unit)
            raw_parts.append(self._stated_parts(clicks.chunk))
            self.rows += len(clicks)
            self._report(0, self.rows, self.rows / max(clicks.chunk.read, 1e-9), "looking at labels and times")
        if not self.rows:
            raise DataError(f"{self.log.source.files[0]}: no rows that can be read; expected at least one")
        label, moment, unit = np.concatenate(labels), np.concatenate(times), np.concatenate(units)
        del labels, times, units
        if isinstance(self.split, TimeSplit):
            parts = parts_by_time(self.split, moment, self.log.zone)
        elif isinstance(self.split, FoldsSplit):
            parts = parts_by_folds(self.split, label)
        else:
            parts = np.concatenate(raw_parts)
        parts = part_validation(parts, unit, self.split)
        refuse_useless_parts(parts, label, moment if self.schema.timestamp else None)
        rows = {name: int((parts == part).sum()) for part, name in PART_NAMES.items()}
        summary: dict[str, Any] = {
            "rows": rows | {"unused": int((parts == UNUSED).sum())},
            "label_rate": {name: float(label[parts == part].mean()) for part, name in PART_NAMES.items()},
            "first_time": {},
            "last_time": {},
        }
        if self.schema.timestamp is not None:
            for part, name in PART_NAMES.items():
                own = moment[parts == part]
                summary["first_time"][name] = to_iso(int(own.min()), self.log.zone)
                summary["last_time"][name] = to_iso(int(own.max()), self.log.zone)
        return parts, summary

    def _stated_parts(self, chunk: Chunk) -> Parts:
        """What the split's column, or the file, says of each row; zeros where time or chance decides."""
        split = self.split
        if isinstance(split, FilesSplit):
            return np.full(chunk.rows, self.files[chunk.file], np.uint8)
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

    def _fit(self, parts: Parts) -> Encoder:
        """Second pass: vocabularies and edges from training rows."""
        fitter = EncoderFitter(self.schema)
        done = 0
        for clicks in self.log.read(Faults(None)):
            keep = parts[done : done + len(clicks)] == int(Part.TRAIN)
            done += len(clicks)
            if keep.any():
                chosen = clicks.select(keep)
                with _Named(chosen.chunk):
                    fitter.update(self.log.fields(chosen))
            self._report(1, done, self.rows, "learning vocabularies from training rows")
        return fitter.finish()

    def _encode(self, folder: Path, encoder: Encoder, parts: Parts) -> dict[str, Any]:
        """Third pass: ids of every row, the golden rows, and the facts about values."""
        fields = fields_of(encoder)
        plain = [f.name for f in fields if not f.is_sequence]
        tally = _Tally(self.schema, fields)
        golden = spread_out(np.flatnonzero(parts == int(Part.TEST)), GOLDEN_SAMPLE)
        sample: list[Row] = []
        done = 0
        with EncodedLog.writer(folder / "log", fields) as writer:
            for clicks in self.log.read(Faults(None)):
                own = parts[done : done + len(clicks)]
                picked = golden[(golden >= done) & (golden < done + len(clicks))] - done
                if picked.size:
                    sample += raw_rows(self.log, clicks, picked.tolist())
                done += len(clicks)
                used = own != UNUSED
                if used.any():
                    chosen, own = clicks.select(used), own[used]
                    with _Named(chosen.chunk):
                        encoded = encoder.encode_columns(self.log.fields(chosen))
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
                self._report(2, done, self.rows, "encoding")
            if done != len(parts):
                raise DataError(f"the log had {len(parts)} rows at first and {done} later; prepare it again")
            writer.finish()
        _write(folder / "schema.json", self.schema.to_json())
        (folder / "vocabularies").mkdir()
        for name, values in encoder.to_vocabularies().items():
            _write(
                folder / "vocabularies" / f"{name}.json",
                json.dumps(values, ensure_ascii=False, allow_nan=False),
            )
        _write(folder / "golden_rows.json", to_text(golden_requests(self.schema, sample)))
        return tally.summary()


class _Tally:
    """Counts over encoded chunks: missing and unknown by field and part, bad cells, ids of training rows."""

    def __init__(self, schema: FeatureSchema, fields: Fields) -> None:
        self._schema = schema
        self._counts = {f.name: np.zeros(f.size, np.int64) for f in fields}
        self._values = {f.name: dict.fromkeys(PART_NAMES, 0) for f in fields}
        self._missing = {f.name: dict.fromkeys(PART_NAMES, 0) for f in fields}
        self._unknown = {f.name: dict.fromkeys(PART_NAMES, 0) for f in fields}
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
            name: {PART_NAMES[part]: count / max(1, self._values[name][part]) for part, count in by_part.items()}
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
