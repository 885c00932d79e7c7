"""What can be wrong with a schema, a value or a bundle.

    ModelsError
    ├── SchemaError         a schema file that cannot be read or that contradicts itself
    ├── VocabularyError     a field's values or edges that do not fit its schema
    ├── EncodeError         a value whose type does not fit its field; carries field, row, expected and got
    ├── BundleError         a bundle that is damaged, incomplete or not ours; carries path and reason
    └── ModelNotFoundError  no such model or version in the repository

Errors carry facts, not HTTP codes. An `EncodeError` never holds the value at fault, only its type, so it can
be sent to a client as it is.
"""

from __future__ import annotations

from pathlib import Path


class ModelsError(Exception):
    """Base of every error this room raises on purpose."""


class SchemaError(ModelsError):
    """A schema that cannot be used; the message says where, what was expected and what to do."""


class VocabularyError(ModelsError):
    """What an encoder is given for one field does not fit the schema; carries `field` and `reason`."""

    def __init__(self, field: str, reason: str) -> None:
        self.field = field
        self.reason = reason
        super().__init__(f"field '{field}': {reason}")


class EncodeError(ModelsError):
    """A value, column or row that does not fit its field.

    `field` is the field's name, or None where a whole row is at fault; `row` the index of the candidate, None
    in the context and for a whole column; `expected` and `got` are words for types ("an integer", "a list").
    """

    def __init__(self, field: str | None, expected: str, got: str, row: int | None = None) -> None:
        self.field = field
        self.expected = expected
        self.got = got
        self.row = row
        subject = f"field '{field}': " if field is not None else ""
        place = f" (row {row})" if row is not None else ""
        super().__init__(f"{subject}expected {expected}, got {got}{place}")


class BundleError(ModelsError):
    """A bundle that must not be served: `path` is the file at fault, `reason` what is wrong with it."""

    def __init__(self, path: Path | str, reason: str) -> None:
        self.path = Path(path)
        self.reason = reason
        super().__init__(f"{path}: {reason}")


class ModelNotFoundError(ModelsError):
    """The repository has no such model, or the model no such version."""
