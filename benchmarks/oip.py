"""python -m benchmarks.oip: what a request costs in each envelope, in processor time of the worker.

The same requests to one model: `/predict` with rows and with columns, and the Open Inference Protocol with raw values
as JSON and as bytes, and with ids. Straight into the application, without HTTP: that costs the same for all. In each
round every envelope takes its turn; before anything is timed all must give the same pctr. The cache of encoded
candidates serves rows only, and is shown apart.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import struct
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.machine import facts
from benchmarks.results import conditions, publish
from benchmarks.workload import AdRequest, make_requests
from models.bundle import Bundle
from models.graph import graph_inputs
from service.app import Service, create_app
from service.oip.inference import HEADER_LENGTH
from service.oip.metadata import datatype_of
from service.settings import Settings

JSON = ((b"content-type", b"application/json"),)
FIRST = "/predict, columns"

Call = tuple[str, bytes, tuple[tuple[bytes, bytes], ...]]
"""Path, body, headers."""


def raw_tensors(bundle: Bundle, request: AdRequest) -> dict[str, tuple[str, list[Any]]]:
    """Field -> (datatype, values); an integer that may be missing is a float."""
    columns = {name: [value] for name, value in request.context.items() if value is not None}
    for field in bundle.schema.candidate_fields:
        columns[field.name] = [row.get(field.name) for row in request.candidates]
    found = {}
    for name, values in columns.items():
        field = bundle.schema.by_name[name]
        datatype = datatype_of(field)
        if field.is_sequence:
            values = ["" if value is None else json.dumps(value) for value in values]
        elif datatype == "INT64" and None in values:
            datatype = "FP64"
        found[name] = (datatype, values)
    return found


def packed(datatype: str, values: Sequence[Any]) -> bytes:
    """A tensor's bytes."""
    if datatype == "BYTES":
        texts = [("" if text is None else text).encode() for text in values]
        return b"".join(struct.pack("<I", len(text)) + text for text in texts)
    kind = {"INT64": "<i8", "FP64": "<f8", "BOOL": "?"}[datatype]
    return np.array([np.nan if value is None else value for value in values], kind).tobytes()


def binary_call(path: str, tensors: Mapping[str, tuple[str, Sequence[int], bytes]]) -> Call:
    """A request whose tensors are bytes, and that asks for bytes."""
    inputs = [
        {"name": name, "datatype": datatype, "shape": list(shape), "parameters": {"binary_data_size": len(data)}}
        for name, (datatype, shape, data) in tensors.items()
    ]
    outputs = [{"name": "pctr", "parameters": {"binary_data": True}}]
    head = json.dumps({"inputs": inputs, "outputs": outputs}).encode()
    return path, b"".join((head, *(data for _, _, data in tensors.values()))), ((HEADER_LENGTH, b"%d" % len(head)),)


def calls(bundle: Bundle, request: AdRequest) -> dict[str, Call]:
    """The request in every envelope."""
    predict, infer = f"/models/{bundle.name}/predict", f"/v2/models/{bundle.name}/infer"
    columns = {
        field.name: [row.get(field.name) for row in request.candidates] for field in bundle.schema.candidate_fields
    }
    raw = raw_tensors(bundle, request)
    as_json = [
        {"name": name, "datatype": datatype, "shape": [len(values)], "data": values}
        for name, (datatype, values) in raw.items()
    ]
    encoder = bundle.encoder
    ids = graph_inputs([encoder.encode_context(request.context)], [encoder.encode_candidates(request.candidates)])
    return {
        FIRST: (predict, json.dumps({"context": request.context, "candidates": columns}).encode(), JSON),
        "/predict, rows": (
            predict,
            json.dumps({"context": request.context, "candidates": request.candidates}).encode(),
            JSON,
        ),
        "OIP, values as JSON": (
            infer,
            json.dumps({"inputs": as_json, "outputs": [{"name": "pctr"}]}).encode(),
            JSON,
        ),
        "OIP, values as bytes": binary_call(
            infer, {name: (kind, [len(values)], packed(kind, values)) for name, (kind, values) in raw.items()}
        ),
        "OIP, ids as bytes": binary_call(
            infer, {name: ("INT32", values.shape, values.astype("<i4").tobytes()) for name, values in ids.items()}
        ),
    }


