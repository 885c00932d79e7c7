"""What a column of a sample looks like: enough to propose a type, and to say what is odd about it.

Facts only; what they mean for a schema is decided in `infer.py`. Text is looked at once a distinct value.
"""

import re
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from models.values import LARGEST_INTEGER, SMALLEST_INTEGER, ValueType

Form = Literal["integer", "integral", "decimal", "zeros", "huge", "word", "blank_word", "padded", "text"]
"""What a text says: digits; 3.0; another number; digits led by zeros; beyond 64 bits; true or false; a word for
nothing such as NA; a number with blanks around it; anything else."""

_DIGITS = re.compile(r"[+-]?\d+", re.ASCII)
_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_WORDS = {"true", "false"}
_BLANK_WORDS = {"na", "n/a", "nan", "null", "none", "nil", "\\n", "-", "?", "undefined", "missing", "#n/a"}


def form_of(text: str) -> Form:
    """The form of one cell that is not empty."""
    if _DIGITS.fullmatch(text):
        digits = text.lstrip("+-")
        if len(digits) > 1 and digits[0] == "0":
            return "zeros"
        fits = len(digits) < 21 and SMALLEST_INTEGER <= int(text) <= LARGEST_INTEGER
        return "integer" if fits else "huge"
    if _NUMBER.fullmatch(text):
        number = float(text)
        if number.is_integer() and SMALLEST_INTEGER <= number < 2.0**64:
            return "integral"
        return "decimal" if abs(number) < float("inf") else "text"
    if text.lower() in _WORDS:
        return "word"
    if text.strip().lower() in _BLANK_WORDS:
        return "blank_word"
    return "padded" if _NUMBER.fullmatch(text.strip()) else "text"


@dataclass(frozen=True)
class Profile:
    """A column of n sampled rows. Lists are described by their elements."""

    name: str
    array: pa.Array
    form: Literal["text", "number", "boolean", "time", "lists", "other", "empty"]
    """What holds the values: text cells, or a typed column."""
    rows: int
    values: list[str] | list[int] | list[float] | list[bool]
    """Distinct values that are present, in order of appearance (of a list column: its distinct elements)."""
    codes: npt.NDArray[np.int64]
    """The index in `values` of each row's value, -1 where it is missing [n]; of a list column, of each element."""
    lengths: npt.NDArray[np.int64] | None = None
    """Elements of each row, of a list column [n]."""
    counts: npt.NDArray[np.int64] = field(init=False)
    """How often each of `values` stands there."""

    def __post_init__(self) -> None:
        counts = np.bincount(self.codes[self.codes >= 0], minlength=len(self.values))
        object.__setattr__(self, "counts", counts)

    @property
    def distinct(self) -> int:
        return len(self.values)

    @property
    def present(self) -> int:
        """Rows (or elements) that have a value."""
        return int(self.counts.sum())

    @property
    def missing_share(self) -> float:
        if self.lengths is not None:
            return float((self.lengths == 0).mean()) if self.rows else 0.0
        return 1 - self.present / max(1, self.rows)

    @cached_property
    def forms(self) -> dict[Form, int]:
        """Rows by form of their text; of text columns only."""
        found: Counter[Form] = Counter()
        for value, count in zip(self.values, self.counts.tolist(), strict=True):
            found[form_of(str(value))] += count
        return dict(found)

    @cached_property
    def type(self) -> ValueType:
        """The type that fits best; what does not fit it is counted by `misfits`."""
        if self.form == "boolean":
            return "boolean"
        if self.form == "number" or (self.lengths is not None and self.values and not isinstance(self.values[0], str)):
            if all(isinstance(v, bool) for v in self.values):
                return "boolean"
            integral = all(isinstance(v, int) or float(v).is_integer() for v in self.values)
            return "integer" if integral and all(abs(v) < 2.0**64 for v in self.values) else "float"  # type: ignore[arg-type]
        if self.form in ("empty", "other", "time"):
            return "string"
        forms, present = self.forms, max(1, self.present)
        if forms.get("word", 0) and forms.get("word", 0) + forms.get("blank_word", 0) == present:
            return "boolean"
        numbers = sum(forms.get(f, 0) for f in ("integer", "integral", "decimal"))
        odd = present - numbers - forms.get("blank_word", 0)
        if not numbers or forms.get("zeros", 0) or forms.get("huge", 0) or odd > 0.05 * present:
            return "string"
        return "float" if forms.get("decimal", 0) else "integer"

    @cached_property
    def misfits(self) -> tuple[int, str]:
        """(rows whose text is no value of `type`, the first such text)."""
        if self.form != "text" or self.type == "string":
            return 0, ""
        good = {"boolean": {"word"}, "integer": {"integer", "integral"}, "float": {"integer", "integral", "decimal"}}
        bad = [
            (str(value), count)
            for value, count in zip(self.values, self.counts.tolist(), strict=True)
            if form_of(str(value)) not in good[self.type]
        ]
        return sum(count for _, count in bad), bad[0][0] if bad else ""

    @cached_property
    def numbers(self) -> npt.NDArray[np.float64]:
        """The values as numbers [distinct], NaN for a misfit; for types integer and float."""
        return np.array([_number(v) for v in self.values], np.float64)

    def examples(self, count: int = 3) -> list[object]:
        """The most frequent values."""
        order = np.argsort(-self.counts, kind="stable")[:count]
        return [self.values[i] for i in order.tolist()]


def profile_of(name: str, array: pa.Array) -> Profile:
    """A column of any Arrow type, described."""
    kind = array.type
    n = len(array)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        lengths = np.array([len(row) if row is not None else 0 for row in array.to_pylist()], np.int64)
        elements = profile_of(name, array.flatten())
        if elements.form not in ("text", "number", "boolean", "empty"):
            return Profile(name, array, "other", n, [], np.full(n, -1))
        return Profile(name, array, "lists", n, elements.values, elements.codes, lengths)
    if pa.types.is_null(kind):
        return Profile(name, array, "empty", n, [], np.full(n, -1))
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return _by_value(name, array, "time")
    if pa.types.is_boolean(kind):
        return _by_value(name, array, "boolean")
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return _by_value(name, array.cast(pa.float64()) if pa.types.is_decimal(kind) else array, "number")
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return _by_value(name, array.cast(pa.string()), "text")
    return Profile(name, array, "other", n, [], np.full(n, -1))


def _by_value(name: str, array: pa.Array, form: Literal["text", "number", "boolean", "time"]) -> Profile:
    coded = array.dictionary_encode()
    values = coded.dictionary.to_pylist()
    present = [v is not None and v == v and v != "" for v in values]
    places = np.where(present, np.cumsum(present) - 1, -1).astype(np.int64)
    codes = np.append(places, -1)[coded.indices.fill_null(len(values)).to_numpy(zero_copy_only=False)]
    kept = [v if not hasattr(v, "isoformat") else str(v) for v, p in zip(values, present, strict=True) if p]
    return Profile(name, array, form, len(array), kept, codes)


def _number(value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except ValueError:
        return float("nan")
