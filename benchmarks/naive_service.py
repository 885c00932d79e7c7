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
from pathlib import Path
from typing import Any

import onnxruntime
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from benchmarks.naive_model import NaiveModel


class PredictRequest(BaseModel):
    context: dict[str, Any] = {}
    candidates: list[dict[str, Any]]


class PredictResponse(BaseModel):
    model: str
    pctr: list[float]


def create_app(bundle: Path) -> FastAPI:
    """The whole service."""
    model = NaiveModel(bundle, onnxruntime.InferenceSession(bundle / "model.onnx"))
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
