"""The service everyone writes first: the peer that `python -m benchmarks.predict` puts beside ours.

    python -m benchmarks.naive_service --bundle models/repository/student/1 --port 8001

A FastAPI route, pydantic models with a list of dicts, a dict look-up for each value, an ONNX Runtime session with its
defaults, uvicorn. Honestly written: it serves the same bundle, answers the same pctr (checked in every run of the
benchmark), and does nothing slowly on purpose. Of the two ways to write the route, `async def` is the faster one here
(no thread pool), so that is the one. What it leaves out: experiments, metrics, deadlines, limits, reloading, a manifest
that is verified, and errors that name the field.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from bisect import bisect_right
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel


class PredictRequest(BaseModel):
    context: dict[str, Any] = {}
    candidates: list[dict[str, Any]]


class PredictResponse(BaseModel):
    model: str
    pctr: list[float]


def canonical(value: Any) -> str:
    """A value as the vocabulary spells it."""
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


class Model:
    """Schema, vocabularies and graph of a bundle."""

    def __init__(self, bundle: Path) -> None:
        self.name = bundle.parent.name
        self.session = onnxruntime.InferenceSession(bundle / "model.onnx")
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


def create_app(bundle: Path) -> FastAPI:
    """The whole service."""
    model = Model(bundle)
    app = FastAPI()

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/predict")
    async def predict(request: PredictRequest) -> PredictResponse:
        return PredictResponse(model=model.name, pctr=model.predict(request.context, request.candidates))

    return app


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="The service everyone writes first, for one bundle.")
    parser.add_argument("--bundle", type=Path, required=True, help="a version's folder")
    parser.add_argument("--port", type=int, default=8001)
    options = parser.parse_args()
    uvicorn.run(create_app(options.bundle), port=options.port, log_level="warning", access_log=False)
