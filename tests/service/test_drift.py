"""Drift of fields and of pctr against a model's reference, and how far two models' pctr are apart: of all workers."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.bundle import Bundle, read_bundle
from models.graph import graph_inputs
from models.manifest import FieldReference, Histogram
from models.schema import FieldSchema
from service.app import Service
from service.metrics import Metrics
from service.scoring.drift import (
    COPY_SECONDS,
    ENOUGH,
    ENOUGH_RUNS,
    HALF_LIFE_SECONDS,
    Drift,
    IdBins,
    VersionDrift,
    pctr_bins,
    psi,
)
from service.scoring.scorer import Scorer
from tests.models.tiny_bundle import write_tiny_bundle
from tests.service.running import CONTEXT, ask, candidate, make_app, metric, request_of, started
from tests.service.test_registry import scrape
from tests.service.test_shadow import at_rest, shadowed


class Clock:
    """Time that stands until it is moved."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return read_bundle(write_tiny_bundle(tmp_path_factory.mktemp("repository"), "student"))


@pytest.fixture
def scorer(bundle: Bundle) -> Scorer:
    return Scorer(bundle)


def run(scorer: Scorer, clock: Clock, context: dict[str, Any], *rows: dict[str, Any]) -> None:
    """One run, late enough after the one before to be counted."""
    clock.seconds += 0.2
    encoder = scorer.bundle.encoder
    scorer.score([encoder.encode_context(context)], [encoder.encode_candidates(rows)])


def drift_of(clock: Clock, *scorers: Scorer, directory: Path | None = None, slot: int | None = None) -> Drift:
    drift = Drift(Metrics(directory=directory, slot=slot), clock, clock)
    drift.watch(scorers)
    return drift


def test_the_index_is_the_sum_of_the_textbook():
    """Term by term, with a little more in every bin, so that an empty one is no infinity."""
    reference, counts = np.array([60.0, 30.0, 10.0, 0.0]), np.array([10.0, 30.0, 55.0, 5.0])

    expected = 0.0
    for p, q in zip(reference, counts, strict=True):
        share, now = (p / 100 + 1e-4) / 1.0004, (q / 100 + 1e-4) / 1.0004
        expected += (now - share) * math.log(now / share)

    assert psi(reference, counts) == pytest.approx(expected, rel=1e-12)
    assert psi(reference, 3 * reference) == pytest.approx(0.0, abs=1e-12)
    assert 1.0 < psi(reference, np.array([0.0, 0.0, 0.0, 1.0])) < 20.0


def test_ids_have_bins_by_their_reference(bundle: Bundle):
    """Missing and unknown always, the most frequent each by itself, all the others together; every count is in one."""
    field = next(field for field in bundle.schema.fields if field.name == "ad_id")
    reference = FieldReference(ids=tuple(range(40)), counts=(7, 5, *range(100, 138)), other=1000)

    bins = IdBins(field, reference)

    assert bins.ids[:2].tolist() == [0, 1]
    assert sorted(bins.ids[2:].tolist()) == list(range(24, 40))
    assert bins.reference[:3].tolist() == [7, 5, 137]
    assert bins.reference.sum() == sum(reference.counts) + 1000
    assert bins.places.tolist() == list(range(18))


