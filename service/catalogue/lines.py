"""A catalogue's lines, checked; and the same lines as one model version encodes them."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from models.encoder import EncodedRows, Encoder
from models.errors import EncodeError
from service.errors import Code, Refusal
from service.scoring.candidates import RowFormat, holds_wide_integer
from service.scoring.first_layer import CatalogueRows, FirstLayer, Floats, Ids

logger = logging.getLogger(__name__)

MAX_ID_BYTES = 256
SLICE_BYTES = 1 << 16
SLICE_ROWS = 100
SLICE_SHARES = 256


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    id: str
    candidate: dict[str, Any]


_decode_line = msgspec.json.Decoder(_Line).decode


class CatalogueError(Exception):
    """A line of a catalogue is not what it should be. Never holds what stands there."""

    def __init__(self, line: int, what: str, field: str | None = None) -> None:
        super().__init__(f"line {line}: {what}")
        self.line = line
        self.field = field


@dataclass(frozen=True, slots=True, eq=False)
class Catalogue:
    """Lines of a catalogue, checked: by id, the line's number and its bytes."""

    version: str
    text: bytes
    """Every line, without the header."""
    lines: dict[str, tuple[int, bytes]]


async def read_catalogue(text: bytes) -> Catalogue:
    """The catalogue that these lines are; blank ones are skipped. Raises `CatalogueError`."""
    lines: dict[str, tuple[int, bytes]] = {}
    number = start = 0
    while start < len(text):
        end = text.find(b"\n", start + SLICE_BYTES) + 1 or len(text)
        for line in text[start:end].split(b"\n"):
            number += 1
            if not line.strip():
                continue
            id_ = _read_line(line, number).id
            if id_ in lines:
                raise CatalogueError(number, f"the id of line {lines[id_][0]} stands there again")
            lines[id_] = (number, line)
        number -= end < len(text)  # what follows the last line feed of a slice is the next one's
        start = end
        await asyncio.sleep(0)
    return Catalogue(hashlib.sha256(text).hexdigest()[:16], text, lines)


