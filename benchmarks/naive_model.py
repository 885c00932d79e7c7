"""How everyone encodes first: a dict look-up a value. It needs numpy alone, so any peer's environment can use it."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from pathlib import Path
from typing import Any

import numpy as np


def canonical(value: Any) -> str:
    """A value as the vocabulary spells it."""
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


class NaiveModel:
    """Schema, vocabularies and graph of a bundle."""

    def __init__(self, bundle: Path, session: Any) -> None:
        self.name = bundle.parent.name
        self.session = session
        schema = json.loads((bundle / "schema.json").read_text(encoding="utf-8"))
        fields = [field for field in schema["fields"] if field["role"] != "training_only"]
        self.context = [field for field in fields if field["role"] == "context"]
        self.candidate = [field for field in fields if field["role"] == "candidate"]
        self.tables: dict[str, Any] = {}
        for field in fields:
            path = bundle / "vocabularies" / f"{field['name']}.json"
            if path.exists():
                values = json.loads(path.read_text(encoding="utf-8"))
                numeric = field["encoding"]["method"] in ("quantile", "log_bucket")
                self.tables[field["name"]] = values if numeric else {v: i + 2 for i, v in enumerate(values)}

    def encode_value(self, field: dict[str, Any], value: Any) -> int:
        """The id of one value."""
        if value is None or value == "":
            return 0
        encoding = field["encoding"]
        if encoding["method"] == "hash":
            text = f"{encoding['seed']}:{field['name']}:{canonical(value)}"
            digest = hashlib.sha256(text.encode()).digest()
            return 2 + int.from_bytes(digest[:8], "big") % int(encoding["buckets"])
        table = self.tables[field["name"]]
        if encoding["method"] in ("quantile", "log_bucket"):
            return 2 + bisect_right(table, value)
        return int(table.get(canonical(value), 1))

    def encode_rows(self, fields: list[dict[str, Any]], rows: list[dict[str, Any]]) -> tuple[Any, dict[str, Any]]:
        """ids [rows, fields], and what the graph takes for each sequence field."""
        plain = [field for field in fields if field["kind"] != "sequence"]
        ids = [[self.encode_value(field, row.get(field["name"])) for field in plain] for row in rows]
        sequences = {}
        for field in fields:
            if field["kind"] == "sequence":
                elements, offsets = [], [0]
                for row in rows:
                    values = [value for value in row.get(field["name"]) or [] if value not in (None, "")]
                    longest = field["max_length"]
                    values = values[:longest] if field["keep"] == "first" else values[-longest:]
                    elements += [self.encode_value(field, value) for value in values] or [0]
                    offsets.append(len(elements))
                sequences[f"{field['name']}_ids"] = np.array(elements, dtype=np.int32)
                sequences[f"{field['name']}_offsets"] = np.array(offsets, dtype=np.int32)
        return np.array(ids, dtype=np.int32).reshape(len(rows), len(plain)), sequences

    def predict(self, context: dict[str, Any], candidates: list[dict[str, Any]]) -> list[float]:
        """pctr of each candidate."""
        context_ids, context_sequences = self.encode_rows(self.context, [context])
        candidate_ids, candidate_sequences = self.encode_rows(self.candidate, candidates)
        feeds = {
            "context": context_ids,
            "candidates": candidate_ids,
            "request_index": np.zeros(len(candidates), dtype=np.int32),
            **context_sequences,
            **candidate_sequences,
        }
        pctr: list[float] = self.session.run(["pctr"], feeds)[0].tolist()
        return pctr
