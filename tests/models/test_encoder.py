"""The encoder as its callers meet it: what is refused, what is counted, what shapes come back."""

import json
import math
import sys
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models import tables
from models.columns import Column
from models.encoder import LONG_LIST, Encoder
from models.errors import EncodeError, VocabularyError
from tests.models.building import encoder_for, objects, schema_of
from tests.models.tiny_bundle import tiny_model

WRONG: list[tuple[str, Any, str]] = [
    ("string", 7, "an integer"),
    ("string", True, "a boolean"),
    ("string", ["a"], "a list"),
    ("string", {"a": 1}, "an object"),
    ("string", "\ud800", "a string holding a lone surrogate"),
    ("integer", "1", "a string"),
    ("integer", True, "a boolean"),
    ("integer", 1.5, "a number with a fraction"),
    ("integer", 2**64, "an integer beyond 64 bits"),
    ("integer", 2.0**64, "a number beyond 64 bits"),
    ("integer", math.nan, "a number that is not finite"),
    ("float", "1", "a string"),
    ("float", False, "a boolean"),
    ("float", math.inf, "a number that is not finite"),
    ("float", -(2**63) - 1, "an integer beyond 64 bits"),
    ("float", 10**400, "an integer beyond 64 bits"),
    ("float", [], "a list"),
    ("boolean", 1, "an integer"),
    ("boolean", 0.0, "a number"),
    ("boolean", "true", "a string"),
]

ENCODERS = {
    ("string", "vocabulary"): encoder_for("string", ["1", "a"]),
    ("integer", "vocabulary"): encoder_for("integer", ["1", "0", "2"]),
    ("float", "vocabulary"): encoder_for("float", ["1", "0", "0.5"]),
    ("boolean", "vocabulary"): encoder_for("boolean", ["1", "0"]),
    **{
        (type_, "hash"): encoder_for(type_, None, encoding={"method": "hash", "buckets": 4})
        for type_ in ("string", "integer", "float", "boolean")
    },
    **{
        (type_, "quantile"): encoder_for(
            type_, [0.5, 1.0], kind="numeric", encoding={"method": "quantile", "buckets": 4}
        )
        for type_ in ("integer", "float")
    },
}
GOOD: dict[str, Any] = {"string": "a", "integer": 1, "float": 0.5, "boolean": True}


@pytest.mark.parametrize(
    ("type_", "method", "value", "got"),
    [(t, m, value, got) for t, m in ENCODERS for type_, value, got in WRONG if type_ == t],
    ids=lambda part: str(part)[:24].encode("ascii", "backslashreplace").decode(),
)
def test_a_wrong_type_is_an_error_naming_field_and_row(type_: str, method: str, value: Any, got: str):
    """Whatever stands around it, and whether its look-alike (True for 1, 1.0 for 1) is known or cached."""
    encoder = ENCODERS[type_, method]
    encoder.encode_candidates([{"f": GOOD[type_]}, {"f": GOOD[type_]}])
    batches = [[GOOD[type_], value, None], [value, GOOD[type_]], [None, "", value], [value, value], [value]]

    for batch in batches:
        for encode in (
            lambda batch=batch: encoder.encode_candidates([{"f": item} for item in batch]),
            lambda batch=batch: encoder.encode_candidate_columns({"f": batch}, len(batch)),
        ):
            with pytest.raises(EncodeError) as caught:
                encode()

            error = caught.value
            assert (error.field, error.got) == ("f", got)
            assert error.row is not None
            assert batch[error.row] is value


@pytest.mark.parametrize(("type_", "value", "got"), WRONG, ids=lambda part: ascii(part)[:24])
def test_a_wrong_type_in_the_context_has_no_row(type_: str, value: Any, got: str):
    """The context is one row, so only its field is named."""
    schema = schema_of({"name": "f", "type": type_, "role": "context", "encoding": {"method": "hash", "buckets": 4}})

    with pytest.raises(EncodeError) as caught:
        Encoder(schema, {}).encode_context({"f": value})

    assert (caught.value.field, caught.value.row, caught.value.got) == ("f", None, got)


