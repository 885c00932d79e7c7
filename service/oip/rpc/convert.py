"""Messages to requests, and scores to messages: the envelope of gRPC, around what `service/oip` does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from service.errors import Code, Refusal
from service.oip.request import (
    InferenceRequest,
    checked_datatype,
    checked_experiment,
    checked_id,
    checked_output,
    checked_shape,
    checked_timeout,
    checked_unit,
    refuse_shared_memory,
)
from service.oip.tensors import BYTES, DTYPES, Tensor, invalid
from service.scoring.plan import Served
from service.scoring.scorer import Floats

_CONTENTS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    BYTES: "bytes_contents",
}


def parameters_of(given: Any) -> dict[str, Any]:
    """Parameters as JSON would have brought them."""
    return {name: getattr(value, value.WhichOneof("parameter_choice") or "", None) for name, value in given.items()}


def request_of(message: Any) -> InferenceRequest:
    """The request of a ModelInferRequest, or `Refusal`. The data of tensors is checked later."""
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise invalid(f"expected raw_input_contents of {len(message.inputs)} tensors, got {len(raw)}", "inputs")
    tensors: dict[str, Tensor] = {}
    for index, given in enumerate(message.inputs):
        place = f"inputs[{index}]"
        if given.name in tensors:
            raise invalid(f"{place}: another tensor has its name", "inputs")
        datatype = checked_datatype(given.datatype, place)
        refuse_shared_memory(parameters_of(given.parameters), place, "inputs")
        shape = checked_shape(list(given.shape), place)
        data = memoryview(raw[index]) if raw else _contents(given.contents, datatype, place)
        tensors[given.name] = Tensor(given.name, datatype, shape, data)
    outputs = {}
    for index, wanted in enumerate(message.outputs):
        checked_output(parameters_of(wanted.parameters), f"outputs[{index}]")
        outputs[wanted.name] = True
    parameters = parameters_of(message.parameters)
    return InferenceRequest(
        id=checked_id(message.id),
        tensors=tensors,
        outputs=outputs or None,
        as_bytes=True,
        timeout_seconds=checked_timeout(parameters.get("timeout")),
        ignored=0,
        unit=checked_unit(parameters.get("unit_id")),
        experiment=checked_experiment(parameters.get("experiment")),
    )


def _contents(contents: Any, datatype: str, place: str) -> list[Any] | memoryview:
    """The typed data of a tensor: numbers as their bytes, so that a NaN is one, texts as they are."""
    name = _CONTENTS.get(datatype)
    if name is None:
        raise invalid(f"{place}: {datatype} has no typed contents: send raw_input_contents", "inputs")
    values = getattr(contents, name)
    if datatype == BYTES:
        try:
            return [value.decode() for value in values]
        except UnicodeDecodeError:
            raise invalid(f"{place}: expected UTF-8", "inputs") from None
    try:
        return memoryview(np.array(list(values), DTYPES[datatype]).tobytes())
    except OverflowError:
        raise Refusal(Code.NUMBER_OUT_OF_RANGE, f"{place}: a number is beyond {datatype}", field="inputs") from None


def fill_answer(answer: Any, served: Served, request: InferenceRequest, found: Mapping[str, Floats]) -> Any:
    """A ModelInferResponse with these scores, as bytes."""
    bundle = served.scorer.bundle
    answer.model_name, answer.model_version, answer.id = bundle.name, str(bundle.version), request.id or ""
    for name, values in found.items():
        answer.outputs.add(name=name, datatype="FP32", shape=values.shape)
        answer.raw_output_contents.append(np.ascontiguousarray(values, "<f4").tobytes())
    return answer
