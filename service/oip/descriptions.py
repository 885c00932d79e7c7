"""What the OpenAPI page says about /v2, as `service/http/descriptions.py` does of the other routes."""

from __future__ import annotations

from typing import Any

from service.errors import Code
from service.http.descriptions import answers, problems

_PARAMETERS = {"type": ["object", "null"]}

INFER_REQUEST_SCHEMA: dict[str, Any] = {
    "type": "object",
    "description": "Tensors in, and the outputs wanted. With the header Inference-Header-Content-Length the JSON has "
    "that many bytes and binary data follows it.",
    "required": ["inputs"],
    "properties": {
        "id": {"type": ["string", "null"], "description": "At most 256 bytes of UTF-8; comes back as it was."},
        "parameters": {
            **_PARAMETERS,
            "description": "timeout: microseconds from the first byte received, else 504; binary_data_output: whether "
            "outputs are answered as bytes.",
        },
        "inputs": {
            "type": "array",
            "items": {"type": "object"},
            "description": "One tensor a field: name, datatype, shape [N] or [N, 1] (a context field also [1]), "
            "and data or the parameter binary_data_size.",
        },
        "outputs": {
            "type": ["array", "null"],
            "items": {"type": "object"},
            "description": "name, and the parameter binary_data. All of them where absent.",
        },
    },
}
_INPUTS = [
    {"name": "device", "datatype": "BYTES", "shape": [1], "data": ["phone"]},
    {"name": "hour", "datatype": "INT64", "shape": [1], "data": [13]},
    {"name": "ad_id", "datatype": "BYTES", "shape": [2], "data": ["a17", "a18"]},
    {"name": "price", "datatype": "FP64", "shape": [2], "data": [0.4, 1.2]},
]
INFER_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": INFER_REQUEST_SCHEMA,
                "examples": {
                    "one context": {
                        "summary": "Two candidates for one user",
                        "value": {"id": "auction-1", "inputs": _INPUTS, "outputs": [{"name": "pctr"}]},
                    },
                    "every output": {
                        "summary": "Rows of their own, and everything the model computes",
                        "value": {
                            "inputs": [
                                {"name": "device", "datatype": "BYTES", "shape": [2, 1], "data": ["phone", "tablet"]},
                                {"name": "price", "datatype": "FP32", "shape": [2, 1], "data": [[0.4], [1.2]]},
                            ]
                        },
                    },
                },
            }
        },
    }
}


def _object_schema(*required: str, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(required), "properties": properties}


_TEXT, _LIST, _TRUE = {"type": "string"}, {"type": "array", "items": {"type": "object"}}, {"type": "boolean"}

_PCTR = {"name": "pctr", "datatype": "FP32", "shape": [2], "data": [0.0123, 0.0456]}
_LOGIT = {"name": "logit", "datatype": "FP32", "shape": [2], "data": [-4.385, -3.041]}
INFER_RESPONSES = {
    **answers(
        {
            "one output": {
                "summary": "Click probabilities",
                "value": {"model_name": "student", "model_version": "3", "id": "auction-1", "outputs": [_PCTR]},
            },
            "every output": {
                "summary": "All that a student computes; an ensemble adds teacher_logits and gate_weights",
                "value": {"model_name": "student", "model_version": "3", "outputs": [_PCTR, _LOGIT]},
            },
        },
        _object_schema(
            *("model_name", "model_version", "outputs"),
            **{"model_name": _TEXT, "model_version": _TEXT, "id": _TEXT, "outputs": _LIST},
        ),
        "Scores; as bytes behind the JSON where that was asked for",
    ),
    **problems(
        *(Code.UNKNOWN_MODEL, Code.UNKNOWN_VERSION, Code.VERSION_DEFERRED),
        *(Code.MALFORMED_HTTP, Code.REQUEST_TIMEOUT, Code.HEADERS_TOO_LARGE, Code.MALFORMED_ENCODING),
        *(Code.MALFORMED_JSON, Code.NUMBER_OUT_OF_RANGE, Code.TOO_DEEP, Code.BODY_TOO_LARGE),
        *(Code.UNSUPPORTED_MEDIA_TYPE, Code.UNSUPPORTED_ENCODING, Code.INVALID_REQUEST, Code.WRONG_TYPE),
        *(Code.INVALID_TENSOR, Code.UNKNOWN_OUTPUT, Code.MISSING_CANDIDATES, Code.EMPTY_CANDIDATES),
        *(Code.TOO_MANY_CANDIDATES, Code.UNEQUAL_COLUMNS, Code.INVALID_ID, Code.INVALID_DEADLINE),
        *(Code.OVERLOADED, Code.INTERNAL, Code.NOT_READY, Code.DEADLINE_EXCEEDED),
    ),
}


