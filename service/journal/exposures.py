"""A finished request -> its exposure or its failure, at the one place where every way of answering `/predict` comes
together.

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

from service.journal.records import Exposure, Failure, Shadow, decode_features

if TYPE_CHECKING:
    from service.scoring.plan import ShadowRoute
    from service.scoring.predict import Call


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


def failure_of(call: Call, code: str) -> Failure | None:
    """The record of a request that is refused with this code after its arm was known; None outside experiments."""
    request, chosen = call.request, call.chosen
    assert chosen is not None
    served = chosen.served
    if served.experiment is None or chosen.assigned is None:
        return None
    return Failure(
        request_id=request.request_id,
        time=round(time.time(), 6),
        unit=request.unit,
        experiment=served.experiment,
        phase=chosen.phase,
        arm=chosen.assigned,
        code=code,
        latency_ms=round(1e3 * (perf_counter() - call.started), 3),
        served=served.arm if served.arm != chosen.assigned else None,
        enrolled=chosen.enrolled,
        forced=chosen.forced,
    )


def shadow_of(call: Call, route: ShadowRoute, scores: bytes) -> Shadow:
    """The record of what a shadow said of a request that is logged; `scores` as `exposure_of` has them."""
    assert call.logged is not None
    bundle = route.scorer.bundle
    return Shadow(
        request_id=call.request.request_id,
        time=call.logged,
        experiment=route.experiment,
        arm=route.arm,
        model=bundle.name,
        version=bundle.version,
        pctr=msgspec.Raw(scores),
    )
