"""The protocol over gRPC: the same scores, the same refusals, the same gate, in another envelope."""

import asyncio
import json
import re
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.oip.rpc.messages import PROTO, SERVICE, methods
from service.oip.rpc.server import PUBLIC, RpcServer
from service.oip.tensors import DATATYPES
from tests.models.tiny_bundle import REQUESTS
from tests.service.bundles import write_slow_ensemble
from tests.service.oip.calling import caller, infer_request, scores, serving
from tests.service.oip.tensors import FIELDS, tensors_of
from tests.service.running import (
    CONTEXT,
    PATIENCE_SECONDS,
    ROOT,
    TOKEN,
    ask,
    candidate,
    make_app,
    metric,
    request_of,
    running_service,
    started,
    wait_for,
)

METADATA = (("authorization", f"Bearer {TOKEN}"),)


async def refusal(call: Any) -> tuple[grpc.StatusCode, str, str]:
    """(status, our code, words) of a call that is refused."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    error = refused.value
    trailing = dict(error.trailing_metadata() or ())
    return error.code(), str(trailing.get("retort-code", "")), error.details() or ""


def test_scores_are_those_of_predict(repository: Path):
    """As bytes and typed, bit for bit; all outputs where none is named; id, name and version come back."""

    async def both() -> list[tuple[Any, Any, Any]]:
        found = []
        async with serving(repository) as (app, channel):
            for context, rows in (*REQUESTS, (CONTEXT, [candidate(number) for number in range(50)])):
                context = {name: value for name, value in context.items() if value is not None}
                rows = [{**row, "campaign": min(row.get("campaign") or 5, 2**63 - 1)} for row in rows]
                body = json.dumps({"context": context, "candidates": rows}).encode()
                plain: Any = await ask(app, "/models/student/predict", body)
                inputs = tensors_of(context, rows)
                raw = await caller(channel, "ModelInfer")(infer_request(inputs, outputs=("pctr",), id="r-1"))
                typed = await caller(channel, "ModelInfer")(infer_request(inputs, typed=True, model_version="1"))
                found.append((plain.json()["pctr"], raw, typed))
        return found

    for expected, raw, typed in asyncio.run(both()):
        assert (raw.model_name, raw.model_version, raw.id) == ("student", "1", "r-1")
        assert list(scores(raw)) == ["pctr"]
        assert list(scores(typed)) == ["pctr", "logit"]
        np.testing.assert_array_equal(scores(raw)["pctr"], np.array(expected, np.float32))
        np.testing.assert_array_equal(scores(typed)["pctr"], np.array(expected, np.float32))


def test_every_method_answers_as_its_route(repository: Path):
    """Health, metadata, statistics, index."""

    async def everything() -> dict[str, Any]:
        async with serving(repository, admin_token=TOKEN) as (app, channel):

            async def call(method: str, metadata: Any = (), **members: Any) -> Any:
                return await caller(channel, method)(methods()[method][0](**members), metadata=metadata)

            await caller(channel, "ModelInfer")(infer_request(tensors_of(CONTEXT, [candidate(1), candidate(2)])))
            found = {
                "live": await call("ServerLive"),
                "ready": await call("ServerReady"),
                "model": await call("ModelReady", name="student"),
                "server": await call("ServerMetadata"),
                "metadata": await call("ModelMetadata", name="ensemble", version="1"),
                "stats": await call("ModelStatistics", name="student", version="1"),
                "all": await call("ModelStatistics"),
                "index": await call("RepositoryIndex", METADATA, ready=True),
            }
            app.drain()
            found["draining"] = await call("ServerReady")
            return found

    found = asyncio.run(everything())

    assert found["live"].live
    assert found["ready"].ready
    assert not found["draining"].ready
    assert found["model"].ready
    assert found["server"].name == "retort"
    assert [output.name for output in found["metadata"].outputs] == ["pctr", "logit", "teacher_logits", "gate_weights"]
    assert list(found["metadata"].outputs[2].shape) == [-1, 3]
    (model,) = found["stats"].model_stats
    assert (model.inference_count, model.execution_count, model.inference_stats.success.count) == (2, 1, 1)
    assert {model.name for model in found["all"].model_stats} == {"student", "ensemble", "control"}
    assert [(model.name, model.state) for model in found["index"].models] == [
        ("control", "READY"),
        ("ensemble", "READY"),
        ("student", "READY"),
    ]


GOOD = {"name": "price", "datatype": "FP64", "shape": [1], "data": [1.0]}

FAULTS: list[tuple[str, Any, grpc.StatusCode, str]] = [
    ("another model", infer_request([GOOD], model_name="s3cret"), grpc.StatusCode.NOT_FOUND, "unknown_model"),
    ("another version", infer_request([GOOD], model_version="9"), grpc.StatusCode.NOT_FOUND, "unknown_version"),
    ("no tensor", infer_request([]), grpc.StatusCode.INVALID_ARGUMENT, "missing_candidates"),
    ("two of one name", infer_request([GOOD, GOOD]), grpc.StatusCode.INVALID_ARGUMENT, "invalid_tensor"),
    ("another output", infer_request([GOOD], outputs=("s3cret",)), grpc.StatusCode.INVALID_ARGUMENT, "unknown_output"),
    ("a shape of more", infer_request([{**GOOD, "shape": [2]}]), grpc.StatusCode.INVALID_ARGUMENT, "invalid_tensor"),
    ("a negative shape", infer_request([{**GOOD, "shape": [-1]}]), grpc.StatusCode.INVALID_ARGUMENT, "invalid_tensor"),
    ("a billion", infer_request([{**GOOD, "shape": [10**9]}]), grpc.StatusCode.INVALID_ARGUMENT, "too_many_candidates"),
    ("a long id", infer_request([GOOD], id="x" * 257), grpc.StatusCode.INVALID_ARGUMENT, "invalid_id"),
    (
        "text for a number",
        infer_request([{"name": "price", "datatype": "BYTES", "shape": [1], "data": ["s3cret"]}]),
        grpc.StatusCode.INVALID_ARGUMENT,
        "wrong_type",
    ),
]  # fmt: skip


@pytest.mark.parametrize("case", FAULTS, ids=[case[0].replace(" ", "-") for case in FAULTS])
def test_each_fault_has_its_status_and_its_code(repository: Path, case: Any):
    """The words are the detail of the problem document, and never what was sent."""
    _, message, status, code = case

    async def refused() -> tuple[Any, ...]:
        async with serving(repository) as (app, channel):
            found = await refusal(caller(channel, "ModelInfer")(message))
            return (*found, app.predictor.admission.in_flight)

    found = asyncio.run(refused())

    assert found[:2] == (status, code)
    assert found[2]
    assert "s3cret" not in found[2]
    assert found[3] == 0


def test_limits_are_those_of_http(repository: Path):
    """Admission in one count, before a byte is parsed; the length of a message; a deadline; and what is no message."""

    async def limits() -> tuple[dict[str, Any], str]:
        found = {}
        async with serving(repository, max_in_flight=1, max_body_bytes=2000) as (app, channel):
            infer = caller(channel, "ModelInfer")
            raw = channel.unary_unary(f"/{SERVICE}/ModelInfer")
            app.predictor.admission.in_flight = 1
            found["overloaded"] = await refusal(raw(b"\xff\xff"))
            app.predictor.admission.in_flight = 0
            found["rubbish"] = await refusal(raw(b"\xff\xff"))
            late = infer_request([GOOD])
            late.parameters["timeout"].int64_param = 1
            found["timeout"] = await refusal(infer(late))
            found["other"] = await refusal(channel.unary_unary(f"/{SERVICE}/ModelConfig")(b""))
            reply: Any = await ask(app, "/metrics", method="GET")
            # Last: the library refuses it, and whether we then see a call that ends without a message is a race.
            found["long"] = await refusal(infer(infer_request([{**GOOD, "shape": [300], "data": [1.0] * 300}])))
            return found, reply.body.decode()

    found, text = asyncio.run(limits())

    assert found["overloaded"][:2] == (grpc.StatusCode.RESOURCE_EXHAUSTED, "overloaded")
    assert found["rubbish"][:2] == (grpc.StatusCode.INVALID_ARGUMENT, "invalid_request")
    assert found["long"][0] is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert found["timeout"][:2] == (grpc.StatusCode.DEADLINE_EXCEEDED, "deadline_exceeded")
    assert found["other"][0] is grpc.StatusCode.UNIMPLEMENTED
    route = f"/{SERVICE}/ModelInfer"
    assert metric(text, "retort_requests_total", route=route, code="429") == 1
    assert metric(text, "retort_requests_total", route=route, code="422") == 1
    assert metric(text, "retort_refused_total", reason="deadline_exceeded") == 1


def test_a_compressed_message_is_bounded_by_what_it_expands_to(repository: Path):
    """The library's own compression: a bomb is refused, a message is read."""

    async def packed() -> tuple[Any, Any]:
        async with serving(repository, max_body_bytes=2000) as (_, channel):
            good = await caller(channel, "ModelInfer")(infer_request([GOOD]), compression=grpc.Compression.Gzip)
            raw = channel.unary_unary(f"/{SERVICE}/ModelInfer")
            return good, await refusal(raw(bytes(1 << 20), compression=grpc.Compression.Gzip))

    good, refused = asyncio.run(packed())

    assert good.model_name == "student"
    assert refused[0] is grpc.StatusCode.RESOURCE_EXHAUSTED


