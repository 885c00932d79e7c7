"""How far today's traffic is from what a model was trained on, and two models from each other; without a click.

    drift   PSI of each field's values, and of pctr, against the reference in the model's manifest
    change  the same against what was counted here a day ago, or when counting began
    lost    how much more of a field is missing or unknown than in the reference
    shadow  mean KL of what one model of an experiment said from what the other said of the same candidates

PSI (population stability index) is sum over bins of (q - p) ln(q / p), q being the share of today's values in a bin
and p that of the reference: 0 for the same, below .1 is usually called stable, above .25 another population. Bins are
made of the reference: the most frequent ids each by itself, ids of a number in groups of neighbours, and all the rest.

Ads and users come and go, so a healthy service drifts from its training log, and never comes back. What has broken is
seen in what changed. A field of which values come and go (`TURNOVER`) is judged there by whether its values are
missing, unknown or known alone: that its most frequent ad has ended is no news.

Counted are some runs a second of each model version, whatever the traffic, later than they are answered and in pieces.
Weights halve each half hour, so a gauge tells of the last hour or so. Each worker keeps its own counts, and puts them
into the folder of the metric files every few seconds; whoever is scraped adds the workers' counts up, and only then is
anything divided.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import orjson
from numpy.typing import NDArray

from models.bundle import Bundle
from models.graph import CANDIDATES, CONTEXT, ids_input
from models.manifest import FieldReference, Histogram
from models.schema import FieldSchema
from models.tables import MISSING, UNKNOWN
from service.metrics import Metrics
from service.scoring.scorer import Floats, Ids, Scorer

logger = logging.getLogger(__name__)

Array = NDArray[np.float64]

BETWEEN_RUNS_SECONDS = 0.1
"""Of each model version, a run is counted at most so often."""
MOST_ROWS = 64
"""Candidates of a run that are counted."""
HALF_LIFE_SECONDS = 1800.0
KEEP_SECONDS = 5.0
"""How often a worker's counts are put where the others see them."""
ENOUGH = 1000.0
"""Fewer values, by weight, say nothing: chance alone would move PSI by (bins - 1) / values."""
ENOUGH_RUNS = 300.0
"""Nor do fewer runs say what changed: candidates of a request are often alike, by their format say."""
CHANGE_SECONDS = 86_400.0
"""What is counted now is held against what was counted so long ago, or first."""
COPY_SECONDS = 3600.0
"""How often what is counted now is kept for that."""
TURNOVER = 0.01
"""A field with so large a share of values that training did not know has values that come and go."""
LEAST_SHARE = 1e-4
ALONE = 16
"""So many frequent ids, or groups of neighbours, have a bin of their own."""
PCTR = "pctr"
"""What stands for the predictions among the fields."""


def psi(reference: Array, counts: Array) -> float:
    """The index of counts [B] against reference counts [B], neither all 0. Every bin's share gets `LEAST_SHARE`
    more, so that an empty one is no infinity."""
    p, q = ((x / x.sum() + LEAST_SHARE) / (1 + len(x) * LEAST_SHARE) for x in (reference, counts))
    return float(((q - p) * np.log(q / p)).sum())


def change(before: Array, counts: Array, special: int) -> float:
    """PSI of counts [B] against what they were before. The first `special` bins are missing and unknown."""
    if special > UNKNOWN and before[UNKNOWN] >= TURNOVER * before.sum():
        before, counts = (np.append(x[:special], x[special:].sum()) for x in (before, counts))
    return psi(before, counts)


class Told(NamedTuple):
    """What whoever is scraped is told, over all workers; what has too few values is left out."""

    psi: dict[tuple[str, str], float]
    """By model and field."""
    change: dict[tuple[str, str], float]
    lost: dict[tuple[str, str], float]
    kl: dict[str, float]
    """By experiment."""


class IdBins:
    """The bins of one field: by id, missing and unknown first, and the last for every id that has none."""

    def __init__(self, field: FieldSchema, reference: FieldReference) -> None:
        counts = dict(zip(reference.ids, reference.counts, strict=True))
        special = [id_ for id_ in (MISSING, UNKNOWN) if id_ in counts]
        ids = [id_ for id_ in counts if id_ not in special]
        if field.kind == "numeric":
            groups = _of_equal_mass(sorted(ids), counts)
        else:
            groups = [[id_] for id_ in sorted(ids, key=lambda id_: (-counts[id_], id_))[:ALONE]]
        bins = [*([id_] for id_ in special), *groups]
        self.special = len(special)
        self.ids: NDArray[np.int64] = np.array([id_ for group in bins for id_ in group], np.int64)
        self.places: NDArray[np.int64] = np.repeat(np.arange(len(bins)), [len(group) for group in bins])
        listed = [float(sum(counts[id_] for id_ in group)) for group in bins]
        self.reference: Array = np.array([*listed, float(sum(counts.values()) + reference.other) - sum(listed)])


