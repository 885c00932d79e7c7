"""The experiment file: what is valid, and that nothing in it is ever repaired."""

import json
import os
import re
import time
import tomllib
from decimal import Decimal
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from service.errors import ExperimentError
from service.experiments.file import Experiment, ExperimentFile, parse_experiments, read_experiments
from service.scoring.watch import SHIPPED
from tests.service.running import ROOT


def arm(name: str, weight: float = 0.5, **more: Any) -> dict[str, Any]:
    return {"name": name, "model": name, "weight": weight, **more}


def experiment(**more: Any) -> dict[str, Any]:
    return {"name": "e", "salt": "s", "default": True, "arms": [arm("a"), arm("b")], **more}


def parse(*experiments: dict[str, Any], **more: Any) -> Any:
    return parse_experiments(json.dumps({"format_version": 1, "experiments": experiments, **more}), "the file")


def test_the_shipped_experiment_is_ensemble_against_student():
    """The first one: ensemble is control, the student gets half, both follow their live version."""
    (shipped,) = read_experiments(SHIPPED).experiments

    assert [arm.name for arm in shipped.arms] == ["ensemble", "student"]
    assert shipped.control.name == "ensemble"
    assert [(owned.start, owned.stop) for owned in shipped.ranges()] == [(0, 5000), (5000, 10_000)]
    assert all(arm.follow for arm in shipped.arms)


