"""What is wrong with a document, said to the person who wrote it."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from models.problems import problems_of


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Cat(_Part):
    kind: Literal["cat"]
    lives: int = Field(9, ge=1, le=9)


class Dog(_Part):
    kind: Literal["dog"]
    tricks: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> "Dog":
        if "fetch" not in self.tricks:
            raise ValueError("a dog fetches: expected fetch among its tricks")
        return self


Pet = Annotated[Cat | Dog, Field(discriminator="kind")]


class Home(_Part):
    pets: tuple[Pet, ...] = Field(min_length=1)
    rooms: dict[str, Pet | None] = {}
    door: int | str = 1
    area: float = Field(1, gt=0, le=1000)
    style: Literal["old", "new"] = "old"
    code: str = Field("aa", pattern="^[a-z]+$", max_length=5)
    shape: Mapping[str, list[int]] = {}


CAT = {"kind": "cat"}


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({}, ["pets: is missing"]),
        ({"pets": []}, ["pets: expected at least 1 of them, got an empty list"]),
        ({"pets": 3}, ["pets: expected a list, got 3"]),
        ({"pets": [CAT, {"kind": "cat", "lives": 10}]}, ["pets[1].lives: expected at most 9, got 10"]),
        ({"pets": [{"kind": "cat", "lives": 0}]}, ["pets[0].lives: expected at least 1, got 0"]),
        (
            {"pets": [{"kind": "cat", "live": 3}]},
            ["pets[0].live: unknown key. Did you mean lives? Known here: kind, lives"],
        ),
        ({"pets": [{"kind": "cat", "tricks": []}]}, ["pets[0].tricks: unknown key. Known here: kind, lives"]),
        ({"pets": [{"kind": "cow"}]}, ["pets[0].kind: expected one of 'cat', 'dog', got 'cow'"]),
        ({"pets": [{}]}, ["pets[0].kind: is missing"]),
        ({"pets": [{"kind": "dog"}]}, ["pets[0]: a dog fetches: expected fetch among its tricks"]),
        ({"pets": [{"kind": "dog", "tricks": [3]}]}, ["pets[0].tricks[0]: expected text, got 3"]),
        ({"rooms": {"hall": {"kind": "cat", "lives": None}}}, ["rooms.hall.lives: expected a whole number, got null"]),
        ({"rooms": {"cat": {"kind": "cat", "x": 1}}}, ["rooms.cat.x: unknown key. Known here: kind, lives"]),
        ({"rooms": {"hall": "cat"}}, ["rooms.hall: expected a mapping, got 'cat'"]),
        ({"door": [1]}, ["door: expected a whole number or text, got a list"]),
        ({"area": 0}, ["area: expected more than 0, got 0"]),
        ({"area": 1e9}, ["area: expected at most 1000, got 1000000000.0"]),
        ({"area": "x" * 100}, [f"area: expected a number, got '{'x' * 58}…"]),
        ({"style": True}, ["style: expected 'old' or 'new', got true"]),
        ({"code": "A"}, ["code: expected text that matches ^[a-z]+$, got 'A'"]),
        ({"code": "abcdef"}, ["code: expected text of at most 5 characters, got 'abcdef'"]),
        ({"shape": {"a": [1, {}]}}, ["shape.a[1]: expected a whole number, got a mapping"]),
        ({"roms": {}, "area": None}, ["area: expected a number, got null", "roms: unknown key. Did you mean rooms?"]),
    ],
)
def test_a_problem_names_the_key_what_was_expected_and_what_came(document: dict[str, Any], expected: list[str]):
    """The path is as the document has it; nothing speaks of unions, inputs or value errors."""
    with pytest.raises(ValidationError) as caught:
        Home.model_validate({"pets": [CAT]} | document if document else {})

    said = [str(problem) for problem in problems_of(caught.value, Home)]

    assert len(said) == len(expected)
    assert all(found.startswith(start) for found, start in zip(said, expected, strict=True)), said


def test_a_document_that_is_no_mapping_at_all_is_one_problem():
    with pytest.raises(ValidationError) as caught:
        Home.model_validate("home")

    assert [str(problem) for problem in problems_of(caught.value, Home)] == ["expected a mapping, got 'home'"]
