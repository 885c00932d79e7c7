"""docs/oip.md against the code."""

import json
import re

import pytest
from starlette.testclient import TestClient

from service.http.compression import SHORT_ANSWER
from service.oip.metadata import _DATATYPES, EXTENSIONS
from tests.conformance.__main__ import CLIENTS
from tests.service.running import ROOT

TEXT = (ROOT / "docs" / "oip.md").read_text(encoding="utf-8")


def test_its_request_gets_its_answer(client: TestClient):
    """The one to copy, and what it says will come back."""
    (request,) = re.findall(r"infer -d '\n(.*?)'", TEXT, re.DOTALL)
    (answer,) = re.findall(r"```json\n(.*?)\n```", TEXT, re.DOTALL)

    found = client.post("/v2/models/student/infer", content=request.encode()).json()

    scores, expected = found["outputs"][0].pop("data"), json.loads(answer)["outputs"][0].pop("data")
    assert scores == pytest.approx(expected, rel=1e-6)
    assert list(found) == list(json.loads(answer))
    assert f"[{expected[0]} {expected[1]}]" in TEXT


def test_every_route_it_names_is_there(client: TestClient):
    """By method and path."""
    paths = client.get("/openapi.json").json()["paths"]

    for method, path in re.findall(r"`(GET|POST) (/v2[^`]*)`", TEXT):
        assert method.lower() in paths[path]


def test_its_tables_and_bounds_are_the_codes():
    """Datatypes, extensions, clients with their versions, and what is compressed."""
    for type_, datatype in _DATATYPES.items():
        assert re.search(rf"^\| {type_} \| `{datatype}`", TEXT, re.MULTILINE)
    for extension in EXTENSIONS:
        assert f"`{extension}`" in TEXT
    for (package,), _ in CLIENTS.values():
        name, _, version = package.partition("==")
        assert f"`{name}` {version}" in TEXT or f"`{name} infer` {version}" in TEXT
    assert SHORT_ANSWER == 1024
    assert "answers of 1 KiB or more" in TEXT
