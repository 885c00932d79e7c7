"""tritonclient[grpc]: synchronous and asyncio; health, metadata, inference, compression, errors, administration.

Runs in its own environment: python triton_grpc.py HOST:PORT CASES TOKEN
"""

import asyncio
import json
import sys
import time
from pathlib import Path

import numpy as np
import triton_cases
import tritonclient.grpc as rpc
import tritonclient.grpc.aio as aio
from triton_cases import check

URL, CASES, TOKEN = sys.argv[1], json.loads(Path(sys.argv[2]).read_text()), sys.argv[3]
BEARER = {"authorization": f"Bearer {TOKEN}"}


def tensors(case, kind=rpc):
    made = []
    for tensor, values, _ in triton_cases.tensors(case, kind):
        tensor.set_data_from_numpy(values)
        made.append(tensor)
    return made


def refuses(status, text, call):
    triton_cases.refuses(f"StatusCode.{status}", text, call)


def synchronous():
    client = rpc.InferenceServerClient(URL)
    pctr = [rpc.InferRequestedOutput("pctr")]

    def health():
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("student")
        assert client.is_model_ready("student", "1")
        refuses("NOT_FOUND", "no such model", lambda: client.is_model_ready("nobody"))

    def metadata():
        assert client.get_server_metadata().name == "retort"
        found = client.get_model_metadata("ensemble", "1", as_json=True)
        assert [output["name"] for output in found["outputs"]] == ["pctr", "logit", "teacher_logits", "gate_weights"]

    def infer():
        for packed in (None, "gzip", "deflate"):
            for version in ("", "1"):
                for number, case in enumerate(CASES):
                    answer = client.infer(
                        "student",
                        tensors(case),
                        model_version=version,
                        outputs=pctr,
                        request_id=f"r-{number}",
                        client_timeout=30,
                        compression_algorithm=packed,
                    )
                    np.testing.assert_array_equal(answer.as_numpy("pctr"), np.array(case["pctr"], np.float32))
                    assert answer.get_response().id == f"r-{number}"

    def every_output():
        answer = client.infer("ensemble", tensors(CASES[0]))
        teachers, gate = answer.as_numpy("teacher_logits"), answer.as_numpy("gate_weights")
        np.testing.assert_allclose((teachers * gate).sum(1), answer.as_numpy("logit"), rtol=1e-5)

    def callbacks():
        found = {}
        for number, case in enumerate(CASES * 5):
            client.async_infer("student", tensors(case), lambda result, error, n=number: found.update({n: result}))
        for _ in range(600):
            if len(found) == 5 * len(CASES):
                break
            time.sleep(0.05)
        for number, case in enumerate(CASES * 5):
            np.testing.assert_allclose(found[number].as_numpy("pctr"), case["pctr"], rtol=1e-5)

    def errors():
        good = tensors(CASES[0])
        refuses("NOT_FOUND", "no such model is live", lambda: client.infer("nobody", good))
        refuses("NOT_FOUND", "no such version", lambda: client.infer("student", good, model_version="9"))
        wrong = rpc.InferInput("price", [1], "BYTES")
        wrong.set_data_from_numpy(np.array([b"x"], object))
        refuses("INVALID_ARGUMENT", "field 'price': expected a finite number", lambda: client.infer("student", [wrong]))
        refuses("DEADLINE_EXCEEDED", "timeout", lambda: client.infer("student", good, timeout=1))
        many = rpc.InferInput("price", [1001], "FP64")
        many.set_data_from_numpy(np.zeros(1001))
        refuses("INVALID_ARGUMENT", "at most 1000 rows", lambda: client.infer("student", [many]))

    def statistics():
        (model,) = client.get_inference_statistics("student", "1").model_stats
        assert model.inference_stats.success.count > 10
        assert model.inference_count > model.execution_count

    def administration():
        refuses("UNAUTHENTICATED", "Authorization", client.get_model_repository_index)
        index = client.get_model_repository_index(headers=BEARER)
        assert {(model.name, model.version) for model in index.models} >= {("student", "1"), ("control", "2")}
        config = json.dumps({"version_policy": {"specific": {"versions": [1]}}})
        client.load_model("control", headers=BEARER, config=config)
        client.unload_model("control", headers=BEARER)
        client.load_model("control", headers=BEARER)
        refuses("FAILED_PRECONDITION", "experiment", lambda: client.unload_model("student", headers=BEARER))

    check("sync: live, ready, model ready", health)
    check("sync: metadata of server and model", metadata)
    check("sync: infer, plain, gzip, deflate, with and without a version", infer)
    check("sync: an ensemble's teachers and gate", every_output)
    check("sync: async_infer, many at once", callbacks)
    check("sync: errors are the client's own, with our status and words", errors)
    check("sync: statistics", statistics)
    check("sync: repository index, load, unload, with and without the token", administration)
    client.close()


async def on_asyncio():
    async with aio.InferenceServerClient(URL) as client:
        assert await client.is_server_live()
        assert await client.is_server_ready()
        assert await client.is_model_ready("student")
        assert (await client.get_server_metadata()).name == "retort"
        answers = await asyncio.gather(*(client.infer("student", tensors(case, aio)) for case in CASES * 5))
        for case, answer in zip(CASES * 5, answers, strict=True):
            np.testing.assert_allclose(answer.as_numpy("pctr"), case["pctr"], rtol=1e-5)


synchronous()
check("aio: health, metadata, many at once", lambda: asyncio.run(on_asyncio()))
