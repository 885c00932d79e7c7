"""An encoded log on disk: a folder of memory-mapped arrays that a batch is read from by fancy indexing.

    ids.npy        int32 [n, Fc + Fa]   fields but sequences: context (training-only behind), candidate
    sequences/<field>.ids.npy int32 [K], <field>.offsets.npy int64 [n + 1]
    label.npy      float32 [n]          1 for a click
    truth.npy      float32 [n]          the known true probability, where there is one (synthetic logs)
    part.npy       uint8 [n]            `Part`: who may see the row
    unit.npy       uint64 [n]           hash of the unit
    time.npy       int64 [n]            microseconds since the epoch
    meta.json      the fields and the number of rows

It knows nothing of raw values: those end in the encoder.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from dataclasses import field as dataclass_field
from enum import IntEnum
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray

from training.data.resident import ResidentLog, bytes_of, fits, refuse_unknown
from training.fit.devices import CPU
from training.whole import write_whole
from training.zoo.embedding import Encoded, Fields, FieldSpec

FORMAT_VERSION = 1


class Part(IntEnum):
    """What a row is for. Validation rows are parted by unit; test rows are touched once, by the report."""

    TRAIN = 0
    VALID_A = 1
    """Stops teachers (by AUC) and the student (by distillation KL)."""
    VALID_B = 2
    """Fits the gate, its scale and its bias."""
    VALID_C = 3
    """Decides gate against average, and fits the calibration."""
    TEST = 4
    UNLABELLED = 5
    """No clicks are known, and its label is NaN: the student learns what the ensemble says of it."""
    UNLABELLED_STOP = 6
    """Likewise, and stops the student in place of part A where a recipe says so."""


VALID = (Part.VALID_A, Part.VALID_B, Part.VALID_C)


@dataclass(frozen=True)
class EncodedLog:
    """Read-only view of a folder written by `EncodedLogWriter`. Arrays are memory-mapped, shapes as above."""

    folder: Path
    fields: Fields
    ids: NDArray[np.int32]
    sequences: Mapping[str, tuple[NDArray[np.int32], NDArray[np.int64]]]
    label: NDArray[np.float32]
    truth: NDArray[np.float32] | None
    part: NDArray[np.uint8]
    unit: NDArray[np.uint64]
    time: NDArray[np.int64]
    fixed: Mapping[int, int] = dataclass_field(default_factory=dict)
    """Columns of `ids` that every batch has one id in, whatever the log says: what a network is not to see."""
    device: torch.device = CPU
    """Where batches and labels are wanted."""
    resident: ResidentLog | None = None
    """The log in the memory of that device, where it fits."""

    @classmethod
    def open(cls, folder: Path | str) -> EncodedLog:
        """Map the arrays of `folder`; FileNotFoundError or ValueError when it is incomplete."""
        folder = Path(folder)
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        if meta["format_version"] != FORMAT_VERSION:
            raise ValueError(
                f"{folder / 'meta.json'}: expected format {FORMAT_VERSION}, got {meta['format_version']}; "
                "prepare it again"
            )
        fields = tuple(FieldSpec(**spec) for spec in meta["fields"])
        log = cls(
            folder=folder,
            fields=fields,
            ids=_map(folder / "ids.npy"),
            sequences={
                spec.name: (
                    _map(folder / "sequences" / f"{spec.name}.ids.npy"),
                    _map(folder / "sequences" / f"{spec.name}.offsets.npy"),
                )
                for spec in fields
                if spec.is_sequence
            },
            label=_map(folder / "label.npy"),
            truth=_map(folder / "truth.npy") if (folder / "truth.npy").exists() else None,
            part=_map(folder / "part.npy"),
            unit=_map(folder / "unit.npy"),
            time=_map(folder / "time.npy"),
        )
        for name in ("ids", "label", "part", "unit", "time"):
            rows = len(getattr(log, name))
            if rows != meta["rows"]:
                raise ValueError(f"{folder / name}.npy: expected {meta['rows']} rows, got {rows}; prepare it again")
        return log

    @staticmethod
    def writer(folder: Path | str, fields: Fields) -> EncodedLogWriter:
        """A context manager whose `append` takes the log chunk by chunk."""
        return EncodedLogWriter(Path(folder), fields)

    def __len__(self) -> int:
        return len(self.label)

    def rows(self, parts: Iterable[Part]) -> NDArray[np.int64]:
        """Row numbers of the given parts, in the log's order."""
        return np.flatnonzero(np.isin(self.part, [int(part) for part in parts]))

    def with_fixed(self, ids: Mapping[str, int]) -> EncodedLog:
        """The same log for eyes that see one id in these fields, none of them a sequence."""
        plain = [spec.name for spec in self.fields if not spec.is_sequence]
        return replace(self, fixed={plain.index(name): id_ for name, id_ in ids.items()})

    def on(self, device: torch.device, *, resident: bool | None = None) -> EncodedLog:
        """The same log for networks on `device`: copied there whole if it fits (or as `resident` says), else batch by
        batch."""
        if device == CPU and not resident:
            return replace(self, device=CPU, resident=None)
        arrays = self.ids, self.label, self.sequences
        if resident is None:
            resident = fits(bytes_of(*arrays), device)
        return replace(self, device=device, resident=ResidentLog(*arrays, self._sizes, device) if resident else None)

    def batch(self, rows: NDArray[np.integer]) -> Encoded:
        """The rows in the row form, on the log's device: row i of the batch has context i."""
        ids, sequences = self._read(rows) if self.resident is None else self.resident.rows(rows)
        for column, id_ in self.fixed.items():
            ids[:, column] = id_
        plain_context = sum(spec.side == "context" and not spec.is_sequence for spec in self.fields)
        return Encoded(ids[:, :plain_context], ids[:, plain_context:], None, sequences)

    def labels(self, rows: NDArray[np.integer]) -> torch.Tensor:
        """Clicks of the rows, float32 [B], on the log's device."""
        if self.resident is not None:
            return self.resident.labels(rows)
        return torch.from_numpy(self.label[rows]).to(self.device)

    def _read(self, rows: NDArray[np.integer]) -> tuple[torch.Tensor, dict[str, tuple[torch.Tensor, torch.Tensor]]]:
        """From disk: ids [B, fields but sequences], and sequences."""
        ids = self.ids.take(rows, axis=0)  # in half the time of self.ids[rows]
        if self.device != CPU:  # the CPU's look-ups see for themselves
            refuse_unknown(ids, self._sizes)
        taken = {name: _take(*pair, rows) for name, pair in self.sequences.items()}
        return torch.from_numpy(ids).to(self.device), {
            name: (torch.from_numpy(values).to(self.device), torch.from_numpy(offsets).to(self.device))
            for name, (values, offsets) in taken.items()
        }

    @property
    def _sizes(self) -> list[int]:
        """Ids of each column of `ids`."""
        return [spec.size for spec in self.fields if not spec.is_sequence]


