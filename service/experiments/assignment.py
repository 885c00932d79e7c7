"""Unit -> bucket -> arm: a pure function of the experiment file and the unit (a contract; docs/experiments.md).

    bucket = int(sha256(salt + ":" + unit).hexdigest()[:15], 16) % 10000

Sixty bits of the hash, so that any SQL with signed 64-bit integers replays it. Any number of workers and
machines that read the same file route a unit alike, and nothing about a unit is stored.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from hashlib import sha256
from typing import Literal

BUCKETS = 10_000
OUTSIDE = -1


def bucket_of(salt: str, unit: str) -> int:
    """The bucket, 0 to 9999, of a unit under a salt. An integer unit is hashed as its decimal digits."""
    return (int.from_bytes(sha256(f"{salt}:{unit}".encode()).digest()[:8], "big") >> 4) % BUCKETS


def growthbook_bucket_of(salt: str, unit: str) -> int:
    """The bucket that GrowthBook's SDKs give, hash version 2 with the salt as seed: for who moves from there, or splits
    elsewhere in a page by the same hash.

        n = fnv1a32(str(fnv1a32(salt + unit))) % 10000

    over UTF-16 code units, as its JavaScript SDK has it. Its range ends at start + coverage * weight, ours at the last
    whole bucket below: the same wherever the coverage of an arm's width is a whole number of buckets.
    """
    return _fnv1a32(str(_fnv1a32(salt + unit))) % BUCKETS


def _fnv1a32(text: str) -> int:
    if text.isascii():
        units: tuple[int, ...] | bytes = text.encode()
    else:
        data = text.encode("utf-16-le")
        units = struct.unpack(f"<{len(data) // 2}H", data)
    value = 0x811C9DC5
    for unit in units:
        value = ((value ^ unit) * 0x01000193) & 0xFFFFFFFF
    return value


HashName = Literal["sha256", "growthbook"]
HASHES: Mapping[HashName, Callable[[str, str], int]] = {"sha256": bucket_of, "growthbook": growthbook_bucket_of}


@dataclass(frozen=True, slots=True)
class Range:
    """Buckets start <= b < stop."""

    start: int
    stop: int

    def __contains__(self, bucket: object) -> bool:
        return isinstance(bucket, int) and self.start <= bucket < self.stop


def arm_ranges(weights: list[Decimal], coverage: Decimal) -> list[Range]:
    """The buckets each arm owns: [start_i, start_i + floor(coverage * width_i)), starts at the full widths.

    Since the starts do not depend on the coverage, raising it only adds units to an arm and moves nobody. `weights` are
    shares of 10,000 buckets and must come out whole; decimals, so that 0.57 of 5000 is 2850 and not one less.
    """
    ranges = []
    start = 0
    for weight in weights:
        width = int(weight * BUCKETS)
        ranges.append(Range(start, start + int(coverage * width)))
        start += width
    return ranges


@dataclass(frozen=True, slots=True)
class Layer:
    """A traffic layer: experiments in it own disjoint ranges of its buckets, so nobody is in two of them."""

    salt: str
    owned: Range


@dataclass(frozen=True, slots=True)
class Assignment:
    """Where a unit went. `arm` is the index of the arm assigned; control (0) for units that are not enrolled."""

    arm: int
    enrolled: bool


@dataclass(frozen=True, slots=True)
class Assigner:
    """The assignment of one phase of one experiment."""

    salt: str
    ranges: tuple[Range, ...]
    layer: Layer | None = None
    bucket_of: Callable[[str, str], int] = bucket_of
    """(salt, unit) -> bucket within the experiment; the layer's is always the published one."""

    def assign(self, unit: str) -> Assignment:
        """The arm of a unit, by its bucket. Outside the layer's share or the coverage: control, not enrolled."""
        place = self.place(unit)
        return Assignment(0, enrolled=False) if place == OUTSIDE else Assignment(place, enrolled=True)

    def place(self, unit: str) -> int:
        """The same as a number: the index of the arm of an enrolled unit, else `OUTSIDE`."""
        layer = self.layer
        if layer is not None and bucket_of(layer.salt, unit) not in layer.owned:
            return OUTSIDE
        return self.place_bucket(self.bucket_of(self.salt, unit))

    def place_bucket(self, bucket: int) -> int:
        """The index of the arm that owns a bucket, else `OUTSIDE`; of a unit that the layer lets in."""
        for index, owned in enumerate(self.ranges):
            if owned.start <= bucket < owned.stop:
                return index
        return OUTSIDE
