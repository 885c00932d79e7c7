"""The graphs that the benchmark compares are graphs of the same networks."""

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="graphs are drawn from torch networks")

from benchmarks.graphs import HEAD, Apart, by_hand, network, wiring_of
from training.distillation.gate import average_of
from training.export.cost import open_session
from training.export.parity import check_parity, random_feeds
from training.export.serving_graph import Head, write_graph


def test_the_graph_written_by_hand_is_the_students(tmp_path: Path):
    """What the exporter is measured against answers as torch does."""
    wiring = wiring_of(20)
    student = {"s": network("dnn", wiring)}
    (tmp_path / "model.onnx").write_bytes(by_hand(student["s"], wiring).SerializeToString())

    check_parity(open_session(tmp_path / "model.onnx"), random_feeds(wiring), student, wiring, HEAD)


def test_the_ensemble_of_tables_apart_is_the_same_ensemble(tmp_path: Path):
    wiring = wiring_of(20)
    teachers = {name: network(name, wiring) for name in ("lr", "dnn")}
    head = Head(HEAD.platt, average_of(2))
    write_graph(Apart(teachers, wiring, head), tmp_path)

    check_parity(open_session(tmp_path / "model.onnx"), random_feeds(wiring), teachers, wiring, head)
