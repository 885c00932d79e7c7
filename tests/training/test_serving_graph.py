"""An exported graph answers as its networks do, whatever the fields and whatever the request."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from models.graph import CANDIDATES, CONTEXT, REQUEST_INDEX
from tests.training.served import DEEP, SIDES, gate, head, network, teachers
from training.distillation.calibrate import Platt
from training.distillation.gate import Gate
from training.errors import ExportError
from training.export.cost import open_session
from training.export.parity import TOLERANCE, check_parity, random_feeds
from training.export.serving_graph import Head, ServingGraph, Wiring, count_parameters, write_graph
from training.zoo import NETWORKS, FieldSpec, build

EVERY_KIND = SIDES["every kind"]


def exported(graph: ServingGraph, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    write_graph(graph, folder)
    return folder / "model.onnx"


@pytest.mark.parametrize("sides", SIDES)
def test_a_student_scores_as_torch_does(sides: str, tmp_path: Path):
    """Random rows, table ends, empty sequences, one candidate, several requests, one of them without candidates."""
    wiring = SIDES[sides]
    student = {"student": network("dnn", wiring.fields)}

    session = open_session(exported(ServingGraph(student, wiring, head()), tmp_path))
    parity = check_parity(session, random_feeds(wiring), student, wiring, head())

    assert parity.candidates == sum(len(feed[REQUEST_INDEX]) for feed in random_feeds(wiring))
    assert parity.logit <= TOLERANCE
    assert parity.pctr <= TOLERANCE


@pytest.mark.parametrize(
    "sides",
    ["every kind", *(pytest.param(sides, marks=pytest.mark.soak) for sides in ("no context", "no candidate fields"))],
)
def test_an_ensemble_of_every_network_scores_as_torch_does(sides: str, tmp_path: Path):
    """Teacher logits and gate weights too: `check_parity` compares every output."""
    wiring = SIDES[sides]
    networks = teachers(wiring.fields)

    session = open_session(exported(ServingGraph(networks, wiring, head(len(networks))), tmp_path))
    parity = check_parity(session, random_feeds(wiring, seed=1), networks, wiring, head(len(networks)))

    assert [output.name for output in session.get_outputs()] == ["logit", "pctr", "teacher_logits", "gate_weights"]
    assert parity.logit <= TOLERANCE


@pytest.mark.parametrize("form", ["average", "full", "hints", "stacking"])
def test_a_gate_of_any_form_is_exported(form: str, tmp_path: Path):
    """Logit, pctr, teacher logits and gate weights as numpy and torch give them, with sequences and constants."""
    fields = EVERY_KIND.fields
    networks = {name: network(name, fields, seed) for seed, name in enumerate(("dnn", "deepfm", "dcnv2"))}
    rng = np.random.default_rng(0)
    inputs = 3 + (3 * DEEP["hidden"][-1] if form == "hints" else 0)
    matrix = rng.normal(0, 0.5, (3, inputs)) if form in ("full", "hints") else np.zeros((3, 3))
    signs = (1.0, -1.0, 1.0) if form == "stacking" else (1.0, 1.0, 1.0)
    biases = (0.0, 0.0, 0.0) if form == "average" else (0.4, -0.3, 0.1)
    gated = Gate(form, tuple(map(tuple, matrix.tolist())), biases, signs, 1.2, -0.1, "gate")
    head_ = Head(Platt(0.8, -0.4), gated)

    session = open_session(exported(ServingGraph(networks, EVERY_KIND, head_), tmp_path))
    parity = check_parity(session, random_feeds(EVERY_KIND, seed=2), networks, EVERY_KIND, head_)

    assert parity.logit <= TOLERANCE
    feed = next(feed for feed in random_feeds(EVERY_KIND) if len(feed[REQUEST_INDEX]) == 64)
    alpha = session.run(["gate_weights"], feed)[0]
    np.testing.assert_allclose(alpha.sum(axis=1), 1.0, rtol=1e-5)
    assert (np.ptp(alpha, axis=0).max() > 0.05) == (form in ("full", "hints"))  # otherwise the same for every row


def test_the_inputs_are_those_of_the_contract(tmp_path: Path):
    """int32, free in requests, candidates and elements; a width of 0 is still an input."""
    student = {"student": network("dnn", EVERY_KIND.fields)}

    session = open_session(exported(ServingGraph(student, EVERY_KIND, head()), tmp_path))

    inputs = {entry.name: (entry.type, entry.shape) for entry in session.get_inputs()}
    assert list(inputs) == [
        *(CONTEXT, CANDIDATES, REQUEST_INDEX),
        *("history_ids", "history_offsets", "tags_ids", "tags_offsets"),
    ]
    assert {kind for kind, _ in inputs.values()} == {"tensor(int32)"}
    assert inputs[CONTEXT][1][1] == 2  # user and hour: position and slot.id are constants, history has its own inputs
    assert all(isinstance(shape[0], str) for _, shape in inputs.values())


def test_a_candidate_scores_alike_in_whatever_company(tmp_path: Path):
    """Requests joined into one run get what they get alone."""
    student = {"student": network("dcnv2", EVERY_KIND.fields)}
    session = open_session(exported(ServingGraph(student, EVERY_KIND, head()), tmp_path))
    joined = next(feed for feed in random_feeds(EVERY_KIND) if feed[REQUEST_INDEX].max() == 3)
    together = session.run(["logit"], joined)[0]

    for request in range(4):
        rows = joined[REQUEST_INDEX] == request
        alone = {CONTEXT: joined[CONTEXT][[request]], CANDIDATES: joined[CANDIDATES][rows]}
        alone[REQUEST_INDEX] = np.zeros(rows.sum(), dtype=np.int32)
        for name, picked in (("history", [request]), ("tags", np.flatnonzero(rows))):
            ids, offsets = joined[f"{name}_ids"], joined[f"{name}_offsets"]
            segments = [ids[offsets[i] : offsets[i + 1]] for i in picked]
            alone[f"{name}_ids"] = np.concatenate(segments)
            alone[f"{name}_offsets"] = np.cumsum([0, *map(len, segments)], dtype=np.int32)
        np.testing.assert_allclose(session.run(["logit"], alone)[0], together[rows], rtol=1e-5, atol=1e-6)


def test_an_empty_sequence_is_the_single_id_zero(tmp_path: Path):
    """Whoever sends no elements at all gets what the encoder's id for a missing value gets."""
    wiring = SIDES["a sequence is all there is"]
    student = {"student": network("dnn", wiring.fields)}
    session = open_session(exported(ServingGraph(student, wiring, head()), tmp_path))
    rows = {
        CONTEXT: np.zeros((1, 0), np.int32),
        CANDIDATES: np.zeros((3, 0), np.int32),
        REQUEST_INDEX: np.zeros(3, np.int32),
    }

    def logits(ids: list[int], offsets: list[int]) -> np.ndarray:
        feed = rows | {"tags_ids": np.array(ids, np.int32), "tags_offsets": np.array(offsets, np.int32)}
        return session.run(["logit"], feed)[0]

    nothing, zeros = logits([], [0, 0, 0, 0]), logits([0, 0, 0], [0, 1, 2, 3])
    np.testing.assert_allclose(nothing, zeros, rtol=1e-6)
    np.testing.assert_allclose(logits([5, 7], [0, 0, 2, 2])[[0, 2]], zeros[:2], rtol=1e-6)


