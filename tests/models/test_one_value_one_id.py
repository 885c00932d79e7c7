"""One value, one id: properties over everything a value can come as.

Each property draws values, spells them as CSV text, typed columns and JSON, and asks the encoder in every way it
has. All have to agree with each other and with the slow specification written out here.
"""

import csv
import io
import json
import math
from bisect import bisect_right
from collections.abc import Sequence
from hashlib import sha256
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.columns import Column
from models.encoder import Encoder
from models.fitting import EncoderFitter
from models.values import canonical
from tests.models.building import objects, schema_of

INTEGERS = st.sampled_from(
    [0, 1, -1, 2, 10, 2**31, 2**53 - 1, 2**53, 2**53 + 1, -(2**53) - 1, 2**63 - 1, 2**63, 2**64 - 1, -(2**63)]
) | st.integers(-(2**63), 2**64 - 1)
FLOATS = st.sampled_from(
    [0.0, -0.0, 1.0, 0.1, 1 / 3, 5e-324, -5e-324, 2.2e-308, 1e16, 1e22, 1e23, 1e308, -1e308, 2.0**53, 2.0**63, 2.0**64]
) | st.floats(allow_nan=False, allow_infinity=False)
STRINGS = st.sampled_from(["a", "A", " a", "é", "é", "7", "7.0", "null", "NaN", "𝄞", "￿", "\u0000"]) | st.text()
VALUES = {"integer": INTEGERS, "float": FLOATS, "string": STRINGS, "boolean": st.booleans()}

ENCODINGS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "integer": [
        ("categorical", {"method": "vocabulary"}),
        ("categorical", {"method": "hash", "buckets": 1000}),
        ("numeric", {"method": "quantile", "buckets": 4}),
        ("numeric", {"method": "log_bucket"}),
        ("numeric", {"method": "criteo_x4", "min_count": 1}),
    ],
    "string": [("categorical", {"method": "vocabulary"}), ("categorical", {"method": "hash", "buckets": 1000})],
}
ENCODINGS["float"] = ENCODINGS["integer"]
ENCODINGS["boolean"] = ENCODINGS["string"]
FIELDS = [(type_, kind, encoding) for type_, choices in ENCODINGS.items() for kind, encoding in choices]


def spelled(value: Any) -> str:
    """A value as a CSV writer puts it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value) if isinstance(value, float) else str(value)


def through_csv(cells: list[str]) -> list[str]:
    """Cells written to CSV text and read back."""
    text = io.StringIO()
    csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\r\n").writerows([cell] for cell in cells)
    return [row[0] for row in csv.reader(io.StringIO(text.getvalue(), newline=""))]


def typed_columns(type_: str, values: Sequence[Any]) -> dict[str, Column]:
    """Every dtype of a typed file that can hold the values exactly, with None as null."""
    missing = np.array([value is None for value in values], dtype=bool)

    def with_mask(dtype: str) -> Column:
        return Column.typed(np.array([0 if v is None else v for v in values], dtype=dtype), missing)

    def with_nan(dtype: str) -> Column:
        return Column.typed(np.array([np.nan if v is None else v for v in values], dtype=dtype))

    present = [value for value in values if value is not None]
    columns = {"objects": Column.typed(objects(values))}
    if type_ == "boolean":
        columns["bool"] = with_mask("bool")
    if type_ in ("integer", "float"):
        whole = [int(v) for v in present if float(v).is_integer() and int(v) == v]
        if len(whole) == len(present):
            for dtype, low, high in (
                ("int8", -(2**7), 2**7),
                ("int64", -(2**63), 2**63),
                ("uint64", 0, 2**64),
            ):
                if all(low <= value < high for value in whole):
                    columns[dtype] = with_mask(dtype)
        for dtype in ("float32", "float64"):
            with np.errstate(over="ignore"):
                exact = all(
                    math.isfinite(np.dtype(dtype).type(v)) and float(np.dtype(dtype).type(v)) == v for v in present
                )
            if exact:
                columns[dtype] = with_nan(dtype)
                columns[f"{dtype} masked"] = with_mask(dtype)
    return columns


def coded(column: Column, values: Sequence[Any]) -> Column:
    """The same rows in dictionary form, backwards, with null as -1 and a value nobody refers to."""
    order = np.arange(len(values))[::-1]
    cells = Column(
        column.form,
        column.values[::-1].copy(),
        None if column.missing is None else column.missing[::-1].copy(),
    )
    return cells.coded(np.where([value is None for value in values], -1, order))


def specified(type_: str, kind: str, encoding: dict[str, Any], fitted: Sequence[Any] | None, value: Any) -> int:
    """The id by DESIGN's own words, slowly."""
    if value is None or value == "":
        return 0
    if type_ == "float":
        value = float(value)
    method = encoding["method"]
    if method == "hash":
        text = f"0:f:{canonical(value)}"
        return 2 + int(sha256(text.encode()).hexdigest()[:16], 16) % encoding["buckets"]
    assert fitted is not None
    if method == "criteo_x4":
        value = math.floor(math.log(value) ** 2) if value > 2 else value
    if method in ("vocabulary", "criteo_x4"):
        return fitted.index(canonical(value)) + 2 if canonical(value) in fitted else 1
    return 2 + bisect_right(fitted, float(value))


