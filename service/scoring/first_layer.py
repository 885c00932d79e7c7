"""What the first layer makes of an ad's own fields, computed once an ad and not once a request.

A student's first layer takes a sum: the context's share, once a request, and the candidate's share. The ads of a
catalogue are known ahead, so their shares are kept in a table, and a run whose candidates are all named by id fetches
rows of it where any other looks up embeddings and multiplies them (what that saves: docs/benchmarks.md, "Shares of the
first layer").

    model.onnx      candidates [N, F] -> ... -> Gemm(x, w, spread)  or  Add(share, spread) -> ...
    ahead           candidates [N, F] -> ... -> share [N, H]
    then            shares [A, H], places [N] -> Gather -> Add(share, spread) -> ...

`spread` is what the graph gathers by `request_index`. Both parts are cut out of the bundle's own graph; protocol
buffers are simple to copy field by field (onnx/onnx.proto), so no ONNX library is needed. A graph of another form is
scored as before, and so is one whose parts do not give the golden scores.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from models.encoder import EncodedRows
from models.graph import CANDIDATES, LOGIT, PCTR, REQUEST_INDEX
from models.protobuf import Field, fields

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int32]

SHARES, PLACES, SHARE = "catalogue_shares", "catalogue_places", "catalogue_share"

_GRAPH, _FUNCTION = 7, 25
_NODE, _INITIALIZER, _SPARSE, _INPUT, _OUTPUT = 1, 5, 15, 11, 12
_NODE_INPUT, _NODE_OUTPUT, _OP_TYPE, _ATTRIBUTE = 1, 2, 4, 5
_FLOAT, _INT32 = 1, 6


@dataclass(slots=True, eq=False)
class CatalogueRows(EncodedRows):
    """Encoded candidates of the catalogue, and where their shares lie in its table."""

    shares: Floats
    """[A, H], of all the catalogue."""
    places: Ids
    """[n]"""


class Parts(NamedTuple):
    """The two graphs, as the bytes of ONNX models."""

    ahead: bytes
    then: bytes


def shares_of(candidates: Sequence[EncodedRows]) -> tuple[Floats, Ids] | None:
    """The table and the places of a run's candidates, where all of them are of one catalogue."""
    first = candidates[0]
    if type(first) is not CatalogueRows:
        return None
    if len(candidates) == 1:
        return first.shares, first.places
    places = []
    for rows in candidates:
        if type(rows) is not CatalogueRows or rows.shares is not first.shares:
            return None
        places.append(rows.places)
    return first.shares, np.concatenate(places)


class FirstLayer:
    """The parts of one graph, ready to run."""

    def __init__(self, parts: Parts, open_session: Callable[[bytes], Any]) -> None:
        """Raises whatever onnxruntime does, for parts that it cannot load."""
        self._ahead = open_session(parts.ahead)._sess.run
        self._then = open_session(parts.then)._sess.run

    def shares(self, ids: Ids) -> Floats:
        """float32 [n, H] of n encoded candidates [n, F]. From any thread."""
        found: Floats = self._ahead([SHARE], {CANDIDATES: ids}, None)[0]
        return found

    def run(
        self, outputs: Sequence[str], inputs: Mapping[str, npt.NDArray[Any]], shares: Floats, places: Ids
    ) -> list[Floats]:
        """The named outputs, `logit` or `pctr`, each [N], for the inputs of a run, whose candidates' ids are not
        looked at: their shares are at these places."""
        feeds = {name: values for name, values in inputs.items() if name != CANDIDATES}
        feeds[SHARES], feeds[PLACES] = shares, places
        found: list[Floats] = self._then(list(outputs), feeds, None)
        return found


def split(model: bytes) -> Parts | None:
    """A graph's two parts; None where it has not the form above. Raises ValueError where the bytes are no model."""
    members = list(fields(memoryview(model)))
    graphs = [field for field in members if field.number == _GRAPH]
    if len(graphs) != 1 or any(field.number == _FUNCTION for field in members):
        return None
    parts = _split_graph(list(fields(graphs[0].content)))
    if parts is None:
        return None
    rest = b"".join(field.whole for field in members if field.number != _GRAPH)
    return Parts(*(rest + _message(_GRAPH, part) for part in parts))


class _Node(NamedTuple):
    op_type: str
    inputs: list[str]
    outputs: list[str]
    whole: bytes | memoryview


