"""A proposed schema as commented YAML: what `infer-schema` prints and a person edits."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

_ROLES = {
    "context": "One value a request: who asks, where and when.",
    "candidate": "One value an ad.",
    "training_only": "Known in the log alone.",
}
_DERIVED = {"hour": "integer", "weekday": "integer", "is_weekend": "boolean"}


@dataclass
class Proposed:
    """What is proposed for one column."""

    column: str
    field: dict[str, Any]
    """The field's keys and values; empty where a column can be none."""
    note: str
    """What was seen of it."""
    left_out: str = ""
    """Why it should not be a field; "" where it should."""


@dataclass
class Page:
    """All that the YAML says. Pairs are (what, a comment on it)."""

    title: str
    warnings: Sequence[str]
    label: tuple[str, str]
    columns: Sequence[Proposed]
    timestamp: tuple[Mapping[str, str], str] | None = None
    has_hours: bool = True
    """Whether the timestamp is finer than a day."""
    unit: tuple[str, str] | None = None
    truth: str | None = None

    def text(self) -> str:
        """The YAML, which loads as a `FeatureSchema`."""
        lines = [
            _comment(self.title),
            "# A guess from names and values: read every line before you train. Above all the label, each role (is it",
            "# known about the request, or about each ad?), and that no field is known only after the impression.",
            *(_comment(f"! {warning}") for warning in self.warnings),
            "format_version: 1",
            f"label: {flow({'column': self.label[0]})}  {_comment(self.label[1])}",
        ]
        if self.timestamp is not None:
            lines.append(f"timestamp: {flow(self.timestamp[0])}  {_comment(self.timestamp[1])}")
        else:
            lines.append("# timestamp: {column: …, format: epoch, unit: s, timezone: UTC}  # none was found")
        if self.unit is not None:
            lines.append(f"unit: {flow({'column': self.unit[0]})}  {_comment(self.unit[1])}")
        else:
            lines.append("# unit: {column: …}  # none was found: the user or device that an experiment hashes")
        if self.truth is not None:
            lines.append(f"truth: {flow({'column': self.truth})}  # known probabilities, never a feature")
        lines += ["max_bad_rows: 0.001", "fields:"]
        for role, title in _ROLES.items():
            own = [c for c in self.columns if not c.left_out and c.field["role"] == role]
            derived = self._derived() if role == "context" else []
            if own or derived:
                lines += ["", f"  # {title}"]
            for column in own:
                lines += ["  " + _comment(column.note), f"  - {flow(column.field)}"]
            lines += derived
        if any(c.left_out for c in self.columns):
            lines += ["", "  # Left out. Take the # before the dash away to use one all the same."]
        for column in self.columns:
            if column.left_out:
                lines.append("  " + _comment(f"{column.column}: {column.left_out}"))
                if column.field:
                    lines.append("  " + _comment(f"- {flow(column.field)}"))
        return "\n".join(lines) + "\n"

    def _derived(self) -> list[str]:
        """Fields made of the timestamp, unless the log has columns of these names."""
        taken = {str(c.field["name"]).lower() for c in self.columns if c.field}
        kinds = {
            what: kind for what, kind in _DERIVED.items() if what not in taken and (what != "hour" or self.has_hours)
        }
        if self.timestamp is None or not kinds:
            return []
        usual = {"role": "context", "kind": "categorical", "encoding": {"method": "vocabulary", "min_count": 1}}
        return [
            "  # Of the timestamp, in its timezone. A request has to bring them: the service reads no clock.",
            *(
                f"  - {flow({'name': what, 'derived_from': 'timestamp', 'derive': what, 'type': kind} | usual)}"
                for what, kind in kinds.items()
            ),
        ]


def field_names(columns: Sequence[str]) -> list[str]:
    """Columns as field names: letters, digits, _ . - only, 64 at most, no two alike in lower case."""
    names: list[str] = []
    taken: set[str] = set()
    for column in columns:
        name = re.sub(r"[^A-Za-z0-9_.-]+", "_", column).strip("_")[:60] or "field"
        name = name if re.match(r"[A-Za-z_]", name) else f"_{name}"
        unique, count = name, 2
        while unique.lower() in taken:
            unique, count = f"{name}_{count}", count + 1
        taken.add(unique.lower())
        names.append(unique)
    return names


def flow(values: Mapping[str, Any]) -> str:
    """A YAML mapping on one line, its strings quoted only where YAML would read something else."""
    return "{" + ", ".join(f"{key}: {_scalar(value)}" for key, value in values.items()) + "}"


def _scalar(value: Any) -> str:
    if isinstance(value, Mapping):
        return flow(value)
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]*", value) and yaml.safe_load(value) == value:
        return value
    return json.dumps(value, ensure_ascii=False)


def _comment(text: str) -> str:
    return "# " + re.sub(r"[\x00-\x1f\x7f\x85\u2028\u2029]+", " ", text)