def _one(summary: str, value: Any, schema: dict[str, Any], *codes: Code) -> dict[str, Any]:
    """An operation with one example answer, and refusals."""
    refused = problems(*codes, Code.HEADERS_TOO_LARGE, Code.BODY_TOO_LARGE)
    return {"responses": {**answers({"one": {"summary": summary, "value": value}}, schema, summary), **refused}}


_MODEL_EXAMPLE = {
    "name": "student",
    "versions": ["2", "3"],
    "platform": "retort_onnx",
    "inputs": [{"name": "device", "datatype": "BYTES", "shape": [-1]}],
    "outputs": [
        {"name": "pctr", "datatype": "FP32", "shape": [-1]},
        {"name": "logit", "datatype": "FP32", "shape": [-1]},
    ],
}
_MODEL_SCHEMA = _object_schema(
    *("name", "versions", "platform", "inputs", "outputs"),
    name=_TEXT,
    versions={"type": "array", "items": _TEXT},
    platform=_TEXT,
    inputs=_LIST,
    outputs=_LIST,
)
_DURATION = {"count": 12, "ns": 5_000_000}
_STATS_EXAMPLE = {
    "model_stats": [
        {
            "name": "student",
            "version": "3",
            "last_inference": 1_795_286_400_000,
            "inference_count": 600,
            "execution_count": 12,
            "inference_stats": {
                "success": _DURATION,
                "fail": {"count": 0, "ns": 0},
                "queue": _DURATION,
                "compute_input": _DURATION,
                "compute_infer": _DURATION,
                "compute_output": _DURATION,
                "cache_hit": {"count": 0, "ns": 0},
                "cache_miss": {"count": 0, "ns": 0},
            },
            "batch_stats": [],
        }
    ]
}
_STATS_SCHEMA = _object_schema("model_stats", model_stats=_LIST)
_UNKNOWN = (Code.UNKNOWN_MODEL, Code.NOT_READY)
_UNKNOWN_VERSION = (*_UNKNOWN, Code.UNKNOWN_VERSION)

_MODEL = _one("Its tensors", _MODEL_EXAMPLE, _MODEL_SCHEMA, *_UNKNOWN)
_VERSION = _one("Its tensors", _MODEL_EXAMPLE, _MODEL_SCHEMA, *_UNKNOWN_VERSION, Code.VERSION_DEFERRED)
_READY_SCHEMA = _object_schema("name", "ready", name=_TEXT, ready=_TRUE)
_READY_EXAMPLE = {"name": "student", "ready": True}

_ADMIN = (Code.UNAUTHORIZED, Code.ADMIN_OFF, Code.NOT_READY)
_BODY_CODES = (
    *(Code.MALFORMED_ENCODING, Code.MALFORMED_JSON, Code.NUMBER_OUT_OF_RANGE, Code.TOO_DEEP),
    *(Code.UNSUPPORTED_MEDIA_TYPE, Code.UNSUPPORTED_ENCODING, Code.INVALID_REQUEST, Code.WRONG_TYPE),
)


def _body(properties: dict[str, Any], **examples: Any) -> dict[str, Any]:
    """An optional request body."""
    shown = {name: {"summary": name.replace("_", " "), "value": value} for name, value in examples.items()}
    schema = {"type": "object", "properties": properties}
    return {"requestBody": {"required": False, "content": {"application/json": {"schema": schema, "examples": shown}}}}


