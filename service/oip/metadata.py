"""What the server and its models say of themselves, in the protocol's words."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from models.schema import FieldSchema
from service.oip.inference import outputs_of
from service.scoring.scorer import Scorer

NAME = "retort"
EXTENSIONS = ("binary_tensor_data", "model_repository", "statistics")
PLATFORM = "retort_onnx"

_DATATYPES = {"string": "BYTES", "integer": "INT64", "float": "FP64", "boolean": "BOOL"}


def describe_server() -> dict[str, object]:
    """GET /v2."""
    try:
        own = version("retort")
    except PackageNotFoundError:  # run from a folder that was copied, not installed
        own = "unknown"
    return {"name": NAME, "version": own, "extensions": list(EXTENSIONS)}


def describe_model(scorer: Scorer, versions: Sequence[int]) -> dict[str, object]:
    """GET /v2/models/{name}: a tensor a field, context before candidates, in schema order."""
    schema = scorer.bundle.schema
    teachers = len(scorer.bundle.manifest.teachers)
    return {
        "name": scorer.bundle.name,
        "versions": [str(number) for number in versions],
        "platform": PLATFORM,
        "inputs": [
            {"name": field.name, "datatype": datatype_of(field), "shape": [-1]}
            for field in (*schema.context_fields, *schema.candidate_fields)
        ],
        "outputs": [
            {"name": name, "datatype": "FP32", "shape": [-1] if place < 2 else [-1, teachers]}
            for place, name in enumerate(outputs_of(scorer))
        ],
    }


def datatype_of(field: FieldSchema) -> str:
    """The datatype that holds every value of a field."""
    return "BYTES" if field.is_sequence else _DATATYPES[field.type]
