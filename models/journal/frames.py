"""One record in a file: a frame, found again whatever happened to its neighbours.

    magic 4 bytes FF 52 54 FE | length u32 | crc32 u32 of the length's bytes and the payload | payload   little endian

A payload is UTF-8, in which the bytes FE and FF cannot occur: so the magic is never inside one, and after a damaged
frame the next magic is the next frame. Any damaged byte loses one record and no more. A file begins with `FILE_MAGIC`,
which a reader skips like anything else that is no frame, without counting it.

A payload that begins with a NUL is a record that was erased: what it said is gone, its place is kept, so that whoever
remembers how far he has read may go on from there.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from zlib import crc32

FILE_MAGIC = b"RETORTJ1"
MAGIC = b"\xffRT\xfe"
MAX_PAYLOAD_BYTES = 1 << 26
HEAD_BYTES = 12

_HEAD = struct.Struct("<4sII")
_LENGTH = struct.Struct("<I")


@dataclass(slots=True)
class Skipped:
    """What a reader could not read."""

    damaged: int = 0
    """Places in the middle of a file that are no frame; each was one record or more."""
    torn: int = 0
    """Files whose end is no whole frame: their writer died, or the power went, while it wrote."""
    bytes: int = 0
    """In all of these together."""

    def add(self, other: Skipped) -> None:
        """Counts what another reader skipped too."""
        self.damaged += other.damaged
        self.torn += other.torn
        self.bytes += other.bytes


def frame(payload: bytes) -> bytes:
    """The payload, UTF-8 of at most `MAX_PAYLOAD_BYTES`, as it stands in a file."""
    length = len(payload)
    if length > MAX_PAYLOAD_BYTES:
        raise ValueError(f"expected a payload of at most {MAX_PAYLOAD_BYTES} bytes, got {length}")
    return _HEAD.pack(MAGIC, length, crc32(payload, crc32(_LENGTH.pack(length)))) + payload


def erased(length: int) -> bytes:
    """What stands in the place of a payload of so many bytes once it is erased."""
    return bytes(length)


def is_erased(payload: bytes) -> bool:
    """Whether there is nothing to read in it any more."""
    return payload.startswith(b"\0")


def payloads(data: bytes, skipped: Skipped) -> Iterator[bytes]:
    """Every whole payload in a file's bytes, in order; what is not whole is added to `skipped`."""
    return (payload for _, payload in frames(data, skipped) if not is_erased(payload))


def frames(data: bytes, skipped: Skipped) -> Iterator[tuple[int, bytes]]:
    """The same with the place of each frame in `data`, and with those that were erased."""
    place = len(FILE_MAGIC) if data.startswith(FILE_MAGIC) else 0
    size = len(data)
    lost = -1
    """Where what is being skipped began."""
    while place < size:
        payload = _payload_at(data, place)
        if payload is None:
            if lost < 0:
                lost = place
            place = data.find(MAGIC, place + 1)
            if place < 0:
                break
            continue
        if lost >= 0:
            skipped.damaged += 1
            skipped.bytes += place - lost
            lost = -1
        yield place, payload
        place += HEAD_BYTES + len(payload)
    if lost >= 0:
        skipped.torn += 1
        skipped.bytes += size - lost


def take_whole(data: bytes) -> tuple[list[bytes], int]:
    """(every whole payload in what was read of a file that may still be written to, how much of it need not be read
    again): what follows that is the beginning of a frame, or nothing yet."""
    found: list[bytes] = []
    place = done = len(FILE_MAGIC) if data.startswith(FILE_MAGIC) else 0
    while place < len(data):
        payload = _payload_at(data, place)
        if payload is not None:
            if not is_erased(payload):
                found.append(payload)
            place += HEAD_BYTES + len(payload)
            done = place
            continue
        place = data.find(MAGIC, place + 1)
        if place < 0:
            break
    return found, done


def _payload_at(data: bytes, place: int) -> bytes | None:
    """The payload of the frame that begins there, or None where none does."""
    start = place + HEAD_BYTES
    if start > len(data):
        return None
    magic, length, checksum = _HEAD.unpack_from(data, place)
    if magic != MAGIC or length > MAX_PAYLOAD_BYTES or start + length > len(data):
        return None
    payload = data[start : start + length]
    return payload if crc32(payload, crc32(data[place + 4 : place + 8])) == checksum else None
