"""Calls over gRPC, as a client compiled from the protocol's file makes them."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np

from service.oip.rpc.messages import SERVICE, methods
from service.oip.rpc.server import RpcServer
from tests.service.oip.tensors import pack
from tests.service.running import make_app, started


def infer_request(
    inputs: list[dict[str, Any]], *, typed: bool = False, outputs: tuple[str, ...] = (), **members: Any
) -> Any:
    """A ModelInferRequest, its data as bytes or typed; None is NaN or ""."""
    message = methods()["ModelInfer"][0](**{"model_name": "student", **members})
    for tensor in inputs:
        entry = message.inputs.add(name=tensor["name"], datatype=tensor["datatype"], shape=tensor["shape"])
        data = [
            ("" if tensor["datatype"] == "BYTES" else np.nan) if value is None else value for value in tensor["data"]
        ]
        if not typed:
            message.raw_input_contents.append(pack(tensor["datatype"], data))
        elif tensor["datatype"] == "BYTES":
            entry.contents.bytes_contents.extend(text.encode() for text in data)
        else:
            kind = {"INT64": "int64", "FP64": "fp64", "BOOL": "bool"}[tensor["datatype"]]
            getattr(entry.contents, f"{kind}_contents").extend(data)
    for name in outputs:
        message.outputs.add(name=name)
    return message


def caller(channel: Any, method: str) -> Any:
    """A method as a client compiled from the file has it."""
    taken, given = methods()[method]
    return channel.unary_unary(
        f"/{SERVICE}/{method}", request_serializer=taken.SerializeToString, response_deserializer=given.FromString
    )


def scores(answer: Any) -> dict[str, np.ndarray]:
    return {
        output.name: np.frombuffer(data, "<f4").reshape(list(output.shape))
        for output, data in zip(answer.outputs, answer.raw_output_contents, strict=True)
    }


@contextlib.asynccontextmanager
async def serving(repository: Path, **options: Any) -> AsyncIterator[tuple[Any, Any]]:
    """(application, channel), in this event loop."""
    async with started(make_app(repository, **options)) as app:
        server = RpcServer(app)
        port = server._server.add_insecure_port("127.0.0.1:0")
        await server._server.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                yield app, channel
        finally:
            await server.stop(1.0)
