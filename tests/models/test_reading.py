"""Columns of distinct values are read many at once: to the same cells that reading them one by one gives."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.columns import Column
from models.fitting import EncoderFitter
from models.reading import read_cells
from models.values import WrongTypeError, read_text
from tests.models.building import objects, schema_of

# Whole numbers as well-kept logs write them, and what int() would take though our rule does not, or takes otherwise.
spellings = st.one_of(
    st.integers(-(2**64), 2**65).map(str),
    st.sampled_from(
        [
            "",
            "007",
            "+7",
            "-0",
            " 7",
            "7 ",
            "1_000",
            "7.0",
            "1e3",
            "٧",
            "²",
            "NaN",
            "true",
            "True",
            "0",
            "1",
            "9" * 5000,
        ]
    ),
    st.text(max_size=4),
)


@pytest.mark.parametrize("type_", ["string", "integer", "float", "boolean"])
@settings(max_examples=150, deadline=None)
@given(texts=st.lists(st.one_of(st.none(), spellings), max_size=8, unique=True), data=st.data())
def test_distinct_cells_read_as_each_does_alone(type_: str, texts: list[str | None], data: st.DataObject):
    field = schema_of({"name": "f", "type": type_}).fields[0]
    codes = np.array(data.draw(st.lists(st.integers(-1, len(texts) - 1), max_size=12)), dtype=np.int64)

    cells = read_cells(field, Column.text(objects(texts)).coded(codes))

    for code, cell in zip(codes.tolist(), cells.codes.tolist(), strict=True):
        try:
            expected = read_text(type_, None if code < 0 else texts[code])  # type: ignore[arg-type]
        except WrongTypeError:
            assert cell == -1
            continue
        found: Any = None if cell == 0 else cells.values[cell - 1]
        assert (type(found), found) == (type(expected), expected)


def test_a_vocabulary_of_distinct_cells_is_that_of_the_cells_themselves():
    """Missing ones in the middle, values that repeat over chunks, and one spelled otherwise."""
    schema = schema_of({"name": "s"}, {"name": "i", "type": "integer"})
    plain, coded = EncoderFitter(schema), EncoderFitter(schema)

    for chunk in (["7", "", "8", "7"], ["9", "8", "07", ""], ["7", "7", "", "10"]):
        distinct = list(dict.fromkeys(chunk))
        codes = np.array([distinct.index(text) for text in chunk])
        plain.update({name: Column.text(objects(chunk)) for name in "si"})
        coded.update({name: Column.text(objects(distinct)).coded(codes) for name in "si"})

    assert coded.finish().to_vocabularies() == plain.finish().to_vocabularies()
    assert coded.finish().to_vocabularies() == {"s": ["7", "8", "07", "10", "9"], "i": ["7", "8", "10", "9"]}