@pytest.mark.parametrize(
    ("type_", "kind", "encoding"), FIELDS, ids=lambda part: part if isinstance(part, str) else part["method"]
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_a_value_has_one_id_however_it_comes(type_: str, kind: str, encoding: dict[str, Any], data: st.DataObject):
    """Rows, columns of a request, CSV text, every typed dtype and dictionary form: one id, the specified one."""
    values = data.draw(st.lists(st.none() | VALUES[type_], min_size=1, max_size=12), label="values")
    seen = data.draw(st.lists(st.sampled_from(values), max_size=12), label="training values")
    schema = schema_of({"name": "f", "type": type_, "kind": kind, "encoding": encoding})
    fitter = EncoderFitter(schema)
    fitter.update({"f": Column.text(objects([spelled(value) for value in seen]))})
    encoder = fitter.finish()
    fitted = encoder.to_vocabularies().get("f")

    expected = [specified(type_, kind, encoding, fitted, value) for value in values]

    decoded = json.loads(json.dumps(values))
    text = Column.text(objects(through_csv([spelled(value) for value in values])))
    columns = {"text": text, **typed_columns(type_, values)}
    columns |= {f"{name} coded": coded(column, values) for name, column in columns.items()}
    got = {
        "one row each": [encoder.encode_candidates([{"f": value}]).ids[0, 0] for value in decoded],
        "rows": encoder.encode_candidates([{"f": value} for value in decoded]).ids[:, 0].tolist(),
        "rows, absent": encoder.encode_candidates([{} if value is None else {"f": value} for value in decoded])
        .ids[:, 0]
        .tolist(),
        "request columns": encoder.encode_candidate_columns({"f": decoded}, len(decoded)).ids[:, 0].tolist(),
    }
    for name, column in columns.items():
        encoded = encoder.encode_columns({"f": column})
        got[name] = encoded.ids["f"].tolist()
        assert encoded.bad["f"] == 0, name
        assert encoded.missing["f"] == expected.count(0), name
        assert encoded.unknown["f"] == expected.count(1), name
    assert got == dict.fromkeys(got, expected)
    assert max(expected) < encoder.sizes["f"]


@pytest.mark.parametrize(
    ("type_", "kind", "encoding"), FIELDS, ids=lambda part: part if isinstance(part, str) else part["method"]
)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_what_is_fitted_depends_on_values_not_on_how_they_came(
    type_: str, kind: str, encoding: dict[str, Any], data: st.DataObject
):
    """Text or any typed column, whole or in two chunks: the same vocabulary or edges."""
    values = data.draw(st.lists(st.none() | VALUES[type_], min_size=1, max_size=20), label="values")
    cut = data.draw(st.integers(0, len(values)), label="cut")
    schema = schema_of({"name": "f", "type": type_, "kind": kind, "encoding": encoding})

    def fitted(*chunks: Column) -> Any:
        fitter = EncoderFitter(schema)
        for chunk in chunks:
            fitter.update({"f": chunk})
        return fitter.finish().to_vocabularies().get("f")

    texts = [spelled(value) for value in values]
    expected = fitted(Column.text(objects(texts)))

    assert fitted(Column.text(objects(texts[:cut])), Column.text(objects(texts[cut:]))) == expected
    for name, column in typed_columns(type_, values).items():
        assert fitted(column) == expected, name
        assert fitted(coded(column, values)) == expected, name


@pytest.mark.parametrize("method", ["vocabulary", "hash"])
@pytest.mark.parametrize("keep", ["first", "last"])
@pytest.mark.parametrize("type_", ["string", "integer"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_a_sequence_has_one_encoding_however_it_comes(type_: str, keep: str, method: str, data: st.DataObject):
    """JSON lists, Parquet lists and split text: missing ones dropped, then cut, and empty is the single id 0."""
    separator = data.draw(st.sampled_from(["|", ",", "::"]), label="separator")
    element = VALUES[type_] if type_ == "integer" else STRINGS.filter(lambda s: not set(s) & set("|,:"))
    lists = data.draw(
        st.lists(st.none() | st.lists(st.none() | element, max_size=7), min_size=1, max_size=6), label="lists"
    )
    max_length = data.draw(st.integers(1, 4), label="max_length")
    encoding = {"method": method} | ({"buckets": 50} if method == "hash" else {})
    schema = schema_of(
        {"name": "f", "type": type_, "kind": "sequence", "encoding": encoding}
        | {"separator": separator, "max_length": max_length, "keep": keep}
    )
    texts = [separator.join(spelled(v) for v in row or []) for row in lists]
    fitter = EncoderFitter(schema)
    fitter.update({"f": Column.text(objects(texts[: len(texts) // 2 + 1]))})
    encoder = fitter.finish()
    fitted = encoder.to_vocabularies().get("f")

    expected = []
    for row in lists:
        ids = [specified(type_, "sequence", encoding, fitted, v) for v in row or [] if v is not None and v != ""]
        expected.append((ids[-max_length:] if keep == "last" else ids[:max_length]) or [0])

    def unpacked(ragged: tuple[np.ndarray, np.ndarray]) -> list[list[int]]:
        ids, offsets = ragged
        assert (offsets[0], offsets[-1]) == (0, len(ids))
        return [ids[start:end].tolist() for start, end in pairwise(offsets)]

    flat = objects([value for row in lists for value in row or []])
    offsets = np.cumsum([0, *(len(row or []) for row in lists)])
    text = objects(texts)
    codes = np.arange(len(lists))[::-1].copy()
    encoded = {
        "text": encoder.encode_columns({"f": Column.text(text)}),
        "text coded": encoder.encode_columns({"f": Column.text(text[::-1].copy()).coded(codes)}),
        "lists": encoder.encode_columns({"f": Column.lists(Column.typed(flat), offsets)}),
        "lists of text": encoder.encode_columns(
            {"f": Column.lists(Column.text(objects([spelled(v) for v in flat])), offsets)}
        ),
    }
    decoded = json.loads(json.dumps(lists))
    rows = encoder.encode_candidates([{"f": row} for row in decoded])
    for name, columns in encoded.items():
        assert unpacked(columns.sequences["f"]) == expected, name
        assert columns.missing["f"] == expected.count([0]) == rows.missing.get("f", 0)
        assert columns.unknown["f"] == sum(row.count(1) for row in expected) == rows.unknown.get("f", 0)
    assert unpacked(rows.sequences["f"]) == expected
    assert unpacked(encoder.encode_candidate_columns({"f": decoded}, len(lists)).sequences["f"]) == expected
    for row, ids in zip(decoded, expected, strict=True):
        assert unpacked(encoder.encode_candidates([{"f": row}]).sequences["f"]) == [ids]


def test_a_request_of_many_fields_gives_each_its_own_ids():
    """Fields of every kind together, in any mixture of missing and unknown, as one by one."""
    rng = np.random.default_rng(0)
    fields: list[dict[str, Any]] = []
    for i, (type_, kind, encoding) in enumerate(FIELDS):
        fields.append({"name": f"f{i}", "type": type_, "kind": kind, "encoding": encoding})
    fields.insert(
        3, {"name": "tags", "kind": "sequence", "max_length": 3, "encoding": {"method": "hash", "buckets": 9}}
    )
    pools: dict[str, list[Any]] = {
        "integer": [None, 1, 2, 3.0, 2**64 - 1, -7],
        "float": [None, 1, 0.5, -0.0, 1e308, 2**53 + 1],
        "string": [None, "", "a", "b", "é"],
        "boolean": [None, True, False],
    }
    schema = schema_of(*fields)
    train = {f["name"]: Column.typed(objects(pools[f["type"]][:-1])) for f in fields if f["name"] != "tags"}
    n = {name: len(column) for name, column in train.items()}
    longest = max(n.values())
    padded = {
        name: Column.typed(objects([*column.values.tolist(), *[None] * (longest - len(column))]))
        for name, column in train.items()
    }
    padded["tags"] = Column.lists(Column.typed(objects(["x"])), np.array([0, 1] + [1] * (longest - 1)))
    fitter = EncoderFitter(schema)
    fitter.update(padded)
    encoder = fitter.finish()

    rows = []
    for _ in range(200):
        row: dict[str, Any] = {
            f["name"]: pools[f["type"]][rng.integers(len(pools[f["type"]]))] for f in fields if f["name"] != "tags"
        }
        row["tags"] = [None, ["x", None, "y"], [], ["z"] * 5][rng.integers(4)]
        rows.append({name: value for name, value in row.items() if rng.random() < 0.9})
    together = encoder.encode_candidates(rows)

    one_by_one = [encoder.encode_candidates([row]) for row in rows]
    assert together.ids.tolist() == [single.ids[0].tolist() for single in one_by_one]
    assert together.sequences["tags"][0].tolist() == [i for s in one_by_one for i in s.sequences["tags"][0].tolist()]
    for counts in ("missing", "unknown"):
        summed: dict[str, int] = {}
        for single in one_by_one:
            for name, count in getattr(single, counts).items():
                summed[name] = summed.get(name, 0) + count
        assert getattr(together, counts) == summed
    assert together.ids.dtype == np.int32
    assert together.ids.flags.c_contiguous


def test_a_parquet_file_and_a_csv_file_of_one_log_encode_alike():
    """The same, through the files themselves."""
    parquet = pytest.importorskip("pyarrow.parquet", reason="Parquet needs the training extra")
    pyarrow = pytest.importorskip("pyarrow")
    pyarrow_csv = pytest.importorskip("pyarrow.csv")
    table = pyarrow.table(
        {
            "i": pyarrow.array([1, None, 2**63 - 1, -5], pyarrow.int64()),
            "u": pyarrow.array([2**64 - 1, 0, None, 2**63], pyarrow.uint64()),
            "f": pyarrow.array([0.1, None, float("nan"), 1e308], pyarrow.float64()),
            "s": pyarrow.array(["a", "", None, 'é\n,"'], pyarrow.string()),
            "b": pyarrow.array([True, None, False, True], pyarrow.bool_()),
        }
    )
    types = {"i": "integer", "u": "integer", "f": "float", "s": "string", "b": "boolean"}
    schema = schema_of(
        *({"name": n, "type": t, "encoding": {"method": "hash", "buckets": 10**6}} for n, t in types.items())
    )
    encoder = Encoder(schema, {})
    file = io.BytesIO()
    parquet.write_table(table, file)
    typed = {}
    for name in types:
        column = parquet.read_table(file).column(name).combine_chunks()
        missing = np.array(column.is_null())
        filled = column if types[name] == "string" else column.fill_null(False if types[name] == "boolean" else 0)
        typed[name] = Column.typed(filled.to_numpy(zero_copy_only=False), missing)
    text = io.BytesIO()
    pyarrow_csv.write_csv(table, text)
    rows = list(csv.reader(io.StringIO(text.getvalue().decode(), newline="")))
    cells = {name: ["" if row[i] == "nan" else row[i] for row in rows[1:]] for i, name in enumerate(rows[0])}

    from_parquet = encoder.encode_columns(typed)
    from_csv = encoder.encode_columns({name: Column.text(objects(column)) for name, column in cells.items()})

    assert {n: ids.tolist() for n, ids in from_parquet.ids.items()} == {
        n: ids.tolist() for n, ids in from_csv.ids.items()
    }
    assert from_csv.bad == dict.fromkeys(types, 0)
