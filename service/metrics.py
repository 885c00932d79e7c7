"""Every metric by name, in one place (a contract; docs/api.md), and how several workers share them.

Labels are few and bounded: names from the experiment file, the repository and our own tables, never from a
request. Label children are looked up once and kept, because a look-up costs more than the increment.

Workers. Each worker process owns a *slot* 0..workers-1 and writes its counts into the slot's memory-mapped
files, in the format of prometheus_client's multiprocess mode; whichever worker is scraped adds the slots up.
A worker that is killed loses nothing, and the one started in its place opens the same files and counts on:
counters never fall back and a thousand deaths leave as many files as there are slots. (The library's own mode
names files by process id, so that each death leaves two more for every later scrape to read.) Gauges say what
is true of a living process, so a slot's gauge file is removed when its worker dies.

    single process (tests)    Metrics(CollectorRegistry())                 counts in memory
    worker                    use_slot_files(directory, slot), then the same
    scrape                    Metrics.exposition()
"""

from __future__ import annotations

import functools
import json
import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt
import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, values
from prometheus_client.metrics_core import Metric
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.utils import floatToGoString

from service.errors import Code
from service.processes.census import read_census

prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

LATENCY_SECONDS = (
    *(0.0001, 0.00015, 0.0002, 0.0003, 0.0005, 0.00075),
    *(0.001, 0.0015, 0.002, 0.003, 0.005, 0.0075),
    *(0.01, 0.015, 0.02, 0.03, 0.05, 0.075),
    *(0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0),
)  # fmt: skip
STAGE_SECONDS = (0.00001, 0.00002, 0.00005, *LATENCY_SECONDS)
CANDIDATES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
PCTR = (
    *(0.0001, 0.0003, 0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075),
    *(0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
)

_STARTS, _RESTARTS = "retort_worker_starts_total", "retort_worker_restarts_total"
"""Which the supervisor counts: a worker that dies young does not come to it (`processes/census.py`)."""

STAGES = ("decode", "encode", "queue", "score", "reply")


class _Cell(Protocol):
    @property
    def inc(self) -> Callable[[float], object]: ...


class Bins:
    """One child of a histogram, for the hot path: a bisection and two increments, and whole arrays at once."""

    __slots__ = ("_add", "_bounds", "_counts", "_edges")

    def __init__(self, child: Histogram) -> None:
        # The library's own observe() walks the bounds and re-checks itself; its cells are all we need.
        self._bounds: list[float] = child._upper_bounds
        buckets: list[_Cell] = child._buckets
        total: _Cell = child._sum
        self._counts = [cell.inc for cell in buckets]
        self._add = total.inc
        # The greatest float32 that is no greater than the bound: so a float32 falls where its float64 would.
        edges = np.array(self._bounds, np.float32)
        self._edges = np.where(edges > np.array(self._bounds), np.nextafter(edges, np.float32(-np.inf)), edges)

    def observe(self, value: float) -> None:
        """Counts one value."""
        self._counts[bisect_left(self._bounds, value)](1.0)
        self._add(value)

    def observe_many(self, numbers: npt.NDArray[np.float32]) -> None:
        """Counts a whole array; the same buckets as `observe` of each."""
        if len(numbers) == 1:
            self.observe(numbers.item())
            return
        for count, add in zip(np.bincount(self._edges.searchsorted(numbers)).tolist(), self._counts, strict=False):
            if count:
                add(count)
        # For a few a list is quicker than a reduction of float32 in float64.
        self._add(sum(numbers.tolist()) if len(numbers) < 100 else np.add.reduce(numbers, dtype=np.float64).item())


class LateBins:
    """Bins of a child that comes into being with the first value that is counted: a series of which nothing is known
    would cost every scrape its 28 lines."""

    __slots__ = ("observe",)

    def __init__(self, family: Histogram, *labels: str) -> None:
        self.observe: Callable[[float], None] = lambda value: self._begin(family, labels, value)
        """Counts one value."""

    def _begin(self, family: Histogram, labels: tuple[str, ...], value: float) -> None:
        self.observe = Bins(family.labels(*labels)).observe
        self.observe(value)


def adder(child: Counter) -> Callable[[float], object]:
    """How to count in one child of a counter, for the hot path: its cell's own `inc`, without the library's checks."""
    cell: _Cell = child._value
    return cell.inc


class DerivedGauge:
    """A gauge that nobody sets: it is worked out for each scrape from what all workers have counted."""

    _type = "gauge"

    def __init__(self, name: str, documentation: str, labels: tuple[str, ...], registry: CollectorRegistry) -> None:
        self._name = name
        self._documentation = documentation
        self._labelnames = labels
        self.values: Callable[[], Iterable[tuple[tuple[str, ...], float]]] = lambda: ()
        """(label values, value) of each child."""
        registry.register(self)

    def describe(self) -> list[Metric]:
        """The family, without values."""
        return [Metric(self._name, self._documentation, self._type)]

    def collect(self) -> list[Metric]:
        """The family as it is now."""
        (family,) = self.describe()
        for labels, value in self.values():
            family.add_sample(self._name, dict(zip(self._labelnames, labels, strict=True)), value)
        return [family]


def clear(gauge: Gauge) -> None:
    """Every child of it says nothing again."""
    for labels in list(gauge._metrics):
        gauge.labels(*labels).set(0)


class Metrics:
    """The service's metrics in a registry of their own. Increment from the event loop's thread only."""

    def __init__(
        self, registry: CollectorRegistry | None = None, directory: Path | None = None, slot: int | None = None
    ) -> None:
        """`directory`, `slot`: where workers share their counts, and which of them this is."""
        self.registry = registry if registry is not None else CollectorRegistry()
        self.directory = directory
        self.slot = slot
        counter = functools.partial(Counter, registry=self.registry)
        histogram = functools.partial(Histogram, registry=self.registry)
        self.request_duration = histogram(
            "retort_request_duration_seconds",
            "From the first byte of a scored request to its answer, by what answered.",
            ["experiment", "arm", "model", "outcome"],
            buckets=LATENCY_SECONDS,
        )
        self.stage_duration = histogram(
            "retort_stage_duration_seconds",
            "Time a scored request spent in each stage: decode, encode, queue, score, reply.",
            ["stage"],
            buckets=STAGE_SECONDS,
        )
        self.requests = counter(
            "retort_requests_total", "Requests answered, by route and HTTP status.", ["route", "code"]
        )
        self.candidates = histogram("retort_candidates", "Candidates in a scored request.", buckets=CANDIDATES)
        self.pctr = histogram("retort_pctr", "Click probabilities returned, one for each candidate.", buckets=PCTR)
        self.fallbacks = counter(
            "retort_fallbacks_total", "Requests answered by another model than their arm's.", ["reason"]
        )
        self.refused = counter("retort_refused_total", "Requests refused, by stable problem code.", ["reason"])
        self.missing_values = counter(
            "retort_missing_values_total", "Values absent, null or empty, by field.", ["field"]
        )
        self.unknown_values = counter(
            "retort_unknown_values_total", "Values not in the vocabulary, by field.", ["field"]
        )
        self.ignored_fields = counter(
            "retort_ignored_fields_total", "Members of requests that no field of the schema takes."
        )
        self.model_info = Gauge(
            "retort_model_info",
            "1 for each model version that is loaded and golden-checked.",
            ["model", "version", "sha256"],
            registry=self.registry,
            multiprocess_mode="livemax",
        )
        self.model_load_failures = counter(
            "retort_model_load_failures_total", "Model versions refused at load.", ["model", "reason"]
        )
        self.circuit_state = Gauge(
            "retort_circuit_state",
            "Whether a model that another can answer for is asked: 1 closed, 2 half-open, 3 open.",
            ["model", "version"],
            registry=self.registry,
            multiprocess_mode="livemax",
        )
        self.experiment_reload_failures = counter(
            "retort_experiment_reload_failures_total", "Experiment files refused; the last good one was kept."
        )
        self.exposures = counter(
            "retort_exposures_total", "Scored requests, by experiment and arm.", ["experiment", "arm"]
        )
        self.arm_halted = Gauge(
            "retort_arm_halted",
            "1 where an arm is switched off, by the experiment file or by a guard-rail: its units get control.",
            ["experiment", "arm"],
            registry=self.registry,
            multiprocess_mode="livemax",
        )
        self.guard_rail_trips = counter(
            "retort_guard_rail_trips_total", "Arms that a guard-rail has halted.", ["experiment", "arm", "rail"]
        )
        self.guard_rail_evidence = Gauge(
            "retort_guard_rail_evidence",
            "How far an arm has gone towards a guard-rail: it is halted above 1. Absent: not judged yet.",
            ["experiment", "arm", "rail"],
            registry=self.registry,
            multiprocess_mode="livemax",
        )
        self.guard_rails_judged = Gauge(
            "retort_guard_rails_judged_timestamp_seconds",
            "When guard-rails were last judged, since 1970. Absent: none is stated.",
            registry=self.registry,
            multiprocess_mode="livemax",
        )
        self.guard_rail_failures = counter(
            "retort_guard_rail_failures_total",
            "Halts that could not be put in force: the state file cannot be written.",
        )
        self.events = counter("retort_events_total", "Feedback events, by kind and outcome.", ["event", "outcome"])
        self.log_dropped = counter(
            "retort_log_dropped_total", "Records that the exposure log could not keep.", ["reason"]
        )
        self.log_records = counter("retort_log_records_total", "Records written to the exposure log.", ["kind"])
        self.log_bytes = counter("retort_log_written_bytes_total", "What these records took, without their frames.")
        self.log_torn = counter(
            "retort_log_torn_total", "Torn ends and damaged places found in what dead workers left of the exposure log."
        )
        self.shadow_scored = counter(
            "retort_shadow_scored_total",
            "Answered requests that another arm's model scored in the shadow.",
            ["experiment"],
        )
        self.shadow_dropped = counter(
            "retort_shadow_dropped_total",
            "Requests sampled for the shadow and not scored: full, unreadable, failed.",
            ["experiment", "reason"],
        )
        self.traces = counter(
            "retort_traces_total",
            "Requests to be traced: recorded, or limited, beyond the bound.",
            ["outcome"],
        )
        self.spans = counter("retort_spans_total", "Spans for the collector of traces: exported, failed.", ["outcome"])
        self.shadow_kl = DerivedGauge(
            "retort_shadow_kl",
            "Mean KL divergence, in nats a candidate, of the student's pctr from the ensemble's, by shadows.",
            ("experiment",),
            self.registry,
        )
        self.drift_psi = DerivedGauge(
            "retort_drift_psi",
            "Population stability index of a field's values, or of pctr, against the model's training log.",
            ("model", "field"),
            self.registry,
        )
        self.drift_change_psi = DerivedGauge(
            "retort_drift_change_psi",
            "Population stability index of a field's values, or of pctr, against a day ago, or when counting began.",
            ("model", "field"),
            self.registry,
        )
        self.drift_lost_share = DerivedGauge(
            "retort_drift_lost_share",
            "Share of a field's values that are missing or unknown, beyond that in the model's training log.",
            ("model", "field"),
            self.registry,
        )
        self.ship_lag = DerivedGauge(
            "retort_ship_lag_seconds",
            "Since when records of the exposure log may not have been shipped to a sink.",
            ("sink",),
            self.registry,
        )
        self.ship_unread = DerivedGauge(
            "retort_ship_unread_bytes",
            "What of the exposure log is not shipped to a sink yet.",
            ("sink",),
            self.registry,
        )
        self.ship_lost = DerivedGauge(
            "retort_ship_lost_bytes",
            "What retention has removed from the exposure log before it was shipped to a sink.",
            ("sink",),
            self.registry,
        )
        self.inferences = counter(
            "retort_inferences_total",
            "Requests of the Open Inference Protocol, by model version and outcome.",
            ["model", "version", "outcome"],
        )
        self.inference_seconds = counter(
            "retort_inference_seconds_total",
            "Where their time went: success, fail, queue, compute_input, compute_infer, compute_output.",
            ["model", "version", "part"],
        )
        self.inference_candidates = counter(
            "retort_inference_candidates_total", "Candidates scored in those requests.", ["model", "version"]
        )
        self.inference_last = Gauge(
            "retort_inference_last_timestamp_seconds",
            "When the last of those requests was answered, since 1970.",
            ["model", "version"],
            registry=self.registry,
            multiprocess_mode="livemax",
        )
        self.catalogue_candidates = Gauge(
            "retort_catalogue_candidates",
            "Candidates in the catalogue.",
            registry=self.registry,
            multiprocess_mode="livemax",
        )
        self.candidate_cache = counter(
            "retort_candidate_cache_total",
            "Candidates looked up by their raw bytes, hit or miss, and entries evicted to make room.",
            ["outcome"],
        )
        self.places_taken = Gauge(
            "retort_places_taken",
            "Places that admitted and unanswered requests take, of --max-in-flight: of the fullest worker.",
            registry=self.registry,
            multiprocess_mode="livemax",
        )
        self.admission_state = Gauge(
            "retort_admission_state",
            "Who is let in: 1 as many as there are places, 2 fewer, because overload lasts. The worst of the workers.",
            registry=self.registry,
            multiprocess_mode="livemax",
        )
        self.workers = DerivedGauge(
            "retort_workers",
            "Worker processes: ready to serve, and wanted, as --workers says.",
            ("state",),
            self.registry,
        )
        if directory is not None:
            self.workers.values = functools.partial(_workers, directory)
        self.worker_starts = counter(_STARTS, "Worker processes started, also those that never became ready.")
        self.worker_restarts = counter(_RESTARTS, "Of these, those in the place of one that had ended.")

        for outcome in ("recorded", "limited"):
            self.traces.labels(outcome)
        for outcome in ("exported", "failed"):
            self.spans.labels(outcome)

        self._derived = (
            *(self.shadow_kl, self.drift_psi, self.drift_change_psi, self.drift_lost_share),
            *(self.ship_lag, self.ship_unread, self.ship_lost, self.workers),
        )
        self._families = [Metric(family.name, family.documentation, family.type) for family in self.registry.collect()]
        self._requests: dict[tuple[str, int], Callable[[float], object]] = {}
        # A code that was never met counts 0 rather than nothing, so that its rate is there from the start.
        self._refused = {code: adder(self.refused.labels(code)) for code in Code}
        self.stages = {stage: Bins(self.stage_duration.labels(stage)) for stage in STAGES}
        self.candidate_bins = Bins(self.candidates)
        self.pctr_bins = Bins(self.pctr)
        hits, misses, evicted = (adder(self.candidate_cache.labels(outcome)) for outcome in ("hit", "miss", "evicted"))

        def count_cache(hit: int, missed: int, gone: int) -> None:
            if hit:
                hits(hit)
            if missed:
                misses(missed)
            if gone:
                evicted(gone)

        self.count_cache: Callable[[int, int, int], None] = count_cache
        """Counts candidates found in a cache, not found, and entries that it has dropped."""

    def count_request(self, route: str, status: int) -> None:
        """Counts an answer under the route's template."""
        add = self._requests.get((route, status))
        if add is None:
            add = self._requests[route, status] = adder(self.requests.labels(route, str(status)))
        add(1)

    def count_refusal(self, code: Code) -> None:
        """Counts a refusal under its stable code."""
        self._refused[code](1)

    def show_admission(self, places_taken: int, is_overloaded: bool) -> None:
        """Says how full this worker is, and whether it admits fewer because overload lasts."""
        self.places_taken.set(places_taken)
        self.admission_state.set(2 if is_overloaded else 1)

    def show_halted(self, arms: Mapping[tuple[str, str], bool]) -> None:
        """Says of every arm, by experiment and name, whether it is switched off; forgets the others."""
        clear(self.arm_halted)
        for (experiment, arm), halted in arms.items():
            self.arm_halted.labels(experiment, arm).set(halted)

    def exposition(self) -> bytes:
        """What a scrape reads: this process's metrics, or all slots' where workers share a folder."""
        if self.directory is None:
            return prometheus_client.generate_latest(self.registry)
        return prometheus_client.generate_latest(_SlotCollector(self.directory, self._families, self._derived))

    def samples(self, prefix: str) -> Iterator[tuple[str, Mapping[str, str], float]]:
        """(name, labels, value) of every sample whose name begins so, over all workers."""
        if self.directory is None:
            families = self.registry.collect()
        else:
            families = _SlotCollector(self.directory, self._families, self._derived).collect()
        for family in families:
            for sample in family.samples:
                if sample.name.startswith(prefix):
                    yield sample.name, sample.labels, sample.value


# How workers share them: memory-mapped files, one of each kind a slot.


class _SlotFile(MmapedDict):
    """prometheus_client's file of doubles, which also hands out the place of one in memory."""

    def cell(self, key: str) -> tuple[memoryview[float], int]:
        """(doubles, index) of a key, made with 0.0 if it is new. Stays valid when the file grows."""
        self.read_value(key)  # type: ignore[no-untyped-call]
        return memoryview(self._m).cast("d"), self._positions[key] // 8


def use_slot_files(directory: Path, slot: int) -> None:
    """Makes every metric created in this process from now on count in the slot's files under `directory`."""
    files: dict[str, _SlotFile] = {}

    class SlotValue:
        """A double in the slot's file: what prometheus_client calls a ValueClass, without lock and without copy."""

        _multiprocess = True

        def __init__(
            self,
            kind: str,
            metric_name: str,
            name: str,
            label_names: Iterable[str],
            label_values: Iterable[str],
            help_text: str,
            multiprocess_mode: str = "",
            **_: Any,
        ) -> None:
            prefix = f"{kind}_{multiprocess_mode}" if kind == "gauge" else kind
            if prefix not in files:
                path = str(directory / f"{prefix}_{slot}.db")
                files[prefix] = _SlotFile(path)  # type: ignore[no-untyped-call]
            key = mmap_key(metric_name, name, list(label_names), list(label_values), help_text)
            doubles, at = self._doubles, self._at = files[prefix].cell(key)

            def inc(amount: float) -> None:
                doubles[at] += amount

            self.inc = inc  # a closure: half the cost of a method, and there are a dozen a request

        def set(self, value: float, timestamp: float | None = None) -> None:
            self._doubles[self._at] = value

        def get(self) -> float:
            return float(self._doubles[self._at])

        def set_exemplar(self, exemplar: object) -> None:
            """Exemplars are not kept in files."""

        def get_exemplar(self) -> None:
            return None

    values.ValueClass = SlotValue


def forget_gauges(directory: Path, slot: int) -> None:
    """Removes what a dead worker said about itself. Its counts stay: they happened."""
    for path in directory.glob(f"gauge_*_{slot}.db"):
        path.unlink(missing_ok=True)


_format_bound = cast(Callable[[float], str], floatToGoString)
_read_file = cast(Callable[[str], Iterable[tuple[str, float, float, int]]], MmapedDict.read_all_values_from_file)


@functools.lru_cache(maxsize=100_000)
def _parse_key(key: str) -> tuple[str, str, dict[str, str], str]:
    """(metric name, sample name, labels, help) of a key in a slot file."""
    metric_name, name, labels, help_text = json.loads(key)
    return metric_name, name, labels, help_text


def _workers(directory: Path) -> Iterator[tuple[tuple[str, ...], float]]:
    census = read_census(directory)
    if census is not None:
        yield ("ready",), census.ready
        yield ("wanted",), census.wanted


class _SlotCollector:
    """The slots' files added up: counters and histograms summed, gauges by their maximum, absent where 0."""

    def __init__(self, directory: Path, families: Iterable[Metric], derived: Iterable[DerivedGauge] = ()) -> None:
        """`families`: every metric there is, by name, help and type, whether or not a slot has counted in it."""
        self.directory = directory
        self.families = families
        self.derived = derived

    def _totals(self, kind: str) -> dict[str, float]:
        totals: dict[str, float] = {}
        for path in sorted(self.directory.glob(f"{kind}_*.db")):
            try:
                entries = list(_read_file(str(path)))
            except FileNotFoundError:  # a dead worker's gauges, removed since the glob
                continue
            for key, value, _, _ in entries:
                before = totals.get(key, 0.0)
                totals[key] = max(before, value) if kind == "gauge" else before + value
        return totals

    def collect(self) -> Iterator[Metric]:
        metrics = {family.name: Metric(family.name, family.documentation, family.type) for family in self.families}
        census = read_census(self.directory)
        told = {} if census is None else {_STARTS: census.starts, _RESTARTS: census.restarts}
        for kind in ("counter", "gauge"):
            for key, value in self._totals(kind).items():
                metric_name, name, labels, help_text = _parse_key(key)
                metric = metrics.setdefault(metric_name, Metric(metric_name, help_text, kind))
                if kind == "counter" or value != 0:
                    metric.add_sample(name, labels, told.get(name, value))
        series: dict[str, dict[tuple[tuple[str, str], ...], tuple[dict[float, float], list[float]]]] = {}
        for key, value in self._totals("histogram").items():
            metric_name, name, labels, help_text = _parse_key(key)
            metrics.setdefault(metric_name, Metric(metric_name, help_text, "histogram"))
            own = tuple(sorted(label for label in labels.items() if label[0] != "le"))
            buckets, sums = series.setdefault(metric_name, {}).setdefault(own, ({}, [0.0]))
            if name.endswith("_bucket"):
                buckets[float(labels["le"])] = value
            else:
                sums[0] = value
        for metric_name, children in series.items():
            metric = metrics[metric_name]
            for own, (buckets, sums) in children.items():
                seen = 0.0
                for bound in sorted(buckets):
                    seen += buckets[bound]
                    metric.add_sample(f"{metric_name}_bucket", {**dict(own), "le": _format_bound(bound)}, seen)
                if math.inf in buckets:
                    metric.add_sample(f"{metric_name}_count", dict(own), seen)
                    metric.add_sample(f"{metric_name}_sum", dict(own), sums[0])
        for gauge in self.derived:
            (metrics[gauge._name],) = gauge.collect()
        yield from metrics.values()
