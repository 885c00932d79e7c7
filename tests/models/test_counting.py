"""Counting strings in bounded memory: the counts are those of one dict, wherever they were kept meanwhile."""

import gc
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models import fitting
from models.columns import Column
from models.counting import PARTS, Counts
from models.fitting import EncoderFitter
from tests.models.building import objects, schema_of

texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=3)
chunks = st.lists(st.lists(st.tuples(texts, st.integers(1, 5)), max_size=20), max_size=6)


@settings(max_examples=60, deadline=None)
@given(chunks=chunks, aside=st.lists(st.booleans(), min_size=6, max_size=6), least=st.integers(1, 6))
def test_counts_put_aside_add_up_to_those_of_one_dict(
    tmp_path_factory: pytest.TempPathFactory, chunks: list[list[tuple[str, int]]], aside: list[bool], least: int
):
    """Line breaks, quotes and NULs in values included; asked twice, and added to in between."""
    folder = tmp_path_factory.mktemp("counts")
    counts, expected = Counts(), Counter[str]()
    for chunk, is_aside in zip(chunks, aside, strict=False):
        counts.add([text for text, _ in chunk], np.array([n for _, n in chunk], dtype=np.int64))
        for text, n in chunk:
            expected[text] += n
        if is_aside:
            counts.put_aside(folder)
            assert len(counts) == 0
        found = counts.at_least(least)
        assert sorted(found) == sorted((text, n) for text, n in expected.items() if n >= least)


def test_a_put_aside_count_is_spread_over_many_files(tmp_path: Path):
    """So that adding up takes a fraction of the memory that all values would."""
    counts = Counts()
    counts.add([f"{i:x}" for i in range(10_000)], np.ones(10_000, dtype=np.int64))

    counts.put_aside(tmp_path)

    sizes = [file.stat().st_size for file in tmp_path.iterdir()]
    assert len(sizes) == PARTS
    assert max(sizes) < 3 * min(sizes)


def test_what_is_put_aside_is_freed_at_once(tmp_path: Path):
    """Not when Python next looks for things that refer to themselves, which may be gigabytes later."""
    text = "a value of some length"
    before = sys.getrefcount(text)
    counts = Counts()
    gc.disable()
    try:
        counts.add([text], np.ones(1, dtype=np.int64))
        assert sys.getrefcount(text) > before
        counts.put_aside(tmp_path)
        assert sys.getrefcount(text) == before
    finally:
        gc.enable()


def test_a_fitter_with_scratch_holds_no_more_values_than_it_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """All but small vocabularies go to disk; without scratch, nothing is written."""
    monkeypatch.setattr(fitting, "MOST_VALUES", 100)
    schema = schema_of({"name": "many"}, {"name": "few"})
    bounded, free = EncoderFitter(schema, scratch=tmp_path), EncoderFitter(schema)
    random = np.random.default_rng(0)

    for _ in range(20):
        many = objects([str(v) for v in random.integers(0, 300, 60)])
        few = objects([str(v) for v in random.integers(0, 5, 60)])
        for fitter in (bounded, free):
            fitter.update({"many": Column.text(many), "few": Column.text(few)})
        held = sum(len(fit.counts) for fit in bounded._fits.values() if isinstance(fit, fitting._VocabularyFit))
        assert held <= 100

    assert bounded.finish().to_vocabularies() == free.finish().to_vocabularies()
    assert [path.name for path in tmp_path.iterdir()] == ["many"]
