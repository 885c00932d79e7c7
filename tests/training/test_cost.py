"""What a model costs: measured as the service runs it, models taking turns, nothing counted before it is warm."""

from pathlib import Path

import pytest

from models.graph import REQUEST_INDEX
from tests.training.served import SIDES, head, network
from training.export import cost
from training.export.cost import bytes_of, conditions, measure_costs, open_session
from training.export.parity import random_feeds
from training.export.serving_graph import ServingGraph, write_graph

WIRING = SIDES["plain"]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("graph")
    write_graph(ServingGraph({"s": network("lr", WIRING.fields)}, WIRING, head()), folder)
    return folder / "model.onnx"


class Told:
    """A session that notes what it was asked; `clock` moves by its cost with every run."""

    def __init__(self, name: str, seconds: float, clock: list[float], calls: list[str]) -> None:
        self.name, self.seconds, self.clock, self.calls = name, seconds, clock, calls

    def run(self, outputs: list[str], feed: object) -> None:
        assert outputs == ["pctr"]
        self.calls.append(f"{self.name}{feed}")
        self.clock[0] += self.seconds


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    clock, calls = [0.0], []
    seconds = {"slow": 0.004, "quick": 0.001}
    monkeypatch.setattr(cost, "open_session", lambda path: Told(path.name, seconds[path.name], clock, calls))
    monkeypatch.setattr(cost.time, "perf_counter", lambda: clock[0])
    return calls


def test_models_take_turns_and_the_first_round_is_not_counted(told: list[str]):
    """Whatever else the machine does meets all models alike."""
    graphs = {name: Path(name) for name in ("slow", "quick")}

    found = measure_costs(graphs, lambda count: ["a", "b", "c"], candidates=(50,), rounds=2, runs=2)

    warm_up, first, second = told[:4], told[4:8], told[8:]
    assert warm_up == ["slowb", "slowc", "quickb", "quickc"]
    assert first == ["slowa", "slowb", "quicka", "quickb"]
    assert second == ["slowc", "slowa", "quickc", "quicka"]
    assert found == {
        "slow": {"50": {"p50_ms": 4.0, "p99_ms": 4.0}},
        "quick": {"50": {"p50_ms": 1.0, "p99_ms": 1.0}},
    }


def test_each_number_of_candidates_has_its_own_requests(told: list[str]):
    asked = []

    measure_costs({"quick": Path("quick")}, lambda n: asked.append(n) or [n], candidates=(1, 50), rounds=1, runs=1)

    assert asked == [1, 50]
    assert told == ["quick1", "quick1", "quick50", "quick50"]


def test_a_real_graph_is_measured(path: Path):
    progress: list[tuple[float, str]] = []
    feed = next(iter(random_feeds(WIRING)))

    found = measure_costs(
        {"lr": path},
        lambda n: [feed],
        rounds=3,
        runs=5,
        progress=lambda done, total, note: progress.append((done, note)),
    )

    assert len(feed[REQUEST_INDEX]) == 1
    assert all(0 < found["lr"][n]["p50_ms"] <= found["lr"][n]["p99_ms"] for n in ("1", "50", "200"))
    assert [done for done, _ in progress] == sorted(done for done, _ in progress)
    assert all(0 <= done < 1 for done, _ in progress)


def test_a_session_is_the_services(path: Path):
    """One thread, and it sleeps when there is nothing to do."""
    options = open_session(path).get_session_options()

    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 1)
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_bytes_count_the_graph_and_its_external_data(tmp_path: Path):
    (tmp_path / "model.onnx").write_bytes(b"x" * 10)
    (tmp_path / "model.onnx.data").write_bytes(b"x" * 500)
    (tmp_path / "golden.json").write_bytes(b"x" * 7)

    assert bytes_of(tmp_path) == 510


def test_a_latency_comes_with_its_conditions():
    found = conditions()

    assert found["threads"] == 1
    assert all(found[key] for key in ("cpu", "onnxruntime", "python", "system"))
