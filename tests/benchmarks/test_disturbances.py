"""What disturbs a service in a benchmark: that it is what it says."""

from __future__ import annotations

import json
import multiprocessing
import random
from pathlib import Path

import pytest

from benchmarks.contenders import BenchmarkError
from benchmarks.disturbances import done, spoil, write_twice
from models.bundle import read_bundle
from models.versions import Repository
from tests.models.tiny_bundle import write_tiny_bundle

BODY = json.dumps({"context": {"hour": 3}, "candidates": [{"ad_id": "a1", "price": 0.25}] * 5}).encode()


def is_json(body: bytes) -> bool:
    try:
        json.loads(body)
    except ValueError:  # no UTF-8 among them
        return False
    return True


def test_spoiled_bodies_are_mostly_no_json_and_sometimes_are():
    """Both have to be answered well: what cannot be read, and what can and means something else."""
    chooser = random.Random(1)

    spoiled = [spoil(BODY, chooser) for _ in range(1000)]

    assert sum(body == BODY for body in spoiled) < 10
    assert 500 < sum(not is_json(body) for body in spoiled) < 1000


def test_a_model_is_written_as_two_versions(tmp_path: Path):
    """The same scores from both, so that only the swap itself is between them."""
    bundle = read_bundle(write_tiny_bundle(tmp_path / "from", "student", bias=1.0))
    (tmp_path / "to").mkdir()

    write_twice(bundle, tmp_path / "to")

    assert Repository(tmp_path / "to").versions("student") == [1, 2]
    assert [read_bundle(tmp_path / "to" / "student" / version).golden for version in "12"] == [bundle.golden] * 2


@pytest.mark.parametrize("said", ["version 2 did not answer within 30 s", None])
def test_what_a_disturber_complains_of_ends_the_measurement(said: str | None):
    """Its words, or that it is gone."""
    ours, theirs = multiprocessing.Pipe()
    if said is not None:
        theirs.send(said)
    theirs.close()

    with pytest.raises(BenchmarkError, match=said or "has died"):
        done(ours)


def test_how_much_was_done_is_told():
    ours, theirs = multiprocessing.Pipe()
    theirs.send(7)

    assert done(ours) == 7
    assert theirs.recv() is False
