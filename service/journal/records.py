"""What is in a record (a contract: stored data): one JSON object, of one of four kinds.

Members that have their default are left out. Members may be added; readers ignore what they do not know. Times are
seconds since 1970, UTC.
"""

from __future__ import annotations

import msgspec


class Exposure(msgspec.Struct, tag_field="kind", tag="exposure", omit_defaults=True):
    """One scored request."""

    request_id: str
    time: float
    """When its answer was ready."""
    unit: str
    model: str
    """What answered, and its version."""
    version: int
    pctr: msgspec.Raw
    """A JSON list with the probability of each candidate as it was answered; null for one the catalogue lacks."""
    latency_ms: float
    """From the first byte of the request."""
    experiment: str | None = None
    """None where a model's own route was asked."""
    phase: int = 0
    arm: str | None = None
    """The arm assigned to the unit, or forced by the request."""
    served: str | None = None
    """The arm that answered, where it is another: the assigned one is halted."""
    enrolled: bool = False
    forced: bool = False
    fallback: str | None = None
    """Why another model than the served arm's answered."""
    propensity: float | None = None
    """The probability with which the unit's hash leads to the arm assigned, among enrolled units."""
    candidate_ids: list[str] | None = None
    """Where the request named its candidates by their ids in the catalogue."""
    context: msgspec.Raw | None = None
    """The raw features as they were sent, of a sample of requests."""
    candidates: msgspec.Raw | None = None


class Event(msgspec.Struct, tag_field="kind", tag="event", omit_defaults=True):
    """Something that happened to a candidate, or to a request as a whole."""

    request_id: str
    event: str
    received: float
    """By the service's clock."""
    time: float | None = None
    """By the caller's clock; absent: when it was received."""
    candidate: int | None = None
    event_id: str | None = None

    def key(self) -> int:
        """Of equal events equal, in one process: a hash of 64 bits."""
        return hash((self.request_id, self.candidate, self.event, self.event_id))


class Shadow(msgspec.Struct, tag_field="kind", tag="shadow", omit_defaults=True):
    """What another arm's model said of an exposure's candidates, unseen: a record of its own, written after the
    exposure's, which waits for nobody."""

    request_id: str
    time: float
    """The exposure's: of two with one request id, it says which was scored."""
    experiment: str
    arm: str
    """Whose model scored in the shadow, and its version."""
    model: str
    version: int
    pctr: msgspec.Raw
    """As long as the exposure's list, null where that has null."""


class Failure(msgspec.Struct, tag_field="kind", tag="failure", omit_defaults=True):
    """A request that was assigned to an arm and not answered: the arm's model failed, or nobody was in time."""

    request_id: str
    time: float
    unit: str
    experiment: str
    phase: int
    arm: str
    """The arm assigned to the unit, or forced by the request."""
    code: str
    """The stable code of the problem that was answered."""
    latency_ms: float
    served: str | None = None
    """The arm that should have answered, where it is another: the assigned one is halted."""
    enrolled: bool = False
    forced: bool = False


encode = msgspec.json.Encoder().encode


NOTHING = msgspec.Raw()


class Features(msgspec.Struct):
    """The raw features of a request's body, uninterpreted; `NOTHING` where it has none."""

    context: msgspec.Raw = NOTHING
    candidates: msgspec.Raw = NOTHING


decode_features = msgspec.json.Decoder(Features).decode
