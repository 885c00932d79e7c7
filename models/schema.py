"""FeatureSchema: what a log's columns mean, and which fields a model takes. One file, YAML or JSON.

Every key is explained beside its attribute and shown in `docs/schema.md`. A schema says nothing about values
that were seen: those are the encoder's (`encoder.py`), fitted on training rows.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from models.documents import DocumentError, parse_document
from models.errors import SchemaError
from models.formats import format_refusal
from models.problems import Problem, dotted, problems_of, shown
from models.values import EXPECTED, ValueType, WrongTypeError, check_value, describe

SCHEMA_FORMAT = 1
"""The schema format this code reads and writes."""

LARGEST_TABLE = 100_000_000
"""Bound on `max_size` and `buckets`: more ids than this in one field is a mistake, not a wish."""

NAME_PATTERN = r"^[A-Za-z_][A-Za-z0-9_.-]{0,63}$"
"""Field names become file names, graph inputs and metric labels."""

Role: TypeAlias = Literal["context", "candidate", "training_only"]
Kind: TypeAlias = Literal["categorical", "numeric", "sequence"]
Derivation: TypeAlias = Literal["hour", "weekday", "is_weekend"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


class VocabularyEncoding(_Part):
    """One id a value, for values seen at least `min_count` times in training rows."""

    method: Literal["vocabulary"]
    min_count: int = Field(default=1, ge=1)
    """A value seen fewer times than this is unknown (inclusive: seen exactly this often, it is known)."""
    max_size: int | None = Field(default=None, ge=1, le=LARGEST_TABLE)
    """Keep this many values at most, the most frequent first; null keeps all."""


class HashEncoding(_Part):
    """`buckets` ids shared by all values, known or not: needs no vocabulary, never answers unknown."""

    method: Literal["hash"]
    buckets: int = Field(ge=1, le=LARGEST_TABLE)
    seed: int = Field(default=0, ge=0)


class QuantileEncoding(_Part):
    """At most `buckets` ranges holding about equally many training rows each."""

    method: Literal["quantile"]
    buckets: int = Field(default=32, ge=2, le=65536)


class LogBucketEncoding(_Part):
    """One range for negative x, one for [0, 1), then one for each floor(ln(x)^2), clamped.

    Clamped to `buckets` ranges in all, and to those between the smallest and the largest training value: a
    value beyond them shares the outermost id that training has seen.
    """

    method: Literal["log_bucket"]
    buckets: int = Field(default=512, ge=3, le=2048)
    """512 reach to 6e9 with a relative width of 2% there. The default suits counts and prices alike."""


class CriteoX4Encoding(_Part):
    """The rule of the public Criteo_x4 benchmark: floor(ln(x)^2) for x > 2, else x itself; then a vocabulary.

    Made for that recipe alone: 3 and 1 share an id by its rule. `log_bucket` is the better choice elsewhere.
    """

    method: Literal["criteo_x4"]
    min_count: int = Field(default=10, ge=1)
    max_size: int | None = Field(default=None, ge=1, le=LARGEST_TABLE)


Encoding: TypeAlias = Annotated[
    VocabularyEncoding | HashEncoding | QuantileEncoding | LogBucketEncoding | CriteoX4Encoding,
    Field(discriminator="method"),
]

_METHODS: dict[str, tuple[str, ...]] = {
    "categorical": ("vocabulary", "hash"),
    "sequence": ("vocabulary", "hash"),
    "numeric": ("quantile", "log_bucket", "criteo_x4"),
}
_DERIVED_TYPES: dict[str, str] = {"hour": "integer", "weekday": "integer", "is_weekend": "boolean"}


class FieldSchema(_Part):
    """One field: where its values come from, what they are and how they become ids."""

    name: str = Field(pattern=NAME_PATTERN)
    """What requests, graphs, metrics and files call it."""
    column: str | None = Field(default=None, min_length=1)
    """The log's column; the field's own name when null. Two fields may read one column."""
    derived_from: Literal["timestamp"] | None = None
    """Set where the value is computed from the log's timestamp. A request still has to bring it."""
    derive: Derivation | None = None
    """hour 0-23, weekday 0-6 with Monday 0, or is_weekend; in the timestamp's `timezone`."""
    type: ValueType
    """What a value (an element of a sequence) is. Text is parsed to it; JSON of another type is an error."""
    role: Role
    """context: one value a request. candidate: one value an ad. training_only: known in the log alone."""
    kind: Kind
    encoding: Encoding
    separator: str | None = Field(default=None, min_length=1)
    """Sequences: what separates elements in a text cell. Null where the log has real lists."""
    max_length: int | None = Field(default=None, ge=1, le=10_000)
    """Sequences: elements kept, after missing ones are dropped."""
    keep: Literal["first", "last"] = "last"
    """Sequences: which end of a longer one is kept."""
    serving_value: bool | int | float | str | None = None
    """training_only: what stands in when serving; null stands for missing, but has to be written."""

    @property
    def source_column(self) -> str | None:
        """The log's column this field reads, or None where it is derived from the timestamp."""
        return None if self.derived_from else self.column or self.name

    @property
    def is_sequence(self) -> bool:
        """Whether its value is a list, pooled in the graph."""
        return self.kind == "sequence"

    @model_validator(mode="after")
    def _check(self) -> FieldSchema:
        for problem in (self._encoding_problem(), self._role_problem(), self._derived_problem()):
            if problem:
                raise ValueError(problem)
        return self

    def _encoding_problem(self) -> str | None:
        allowed = _METHODS[self.kind]
        if self.encoding.method not in allowed:
            return (
                f"a {self.kind} field is encoded by {' or '.join(allowed)}, not by {self.encoding.method}; "
                "change its kind or its encoding"
            )
        if self.kind == "numeric" and self.type not in ("integer", "float"):
            return f"a numeric field is an integer or a float, not a {self.type}; make it categorical"
        if self.kind == "sequence":
            if self.max_length is None:
                return "a sequence needs max_length"
        elif self.separator is not None or self.max_length is not None or self.keep != "last":
            return f"separator, max_length and keep are for sequences, and this field is {self.kind}"
        return None

    def _role_problem(self) -> str | None:
        if self.role != "training_only":
            if self.serving_value is not None:
                return f"serving_value is for training_only fields, and this one is {self.role}"
            return None
        if self.kind == "sequence":
            return "a training_only field cannot be a sequence; give one value"
        if "serving_value" not in self.model_fields_set:
            return "a training_only field needs serving_value: what stands in when serving (null: missing)"
        try:
            check_value(self.type, self.serving_value)
        except WrongTypeError as error:
            return f"serving_value: expected {EXPECTED[self.type]}, got {error.got}"
        return None

    def _derived_problem(self) -> str | None:
        if self.derived_from is None:
            return "derive needs derived_from: timestamp" if self.derive else None
        if self.derive is None:
            return "derived_from needs derive: hour, weekday or is_weekend"
        if self.column is not None:
            return "a derived field reads no column of its own; leave column out"
        if self.role != "context" or self.kind == "sequence":
            return "a derived field is a context field and no sequence"
        expected = _DERIVED_TYPES[self.derive]
        return None if self.type == expected else f"{self.derive} is of type {expected}, not {self.type}"


