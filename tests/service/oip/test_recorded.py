"""What clients from PyPI really send, taken down by `python -m tests.conformance --record`: answered as it was then."""

import base64
import gzip
import json
import zlib
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.conformance.__main__ import CLIENTS
from tests.service.oip.tensors import HEADER, outputs_in

RECORDED: list[dict[str, Any]] = json.loads((Path(__file__).parent / "recorded_requests.json").read_text())
# Another version of `control` was live then, and a token was set.
OURS = [entry for entry in RECORDED if "/control/" not in entry["path"] and "/repository/" not in entry["path"]]


@pytest.mark.parametrize("entry", OURS, ids=[f"{number}-{entry['client']}" for number, entry in enumerate(OURS)])
def test_a_recorded_request_is_answered_as_it_was(client: TestClient, entry: dict[str, Any]):
    """Byte for byte what the client sent, headers and all; the scores are those that it compared with /predict's."""
    headers = [(name, value) for name, value in entry["headers"] if name != "connection"]
    with client.stream(
        entry["method"], entry["path"], content=base64.b64decode(entry["body"]), headers=headers
    ) as reply:
        content = b"".join(reply.iter_raw())

    assert reply.status_code == entry["status"]
    coding = reply.headers.get("content-encoding")
    content = gzip.decompress(content) if coding == "gzip" else zlib.decompress(content) if coding else content
    if entry["pctr"] is not None:
        found = outputs_in(content, reply.headers.get(HEADER))["pctr"].tolist()
        assert found == pytest.approx(entry["pctr"], rel=1e-6)
    elif entry["status"] != 200:
        assert json.loads(content)["error"]


def test_every_client_over_http_is_recorded():
    """With requests that compress, send bytes, and name versions."""
    assert {entry["client"] for entry in RECORDED} == {name for name in CLIENTS if "grpc" not in name}
    headers = [dict(entry["headers"]) for entry in OURS]
    assert {told.get("content-encoding") for told in headers} == {None, "gzip", "deflate"}
    assert any(HEADER in told for told in headers)
    assert any("/versions/1/infer" in entry["path"] for entry in OURS)