@pytest.mark.parametrize("value", ["a|b", 7, True, {"a": 1}, 1.5])
def test_a_sequence_takes_a_list_only(value: Any):
    """A string is not split online: only a log's text cell is."""
    encoder = encoder_for("string", ["a"], kind="sequence", max_length=2, separator="|")

    with pytest.raises(EncodeError, match="expected a list, got"):
        encoder.encode_candidates([{"f": ["a"]}, {"f": value}])


@pytest.mark.parametrize("element", [7, True, ["a"], {}, "\udfff"])
def test_a_wrong_element_is_an_error_even_where_it_would_be_cut_off(element: Any):
    """Whether a list is accepted does not depend on max_length."""
    encoder = encoder_for("string", ["a"], kind="sequence", max_length=2)

    with pytest.raises(EncodeError) as caught:
        encoder.encode_candidates([{"f": None}, {"f": [element, "a", "a", "a"]}])

    assert (caught.value.field, caught.value.row) == ("f", 1)
    assert "in it" in caught.value.got


LISTS = {
    "string": st.sampled_from([None, "", "a", "b", "é", "c", "\udfff", 7, True, ["a"]]),
    "integer": st.sampled_from([None, "", 1, 2, 2.0, -0.0, 2**64 - 1, -(2**63), 2**64, 1.5, 1e30, math.inf, "a", True]),
    "float": st.sampled_from([None, "", 1, 2.5, -0.0, 1e300, 2**64, math.inf, math.nan, "a", False, {}]),
    "boolean": st.sampled_from([None, "", True, False, 1, "true"]),
}


@pytest.mark.parametrize("keep", ["first", "last"])
@pytest.mark.parametrize("type_", sorted(LISTS))
@given(data=st.data())
def test_a_very_long_list_is_encoded_and_refused_like_a_short_one(type_: str, keep: str, data: st.DataObject):
    """It is cut before it is looked up, and that is not to be seen: the same ids, counts and errors, whatever wrong
    element stands wherever in it."""
    fill = data.draw(st.lists(LISTS[type_], min_size=1, max_size=6))
    elements = fill + [None] * (LONG_LIST + 10)
    encoding = {"method": "hash", "buckets": 50}
    encoder = encoder_for(type_, None, kind="sequence", max_length=2, keep=keep, encoding=encoding)

    def outcome(given: list[Any]) -> Any:
        try:
            encoded = encoder.encode_candidates([{"f": []}, {"f": given}])
        except EncodeError as error:
            return error.field, error.row, error.expected
        (ids, offsets) = encoded.sequences["f"]
        return ids.tolist(), offsets.tolist(), encoded.missing, encoded.unknown

    assert outcome(elements) == outcome(fill)


def test_a_wrong_element_among_many_is_found_in_its_row():
    """Also where there are so many that all are checked before any is looked up."""
    encoder = encoder_for("string", ["a"], kind="sequence", max_length=50)
    rows = [{"f": [f"{row}-{element}" for element in range(50)]} for row in range(100)]
    rows[93]["f"][7] = 7  # type: ignore[call-overload]

    with pytest.raises(EncodeError) as caught:
        encoder.encode_candidates(rows)

    assert (caught.value.field, caught.value.row, caught.value.got) == ("f", 93, "an integer in it")


def test_absent_and_null_and_empty_are_missing_and_counted():
    """By field, over the candidates."""
    encoder = Encoder(schema_of({"name": "a"}, {"name": "b", "type": "integer"}), {"a": ["x"], "b": ["7"]})

    encoded = encoder.encode_candidates([{"a": "x", "b": 7}, {"a": None, "b": ""}, {"a": ""}, {}])

    assert encoded.ids.tolist() == [[2, 2], [0, 0], [0, 0], [0, 0]]
    assert encoded.missing == {"a": 3, "b": 3}
    assert encoded.unknown == {}