class Label(_Part):
    """The column that says whether the impression was clicked: 0 or 1, true or false."""

    column: str = Field(min_length=1)
    positive: None = None
    """Only null: a rating or a dwell time is made a column of 0 and 1 before it comes here."""

    @field_validator("positive", mode="before")
    @classmethod
    def _refuse_thresholds(cls, positive: object) -> object:
        if positive is not None:
            raise ValueError("a threshold is not supported: make the column one of 0 and 1, then leave this null")
        return positive


class Timestamp(_Part):
    """When an impression happened: parts rows by time, and feeds derived fields."""

    column: str = Field(min_length=1)
    format: str = "iso8601"
    """epoch, iso8601, or a strptime pattern such as %y%m%d%H."""
    unit: Literal["s", "ms", "us"] = "s"
    """Of an epoch."""
    timezone: str = Field(default="UTC", pattern=r"^[A-Za-z0-9_+/-]+$")
    """IANA name. Times without an offset are read in it, and derived fields are computed in it."""

    @model_validator(mode="after")
    def _check(self) -> Timestamp:
        if self.format not in ("epoch", "iso8601") and "%" not in self.format:
            raise ValueError(f"expected epoch, iso8601 or a strptime pattern with %, got {self.format!r}")
        return self


class Unit(_Part):
    """The user or device: what an experiment hashes, and what parts validation rows."""

    column: str = Field(min_length=1)


class Truth(_Part):
    """The known true click probability of a synthetic log. Never a feature; metrics in expectation use it."""

    column: str = Field(min_length=1)