def _split_graph(graph: Sequence[Field]) -> tuple[bytes, bytes] | None:
    nodes = [_node(field) for field in graph if field.number == _NODE]
    gathers = [node for node in nodes if node.op_type == "Gather" and node.inputs[1:] == [REQUEST_INDEX]]
    if len(gathers) != 1 or any(field.number == _SPARSE for field in graph):
        return None
    (spread,) = gathers[0].outputs
    meeting = [place for place, node in enumerate(nodes) if spread in node.inputs]
    if len(meeting) != 1:
        return None
    place = meeting[0]
    first, ahead = nodes[place], nodes[:place]
    if first.op_type == "Gemm" and first.inputs[2:] == [spread] and not _scales(first):
        ahead.append(_made("Gemm", first.inputs[:2], SHARE, _attributes(first)))
    elif first.op_type == "Add" and len(first.inputs) == 2:
        (share,) = (name for name in first.inputs if name != spread) if first.inputs.count(spread) == 1 else (spread,)
        ahead.append(_made("Identity", [share], SHARE))
    else:
        return None
    fetched = f"{SHARE}_fetched"
    then = [
        _made("Gather", [SHARES, PLACES], fetched),
        *nodes[:place],
        _made("Add", [fetched, spread], first.outputs[0]),
        *nodes[place + 1 :],
    ]
    given: dict[str, bytes | memoryview] = {_name(field): field.whole for field in graph if field.number == _INPUT}
    outputs = [field.whole for field in graph if field.number == _OUTPUT and _name(field) in (LOGIT, PCTR)]
    own = {
        SHARES: _message(_INPUT, _value(SHARES, _FLOAT, ("catalogue", "width"))),
        PLACES: _message(_INPUT, _value(PLACES, _INT32, ("places",))),
    }
    before = _graph(graph, ahead, given, [SHARE], [_message(_OUTPUT, _value(SHARE, _FLOAT, ("ads", "width")))])
    after = _graph(graph, then, given | own, [LOGIT, PCTR], outputs)
    if before is None or after is None or before[1] != {CANDIDATES} or CANDIDATES in after[1]:
        return None
    return before[0], after[0]


def _graph(
    graph: Sequence[Field],
    nodes: Sequence[_Node],
    given: Mapping[str, bytes | memoryview],
    wanted: Sequence[str],
    outputs: Any,
) -> tuple[bytes, set[str]] | None:
    """What is needed of a graph for these outputs, and the inputs that takes; None where its order is not that of
    evaluation. A node with graphs of its own may need what is not seen here: onnxruntime refuses the part then."""
    needed, kept = set(wanted), []
    for node in reversed(nodes):
        if needed.intersection(node.outputs):
            kept.append(node.whole)
            needed.update(node.inputs)
    weights = [field.whole for field in graph if field.number == _INITIALIZER and _name(field, 8) in needed]
    inputs = {name: whole for name, whole in given.items() if name in needed}
    name = _message(2, b"part")
    return b"".join((*reversed(kept), name, *weights, *inputs.values(), *outputs)), set(inputs)


def _node(field: Field) -> _Node:
    texts: dict[int, list[str]] = {_NODE_INPUT: [], _NODE_OUTPUT: [], _OP_TYPE: []}
    for part in fields(field.content):
        if part.number in texts:
            texts[part.number].append(str(part.content, "utf-8"))
    return _Node("".join(texts[_OP_TYPE]), texts[_NODE_INPUT], texts[_NODE_OUTPUT], field.whole)


def _attributes(node: _Node) -> bytes:
    (message,) = fields(memoryview(node.whole))
    return b"".join(part.whole for part in fields(message.content) if part.number == _ATTRIBUTE)


def _scales(node: _Node) -> bool:
    """Whether a Gemm multiplies what it adds by anything: `beta`, which is 1 where nobody says so."""
    (message,) = fields(memoryview(node.whole))
    attributes = [part.content for part in fields(message.content) if part.number == _ATTRIBUTE]
    one = b"\x15\x00\x00\x80\x3f"  # its value, a float
    return any(_text(attribute, 1) == "beta" and one not in bytes(attribute) for attribute in attributes)


def _made(op_type: str, inputs: Sequence[str], output: str, attributes: bytes = b"") -> _Node:
    texts = [(_NODE_INPUT, name) for name in inputs] + [(_NODE_OUTPUT, output), (_OP_TYPE, op_type)]
    content = b"".join(_message(number, text.encode()) for number, text in texts) + attributes
    return _Node(op_type, list(inputs), [output], _message(_NODE, content))


def _value(name: str, kind: int, dimensions: Sequence[str]) -> bytes:
    """A ValueInfoProto: a tensor of dimensions that are not known ahead."""
    shape = b"".join(_message(1, _message(2, one.encode())) for one in dimensions)
    tensor = b"\x08" + bytes((kind,)) + _message(2, shape)
    return _message(1, name.encode()) + _message(2, _message(1, tensor))


def _name(field: Field, number: int = 1) -> str:
    return _text(field.content, number)


def _text(message: memoryview, number: int) -> str:
    return next((str(part.content, "utf-8") for part in fields(message) if part.number == number), "")


def _message(number: int, content: bytes) -> bytes:
    tag, length, size = (number << 3) | 2, bytearray(), len(content)
    while size >= 0x80:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    length.append(size)
    return (bytes((tag,)) if tag < 0x80 else bytes((tag & 0x7F | 0x80, tag >> 7))) + bytes(length) + content