_INDEX_EXAMPLE = [
    {"name": "student", "version": "2", "state": "UNAVAILABLE", "reason": "not loaded"},
    {"name": "student", "version": "3", "state": "READY", "reason": ""},
]
_EMPTY_SCHEMA = {"type": "object", "properties": {}}

#: What `Service.openapi` says of each operation.
OPERATIONS: dict[tuple[str, str], dict[str, Any]] = {
    ("get", "/v2"): _one(
        "The server",
        {"name": "retort", "version": "0.1.0", "extensions": ["binary_tensor_data", "model_repository", "statistics"]},
        _object_schema(
            "name", "version", "extensions", name=_TEXT, version=_TEXT, extensions={"type": "array", "items": _TEXT}
        ),
    ),
    ("get", "/v2/health/live"): _one("Alive", {"live": True}, _object_schema("live", live=_TRUE)),
    ("get", "/v2/health/ready"): _one("Ready", {"ready": True}, _object_schema("ready", ready=_TRUE), Code.NOT_READY),
    ("get", "/v2/models/stats"): _one("Every loaded version", _STATS_EXAMPLE, _STATS_SCHEMA, Code.NOT_READY),
    ("get", "/v2/models/{name}"): _MODEL,
    ("get", "/v2/models/{name}/versions/{version}"): _VERSION,
    ("get", "/v2/models/{name}/ready"): _one("It is served", _READY_EXAMPLE, _READY_SCHEMA, *_UNKNOWN),
    ("get", "/v2/models/{name}/versions/{version}/ready"): _one(
        "It is loaded", _READY_EXAMPLE, _READY_SCHEMA, *_UNKNOWN_VERSION
    ),
    ("get", "/v2/models/{name}/stats"): _one("Its loaded versions", _STATS_EXAMPLE, _STATS_SCHEMA, *_UNKNOWN),
    ("get", "/v2/models/{name}/versions/{version}/stats"): _one(
        "The version", _STATS_EXAMPLE, _STATS_SCHEMA, *_UNKNOWN_VERSION
    ),
    ("post", "/v2/models/{name}/infer"): {**INFER_BODY, "responses": INFER_RESPONSES},
    ("post", "/v2/models/{name}/versions/{version}/infer"): {**INFER_BODY, "responses": INFER_RESPONSES},
    ("post", "/v2/repository/index"): {
        **_body(
            {"ready": {"type": ["boolean", "null"], "description": "Only what is loaded."}}, loaded={"ready": True}
        ),
        **_one("Versions and their states", _INDEX_EXAMPLE, _LIST, *_ADMIN, *_BODY_CODES),
    },
    ("post", "/v2/repository/models/{name}/load"): {
        **_body(
            {
                "parameters": {
                    **_PARAMETERS,
                    "description": "version: which one, else the newest that loads; or config with a version_policy, "
                    "as Triton's clients say it.",
                }
            },
            one_version={"parameters": {"version": "3"}},
        ),
        **_one(
            "It is served by this worker, and within a second by all",
            {},
            _EMPTY_SCHEMA,
            *(*_ADMIN, *_BODY_CODES, Code.UNKNOWN_MODEL, Code.UNKNOWN_VERSION, Code.LOAD_REFUSED),
        ),
    },
    ("post", "/v2/repository/models/{name}/unload"): {
        **_body({"parameters": {**_PARAMETERS, "description": "Ignored."}}, nothing={}),
        **_one(
            "It is no longer served",
            {},
            _EMPTY_SCHEMA,
            *(*_ADMIN, Code.UNSUPPORTED_MEDIA_TYPE, Code.UNSUPPORTED_ENCODING, Code.MALFORMED_ENCODING),
            *(Code.UNKNOWN_MODEL, Code.MODEL_IN_USE, Code.LOAD_REFUSED),
        ),
    },
}