class FeatureSchema(_Part):
    """A log's meaning, whole. Frozen; two schemas are equal where every key is."""

    format_version: Literal[1] = 1
    label: Label
    timestamp: Timestamp | None = None
    unit: Unit | None = None
    truth: Truth | None = None
    max_bad_rows: float = Field(default=0.001, ge=0, le=1)
    """Share of unreadable rows above which a log is refused."""
    fields: tuple[FieldSchema, ...] = Field(min_length=1, strict=False)

    @model_validator(mode="after")
    def _check(self) -> FeatureSchema:
        # Names become file names, and some file systems do not tell case apart.
        for name, count in Counter(field.name.lower() for field in self.fields).items():
            if count > 1:
                raise ValueError(f"field '{name}' is named {count} times; names differ in more than case")
        if all(field.role == "training_only" for field in self.fields):
            raise ValueError("every field is training_only, so nothing would be left to serve")
        reserved = {self.label.column: "label"}
        if self.truth is not None:
            reserved[self.truth.column] = "truth"
        for field in self.fields:
            if field.derived_from and self.timestamp is None:
                raise ValueError(f"field '{field.name}' is derived from the timestamp, but none is named")
            if field.source_column in reserved:
                raise ValueError(
                    f"field '{field.name}' reads column '{field.source_column}', which is the "
                    f"{reserved[field.source_column]}: a model given the answer learns nothing"
                )
        return self

    @cached_property
    def by_name(self) -> Mapping[str, FieldSchema]:
        """Every field by its name, in schema order."""
        return {field.name: field for field in self.fields}

    @cached_property
    def context_fields(self) -> tuple[FieldSchema, ...]:
        """Fields with one value a request, sequences among them."""
        return tuple(field for field in self.fields if field.role == "context")

    @cached_property
    def candidate_fields(self) -> tuple[FieldSchema, ...]:
        """Fields with one value an ad, sequences among them."""
        return tuple(field for field in self.fields if field.role == "candidate")

    @cached_property
    def training_only_fields(self) -> tuple[FieldSchema, ...]:
        """Fields a request never has; a constant stands in."""
        return tuple(field for field in self.fields if field.role == "training_only")

    @cached_property
    def sequence_fields(self) -> tuple[FieldSchema, ...]:
        """Context and candidate fields that are lists: ids and offsets, outside the id matrices."""
        return tuple(field for field in self.fields if field.is_sequence)

    @cached_property
    def context_id_fields(self) -> tuple[FieldSchema, ...]:
        """The Fc columns of the graph's `context` input: context fields that are no sequence."""
        return tuple(field for field in self.context_fields if not field.is_sequence)

    @cached_property
    def candidate_id_fields(self) -> tuple[FieldSchema, ...]:
        """The Fa columns of the graph's `candidates` input: candidate fields that are no sequence."""
        return tuple(field for field in self.candidate_fields if not field.is_sequence)

    @classmethod
    def from_text(cls, text: str, source: Path | str = "schema") -> FeatureSchema:
        """A schema from JSON text, or from YAML where `yaml` is installed.

        `source` names the file in errors. Raises `SchemaError` for text that is neither, a key written twice,
        an unknown or missing key, a value out of bounds, and fields that contradict one another.
        """
        try:
            document = parse_document(text)
        except DocumentError as error:
            raise SchemaError(f"{source}: {error}") from None
        if not isinstance(document, dict):
            raise SchemaError(f"{source}: expected an object with label and fields, got {describe(document)}")
        refusal = format_refusal("schema", document.get("format_version", SCHEMA_FORMAT), SCHEMA_FORMAT)
        if refusal:
            raise SchemaError(f"{source}: format_version: {refusal}")
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            lines = [f"{source}: {_named(problem, document)}" for problem in problems_of(error, cls)]
            raise SchemaError("\n".join(lines)) from None

    @classmethod
    def from_file(cls, path: Path) -> FeatureSchema:
        """`from_text` of a file; a file that cannot be read is a `SchemaError` too."""
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise SchemaError(f"{path}: cannot be opened: {error.strerror or error}; expected a schema") from None
        except UnicodeDecodeError as error:
            raise SchemaError(f"{path}: is no UTF-8 text: {error}") from None
        return cls.from_text(text, path)

    def to_json(self) -> str:
        """Every key written out, as a bundle's schema.json holds it; `from_text` reads it back."""
        return json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _named(problem: Problem, document: dict[str, Any]) -> str:
    """The problem with its field's name beside the place in the list."""
    place = dotted(problem.path)
    if len(problem.path) >= 2 and problem.path[0] == "fields":
        entry = document["fields"][problem.path[1]]
        name = entry.get("name") if isinstance(entry, dict) else None
        place += f" ({shown(name)})" if isinstance(name, str) else ""
    return f"{place}: {problem.message}" if place else problem.message