def test_numbers_have_bins_of_neighbours(bundle: Bundle):
    """Of about the same count: a value that moves by one bucket is not another world."""
    field = next(field for field in bundle.schema.fields if field.kind == "numeric")
    reference = FieldReference(ids=tuple(range(66)), counts=(0, 0, *[10] * 64), other=0)

    bins = IdBins(field, reference)

    assert bins.ids.tolist() == list(range(66))
    assert bins.places[2:].tolist() == [2 + number // 4 for number in range(64)]
    assert bins.reference.tolist() == [0, 0, *[40] * 16, 0]


@pytest.mark.parametrize("counts", [(0, 0, 0, 0), (1000, 0, 0, 1), (10, 20, 30, 40), (0, 0, 0, 5)])
def test_bins_of_pctr_lose_nothing(counts: tuple[int, ...]):
    """And none is so small that chance fills it."""
    edges, reference = pctr_bins(Histogram(edges=(0.0, 0.1, 0.2, 0.5, 1.0), counts=counts))

    assert reference.sum() == sum(counts)
    assert len(reference) == len(edges) + 1
    assert len(reference) == 1 or reference.min() >= 0.05 * sum(counts)


def shares(field: FieldSchema, reference: FieldReference, encoder: Any) -> Iterator[tuple[object, int]]:
    """Values of a vocabulary with their counts in the reference."""
    values = [None, "unheard of", *encoder.to_vocabularies()[field.name]]
    for id_, count in zip(reference.ids, reference.counts, strict=True):
        yield values[id_], count


def test_the_same_traffic_does_not_drift_and_another_does(scorer: Scorer, clock: Clock):
    """Played by the reference's own shares; then one value alone."""
    bundle = scorer.bundle
    field = next(field for field in bundle.schema.fields if field.name == "device")
    played = list(shares(field, bundle.manifest.reference.fields["device"], bundle.encoder))
    total = sum(count for _, count in played)
    drift = drift_of(clock, scorer)
    for value, count in played:
        for _ in range(round(1200 * count / total)):
            run(scorer, clock, {**CONTEXT, "device": value}, candidate(1))
    asyncio.run(drift.count())
    indexes = drift.gauges().psi
    assert indexes["student", "device"] < 0.02

    clock.seconds += 10 * HALF_LIFE_SECONDS  # what was counted is as good as forgotten
    asyncio.run(drift.count())
    for _ in range(1200):
        run(scorer, clock, {**CONTEXT, "device": "unheard of"}, candidate(1))
    asyncio.run(drift.count())

    indexes = drift.gauges().psi
    assert indexes["student", "device"] > 1.0
    assert ("student", "hour") not in indexes, "the clock's own fields are no drift"
    assert {field for _, field in indexes} <= {*bundle.manifest.reference.fields, "pctr"}


def played(scorer: Scorer, clock: Clock, drift: Drift, runs: int, **values: list[Any]) -> None:
    """So many runs of one candidate each, whose fields take their values in turn."""
    for number in range(runs):
        mine = {name: each[number % len(each)] for name, each in values.items()}
        context = {**CONTEXT, **{name: value for name, value in mine.items() if name in CONTEXT}}
        run(
            scorer,
            clock,
            context,
            {**candidate(1), **{name: value for name, value in mine.items() if name not in CONTEXT}},
        )
    asyncio.run(drift.count())


def forget_the_last_hours(clock: Clock, drift: Drift) -> None:
    clock.seconds += 10 * HALF_LIFE_SECONDS
    asyncio.run(drift.count())


def test_what_never_was_as_in_training_has_not_changed_until_it_does(scorer: Scorer, clock: Clock):
    """The index against training is large at once and says so for ever; the change is what somebody should look at. A
    field that is no longer sent, or unheard of, is lost."""
    drift = drift_of(clock, scorer)
    device, other = scorer.bundle.encoder.to_vocabularies()["device"][:2]
    played(scorer, clock, drift, 1200, device=[other])
    told = drift.gauges()
    assert told.psi["student", "device"] > 0.25
    assert told.change["student", "device"] < 0.01
    assert told.lost["student", "device"] == 0.0

    forget_the_last_hours(clock, drift)
    played(scorer, clock, drift, 1200, device=[device])
    told = drift.gauges()
    assert told.change["student", "device"] > 0.5
    assert told.lost["student", "device"] == 0.0

    forget_the_last_hours(clock, drift)
    played(scorer, clock, drift, 1200, device=[None, "unheard of"])
    assert drift.gauges().change["student", "device"] > 1.0
    assert drift.gauges().lost["student", "device"] > 0.6


def test_ads_that_come_and_go_have_not_changed_and_ads_that_nobody_knows_have(scorer: Scorer, clock: Clock):
    """A tenth of them was new all the time. That others of the known ones are offered is no news; that none is known
    is. Of a field whose values stay, other values are a change."""
    first, second = scorer.bundle.encoder.to_vocabularies()["ad_id"][:2]
    device, other = scorer.bundle.encoder.to_vocabularies()["device"][:2]
    drift = drift_of(clock, scorer)
    played(scorer, clock, drift, 1200, ad_id=[*9 * [first], "new"], device=[device])

    forget_the_last_hours(clock, drift)
    played(scorer, clock, drift, 1200, ad_id=[*9 * [second], "newer"], device=[other])
    told = drift.gauges()
    assert told.psi["student", "ad_id"] > 0.25
    assert told.change["student", "ad_id"] < 0.01
    assert told.lost["student", "ad_id"] < 0.1
    assert told.change["student", "device"] > 1.0

    forget_the_last_hours(clock, drift)
    played(scorer, clock, drift, 1200, ad_id=["nobody"], device=[other])
    assert drift.gauges().change["student", "ad_id"] > 1.0
    assert drift.gauges().lost["student", "ad_id"] > 0.9


def test_what_changed_a_day_ago_is_how_it_is(scorer: Scorer, clock: Clock):
    """What is counted is held against a day ago, as far back as there is anything; not against its first minutes."""
    first, second = scorer.bundle.encoder.to_vocabularies()["ad_id"][:2]
    drift = drift_of(clock, scorer)

    def an_hour_of(ad: object) -> float:
        clock.seconds += COPY_SECONDS
        asyncio.run(drift.count())  # an hour has faded
        for _ in range(int(1.1 * ENOUGH_RUNS)):
            run(scorer, clock, CONTEXT, *({**candidate(1), "ad_id": ad} for _ in range(5)))
        asyncio.run(drift.count())
        return drift.gauges().change["student", "ad_id"]

    before = [an_hour_of(first) for _ in range(3)]
    changes = [an_hour_of(second) for _ in range(30)]

    assert max(before) < 0.01
    assert min(changes[:23]) > 0.25
    assert changes[-1] < 0.01


def test_requests_whose_candidates_are_alike_are_as_many_as_they_are(scorer: Scorer, clock: Clock):
    """A slot takes one format, so all candidates of a request have it. Of some twenty requests the thousand values
    that they have between them are no picture of the traffic that anything could be held against."""
    ads = scorer.bundle.encoder.to_vocabularies()["ad_id"][:2]
    drift = drift_of(clock, scorer)

    def requests(number: int, ad: object) -> None:
        for _ in range(number):
            run(scorer, clock, CONTEXT, *({**candidate(1), "ad_id": ad} for _ in range(50)))
        asyncio.run(drift.count())

    requests(30, ads[0])  # chance
    assert ("student", "ad_id") in drift.gauges().psi
    assert ("student", "ad_id") not in drift.gauges().change
    for number in range(24):
        requests(30, ads[number % 2])

    assert drift.gauges().change["student", "ad_id"] < 0.1


def test_what_was_made_before_a_version_went_live_is_what_counts_it(scorer: Scorer, clock: Clock):
    """Made in the thread that loads it; made again on the loop it would keep requests waiting."""
    drift = Drift(Metrics(), clock, clock)
    drift.prepare(scorer)
    made = drift._prepared[scorer]

    drift.watch([scorer])

    assert scorer.sampled == made.offer
    assert len(drift._prepared) == 0


def test_what_has_few_values_is_left_out(scorer: Scorer, clock: Clock):
    """Chance alone would look like drift. Candidates are counted one by one, contexts once a request."""
    drift = drift_of(clock, scorer)
    for _ in range(int(ENOUGH / 50) + 2):
        run(scorer, clock, CONTEXT, *(candidate(number) for number in range(50)))
    asyncio.run(drift.count())

    indexes, means = drift.gauges().psi, drift.gauges().kl

    assert ("student", "ad_id") in indexes
    assert ("student", "pctr") in indexes
    assert ("student", "device") not in indexes
    assert means == {}


def test_counts_are_those_of_a_loop(bundle: Bundle, clock: Clock):
    """All fields at once, against one value after the other; missing and unknown values and sequences too."""
    encoder = bundle.encoder
    version = VersionDrift(bundle, clock)
    rows = [
        {**candidate(0), "ad_id": None, "tags": []},
        {**candidate(1), "ad_id": "nobody"},
        *(candidate(number) for number in range(2, 30)),
    ]
    inputs = graph_inputs([encoder.encode_context(CONTEXT)], [encoder.encode_candidates(rows)])
    version.offer(inputs, np.full(len(rows), 0.5, np.float32))
    version.count_one()
    found = version.snapshot()["fields"]

    columns: dict[str, list[int]] = {}
    for given, fields in (
        ("context", bundle.schema.context_id_fields),
        ("candidates", bundle.schema.candidate_id_fields),
    ):
        for place, field in enumerate(fields):
            columns[field.name] = inputs[given][:, place].tolist()
    for field in bundle.schema.sequence_fields:
        columns[field.name] = inputs[f"{field.name}_ids"].tolist()
    by_name = {field.name: field for field in bundle.schema.fields}
    checked = 0
    for name, reference in bundle.manifest.reference.fields.items():
        if by_name[name].derived_from is not None or by_name[name].role == "training_only":
            continue
        bins = IdBins(by_name[name], reference)
        expected = [0.0] * len(bins.reference)
        for id_ in columns[name]:
            (places,) = np.nonzero(bins.ids == id_)
            expected[int(bins.places[places[0]]) if len(places) else -1] += 1
        assert found[name]["counts"] == expected, name
        checked += 1
    assert checked > 3
    assert sum(found["pctr"]["counts"]) == len(rows)


def test_workers_counts_are_added_before_anything_is_divided(bundle: Bundle, clock: Clock, tmp_path: Path):
    """Two workers with half the traffic each say what one with all of it would; a mean of their indexes would not."""
    values = ["phone", "unheard of"]
    whole = Scorer(bundle)
    alone = drift_of(clock, whole)
    workers = []
    for slot, value in enumerate(values):
        own = Scorer(bundle)
        worker = drift_of(clock, own, directory=tmp_path, slot=slot)
        workers.append((own, worker, value))
    for _ in range(700):
        for own, _, value in workers:
            run(own, clock, {**CONTEXT, "device": value}, candidate(1))
            run(whole, clock, {**CONTEXT, "device": value}, candidate(1))
    for _, worker, _ in workers:
        worker.note_kl("e", 6000, 60.0)
        asyncio.run(worker.count())
        asyncio.run(worker.keep())
    alone.note_kl("e", 12000, 120.0)
    asyncio.run(alone.count())

    (one, _, _, kl), (other, _, _, _) = (worker.gauges() for _, worker, _ in workers)
    expected, _, _, expected_kl = alone.gauges()

    assert one == pytest.approx(other)
    assert one == pytest.approx(expected, rel=1e-3)
    assert kl == pytest.approx(expected_kl) == {"e": pytest.approx(0.01)}


def test_a_damaged_file_of_another_worker_is_passed_over(scorer: Scorer, clock: Clock, tmp_path: Path):
    """It is being written, or its folder is another's."""
    (tmp_path / "drift_7.json").write_text("{")
    drift = drift_of(clock, scorer, directory=tmp_path, slot=0)

    assert drift.gauges() == ({}, {}, {}, {})


def test_a_version_that_is_gone_is_counted_no_more(scorer: Scorer, bundle: Bundle, clock: Clock):
    """Labels are those of what is served. A plan that changes nothing forgets nothing."""
    drift = drift_of(clock, scorer)
    for _ in range(1100):
        run(scorer, clock, CONTEXT, candidate(1))
    asyncio.run(drift.count())
    before = drift.gauges().psi
    assert before
    again = Scorer(bundle)
    clock.seconds += 0.001
    drift.watch([again])
    assert drift.gauges().psi.keys() == before.keys()
    clock.seconds += 0.001

    drift.watch([])

    assert drift.gauges().psi == {}


def test_a_scrape_shows_both(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Of a service with a shadow, once enough was scored."""
    monkeypatch.setattr("service.scoring.drift.ENOUGH_RUNS", 20.0)
    app: Service = make_app(repository, shadowed(tmp_path))

    async def scenario() -> str:
        async with started(app):
            for number in range(70):
                body = request_of(*range(50), unit_id=number)
                reply = await ask(app, "/predict", json.dumps(body).encode())
                assert reply is not None
                assert reply.status == 200
                for scorer in app.plan.scorers():  # type: ignore[union-attr]
                    app.drift._watched[scorer.bundle.sha256]._next = 0.0  # as if time had passed
            await at_rest(app)
            await app.drift.count()
            return await scrape(app)

    text = asyncio.run(scenario())

    for model in ("student", "ensemble"):
        assert metric(text, "retort_drift_psi", model=model, field="ad_id") > 0
        for name in ("change_psi", "lost_share"):
            assert f'retort_drift_{name}{{field="ad_id",model="{model}"}}' in text
    assert metric(text, "retort_shadow_kl", experiment="e") > 0
    assert metric(text, "retort_drift_psi", field="hour") == 0