def test_there_is_one_shipped_experiment():
    """What `make serve` names, what is installed with the package and what runs where no file is named is one file."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    files = [path for path in ROOT.glob("[ms]*/**/*.yaml") if "student-vs-ensemble" in path.read_text(encoding="utf-8")]

    assert files == [SHIPPED]
    assert f"EXPERIMENTS ?= {SHIPPED.relative_to(ROOT)}\n" in makefile
    assert SHIPPED.name in project["tool"]["setuptools"]["package-data"]["models"]


def test_yaml_and_json_say_the_same():
    """The same content in either language is the same file."""
    yaml_text = """
    format_version: 1
    experiments:
      - name: e
        salt: s
        default: true
        coverage: 0.57
        arms:
          - {name: a, model: a, weight: 0.5}
          - {name: b, model: b, weight: 0.5}
    """

    assert parse_experiments(yaml_text, "y") == parse(experiment(coverage=0.57))


def test_a_share_is_the_decimal_that_is_written():
    """0.57 is 57 hundredths."""
    assert parse(experiment(coverage=0.57)).default.coverage == Decimal("0.57")


INVALID: list[tuple[str, dict[str, Any], str]] = [
    ("weights below 1", experiment(arms=[arm("a", 0.5), arm("b", 0.4)]), "sum to 0.9, expected 1"),
    ("weights above 1", experiment(arms=[arm("a", 0.7), arm("b", 0.4)]), "sum to 1.1, expected 1"),
    (
        "a negative weight",
        experiment(arms=[arm("a", -0.5), arm("b", 1.5)]),
        "arms[0].weight: expected at least 0, got -0.5",
    ),
    ("a weight that is no whole bucket", experiment(arms=[arm("a", 0.33333), arm("b", 0.66667)]), "multiple of 0.0001"),
    ("a weight that is text", experiment(arms=[arm("a", weight="half"), arm("b")]), "expected a number, got 'half'"),  # type: ignore[arg-type]
    ("coverage above 1", experiment(coverage=1.01), "coverage: expected at most 1, got 1.01"),
    ("no arms", experiment(arms=[]), "at least 1"),
    ("an arm twice", experiment(arms=[arm("a"), arm("a")]), "arm 'a' stands twice"),
    ("a halted arm that is not there", experiment(halted=["c"]), "no arm is called 'c'"),
    ("control halted", experiment(halted=["a"]), "control, which cannot be halted"),
    ("a fallback that is not there", experiment(arms=[arm("a", fallback="x"), arm("b")]), "no arm is called 'x'"),
    ("a fallback to itself", experiment(arms=[arm("a", fallback="a"), arm("b")]), "cannot fall back to itself"),
    ("a shadow that is not there", experiment(shadow={"arm": "x", "sample": 0.1}), "no arm is called 'x'"),
    ("a version of 0", experiment(arms=[arm("a", version=0), arm("b")]), "whole number from 1, or latest"),
    ("a version that is a path", experiment(arms=[arm("a", version="../1"), arm("b")]), "number from 1, or latest"),
    ("follow with a number", experiment(arms=[arm("a", version=3, follow=True), arm("b")]), "needs version: latest"),
    ("a coverage that is no number", experiment(coverage=float("nan")), "expected a finite number, got nan"),
    ("a model name that is a path", experiment(arms=[arm("a", model="../a"), arm("b")]), "model: expected text that"),
    ("an upper case name", experiment(name="E"), "experiments[0].name: expected text that matches ^[a-z0-9]"),
    ("an unknown key", experiment(arms=[arm("a", wieght=1), arm("b")]), "unknown key. Did you mean weight?"),
    ("a weight in quotes", experiment(arms=[arm("a", weight="0.5"), arm("b")]), "expected a number, got '0.5'"),  # type: ignore[arg-type]
    ("a weight of true", experiment(arms=[arm("a", weight=True)]), "arms[0].weight: expected a number, got"),
    ("a phase beyond 31 bits", experiment(phase=1 << 31), "experiments[0].phase: expected at most 2147483647, got"),
    ("a phase of many digits", experiment(phase=10**4000), "experiments[0].phase: expected at most 2147483647, got"),
    ("a version beyond 31 bits", experiment(arms=[arm("a", version=1 << 64), arm("b")]), "at most 2147483647"),
    ("a bucket in quotes", experiment(layer={"name": "x", "buckets": ["0", 5]}), "expected a whole number, got '0'"),
    ("an empty salt", experiment(salt=""), "at least 1 character"),
    ("phase 0", experiment(phase=0), "experiments[0].phase: expected at least 1, got 0"),
    ("a layer that is not declared", experiment(layer={"name": "x"}), "no layer is called 'x'"),
    ("no default", experiment(default=False), "exactly one experiment with default: true, got 0"),
]


@pytest.mark.parametrize(("content", "message"), [case[1:] for case in INVALID], ids=[case[0] for case in INVALID])
def test_what_is_wrong_is_refused_and_named(content: dict[str, Any], message: str):
    """The error names the file and says what was expected."""
    with pytest.raises(ExperimentError, match="the file: ") as caught:
        parse(content)

    assert message in str(caught.value)
    assert not re.search("Value error|Input should|Extra inputs", str(caught.value))  # pydantic's own words


def test_two_experiments_may_not_share_a_name_a_salt_or_the_default():
    """Two of a name could not be told apart; two of a salt would assign the same units together."""
    other = experiment(name="f", salt="t", default=False)

    assert len(parse(experiment(), other).experiments) == 2
    for change, message in (
        ({"name": "e"}, "experiment 'e' stands twice"),
        ({"salt": "s"}, "has the salt of experiment 'e'"),
        ({"default": True}, "got 2"),
    ):
        with pytest.raises(ExperimentError, match=message):
            parse(experiment(), {**other, **change})


def test_experiments_of_one_layer_may_not_overlap():
    """Disjoint ranges are fine, in any order; a shared bucket is refused."""
    layers = [{"name": "l", "salt": "layer"}]
    low = experiment(layer={"name": "l", "buckets": [0, 5000]})
    high = experiment(name="f", salt="t", default=False, layer={"name": "l", "buckets": [5000, 10_000]})

    assert parse(high, low, layers=layers).assigner(parse(high, low, layers=layers).default).layer.owned.stop == 5000
    high["layer"]["buckets"] = [4999, 10_000]
    with pytest.raises(ExperimentError, match="'e' and 'f' overlap"):
        parse(high, low, layers=layers)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{",
        "format_version: 2\nexperiments: []",
        "experiments: []",
        '{"format_version": 1, "format_version": 1, "experiments": []}',
        "format_version: 1\nformat_version: 1\nexperiments: []",
        "a: &a [1]\nb: *a",
        "!!python/object/apply:os.system ['true']",
        "[" * 10_000,
        "format_version: 0x" + "f" * 9000,
        "{" + '"a":{' * 10_000,
    ],
)
def test_a_file_that_is_no_experiment_file_is_refused(text: str):
    """Broken, empty, duplicated, aliased, hostile or too deep: an error, never a crash."""
    with pytest.raises(ExperimentError, match=r"^the file: "):
        parse_experiments(text, "the file")


def test_a_file_that_cannot_be_read_is_refused_by_name(tmp_path: Path):
    """Absent, a folder, not UTF-8, or larger than any experiment file: the error names the path."""
    (tmp_path / "latin1").write_bytes(b"format_version: \xff")
    (tmp_path / "large").write_bytes(b"#" * (2 << 20))

    for name, message in (("none", "No such file"), ("", "directory"), ("latin1", "UTF-8"), ("large", "longer")):
        with pytest.raises(ExperimentError, match=message) as caught:
            read_experiments(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)


def test_a_pipe_or_a_folder_in_its_place_is_refused_at_once(tmp_path: Path):
    """Opening a pipe that nobody writes to would wait for ever, and with it everything else that is read."""
    pipe = tmp_path / "pipe.yaml"
    os.mkfifo(pipe)

    for path, message in ((pipe, "no regular file"), (tmp_path, "Is a directory")):
        with pytest.raises(ExperimentError, match=message):
            read_experiments(path)


@pytest.mark.parametrize("tag", ['!!int ""', '!!float ""', "!!bool maybe", "!!timestamp soon", "!!python/tuple [1]"])
def test_a_tag_that_its_value_does_not_fit_is_refused(tag: str):
    """However PyYAML fails over it."""
    with pytest.raises(ExperimentError, match="neither valid YAML nor valid JSON"):
        parse_experiments(f"salt: {tag}", "f")


def test_many_keys_are_compared_in_linear_time():
    """A file within its limit is read or refused in moments: while it is read nothing else is looked at."""

    def seconds(count: int) -> float:
        keys = [f'"{number}":1' for number in range(count)]
        began = time.thread_time()
        for given, message in ((keys, "format_version: is missing"), ([*keys, keys[7]], "stands twice")):
            with pytest.raises(ExperimentError, match=f"(?i){message}"):
                parse_experiments("{" + ",".join(given) + "}", "f")
        return time.thread_time() - began

    few = min(seconds(6_000) for _ in range(3))

    assert seconds(60_000) < 40 * few, (
        "ten times the keys would take a hundred times as long, were each compared with all"
    )


def test_yaml_that_is_deep_or_long_is_refused_at_once():
    """Its reader would take seconds, quadratic in the depth, and following the file would wait for it."""
    began = time.thread_time()

    for text, message in (
        ("[" * 3000 + "]" * 3000, "nested more than 32 deep"),
        ("a: " + "{a: " * 3000, "nested more than 32 deep"),
        ("- " * 3000, "nested more than 32 deep"),
        ("a: [1]\n" * 10_000, "longer than 65536 characters of YAML: write it as JSON"),
    ):
        with pytest.raises(ExperimentError, match=message):
            parse_experiments(text, "f")

    assert time.thread_time() - began < 1.0


def test_every_key_has_a_sentence():
    """`use_attribute_docstrings` carries them into the schema; a key without one is undocumented."""
    missing = [name for name, field in Experiment.model_fields.items() if not field.description]

    assert missing == ["shadow", "guard_rails", "analysis"]  # documented by their own classes


def keys_of(model: type[BaseModel]) -> set[str]:
    """Every key that a part of the file and the parts within it may have."""
    keys = set(model.model_fields)
    for field in model.model_fields.values():
        inner = [field.annotation, *get_args(field.annotation)]
        for kind in (part for each in inner for part in (each, *get_args(each))):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                keys |= keys_of(kind)
    return keys


def test_the_documented_file_is_valid_and_has_every_key():
    """docs/experiments.md shows the whole file; what it shows is accepted."""
    text = (ROOT / "docs" / "experiments.md").read_text(encoding="utf-8")
    example = text[text.index("```yaml\n") + 8 : text.index("```", text.index("```yaml\n") + 8)]

    file = parse_experiments(example, "the documentation")

    assert file.default.layer is not None
    shown = set(re.findall(r"(\w+):", re.sub(r"#.*", "", example)))
    assert shown == keys_of(ExperimentFile)