def test_din_attends_to_histories_of_every_length(tmp_path: Path):
    """None, one, as many as it looks at, more than that, and no element in all of a run."""
    student = {"student": network("din", EVERY_KIND.fields)}
    session = open_session(exported(ServingGraph(student, EVERY_KIND, head()), tmp_path))
    feed = next(feed for feed in random_feeds(EVERY_KIND) if feed[REQUEST_INDEX].max() == 3)
    rng = np.random.default_rng(2)

    def with_lengths(lengths: list[int]) -> dict[str, np.ndarray]:
        ids = rng.integers(0, 20, sum(lengths)).astype(np.int32)
        offsets = np.cumsum([0, *lengths], dtype=np.int32)
        return feed | {"history_ids": ids, "history_offsets": offsets}

    feeds = [with_lengths([0, 1, 20, 33]), with_lengths([0, 0, 0, 0])]
    assert check_parity(session, feeds, student, EVERY_KIND, head()).logit <= TOLERANCE


def test_a_training_only_field_is_a_constant(tmp_path: Path):
    """Another value standing in for the position gives another graph, and that one value everywhere."""
    fields = (FieldSpec("position", 9, "context"), FieldSpec("ad", 50, "candidate"))
    student = {"student": network("lr", fields)}
    feed = {
        CONTEXT: np.zeros((1, 0), np.int32),
        CANDIDATES: np.array([[4], [4]], np.int32),
        REQUEST_INDEX: np.zeros(2, np.int32),
    }
    weights = student["student"].first_order.weights.table[:, 0].tolist()

    logits = {}
    for id_ in (0, 8):
        graph = ServingGraph(student, Wiring(fields, {"position": id_}), head())
        logits[id_] = open_session(exported(graph, tmp_path / str(id_))).run(["logit"], feed)[0]

    assert logits[8][0] - logits[0][0] == pytest.approx(weights[8] - weights[0], abs=1e-6)


