"""What is fitted on training rows: vocabularies, quantile edges, log edges."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models import fitting
from models.columns import Column
from models.errors import EncodeError
from models.fitting import EncoderFitter, log_edges, quantile_edges
from tests.models.building import objects, schema_of


def fitted(values: list[Any] | np.ndarray, **field: Any) -> list[Any]:
    """What one field comes to after a single chunk."""
    fitter = EncoderFitter(schema_of({"name": "f", **field}))
    fitter.update({"f": Column.typed(values if isinstance(values, np.ndarray) else objects(values))})
    return list(fitter.finish().to_vocabularies()["f"])


def test_values_are_ordered_by_count_then_code_point():
    """Neither by locale (é before z) nor by UTF-16 (an emoji before U+FFFD)."""
    values = ["z", "é", "\ufffd", "\U0001f4f1", "B", "a", "common", "common", "10", "9"]

    assert fitted(values) == ["common", "10", "9", "B", "a", "z", "é", "\ufffd", "\U0001f4f1"]


def test_min_count_is_inclusive():
    """A value seen exactly min_count times is known."""
    values = ["three"] * 3 + ["two"] * 2 + ["one"]

    assert fitted(values, encoding={"method": "vocabulary", "min_count": 2}) == ["three", "two"]


def test_max_size_keeps_the_most_frequent():
    """After min_count; of equally frequent values the first by code point."""
    values = ["c"] * 3 + ["b", "b", "a", "a", "d"]

    assert fitted(values, encoding={"method": "vocabulary", "max_size": 2}) == ["c", "a"]


def test_spellings_of_one_value_are_counted_together():
    """7, 7.0 and 007 are one integer, and missing ones and bad ones none."""
    fitter = EncoderFitter(
        schema_of({"name": "f", "type": "integer", "encoding": {"method": "vocabulary", "min_count": 3}})
    )

    fitter.update({"f": Column.text(objects(["7", "7.0", "8", "", "x"]))})
    fitter.update({"f": Column.text(objects(["007", "8", None, "x", "x"]))})

    assert fitter.finish().to_vocabularies()["f"] == ["7"]


def test_elements_of_a_sequence_are_counted_as_the_model_sees_them():
    """What max_length cuts away is never trained, so it is not counted."""
    fitter = EncoderFitter(
        schema_of(
            {"name": "f", "kind": "sequence", "separator": "|", "max_length": 2, "encoding": {"method": "vocabulary"}}
        )
    )

    fitter.update({"f": Column.text(objects(["old|a|b", "", "a", "a|"]))})

    assert fitter.finish().to_vocabularies()["f"] == ["a", "b"]


def test_a_field_never_seen_is_fitted_all_the_same():
    """An empty vocabulary, no edges; the tables still hold missing and unknown."""
    schema = schema_of(
        {"name": "v"},
        {"name": "q", "type": "float", "kind": "numeric", "encoding": {"method": "quantile"}},
        {"name": "l", "type": "float", "kind": "numeric", "encoding": {"method": "log_bucket"}},
        {"name": "h", "encoding": {"method": "hash", "buckets": 5}},
    )
    fitter = EncoderFitter(schema)

    empty = fitter.finish()
    fitter.update({name: Column.text(objects(["", ""])) for name in schema.by_name})

    for encoder in (empty, fitter.finish()):
        assert encoder.to_vocabularies() == {"v": [], "q": [], "l": []}
        assert encoder.sizes == {"v": 2, "q": 3, "l": 3, "h": 7}
        assert encoder.encode_candidates([{"v": "x", "q": 1.5, "l": -3, "h": "x"}]).ids[0, :3].tolist() == [1, 2, 2]


@pytest.mark.parametrize("field", [{"encoding": {"method": "hash", "buckets": 3}}, {}])
def test_a_column_that_never_fits_is_refused_while_fitting(field: dict[str, Any]):
    """Before anything is encoded, for hashed fields too."""
    fitter = EncoderFitter(schema_of({"name": "f", **field}))

    with pytest.raises(EncodeError, match="a column for a string"):
        fitter.update({"f": Column.typed(np.arange(3))})


# --- quantile -------------------------------------------------------------------------------------------------


def slow_quantile_edges(values: list[float], buckets: int) -> list[float]:
    """The documented rule, value by value."""
    ordered = sorted(values)
    edges: list[float] = []
    for k in range(1, buckets):
        edge = ordered[k * len(ordered) // buckets]
        if edge <= (edges[-1] if edges else ordered[0]):
            edge = next((value for value in ordered if value > edge), -math.inf)
        if edge > (edges[-1] if edges else ordered[0]):
            edges.append(edge + 0.0)
    return edges


NUMBERS = st.lists(
    st.sampled_from([0.0, -0.0, 1.0, 2.0, 5e-324, 1e308]) | st.floats(allow_nan=False, allow_infinity=False),
    min_size=1,
    max_size=60,
)


@given(values=NUMBERS, buckets=st.integers(2, 12))
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_quantile_edges_follow_the_rule_and_leave_no_bucket_empty(values: list[float], buckets: int):
    """Distinct, sorted, at most buckets - 1, and some training value in every bucket."""
    edges = quantile_edges(np.array(values), buckets)

    assert edges == slow_quantile_edges(values, buckets)
    assert edges == sorted(set(edges))
    assert len(edges) < buckets
    held = np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1)
    assert held.min() > 0


def test_distinct_values_are_parted_evenly():
    """1000 values in 10 buckets are 100 each."""
    values = np.random.default_rng(0).permutation(np.arange(1000.0))

    assert quantile_edges(values, 10) == [100.0, 200.0, 300.0, 400.0, 500.0, 600.0, 700.0, 800.0, 900.0]


def test_a_value_common_enough_has_a_bucket_of_its_own():
    """95% zeros: what is above zero never shares an id with zero."""
    values = np.array([0.0] * 950 + list(np.arange(1.0, 51.0)))

    edges = quantile_edges(values, 10)

    assert edges == [1.0]


def test_only_training_values_become_edges():
    """Edges are values that were seen, so integers stay integers."""
    values = np.random.default_rng(0).integers(0, 1000, 5000)

    edges = fitted(values, type="integer", kind="numeric", encoding={"method": "quantile", "buckets": 32})

    assert len(edges) == 31
    assert set(edges) <= {float(value) for value in values}


def test_past_its_memory_a_quantile_field_keeps_a_fair_sample(monkeypatch: pytest.MonkeyPatch):
    """Ranks stay right within the sampling error, and neither chunking nor a second run changes an edge."""
    monkeypatch.setattr(fitting, "SAMPLE_SIZE", 4096)
    values = np.sort(np.random.default_rng(1).normal(size=200_000))  # sorted: the worst order for a bad sampler
    field = {"type": "float", "kind": "numeric", "encoding": {"method": "quantile", "buckets": 10}}

    def edges(chunk: int) -> list[Any]:
        fitter = EncoderFitter(schema_of({"name": "f", **field}))
        for start in range(0, len(values), chunk):
            fitter.update({"f": Column.typed(values[start : start + chunk])})
        return list(fitter.finish().to_vocabularies()["f"])

    whole, parts = edges(200_000), edges(7_777)

    assert whole == parts
    ranks = np.searchsorted(values, whole) / len(values)
    # Six standard errors of a rank in a sample of 4096.
    assert np.abs(ranks - np.arange(1, 10) / 10).max() < 6 * math.sqrt(0.25 / 4096)


# --- log buckets ----------------------------------------------------------------------------------------------


def slow_log_bucket(x: float) -> int:
    """0 for x < 0, 1 for [0, 1), 2 + floor(ln(x)^2) from there on."""
    return 0 if x < 0 else 1 if x < 1 else 2 + math.floor(math.log(x) ** 2)


@given(
    values=st.lists(st.floats(-1e12, 1e12) | st.integers(-10, 10_000).map(float), min_size=1, max_size=30),
    asked=st.lists(st.floats(-1e300, 1e300) | st.integers(-10, 10_000).map(float), min_size=1, max_size=30),
    buckets=st.integers(3, 600),
)
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_log_buckets_equal_the_formula(values: list[float], asked: list[float], buckets: int):
    """floor(ln(x)^2), clamped to `buckets` and to what training holds; a rounding error at an edge apart."""
    edges = log_edges(min(values), max(values), buckets)

    def clamped(x: float) -> int:
        lowest, highest = (min(slow_log_bucket(v), buckets - 1) for v in (min(values), max(values)))
        return min(max(slow_log_bucket(x), lowest), highest) - lowest

    for x in (*values, *asked):
        near_an_edge = x > 0 and abs(math.log(x) ** 2 - round(math.log(x) ** 2)) < 1e-9
        if not near_an_edge:
            assert int(np.searchsorted(edges, x, side="right")) == clamped(x), x
    assert all(low < high for low, high in pairwise(edges))
    assert len(edges) < buckets


def test_log_edges_are_exp_of_square_roots():
    """Below 0, [0, 1), then floor(ln(x)^2) = 0, 1, 2, ..."""
    assert log_edges(-5.0, 6.0, 512) == [0.0, 1.0, math.e, math.exp(math.sqrt(2)), math.exp(math.sqrt(3))]
    assert log_edges(0.0, 6.0, 4) == [1.0, math.e]
    assert log_edges(3.0, 3.0, 512) == []


def test_a_log_bucket_field_answers_with_trained_ids_only():
    """What lies beyond the training values shares the outermost id; nothing is ever unknown."""
    fitter = EncoderFitter(
        schema_of({"name": "f", "type": "integer", "kind": "numeric", "encoding": {"method": "log_bucket"}})
    )
    fitter.update({"f": Column.typed(np.array([1, 5, 100]))})
    encoder = fitter.finish()

    ids = encoder.encode_candidates([{"f": x} for x in (-7, 0, 1, 2, 100, 10**18, None)]).ids[:, 0].tolist()

    top = 2 + math.floor(math.log(100) ** 2)
    assert ids == [2, 2, 2, 2, top, top, 0]
    assert encoder.sizes["f"] == top + 1


def test_criteo_x4_is_a_vocabulary_of_transformed_values():
    """3 and 1 share an id by the benchmark's rule; min_count counts them together."""
    values = [1, 3, 3, 2, 2, 100, 100, 99, -1]

    assert fitted(
        np.array(values), type="integer", kind="numeric", encoding={"method": "criteo_x4", "min_count": 2}
    ) == ["1", "21", "2"]
