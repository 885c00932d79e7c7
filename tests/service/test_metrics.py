"""Metrics: the contract's names, the buckets, and counts that stay right when workers die."""

import math
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.metrics import CANDIDATES, LATENCY_SECONDS, PCTR, Bins, Metrics, forget_gauges
from service.processes import census
from service.processes.census import Census, write_census
from tests.service.running import ROOT, clean_environment, metric

CONTRACT = {
    "retort_request_duration_seconds": ("histogram", ("experiment", "arm", "model", "outcome")),
    "retort_stage_duration_seconds": ("histogram", ("stage",)),
    "retort_requests_total": ("counter", ("route", "code")),
    "retort_candidates": ("histogram", ()),
    "retort_pctr": ("histogram", ()),
    "retort_fallbacks_total": ("counter", ("reason",)),
    "retort_refused_total": ("counter", ("reason",)),
    "retort_missing_values_total": ("counter", ("field",)),
    "retort_unknown_values_total": ("counter", ("field",)),
    "retort_ignored_fields_total": ("counter", ()),
    "retort_model_info": ("gauge", ("model", "version", "sha256")),
    "retort_model_load_failures_total": ("counter", ("model", "reason")),
    "retort_experiment_reload_failures_total": ("counter", ()),
    "retort_exposures_total": ("counter", ("experiment", "arm")),
    "retort_events_total": ("counter", ("event", "outcome")),
    "retort_log_dropped_total": ("counter", ("reason",)),
}


def declared(metrics: Metrics) -> dict[str, tuple[str, tuple[str, ...]]]:
    return {
        collector._name + ("_total" if collector._type == "counter" else ""): (
            collector._type,
            collector._labelnames,
        )
        for collector in vars(metrics).values()
        if hasattr(collector, "_labelnames") and collector in metrics.registry._collector_to_names
    }


def test_every_metric_of_the_contract_is_there_with_its_labels():
    """Dashboards and alerts are written against these names; one more of our own is no harm."""
    found = declared(Metrics())

    assert {name: found.get(name) for name in CONTRACT} == CONTRACT
    assert found.keys() - CONTRACT.keys() == {
        "retort_candidate_cache_total",
        "retort_catalogue_candidates",
        "retort_admission_state",
        "retort_circuit_state",
        "retort_places_taken",
        "retort_workers",
        "retort_worker_starts_total",
        "retort_worker_restarts_total",
        "retort_arm_halted",
        "retort_guard_rail_evidence",
        "retort_guard_rail_failures_total",
        "retort_guard_rail_trips_total",
        "retort_guard_rails_judged_timestamp_seconds",
        "retort_drift_psi",
        "retort_drift_change_psi",
        "retort_drift_lost_share",
        "retort_shadow_dropped_total",
        "retort_shadow_kl",
        "retort_shadow_scored_total",
        "retort_ship_lag_seconds",
        "retort_ship_lost_bytes",
        "retort_ship_unread_bytes",
        "retort_traces_total",
        "retort_spans_total",
        "retort_log_records_total",
        "retort_log_torn_total",
        "retort_log_written_bytes_total",
        "retort_inferences_total",
        "retort_inference_seconds_total",
        "retort_inference_candidates_total",
        "retort_inference_last_timestamp_seconds",
    }


def test_every_metric_has_help_in_the_exposition():
    """Also those that nothing was counted in yet."""
    text = Metrics().exposition().decode()

    for name, (kind, _) in CONTRACT.items():
        assert f"# TYPE {name} {kind}\n" in text
        (line,) = (line for line in text.splitlines() if line.startswith(f"# HELP {name} "))
        assert len(line.split(" ", 3)[3]) > 10


def test_latency_is_measured_from_a_tenth_of_a_millisecond_to_a_second():
    """The library's own buckets begin at 5 ms, where a good answer has long been given."""
    assert LATENCY_SECONDS[0] == 0.0001
    assert LATENCY_SECONDS[-1] == 1.0
    assert list(LATENCY_SECONDS) == sorted(set(LATENCY_SECONDS))
    steps = [b / a for a, b in pairwise(LATENCY_SECONDS)]
    assert max(steps) <= 1.7


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=60))
def test_a_whole_array_is_counted_like_its_numbers_one_by_one(values: list[float]):
    """The quick way of the hot path puts every probability where the library itself would."""
    ours, theirs = Metrics(), Metrics()

    Bins(ours.pctr).observe_many(np.array(values, dtype=np.float32))
    for value in values:
        theirs.pctr.observe(value)

    def counts(metrics: Metrics) -> dict[str, float]:
        lines = [line for line in metrics.exposition().decode().splitlines() if line.startswith("retort_pctr")]
        return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines}

    one, other = counts(ours), counts(theirs)
    assert one.pop("retort_pctr_sum") == pytest.approx(other.pop("retort_pctr_sum"))
    assert one == other


