"""tritonclient[http]: synchronous, on greenlets, and asyncio; JSON, bytes, gzip, deflate, errors, administration.

Runs in its own environment: python triton_http.py HOST:PORT CASES TOKEN
"""

import asyncio
import json
import sys
import time
from pathlib import Path

import numpy as np
import triton_cases
import tritonclient.http as http
import tritonclient.http.aio as aio
from triton_cases import check
from tritonclient.utils import InferenceServerException

URL, CASES, TOKEN = sys.argv[1], json.loads(Path(sys.argv[2]).read_text()), sys.argv[3]
BEARER = {"Authorization": f"Bearer {TOKEN}"}


def tensors(case, binary, kind=http):
    made = []
    for tensor, values, has_missing in triton_cases.tensors(case, kind):
        # As JSON the client writes NaN, which is none: a missing number goes as bytes.
        tensor.set_data_from_numpy(values, binary_data=binary or (has_missing and values.dtype == np.float64))
        made.append(tensor)
    return made


def agrees(case, answer):
    """The scores are those of /predict, bit for bit."""
    np.testing.assert_array_equal(answer.as_numpy("pctr"), np.array(case["pctr"], np.float32))


def refuses(status, text, call):
    triton_cases.refuses(str(status), text, call)


def synchronous():
    client = http.InferenceServerClient(URL, concurrency=4)

    def health():
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("student")
        assert client.is_model_ready("student", "1")
        assert not client.is_model_ready("student", "9")
        assert not client.is_model_ready("nobody")

    def metadata():
        assert client.get_server_metadata()["name"] == "retort"
        found = client.get_model_metadata("ensemble", "1")
        assert [output["name"] for output in found["outputs"]] == ["pctr", "logit", "teacher_logits", "gate_weights"]

    check("sync: live, ready, model ready", health)
    check("sync: metadata of server and model", metadata)
    for binary_in in (False, True):
        for binary_out in (False, True):
            for packed in (None, "gzip", "deflate"):
                for version in ("", "1"):
                    name = f"{'bytes' if binary_in else 'JSON'} in, {'bytes' if binary_out else 'JSON'} out, {packed}"

                    def infer(binary_in=binary_in, binary_out=binary_out, packed=packed, version=version):
                        for number, case in enumerate(CASES):
                            outputs = [http.InferRequestedOutput("pctr", binary_data=binary_out)]
                            answer = client.infer(
                                "student",
                                tensors(case, binary_in),
                                model_version=version,
                                outputs=outputs,
                                request_id=f"r-{number}",
                                request_compression_algorithm=packed,
                                response_compression_algorithm=packed,
                            )
                            agrees(case, answer)
                            assert answer.get_response()["id"] == f"r-{number}"

                    check(f"sync: infer, {name}, version '{version}'", infer)

    def defaults():
        for case in CASES:
            answer = client.infer("student", tensors(case, True), timeout=30_000_000)
            agrees(case, answer)
            assert answer.as_numpy("logit").shape == answer.as_numpy("pctr").shape

    def every_output():
        answer = client.infer("ensemble", tensors(CASES[0], True))
        teachers, gate = answer.as_numpy("teacher_logits"), answer.as_numpy("gate_weights")
        assert teachers.shape == gate.shape == (len(CASES[0]["pctr"]), 3)
        np.testing.assert_allclose((teachers * gate).sum(1), answer.as_numpy("logit"), rtol=1e-5)

    def asynchronous():
        waiting = [client.async_infer("student", tensors(case, True)) for case in CASES * 5]
        for case, answer in zip(CASES * 5, waiting, strict=True):
            # Many at once are scored together, which may change the last bits of a float32.
            np.testing.assert_allclose(answer.get_result().as_numpy("pctr"), case["pctr"], rtol=1e-5)

    def errors():
        good = tensors(CASES[0], True)
        refuses(404, "no such model is live", lambda: client.infer("nobody", good))
        refuses(404, "no such version", lambda: client.infer("student", good, model_version="9"))
        refuses(404, "no such model is live", lambda: client.get_model_metadata("nobody"))
        wrong = http.InferInput("price", [1], "BYTES").set_data_from_numpy(np.array([b"x"], object))
        refuses(422, "field 'price': expected a finite number, got a string", lambda: client.infer("student", [wrong]))
        outputs = [http.InferRequestedOutput("nothing")]
        refuses(422, "outputs[0]: expected one of pctr, logit", lambda: client.infer("student", good, outputs=outputs))
        refuses(504, "timeout", lambda: client.infer("student", good, timeout=1))
        long = http.InferInput("ad_id", [1], "BYTES").set_data_from_numpy(np.array([b"x" * 600_000], object))
        refuses(413, "at most 524288 bytes", lambda: client.infer("student", [long]))
        many = http.InferInput("price", [1001], "FP64").set_data_from_numpy(np.zeros(1001))
        refuses(422, "at most 1000 rows", lambda: client.infer("student", [many]))

    def statistics():
        (model,) = client.get_inference_statistics("student", "1")["model_stats"]
        assert model["inference_stats"]["success"]["count"] > 100
        assert model["inference_count"] > model["execution_count"]
        assert {entry["name"] for entry in client.get_inference_statistics()["model_stats"]} >= {"student", "ensemble"}

    def administration():
        refuses(401, "Authorization", client.get_model_repository_index)
        refuses(401, "Authorization", lambda: client.unload_model("control"))
        index = client.get_model_repository_index(headers=BEARER)
        assert {(entry["name"], entry["version"]) for entry in index} >= {("student", "1"), ("control", "2")}
        client.unload_model("control", headers=BEARER)
        until("control is not ready", lambda: not client.is_model_ready("control"))
        config = json.dumps({"version_policy": {"specific": {"versions": [1]}}})
        client.load_model("control", headers=BEARER, config=config)
        until("version 1 answers", lambda: answering() == {"1"})
        client.load_model("control", headers=BEARER)
        until("version 2 answers", lambda: answering() == {"2"})
        refuses(409, "experiment", lambda: client.unload_model("student", headers=BEARER))
        refuses(404, "no model of this name", lambda: client.load_model("nobody", headers=BEARER))

    def answering():
        """The versions that answer, over connections to both workers."""
        found = set()
        for _ in range(10):
            other = http.InferenceServerClient(URL)
            try:
                found.add(other.infer("control", tensors(CASES[0], True)).get_response()["model_version"])
            except InferenceServerException:
                found.add(None)
            finally:
                other.close()
        return found

    def until(what, condition):
        for _ in range(200):
            if condition():
                return
            time.sleep(0.05)
        raise AssertionError(f"waited in vain until {what}")

    check("sync: infer with the client's defaults, all outputs as bytes", defaults)
    check("sync: an ensemble's teachers and gate", every_output)
    check("sync: async_infer, many at once", asynchronous)
    check("sync: errors are the client's own, with our status and words", errors)
    check("sync: statistics", statistics)
    check("sync: repository index, load, unload, with and without the token", administration)
    client.close()


