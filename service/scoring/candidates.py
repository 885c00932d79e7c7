"""Candidates by their raw bytes: an ad that was seen lately is neither decoded nor encoded again.

An ad server sends the same ads again and again, spelled the same. So a request is first only taken apart:

    body -> envelope (all but the candidates, decoded) + one piece of raw bytes for each candidate
    piece -> its encoded row, where the cache of the model has it

Why this is safe. `take_apart` cuts between `[{` and `}]` at every `{`, without reading JSON. The cut is right if, and
only if, each piece is one object and what is left with `[]` in the list's place is the envelope: then the body is that
envelope with the list of those objects in it, since a list of JSON objects is JSON. A piece only comes into the cache
after it was decoded, alone, as one object; and what is not in the cache is decoded, alone, or the request goes the
usual way (`request.py`), which reads all of it and is the specification. Nothing is refused here.

A cache belongs to one loaded version: the same bytes may be other ids to another, and go with it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, islice, pairwise, repeat
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from models.encoder import EncodedRows, Encoder, Ragged
from models.errors import EncodeError
from models.values import LARGEST_INTEGER, SMALLEST_INTEGER

LONGEST_ENVELOPE = 1 << 15
"""Of a longer one the usual way has to find out whether it is slow to read (`predict.LONG_BODY`)."""
MOST_NEW_BYTES = 1 << 14
WARM_TOGETHER = 16
FEW = 4
"""Where at most one candidate in so many is new, those are decoded one by one; else it is quicker to decode all."""
ENTRY_BYTES = 33 + 33 + 104
"""What an entry takes beside the bytes of its piece and its row: two headers of `bytes`, a place in a dict."""

_LIST = re.compile(rb'"candidates"[ \t\r\n]*:[ \t\r\n]*\[[ \t\r\n]*\{')
_NAME = b'"candidates"'
_ESCAPED_LETTER = re.compile(rb"\\u00[67]")
_DIGITS_TO_ZERO = bytes(ord("0") if 48 <= byte <= 57 else ord(" ") for byte in range(256))


class Envelope(msgspec.Struct, forbid_unknown_fields=True):
    """Everything of a request but its candidates. Values are checked further by whoever takes it on."""

    candidates: list[None]
    request_id: str | None = None
    unit_id: str | int | None = None
    context: dict[str, Any] | None = None
    experiment: str | None = None
    arm: str | None = None
    deadline_ms: float | int | None = None


_decode_envelope = msgspec.json.Decoder(Envelope).decode
_decode_object = msgspec.json.Decoder(dict[str, Any]).decode
_decode_raw = msgspec.json.Decoder(list[msgspec.Raw]).decode


def take_apart(body: bytes, max_candidates: int) -> tuple[Envelope, bytes, list[bytes]] | None:
    """(envelope, its text, a piece a candidate), or None where the body has to go the usual way.

    A piece is what stands between a candidate's `{` and the next one's, its `},` included; the last one's is written
    as if another followed. None says nothing of the body: it may be good, only uncommon.
    """
    found = _LIST.search(body)
    if found is None:
        return None
    start, end = found.end(), body.rfind(b"}]")
    rest = body[: found.start() + len(_NAME)] + b":[]" + body[end + 2 :]
    if end < start or len(rest) > LONGEST_ENVELOPE or rest.count(_NAME) != 1:
        return None
    if b"\\" in rest and _ESCAPED_LETTER.search(rest):  # a second member of that name may be spelled like that
        return None
    try:
        envelope = _decode_envelope(rest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    pieces = body[start:end].split(b"{", max_candidates)
    if envelope.candidates or len(pieces) > max_candidates:
        return None
    pieces[-1] += b"},"
    return envelope, rest, pieces


def has_wide_integer(text: bytes) -> bool:
    """Whether digits stand there that may be an integer beyond 64 bits, which has 19 of them or more."""
    return b"0" * 19 in text.translate(_DIGITS_TO_ZERO)


def holds_wide_integer(value: Any, text: bytes) -> bool:
    """Whether a decoded value holds an integer beyond 64 bits; `text` is what it was decoded from."""
    if not has_wide_integer(text):
        return False
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if type(value) is dict:
            waiting.extend(value.values())
        elif type(value) is list:
            waiting.extend(value)
        elif type(value) is int and not SMALLEST_INTEGER <= value <= LARGEST_INTEGER:
            return True
    return False


class RowFormat:
    """Encoded candidates one by one, to be kept and put together again: a row is the bytes of its ids, or with sequence
    fields a tuple of those and of each field's."""

    def __init__(self, encoder: Encoder) -> None:
        schema = encoder.schema
        self._width = len(schema.candidate_id_fields)
        flat = {field.name for field in schema.candidate_id_fields}
        self._lists = [field.name for field in schema.candidate_fields if field.name not in flat]

    def apart(self, encoded: EncodedRows, n: int) -> list[Any]:
        """The n rows."""
        joined = encoded.ids.tobytes()
        width = 4 * self._width
        flat = [joined[start : start + width] for start in range(0, n * width, width)] if width else [b""] * n
        if not self._lists:
            return flat
        columns: list[list[bytes]] = [flat]
        for name in self._lists:
            ids, offsets = encoded.sequences[name]
            joined, ends = ids.tobytes(), (4 * offsets).tolist()
            columns.append([joined[start:end] for start, end in pairwise(ends)])
        return list(zip(*columns, strict=True))

    def joined(self, rows: Iterable[Any], n: int) -> EncodedRows:
        """n rows as the encoder gives them, without counts. TypeError where one of the rows is None."""
        if not self._lists:
            return EncodedRows(np.frombuffer(b"".join(rows), np.int32).reshape(n, self._width), {}, {}, {}, 0)
        flat, *lists = zip(*rows, strict=True)
        sequences: dict[str, Ragged] = {}
        for name, column in zip(self._lists, lists, strict=True):
            ends = np.fromiter(chain((0,), map(len, column)), np.int32, n + 1)
            np.cumsum(ends, out=ends)
            sequences[name] = (np.frombuffer(b"".join(column), np.int32), ends // np.int32(4))
        ids: NDArray[np.int32] = np.frombuffer(b"".join(flat), np.int32).reshape(n, self._width)
        return EncodedRows(ids, sequences, {}, {}, 0)


class CandidateCache:
    """Pieces to encoded rows, for one model version, within `max_bytes`.

    Two generations: a young one that is full becomes the old one, whose entries move back when they are asked for.
    So a hit costs a look-up in a dict and no order is kept.
    """

    def __init__(self, encoder: Encoder, max_bytes: int) -> None:
        """`max_bytes` 0: nothing is kept, and every request goes the usual way."""
        self._encoder = encoder
        self._half = max_bytes // 2
        self._format = RowFormat(encoder)
        self._young: dict[bytes, Any] = {}
        self._old: dict[bytes, Any] = {}
        self._ignored: dict[bytes, int] = {}
        """Of entries with values that no field takes, how many; these are counted with each request."""
        self._young_bytes = 0
        self._old_bytes = 0
        self.count: Callable[[int, int, int], object] = lambda hits, misses, evicted: None
        """Told of each request: how many of its candidates were found, how many not, and how many entries went."""

    @property
    def is_on(self) -> bool:
        """Whether anything is ever kept."""
        return self._half > 0

    @property
    def size_bytes(self) -> int:
        """Memory taken, by estimate."""
        return self._young_bytes + self._old_bytes

    def __len__(self) -> int:
        return len(self._young) + sum(piece not in self._young for piece in self._old)

    def encode(self, pieces: Sequence[bytes]) -> EncodedRows | None:
        """The rows of these pieces, or None where too many are new, or one is not what the cache may know.

        Equal to what the encoder makes of the decoded objects, but for `missing` and `unknown`, which are left empty.
        """
        try:
            encoded = self._format.joined(map(self._young.get, pieces), len(pieces))
        except TypeError:  # a None among them
            rows = list(map(self._young.get, pieces))
            new = self._look_further(pieces, rows)
            self.count(len(rows) - len(new), len(new), 0)
            if new and (len(new) * FEW > len(rows) or not self._encode_new(pieces, rows, new)):
                return None
            encoded = self._format.joined(rows, len(rows))
        else:
            self.count(len(pieces), 0, 0)
        if self._ignored:
            encoded.ignored = sum(map(self._ignored.get, pieces, repeat(0)))
        return encoded

    def learn(self, body: bytes, pieces: Sequence[bytes], values: Sequence[Any], rows: EncodedRows) -> None:
        """Takes note of rows that the encoder made of a whole body's candidates, `values`, the usual way.

        Nothing happens where the pieces turn out not to be those candidates.
        """
        if len(pieces) != len(values) or (rows.ignored and has_wide_integer(body)):
            return
        try:
            listed = b"[{" + b"{".join(pieces).rstrip().removesuffix(b",") + b"]"
            lengths = [len(memoryview(raw)) for raw in _decode_raw(listed)]
        except (msgspec.DecodeError, UnicodeDecodeError):
            return
        # Each object begins where the one before ended: so where the lengths agree, all pieces are objects.
        if lengths == [1 + len(_object_part(piece)) for piece in pieces]:
            self._keep(pieces, values, rows)

    def latest(self, most: int) -> list[bytes]:
        """The pieces that were put in, or moved up from the old generation, last."""
        return list(islice(chain(reversed(self._young), reversed(self._old)), most))

    def warm(self, pieces: Sequence[bytes]) -> None:
        """Encodes pieces that another version's cache knew, before anybody asks: a version that was just swapped in
        would decode and encode every candidate of every request, at several times the cost, for a while. What does
        not fit this version's schema is left out."""
        for start in range(0, len(pieces) if self.is_on else 0, WARM_TOGETHER):
            part = pieces[start : start + WARM_TOGETHER]
            self._encode_new(part, [None] * len(part), range(len(part)))

    def _look_further(self, pieces: Sequence[bytes], rows: list[Any]) -> list[int]:
        """Fills in what the old generation has; the places of what is new."""
        new = []
        for place, row in enumerate(rows):
            if row is None:
                piece = pieces[place]
                row = self._old.get(piece)
                if row is None:
                    new.append(place)
                else:
                    rows[place] = row
                    self._put(piece, row, self._ignored.get(piece, 0))
        return new

    def _encode_new(self, pieces: Sequence[bytes], rows: list[Any], new: Sequence[int]) -> bool:
        texts = [pieces[place] for place in new]
        if sum(map(len, texts)) > MOST_NEW_BYTES:
            return False
        try:
            values = [_decode_object(b"{" + _object_part(text)) for text in texts]
            encoded = self._encoder.encode_candidates(values)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, EncodeError):
            return False  # the usual way says what is wrong, and with which row
        if encoded.ignored and any(map(has_wide_integer, texts)):
            return False
        for place, row in zip(new, self._keep(texts, values, encoded), strict=True):
            rows[place] = row
        return True

    def _keep(self, pieces: Sequence[bytes], values: Sequence[Any], encoded: EncodedRows) -> list[Any]:
        """Puts encoded rows into the cache, and returns them as it keeps them."""
        kept = self._format.apart(encoded, len(pieces))
        known = self._encoder.candidate_names
        for piece, value, row in zip(pieces, values, kept, strict=True):
            ignored = len(value) - len(known & value.keys()) if encoded.ignored else 0
            self._put(piece, row, ignored)
        return kept

    def _put(self, piece: bytes, row: Any, ignored: int) -> None:
        size = len(piece) + ENTRY_BYTES + (len(row) if type(row) is bytes else sum(len(part) + 60 for part in row))
        if self._young_bytes + size > self._half:
            if size > self._half:
                return
            gone = [old for old in self._old if old not in self._young]
            for old in gone:
                self._ignored.pop(old, None)
            self._old, self._old_bytes = self._young, self._young_bytes
            self._young, self._young_bytes = {}, 0
            self.count(0, 0, len(gone))
        self._young[piece] = row
        self._young_bytes += size
        if ignored:
            self._ignored[piece] = ignored
            self._young_bytes += 104


def _object_part(piece: bytes) -> bytes:
    """A piece without the comma that follows its object; where none does, it is no object and will not decode."""
    stripped = piece.rstrip(b" \t\r\n")
    return stripped[:-1] if stripped.endswith(b",") else b"!"