def _read_line(line: bytes, number: int) -> _Line:
    try:
        read = _decode_line(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise CatalogueError(
            number, 'expected {"id": a string, "candidate": an object of raw values}, and valid JSON'
        ) from None
    if not 1 <= len(read.id.encode()) <= MAX_ID_BYTES:
        raise CatalogueError(number, f"expected an id of 1 to {MAX_ID_BYTES} bytes of UTF-8")
    return read


@dataclass(frozen=True, slots=True, eq=False)
class _Shares:
    """What the first layer makes of each ad, and where it lies."""

    places: dict[str, int]
    """By id."""
    ids: Ids
    """[A, F]"""
    shares: Floats
    """[A, H]"""


class EncodedCatalogue:
    """A catalogue as one model version means it."""

    def __init__(self, encoder: Encoder, first_layer: FirstLayer | None = None, max_share_bytes: int = 0) -> None:
        """`first_layer`: of this version, to compute each ad's share ahead; a table of more than `max_share_bytes` is
        not made."""
        self._encoder = encoder
        self._first_layer = first_layer
        self._max_share_bytes = max_share_bytes
        self._shares: _Shares | None = None
        self._format = RowFormat(encoder)
        self._rows: dict[str, Any] = {}
        self.version: str | None = None
        """Of the catalogue that is encoded here; None while there is none."""

    async def encode(self, catalogue: Catalogue, *, is_strict: bool) -> Callable[[], None]:
        """Encodes every row; what is returned brings them into force. A row that does not fit this version's schema
        raises `CatalogueError` where `is_strict`, and else is left out."""
        rows: dict[str, Any] = {}
        left_out = 0
        lines = list(catalogue.lines.items())
        for start in range(0, len(lines), SLICE_ROWS):
            part = lines[start : start + SLICE_ROWS]
            try:
                rows.update(self._encode(part))
            except CatalogueError:
                if is_strict:
                    raise
                for one in part:
                    try:
                        rows.update(self._encode([one]))
                    except CatalogueError:
                        left_out += 1
            await asyncio.sleep(0)
        if left_out:
            logger.warning("%d candidates of the catalogue do not fit a model version's schema: left out", left_out)

        shares = await self._compute_shares(rows)

        def bring_into_force() -> None:
            # One or the other: what has a share is found by its place.
            self._rows, self._shares, self.version = {} if shares else rows, shares, catalogue.version

        return bring_into_force

    @property
    def share_bytes(self) -> int:
        """Memory that the shares take; 0 where there are none."""
        return 0 if self._shares is None else self._shares.shares.nbytes

    async def _compute_shares(self, rows: dict[str, bytes]) -> _Shares | None:
        """The table of every row's share; None where there is to be none."""
        if self._first_layer is None:
            return None
        width = len(self._encoder.schema.candidate_id_fields)
        places: dict[str, int] = {}
        found: _Shares | None = None
        items = list(rows.items())
        for start in range(0, len(items), SLICE_SHARES):
            part = items[start : start + SLICE_SHARES]
            ids = np.frombuffer(b"".join(row for _, row in part), np.int32).reshape(len(part), width)
            shares = self._first_layer.shares(ids)
            if found is None:
                if shares.itemsize * shares.shape[1] * len(items) > self._max_share_bytes:
                    logger.info("shares of %d candidates would take more than is allowed: none are kept", len(items))
                    return None
                table = np.empty((len(items), shares.shape[1]), np.float32)
                found = _Shares(places, np.empty((len(items), width), np.int32), table)
            found.ids[start : start + SLICE_SHARES] = ids
            found.shares[start : start + SLICE_SHARES] = shares
            places.update((id_, start + row) for row, (id_, _) in enumerate(part))
            await asyncio.sleep(0)
        return found

    def _encode(self, part: Sequence[tuple[str, tuple[int, bytes]]]) -> Iterable[tuple[str, Any]]:
        read = [_read_line(line, number) for _, (number, line) in part]
        try:
            encoded = self._encoder.encode_candidates([one.candidate for one in read])
        except EncodeError as error:
            number = part[error.row or 0][1][0]
            what = f"field '{error.field}': expected {error.expected}, got {error.got}"
            raise CatalogueError(number, what, error.field) from None
        if encoded.ignored:
            for one, (_, (number, line)) in zip(read, part, strict=True):
                if holds_wide_integer(one.candidate, line):
                    raise CatalogueError(number, "an integer is beyond what 64 bits can hold")
        return zip((one.id for one in read), self._format.apart(encoded, len(part)), strict=True)

    def find(self, ids: Sequence[str]) -> tuple[EncodedRows | None, list[int]]:
        """(the rows of the ids that are known, None where none is; the places of the others)."""
        if self.version is None:
            raise no_catalogue()
        if self._shares is not None:
            return self._find_shares(self._shares, ids)
        rows = list(map(self._rows.get, ids))
        unknown = [place for place, row in enumerate(rows) if row is None]
        if unknown:
            rows = [row for row in rows if row is not None]
        return (self._format.joined(rows, len(rows)) if rows else None), unknown

    @staticmethod
    def _find_shares(known: _Shares, ids: Sequence[str]) -> tuple[EncodedRows | None, list[int]]:
        found = list(map(known.places.get, ids))
        unknown = [place for place, row in enumerate(found) if row is None]
        if unknown:
            found = [row for row in found if row is not None]
            if not found:
                return None, unknown
        places = np.array(found, np.int32)
        return CatalogueRows(known.ids[places], {}, {}, {}, 0, known.shares, places), unknown


def no_catalogue() -> Refusal:
    """There is no catalogue to look ids up in."""
    return Refusal(Code.NO_CATALOGUE, "no catalogue is registered: send `candidates`", field="candidate_ids")
