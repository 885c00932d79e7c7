"""What does not fit is refused before anything is written: what was expected, what came, where, and what to do."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from models.errors import ModelsError
from tests.training.pack import foreign
from tests.training.pack.test_pack import order_of, place
from training.errors import TrainingError
from training.pack.pack import pack

__all__ = ["place"]


def refused(place: Path, **changes: Any) -> str:
    """What is said, nothing being left in the repository."""
    with pytest.raises((TrainingError, ModelsError)) as error:
        pack(order_of(place, **changes))
    assert not (place / "repository").exists()
    return str(error.value)


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    path.write_text(json.dumps(change(json.loads(path.read_text(encoding="utf-8")))))


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ({"renamed": {"ad": "ads"}}, "field 'ad': expected an input 'ad', got context, hour, .* Did you mean 'ads'"),
        (
            {"batch": 1},
            r"input 'context': expected any number of rows, got exactly 1\. Export with the batch dimension",
        ),
        ({"dtype": TensorProto.FLOAT}, "input 'context': expected ids, int64 or int32, got float"),
        ({"outputs": ["logit"]}, "--probability y_pred: the graph has no such output, but logit"),
        ({"mean_centred": True}, "by itself and .* among others"),
        ({"opset": 12}, "expected opset 13 or newer, got 12"),
        ({"opset": 99}, "opset or IR version that is too new"),
        ({"ir_version": 99}, "opset or IR version that is too new"),
        ({"bias": float("nan")}, "scores nan; expected a number"),
        ({"bias": float("inf"), "outputs": ["logit", "y_pred"]}, "scores inf; expected a number"),
    ],
)
def test_a_graph_that_cannot_be_fed_or_does_not_answer(made: Any, said: str, place: Path):
    if made.get("dtype") == TensorProto.FLOAT:
        model = foreign.graph()
        for value in model.graph.input:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
            for node in model.graph.node:
                if node.op_type == "Gather" and node.input[1] == value.name:
                    node.input[1] = f"{value.name}_ids"
        for value in list(model.graph.input):
            cast = helper.make_node("Cast", [value.name], [f"{value.name}_ids"], to=TensorProto.INT64)
            model.graph.node.insert(0, cast)
    else:
        model = foreign.graph(**made)
    onnx.save(model, place / "graph.onnx")
    both = {"logit": "logit"} if "logit" in made.get("outputs", ()) and "bias" in made else {}

    assert re.search(said, refused(place, **both))


def test_an_input_for_which_there_is_no_field(place: Path):
    schema = foreign.SCHEMA.replace("name: ad,", "name: ad_id, column: ad,")
    (place / "schema.yaml").write_text(schema)
    foreign.write_lists(place / "lists")
    (place / "lists" / "ad.json").rename(place / "lists" / "ad_id.json")

    said = refused(place, vocabularies=place / "lists")

    assert "field 'ad_id': expected an input 'ad_id'" in said
    assert "--input ad_id=NAME" in said


def test_a_score_that_nobody_named(place: Path):
    assert "is it a logit or a probability? Say --logit NAME" in refused(place, probability=None)


def test_a_logit_called_a_probability(place: Path):
    onnx.save(foreign.graph(outputs=["logit"]), place / "graph.onnx")

    assert "expected a probability from 0 to 1" in refused(place, probability="logit", expect=None)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_a_file_that_is_cut_short(share: float, place: Path):
    whole = (place / "graph.onnx").read_bytes()
    (place / "graph.onnx").write_bytes(whole[: int(len(whole) * share)])

    assert f"{place}/graph.onnx" in refused(place)


def test_external_data_that_is_not_there(place: Path):
    onnx.save(foreign.graph(), place / "graph.onnx", save_as_external_data=True, location="w.bin", size_threshold=8)
    (place / "w.bin").unlink()

    assert "w.bin" in refused(place)


def test_the_vocabulary_of_another_field(place: Path):
    """Of another size: the embedding table tells. Of the same size: rows of which it knows nothing, or --expect."""
    original = (place / "data" / "feature_vocab.json").read_text(encoding="utf-8")

    edit(place / "data" / "feature_vocab.json", lambda v: {**v, "ad": v["context"]})
    edit(place / "data" / "feature_map.json", _sizes({"ad": 5}))
    assert "its embedding table has 32 rows, and the vocabulary of field 'ad' has 5 ids" in refused(place)

    (place / "data" / "feature_vocab.json").write_text(original)
    edit(place / "data" / "feature_map.json", _sizes({"ad": 32}))
    edit(
        place / "data" / "feature_vocab.json",
        lambda v: {**v, "ad": {f"other-{token}" if token[0] == "a" else token: i for token, i in v["ad"].items()}},
    )
    assert "field 'ad': none of its" in refused(place, expect=None)

    edit(
        place / "data" / "feature_vocab.json",
        lambda v: {
            **v,
            "ad": {token: (i % 30) + 1 if token[0] != "_" else i for token, i in json.loads(original)["ad"].items()},
        },
    )
    assert "column 'said': expected" in refused(place)


def _sizes(changed: dict[str, int]) -> Callable[[Any], Any]:
    def change(found: Any) -> Any:
        for part in found["features"]:
            for name, facts in part.items():
                facts["vocab_size"] = changed.get(name, facts["vocab_size"])
        return found

    return change


def test_ids_that_the_table_has_no_row_for(place: Path):
    foreign.write_lists(place / "lists")
    for name in foreign.NAMES:
        ids = {f"{token}": id_ for token, id_ in foreign.vocabulary(name).items() if not str(token).startswith("__")}
        extra = {"ids": ids, "missing": 0, "unknown": len(ids) + (40 if name == "ad" else 1)}
        (place / "lists" / f"{name}.json").write_text(json.dumps(extra))

    assert "field 'ad': its vocabulary gives ids up to 70" in refused(place, vocabularies=place / "lists")


def test_a_list_kept_at_the_other_end_shows_in_the_predictions_expected(place: Path):
    (place / "schema.yaml").write_text(foreign.SCHEMA.replace("keep: first", "keep: last"))

    assert "All of those have a list of 'tags': does `keep` name the end that the library keeps" in refused(place)


def test_a_missing_value_that_stands_for_another_shows_in_the_predictions_expected(place: Path):
    """The rows that differ are searched for what they share, and the place of the worst is named."""
    said = refused(place, fills={"hour": "23"})

    assert "All of those have no 'hour': what does the library put in its place" in said
    found = re.match(rf"{place}/rows\.csv:(\d+): column 'said': expected", said)
    assert found is not None
    assert foreign.raw_rows()[int(found[1]) - 2]["hour"] is None


def test_a_list_of_another_length(place: Path):
    (place / "schema.yaml").write_text(foreign.SCHEMA.replace("max_length: 2", "max_length: 4"))

    assert "max_len 2, and the schema says max_length: 4" in refused(place)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "Not A Name"}, "--name Not A Name: expected a-z"),
        ({"fills": {"adx": "0"}}, "--fill-na adx: the schema has no such field"),
        ({"renamed": {"ad": "nowhere"}}, "--input ad=nowhere: the graph has no input 'nowhere'"),
        ({"allow_unknown": ["adx"]}, "--allow-unknown adx"),
        ({"expect": "sayed"}, "expected a column 'sayed'"),
        ({"vocabularies": None}, "expected its vocabulary, got no --vocabularies"),
    ],
)
def test_an_option_that_names_what_is_not_there(changes: dict[str, Any], said: str, place: Path):
    assert said in refused(place, **changes)


def test_rows_that_are_none(place: Path):
    (place / "rows.csv").write_text("click,context,hour,visited,ad,price,tags,position,said\n")
    assert "no rows that can be read" in refused(place)
    (place / "rows.jsonl").write_text('{"ad": "a1"}\n{"ad": 7}\n')
    assert "expected a column" in refused(place, rows=place / "rows.jsonl")
    rows = [json.dumps({**row, "said": 0.5}) for row in foreign.raw_rows(3)]
    (place / "rows.jsonl").write_text("\n".join(rows).replace('"ad": "', '"ad": 7, "was": "', 1))
    assert "rows.jsonl:1: column 'ad': expected string or null, got 7" in refused(place, rows=place / "rows.jsonl")
    (place / "rows.jsonl").write_text("\n".join(rows).replace('"ad": "', '"ad": "\\ud800', 1))
    assert "rows.jsonl:1: column 'ad': expected string or null" in refused(place, rows=place / "rows.jsonl")
    (place / "rows.jsonl").write_text("\n".join([*rows, "{"]))
    assert "rows.jsonl:4: expected a JSON object" in refused(place, rows=place / "rows.jsonl")


def test_a_contract_graph_for_another_schema(place: Path):
    onnx.save(foreign.contract_graph(), place / "graph.onnx")
    foreign.write_lists(place / "lists")
    (place / "schema.yaml").write_text(
        "\n".join(line for line in foreign.SCHEMA.splitlines() if "visited" not in line).replace(
            "     encoding: {method: vocabulary}}\n  - {name: ad,", "  - {name: ad,", 1
        )
    )
    (place / "lists" / "visited.json").unlink()

    said = refused(place, vocabularies=place / "lists", probability=None)

    assert "expected the contract's inputs context, candidates, request_index, tags_ids, tags_offsets" in said


def test_two_outputs_that_contradict_each_other(place: Path):
    model = foreign.graph(outputs=["logit", "y_pred"])
    for node in model.graph.node:
        if node.op_type == "Sigmoid":
            node.input[0] = "twice"
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([2], np.float32), "two"))
    model.graph.node.insert(len(model.graph.node) - 1, helper.make_node("Mul", ["logit", "two"], ["twice"]))
    onnx.save(model, place / "graph.onnx")

    assert "Is the output of --logit the logit of that of --probability?" in refused(place, logit="logit", expect=None)