def test_unknown_values_are_id_1_and_counted():
    """Of the right type, but not in the vocabulary."""
    encoder = Encoder(schema_of({"name": "a"}, {"name": "b", "type": "float"}), {"a": ["x"], "b": ["7"]})

    encoded = encoder.encode_candidates([{"a": "y", "b": 7}, {"a": "x", "b": 8}, {"a": "z", "b": 7.0}])

    assert encoded.ids.tolist() == [[1, 2], [2, 1], [1, 2]]
    assert encoded.unknown == {"a": 2, "b": 1}


def test_names_that_are_no_field_of_the_side_are_ignored_and_counted():
    """Also a training_only field, and a context field given with a candidate: each value counts once."""
    schema = schema_of(
        {"name": "user", "role": "context"},
        {"name": "ad"},
        {"name": "position", "role": "training_only", "serving_value": None},
    )
    encoder = Encoder(schema, {"user": [], "ad": [], "position": []})

    assert encoder.encode_context({"user": "u", "ad": "a", "x": [{}]}).ignored == 2
    assert encoder.encode_candidates([{"ad": "a", "user": 1, "position": 2}, {"ad": "a"}]).ignored == 2
    assert encoder.encode_candidates([{"ad": "a", "user": 1, "position": 2}, {}]).ignored == 2
    assert encoder.encode_candidate_columns({"ad": ["a", "b"], "position": [1, 2]}, 2).ignored == 2


def test_shapes_are_those_of_the_graph():
    """[1, Fc] and [N, Fa] int32, C-contiguous, sequences apart, training_only fields nowhere."""
    encoder = tiny_model().encoder

    context = encoder.encode_context({})
    none = encoder.encode_candidates([])
    many = encoder.encode_candidates([{}] * 5)

    assert (context.ids.shape, none.ids.shape, many.ids.shape) == ((1, 4), (0, 3), (5, 3))
    for rows in (context, none, many):
        assert rows.ids.dtype == np.int32
        assert rows.ids.flags.c_contiguous
    assert list(context.sequences) == ["visited"]
    assert [array.tolist() for array in many.sequences["tags"]] == [[0] * 5, [0, 1, 2, 3, 4, 5]]
    assert [array.tolist() for array in none.sequences["tags"]] == [[], [0]]
    assert encoder.serving_ids().tolist() == [2]


def test_a_side_without_fields_has_width_0():
    """The graph's input exists all the same."""
    encoder = encoder_for("string", ["a"])

    assert encoder.encode_context({"anything": 1}).ids.shape == (1, 0)
    assert encoder.encode_context({"anything": 1}).ignored == 1


@pytest.mark.parametrize("row", [None, "f", 7, [1], True])
def test_a_candidate_that_is_no_object_is_refused(row: Any):
    """With its row and no field."""
    with pytest.raises(EncodeError, match="expected an object, got") as caught:
        encoder_for("string", ["a"]).encode_candidates([{"f": "a"}, row])

    assert (caught.value.field, caught.value.row) == (None, 1)


@pytest.mark.parametrize("column", ["ab", {"a": 1, "b": 2}, None, 2, ["a"], ["a", "b", "c"]])
def test_candidate_columns_are_lists_of_one_length(column: Any):
    """A string of two characters is no list of two values; an ignored name's column has to fit too."""
    encoder = encoder_for("string", ["a"])

    with pytest.raises(EncodeError, match="field 'f': expected a list of 2 values, got"):
        encoder.encode_candidate_columns({"f": column}, 2)
    with pytest.raises(EncodeError, match=r"^expected a list of 2 values, got") as caught:
        encoder.encode_candidate_columns({"f": ["a", "a"], "secret\ud800": column}, 2)
    assert caught.value.field is None