def test_the_correction_for_negative_sampling_scales_odds(tmp_path: Path):
    """Half the non-clicks kept: true odds are half of those the networks learned."""
    wiring = SIDES["plain"]
    student = {"student": network("dnn", wiring.fields)}
    feed = next(iter(random_feeds(wiring)))

    pctr = {}
    for rate in (1.0, 0.5):
        graph = ServingGraph(student, wiring, Head(Platt(1.1, 0.2), negative_keep_rate=rate))
        pctr[rate] = open_session(exported(graph, tmp_path / str(rate))).run(["pctr"], feed)[0]

    odds = {rate: p / (1 - p) for rate, p in pctr.items()}
    np.testing.assert_allclose(odds[0.5], 0.5 * odds[1.0], rtol=1e-5)


def test_a_graph_looks_up_once_a_side(tmp_path: Path):
    """However many networks and tables: one Gather of embeddings for the context, one for the candidates."""
    networks = {name: network(name, SIDES["plain"].fields) for name in ("lr", "fm", "dnn")}

    model = onnx.load(exported(ServingGraph(networks, SIDES["plain"], head(len(networks))), tmp_path))

    tables = [name for node in model.graph.node if node.op_type == "Gather" for name in node.input[:1]]
    assert Counter(tables)["look_up.table"] == 2
    assert sum(onnx.numpy_helper.to_array(t).size > 60 * 4 for t in model.graph.initializer if "table" in t.name) == 1


def test_the_contexts_share_of_the_first_layer_is_computed_once_a_request(tmp_path: Path):
    """Its matrix product comes before the Gather that spreads requests over candidates."""
    student = {"s": network("dnn", SIDES["plain"].fields)}

    model = onnx.load(exported(ServingGraph(student, SIDES["plain"], head()), tmp_path))

    spread = next(node for node in model.graph.node if REQUEST_INDEX in node.input)
    made_by = {output: node for node in model.graph.node for output in node.output}
    assert (spread.op_type, made_by[spread.input[0]].op_type) == ("Gather", "Gemm")


def test_nothing_needless_is_left_in_a_students_graph(tmp_path: Path):
    """17 nodes for a perceptron with two hidden layers, none of them a Cast."""
    wiring = SIDES["plain"]

    model = onnx.load(exported(ServingGraph({"s": network("dnn", wiring.fields)}, wiring, head()), tmp_path))

    count = Counter(node.op_type for node in model.graph.node)
    assert count == {
        **{"Add": 3, "Gather": 3, "Reshape": 2, "Gemm": 4, "Relu": 2},
        **{"Squeeze": 1, "Mul": 1, "Sigmoid": 1},
    }


def test_equal_weights_make_equal_bytes(tmp_path: Path):
    """Nothing of the machine or the moment is in the file."""
    paths = [
        exported(ServingGraph({"s": network("fm", EVERY_KIND.fields)}, EVERY_KIND, head()), tmp_path / str(i))
        for i in range(2)
    ]

    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert os.fsencode(Path(torch.__file__).parent) not in paths[0].read_bytes()
    assert b".py" not in paths[0].read_bytes()


def test_a_large_table_lies_in_a_file_beside_the_graph(tmp_path: Path):
    """On a page of its own, so that worker processes share what ONNX Runtime maps; small tensors stay in the graph."""
    fields = (FieldSpec("user", 70_000, "context"), FieldSpec("ad", 50, "candidate"))
    wiring = Wiring(fields, {})
    student = {"student": build("dnn", fields, **DEEP).eval()}

    path = exported(ServingGraph(student, wiring, head()), tmp_path)

    external = [t for t in onnx.load(path, load_external_data=False).graph.initializer if t.external_data]
    assert [tensor.name for tensor in external] == ["look_up.table"]
    where = {entry.key: entry.value for entry in external[0].external_data}
    assert where == {"location": "model.onnx.data", "offset": "0", "length": str(70_050 * 4 * 4)}
    session = open_session(path)
    check_parity(session, random_feeds(wiring), student, wiring, head())
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert str(tmp_path / "model.onnx.data") in maps.read_text()


