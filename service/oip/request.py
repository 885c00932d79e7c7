"""The body of an inference request: which tensors it brings and which outputs it wants.

    {"id": "…", "parameters": {…},
     "inputs": [{"name", "shape", "datatype", "data" or "parameters": {"binary_data_size"}}, …],
     "outputs": [{"name", "parameters": {"binary_data": true}}, …]}

With the header `Inference-Header-Content-Length: n` only the first n bytes are JSON; the data of the tensors that say
a `binary_data_size` follows them, in the order of the tensors, with nothing between and nothing behind.

Knows nothing of models: what a tensor's name means, `features.py` says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from models.values import LARGEST_INTEGER, SMALLEST_INTEGER, describe
from service.errors import Code, Refusal
from service.oip.tensors import DATATYPES, Tensor, invalid
from service.scoring.json_body import decode_json, refuse_wide_integers
from service.scoring.request import MAX_DEADLINE_MS, MAX_ID_BYTES

MAX_DIMENSIONS = 8
_MEMBERS = frozenset(("id", "parameters", "inputs", "outputs", "model_name", "model_version"))
_SHARED_MEMORY = "shared_memory_region"


@dataclass(slots=True, eq=False)
class InferenceRequest:
    """A decoded request. `outputs`: name -> whether as bytes, in the order asked for; None: all of them."""

    id: str | None
    tensors: dict[str, Tensor]
    outputs: dict[str, bool] | None
    as_bytes: bool
    """Whether outputs that were not named are answered as bytes."""
    timeout_seconds: float | None
    ignored: int
    unit: str | None = None
    """Whom it is for, where its parameters say so: then it leaves an exposure."""
    experiment: str | None = None


def header_length(value: bytes | None, size: int) -> int:
    """How much of a body of `size` bytes is JSON."""
    if value is None:
        return size
    if not value.isdigit() or len(value) > 18 or int(value) > size:
        raise invalid("Inference-Header-Content-Length: expected a number no greater than the body's length")
    return int(value)


def decode_inference(body: bytes, json_bytes: int) -> InferenceRequest:
    """The request whose first `json_bytes` bytes are JSON, or `Refusal`. The data of tensors is checked later."""
    text = body if json_bytes == len(body) else body[:json_bytes]
    members = decode_json(text)
    if type(members) is not dict:
        raise Refusal(Code.INVALID_REQUEST, f"expected an object, got {describe(members)}")
    refuse_wide_integers(members, text)
    parameters = _object(members.get("parameters"), "parameters")
    tensors = _take_tensors(members.get("inputs"), memoryview(body)[json_bytes:])
    return InferenceRequest(
        id=checked_id(members.get("id")),
        tensors=tensors,
        outputs=_take_outputs(members.get("outputs"), parameters),
        as_bytes=_flag(parameters, "binary_data_output"),
        timeout_seconds=checked_timeout(parameters.get("timeout")),
        ignored=len(members.keys() - _MEMBERS),
        unit=checked_unit(parameters.get("unit_id")),
        experiment=checked_experiment(parameters.get("experiment")),
    )


def _wrong_type(what: str, expected: str, got: object, field: str) -> Refusal:
    return Refusal(Code.WRONG_TYPE, f"{what}: expected {expected}, got {describe(got)}", field=field)


def _object(value: Any, what: str, field: str = "parameters") -> Mapping[str, Any]:
    if value is None:
        return {}
    if type(value) is not dict:
        raise _wrong_type(what, "an object", value, field)
    return value


def _flag(parameters: Mapping[str, Any], name: str) -> bool:
    value = parameters.get(name)
    if value is not None and type(value) is not bool:
        raise _wrong_type(f"parameter '{name}'", "true or false", value, "parameters")
    return bool(value)


def checked_id(value: Any) -> str | None:
    """A request's id: None, or at most 256 bytes."""
    if value is None:
        return None
    if type(value) is not str:
        raise _wrong_type("'id'", "a string", value, "id")
    if len(value.encode()) > MAX_ID_BYTES:
        detail = f"'id': expected at most {MAX_ID_BYTES} bytes of UTF-8"
        raise Refusal(Code.INVALID_ID, detail, field="id")
    return value


def checked_timeout(value: Any) -> float | None:
    """Seconds, of a parameter in microseconds as Triton has it; 0 is none."""
    if value is None or (type(value) is int and value == 0):
        return None
    if type(value) is not int:
        raise _wrong_type("parameter 'timeout'", "an integer", value, "parameters")
    if not 0 < value <= MAX_DEADLINE_MS * 1000:
        detail = f"parameter 'timeout': expected 0 to {MAX_DEADLINE_MS * 1000:.0f} microseconds"
        raise Refusal(Code.INVALID_DEADLINE, detail, field="parameters")
    return value * 1e-6


