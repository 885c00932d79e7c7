"""From encoded rows to the graph's inputs, for one request and for many."""

import numpy as np
import pytest

from models.errors import BundleError
from models.golden import Golden, GoldenRequest, check_golden, golden_mismatch
from models.graph import GATE_WEIGHTS, LOGIT, PCTR, TEACHER_LOGITS, graph_inputs, input_names
from tests.models.tiny_bundle import REQUESTS, tiny_golden, tiny_graph, tiny_model

MODEL = tiny_model(bias=0.25)
ENCODED = [
    (MODEL.encoder.encode_context(context), MODEL.encoder.encode_candidates(candidates))
    for context, candidates in REQUESTS
]


def run(graph: bytes, outputs: list[str], inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The graph's outputs, in ONNX Runtime."""
    ort = pytest.importorskip("onnxruntime")
    return ort.InferenceSession(graph, providers=["CPUExecutionProvider"]).run(outputs, inputs)


def test_inputs_have_the_names_and_types_of_the_contract():
    """context, candidates, request_index, then ids and offsets of each sequence, all int32."""
    inputs = graph_inputs(*zip(*ENCODED, strict=True))

    assert tuple(sorted(inputs)) == tuple(sorted(input_names(MODEL.encoder.schema)))
    assert input_names(MODEL.encoder.schema)[:5] == (
        "context",
        "candidates",
        "request_index",
        "visited_ids",
        "visited_offsets",
    )
    assert {array.dtype for array in inputs.values()} == {np.dtype(np.int32)}
    assert {name: array.shape for name, array in inputs.items()} == {
        "context": (3, 4),
        "candidates": (7, 3),
        "request_index": (7,),
        "visited_ids": (2 + 1 + 3,),
        "visited_offsets": (4,),
        "tags_ids": (2 + 1 + 1 + 1 + 1 + 4 + 1,),
        "tags_offsets": (8,),
    }
    assert inputs["request_index"].tolist() == [0, 0, 0, 0, 1, 2, 2]


def test_requests_together_score_as_they_do_alone():
    """No request's context or sequence reaches another's candidates."""
    graph = tiny_graph(MODEL)

    (together,) = run(graph, [LOGIT], graph_inputs(*zip(*ENCODED, strict=True)))
    alone = [run(graph, [LOGIT], graph_inputs([c], [a]))[0] for c, a in ENCODED]

    assert together == pytest.approx(np.concatenate(alone), abs=1e-6)
    assert together == pytest.approx([x for request in tiny_golden(MODEL).requests for x in request.logit], abs=1e-5)


def test_an_ensemble_gives_what_each_teacher_said():
    """[N, M] both, gate weights summing to 1, the logit their weighted sum."""
    outputs = run(
        tiny_graph(MODEL, teachers=3),
        [LOGIT, PCTR, TEACHER_LOGITS, GATE_WEIGHTS],
        graph_inputs(*zip(*ENCODED, strict=True)),
    )

    logit, pctr, teacher_logits, gate_weights = outputs
    assert (logit.shape, pctr.shape, teacher_logits.shape, gate_weights.shape) == ((7,), (7,), (7, 3), (7, 3))
    assert gate_weights.sum(axis=1) == pytest.approx(np.ones(7))
    assert (teacher_logits * gate_weights).sum(axis=1) == pytest.approx(logit, abs=1e-5)


def test_the_tiny_graph_takes_an_empty_segment_as_a_single_id_0():
    """As every graph of ours has to, though the encoder never sends one."""
    inputs = graph_inputs([ENCODED[1][0]], [ENCODED[1][1]])
    empty = inputs | {
        "visited_ids": np.empty(0, np.int32),
        "visited_offsets": np.array([0, 0], np.int32),
        "tags_ids": np.empty(0, np.int32),
        "tags_offsets": np.array([0, 0], np.int32),
    }
    graph = tiny_graph(MODEL)

    assert run(graph, [LOGIT], empty)[0] == pytest.approx(run(graph, [LOGIT], inputs)[0])


# --- golden rows --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expected", "got", "is_match"),
    [
        ([0.0, 1.0], [9e-6, 1.0], True),
        ([0.0, 1.0], [1.1e-5, 1.0], False),
        ([-20.0], [-20.0001], True),
        ([-20.0], [-20.0003], False),
        ([0.5], [np.nan], False),
        ([0.5], [np.inf], False),
        ([0.5], [0.5, 0.5], False),
        ([0.5], [[0.5]], False),
        ([0.5], [], False),
    ],
)
def test_a_score_matches_within_the_tolerance(expected: list[float], got: list[float], is_match: bool):
    """1e-5, relative above 1; NaN and a wrong shape never match."""
    problem = golden_mismatch(np.array(got, dtype=np.float32), expected, 1e-5)

    assert (problem is None) is is_match


def test_a_mismatch_says_which_candidate_and_by_how_much(tmp_path):
    """So that whoever is paged knows whether it is rounding or another model."""
    golden = Golden(
        requests=(
            GoldenRequest(context={}, candidates=({},), logit=(0.0,), pctr=(0.5,)),
            GoldenRequest(context={}, candidates=({}, {}), logit=(0.0, 1.0), pctr=(0.5, 0.73)),
        )
    )

    def score(context, candidates):
        n = len(candidates)
        return np.arange(n, dtype=np.float32), np.array([0.5, 0.75][:n], dtype=np.float32)

    with pytest.raises(BundleError) as caught:
        check_golden(golden, score, tmp_path)

    assert caught.value.path == tmp_path / "golden.json"
    assert caught.value.reason == (
        "request 1: pctr: candidate 1: expected 0.73, got 0.75; 1 of 2 candidates differ by more than 1e-05"
    )
