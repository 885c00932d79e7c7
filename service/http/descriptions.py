"""What the OpenAPI page says about the routes: schemas and worked examples, made from the same tables the code uses.

The predict routes read their bodies themselves (`request.py`), so FastAPI cannot derive this; a test holds
every example here against the running application.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any, Literal, get_origin

import orjson

from service.errors import PROBLEMS, Code, Refusal
from service.experiments.assignment import HASHES
from service.experiments.file import Experiment

PREDICT_REQUEST_SCHEMA: dict[str, Any] = {
    "type": "object",
    "description": "One context and its candidates. Unknown members and features are ignored and counted.",
    "anyOf": [{"required": ["candidates"]}, {"required": ["candidate_ids"]}],
    "properties": {
        "request_id": {
            "type": ["string", "null"],
            "description": "1 to 256 bytes of UTF-8; what feedback refers to. Made here when absent.",
        },
        "unit_id": {
            "type": ["string", "integer", "null"],
            "description": "What an experiment hashes, say the user: 1 to 256 bytes of UTF-8, or an integer "
            "(its decimal digits). The request id when absent.",
        },
        "context": {
            "type": ["object", "null"],
            "description": "Field name -> raw value, one a request. A field that is absent is missing.",
        },
        "candidates": {
            "description": "One object a candidate, or one list a field, all of one length.",
            "oneOf": [
                {"type": "array", "minItems": 1, "items": {"type": "object"}},
                {"type": "object", "minProperties": 1, "additionalProperties": {"type": "array"}},
            ],
        },
        "candidate_ids": {
            "type": ["array", "null"],
            "items": {"type": "string"},
            "description": "Ids from the ad catalogue, instead of candidates. Refused until there is a catalogue.",
        },
        "experiment": {"type": ["string", "null"], "description": "Default: the file's default experiment."},
        "arm": {"type": ["string", "null"], "description": "Forces an arm; left out of the analysis."},
        "deadline_ms": {
            "type": ["number", "null"],
            "exclusiveMinimum": 0,
            "maximum": 3_600_000,
            "description": "Counted from the first byte received. An ensemble that would be late is replaced by "
            "the student; else 504.",
        },
    },
}

_ANSWER_MEMBERS: dict[str, Any] = {
    "request_id": {"type": "string"},
    "experiment": {"type": ["string", "null"]},
    "arm": {"type": ["string", "null"]},
    "model": {"type": "string"},
    "version": {"type": "integer"},
    "fallback": {
        "type": "string",
        "enum": ["deadline", "error", "circuit"],
        "description": "Why another model than the arm's answered; `model` names it. `deadline`: it could not be in "
        "time; `error`: its run failed; `circuit`: it was not asked, because its runs had failed or been late.",
    },
    "pctr": {
        "type": "array",
        "items": {"type": ["number", "null"]},
        "description": "Click probability of each candidate, in their order, as the shortest decimal that is "
        "this float32; null for one of `candidate_ids` that the catalogue does not know.",
    },
    "unknown_candidates": {
        "type": "array",
        "items": {"type": "integer"},
        "description": "Indexes of those; left out where there are none.",
    },
}
PREDICT_ANSWER_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["request_id", "experiment", "arm", "model", "version", "pctr"],
    "properties": _ANSWER_MEMBERS,
}

PROBLEM_SCHEMA: dict[str, Any] = {
    "type": "object",
    "description": "RFC 9457. `code` is stable and never changes meaning; `error` repeats `detail` for clients "
    "of the Open Inference Protocol.",
    "required": ["type", "title", "status", "detail", "code", "error"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "code": {"type": "string", "enum": [str(code) for code in Code]},
        "field": {"type": "string"},
        "row": {"type": "integer"},
        "reasons": {"type": "array", "items": {"type": "string"}},
        "error": {"type": "string"},
    },
}

_CONTEXT = {"device": "phone", "hour": 13}
REQUEST_EXAMPLES: dict[str, Any] = {
    "rows": {
        "summary": "One object a candidate",
        "value": {
            "request_id": "auction-1",
            "unit_id": "user-831",
            "context": _CONTEXT,
            "candidates": [{"ad_id": "a17", "price": 0.4}, {"ad_id": "a18", "price": 1.2}],
            "deadline_ms": 200,
        },
    },
    "columns": {
        "summary": "One list a field",
        "value": {
            "unit_id": 831,
            "context": _CONTEXT,
            "candidates": {"ad_id": ["a17", "a18"], "price": [0.4, 1.2]},
        },
    },
}


def _answer_example(**replaced: Any) -> dict[str, Any]:
    return {
        "request_id": "auction-1",
        "experiment": "student-vs-ensemble",
        "arm": "student",
        "model": "student",
        "version": 3,
        **replaced,
        "pctr": [0.0123, 0.0456],
    }


_ARM_ANSWERS: dict[str, Any] = {
    "an arm": {"summary": "The arm's model", "value": _answer_example()},
    "a fallback": {
        "summary": "The ensemble would have been late",
        "value": _answer_example(arm="ensemble", fallback="deadline"),
    },
}
_MODEL_ANSWERS: dict[str, Any] = {
    "a model": {"summary": "Outside any experiment", "value": _answer_example(experiment=None, arm=None)}
}

#: One worked refusal for each code.
REFUSAL_EXAMPLES: dict[Code, Refusal] = {
    Code.MALFORMED_HTTP: Refusal(Code.MALFORMED_HTTP, "expected HTTP/1.1"),
    Code.MALFORMED_ENCODING: Refusal(Code.MALFORMED_ENCODING, "expected a body in gzip: it ends too early"),
    Code.MALFORMED_JSON: Refusal(Code.MALFORMED_JSON, "expected JSON: invalid character (byte 6)"),
    Code.NUMBER_OUT_OF_RANGE: Refusal(Code.NUMBER_OUT_OF_RANGE, "a number is beyond what 64 bits can hold"),
    Code.TOO_DEEP: Refusal(Code.TOO_DEEP, "lists and objects are nested too deeply"),
    Code.NOT_FOUND: Refusal(Code.NOT_FOUND, "there is no such route"),
    Code.UNKNOWN_EXPERIMENT: Refusal(Code.UNKNOWN_EXPERIMENT, "no such experiment is running", field="experiment"),
    Code.UNKNOWN_ARM: Refusal(Code.UNKNOWN_ARM, "the experiment has no such arm", field="arm"),
    Code.UNKNOWN_MODEL: Refusal(Code.UNKNOWN_MODEL, "no such model is live", field="name"),
    Code.UNKNOWN_VERSION: Refusal(Code.UNKNOWN_VERSION, "the model has no such version", field="version"),
    Code.NO_LOG: Refusal(Code.NO_LOG, "this service keeps no exposure log: start it with --log FOLDER"),
    Code.NO_RESULTS: Refusal(Code.NO_RESULTS, "no row of experiment 'student-vs-ensemble' among 0"),
    Code.METHOD_NOT_ALLOWED: Refusal(Code.METHOD_NOT_ALLOWED, "this route takes another method"),
    Code.REQUEST_TIMEOUT: Refusal(Code.REQUEST_TIMEOUT, "the request did not arrive in time"),
    Code.BODY_TOO_LARGE: Refusal(Code.BODY_TOO_LARGE, "the body may have at most 524288 bytes"),
    Code.UNSUPPORTED_MEDIA_TYPE: Refusal(Code.UNSUPPORTED_MEDIA_TYPE, "expected a body of type application/json"),
    Code.UNSUPPORTED_ENCODING: Refusal(
        Code.UNSUPPORTED_ENCODING, "expected a body that is plain, or compressed once with gzip, deflate or zstd"
    ),
    Code.INVALID_REQUEST: Refusal(Code.INVALID_REQUEST, "expected an object, got a list"),
    Code.WRONG_TYPE: Refusal(
        Code.WRONG_TYPE, "field 'price': expected a finite number, got a string (row 1)", field="price", row=1
    ),
    Code.MISSING_CANDIDATES: Refusal(Code.MISSING_CANDIDATES, "expected `candidates`", field="candidates"),
    Code.EMPTY_CANDIDATES: Refusal(Code.EMPTY_CANDIDATES, "expected at least one candidate", field="candidates"),
    Code.TOO_MANY_CANDIDATES: Refusal(
        Code.TOO_MANY_CANDIDATES, "expected at most 1000 candidates, got 1001", field="candidates"
    ),
    Code.UNEQUAL_COLUMNS: Refusal(
        Code.UNEQUAL_COLUMNS, "expected columns of one length, got 2 and 3", field="candidates"
    ),
    Code.UNAUTHORIZED: Refusal(Code.UNAUTHORIZED, "expected the header Authorization: Bearer <admin token>"),
    Code.ADMIN_OFF: Refusal(
        Code.ADMIN_OFF,
        "this route is for administrators, and none is appointed: give the service a token of at least 32 bytes with "
        "--admin-token-file or RETORT_ADMIN_TOKEN",
    ),
    Code.MODEL_IN_USE: Refusal(
        Code.MODEL_IN_USE,
        "an experiment needs this model: take it out of the experiment file first",
        field="name",
    ),
    Code.LOAD_REFUSED: Refusal(
        Code.LOAD_REFUSED, "this version was refused at load (golden); the log says why", field="version"
    ),
    Code.NOT_HALTED: Refusal(
        Code.NOT_HALTED,
        "no guard-rail has halted this arm in this phase; an arm that is halted in the experiment file is let go there",
        field="arm",
    ),
    Code.STATE_UNAVAILABLE: Refusal(
        Code.STATE_UNAVAILABLE, "the state file cannot be read or written; the log says why"
    ),
    Code.NO_EXPERIMENT_FILE: Refusal(
        Code.NO_EXPERIMENT_FILE,
        "this service has no experiment file that could be changed: start it with --experiments FILE",
    ),
    Code.NEEDS_NEW_PHASE: Refusal(
        Code.NEEDS_NEW_PHASE,
        "arms[0].weight (and arms[1].weight) may not change within phase 1: start a new phase: raise phase above 1 and "
        "take a new salt",
        field="arms[0].weight",
    ),
    Code.EXPERIMENT_REFUSED: Refusal(
        Code.EXPERIMENT_REFUSED,
        "experiment 'student-vs-ensemble': arm 'student' needs model 'student', which is not loaded "
        "(there are: ensemble)",
    ),
    Code.STALE_WRITE: Refusal(
        Code.STALE_WRITE, "the experiment is another by now than If-Match says: get it again, and decide again"
    ),
    Code.INVALID_EXPERIMENT: Refusal(
        Code.INVALID_EXPERIMENT, "experiment 'student-vs-ensemble': the arms' weights sum to 0.9, expected 1"
    ),
    Code.INVALID_TENSOR: Refusal(
        Code.INVALID_TENSOR, "field 'price': expected 16 bytes of data for its shape, got 12", field="price"
    ),
    Code.UNKNOWN_OUTPUT: Refusal(Code.UNKNOWN_OUTPUT, "outputs[0]: expected one of pctr, logit", field="outputs"),
    Code.NO_CATALOGUE: Refusal(
        Code.NO_CATALOGUE, "no catalogue is registered: send `candidates`", field="candidate_ids"
    ),
    Code.INVALID_CATALOGUE: Refusal(
        Code.INVALID_CATALOGUE, "line 7: field 'price': expected a finite number, got a string", field="price", row=7
    ),
    Code.INVALID_ID: Refusal(
        Code.INVALID_ID, "field 'unit_id': expected 1 to 256 bytes of UTF-8, got 300", field="unit_id"
    ),
    Code.INVALID_EVENT: Refusal(
        Code.INVALID_EVENT,
        "field 'candidate': expected the index of the candidate, got none",
        field="candidate",
        row=1,
    ),
    Code.TOO_MANY_EVENTS: Refusal(Code.TOO_MANY_EVENTS, "expected at most 1000 events, got 1001"),
    Code.INVALID_DEADLINE: Refusal(
        Code.INVALID_DEADLINE,
        "field 'deadline_ms': expected more than 0 and at most 3600000",
        field="deadline_ms",
    ),
    Code.OUTSIDE_EXPERIMENT: Refusal(
        Code.OUTSIDE_EXPERIMENT, "a model's own route is outside any experiment", field="arm"
    ),
    Code.OVERLOADED: Refusal(Code.OVERLOADED, "too many requests are in flight: try again"),
    Code.VERSION_DEFERRED: Refusal(
        Code.VERSION_DEFERRED, "versions that are not live are loaded one after the other: try again", field="version"
    ),
    Code.HEADERS_TOO_LARGE: Refusal(Code.HEADERS_TOO_LARGE, "the request line and headers are too long"),
    Code.INTERNAL: Refusal(Code.INTERNAL, "the service failed; the failure is logged"),
    Code.NOT_READY: Refusal(
        Code.NOT_READY, "not ready to serve", reasons=("models are being loaded and golden-checked",)
    ),
    Code.LOG_UNAVAILABLE: Refusal(Code.LOG_UNAVAILABLE, "the exposure log cannot be written: try again"),
    Code.RESULTS_UNAVAILABLE: Refusal(
        Code.RESULTS_UNAVAILABLE, "they are being computed from the log: try again in 10 s"
    ),
    Code.DEADLINE_EXCEEDED: Refusal(Code.DEADLINE_EXCEEDED, "no model can answer before the deadline"),
}


def problems(*codes: Code) -> dict[str, dict[str, Any]]:
    """OpenAPI responses for refusals: one entry a status, one example a code."""
    responses: dict[str, dict[str, Any]] = {}
    for code in codes:
        response = responses.setdefault(
            str(PROBLEMS[code].status),
            {
                "description": PROBLEMS[code].title,
                "content": {"application/problem+json": {"schema": PROBLEM_SCHEMA, "examples": {}}},
            },
        )
        examples = response["content"]["application/problem+json"]["examples"]
        value = orjson.loads(REFUSAL_EXAMPLES[code].body())
        examples[str(code)] = {"summary": PROBLEMS[code].title, "value": value}
        if len(examples) > 1:
            response["description"] = "; ".join(example["summary"] for example in examples.values())
    return responses


def answers(examples: dict[str, Any], schema: dict[str, Any], description: str) -> dict[str, Any]:
    """The OpenAPI response 200."""
    return {
        "200": {
            "description": description,
            "content": {"application/json": {"schema": schema, "examples": examples}},
        }
    }


PREDICT_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": PREDICT_REQUEST_SCHEMA, "examples": REQUEST_EXAMPLES}},
    }
}

_BODY_CODES = (
    *(Code.MALFORMED_HTTP, Code.REQUEST_TIMEOUT, Code.HEADERS_TOO_LARGE),
    *(Code.MALFORMED_ENCODING, Code.MALFORMED_JSON, Code.NUMBER_OUT_OF_RANGE, Code.TOO_DEEP, Code.BODY_TOO_LARGE),
    *(Code.UNSUPPORTED_MEDIA_TYPE, Code.UNSUPPORTED_ENCODING, Code.INVALID_REQUEST, Code.WRONG_TYPE),
    *(Code.MISSING_CANDIDATES, Code.EMPTY_CANDIDATES, Code.TOO_MANY_CANDIDATES, Code.UNEQUAL_COLUMNS),
    *(Code.NO_CATALOGUE, Code.INVALID_ID, Code.INVALID_DEADLINE),
    *(Code.OVERLOADED, Code.INTERNAL, Code.NOT_READY, Code.LOG_UNAVAILABLE, Code.DEADLINE_EXCEEDED),
)
PREDICT_RESPONSES = {
    **answers(_ARM_ANSWERS, PREDICT_ANSWER_SCHEMA, "Click probabilities, and who gave them"),
    **problems(Code.UNKNOWN_EXPERIMENT, Code.UNKNOWN_ARM, *_BODY_CODES),
}
MODEL_RESPONSES = {
    **answers(_MODEL_ANSWERS, PREDICT_ANSWER_SCHEMA, "Click probabilities of one model"),
    **problems(
        *(Code.UNKNOWN_MODEL, Code.UNKNOWN_VERSION, Code.VERSION_DEFERRED, Code.OUTSIDE_EXPERIMENT), *_BODY_CODES
    ),
}

_STATUS_SCHEMA = {
    "type": "object",
    "required": ["status"],
    "properties": {"status": {"type": "string"}},
}
LIVE_RESPONSES = answers(
    {"alive": {"summary": "The process answers", "value": {"status": "alive"}}}, _STATUS_SCHEMA, "Alive"
)
READY_RESPONSES = {
    **answers(
        {
            "ready": {"summary": "Golden rows passed", "value": {"status": "ready"}},
            "degraded": {
                "summary": "Requests are answered, but not logged",
                "value": {
                    "status": "degraded",
                    "reasons": ["the exposure log cannot be written: No space left on device"],
                },
            },
        },
        _STATUS_SCHEMA,
        "Ready",
    ),
    **problems(Code.NOT_READY),
}
METRICS_RESPONSES: dict[str, Any] = {
    "200": {
        "description": "Prometheus text exposition, all workers added up",
        "content": {
            "text/plain": {
                "schema": {"type": "string"},
                "examples": {
                    "a counter": {
                        "summary": "Help, type and a sample",
                        "value": "# HELP retort_requests_total Requests answered, by route and HTTP status.\n"
                        "# TYPE retort_requests_total counter\n"
                        'retort_requests_total{code="200",route="/predict"} 42.0\n',
                    }
                },
            }
        },
    }
}

_EXPERIMENT_SPEC: dict[str, Any] = {
    "name": "student-vs-ensemble",
    "salt": "student-vs-ensemble-1",
    "default": True,
    "arms": [
        {"name": "ensemble", "model": "ensemble", "follow": True, "weight": 0.5},
        {"name": "student", "model": "student", "follow": True, "weight": 0.5},
    ],
}
_EXPERIMENT_EXAMPLE = {
    "name": "student-vs-ensemble",
    "salt": "student-vs-ensemble-1",
    "hash": "sha256",
    "phase": 1,
    "coverage": 1.0,
    "default": True,
    "layer": None,
    "arms": [
        {
            "name": "ensemble",
            "model": "ensemble",
            "version": 3,
            "follow": True,
            "weight": 0.5,
            "buckets": [0, 5000],
            "halted": False,
            "halt": None,
            "deadline_ms": None,
        },
        {
            "name": "student",
            "model": "student",
            "version": 3,
            "follow": True,
            "weight": 0.5,
            "buckets": [5000, 10000],
            "halted": False,
            "halt": None,
            "deadline_ms": None,
        },
    ],
    "spec": _EXPERIMENT_SPEC,
}
EXPERIMENT_SCHEMA: dict[str, Any] = {
    "type": "object",
    "description": "An experiment as it runs in this worker: versions resolved, buckets computed.",
    "required": list(_EXPERIMENT_EXAMPLE),
    "properties": {
        "name": {"type": "string"},
        "salt": {"type": "string"},
        "hash": {"type": "string", "enum": list(HASHES)},
        "phase": {"type": "integer"},
        "coverage": {"type": "number"},
        "default": {"type": "boolean"},
        "layer": {"type": ["object", "null"]},
        "arms": {"type": "array", "items": {"type": "object"}},
        "spec": {"type": "object", "description": "As the experiment file states it: what PUT takes."},
    },
}
_TAG_HEADER: dict[str, Any] = {
    "etag": {"schema": {"type": "string"}, "description": "Of what is stated; for If-Match of a change."}
}
_EXPERIMENT_ANSWER = answers(
    {"one": {"summary": "50/50", "value": _EXPERIMENT_EXAMPLE}}, EXPERIMENT_SCHEMA, "The experiment"
)
_EXPERIMENT_ANSWER["200"]["headers"] = _TAG_HEADER
EXPERIMENT_RESPONSES = {**_EXPERIMENT_ANSWER, **problems(Code.UNKNOWN_EXPERIMENT, Code.NOT_READY)}
EXPERIMENTS_RESPONSES = {
    **answers(
        {"all": {"summary": "One running", "value": {"experiments": [_EXPERIMENT_EXAMPLE]}}},
        {
            "type": "object",
            "required": ["experiments"],
            "properties": {"experiments": {"type": "array", "items": EXPERIMENT_SCHEMA}},
        },
        "Every running experiment",
    ),
    **problems(Code.NOT_READY),
}

_STATE: dict[str, Any] = {
    "description": "Of one value; of a sequence, one for each element that was kept.",
    "oneOf": [
        {"type": "string", "enum": ["missing", "unknown", "known"]},
        {"type": "array", "items": {"type": "string", "enum": ["missing", "unknown", "known"]}},
        {"type": "null"},
    ],
}
_BY_CANDIDATE: dict[str, Any] = {"type": "array", "description": "By candidate; null for one the catalogue lacks."}
EXPLAIN_SCHEMA: dict[str, Any] = {
    "type": "object",
    "description": "How a request is read, and what its scores are made of. Values are never repeated.",
    "required": [
        *("request_id", "experiment", "arm", "assigned_arm", "enrolled", "forced", "model", "version"),
        *("ignored_fields", "context", "candidates", "logit", "pctr"),
    ],
    "properties": {
        **{name: _ANSWER_MEMBERS[name] for name in ("request_id", "experiment", "arm")},
        "assigned_arm": {"type": ["string", "null"], "description": "The unit's; `arm` answers for it."},
        "enrolled": {"type": "boolean"},
        "forced": {"type": "boolean"},
        **{name: _ANSWER_MEMBERS[name] for name in ("model", "version")},
        "ignored_fields": {"type": "integer", "description": "Members and features that no field takes."},
        "context": {"type": "object", "additionalProperties": _STATE},
        "candidates": {"type": "object", "additionalProperties": {**_BY_CANDIDATE, "items": _STATE}},
        "logit": {**_BY_CANDIDATE, "items": {"type": ["number", "null"]}},
        "pctr": {**_BY_CANDIDATE, "items": {"type": ["number", "null"]}},
        "unknown_candidates": _ANSWER_MEMBERS["unknown_candidates"],
        "teachers": {
            "type": "array",
            "items": {"type": "string"},
            "description": "Of an ensemble: its teachers, in the order of the two members below.",
        },
        "teacher_logits": {**_BY_CANDIDATE, "items": {"type": ["array", "null"], "items": {"type": "number"}}},
        "gate_weights": {**_BY_CANDIDATE, "items": {"type": ["array", "null"], "items": {"type": "number"}}},
    },
}
_EXPLAIN_EXAMPLE: dict[str, Any] = {
    "request_id": "auction-1",
    "experiment": "student-vs-ensemble",
    "arm": "ensemble",
    "assigned_arm": "ensemble",
    "enrolled": True,
    "forced": False,
    "model": "ensemble",
    "version": 3,
    "ignored_fields": 0,
    "context": {"device": "known", "hour": "missing", "visited": ["known", "unknown"]},
    "candidates": {"ad_id": ["known", "unknown"], "price": ["known", "known"]},
    "logit": [-4.38, -3.04],
    "pctr": [0.0123, 0.0456],
    "teachers": ["deepfm", "dcnv2"],
    "teacher_logits": [[-4.2, -4.5], [-3.1, -3.0]],
    "gate_weights": [[0.4, 0.6], [0.4, 0.6]],
}


_EVENT_EXAMPLE = {"request_id": "auction-1", "candidate": 0, "event": "impression", "time": 1795300000.5}
FEEDBACK_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": ["object", "array"],
                    "description": "One event, or a list of at most 1000. All are kept, or none.",
                    "required": ["request_id", "event"],
                    "properties": {
                        "request_id": {"type": "string", "description": "Of the scored request."},
                        "candidate": {
                            "type": ["integer", "null"],
                            "description": "Index of the candidate in that request, from 0. An impression or a click "
                            "needs one.",
                        },
                        "event": {
                            "type": "string",
                            "description": "`impression`, `click` (which implies one), or another name: at most 32 "
                            "lower-case letters, digits, `_`, `.`, `-`.",
                        },
                        "time": {
                            "type": ["number", "null"],
                            "description": "When it happened, in seconds since 1970. Absent: when it is received.",
                        },
                        "event_id": {
                            "type": ["string", "null"],
                            "description": "Tells two events of one kind on one candidate apart; 1 to 256 bytes.",
                        },
                    },
                },
                "examples": {
                    "one": {"summary": "An ad was shown", "value": _EVENT_EXAMPLE},
                    "many": {
                        "summary": "Shown, then clicked",
                        "value": [_EVENT_EXAMPLE, {**_EVENT_EXAMPLE, "event": "click", "time": 1795300007.25}],
                    },
                },
            }
        },
    }
}
FEEDBACK_RESPONSES = answers(
    {"kept": {"summary": "One was new, one had been sent before", "value": {"accepted": 1, "duplicates": 1}}},
    {
        "type": "object",
        "required": ["accepted", "duplicates"],
        "properties": {"accepted": {"type": "integer"}, "duplicates": {"type": "integer"}},
    },
    "The events are in the log",
) | problems(
    *(Code.MALFORMED_HTTP, Code.REQUEST_TIMEOUT, Code.HEADERS_TOO_LARGE, Code.MALFORMED_ENCODING),
    *(Code.MALFORMED_JSON, Code.NUMBER_OUT_OF_RANGE, Code.TOO_DEEP, Code.BODY_TOO_LARGE),
    *(Code.UNSUPPORTED_MEDIA_TYPE, Code.UNSUPPORTED_ENCODING, Code.INVALID_REQUEST, Code.WRONG_TYPE),
    *(Code.INVALID_ID, Code.INVALID_EVENT, Code.TOO_MANY_EVENTS, Code.NO_LOG, Code.LOG_UNAVAILABLE, Code.INTERNAL),
)

#: What `Service.openapi` says of each operation.
CATALOGUE_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/x-ndjson": {
                "schema": {
                    "type": "object",
                    "description": "One such object a line.",
                    "required": ["id", "candidate"],
                    "properties": {
                        "id": {"type": "string", "description": "What requests name it by; 1 to 256 bytes of UTF-8."},
                        "candidate": {"type": "object", "description": "Raw values, as in `candidates`."},
                    },
                },
                "examples": {
                    "two ads": {
                        "summary": "A line for each ad",
                        "value": '{"id":"a17","candidate":{"ad_id":"a17","price":0.4}}\n'
                        '{"id":"a18","candidate":{"ad_id":"a18","price":1.2}}\n',
                    }
                },
            }
        },
    }
}
_CATALOGUE_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["version", "candidates"],
    "properties": {
        "version": {"type": "string", "description": "A hash of its lines."},
        "candidates": {"type": "integer"},
    },
}
_NAME_PARAMETER: dict[str, Any] = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
_KINDS = {
    str: "string",
    int: "integer",
    bool: "boolean",
    Decimal: "number",
}


def _kind_of(annotation: Any) -> str:
    if annotation in _KINDS:
        return _KINDS[annotation]
    return {tuple: "array", Literal: "string"}.get(get_origin(annotation), "object")


EXPERIMENT_PUT: dict[str, Any] = {
    "parameters": [
        _NAME_PARAMETER,
        {
            "name": "If-Match",
            "in": "header",
            "required": False,
            "schema": {"type": "string"},
            "description": "The etag of what the change was thought of for; 412 where it is another by now.",
        },
        {
            "name": "If-None-Match",
            "in": "header",
            "required": False,
            "schema": {"type": "string"},
            "description": "`*`: 412 where an experiment of this name is there already.",
        },
    ],
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "description": "The experiment exactly as in the experiment file (docs/experiments.md).",
                    "required": [name for name, field in Experiment.model_fields.items() if field.is_required()],
                    "properties": {
                        name: {
                            "type": _kind_of(field.annotation),
                            "description": " ".join((field.description or "As in the file.").split()),
                        }
                        for name, field in Experiment.model_fields.items()
                    },
                },
                "examples": {
                    "half of the units": {
                        "summary": "Half of each arm's units are enrolled",
                        "value": {**_EXPERIMENT_SPEC, "coverage": 0.5},
                    }
                },
            }
        },
    },
}
_PREVIEW_EXAMPLE: dict[str, Any] = {
    "experiment": "student-vs-ensemble",
    "phase": 1,
    "changes": ["coverage"],
    "buckets": 10000,
    "share_of_units": 1.0,
    "enrolled": {"before": 5000, "after": 6000},
    "moves": [
        {"from": None, "to": "ensemble", "buckets": 500},
        {"from": None, "to": "student", "buckets": 500},
    ],
    "joining": 1000,
    "leaving": 0,
    "switching": 0,
    "answered_otherwise": 500,
    "needs_new_phase": False,
    "reason": None,
}
PREVIEW_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": list(_PREVIEW_EXAMPLE),
    "properties": {
        "experiment": {"type": "string"},
        "phase": {"type": "integer"},
        "changes": {"type": "array", "items": {"type": "string"}, "description": "Keys that would be different."},
        "buckets": {"type": "integer", "description": "How many were looked at: all."},
        "share_of_units": {"type": "number", "description": "Of all units, those that the experiment's layer lets in."},
        "enrolled": {"type": "object", "description": "Buckets in any arm, before and after."},
        "moves": {
            "type": "array",
            "items": {"type": "object"},
            "description": "Buckets from an arm to another; null: not enrolled, answered by control.",
        },
        "joining": {"type": "integer", "description": "Buckets not enrolled before."},
        "leaving": {"type": "integer", "description": "Buckets enrolled before and not after."},
        "switching": {"type": "integer", "description": "Buckets that go from one arm to another."},
        "answered_otherwise": {"type": "integer", "description": "Buckets that another arm would answer."},
        "needs_new_phase": {"type": "boolean", "description": "Whether the phase allows the change."},
        "reason": {"type": ["string", "null"], "description": "Why not."},
    },
}
PREVIEW_PARAMETERS: list[dict[str, Any]] = [
    _NAME_PARAMETER,
    *(
        {"name": name, "in": "query", "required": False, "schema": {"type": "string"}, "description": description}
        for name, description in (
            ("coverage", "From 0 to 1."),
            ("weights", "One for each arm, in their order, parted by commas."),
            ("halted", "Names of arms, parted by commas; empty: none."),
        )
    ),
]
PREVIEW_RESPONSES = answers(
    {"more units": {"summary": "From half to six tenths", "value": _PREVIEW_EXAMPLE}},
    PREVIEW_SCHEMA,
    "What becomes of each bucket",
) | problems(
    *(Code.UNKNOWN_EXPERIMENT, Code.UNKNOWN_ARM, Code.INVALID_REQUEST, Code.INVALID_EXPERIMENT, Code.NOT_READY)
)
_RESULTS_HEADERS: dict[str, Any] = {
    "cache-control": {"schema": {"type": "string"}, "description": "How long they are good for."},
    "age": {
        "schema": {"type": "string"},
        "description": "Seconds since then: above max-age while newer ones are computed.",
    },
}
_RESULTS_EXAMPLE: dict[str, Any] = {
    "format_version": 1,
    "experiment": "student-vs-ensemble",
    "phase": 1,
    "as_of": 1795300000.5,
    "decisions": [
        {
            "arm": "student",
            "action": "keep running",
            "reasons": ["the lift is between -3.10% and +4.20%, which leaves the minimum effect of +0.00% open"],
        }
    ],
}
RESULTS_SCHEMA: dict[str, Any] = {
    "type": "object",
    "description": "The report that `python -m service results --format json` writes (docs/answers.md); the example "
    "shows its beginning.",
    "required": list(_RESULTS_EXAMPLE),
    "properties": {
        "format_version": {"type": "integer"},
        "experiment": {"type": "string"},
        "phase": {"type": "integer"},
        "as_of": {"type": "number", "description": "The time of the last row, in seconds since 1970."},
        "decisions": {"type": "array", "items": {"type": "object"}, "description": "One for each treatment arm."},
    },
}
_RESULTS_PROBLEMS = problems(
    *(Code.UNKNOWN_EXPERIMENT, Code.NO_LOG, Code.NO_RESULTS, Code.NOT_READY, Code.RESULTS_UNAVAILABLE, Code.INTERNAL)
)
RESULTS_RESPONSES = {
    **answers(
        {"early": {"summary": "Not decided yet", "value": _RESULTS_EXAMPLE}}, RESULTS_SCHEMA, "What it has shown"
    ),
    **_RESULTS_PROBLEMS,
}
RESULTS_RESPONSES["200"]["headers"] = _RESULTS_HEADERS
RESULTS_PAGE_RESPONSES: dict[str, Any] = {
    "200": {
        "description": "The same for people: one page, without a script",
        "headers": _RESULTS_HEADERS,
        "content": {
            "text/html": {
                "schema": {"type": "string"},
                "examples": {"a page": {"summary": "Its beginning", "value": "<!doctype html>\n"}},
            }
        },
    },
    **_RESULTS_PROBLEMS,
}
_CATALOGUE_EXAMPLE = {"catalogue": {"summary": "Two ads", "value": {"version": "1f2e3d4c5b6a7988", "candidates": 2}}}
_ADMIN_CODES = (Code.UNAUTHORIZED, Code.ADMIN_OFF, Code.HEADERS_TOO_LARGE, Code.BODY_TOO_LARGE)
CATALOGUE_RESPONSES = answers(_CATALOGUE_EXAMPLE, _CATALOGUE_SCHEMA, "It is in force, in every worker soon") | problems(
    *(*_ADMIN_CODES, Code.UNSUPPORTED_MEDIA_TYPE, Code.UNSUPPORTED_ENCODING, Code.MALFORMED_ENCODING),
    *(Code.REQUEST_TIMEOUT, Code.INVALID_CATALOGUE, Code.NO_CATALOGUE, Code.NOT_READY, Code.INTERNAL),
)
CATALOGUE_GET_RESPONSES = answers(_CATALOGUE_EXAMPLE, _CATALOGUE_SCHEMA, "What is in force") | problems(
    *(*_ADMIN_CODES, Code.NO_CATALOGUE)
)
HALT_RESPONSES = answers(
    {"lifted": {"summary": "As it runs now", "value": _EXPERIMENT_EXAMPLE}}, EXPERIMENT_SCHEMA, "The halt is lifted"
) | problems(
    *(*_ADMIN_CODES, Code.UNKNOWN_EXPERIMENT, Code.UNKNOWN_ARM, Code.NOT_HALTED, Code.STATE_UNAVAILABLE),
    *(Code.NOT_READY, Code.INTERNAL),
)
EXPERIMENT_PUT_RESPONSES = _EXPERIMENT_ANSWER | problems(
    *(*_ADMIN_CODES, Code.UNSUPPORTED_MEDIA_TYPE, Code.UNSUPPORTED_ENCODING, Code.MALFORMED_ENCODING),
    *(Code.REQUEST_TIMEOUT, Code.MALFORMED_JSON, Code.TOO_DEEP, Code.INVALID_REQUEST, Code.INVALID_EXPERIMENT),
    *(
        Code.UNKNOWN_EXPERIMENT,
        Code.NO_EXPERIMENT_FILE,
        Code.NEEDS_NEW_PHASE,
        Code.EXPERIMENT_REFUSED,
        Code.STALE_WRITE,
    ),
    *(Code.NOT_READY, Code.INTERNAL),
)
_EXPLAIN_ANSWERS = answers(
    {"an ensemble": {"summary": "Two teachers", "value": _EXPLAIN_EXAMPLE}},
    EXPLAIN_SCHEMA,
    "What the scores are made of",
)
_EXPLAIN_CODES = tuple(code for code in _BODY_CODES if code is not Code.DEADLINE_EXCEEDED)
EXPLAIN_RESPONSES = _EXPLAIN_ANSWERS | problems(
    *(Code.UNAUTHORIZED, Code.ADMIN_OFF, Code.UNKNOWN_EXPERIMENT, Code.UNKNOWN_ARM), *_EXPLAIN_CODES
)
EXPLAIN_MODEL_RESPONSES = _EXPLAIN_ANSWERS | problems(
    *(Code.UNAUTHORIZED, Code.ADMIN_OFF, Code.UNKNOWN_MODEL, Code.UNKNOWN_VERSION, Code.VERSION_DEFERRED),
    *(Code.OUTSIDE_EXPERIMENT, *_EXPLAIN_CODES),
)

OPERATIONS: dict[tuple[str, str], dict[str, Any]] = {
    ("post", "/explain"): {**PREDICT_BODY, "responses": EXPLAIN_RESPONSES},
    ("post", "/models/{name}/explain"): {**PREDICT_BODY, "responses": EXPLAIN_MODEL_RESPONSES},
    ("post", "/models/{name}/versions/{version}/explain"): {**PREDICT_BODY, "responses": EXPLAIN_MODEL_RESPONSES},
    ("post", "/predict"): {**PREDICT_BODY, "responses": PREDICT_RESPONSES},
    ("post", "/models/{name}/predict"): {**PREDICT_BODY, "responses": MODEL_RESPONSES},
    ("post", "/models/{name}/versions/{version}/predict"): {**PREDICT_BODY, "responses": MODEL_RESPONSES},
    ("post", "/feedback"): {**FEEDBACK_BODY, "responses": FEEDBACK_RESPONSES},
    ("get", "/health/live"): {"responses": LIVE_RESPONSES},
    ("get", "/health/ready"): {"responses": READY_RESPONSES},
    ("get", "/metrics"): {"responses": METRICS_RESPONSES},
    ("put", "/catalogue"): {**CATALOGUE_BODY, "responses": CATALOGUE_RESPONSES},
    ("get", "/catalogue"): {"responses": CATALOGUE_GET_RESPONSES},
    ("get", "/experiments"): {"responses": EXPERIMENTS_RESPONSES},
    ("get", "/experiments/{name}"): {"responses": EXPERIMENT_RESPONSES},
    ("delete", "/experiments/{name}/halts/{arm}"): {"responses": HALT_RESPONSES},
    ("put", "/experiments/{name}"): {**EXPERIMENT_PUT, "responses": EXPERIMENT_PUT_RESPONSES},
    ("get", "/experiments/{name}/results"): {"responses": RESULTS_RESPONSES},
    ("get", "/experiments/{name}/results.html"): {"responses": RESULTS_PAGE_RESPONSES},
    ("get", "/experiments/{name}/preview"): {"parameters": PREVIEW_PARAMETERS, "responses": PREVIEW_RESPONSES},
}
