"""An encoder that goes on from an earlier one: every id keeps its meaning, and new values come behind."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.columns import Column
from models.encoder import Encoder
from models.errors import SchemaError
from models.fitting import EncoderFitter
from models.schema import FeatureSchema
from tests.models.building import objects, schema_of

words = st.lists(st.sampled_from([f"w{number}" for number in range(30)]) | st.text(min_size=1, max_size=3))
bounds = st.none() | st.integers(1, 12)


def fitted(schema: FeatureSchema, values: Any, earlier: Encoder | None = None) -> Encoder:
    """Of one field `f`."""
    fitter = EncoderFitter(schema, earlier=earlier)
    fitter.update({"f": Column.typed(values if isinstance(values, np.ndarray) else objects(values))})
    return fitter.finish()


def vocabulary(**encoding: Any) -> FeatureSchema:
    return schema_of({"name": "f", "encoding": {"method": "vocabulary", **encoding}})


@given(first=words, second=words, third=words, min_count=st.integers(1, 3), size=bounds, more=st.integers(0, 10))
def test_ids_never_change_from_day_to_day(
    first: list[str], second: list[str], third: list[str], min_count: int, size: int | None, more: int
):
    """Whatever a log brings, whether a bound is raised or not: each value has the id it had, new ones are behind."""
    wider = None if size is None else size + more
    days = [
        fitted(vocabulary(min_count=min_count, max_size=size), first),
    ]
    for values in (second, third):
        days.append(fitted(vocabulary(min_count=min_count, max_size=wider), values, days[-1]))

    before: list[Any] = []
    for day, values in zip(days, (first, second, third), strict=True):
        now = day.to_vocabularies()["f"]
        assert now[: len(before)] == before
        new = now[len(before) :]
        counts = {value: values.count(value) for value in new}
        assert all(count >= min_count for count in counts.values())
        assert new == sorted(new, key=lambda value: (-counts[value], value))
        assert wider is None or len(now) <= wider
        for place, value in enumerate(now):
            assert day.encode_candidates([{"f": value}]).ids[0, 0] == 2 + place
        before = now


@given(values=words)
def test_the_same_rows_again_add_nothing(values: list[str]):
    first = fitted(vocabulary(), values)

    assert fitted(vocabulary(), values, first).to_vocabularies() == first.to_vocabularies()


def test_a_full_vocabulary_takes_no_more_until_its_bound_is_raised():
    first = fitted(vocabulary(max_size=2), ["a", "a", "b"])

    full = fitted(vocabulary(max_size=2), ["c", "c", "c"], first)
    raised = fitted(vocabulary(max_size=3), ["c", "c", "c", "d"], full)

    assert full.to_vocabularies()["f"] == ["a", "b"]
    assert raised.to_vocabularies()["f"] == ["a", "b", "c"]
    with pytest.raises(SchemaError, match=r"field 'f': max_size: expected at least the 3 values .* got 2"):
        fitted(vocabulary(max_size=2), [], raised)


@pytest.mark.parametrize("method", ["quantile", "log_bucket"])
def test_edges_stay_whatever_the_new_numbers(method: str):
    """A bucket's vector was learned for its range."""
    schema = schema_of({"name": "f", "type": "float", "kind": "numeric", "encoding": {"method": method, "buckets": 8}})
    first = fitted(schema, np.random.default_rng(0).lognormal(size=500))

    later = fitted(schema, np.random.default_rng(1).lognormal(5, 3, size=500), first)

    assert later.to_vocabularies() == first.to_vocabularies()


def test_a_vocabulary_of_transformed_values_grows_too():
    field = {"name": "f", "type": "integer", "kind": "numeric", "encoding": {"method": "criteo_x4", "min_count": 1}}
    first = fitted(schema_of(field), np.array([1, 1, 2]))

    assert fitted(schema_of(field), np.array([50, 50, 2]), first).to_vocabularies()["f"] == ["1", "2", "15"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"type": "integer"}, "field 'f': type: expected 'string' as in the earlier encoder, got 'integer'"),
        ({"role": "context"}, "field 'f': role: expected 'candidate' as in the earlier encoder, got 'context'"),
        ({"encoding": {"method": "hash", "buckets": 9}}, "field 'f': encoding: expected {'method': 'vocabulary'}"),
        ({"name": "g"}, r"expected the fields of the earlier encoder, in its order, \['f'\], got \['g'\]"),
    ],
)
def test_a_field_that_means_something_else_is_refused(change: dict[str, Any], said: str):
    """Its ids would be read as what they were."""
    earlier = fitted(vocabulary(), ["a"])

    with pytest.raises(SchemaError, match=said):
        EncoderFitter(schema_of({"name": "f"} | change), earlier=earlier)


def test_hashed_fields_need_no_extending_but_the_same_buckets():
    def hashed(buckets: int) -> FeatureSchema:
        return schema_of({"name": "f", "encoding": {"method": "hash", "buckets": buckets}})

    assert fitted(hashed(9), ["a"], fitted(hashed(9), ["b"])).sizes == {"f": 11}
    with pytest.raises(SchemaError, match=r"field 'f': encoding: expected .*'buckets': 9"):
        fitted(hashed(10), ["a"], fitted(hashed(9), ["b"]))


def derived(derive: str | None, type_: str = "integer") -> FeatureSchema:
    """The field `f` of a log: derived from its timestamp, or with a column of its own."""
    field: dict[str, Any] = {"name": "f", "type": type_, "role": "context"}
    field |= {"derived_from": "timestamp", "derive": derive} if derive else {}
    return schema_of(field, timestamp={"column": "t"})


@pytest.mark.parametrize(("before", "now"), [("hour", None), (None, "hour")])
def test_a_field_that_a_log_derives_goes_on_where_another_has_it_as_it_was_sent(before: str | None, now: str | None):
    """As the logs of `from-log` have: the hour of a request is the same, whoever worked it out."""
    first = fitted(derived(before), np.array([7, 7, 3]))

    assert fitted(derived(now), np.array([3, 9]), first).to_vocabularies()["f"] == ["7", "3", "9"]


def test_what_is_derived_otherwise_is_another_field():
    first = fitted(derived("hour"), np.array([7]))

    with pytest.raises(
        SchemaError, match="field 'f': derive: expected 'hour' as in the earlier encoder, got 'weekday'"
    ):
        fitted(derived("weekday"), np.array([1]), first)