def test_a_hashed_field_remembers_within_bounds(monkeypatch: pytest.MonkeyPatch):
    """However many values pass, the cache stays small, and ids stay what they are."""
    monkeypatch.setattr(tables, "CACHE_BYTES", 8 * (sys.getsizeof("00") + tables.ENTRY_BYTES))
    encoder = encoder_for("string", None, encoding={"method": "hash", "buckets": 10**6})
    table = encoder._tables["f"]
    assert isinstance(table, tables.HashTable)
    fresh = [
        encoder_for("string", None, encoding={"method": "hash", "buckets": 10**6})
        .encode_candidates([{"f": str(i)}])
        .ids[0, 0]
        for i in range(50)
    ]

    for _ in range(3):
        for i in range(50):
            assert encoder.encode_candidates([{"f": str(i)}, {"f": str(i)}]).ids.tolist() == [[fresh[i]], [fresh[i]]]
            assert len(table._young) + len(table._old) <= 8
    encoder.encode_candidates([{"f": "x" * 10_000}])
    assert not any(len(key) > tables.LONGEST_CACHED for key in (*table._young, *table._old))


@pytest.mark.parametrize("tail", ["", "x" * 248, "\U0001f4f1" * 248], ids=["short", "long", "wide"])
def test_what_a_hashed_field_remembers_is_bounded_in_bytes(tail: str):
    """Distinct strings without end, as long as are remembered at all and four bytes a character: no more memory than
    the bound."""
    encoder = encoder_for("string", None, encoding={"method": "hash", "buckets": 1000})
    tracemalloc.start()
    try:
        for start in range(0, 100_000, 1000):
            encoder.encode_candidates([{"f": f"{number:08d}{tail}"} for number in range(start, start + 1000)])
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert held < 1.1 * tables.CACHE_BYTES


@pytest.mark.parametrize(
    ("type_", "values", "field", "reason"),
    [
        ("string", ["a", "a"], {}, "stands twice"),
        ("string", ["a", ""], {}, "is missing"),
        ("string", ["a", "\ud800"], {}, "canonical form of string"),
        ("string", ["a", 7], {}, "strings"),
        ("string", ["a", "b"], {"encoding": {"method": "vocabulary", "max_size": 1}}, "at most 1 values, got 2"),
        ("integer", ["07"], {}, "canonical form of integer"),
        ("integer", ["7.0"], {}, "canonical form of integer"),
        ("integer", ["٧"], {}, "canonical form of integer"),
        ("integer", ["1_0"], {}, "canonical form of integer"),
        ("integer", [str(2**64)], {}, "canonical form of integer"),
        ("float", ["7.0"], {}, "canonical form of float"),
        ("float", ["1e+16"], {}, "canonical form of float"),
        ("float", ["inf"], {}, "canonical form of float"),
        ("float", ["nan"], {}, "canonical form of float"),
        ("float", [".5"], {}, "canonical form of float"),
        ("boolean", ["true"], {}, "canonical form of boolean"),
        ("float", None, {}, "no vocabulary given"),
        ("float", [], {"encoding": {"method": "hash", "buckets": 3}}, "hashed field has no vocabulary"),
        *[
            ("float", edges, {"kind": "numeric", "encoding": {"method": method, "buckets": 4}}, reason)
            for method in ("quantile", "log_bucket")
            for edges, reason in [
                ([2.0, 1.0], "grow strictly"),
                ([1.0, 1.0], "grow strictly"),
                ([-0.0, 0.0], "grow strictly"),
                ([1.0, math.inf], "finite"),
                ([1.0, math.nan], "finite"),
                ([1.0, True], "numbers"),
                ([1.0, "2"], "numbers"),
                ([1.0, 2.0, 3.0, 4.0], "at most 3 edges, got 4"),
                (None, "no edges given"),
            ]
        ],
    ],
)
def test_a_vocabulary_that_does_not_fit_its_field_is_refused(
    type_: str, values: list[Any] | None, field: dict[str, Any], reason: str
):
    """Naming field and reason: duplicates, edges out of order, too many, another type's spelling."""
    with pytest.raises(VocabularyError, match=reason) as caught:
        encoder_for(type_, values, **field)

    assert caught.value.field == "f"


