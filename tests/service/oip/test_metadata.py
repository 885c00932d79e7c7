"""What the server and its models say of themselves, to those who ask in the protocol's words."""

from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.oip.metadata import EXTENSIONS
from tests.models.tiny_bundle import write_tiny_bundle
from tests.service.oip.tensors import FIELDS, tensor
from tests.service.running import make_app, running_service, wait_until_ready


def test_the_server_says_what_it_speaks(client: TestClient):
    """Name, version and the extensions that are really there."""
    answer = client.get("/v2").json()

    assert (answer["name"], answer["extensions"]) == ("retort", list(EXTENSIONS))
    assert answer["version"]
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}


def test_a_model_lists_a_tensor_for_every_field_it_takes(client: TestClient):
    """With the datatype that holds all its values; what serving does not know, it does not ask for."""
    answer = client.get("/v2/models/student").json()

    assert (answer["name"], answer["versions"], answer["platform"]) == ("student", ["1"], "retort_onnx")
    assert {given["name"]: given["datatype"] for given in answer["inputs"]} == {
        "device": "BYTES",
        "hour": "INT64",
        "age": "INT64",
        "premium": "BOOL",
        "visited": "BYTES",
        "ad_id": "BYTES",
        "price": "FP64",
        "campaign": "INT64",
        "tags": "BYTES",
    }
    assert all(given["shape"] == [-1] for given in answer["inputs"])
    assert "position" in FIELDS.by_name


def test_a_request_made_of_the_metadata_is_answered(client: TestClient):
    """By every model, with the outputs, datatypes and shapes that it announced."""
    examples: dict[str, Any] = {"BYTES": "", "INT64": 3, "FP64": 0.5, "BOOL": True}
    for model in ("student", "ensemble", "control"):
        told = client.get(f"/v2/models/{model}").json()
        inputs = [tensor(given["name"], given["datatype"], [examples[given["datatype"]]]) for given in told["inputs"]]

        answer = client.post(f"/v2/models/{model}/infer", json={"inputs": inputs}).json()

        assert [output["name"] for output in answer["outputs"]] == [output["name"] for output in told["outputs"]]
        for output, announced in zip(answer["outputs"], told["outputs"], strict=True):
            assert output["datatype"] == announced["datatype"]
            assert output["shape"] == [1 if length == -1 else length for length in announced["shape"]]


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("student", 200, None),
        ("student/ready", 200, None),
        ("student/stats", 200, None),
        ("student/versions/1", 200, None),
        ("student/versions/1/ready", 200, None),
        ("student/versions/1/stats", 200, None),
        *((f"nobody{rest}", 404, "unknown_model") for rest in ("", "/ready", "/stats", "/versions/1/ready")),
        *((f"student/versions/2{rest}", 404, "unknown_version") for rest in ("", "/ready", "/stats")),
        ("student/versions/x/ready", 404, "unknown_version"),
        ("%2e%2e", 404, "unknown_model"),
        ("student/config", 404, "not_found"),
    ],
)
def test_what_is_not_there_is_404(client: TestClient, path: str, status: int, code: str | None):
    """With `error`, which the protocol's clients read, and the path never repeated."""
    reply = client.get(f"/v2/models/{path}")

    assert reply.status_code == status
    if code is not None:
        assert (reply.json()["code"], bool(reply.json()["error"])) == (code, True)
        assert path not in reply.text


def test_another_method_is_refused_with_those_allowed(client: TestClient):
    """405 in the same form."""
    for method, path, allowed in (("PUT", "/v2/models/student/infer", "POST"), ("POST", "/v2", "GET")):
        reply = client.request(method, path)

        assert (reply.status_code, reply.json()["code"], reply.headers["allow"]) == (405, "method_not_allowed", allowed)
        assert reply.json()["error"]


def test_versions_that_are_not_live_are_listed_and_not_ready(own_repository: Path):
    """A request that names one loads it; from then on it is ready, and has statistics."""
    (own_repository / "student" / "live").write_text("1")
    write_tiny_bundle(own_repository, "student", bias=3.0)
    with TestClient(make_app(own_repository)) as client:
        wait_until_ready(client)
        path = "/v2/models/student/versions/2"

        assert client.get("/v2/models/student").json()["versions"] == ["1", "2"]
        assert (client.get(f"{path}/ready").status_code, client.get(f"{path}/ready").json()["code"]) == (
            503,
            "not_ready",
        )
        assert client.get(f"{path}/stats").json()["model_stats"][0]["inference_count"] == 0
        assert client.post(f"{path}/infer", json={"inputs": [tensor("price", "FP64", [1.0])]}).status_code == 200
        assert client.get(f"{path}/ready").status_code == 200
        assert client.get(path).json()["versions"] == ["2"]
        stats = client.get("/v2/models/student/stats").json()["model_stats"]
        assert [(model["version"], model["inference_count"]) for model in stats] == [("1", 0), ("2", 1)]
        everything = client.get("/v2/models/stats").json()["model_stats"]
        assert [(model["name"], model["version"]) for model in everything] == [
            ("ensemble", "1"),
            ("student", "1"),
            ("student", "2"),
        ]


def test_statistics_are_those_of_all_workers(repository: Path, tmp_path: Path):
    """Whichever worker is asked; connections are spread as the kernel likes."""
    with running_service(tmp_path / "log", "--repository", str(repository), "--workers", "2") as running:
        for _ in range(20):
            body = {"inputs": [tensor("price", "FP64", [1.0, 2.0])]}
            assert running.request("POST", "/v2/models/student/infer", body).status == 200
        answers = [running.request("GET", "/v2/models/student/stats").json() for _ in range(5)]

    for answer in answers:
        (model,) = answer["model_stats"]
        assert (model["inference_count"], model["execution_count"]) == (40, 20)
