"""Where a log is wrong, and how much of it may be: places, counts, and the refusal that names them.

A reader reports every row it cannot read to a `Faults`, which keeps the count and the first place of each reason and
refuses a file in which more than `max_bad_rows` of the rows are bad. Nothing is skipped without being counted here.
What is wrong beyond counting (a header, a label, a truncated file) is a `DataError` raised at once by whoever sees it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from training.errors import DataError


@dataclass(frozen=True, order=True)
class Place:
    """A row of a log as a person finds it, counted from 1: `clicks.csv:17` is a line, `clicks.parquet row 17` a row."""

    file: str
    number: int
    unit: str = "line"

    def __str__(self) -> str:
        return f"{self.file}:{self.number}" if self.unit == "line" else f"{self.file} {self.unit} {self.number}"


@dataclass
class Count:
    """How often something happened, and where it did first."""

    count: int
    first: Place
    example: str = ""

    def to_json(self) -> dict[str, object]:
        return {"count": self.count, "first": str(self.first)} | ({"example": self.example} if self.example else {})


@dataclass
class Faults:
    """Bad rows of one pass over a log, by reason and by file.

    `max_bad_rows` is a share of a file's rows; None counts without ever refusing (a file that is being
    looked at, not trained on).
    """

    max_bad_rows: float | None = 0.001
    reasons: dict[str, Count] = field(default_factory=dict)
    blank_lines: int = 0
    _rows: dict[str, int] = field(default_factory=dict)
    _bad: dict[str, Count] = field(default_factory=dict)

    @property
    def bad_rows(self) -> int:
        return sum(c.count for c in self._bad.values())

    @property
    def rows(self) -> int:
        """Rows met so far, bad ones included."""
        return sum(self._rows.values())

    def seen(self, file: str, rows: int) -> None:
        """`rows` rows of this file were met, bad ones included."""
        self._rows[file] = self._rows.get(file, 0) + rows

    def bad(self, place: Place, reason: str, detail: str, count: int = 1) -> None:
        """`count` rows, the first of them at `place`, are skipped; `reason` groups them, `detail` is of the first."""
        for group, key in ((self.reasons, reason), (self._bad, place.file)):
            known = group.setdefault(key, Count(0, place, detail))
            known.count += count
            if place.file == known.first.file and place.number < known.first.number:
                known.first, known.example = place, detail

    def close(self, file: str) -> None:
        """A file was read to its end: refuse it when too many of its rows were bad."""
        bad, rows = self._bad.get(file), self._rows.get(file, 0)
        if self.max_bad_rows is not None and bad is not None and bad.count > self.max_bad_rows * rows:
            raise DataError(
                f"{bad.first}: {bad.example}; {bad.count} of {rows} rows of this file cannot be read "
                f"({bad.count / rows:.2%}), more than max_bad_rows allows ({self.max_bad_rows:.2%}). "
                "Mend the file, or raise max_bad_rows in the schema"
            )

    def to_json(self) -> dict[str, object]:
        return {
            "rows": self.bad_rows,
            "reasons": {reason: count.to_json() for reason, count in sorted(self.reasons.items())},
            "blank_lines": self.blank_lines,
        }


def shown(value: object, limit: int = 60) -> str:
    """A value from a log as an error message shows it: quoted, one line, not longer than a line."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def closest(name: str, names: Mapping[str, object] | list[str] | tuple[str, ...]) -> str:
    """' Did you mean …?' for a name that is not among `names`, or nothing."""
    import difflib

    near = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else ""