def test_a_vocabulary_of_a_field_that_is_not_there_is_refused():
    """Encoder and schema belong together."""
    with pytest.raises(VocabularyError, match="does not have"):
        Encoder(schema_of({"name": "f"}), {"f": [], "g": []})


@pytest.mark.parametrize(
    ("type_", "column"),
    [
        ("string", Column.typed(np.array([1, 2]))),
        ("string", Column.typed(np.array([1.0, 2.0]))),
        ("string", Column.typed(np.array([True, False]))),
        ("integer", Column.typed(objects(["1", "2"]))),
        ("integer", Column.typed(np.array([True, False]))),
        ("float", Column.typed(objects(["1", None]))),
        ("float", Column.typed(np.array([True, False]))),
        ("boolean", Column.typed(np.array([1, 0]))),
        ("boolean", Column.typed(np.array([1.0, 0.0]))),
        ("boolean", Column.typed(objects(["true", "false"]))),
    ],
)
def test_a_typed_column_of_another_type_is_refused_at_once(type_: str, column: Column):
    """A whole column that never fits is no matter of counting bad cells."""
    for encoder in (encoder for (of_type, _), encoder in ENCODERS.items() if of_type == type_):
        for form in (column, column.coded(np.array([0, 1, -1]))):
            with pytest.raises(EncodeError, match="field 'f': expected a column for"):
                encoder.encode_columns({"f": form})


def test_bad_cells_of_a_log_are_missing_counted_and_the_first_is_named():
    """With its row in the chunk and its text, through every form of column."""
    texts = ["1", "x", "2.5", "", "1e999", "x"]
    numbers = np.array([1.0, 2.5, np.nan, np.inf, 2.0**64, 2.0])
    codes = np.array([5, 0, 1, 1, -1])

    for method in ("vocabulary", "hash", "quantile"):
        encoder = ENCODERS["integer", method]
        text = encoder.encode_columns({"f": Column.text(objects(texts))})
        coded = encoder.encode_columns({"f": Column.text(objects(texts)).coded(codes)})
        typed = encoder.encode_columns({"f": Column.typed(numbers)})
        masked = encoder.encode_columns({"f": Column.typed(numbers, np.array([0, 1, 0, 0, 0, 0], dtype=bool))})

        assert (text.bad["f"], text.missing["f"]) == (4, 5)
        assert (text.first_bad["f"].row, text.first_bad["f"].text) == (1, "x")
        assert (coded.bad["f"], coded.missing["f"]) == (3, 4)
        assert (coded.first_bad["f"].row, coded.first_bad["f"].text) == (0, "x")
        assert (typed.bad["f"], typed.missing["f"]) == (3, 4)
        assert (typed.first_bad["f"].row, typed.first_bad["f"].text) == (1, "2.5")
        assert typed.first_bad["f"].got == "a number with a fraction"
        assert (masked.bad["f"], masked.missing["f"]) == (2, 4)
        assert masked.first_bad["f"].row == 3


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_an_infinity_in_a_typed_column_is_bad_and_nan_is_missing(dtype: str):
    """As in JSON, where neither has a token; neither becomes the largest number, or 0."""
    numbers = np.array([0.5, np.inf, np.nan, -np.inf, 0.0], dtype=dtype)

    for method in ("vocabulary", "hash", "quantile"):
        encoder = ENCODERS["float", method]
        encoded = encoder.encode_columns({"f": Column.typed(numbers)})

        assert (encoded.ids["f"] == 0).tolist() == [False, True, True, True, False]
        assert (encoded.bad["f"], encoded.missing["f"]) == (2, 3)
        assert (encoded.first_bad["f"].row, encoded.first_bad["f"].got) == (1, "a number that is not finite")


