"""Auctions: a pure function of seeds, in the form that the service takes, with the truth of the world."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from models.values import check_value
from training.data.synthetic import World
from training.simulate.auctions import AD_COLUMNS, BLOCK, LONGEST_DELAY, Auctions, Terms

TERMS = Terms(days=3, day=2, candidates=4)


@pytest.fixture(scope="module")
def world() -> World:
    return World(seed=0, days=3)


def test_the_same_auction_comes_whoever_asks_and_when(world: World):
    """A block does not depend on what was drawn before; another seed gives other traffic."""
    first, second = Auctions(TERMS, world), Auctions(TERMS, world)
    blocks = {number: first.block(number) for number in (0, 3)}

    for number in (3, 0):
        for one, other in zip(blocks[number], second.block(number), strict=True):
            assert (one.body, one.chance, one.gap, one.delay) == (other.body, other.chance, other.gap, other.delay)
            assert one.truth.tolist() == other.truth.tolist()
    assert blocks[0][0].body != blocks[3][0].body
    assert Auctions(replace(TERMS, seed=2), world).block(0)[0].truth.tolist() != blocks[0][0].truth.tolist()


def test_a_request_has_every_field_that_is_served_as_the_schema_types_it(world: World):
    """And nothing that only the log knows: neither the click nor its probability."""
    schema = World.schema()
    for auction in Auctions(replace(TERMS, experiment="e", deadline_ms=20.0), world).block(0):
        body = json.loads(auction.body)
        assert set(body) == {"request_id", "unit_id", "context", "candidates", "experiment", "deadline_ms"}
        assert set(body["context"]) == {field.name for field in schema.context_fields}
        assert len(body["candidates"]) == len(auction.truth) == 4
        rows = [(schema.context_fields, body["context"])]
        rows += [(schema.candidate_fields, candidate) for candidate in body["candidates"]]
        for fields, row in rows:
            assert set(row) == {field.name for field in fields}
            for field in fields:
                values = row[field.name] if field.is_sequence else [row[field.name]]
                assert all(check_value(field.type, value) == value for value in values), field.name
        assert body["unit_id"] == body["context"]["user_id"] == auction.unit


def test_the_truth_is_that_of_the_candidate_for_that_user(world: World):
    """An auction of one candidate is one impression of the log: its truth is what the world says of the whole row."""
    auctions = Auctions(replace(TERMS, candidates=1), world).block(0)
    rng = np.random.default_rng([0, 6, TERMS.seed, 0])
    met, ads = world.impressions(rng, 2, BLOCK), world.impressions(rng, 2, BLOCK)
    row = met | {name: ads[name] for name in AD_COLUMNS}
    expected = 1 / (1 + np.exp(-world.true_logit(row)))

    assert sorted(auction.truth[0] for auction in auctions) == pytest.approx(sorted(expected))


def test_ads_of_an_auction_are_as_likely_to_be_clicked_as_those_of_the_log(world: World):
    """A random ad shown to a random user earns the world's click rate, 16%."""
    truth = np.concatenate([auction.truth for number in range(8) for auction in Auctions(TERMS, world).block(number)])

    assert truth.mean() == pytest.approx(0.16, abs=0.02)


def test_arrivals_chances_and_delays_have_their_distributions(world: World):
    drawn = [auction for number in range(8) for auction in Auctions(TERMS, world).block(number)]

    assert np.mean([auction.gap for auction in drawn]) == pytest.approx(1.0, abs=0.15)
    assert np.mean([auction.chance for auction in drawn]) == pytest.approx(0.5, abs=0.06)
    assert np.median([auction.delay for auction in drawn]) == pytest.approx(1.0, abs=0.15)
    assert max(auction.delay for auction in drawn) <= LONGEST_DELAY


def test_ids_of_two_runs_differ(world: World):
    """Or the second run's requests would be taken for the first's, sent again."""
    ids = [{auction.request_id for auction in Auctions(replace(TERMS, run=run), world).block(0)} for run in ("a", "b")]

    assert len(ids[0] | ids[1]) == 2 * BLOCK
