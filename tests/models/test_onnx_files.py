"""Every place where a graph can name a file for its weights, found without an ONNX library."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from models.onnx_files import external_locations
from tests.models.tiny_bundle import tiny_graph, tiny_model


def outside(location: str) -> onnx.TensorProto:
    """A tensor kept in a file."""
    tensor = numpy_helper.from_array(np.zeros(3, np.float32), "t")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("offset", "0"), ("location", location), ("length", "12")):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    return tensor


def model_of(graph: onnx.GraphProto, functions: tuple[onnx.FunctionProto, ...] = ()) -> bytes:
    return helper.make_model(graph, functions=functions).SerializeToString()


def as_initializer(tensor: onnx.TensorProto) -> bytes:
    return model_of(helper.make_graph([], "g", [], [], [tensor]))


def as_sparse_initializer(tensor: onnx.TensorProto) -> bytes:
    indices = numpy_helper.from_array(np.arange(3), "i")
    sparse = helper.make_sparse_tensor(tensor, indices, [9])
    return model_of(helper.make_graph([], "g", [], [], sparse_initializer=[sparse]))


def as_attribute(tensor: onnx.TensorProto) -> bytes:
    return model_of(helper.make_graph([helper.make_node("Constant", [], ["c"], value=tensor)], "g", [], []))


def as_attribute_of_many(tensor: onnx.TensorProto) -> bytes:
    return model_of(helper.make_graph([helper.make_node("Some", [], ["c"], values=[tensor])], "g", [], []))


def in_a_branch(tensor: onnx.TensorProto) -> bytes:
    branch = helper.make_graph([], "b", [], [], [tensor])
    inner = helper.make_graph([helper.make_node("If", ["c"], ["o"], then_branch=branch)], "i", [], [])
    return model_of(helper.make_graph([helper.make_node("If", ["c"], ["o"], else_branch=inner)], "g", [], []))


def in_branches(tensor: onnx.TensorProto) -> bytes:
    branch = helper.make_graph([], "b", [], [], [tensor])
    return model_of(helper.make_graph([helper.make_node("Some", ["c"], ["o"], branches=[branch])], "g", [], []))


def in_a_function(tensor: onnx.TensorProto) -> bytes:
    node = helper.make_node("Constant", [], ["c"], value=tensor)
    function = helper.make_function("d", "f", [], ["c"], [node], [helper.make_opsetid("", 18)])
    return model_of(helper.make_graph([], "g", [], []), functions=(function,))


@pytest.mark.parametrize(
    "place",
    [
        as_initializer,
        as_sparse_initializer,
        as_attribute,
        as_attribute_of_many,
        in_a_branch,
        in_branches,
        in_a_function,
    ],
)
@pytest.mark.parametrize("location", ["model.onnx.data", "../../etc/passwd", "", "dätä"])
def test_a_file_is_found_wherever_the_graph_names_it(place: Callable[[onnx.TensorProto], bytes], location: str):
    """Initializers, attributes, branches within branches, functions."""
    assert external_locations(place(outside(location))) == {location}


def test_a_graph_that_keeps_its_weights_names_none():
    """The common case."""
    assert external_locations(tiny_graph(tiny_model())) == set()


@pytest.mark.parametrize("data", [b"", b"not a graph", b"\xff" * 100, b"\x3a\xff\xff\xff\x0f", b"\x08\x0a", b"\x0b"])
def test_what_is_no_graph_is_refused(data: bytes):
    """Empty, text, noise, a length beyond the end, a model without a graph."""
    with pytest.raises(ValueError, match=r"cut short|no ONNX|no graph"):
        external_locations(data)