def test_bad_elements_of_a_sequence_are_dropped_and_counted():
    """The rest of the list stays."""
    encoder = encoder_for("integer", ["1", "2"], kind="sequence", separator="|", max_length=5)
    texts = objects(["1|x|2", "", "y", "1", "y|y|2"])

    plain = encoder.encode_columns({"f": Column.text(texts)})
    coded = encoder.encode_columns({"f": Column.text(texts).coded(np.array([3, 4, -1, 0, 4]))})

    assert plain.sequences["f"][0].tolist() == [2, 3, 0, 0, 2, 3]
    assert plain.sequences["f"][1].tolist() == [0, 2, 3, 4, 5, 6]
    assert (plain.bad["f"], plain.missing["f"]) == (4, 2)
    assert (plain.first_bad["f"].row, plain.first_bad["f"].text) == (0, "x")
    assert coded.sequences["f"][0].tolist() == [2, 3, 0, 2, 3, 3]
    assert (coded.bad["f"], coded.missing["f"]) == (5, 1)
    assert (coded.first_bad["f"].row, coded.first_bad["f"].text) == (1, "y")


def test_a_sequence_column_needs_lists_or_a_separator():
    """Text is split only where the schema says by what."""
    encoder = encoder_for("string", ["a"], kind="sequence", max_length=5)

    with pytest.raises(EncodeError, match="a separator in the schema"):
        encoder.encode_columns({"f": Column.text(objects(["a|b"]))})
    with pytest.raises(EncodeError, match="a column of lists, or of text"):
        encoder.encode_columns({"f": Column.typed(objects(["a|b"]))})


def test_columns_are_all_there_and_of_one_length():
    """A field without a column, and columns that differ in length, refuse the chunk."""
    encoder = Encoder(schema_of({"name": "a"}, {"name": "b"}), {"a": [], "b": []})

    with pytest.raises(EncodeError, match="field 'b': expected a column, got none"):
        encoder.encode_columns({"a": Column.text(objects(["x"]))})
    with pytest.raises(EncodeError, match="field 'b': expected a column of 1 rows, got one of 2"):
        encoder.encode_columns({"a": Column.text(objects(["x"])), "b": Column.text(objects(["x", "y"]))})


@pytest.mark.parametrize(
    "make",
    [
        lambda: Column.text(np.array(["a"])),
        lambda: Column.text(np.array([["a"]], dtype=object)),
        lambda: Column.typed(np.array(["a"])),
        lambda: Column.typed(np.array([1j])),
        lambda: Column.typed(np.array([1], dtype="longdouble")),
        lambda: Column.typed(np.array([1]), np.array([0])),
        lambda: Column.typed(np.array([1]), np.array([True, False])),
        lambda: Column.typed(np.array([1])).coded(np.array([1])),
        lambda: Column.typed(np.array([1])).coded(np.array([-2])),
        lambda: Column.typed(np.array([1])).coded(np.array([0])).coded(np.array([0])),
        lambda: Column.lists(Column.typed(np.array([1])), np.array([0, 2])),
        lambda: Column.lists(Column.typed(np.array([1])), np.array([1, 0])),
        lambda: Column.lists(Column.typed(np.array([1])), np.array([], dtype=int)),
    ],
)
def test_a_column_of_the_wrong_shape_is_the_readers_mistake(make: Any):
    """Refused where it is made, as a TypeError: no log can cause it."""
    with pytest.raises(TypeError, match="expected"):
        make()


def test_vocabularies_round_trip_through_json():
    """What a bundle stores makes the same encoder again."""
    encoder = tiny_model().encoder

    stored = json.loads(json.dumps(encoder.to_vocabularies()))
    again = Encoder(encoder.schema, stored)

    assert again.to_vocabularies() == encoder.to_vocabularies()
    assert again.sizes == encoder.sizes
    assert list(encoder.sizes) == [field.name for field in encoder.schema.fields]
    assert "campaign" not in stored
