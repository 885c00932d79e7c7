"""Whatever a request brings gets the id that the other library gives it, or the vocabulary is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.schema import FeatureSchema
from tests.training.pack import foreign
from training.errors import PackError
from training.pack.vocabularies import Carried, encoder_of, read_vocabularies


def field(**changes: Any) -> FeatureSchema:
    """A schema of one field, x."""
    given = {"name": "x", "type": "string", "role": "candidate", "kind": "categorical"}
    given |= {"encoding": {"method": "vocabulary"}} | changes
    return FeatureSchema.model_validate({"label": {"column": "click"}, "fields": [given]})


def fuxictr(folder: Path, vocabulary: dict[str, Any], **facts: Any) -> Path:
    """FuxiCTR's folder with one feature, x."""
    folder.mkdir(exist_ok=True)
    feature = {"type": "categorical", "vocab_size": max(vocabulary.values()) + 1} | facts
    (folder / "feature_map.json").write_text(json.dumps({"features": [{"x": feature}]}))
    (folder / "feature_vocab.json").write_text(json.dumps({"x": vocabulary}))
    return folder


def ids_of(schema: FeatureSchema, carried: dict[str, Carried], values: list[Any]) -> list[int]:
    """Their ids of raw JSON values of x."""
    encoder, table = encoder_of(schema, carried, None), carried["x"].ids
    ours = [encoder.encode_candidates([{"x": value}]).ids.item() for value in values]
    return ours if table is None else table[ours].tolist()


@pytest.mark.parametrize("name", [name for name in foreign.NAMES if name not in foreign.LENGTHS])
def test_every_value_gets_the_id_that_fuxictr_gives_it(name: str, tmp_path: Path):
    """Known, unknown and missing; `their_ids` is FuxiCTR's tokenizer. A missing number is its fill, 0."""
    schema = foreign.schema()
    carried = read_vocabularies(foreign.write_fuxictr(tmp_path / "data"), schema)
    encoder = encoder_of(schema, carried, None)
    odd = {"hour": [77, -1], "price": [3.25, -0.0, 1e300], "position": [9]}.get(name, ["never seen", " phone", "PHONE"])
    values = [*foreign.TOKENS[name], *odd, None]

    found = []
    for value in values:
        side = encoder.encode_context if schema.by_name[name].role == "context" else None
        if side is not None:
            names = [each.name for each in schema.context_id_fields]
            ours = side({name: value}).ids[0, names.index(name)]
        elif schema.by_name[name].role == "candidate":
            names = [each.name for each in schema.candidate_id_fields]
            ours = encoder.encode_candidates([{name: value}]).ids[0, names.index(name)]
        else:
            ours = encoder._tables[name].encode(value)
        table = carried[name].ids
        assert table is not None
        found.append(int(table[ours]))

    assert found == [foreign.their_ids(name, value)[0] for value in values]


def test_an_integral_float_is_the_token_that_json_wrote_of_it(tmp_path: Path):
    """FuxiCTR's float tokens are "1.0" in the file; a request says 1 or 1.0."""
    folder = fuxictr(tmp_path, {"0.5": 1, "1.0": 2, "1e-05": 3, "__PAD__": 0, "__OOV__": 4})
    schema = field(type="float")

    assert ids_of(schema, read_vocabularies(folder, schema), [0.5, 1, 1.0, 0.00001, 2, None]) == [1, 2, 2, 3, 4, 4]


def test_the_criteo_rule_is_a_vocabulary_of_its_buckets(tmp_path: Path):
    """FuxiCTR's `convert_to_bucket`: floor(ln(x)^2) above 2, else x; a missing count is the value 0."""
    folder = fuxictr(tmp_path, {"0": 1, "1": 2, "2": 3, "21": 4, "__PAD__": 0, "__OOV__": 5})
    schema = field(type="integer", kind="numeric", encoding={"method": "criteo_x4"})

    # ln(3)^2 is 1.2 and ln(100)^2 is 21.2; ln(20)^2 is 8.97, which was never seen.
    assert ids_of(schema, read_vocabularies(folder, schema), [0, 1, 2, 3, 100, 20, None]) == [1, 2, 3, 2, 4, 5, 1]


def test_fill_na_says_what_stands_in_a_missing_values_place(tmp_path: Path):
    folder = fuxictr(tmp_path, {"0": 1, "7": 2, "__PAD__": 0, "__OOV__": 3})
    schema = field(type="integer")

    assert ids_of(schema, read_vocabularies(folder, schema), [None, 0, 7, 8]) == [1, 1, 2, 3]
    assert ids_of(schema, read_vocabularies(folder, schema, {"x": "7"}), [None]) == [2]
    assert ids_of(schema, read_vocabularies(folder, schema, {"x": "-1"}), [None]) == [3]


def test_a_value_called_as_fuxictrs_own_token_gets_that_tokens_id(tmp_path: Path):
    """As there: nobody reserves the names."""
    folder, schema = fuxictr(tmp_path, {"a": 1, "__PAD__": 0, "__OOV__": 2}), field()

    assert ids_of(schema, read_vocabularies(folder, schema), ["__PAD__", "__OOV__", "a"]) == [0, 2, 1]


