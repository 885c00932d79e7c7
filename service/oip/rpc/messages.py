"""The messages of `open_inference.proto` as Python classes.

Read from the file itself, which uses little of the language: so there is no generated code to keep in step, with the
file or with the version of protobuf that wrote it. They live in a pool of their own: another library in the process may
bring a package of the same name.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PROTO = Path(__file__).with_name("open_inference.proto")
SERVICE = "inference.GRPCInferenceService"

_COMMENT = re.compile(r"//.*")
_MESSAGE = re.compile(r"message (\w+) \{((?:[^{}]|\{[^{}]*\})*)\}")
_ONEOF = re.compile(r"oneof (\w+) \{([^{}]*)\}")
_FIELD = re.compile(r"(?:(repeated) )?(?:map<string, (\w+)>|(\w+)) (\w+) = (\d+);")
_METHOD = re.compile(r"rpc (\w+)\((\w+)\) returns \((\w+)\)")

_Field = descriptor_pb2.FieldDescriptorProto


@functools.cache
def methods() -> dict[str, tuple[Any, Any]]:
    """Method -> (class of its request, class of its answer)."""
    text = _COMMENT.sub("", PROTO.read_text(encoding="utf-8"))
    file = descriptor_pb2.FileDescriptorProto(name=PROTO.name, package="inference", syntax="proto3")
    for name, body in _MESSAGE.findall(text):
        _add_message(file, name, body)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    described = pool.FindFileByName(file.name).message_types_by_name
    classes = {name: message_factory.GetMessageClass(message) for name, message in described.items()}
    return {method: (classes[taken], classes[given]) for method, taken, given in _METHOD.findall(text)}


def _add_message(file: Any, name: str, body: str) -> None:
    message = file.message_type.add(name=name)
    for choice, members in _ONEOF.findall(body):
        message.oneof_decl.add(name=choice)
        for member in _FIELD.findall(members):
            _add_field(message, *member).oneof_index = len(message.oneof_decl) - 1
    for member in _FIELD.findall(_ONEOF.sub("", body)):
        _add_field(message, *member)


def _add_field(message: Any, repeated: str, values: str, kind: str, name: str, number: str) -> Any:
    field = message.field.add(name=name, number=int(number), label=_Field.LABEL_OPTIONAL)
    if values:  # a map is a list of entries
        kind = "".join(part.capitalize() for part in name.split("_")) + "Entry"
        entry = message.nested_type.add(name=kind)
        entry.options.map_entry = True
        _add_field(entry, "", "", "string", "key", "1")
        _add_field(entry, "", "", values, "value", "2")
        kind = f"{message.name}.{kind}"
    if repeated or values:
        field.label = _Field.LABEL_REPEATED
    if hasattr(_Field, f"TYPE_{kind.upper()}"):
        field.type = getattr(_Field, f"TYPE_{kind.upper()}")
    else:
        field.type, field.type_name = _Field.TYPE_MESSAGE, f".inference.{kind}"
    return field
