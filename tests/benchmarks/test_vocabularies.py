"""The benchmark of large vocabularies reads real bundles and counts what they really take."""

import multiprocessing
from pathlib import Path

import pytest

from benchmarks.vocabularies import FIELD, TYPES, measure, run, values_of, write_one_field
from models.bundle import read_bundle


@pytest.mark.parametrize("type_", TYPES)
def test_the_bundles_are_those_a_service_reads(type_: str, tmp_path: Path):
    """Distinct canonical values, as many as asked for, and ids in their order."""
    bundle = read_bundle(write_one_field(tmp_path, type_, 500))

    assert bundle.encoder.to_vocabularies()[FIELD] == values_of(type_, 500)
    assert bundle.encoder.sizes == {FIELD: 502}


def test_what_is_measured_grows_with_the_values(tmp_path: Path):
    """A reading takes time, and more memory the more there is to read: in a fresh process, as the benchmark has it: one
    that has freed memory before takes that first."""
    found = []
    for count in (10, 200_000):
        with multiprocessing.get_context("spawn").Pool(1) as fresh:
            found.append(fresh.apply(measure, (str(write_one_field(tmp_path, "string", count)),)))
    small, large = found

    assert 0 < small["seconds"] < large["seconds"]
    assert large["kept_mb"] > 10
    assert large["peak_mb"] >= large["kept_mb"]


def test_the_table_has_a_line_for_every_type(tmp_path: Path):
    rows = run(count=300, rounds=1)

    assert [row.split("|")[1].strip() for row in rows] == ["string", *TYPES]
    assert [row.split("|")[2].strip() for row in rows] == ["10", "300", "300", "300"]
