"""kserve's InferenceRESTClient: JSON, bytes, health, an error.

Runs in its own environment: python kserve_rest.py HOST:PORT CASES TOKEN
"""

import asyncio
import json
import sys
import traceback
from pathlib import Path

import httpx
import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.protocol.infer_type import RequestedOutput

URL, CASES = f"http://{sys.argv[1]}", json.loads(Path(sys.argv[2]).read_text())
BYTES = {"binary_data_output": True}


async def check(name, work):
    """Prints whether `work` raised nothing."""
    try:
        await work()
        print(json.dumps({"check": name, "passed": True}))
    except Exception as error:
        traceback.print_exc()
        print(json.dumps({"check": name, "passed": False, "why": f"{type(error).__name__}: {error}"[:300]}))


def as_json(case):
    inputs = [InferInput(g["name"], g["shape"], g["datatype"], data=g["data"]) for g in case["inputs"]]
    return InferRequest(model_name="student", infer_inputs=inputs, request_id="r-1")


def as_bytes(case):
    inputs = []
    for given in case["inputs"]:
        kind = {"BYTES": np.object_, "INT64": np.int64, "FP64": np.float64, "BOOL": np.bool_}[given["datatype"]]
        missing = "" if given["datatype"] == "BYTES" else np.nan
        values = np.array([missing if value is None else value for value in given["data"]], kind)
        if given["datatype"] == "BYTES":
            values = np.array([value.encode() for value in values], np.object_)
        inputs.append(InferInput(given["name"], given["shape"], given["datatype"]))
        inputs[-1].set_data_from_numpy(values, binary_data=True)
    outputs = [RequestedOutput("pctr", parameters={"binary_data": True})]
    return InferRequest(model_name="student", infer_inputs=inputs, request_outputs=outputs, parameters=BYTES)


def scores(answer):
    (output,) = [output for output in answer.outputs if output.name == "pctr"]
    return output.as_numpy()


async def main():
    async with InferenceRESTClient(RESTConfig(protocol="v2")) as client:

        async def health():
            assert await client.is_server_live(URL)
            assert await client.is_server_ready(URL)
            assert await client.is_model_ready(URL, "student")
            assert not await client.is_model_ready(URL, "nobody")

        async def infer(make):
            for case in CASES:
                answer = await client.infer(URL, make(case), model_name="student")
                assert answer.model_name == "student"  # from bytes it leaves the version out
                np.testing.assert_array_equal(scores(answer).astype(np.float32), np.array(case["pctr"], np.float32))

        async def dictionary():
            for case in CASES:
                answer = await client.infer(URL, {"inputs": case["inputs"]}, model_name="student")
                np.testing.assert_array_equal(scores(answer).astype(np.float32), np.array(case["pctr"], np.float32))

        async def error():
            response = None
            try:
                await client.infer(URL, as_json(CASES[0]), model_name="nobody")
            except httpx.HTTPStatusError as refused:
                response = refused.response
            assert response is not None, "was not refused"
            assert (response.status_code, response.json()["error"]) == (404, "no such model is live")

        await check("health", health)
        await check("infer, JSON", lambda: infer(as_json))
        await check("infer, bytes both ways", lambda: infer(as_bytes))
        await check("infer, a dictionary", dictionary)
        await check("an error", error)


asyncio.run(main())