async def answer(app: Service, call: Call) -> tuple[int, bytes, dict[bytes, bytes]]:
    """One request straight into the application."""
    path, body, headers = call
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "headers": headers, "state": {}}
    await app(scope, receive, send)
    return sent[0]["status"], sent[1]["body"], dict(sent[0]["headers"])


def scores(status: int, body: bytes, headers: Mapping[bytes, bytes]) -> list[float]:
    """pctr, whatever the envelope."""
    if status != 200:
        raise SystemExit(f"error: refused with {status}: {body.decode()}")
    if HEADER_LENGTH in headers:
        return [float(value) for value in np.frombuffer(body[int(headers[HEADER_LENGTH]) :], "<f4")]
    content = json.loads(body)
    return content["pctr"] if "pctr" in content else content["outputs"][0]["data"]


async def measure(repository: Path, model: str, sizes: Sequence[int], options: argparse.Namespace) -> list[str]:
    """The table, a row an envelope and size."""
    found: dict[tuple[str, int], list[float]] = {}
    settings = {
        "cold": Settings(repository=repository, candidate_cache_bytes=0),
        "warm": Settings(repository=repository),
    }
    lengths: dict[tuple[str, int], int] = {}
    for state, chosen in settings.items():
        app = create_app(chosen)
        async with app.router.lifespan_context(app):
            await app.until_ready()
            bundle = app.require_plan().live[model].scorer.bundle
            for n in sizes:
                made = [calls(bundle, request) for request in make_requests(bundle, n, options.requests, 1)]
                ways = [way for way in made[0] if state == "cold" or way == "/predict, rows"]
                await _compare(app, made, ways)
                for turn in range(options.rounds + 1):
                    for way in ways if turn % 2 else reversed(ways):
                        began = time.process_time()
                        for each in made:
                            await answer(app, each[way])
                        name = way if state == "cold" else f"{way}, every ad seen before"
                        if turn:  # the first is a warm-up
                            took = (time.process_time() - began) / len(made)
                            found.setdefault((name, n), []).append(1e6 * took)
                        lengths[name, n] = sum(len(each[way][1]) for each in made) // len(made)
    return _table(found, lengths, sizes)


async def _compare(app: Service, made: Sequence[Mapping[str, Call]], ways: Sequence[str]) -> None:
    for each in made:
        expected = scores(*await answer(app, each[FIRST]))
        for way in ways:
            np.testing.assert_allclose(scores(*await answer(app, each[way])), expected, rtol=1e-5)


def _table(
    found: Mapping[tuple[str, int], list[float]], lengths: Mapping[tuple[str, int], int], sizes: Sequence[int]
) -> list[str]:
    lines = ["| candidates | envelope | bytes a request | us of a core a request | times `/predict`, columns |"]
    lines.append("|---:|---|---:|---:|---:|")
    for n in sizes:
        first = found[FIRST, n]
        for name, size in found:
            if size != n:
                continue
            took = found[name, n]
            ratios = [one / other for one, other in zip(took, first, strict=True)]
            spread = f"{median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
            lines.append(f"| {n} | {name} | {lengths[name, n]:,} | {median(took):.0f} | {spread} |")
    return lines


def main(arguments: Sequence[str]) -> int:
    """Prints the table; writes it where asked."""
    count: Callable[[str], int] = int
    parser = argparse.ArgumentParser(prog="python -m benchmarks.oip", description=__doc__)
    parser.add_argument("--repository", type=Path, default=Path("models/repository"), metavar="DIR", help="bundles")
    parser.add_argument("--model", default="student", metavar="NAME", help="the live version of [student]")
    parser.add_argument("--candidates", nargs="+", type=count, default=[1, 50, 200], metavar="N", help="ads a request")
    parser.add_argument("--requests", type=count, default=100, metavar="N", help="distinct requests a size [100]")
    parser.add_argument("--rounds", type=count, default=9, metavar="N", help="turns of each envelope [9]")
    parser.add_argument("--write", type=Path, metavar="FILE", help="replace the block `oip` of this document")
    options = parser.parse_args(arguments)
    machine: dict[str, Any] = facts()
    table = asyncio.run(measure(options.repository, options.model, options.candidates, options))
    more = f"rounds: {options.rounds} of {options.requests} requests, median (least-greatest)"
    publish([conditions("oip", arguments, machine, more), "", *table], options.write, "oip")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