def test_exporting_says_nothing(tmp_path: Path):
    """The exporter's advice to its own developers stays out of a run's output."""
    program = (
        "from pathlib import Path\n"
        "from tests.training.served import SIDES, head, network\n"
        "from training.export.serving_graph import ServingGraph, write_graph\n"
        "wiring = SIDES['plain']\n"
        f"write_graph(ServingGraph({{'s': network('dnn', wiring.fields)}}, wiring, head()), Path({str(tmp_path)!r}))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=Path.cwd(), check=True)

    assert (done.stdout, done.stderr) == ("", "")


def test_the_networks_themselves_are_left_as_they_were(tmp_path: Path):
    """A network can be exported alone and in an ensemble, and trained on."""
    wiring = SIDES["plain"]
    student = network("deepfm", wiring.fields)
    before = {name: value.clone() for name, value in student.state_dict().items()}

    exported(ServingGraph({"s": student}, wiring, head()), tmp_path)

    assert before.keys() == student.state_dict().keys()
    assert all(torch.equal(before[name], value) for name, value in student.state_dict().items())


def test_a_graph_that_differs_from_its_networks_is_refused(tmp_path: Path):
    """A weight off by a thousandth, in one of two hidden layers, is found and named."""
    wiring = SIDES["plain"]
    student = {"student": network("dnn", wiring.fields)}
    session = open_session(exported(ServingGraph(student, wiring, head()), tmp_path))
    with torch.no_grad():
        student["student"].last.bias += 1e-3

    with pytest.raises(ExportError, match=r"ads: logit: expected .* as torch says, got .* from ONNX Runtime"):
        check_parity(session, random_feeds(wiring), student, wiring, head(), name="ads")


def test_a_graph_that_answers_nan_is_refused(tmp_path: Path):
    """NaN compares as different from everything, so it cannot slip through a maximum."""
    wiring = SIDES["plain"]
    student = {"student": network("lr", wiring.fields)}
    broken = network("lr", wiring.fields)
    with torch.no_grad():
        broken.first_order.bias.fill_(float("nan"))
    session = open_session(exported(ServingGraph({"s": broken}, wiring, head()), tmp_path))

    with pytest.raises(ExportError, match="got nan from ONNX Runtime"):
        check_parity(session, random_feeds(wiring), student, wiring, head())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda w, n: Head(Platt(), negative_keep_rate=0), "expected a share in"),
        (lambda w, n: ServingGraph(n, w, head(3)), "expected as many networks as the head takes, 3, got 1"),
        (lambda w, n: ServingGraph(n, Wiring(w.fields[:1], {}), head()), "expected tables of 30 rows.*got one of 80"),
        (lambda w, n: Wiring(w.fields, {"ad": 1}), "field 'ad': expected a training-only field"),
        (lambda w, n: Wiring(w.fields, {"user": 30}), r"field 'user': expected a serving id in 0\.\.29, got 30"),
    ],
)
def test_what_does_not_fit_together_is_refused(make, message: str):
    wiring = SIDES["plain"]
    with pytest.raises(ExportError, match=message):
        make(wiring, {"student": network("dnn", wiring.fields)})


def test_parameters_are_counted_in_tables_and_elsewhere():
    """80 rows: DeepFM has 4 columns and a first-order weight; the rest is dense."""
    counts = count_parameters({"s": network("deepfm", SIDES["plain"].fields)})

    dense = 1 + (8 * 8 + 8) + (8 * 6 + 6) + 6  # first-order bias, two layers, the last without a bias
    assert counts == {"parameters_embedding": 80 * 5, "parameters_dense": dense}


def test_the_zoo_is_exported_whole():
    """A new network is under test here as soon as it is in the registry."""
    assert set(teachers(EVERY_KIND.fields)) == set(NETWORKS)
    assert gate(len(NETWORKS)).teachers == len(NETWORKS)