def test_any_numbering_can_be_said_and_two_values_may_share_an_id(tmp_path: Path):
    (tmp_path / "x.json").write_text('{"ids": {"a": 9, "b": 9, "c": 4}, "missing": 0, "unknown": 7}')
    schema = field()

    assert ids_of(schema, read_vocabularies(tmp_path, schema), ["a", "b", "c", "d", None]) == [9, 9, 4, 7, 0]


def test_ranges_of_a_number_keep_their_edges_and_ids(tmp_path: Path):
    """The lower edge belongs to the range, as numpy.digitize and torch.bucketize(right=True) have it."""
    (tmp_path / "x.json").write_text('{"edges": [0, 1.5], "ids": [3, 2, 1], "missing": 5}')
    schema = field(type="float", kind="numeric", encoding={"method": "quantile"})
    numbers = [-1.0, 0.0, 1.0, 1.5, 1e300]

    found = ids_of(schema, read_vocabularies(tmp_path, schema), [*numbers, None])

    assert found == [*np.array([3, 2, 1])[np.digitize(numbers, [0, 1.5])].tolist(), 5]


def test_a_list_of_values_is_our_own_numbering(tmp_path: Path):
    (tmp_path / "x.json").write_text('["a", "b"]')
    schema = field()

    assert ids_of(schema, read_vocabularies(tmp_path, schema), [None, "z", "a", "b"]) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("vocabulary", "facts", "schema", "said"),
    [
        ({"a": 1, "__PAD__": 0, "__OOV__": 2}, {"vocab_size": 9}, {}, "ids below 9"),
        ({"a": 1, "__PAD__": 0}, {}, {}, "__OOV__"),
        ({"a": 1, "": 2, "__PAD__": 0, "__OOV__": 3}, {}, {}, "cannot be carried over"),
        ({"a": 1, "__PAD__": 0, "__OOV__": 2}, {}, {"type": "integer"}, "the type they were trained as"),
        ({"7": 1, "07": 2, "__PAD__": 0, "__OOV__": 3}, {}, {"type": "integer"}, "two tokens are the same integer '7'"),
        ({"a": 1, "__PAD__": 0, "__OOV__": 2}, {"type": "numeric"}, {}, "category of ranges"),
        ({"a": 1, "__PAD__": 0, "__OOV__": 2}, {"type": "meta"}, {}, "out of the schema"),
        ({"a": 1, "__PAD__": 0, "__OOV__": 2}, {"type": "sequence"}, {}, "mend the schema"),
        ({"a": 1, "__PAD__": 0, "__OOV__": 2}, {"category_processor": "hash_bucket"}, {}, "leaves no vocabulary"),
        (
            {"a": 1, "__PAD__": 0, "__OOV__": 2},
            {"type": "sequence", "max_len": 5},
            {"kind": "sequence", "max_length": 3},
            "max_len 5, and the schema says max_length: 3",
        ),
        (
            {"a": 1, "__PAD__": 0, "__OOV__": 2},
            {},
            {"encoding": {"method": "hash", "buckets": 8}},
            "expected method: vocabulary",
        ),
    ],
)
def test_what_of_fuxictr_cannot_be_carried_over_is_refused_with_what_to_do(
    vocabulary: dict[str, Any], facts: dict[str, Any], schema: dict[str, Any], said: str, tmp_path: Path
):
    with pytest.raises(PackError) as refused:
        read_vocabularies(fuxictr(tmp_path, vocabulary, **facts), field(**schema))

    assert said in str(refused.value)
    assert "x" in str(refused.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"ids": {"a": 1}, "missing": 0}', "got an object with 'ids', 'missing'"),
        ('{"ids": {"a": -1}, "missing": 0, "unknown": 1}', "whole number from 0"),
        ('{"ids": {"a": 1, "a": 2}, "missing": 0, "unknown": 1}', "'a' stands twice"),
        ('{"ids": {"": 1}, "missing": 0, "unknown": 1}', "can have no id of its own"),
        ('["a", "b"', "a whole JSON file"),
        ('{"edges": [1], "ids": [1, 2], "missing": 0}', "expected values, got edges"),
        ('["a", "a"]', "a value stands twice"),
        ("7", "got a int"),
    ],
)
def test_a_file_in_none_of_the_forms_is_refused_with_its_name(text: str, said: str, tmp_path: Path):
    (tmp_path / "x.json").write_text(text)

    with pytest.raises(PackError) as refused:
        encoder_of(field(), read_vocabularies(tmp_path, field()), tmp_path)

    assert said in str(refused.value)
    assert str(tmp_path) in str(refused.value)


def test_a_field_without_a_file_and_a_file_without_a_field_are_refused(tmp_path: Path):
    with pytest.raises(PackError, match=r"field 'x': expected its vocabulary, got no file .*x\.json"):
        read_vocabularies(tmp_path, field())
    with pytest.raises(PackError, match="got no --vocabularies"):
        read_vocabularies(None, field())
    (tmp_path / "x.json").write_text('["a"]')
    (tmp_path / "xs.json").write_text('["a"]')
    with pytest.raises(PackError, match=r"xs\.json: is of no field of the schema. Did you mean 'x'"):
        read_vocabularies(tmp_path, field())