class EncodedLogWriter:
    """Appends chunks; nothing is readable until the block ends well, because meta.json comes last."""

    def __init__(self, folder: Path, fields: Fields) -> None:
        self.folder = folder
        self.fields = fields
        self.row_count = 0
        self._plain = sum(not spec.is_sequence for spec in fields)
        self._has_truth: bool | None = None
        self._parts_given: bool | None = None
        (folder / "sequences").mkdir(parents=True, exist_ok=True)
        (folder / "meta.json").unlink(missing_ok=True)
        (folder / "truth.npy").unlink(missing_ok=True)
        self._arrays: dict[str, _GrowingArray] = {}
        self._sequence_ends: dict[str, int] = {}
        self._open("ids", np.int32, self._plain)
        for name, dtype in (
            ("label", np.float32),
            ("unit", np.uint64),
            ("time", np.int64),
            ("part", np.uint8),
        ):
            self._open(name, dtype)
        for spec in fields:
            if spec.is_sequence:
                self._open(f"sequences/{spec.name}.ids", np.int32)
                self._open(f"sequences/{spec.name}.offsets", np.int64)
                self._arrays[f"sequences/{spec.name}.offsets"].append(np.zeros(1, dtype=np.int64))
                self._sequence_ends[spec.name] = 0

    def _open(self, name: str, dtype: type[np.generic], width: int | None = None) -> None:
        self._arrays[name] = _GrowingArray(self.folder / f"{name}.npy", np.dtype(dtype), width)

    def append(
        self,
        *,
        ids: NDArray[np.integer],
        label: NDArray[np.floating],
        unit: NDArray[np.uint64],
        time: NDArray[np.int64],
        truth: NDArray[np.floating] | None = None,
        part: NDArray[np.uint8] | None = None,
        sequences: Mapping[str, tuple[NDArray[np.integer], NDArray[np.integer]]] | None = None,
    ) -> None:
        """Add n rows: `ids` [n, fields but sequences], the rest [n], each sequence (ids [k], offsets [n+1]).

        `part` may be left out of every chunk and given whole to `finish`.
        """
        rows = len(label)
        sequences = sequences or {}
        if ids.shape != (rows, self._plain):
            raise ValueError(f"ids: expected shape {(rows, self._plain)}, got {ids.shape}")
        if set(sequences) != set(self._sequence_ends):
            raise ValueError(f"sequences: expected {sorted(self._sequence_ends)}, got {sorted(sequences)}")
        sizes = np.array([spec.size for spec in self.fields if not spec.is_sequence])
        if rows and (ids.min(initial=0) < 0 or (ids.max(axis=0) >= sizes).any()):
            raise ValueError("ids: expected every id in 0..size-1 of its field, got one outside")
        if self._has_truth is None:
            self._has_truth, self._parts_given = truth is not None, part is not None
            if self._has_truth:
                self._open("truth", np.float32)
        if self._has_truth != (truth is not None) or self._parts_given != (part is not None):
            raise ValueError("expected truth and part in every chunk or in none")
        for name, values in (
            ("label", label),
            ("unit", unit),
            ("time", time),
            ("truth", truth),
            ("part", part),
        ):
            if values is not None:
                if values.shape != (rows,):
                    raise ValueError(f"{name}: expected shape {(rows,)}, got {values.shape}")
                self._arrays[name].append(values)
        self._arrays["ids"].append(ids)
        for name, (elements, offsets) in sequences.items():
            if offsets.shape != (rows + 1,) or offsets[0] != 0 or offsets[-1] != len(elements):
                raise ValueError(f"sequence {name!r}: expected offsets 0..{len(elements)} of length {rows + 1}")
            self._arrays[f"sequences/{name}.ids"].append(elements)
            shifted = offsets[1:].astype(np.int64) + self._sequence_ends[name]
            self._arrays[f"sequences/{name}.offsets"].append(shifted)
            self._sequence_ends[name] += len(elements)
        self.row_count += rows

    def finish(self, *, part: NDArray[np.uint8] | None = None) -> EncodedLog:
        """Close the arrays, write meta.json and open the log."""
        if (part is None) != bool(self._parts_given):
            raise ValueError("part: expected with every chunk or here, not both and not neither")
        if part is not None:
            if part.shape != (self.row_count,):
                raise ValueError(f"part: expected shape {(self.row_count,)}, got {part.shape}")
            self._arrays["part"].append(part)
        self.close()
        meta = {
            "format_version": FORMAT_VERSION,
            "rows": self.row_count,
            "fields": [asdict(spec) for spec in self.fields],
        }
        write_whole(self.folder / "meta.json", json.dumps(meta, indent=1))
        return EncodedLog.open(self.folder)

    def close(self) -> None:
        """Give the files back; without `finish` the folder is not a log."""
        for array in self._arrays.values():
            array.close()

    def __enter__(self) -> EncodedLogWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _GrowingArray:
    """A .npy file whose first axis grows: its header has room for the count and is rewritten at the end."""

    def __init__(self, path: Path, dtype: np.dtype, width: int | None) -> None:
        self.dtype = dtype
        self.width = width
        self.count = 0
        self._file: IO[bytes] = path.open("wb")
        self._write_header()
        self._data_start = self._file.tell()

    def _write_header(self) -> None:
        shape = (self.count,) if self.width is None else (self.count, self.width)
        header = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, header)

    def append(self, values: NDArray[np.generic]) -> None:
        self._file.write(np.ascontiguousarray(values, dtype=self.dtype).tobytes())
        self.count += len(values)

    def close(self) -> None:
        if self._file.closed:
            return
        self._file.seek(0)
        self._write_header()
        if self._file.tell() != self._data_start:
            raise RuntimeError("the .npy header outgrew its padding")
        self._file.close()


def _map(path: Path) -> NDArray[Any]:
    """The array of a .npy file, mapped; as a plain ndarray, because indexing np.memmap itself is slower."""
    array: NDArray[Any] = np.load(path, mmap_mode="r")
    return array.view(np.ndarray)


def _take(
    values: NDArray[np.int32], offsets: NDArray[np.int64], rows: NDArray[np.integer]
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """The segments of `rows`, as (ids, offsets) of their own."""
    starts = offsets[rows]
    counts = offsets[rows + 1] - starts
    ends = np.cumsum(counts)
    taken = np.concatenate([np.zeros(1, dtype=np.int64), ends])
    positions = np.arange(taken[-1]) + np.repeat(starts - taken[:-1], counts)
    return values[positions], taken