async def _no_message() -> AsyncIterator[bytes]:
    await asyncio.Event().wait()
    yield b""


def test_a_call_whose_message_does_not_come_is_not_waited_for(repository: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("service.oip.rpc.server.REQUEST_SECONDS", 0.3)

    async def wait() -> tuple[Any, Any]:
        async with serving(repository) as (_, channel):
            silent = channel.stream_unary(f"/{SERVICE}/ModelInfer")
            return await refusal(silent(_no_message())), await refusal(silent(iter([])))

    late, empty = asyncio.run(wait())

    assert late[:2] == (grpc.StatusCode.DEADLINE_EXCEEDED, "request_timeout")
    assert empty[:2] == (grpc.StatusCode.INVALID_ARGUMENT, "invalid_request")


def test_of_more_calls_without_a_message_than_are_held_the_longest_goes(
    repository: Path, monkeypatch: pytest.MonkeyPatch
):
    """Whoever opens call after call shuts nobody out."""
    monkeypatch.setattr("service.oip.rpc.server.REQUEST_SECONDS", 300)
    monkeypatch.setattr("service.oip.rpc.server.MAX_ARRIVING", 5)

    async def wait() -> tuple[list[Any], Any]:
        async with serving(repository, max_in_flight=1) as (_, channel):
            silent = channel.stream_unary(f"/{SERVICE}/ModelInfer")
            calls = [silent(_no_message()) for _ in range(5)]
            refused = []
            for _ in range(15):  # one too many each time: of many too many at once the library refuses some itself
                calls.append(silent(_no_message()))
                while not (ended := [call for call in calls if call.done()]):
                    await asyncio.sleep(0.005)
                refused += [await refusal(call) for call in ended]
                calls = [call for call in calls if call not in ended]
            good = await caller(channel, "ModelInfer")(infer_request([GOOD]))
            for call in calls:
                call.cancel()
            return refused, good

    refused, good = asyncio.run(wait())

    assert good.model_name == "student"
    assert [entry[:2] for entry in refused] == [(grpc.StatusCode.DEADLINE_EXCEEDED, "request_timeout")] * 15


def test_a_calls_own_deadline_counts(tmp_path: Path):
    """A model that takes longer is not run for it."""
    write_slow_ensemble(tmp_path, "ensemble")

    async def late() -> Any:
        async with serving(tmp_path) as (_, channel):
            return await refusal(
                caller(channel, "ModelInfer")(infer_request([GOOD], model_name="ensemble"), timeout=0.003)
            )

    assert asyncio.run(late())[0] is grpc.StatusCode.DEADLINE_EXCEEDED


def test_every_method_is_public_by_name_or_closed(repository: Path):
    """The allow-list of HTTP, method by method; without a token nobody gets in, with another neither."""
    assert methods().keys() - PUBLIC == {"RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload"}

    async def knock() -> list[tuple[str, Any, Any]]:
        found = []
        async with serving(repository) as (_, off), serving(repository, admin_token=TOKEN) as (_, on):
            for name in sorted(methods().keys() - PUBLIC):
                message = methods()[name][0]()
                wrong = (("authorization", "Bearer s3cret"),)
                found.append(
                    (
                        name,
                        await refusal(caller(off, name)(message, metadata=METADATA)),
                        await refusal(caller(on, name)(message, metadata=wrong)),
                    )
                )
        return found

    for _, off, wrong in asyncio.run(knock()):
        assert off[:2] == (grpc.StatusCode.PERMISSION_DENIED, "admin_off")
        assert wrong[:2] == (grpc.StatusCode.UNAUTHENTICATED, "unauthorized")


def test_models_are_loaded_and_unloaded(own_repository: Path):
    """By the same hand as over HTTP."""
    from tests.models.tiny_bundle import write_tiny_bundle

    for bias in (-1.0, -2.0):
        write_tiny_bundle(own_repository, "control", bias=bias)

    async def change() -> list[Any]:
        async with serving(own_repository, admin_token=TOKEN) as (app, channel):
            load, unload = caller(channel, "RepositoryModelLoad"), caller(channel, "RepositoryModelUnload")
            message = methods()["RepositoryModelLoad"][0](model_name="control")
            message.parameters["version"].string_param = "1"
            await load(message, metadata=METADATA)
            found: list[Any] = [app.registry.live.get("control")]
            gone = methods()["RepositoryModelUnload"][0](model_name="control")
            await unload(gone, metadata=METADATA)
            found.append(app.registry.live.get("control"))
            gone.model_name = "student"
            found.append(await refusal(unload(gone, metadata=METADATA)))
            return found

    first, second, third = asyncio.run(change())

    assert (first, second) == (1, None)
    assert third[:2] == (grpc.StatusCode.FAILED_PRECONDITION, "model_in_use")


@pytest.fixture(scope="module")
def port(repository: Path) -> Iterator[int]:
    """A server in a loop of its own thread, for tests that are not asynchronous themselves."""
    ready: Any = threading.Event()
    found: dict[str, Any] = {}

    async def serve() -> None:
        async with started(make_app(repository)) as app:
            server = RpcServer(app)
            found["port"] = server._server.add_insecure_port("127.0.0.1:0")
            await server._server.start()
            found["loop"], found["stop"] = asyncio.get_running_loop(), asyncio.Event()
            ready.set()
            await found["stop"].wait()
            await server.stop(1.0)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert ready.wait(PATIENCE_SECONDS)
    yield found["port"]
    found["loop"].call_soon_threadsafe(found["stop"].set)
    thread.join(PATIENCE_SECONDS)


names = st.sampled_from([*FIELDS.by_name, "candidates", "context", "tags_ids", "x"])
tensors = st.tuples(
    names,
    st.sampled_from([*DATATYPES, "BF16", ""]),
    st.lists(st.sampled_from([0, 1, 2, 3, -1, 2**62]), max_size=3),
    st.binary(max_size=24),
)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(given_tensors=st.lists(tensors, max_size=3), missing=st.integers(0, 1), rubbish=st.binary(max_size=30))
def test_whatever_comes_it_is_scores_or_a_named_refusal(port: int, given_tensors: Any, missing: int, rubbish: bytes):
    """Never INTERNAL or UNKNOWN, never nothing."""
    message = methods()["ModelInfer"][0](model_name="student")
    for name, datatype, shape, data in given_tensors:
        message.inputs.add(name=name, datatype=datatype, shape=shape)
        message.raw_input_contents.append(data)
    del message.raw_input_contents[len(given_tensors) - missing :]
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        for body in (message.SerializeToString(), rubbish):
            code = None
            try:
                call(body, timeout=PATIENCE_SECONDS)
            except grpc.RpcError as error:
                code = error.code()  # type: ignore[attr-defined]
            assert code in (None, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)


def test_the_messages_are_those_of_the_file():
    """Each one, and each field with its number; the file is read whole."""
    text = re.sub(r"//.*", "", PROTO.read_text(encoding="utf-8"))
    pool = methods()["ModelInfer"][0].DESCRIPTOR.file

    assert set(re.findall(r"message (\w+)", text)) == set(pool.message_types_by_name)
    assert len(re.findall(r"= \d+;", text)) == sum(
        len(message.fields) for message in pool.message_types_by_name.values()
    )
    assert len(methods()) == len(re.findall(r"\brpc ", text))
    parameter = pool.message_types_by_name["InferParameter"]
    assert [field.name for field in parameter.oneofs_by_name["parameter_choice"].fields] == [
        "bool_param",
        "int64_param",
        "string_param",
        "double_param",
        "uint64_param",
    ]


def test_a_service_that_does_not_speak_it_does_not_load_it():
    """Nor where the extra is installed."""
    code = "import sys, service.app; print([m for m in ('grpc', 'google.protobuf') if m in sys.modules])"

    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)

    assert done.stdout.strip() == "[]", done.stderr