@pytest.mark.parametrize("bounds", [LATENCY_SECONDS, CANDIDATES, PCTR], ids=["latency", "candidates", "pctr"])
def test_a_value_on_a_bound_belongs_below_it(bounds: tuple[float, ...]):
    """`le` means less or equal: the k-th bound is counted in bucket k."""
    metrics = Metrics()
    latency = metrics.request_duration.labels("e", "a", "m", "ok")
    child = {LATENCY_SECONDS: latency, CANDIDATES: metrics.candidates, PCTR: metrics.pctr}[bounds]

    for bound in bounds:
        Bins(child).observe(bound)

    assert [cell.get() for cell in child._buckets] == [1.0] * len(bounds) + [0.0]


WORKER = """
import json, os, signal, sys
from pathlib import Path
from service.metrics import Metrics, use_slot_files
directory, slot, act = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
use_slot_files(directory, slot)
metrics = Metrics(directory=directory)
metrics.worker_starts.inc()
for number in range(1000):
    metrics.count_request("/predict", 200)
    metrics.stages["score"].observe(0.0002)
metrics.exposures.labels("e%d" % slot, "a" * 5000).inc(7)   # makes the file grow
metrics.model_info.labels("student", str(slot), "0").set(1)
if act == "die":
    os.kill(os.getpid(), signal.SIGKILL)
print(metrics.exposition().decode())
"""


def run_worker(directory: Path, slot: int, act: str) -> str:
    """A process that counts in a slot; its exposition, or nothing if it was killed."""
    finished = subprocess.run(
        [sys.executable, "-c", WORKER, str(directory), str(slot), act],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=clean_environment(),
    )
    assert finished.returncode == (-signal.SIGKILL if act == "die" else 0), finished.stderr
    return finished.stdout


def test_counts_survive_a_killed_worker_and_its_successor(tmp_path: Path):
    """A worker killed with SIGKILL loses no count; the next in its slot counts on from there; no file is added; and
    what the dead one said of itself is gone."""
    run_worker(tmp_path, 0, "die")
    run_worker(tmp_path, 1, "die")
    files = sorted(path.name for path in tmp_path.iterdir())
    forget_gauges(tmp_path, 0)

    text = run_worker(tmp_path, 1, "live")

    assert sorted(path.name for path in tmp_path.iterdir()) == [name for name in files if name != "gauge_livemax_0.db"]
    assert metric(text, "retort_worker_starts_total") == 3
    assert metric(text, "retort_requests_total", route="/predict", code="200") == 3000
    assert metric(text, "retort_stage_duration_seconds_count", stage="score") == 3000
    assert metric(text, "retort_stage_duration_seconds_bucket", stage="score", le="0.0002") == 3000
    assert metric(text, "retort_stage_duration_seconds_sum", stage="score") == pytest.approx(0.6)
    assert metric(text, "retort_exposures_total", experiment="e0") == 7
    assert metric(text, "retort_exposures_total", experiment="e1") == 14
    assert metric(text, "retort_model_info", version="1") == 1
    assert metric(text, "retort_model_info", version="0") == 0


def test_workers_are_counted_by_their_supervisor(tmp_path: Path):
    """Those too that died before they could count; a file that is no census changes nothing."""
    write_census(tmp_path, Census(wanted=4, ready=3, starts=19, restarts=15))
    text = run_worker(tmp_path, 0, "live")
    (tmp_path / census.FILE).write_text("{")
    without = run_worker(tmp_path, 1, "live")

    assert metric(text, "retort_worker_starts_total") == 19
    assert metric(text, "retort_worker_restarts_total") == 15
    assert metric(text, "retort_workers", state="ready") == 3
    assert metric(text, "retort_workers", state="wanted") == 4
    assert metric(without, "retort_worker_starts_total") == 2
    assert "retort_workers{" not in without


def test_a_census_that_cannot_be_written_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """A full disk does not end the supervisor."""
    write_census(tmp_path / "gone", Census(1, 1, 1, 0))

    assert "cannot be written" in caplog.text
    assert census.read_census(tmp_path / "gone") is None


def test_workers_expose_what_one_process_would(tmp_path: Path):
    """The text of two slots added up has the same families, help and order of buckets as a single process's."""
    run_worker(tmp_path, 0, "live")
    shared = run_worker(tmp_path, 1, "live")
    single = Metrics().exposition().decode()

    def families(text: str) -> list[str]:
        return sorted(line for line in text.splitlines() if line.startswith("#"))

    assert families(shared) == families(single)
    buckets = [line for line in shared.splitlines() if line.startswith("retort_stage_duration_seconds_bucket{le=")]
    score = [float(line.rsplit(" ", 1)[1]) for line in buckets if 'stage="score"' in line]
    assert score == sorted(score)
    assert score[-1] == 2000
    assert not any(math.isnan(value) for value in score)
