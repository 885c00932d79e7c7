"""The contract on values: canonical_cases.json, read the way any other language would."""

import json
from pathlib import Path

import pytest

from models.columns import Column
from models.encoder import Encoder
from models.errors import EncodeError
from models.schema import FeatureSchema
from models.tables import criteo_x4
from models.values import WrongTypeError, canonical, check_value, read_text
from tests.models.building import encoder_for, objects

CASES = json.loads((Path(__file__).parent / "canonical_cases.json").read_text(encoding="utf-8"))
TYPES = ("string", "integer", "float", "boolean")


def cases(form: str):
    """(type, token or cell, expected canonical form, whether it is refused), one a test."""
    return [
        pytest.param(
            case["type"], item, case.get("canonical"), case.get("wrong_type", False), id=f"{case['type']}-{item!r}"
        )
        for case in CASES["canonical"]
        for item in case.get(form, [])
    ]


@pytest.mark.parametrize(("type_", "token", "expected", "refused"), cases("json"))
def test_a_json_value_has_the_canonical_form_of_the_table(type_: str, token: str, expected: str, refused: bool):
    """A JSON token is one canonical form, missing, or refused."""
    value = json.loads(token)

    if refused:
        with pytest.raises(WrongTypeError):
            check_value(type_, value)
        return
    checked = check_value(type_, value)

    assert (None if checked is None else canonical(checked)) == expected


@pytest.mark.parametrize(("type_", "cell", "expected", "refused"), cases("text"))
def test_a_text_cell_has_the_canonical_form_of_the_table(type_: str, cell: str, expected: str, refused: bool):
    """A text cell of a log reads as the JSON token would, whatever its spelling."""
    if refused:
        with pytest.raises(WrongTypeError):
            read_text(type_, cell)
        return
    checked = read_text(type_, cell)

    assert (None if checked is None else canonical(checked)) == expected


@pytest.mark.parametrize("type_", TYPES)
def test_every_spelling_of_the_table_gets_the_id_of_its_canonical_form(type_: str):
    """Through the encoder: JSON value and text cell alike get the id under which the canonical form stands."""
    known = sorted({c["canonical"] for c in CASES["canonical"] if c["type"] == type_ and c.get("canonical")})
    encoder = encoder_for(type_, known)
    ids = {form: number for number, form in enumerate(known, 2)} | {None: 0}

    for case in CASES["canonical"]:
        if case["type"] != type_ or case.get("wrong_type"):
            continue
        for token in case.get("json", []):
            rows = encoder.encode_candidates([{"f": json.loads(token)}] * 2)
            assert rows.ids.tolist() == [[ids[case["canonical"]]]] * 2, token
        cells = case.get("text", [])
        if cells:
            columns = encoder.encode_columns({"f": Column.text(objects(cells))})
            assert columns.ids["f"].tolist() == [ids[case["canonical"]]] * len(cells), cells
            assert columns.bad["f"] == 0


@pytest.mark.parametrize("type_", TYPES)
def test_every_refused_value_of_the_table_is_an_error_online_and_a_bad_cell_in_a_log(type_: str):
    """Online an `EncodeError` with field and row; in a log missing, and counted."""
    encoder = encoder_for(type_, [])

    for case in CASES["canonical"]:
        if case["type"] != type_ or not case.get("wrong_type"):
            continue
        for token in case.get("json", []):
            with pytest.raises(EncodeError) as caught:
                encoder.encode_candidates([{"f": None}, {"f": json.loads(token)}])
            assert (caught.value.field, caught.value.row) == ("f", 1), token
        for cell in case.get("text", []):
            columns = encoder.encode_columns({"f": Column.text(objects(["", cell]))})
            assert columns.ids["f"].tolist() == [0, 0]
            assert (columns.bad["f"], columns.first_bad["f"].row, columns.first_bad["f"].text) == (1, 1, cell)


@pytest.mark.parametrize("case", CASES["hash"], ids=lambda case: f"{case['seed']}:{case['field']}:{case['canonical']}")
def test_a_hashed_value_has_the_id_of_the_table(case: dict):
    """2 + sha256("seed:field:value")[:8] % buckets, for every type of value."""
    value = case["canonical"]
    type_ = {"campaign": "integer", "price": "float", "premium": "boolean"}.get(case["field"], "string")
    field = {
        "name": case["field"],
        "type": type_,
        "role": "candidate",
        "kind": "categorical",
        "encoding": {"method": "hash", "buckets": case["buckets"], "seed": case["seed"]},
    }
    encoder = Encoder(FeatureSchema.model_validate({"label": {"column": "click"}, "fields": [field]}), {})

    rows = encoder.encode_candidates([{case["field"]: read_text(type_, value)}])
    columns = encoder.encode_columns({case["field"]: Column.text(objects([value]))})

    assert rows.ids.tolist() == [[case["id"]]]
    assert columns.ids[case["field"]].tolist() == [case["id"]]


@pytest.mark.parametrize("table", CASES["edges"], ids=lambda table: str(table["edges"]))
def test_a_number_falls_between_the_edges_of_the_table(table: dict):
    """2 + the number of edges at or below x, for a row alone, rows together and a column."""
    encoder = encoder_for("float", table["edges"], kind="numeric", encoding={"method": "quantile", "buckets": 8})
    values = [json.loads(case["json"]) for case in table["cases"]]
    expected = [[case["id"]] for case in table["cases"]]

    assert [encoder.encode_candidates([{"f": value}]).ids.tolist()[0] for value in values] == expected
    assert encoder.encode_candidates([{"f": value} for value in values]).ids.tolist() == expected
    cells = ["" if case["json"] == "null" else case["json"] for case in table["cases"]]
    assert encoder.encode_columns({"f": Column.text(objects(cells))}).ids["f"].tolist() == [i for [i] in expected]


@pytest.mark.parametrize("case", CASES["criteo_x4"], ids=lambda case: case["json"])
def test_the_criteo_x4_rule_is_the_public_one(case: dict):
    """floor(ln(x)^2) above 2, the value itself below."""
    assert canonical(criteo_x4(json.loads(case["json"]))) == case["canonical"]


def test_an_error_says_what_came_but_never_the_value():
    """What reaches a client or a log line holds the type only."""
    encoder = encoder_for("integer", [])

    with pytest.raises(EncodeError) as caught:
        encoder.encode_candidates([{"f": 1}, {"f": "secret-4711"}])

    assert str(caught.value) == "field 'f': expected an integer of at most 64 bits, got a string (row 1)"
    assert "secret" not in repr(caught.value)


def test_a_long_number_costs_no_more_than_its_length():
    """A cell of a million digits, or of a million digits and a letter, is refused at once."""
    for cell in ("9" * 1_000_000, "0" * 1_000_000 + "x", "1." + "1" * 1_000_000 + "x"):
        with pytest.raises(WrongTypeError):
            read_text("integer", cell)
    assert read_text("integer", "-" + "0" * 1_000_000 + "7") == -7
