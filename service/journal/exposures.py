"""A finished request -> its exposure, at the one place where every way of answering `/predict` comes together.

Nothing of it is computed anew: the scores are the bytes that go into the answer. So it costs some microseconds, of
which most are the kernel's.
"""

from __future__ import annotations

import contextlib
import random
import time
from time import perf_counter
from typing import TYPE_CHECKING

import msgspec

from service.journal.records import Exposure, decode_features

if TYPE_CHECKING:
    from service.predict import Call


def exposure_of(call: Call, scores: bytes, feature_rate: float) -> Exposure:
    """The record of a request that `scores`, a JSON list with a number or null a candidate, are about to answer.

    `feature_rate`: the share of records that hold the features too.
    """
    request, served, chosen = call.request, call.served, call.chosen
    assert chosen is not None
    bundle = served.scorer.bundle
    record = Exposure(
        request_id=request.request_id,
        time=round(time.time(), 6),
        unit=request.unit,
        model=bundle.name,
        version=bundle.version,
        pctr=msgspec.Raw(scores),
        latency_ms=round(1e3 * (perf_counter() - call.started), 3),
        candidate_ids=request.ids,
    )
    if served.experiment is not None:
        record.experiment = served.experiment
        record.phase = chosen.phase
        record.arm = chosen.assigned
        record.enrolled = chosen.enrolled
        record.forced = chosen.forced
        record.propensity = chosen.propensity
        record.fallback = served.fallback
        if served.arm != chosen.assigned:
            record.served = served.arm
    if feature_rate and random.random() < feature_rate:
        # Whatever the usual way could read, this one can too, but for depths at which only its decoder gives up.
        with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            features = decode_features(call.body)
            record.context, record.candidates = features.context or None, features.candidates or None
    return record
