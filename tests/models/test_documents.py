"""Text that people write: JSON or YAML, never quietly halved, never run."""

import re

import pytest

from models.documents import DocumentError, parse_document


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": [1, 2.5, null, true, "x"]}', {"a": [1, 2.5, None, True, "x"]}),
        ("a: [1, 2.5, null, true, x]", {"a": [1, 2.5, None, True, "x"]}),
        ("common: &c {x: 1, y: 2}\na: {<<: *c, x: 3}", {"common": {"x": 1, "y": 2}, "a": {"x": 3, "y": 2}}),
        ("", None),
    ],
)
def test_json_and_yaml_say_the_same(text: str, expected: object):
    """In YAML also `<<`, whose keys are defaults: writing one of them again overrides it and is no mistake."""
    assert parse_document(text) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": {"b": 1, "b": 2}}', "key 'b' is written twice"),
        ("a: 1\nb: {c: 1, c: 2}", "key 'c' is written twice (line 2, column 4)"),
        ("{1: 2, 1: 3}", "key 1 is written twice (line 1, column 1)"),
        ("a: [", "neither JSON nor YAML: expected the node content, but found '<stream end>' (line 1, column 5)"),
        ("a: 1\n  b: 2", "neither JSON nor YAML: mapping values are not allowed here (line 2, column 4)"),
        ("\x00", "neither JSON nor YAML: unacceptable character"),
        ("a: &x [*x]", "neither JSON nor YAML: found unconstructable recursive node (line 1, column 4)"),
        ("!!python/object/apply:os.getcwd []", "neither JSON nor YAML: could not determine a constructor"),
        ("? [1]\n: 2", "cannot be read: unhashable type: 'list'"),
        ("a: 2022-13-45", "cannot be read: month must be in 1..12"),
        ("!!int ''", "cannot be read: "),
        ("1" * 5000, "cannot be read: Exceeds the limit"),
        ("[" * 100_000, "cannot be read: maximum recursion depth exceeded"),
        ("a: " + "[" * 900, "nested more than 100 deep"),
        ("- " * 900, "nested more than 100 deep"),
    ],
)
def test_text_that_cannot_be_taken_at_its_word_is_refused(text: str, reason: str):
    """With what is wrong, and the line where there is one."""
    with pytest.raises(DocumentError, match=re.escape(reason)):
        parse_document(text)
