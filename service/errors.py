"""What the service refuses, and the one table from a refusal to status, code and body.

    ServiceError
    ├── ConfigError            startup is refused: an option, variable or file is wrong      exit 2
    │   └── ExperimentError    an experiment file that cannot be used; at reload the last good one is kept
    │       ├── PhaseError     a change that needs a new phase; `key` is what may not move within this one
    │       └── StaleError     a change of an experiment that has changed meanwhile
    ├── ModelLoadError         a bundle that must not be served; `reason` is a metric label
    │   └── NoModelError       nothing left to serve with, startup is refused                exit 3
    ├── LoadDeferredError      a version that a request asks for may not be loaded just now; `seconds` until it may
    ├── AnswersError           a joined log that no answer can be made of                    exit 2
    └── Refusal                a request is refused: `code`, and the field and row at fault

A refusal is answered as RFC 9457 `application/problem+json` with `code`, `field` and `row` beside it, and
with the extra member `error` that Open Inference Protocol clients read. A `code` never changes meaning
(docs/api.md lists them); nothing a client sent is ever echoed.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import orjson

PROBLEM_JSON = b"application/problem+json"


class ServiceError(Exception):
    """Base of every error this room raises on purpose."""


class ConfigError(ServiceError):
    """The service must not start like this; the message says what to change."""


class ExperimentError(ConfigError):
    """An experiment file that cannot be used: unreadable, contradictory, or naming models that are not there."""


class PhaseError(ExperimentError):
    """A change that the phase of an experiment does not allow; says what to do instead."""

    def __init__(self, key: str, message: str) -> None:
        """`key`: what may not move."""
        self.key = key
        super().__init__(message)


class StaleError(ExperimentError):
    """A change thought of for another state of the experiment than the one that is there by now."""


class ModelLoadError(ServiceError):
    """A bundle that must not be served. `reason` is one of a few words, fit for a metric label."""

    def __init__(self, model: str, reason: str, message: str) -> None:
        self.model = model
        self.reason = reason
        super().__init__(message)


class NoModelError(ModelLoadError):
    """A model that traffic needs has no version that loads."""


class LoadDeferredError(ServiceError):
    """A version that one request asks for is not loaded now, because others were just before."""

    def __init__(self, seconds: float) -> None:
        """`seconds`: how long until it may be."""
        self.seconds = seconds
        super().__init__(f"another version may be loaded in {seconds:.1f} s")


class AnswersError(ServiceError):
    """A joined log, or what was said about the experiment, of which no answer can be made; says what to change."""


class Code(enum.StrEnum):
    """The stable codes, as clients and metrics read them."""

    MALFORMED_HTTP = "malformed_http"
    MALFORMED_ENCODING = "malformed_encoding"
    MALFORMED_JSON = "malformed_json"
    NUMBER_OUT_OF_RANGE = "number_out_of_range"
    TOO_DEEP = "too_deep"
    UNAUTHORIZED = "unauthorized"
    ADMIN_OFF = "admin_off"
    NOT_FOUND = "not_found"
    UNKNOWN_EXPERIMENT = "unknown_experiment"
    UNKNOWN_ARM = "unknown_arm"
    UNKNOWN_MODEL = "unknown_model"
    UNKNOWN_VERSION = "unknown_version"
    NO_LOG = "no_log"
    NO_RESULTS = "no_results"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    REQUEST_TIMEOUT = "request_timeout"
    MODEL_IN_USE = "model_in_use"
    LOAD_REFUSED = "load_refused"
    NOT_HALTED = "not_halted"
    NO_EXPERIMENT_FILE = "no_experiment_file"
    NEEDS_NEW_PHASE = "needs_new_phase"
    EXPERIMENT_REFUSED = "experiment_refused"
    STALE_WRITE = "stale_write"
    BODY_TOO_LARGE = "body_too_large"
    UNSUPPORTED_MEDIA_TYPE = "unsupported_media_type"
    UNSUPPORTED_ENCODING = "unsupported_encoding"
    INVALID_REQUEST = "invalid_request"
    WRONG_TYPE = "wrong_type"
    MISSING_CANDIDATES = "missing_candidates"
    EMPTY_CANDIDATES = "empty_candidates"
    TOO_MANY_CANDIDATES = "too_many_candidates"
    UNEQUAL_COLUMNS = "unequal_columns"
    INVALID_TENSOR = "invalid_tensor"
    UNKNOWN_OUTPUT = "unknown_output"
    NO_CATALOGUE = "no_catalogue"
    INVALID_CATALOGUE = "invalid_catalogue"
    INVALID_EXPERIMENT = "invalid_experiment"
    INVALID_ID = "invalid_id"
    INVALID_DEADLINE = "invalid_deadline"
    INVALID_EVENT = "invalid_event"
    TOO_MANY_EVENTS = "too_many_events"
    OUTSIDE_EXPERIMENT = "outside_experiment"
    OVERLOADED = "overloaded"
    VERSION_DEFERRED = "version_deferred"
    HEADERS_TOO_LARGE = "headers_too_large"
    INTERNAL = "internal"
    NOT_READY = "not_ready"
    LOG_UNAVAILABLE = "log_unavailable"
    STATE_UNAVAILABLE = "state_unavailable"
    RESULTS_UNAVAILABLE = "results_unavailable"
    DEADLINE_EXCEEDED = "deadline_exceeded"


@dataclass(frozen=True, slots=True)
class Problem:
    """How one code is answered: its HTTP status and the title that never varies."""

    status: int
    title: str


#: The one table: code -> answer.
PROBLEMS: dict[Code, Problem] = {
    Code.MALFORMED_HTTP: Problem(400, "The request is not valid HTTP"),
    Code.MALFORMED_ENCODING: Problem(400, "The compressed body cannot be expanded"),
    Code.MALFORMED_JSON: Problem(400, "The body is not valid JSON"),
    Code.NUMBER_OUT_OF_RANGE: Problem(400, "A number is outside the range of its kind"),
    Code.TOO_DEEP: Problem(400, "The JSON is nested too deeply"),
    Code.UNAUTHORIZED: Problem(401, "The admin token is missing or wrong"),
    Code.ADMIN_OFF: Problem(403, "Administration is off"),
    Code.NOT_FOUND: Problem(404, "No such route"),
    Code.UNKNOWN_EXPERIMENT: Problem(404, "No such experiment"),
    Code.UNKNOWN_ARM: Problem(404, "No such arm"),
    Code.UNKNOWN_MODEL: Problem(404, "No such model"),
    Code.UNKNOWN_VERSION: Problem(404, "No such version"),
    Code.NO_LOG: Problem(404, "No log is kept"),
    Code.NO_RESULTS: Problem(404, "No results yet"),
    Code.METHOD_NOT_ALLOWED: Problem(405, "Method not allowed"),
    Code.REQUEST_TIMEOUT: Problem(408, "The request did not arrive in time"),
    Code.MODEL_IN_USE: Problem(409, "The model is in use"),
    Code.LOAD_REFUSED: Problem(409, "The model cannot be loaded"),
    Code.NOT_HALTED: Problem(409, "The arm is not halted by a guard-rail"),
    Code.NO_EXPERIMENT_FILE: Problem(409, "No experiment file"),
    Code.NEEDS_NEW_PHASE: Problem(409, "The change needs a new phase"),
    Code.EXPERIMENT_REFUSED: Problem(409, "The experiment cannot be brought into force"),
    Code.STALE_WRITE: Problem(412, "The experiment has changed meanwhile"),
    Code.BODY_TOO_LARGE: Problem(413, "The body is too large"),
    Code.UNSUPPORTED_MEDIA_TYPE: Problem(415, "The body is of another type than expected"),
    Code.UNSUPPORTED_ENCODING: Problem(415, "The body is compressed in a way that is not read"),
    Code.INVALID_REQUEST: Problem(422, "The request is invalid"),
    Code.WRONG_TYPE: Problem(422, "A value has the wrong type"),
    Code.MISSING_CANDIDATES: Problem(422, "No candidates"),
    Code.EMPTY_CANDIDATES: Problem(422, "The candidate list is empty"),
    Code.TOO_MANY_CANDIDATES: Problem(422, "Too many candidates"),
    Code.UNEQUAL_COLUMNS: Problem(422, "Candidate columns differ in length"),
    Code.INVALID_TENSOR: Problem(422, "A tensor is invalid"),
    Code.UNKNOWN_OUTPUT: Problem(422, "The model has no such output"),
    Code.NO_CATALOGUE: Problem(422, "No catalogue"),
    Code.INVALID_CATALOGUE: Problem(422, "A line of the catalogue is invalid"),
    Code.INVALID_EXPERIMENT: Problem(422, "The experiment is invalid"),
    Code.INVALID_ID: Problem(422, "An id is invalid"),
    Code.INVALID_DEADLINE: Problem(422, "The deadline is invalid"),
    Code.INVALID_EVENT: Problem(422, "An event is invalid"),
    Code.TOO_MANY_EVENTS: Problem(422, "Too many events"),
    Code.OUTSIDE_EXPERIMENT: Problem(422, "A model route takes no experiment"),
    Code.OVERLOADED: Problem(429, "Too many requests in flight"),
    Code.VERSION_DEFERRED: Problem(429, "This version is not loaded just now"),
    Code.HEADERS_TOO_LARGE: Problem(431, "The headers are too large"),
    Code.INTERNAL: Problem(500, "The service failed"),
    Code.NOT_READY: Problem(503, "Not ready"),
    Code.LOG_UNAVAILABLE: Problem(503, "The log cannot be written"),
    Code.STATE_UNAVAILABLE: Problem(503, "The state file cannot be used"),
    Code.RESULTS_UNAVAILABLE: Problem(503, "The results cannot be computed just now"),
    Code.DEADLINE_EXCEEDED: Problem(504, "The deadline cannot be met"),
}


class Refusal(ServiceError):  # noqa: N818 - an answer to a client, not a failure of ours
    """A request that is not answered with scores.

    `detail` says what was expected and what came, by kind, never by value. `field` is a feature's or a member's name as
    the *service* knows it; `row` the index of the candidate, or of the event; `headers` go out with the answer.
    """

    def __init__(
        self,
        code: Code,
        detail: str,
        *,
        field: str | None = None,
        row: int | None = None,
        headers: tuple[tuple[bytes, bytes], ...] = (),
        reasons: tuple[str, ...] = (),
    ) -> None:
        self.code = code
        self.detail = detail
        self.field = field
        self.row = row
        self.headers = headers
        self.reasons = reasons
        super().__init__(detail)

    @property
    def status(self) -> int:
        return PROBLEMS[self.code].status

    def body(self) -> bytes:
        """The problem+json of this refusal."""
        problem = PROBLEMS[self.code]
        members: dict[str, object] = {
            "type": f"urn:retort:problem:{self.code}",
            "title": problem.title,
            "status": problem.status,
            "detail": self.detail,
            "code": self.code,
        }
        if self.field is not None:
            members["field"] = self.field
        if self.row is not None:
            members["row"] = self.row
        if self.reasons:
            members["reasons"] = list(self.reasons)
        members["error"] = self.detail
        return orjson.dumps(members)