def test_without_the_extra_the_port_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    """At the start, with what to install; also where half of it is there."""
    from service.__main__ import main

    def half(name: str) -> object:
        if name == "grpc":
            return name
        raise ModuleNotFoundError("No module named 'google'")

    for find in (lambda _: None, half):
        monkeypatch.setattr("service.__main__.find_spec", find)

        assert main(["--repository", str(tmp_path), "--grpc-port", "0"]) == 2
        assert "pip install 'retort[grpc]'" in capsys.readouterr().err


def test_workers_share_the_port_and_answer_what_they_have_begun(repository: Path, tmp_path: Path):
    """Two workers on one port; a port that another has is refused; SIGTERM ends them with exit code 0."""
    options = ["--repository", str(repository), "--workers", "2", "--grpc-port", "0"]
    with running_service(tmp_path / "log", *options) as running:
        wait_for(lambda: running.ready_count() == 2, "both workers are ready")
        port = int(re.findall(r"gRPC is spoken on \S+:(\d+)", running.log_text())[0])
        expected = running.request("POST", "/models/student/predict", request_of(1, 2)).json()["pctr"]
        for _ in range(20):
            options_ = [("grpc.use_local_subchannel_pool", 1)]
            with grpc.insecure_channel(f"127.0.0.1:{port}", options=options_) as channel:
                answer = caller(channel, "ModelInfer")(
                    infer_request(tensors_of(CONTEXT, [candidate(1), candidate(2)])), timeout=PATIENCE_SECONDS
                )
                np.testing.assert_allclose(scores(answer)["pctr"], expected, rtol=1e-6)
        other = subprocess.run(
            [sys.executable, "-m", "service", "--repository", str(repository), "--port", "0", "--grpc-port", str(port)],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert running.stop() == 0
    assert (other.returncode, "cannot listen" in other.stderr) == (2, True), other.stderr
    assert "Traceback" not in running.log_text()