async def on_asyncio():
    async with aio.InferenceServerClient(URL) as client:
        assert await client.is_server_live()
        assert await client.is_server_ready()
        assert await client.is_model_ready("student")
        assert (await client.get_server_metadata())["name"] == "retort"
        assert (await client.get_model_metadata("student"))["name"] == "student"
        for binary in (False, True):
            for packed in (None, "gzip", "deflate"):
                for case in CASES:
                    answer = await client.infer(
                        "student",
                        tensors(case, binary, aio),
                        outputs=[aio.InferRequestedOutput("pctr", binary_data=binary)],
                        request_compression_algorithm=packed,
                        response_compression_algorithm=packed,
                    )
                    agrees(case, answer)
        answers = await asyncio.gather(*(client.infer("student", tensors(case, True, aio)) for case in CASES * 5))
        for case, answer in zip(CASES * 5, answers, strict=True):
            np.testing.assert_allclose(answer.as_numpy("pctr"), case["pctr"], rtol=1e-5)
        refused = None
        try:
            await client.infer("nobody", tensors(CASES[0], True, aio))
        except InferenceServerException as error:
            refused = error
        assert "no such model is live" in str(refused)


synchronous()
check("aio: health, metadata, JSON, bytes, gzip, deflate, many at once, an error", lambda: asyncio.run(on_asyncio()))
