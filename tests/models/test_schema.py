"""The schema: what a log's columns mean, and every way such a file can be wrong."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from models.errors import SchemaError
from models.formats import format_refusal
from models.schema import FeatureSchema
from tests.models.building import schema_of

DOCS = Path(__file__).parents[2] / "docs" / "schema.md"


def example() -> str:
    """The YAML block of docs/schema.md that shows every key."""
    return re.search(r"```yaml\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)[1]


def minimal(**field: Any) -> dict[str, Any]:
    """A document with one field, changed as asked; a None removes the key."""
    whole = {
        "name": "f",
        "type": "string",
        "role": "context",
        "kind": "categorical",
        "encoding": {"method": "vocabulary"},
    }
    return {
        "label": {"column": "click"},
        "fields": [{key: value for key, value in (whole | field).items() if value is not None}],
    }


def test_the_documented_example_is_a_schema_and_shows_every_key():
    """Whoever copies it starts from something that works, and no key is a secret."""
    schema = FeatureSchema.from_text(example())

    document = yaml.safe_load(example())
    shown = {key for field in document["fields"] for key in field}
    shown_encoding = {(field["encoding"]["method"], key) for field in document["fields"] for key in field["encoding"]}
    assert set(document) == set(FeatureSchema.model_fields)
    assert shown == set(type(schema.fields[0]).model_fields)
    for encoding in (field.encoding for field in schema.fields):
        assert {(encoding.method, key) for key in type(encoding).model_fields} <= shown_encoding
    assert {method for method, _ in shown_encoding} == {"vocabulary", "hash", "quantile", "log_bucket", "criteo_x4"}
    for part in ("label", "timestamp", "unit", "truth"):
        assert set(document[part]) == set(type(getattr(schema, part)).model_fields)


def test_a_schema_reads_back_from_json_and_yaml():
    """to_json writes every key; both texts give the same schema."""
    schema = FeatureSchema.from_text(example())

    assert FeatureSchema.from_text(schema.to_json()) == schema
    assert FeatureSchema.from_text(yaml.safe_dump(json.loads(schema.to_json()))) == schema
    assert schema.to_json() == FeatureSchema.from_text(schema.to_json()).to_json()


def test_json_needs_no_yaml(monkeypatch: pytest.MonkeyPatch):
    """The service may run where pyyaml is not installed."""
    schema = FeatureSchema.from_text(example())
    monkeypatch.setitem(sys.modules, "yaml", None)

    assert FeatureSchema.from_text(schema.to_json()) == schema
    with pytest.raises(SchemaError, match="YAML needs the package pyyaml"):
        FeatureSchema.from_text("label: {column: click}")


def test_fields_are_ordered_as_in_the_file():
    """Ids ride in this order: context, candidate, training_only; sequences apart."""
    schema = schema_of(
        {"name": "ad"},
        {"name": "seen", "role": "context", "kind": "sequence", "max_length": 3},
        {"name": "device", "role": "context"},
        {"name": "position", "role": "training_only", "serving_value": "1"},
        {"name": "tags", "kind": "sequence", "max_length": 3},
        {"name": "site", "role": "context"},
    )

    def names(fields: tuple[Any, ...]) -> list[str]:
        return [field.name for field in fields]

    assert names(schema.context_fields) == ["seen", "device", "site"]
    assert names(schema.context_id_fields) == ["device", "site"]
    assert names(schema.candidate_fields) == ["ad", "tags"]
    assert names(schema.candidate_id_fields) == ["ad"]
    assert names(schema.training_only_fields) == ["position"]
    assert names(schema.sequence_fields) == ["seen", "tags"]
    assert list(schema.by_name) == ["ad", "seen", "device", "position", "tags", "site"]


def test_a_column_defaults_to_the_name_and_a_derived_field_has_none():
    """Two fields may read one column."""
    schema = FeatureSchema.from_text(
        """
        label: {column: click}
        timestamp: {column: time}
        fields:
          - {name: a, type: string, role: context, kind: categorical, encoding: {method: vocabulary}}
          - {name: b, column: a, type: string, role: context, kind: categorical, encoding: {method: vocabulary}}
          - {name: hour, derived_from: timestamp, derive: hour, type: integer, role: context, kind: categorical,
             encoding: {method: vocabulary}}
        """
    )

    assert [field.source_column for field in schema.fields] == ["a", "a", None]


QUANTILE = {"method": "quantile"}


@pytest.mark.parametrize(
    ("field", "reason"),
    [
        ({"name": "a b"}, "expected text that matches"),
        ({"name": "1a"}, "expected text that matches"),
        ({"name": "a" * 65}, "expected text that matches"),
        ({"name": "a\n"}, "expected text that matches"),
        ({"name": "../a"}, "expected text that matches"),
        ({"name": "é"}, "expected text that matches"),
        ({"name": None}, r"fields\[0\].name: is missing"),
        ({"type": "int"}, r"fields\[0\].type \('f'\): expected 'string', 'integer', 'float' or 'boolean', got 'int'"),
        ({"role": "ad"}, r"fields\[0\].role \('f'\): expected 'context', .*, got 'ad'"),
        ({"kind": "text"}, r"fields\[0\].kind \('f'\): expected 'categorical', .*, got 'text'"),
        ({"colum": "x"}, r"fields\[0\].colum \('f'\): unknown key. Did you mean column\? Known here: name, column, "),
        ({"encoding": {"method": "onehot"}}, r"encoding.method \('f'\): expected one of 'vocabulary', .*got 'onehot'"),
        (
            {"encoding": {"method": "vocabulary", "min_count": 0}},
            r"fields\[0\].encoding.min_count \('f'\): expected at least 1, got 0",
        ),
        ({"encoding": {"method": "vocabulary", "max_size": 0}}, "expected at least 1, got 0"),
        ({"encoding": {"method": "vocabulary", "max_size": 10**9}}, "expected at most 100000000, got 1000000000"),
        ({"encoding": {"method": "vocabulary", "buckets": 3}}, "unknown key. Known here: method, min_count, max_size"),
        ({"encoding": {"method": "vocabulary", "min_count": "2"}}, "expected a whole number, got '2'"),
        ({"encoding": {"method": "vocabulary", "min_count": True}}, "expected a whole number, got true"),
        ({"encoding": {"method": "hash"}}, r"encoding.buckets \('f'\): is missing"),
        ({"encoding": {"method": "hash", "buckets": 3, "seed": -1}}, "expected at least 0, got -1"),
        ({"encoding": QUANTILE}, "a categorical field is encoded by vocabulary or hash, not by quantile"),
        ({"kind": "numeric"}, "a numeric field is encoded by quantile or log_bucket or criteo_x4, not by vocabulary"),
        ({"kind": "numeric", "encoding": QUANTILE}, "a numeric field is an integer or a float, not a string"),
        ({"kind": "numeric", "type": "boolean", "encoding": QUANTILE}, "not a boolean; make it categorical"),
        ({"kind": "numeric", "type": "float", "encoding": QUANTILE | {"buckets": 1}}, "expected at least 2, got 1"),
        ({"kind": "sequence"}, "a sequence needs max_length"),
        ({"kind": "sequence", "max_length": 0}, "expected at least 1, got 0"),
        ({"kind": "sequence", "max_length": 3, "separator": ""}, "expected text of at least 1 character"),
        ({"kind": "sequence", "max_length": 3, "keep": "middle"}, "'first' or 'last'"),
        (
            {"kind": "sequence", "max_length": 3, "encoding": QUANTILE},
            "a sequence field is encoded by vocabulary or hash",
        ),
        ({"max_length": 3}, "are for sequences"),
        ({"separator": "|"}, "are for sequences"),
        ({"keep": "first"}, "are for sequences"),
        ({"serving_value": "x"}, "serving_value is for training_only fields"),
        ({"column": "click"}, "which is the label"),
        ({"name": "click"}, "which is the label"),
        ({"derive": "hour"}, "derive needs derived_from"),
        ({"derived_from": "timestamp"}, "derived_from needs derive"),
        ({"derived_from": "timestamp", "derive": "hour"}, "hour is of type integer, not string"),
        ({"derived_from": "timestamp", "derive": "is_weekend", "type": "integer"}, "is_weekend is of type boolean"),
        ({"derived_from": "timestamp", "derive": "hour", "type": "integer"}, "but none is named"),
        ({"derived_from": "timestamp", "derive": "hour", "type": "integer", "column": "t"}, "leave column out"),
        ({"derived_from": "timestamp", "derive": "hour", "type": "integer", "role": "candidate"}, "is a context field"),
    ],
)
def test_a_field_that_contradicts_itself_is_refused(field: dict[str, Any], reason: str):
    """The message names file and field and says what to do."""
    with pytest.raises(SchemaError, match=reason) as caught:
        FeatureSchema.from_text(json.dumps(minimal(**field)), "my.json")

    (said,) = str(caught.value).splitlines()
    assert said.startswith("my.json: ")
    assert not re.search("Value error|Input should|Extra inputs|Field required", said)


@pytest.mark.parametrize(
    ("field", "reason"),
    [
        ({}, "needs serving_value"),
        ({"serving_value": "1", "kind": "sequence", "max_length": 2}, "cannot be a sequence"),
        ({"serving_value": 1}, "serving_value: expected a string, got an integer"),
        (
            {"serving_value": "1", "type": "integer"},
            "serving_value: expected an integer of at most 64 bits, got a string",
        ),
        ({"serving_value": True, "type": "integer"}, "got a boolean"),
        ({"serving_value": 2**64, "type": "integer"}, "got an integer beyond 64 bits"),
        ({"serving_value": [1]}, "expected true or false or a whole number or a number or text, got a list"),
    ],
)
def test_a_training_only_field_says_what_stands_in(field: dict[str, Any], reason: str):
    """A value of its type, or a written null; never a silent default."""
    document = minimal(**{"role": "training_only"} | field)
    document["fields"].append(minimal(name="other")["fields"][0])

    with pytest.raises(SchemaError, match=reason):
        FeatureSchema.from_text(json.dumps(document))


@pytest.mark.parametrize("value", ["1", "", None])
def test_a_serving_value_may_be_missing_but_is_written(value: str | None):
    """null and "" stand for missing, as everywhere."""
    schema = schema_of({"name": "p", "role": "training_only", "serving_value": value}, {"name": "f"})

    assert FeatureSchema.from_text(schema.to_json()).training_only_fields[0].serving_value == value


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"fields": []}, "fields: expected at least 1 of them, got an empty list"),
        ({"label": None}, "label: expected a mapping, got null"),
        ({"label": {"column": "click", "positive": "> 3"}}, "a threshold is not supported"),
        ({"timestamp": {"column": "t", "format": "iso"}}, "expected epoch, iso8601 or a strptime pattern"),
        ({"timestamp": {"column": "t", "unit": "min"}}, "'s', 'ms' or 'us'"),
        ({"timestamp": {"column": "t", "timezone": "../x"}}, "expected text that matches"),
        ({"max_bad_rows": 1.5}, "expected at most 1, got 1.5"),
        ({"max_bad_rows": -1}, "expected at least 0, got -1"),
        ({"truth": {"column": "f"}}, "which is the truth"),
        ({"format_version": 2}, r"written by a newer Retort \(schema format 2; this one reads up to 1\)"),
        ({"format_version": "1"}, "expected a schema format version"),
        ({"format_version": True}, "expected a schema format version"),
        ({"extra": 1}, "extra: unknown key. Known here: format_version, label, "),
    ],
)
def test_a_schema_that_contradicts_itself_is_refused(change: dict[str, Any], reason: str):
    """Outside the fields too."""
    with pytest.raises(SchemaError, match=reason):
        FeatureSchema.from_text(json.dumps(minimal() | change))


def test_names_differ_in_more_than_case():
    """They become file names, and some file systems do not tell case apart."""
    with pytest.raises(ValueError, match="named 2 times"):
        schema_of({"name": "Device"}, {"name": "device"})


def test_something_is_left_to_serve():
    """A model of nothing but training_only fields would answer every request alike."""
    with pytest.raises(ValueError, match="nothing would be left to serve"):
        schema_of({"name": "p", "role": "training_only", "serving_value": None})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "expected an object with label and fields, got null"),
        ("[]", "expected an object with label and fields, got a list"),
        ("label: [", "neither JSON nor YAML"),
        ('{"label": {"column": "a", "column": "b"}}', "key 'column' is written twice"),
        ("label: {column: a}\nlabel: {column: b}", "key 'label' is written twice"),
        ("label: {column: yes}\nfields: []", "label.column: expected text, got true"),
        ("label: !!python/object/apply:os.getcwd []", "neither JSON nor YAML"),
    ],
)
def test_text_that_is_no_schema_is_refused(text: str, reason: str):
    """With the reason; a key written twice is not quietly halved, and YAML runs nothing."""
    with pytest.raises(SchemaError, match=re.escape(reason)):
        FeatureSchema.from_text(text, "my.yaml")


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path):
    """Absent, or no UTF-8."""
    (tmp_path / "latin").write_bytes(b"label: {column: caf\xe9}")

    for name, said in (("absent", "cannot be opened: No such file"), ("latin", "is no UTF-8 text")):
        with pytest.raises(SchemaError, match=f"{name}: {said}"):
            FeatureSchema.from_file(tmp_path / name)


@pytest.mark.parametrize(
    ("found", "newest", "oldest", "expected"),
    [
        (1, 1, 1, None),
        (2, 3, 1, None),
        (4, 3, 1, "written by a newer Retort (bundle format 4; this one reads up to 3): upgrade this installation"),
        (0, 3, 2, "expected a bundle format version, a whole number from 1"),
    ],
)
def test_another_format_says_what_to_do(found: int, newest: int, oldest: int, expected: str | None):
    """A newer one wants a newer program."""
    assert format_refusal("bundle", found, newest, oldest) == expected


@pytest.mark.parametrize("what", ["schema", "bundle"])
def test_an_older_format_than_can_be_read_names_a_command_that_there_is(what: Literal["schema", "bundle"]):
    """Nobody is sent to a command that was never written."""
    refusal = format_refusal(what, 1, newest=3, oldest=2)

    assert refusal is not None
    assert refusal.startswith(f"written by an older Retort ({what} format 1; this one reads from 2): ")
    (command,) = re.findall(r"python -m training ([a-z-]+)", refusal)
    done = subprocess.run([sys.executable, "-m", "training", command, "--help"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