def checked_unit(value: Any) -> str | None:
    """The unit that a parameter names: a text of 1 to 256 bytes, or an integer of 64 bits as its decimal."""
    if type(value) is int and SMALLEST_INTEGER <= value <= LARGEST_INTEGER:
        return str(value)
    if value is not None and type(value) is not str:
        raise _wrong_type("parameter 'unit_id'", "a string or an integer of at most 64 bits", value, "parameters")
    if value is not None and not 1 <= len(value.encode()) <= MAX_ID_BYTES:
        detail = f"parameter 'unit_id': expected 1 to {MAX_ID_BYTES} bytes of UTF-8"
        raise Refusal(Code.INVALID_ID, detail, field="parameters")
    return value


def checked_experiment(value: Any) -> str | None:
    """The experiment that a parameter names."""
    if value is not None and type(value) is not str:
        raise _wrong_type("parameter 'experiment'", "a string", value, "parameters")
    return value


def _entry(entry: Any, place: str, field: str) -> tuple[str, Mapping[str, Any]]:
    """(name, parameters) of an entry of `inputs` or `outputs`."""
    if type(entry) is not dict:
        raise _wrong_type(place, "an object", entry, field)
    name = entry.get("name")
    if type(name) is not str:
        raise _wrong_type(f"{place}.name", "a string", name, field)
    return name, _object(entry.get("parameters"), f"{place}.parameters", field)


def _take_tensors(given: Any, binary: memoryview) -> dict[str, Tensor]:
    if given is None:
        raise Refusal(Code.MISSING_CANDIDATES, "expected `inputs`", field="inputs")
    if type(given) is not list:
        raise _wrong_type("'inputs'", "a list", given, "inputs")
    tensors: dict[str, Tensor] = {}
    start = 0
    for index, entry in enumerate(given):
        place = f"inputs[{index}]"
        name, parameters = _entry(entry, place, "inputs")
        if name in tensors:
            raise invalid(f"{place}: another tensor has its name", "inputs")
        datatype = checked_datatype(entry.get("datatype"), place)
        refuse_shared_memory(parameters, place, "inputs")
        size = parameters.get("binary_data_size")
        data = entry.get("data")
        if (size is None) == (data is None):
            raise invalid(f"{place}: expected either data or the parameter binary_data_size", "inputs")
        if size is not None:
            if type(size) is not int or not 0 <= size <= len(binary) - start:
                detail = f"{place}: binary_data_size: expected a number of bytes that follow the JSON"
                raise invalid(detail, "inputs")
            data = binary[start : start + size]
            start += size
        elif type(data) is not list:
            raise _wrong_type(f"{place}.data", "a list", data, "inputs")
        tensors[name] = Tensor(name, datatype, checked_shape(entry.get("shape"), place), data)
    if start != len(binary):
        raise invalid("expected the binary data to end with the last tensor's", "inputs")
    return tensors


def checked_datatype(given: Any, place: str) -> str:
    """One of `DATATYPES`."""
    if type(given) is not str or given not in DATATYPES:
        raise invalid(f"{place}.datatype: expected one of {', '.join(DATATYPES)}", "inputs")
    return given


def refuse_shared_memory(parameters: Mapping[str, Any], place: str, field: str) -> None:
    """Refuses a tensor whose data lies elsewhere."""
    if _SHARED_MEMORY in parameters:
        raise invalid(f"{place}: shared memory is not offered: send the data", field)


def checked_output(parameters: Mapping[str, Any], place: str) -> None:
    """Refuses an output that is wanted in another way than as it is."""
    refuse_shared_memory(parameters, place, "outputs")
    if parameters.get("classification"):
        raise invalid(f"{place}: classification is not offered: these are probabilities", "outputs")


def checked_shape(given: Any, place: str) -> tuple[int, ...]:
    """1 to 8 lengths."""
    if type(given) is not list:
        raise _wrong_type(f"{place}.shape", "a list of integers", given, "inputs")
    if 1 <= len(given) <= MAX_DIMENSIONS and {int}.issuperset(map(type, given)) and min(given) >= 0:
        return tuple(given)
    raise invalid(f"{place}.shape: expected 1 to {MAX_DIMENSIONS} integers from 0", "inputs")


def _take_outputs(given: Any, parameters: Mapping[str, Any]) -> dict[str, bool] | None:
    if given is None:
        return None
    if type(given) is not list:
        raise _wrong_type("'outputs'", "a list", given, "outputs")
    as_bytes = _flag(parameters, "binary_data_output")
    outputs: dict[str, bool] = {}
    for index, entry in enumerate(given):
        place = f"outputs[{index}]"
        name, own = _entry(entry, place, "outputs")
        checked_output(own, place)
        outputs[name] = as_bytes if own.get("binary_data") is None else _flag(own, "binary_data")
    return outputs or None