def _of_equal_mass(ids: list[int], counts: Mapping[int, int]) -> list[list[int]]:
    """Neighbours in at most `ALONE` groups of about the same count."""
    total = sum(counts[id_] for id_ in ids)
    groups: list[list[int]] = []
    seen, last = 0.0, -1
    for id_ in ids:
        place = min(int((seen + counts[id_] / 2) / max(total, 1) * ALONE), ALONE - 1)
        if place != last:
            groups.append([])
            last = place
        groups[-1].append(id_)
        seen += counts[id_]
    return groups


def pctr_bins(reference: Histogram) -> tuple[Floats, Array]:
    """(inner edges, reference counts by bin): neighbours joined until each bin has a twentieth of the reference."""
    least = 0.05 * sum(reference.counts)
    edges: list[float] = []
    counts = [0.0]
    for edge, count in zip(reference.edges[1:], reference.counts, strict=True):
        counts[-1] += count
        if counts[-1] >= least:
            edges.append(edge)
            counts.append(0.0)
    if counts[-1] < least and edges:
        edges.pop()
        counts[-2:] = [sum(counts[-2:])]
    return np.array(edges, np.float32), np.array(counts)


class _Side:
    """Fields that are columns of one input of the graph, all looked up at once."""

    def __init__(self, given: str, fields: list[tuple[int, str, IdBins]], width: int) -> None:
        """`fields`: (column, name, bins)."""
        self.given = given
        self.columns = np.array([column for column, _, _ in fields], np.int64)
        self.width = width
        sizes = [len(bins.reference) for _, _, bins in fields]
        self.starts = np.concatenate(([0], np.cumsum(sizes)))[: len(sizes)]
        self.size = sum(sizes)
        keys = [(place << 32) + bins.ids for place, (_, _, bins) in enumerate(fields)]
        places = [start + bins.places for start, (_, _, bins) in zip(self.starts.tolist(), fields, strict=True)]
        joined = np.concatenate(keys) if keys else np.zeros(0, np.int64)
        order = np.argsort(joined)
        self.keys = joined[order]
        self.places = (np.concatenate(places) if places else joined)[order]
        self.others = self.starts + np.array(sizes, np.int64) - 1
        self.offsets = np.arange(len(fields), dtype=np.int64) << 32
        self.named = [
            (name, slice(start, start + len(bins.reference)), bins.reference, bins.special)
            for start, (_, name, bins) in zip(self.starts.tolist(), fields, strict=True)
        ]

    def count(self, inputs: Mapping[str, Ids]) -> Array:
        """How many values fall into each bin of each field, [size]."""
        ids = inputs[self.given]
        if ids.ndim == 1:
            ids = ids.reshape(-1, 1)
        if len(ids) > MOST_ROWS:
            ids = ids[:: -(-len(ids) // MOST_ROWS)]
        wanted = ids[:, self.columns] + self.offsets
        found = np.minimum(self.keys.searchsorted(wanted), len(self.keys) - 1)
        places = np.where(self.keys[found] == wanted, self.places[found], self.others)
        return np.bincount(places.ravel(), minlength=self.size).astype(np.float64)


class _Counts:
    """How many values fell into the bins of some fields, and in how many runs, now, and up to a day ago."""

    def __init__(self, size: int, fields: int) -> None:
        self.now = np.zeros(size)
        self.runs = 0.0
        self._least = ENOUGH * max(fields, 1)
        self._copies: deque[tuple[float, Array]] = deque()

    def add(self, counts: Array) -> None:
        """Those of one run."""
        self.now += counts
        self.runs += 1.0

    def fade(self, share: float, now: float) -> None:
        """Leaves so much of every weight; keeps it, where it is enough and that was not done for a while."""
        self.now *= share
        self.runs *= share
        is_due = not self._copies or now >= self._copies[-1][0] + COPY_SECONDS
        if is_due and self.runs >= ENOUGH_RUNS and self.now.sum() >= self._least:
            self._copies.append((now, self.now.copy()))
        while len(self._copies) > 1 and now >= self._copies[1][0] + CHANGE_SECONDS:
            self._copies.popleft()

    @property
    def before(self) -> Array | None:
        """What was counted a day ago, or first; None before there was enough."""
        return self._copies[0][1] if self._copies else None


class VersionDrift:
    """What one worker has counted of one model version."""

    def __init__(self, bundle: Bundle, clock: Callable[[], float]) -> None:
        schema, reference = bundle.schema, bundle.manifest.reference
        self.model, self.version = bundle.name, bundle.version
        self._clock = clock
        self._next = 0.0
        self.waiting: list[tuple[Mapping[str, Ids], Floats]] = []
        sides = [(CONTEXT, schema.context_id_fields), (CANDIDATES, schema.candidate_id_fields)]
        sides += [(ids_input(field.name), (field,)) for field in schema.sequence_fields]
        self._sides = []
        for given, fields in sides:
            # What is derived from the time is the clock's, not the world's: any hour is unlike the day.
            known = [
                (column, field.name, IdBins(field, reference.fields[field.name]))
                for column, field in enumerate(fields)
                if field.name in reference.fields and field.derived_from is None
            ]
            if known:
                self._sides.append(_Side(given, known, len(fields)))
        self._counts = [_Counts(side.size, len(side.named)) for side in self._sides]
        self._edges, self._pctr_reference = pctr_bins(reference.pctr)
        self._pctr = _Counts(len(self._pctr_reference), 1)

    def offer(self, inputs: Mapping[str, Ids], pctr: Floats) -> None:
        """Told of a run; keeps some of them to be counted later."""
        now = self._clock()
        if now >= self._next:
            self._next = now + BETWEEN_RUNS_SECONDS
            self.waiting.append((inputs, pctr))

    def count_one(self) -> None:
        """Counts one run of those that wait."""
        inputs, pctr = self.waiting.pop()
        for side, counts in zip(self._sides, self._counts, strict=True):
            counts.add(side.count(inputs))
        if len(pctr) > MOST_ROWS:
            pctr = pctr[:: -(-len(pctr) // MOST_ROWS)]
        places = self._edges.searchsorted(pctr, side="right")
        self._pctr.add(np.bincount(places, minlength=len(self._pctr_reference)).astype(np.float64))

    def fade(self, share: float) -> None:
        """Leaves so much of every weight."""
        for counts in (*self._counts, self._pctr):
            counts.fade(share, self._clock())

    def snapshot(self) -> dict[str, Any]:
        """Everything counted, with the reference it is held against."""
        everything = slice(0, len(self._pctr_reference))
        fields = {
            name: {
                "counts": counts.now[part].tolist(),
                "runs": counts.runs,
                "before": None if counts.before is None else counts.before[part].tolist(),
                "reference": reference.tolist(),
                "special": special,
            }
            for named, counts in (
                *((side.named, counts) for side, counts in zip(self._sides, self._counts, strict=True)),
                ([(PCTR, everything, self._pctr_reference, 0)], self._pctr),
            )
            for name, part, reference, special in named
        }
        return {"model": self.model, "version": self.version, "fields": fields}


class _Field:
    """What all workers have counted of one field, by one version's bins."""

    def __init__(self, reference: Array, special: int) -> None:
        self._reference = reference
        self._special = special
        self._now = np.zeros(len(reference))
        self._runs = 0.0
        self._before = np.zeros(len(reference))

    def add(self, counted: Mapping[str, Any], share: float) -> None:
        """One worker's, of which so much is left."""
        self._now += share * np.array(counted["counts"])
        self._runs += share * counted["runs"]
        if counted["before"] is not None:
            self._before += np.array(counted["before"])

    def values(self) -> tuple[float | None, float | None, float | None]:
        """(PSI against training, PSI of the change, share lost); None where there are too few."""
        if self._now.sum() < ENOUGH or not self._reference.sum() > 0:
            return None, None, None
        special = self._special
        lost = None
        if special:
            now, then = (float(x[:special].sum() / x.sum()) for x in (self._now, self._reference))
            lost = max(0.0, now - then)
        changed = None
        if self._runs >= ENOUGH_RUNS and self._before.sum() >= ENOUGH:
            changed = change(self._before, self._now, special)
        return psi(self._reference, self._now), changed, lost


class Drift:
    """The drift and the divergence of one worker, and of all of them for whoever is scraped. Of the event loop."""

    def __init__(
        self, metrics: Metrics, clock: Callable[[], float] = time.monotonic, now: Callable[[], float] = time.time
    ) -> None:
        self._directory = metrics.directory
        self._slot = metrics.slot
        self._clock = clock
        self._now = now
        self._faded = clock()
        self._watched: dict[str, VersionDrift] = {}
        """By the hash of the bundle. Replaced and not changed, because a scrape reads it in a thread."""
        self._prepared: WeakKeyDictionary[Scorer, VersionDrift] = WeakKeyDictionary()
        self._kl: dict[str, tuple[float, float]] = {}
        self._told = -1.0, Told({}, {}, {}, {})
        metrics.drift_psi.values = lambda: self.gauges().psi.items()
        metrics.drift_change_psi.values = lambda: self.gauges().change.items()
        metrics.drift_lost_share.values = lambda: self.gauges().lost.items()
        metrics.shadow_kl.values = lambda: (((name,), value) for name, value in self.gauges().kl.items())

    def prepare(self, scorer: Scorer) -> None:
        """Makes what counting a version takes. In the thread that loads it: on the loop every request would wait."""
        if scorer.bundle.sha256 not in self._watched:
            self._prepared[scorer] = VersionDrift(scorer.bundle, self._clock)

    def watch(self, scorers: Iterable[Scorer]) -> None:
        """From now on these are counted, and no others."""
        watched: dict[str, VersionDrift] = {}
        for scorer in scorers:
            sha256 = scorer.bundle.sha256
            drift = watched.get(sha256) or self._watched.get(sha256) or self._prepared.pop(scorer, None)
            watched[sha256] = drift = drift or VersionDrift(scorer.bundle, self._clock)
            scorer.sampled = drift.offer
        self._watched = watched

    def note_kl(self, experiment: str, candidates: int, nats: float) -> None:
        """Told of what a shadow said: the sum of KL over so many candidates."""
        count, total = self._kl.get(experiment, (0.0, 0.0))
        self._kl[experiment] = (count + candidates, total + nats)

    async def follow(self) -> None:
        """Counts what waits, for ever, a little at a time; and puts the counts where the other workers see them."""
        kept = self._clock()
        while True:
            await asyncio.sleep(0.5)
            await self.count()
            if self._clock() - kept >= KEEP_SECONDS:
                kept = self._clock()
                try:
                    await self.keep()
                except OSError as error:
                    logger.warning("the counts of drift cannot be written: %s", error)

    async def count(self) -> None:
        """Counts what waits; requests go on between two runs."""
        for drift in list(self._watched.values()):
            while drift.waiting:
                drift.count_one()
                await asyncio.sleep(0)
        now = self._clock()
        share = 0.5 ** ((now - self._faded) / HALF_LIFE_SECONDS)
        self._faded = now
        for drift in self._watched.values():
            drift.fade(share)
        self._kl = {
            name: (share * count, share * total) for name, (count, total) in self._kl.items() if share * count > 1
        }

    async def keep(self) -> None:
        """Writes the counts into the worker's file, where there are several workers."""
        path = self._path(self._slot)
        if path is not None:
            content = orjson.dumps(self.snapshot())
            await asyncio.to_thread(_replace, path, content)

    def snapshot(self) -> dict[str, Any]:
        """All counts of this worker."""
        models = [drift.snapshot() for drift in list(self._watched.values())]
        return {
            "time": self._now(),
            "models": models,
            "kl": {name: list(sums) for name, sums in dict(self._kl).items()},
        }

    def gauges(self) -> Told:
        """What all workers have counted. From any thread. Of two versions of a model that both answer, the one that is
        further off."""
        now = self._now()
        if now == self._told[0]:
            return self._told[1]
        found: dict[tuple[str, int, str], _Field] = {}
        sums: dict[str, Array] = {}
        for snapshot in self._snapshots():
            share = 0.5 ** (max(0.0, now - snapshot["time"]) / HALF_LIFE_SECONDS)
            for model in snapshot["models"]:
                for name, field in model["fields"].items():
                    key = (model["model"], model["version"], name)
                    found.setdefault(key, _Field(np.array(field["reference"]), field["special"])).add(field, share)
            for name, pair in snapshot["kl"].items():
                sums[name] = sums.get(name, np.zeros(2)) + share * np.array(pair)
        told = Told({}, {}, {}, {})
        for (model_name, _, name), one in found.items():
            for values, value in zip((told.psi, told.change, told.lost), one.values(), strict=True):
                if value is not None:
                    values[model_name, name] = max(value, values.get((model_name, name), 0.0))
        told.kl.update({name: float(total / count) for name, (count, total) in sums.items() if count >= ENOUGH})
        self._told = now, told
        return told

    def _snapshots(self) -> Iterator[dict[str, Any]]:
        yield self.snapshot()
        if self._directory is None:
            return
        for path in sorted(self._directory.glob("drift_*.json")):
            if path != self._path(self._slot):
                with contextlib.suppress(OSError, ValueError):
                    yield orjson.loads(path.read_bytes())

    def _path(self, slot: int | None) -> Path | None:
        return None if self._directory is None or slot is None else self._directory / f"drift_{slot}.json"


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(content)
    temporary.replace(path)
