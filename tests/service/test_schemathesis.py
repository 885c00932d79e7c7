"""Every route by its own description: schemathesis makes requests of the OpenAPI, and holds the answers against it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from starlette.testclient import TestClient

from service.app import create_app
from service.settings import Settings
from tests.models.tiny_bundle import write_tiny_bundle
from tests.service.running import TOKEN, make_app, wait_until_ready

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
"""Not among them is that all that the description allows is accepted: what a value must be is the model's schema."""


@schemathesis.serializer("application/x-ndjson")
def to_lines(_: Any, value: Any) -> bytes:
    """One line of whatever was made."""
    return value if isinstance(value, bytes) else str(value).encode()


def described() -> Any:
    """The operations of the OpenAPI."""
    app = create_app(Settings(repository=Path()))
    return schemathesis.openapi.from_dict(app.openapi())


SCHEMA = described()
OPERATIONS = {operation.ok().label: operation.ok() for operation in SCHEMA.get_all_operations()}


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """An application that may be asked for anything, by an administrator too."""
    folder = tmp_path_factory.mktemp("described")
    write_tiny_bundle(folder / "repository", "student")
    write_tiny_bundle(folder / "repository", "ensemble", bias=1.0, teachers=3)
    (folder / "token").write_text(TOKEN)
    app = make_app(
        folder / "repository", admin_token_file=folder / "token", catalogue=folder / "catalogue", max_loaded_extra=1
    )
    with TestClient(app, raise_server_exceptions=False) as client:
        wait_until_ready(client)
        yield client


def ask_by_description(client: TestClient, label: str, cases: int) -> None:
    """So many requests as described, and where there is a body, so many that break the description: none is answered by
    a 5xx, nor by a status, a type, a header or a body that is not described."""
    operation = OPERATIONS[label]
    modes = [GenerationMode.POSITIVE]
    if operation.body:
        modes.append(GenerationMode.NEGATIVE)
    for mode in modes:
        run = check_all(client, operation.as_strategy(generation_mode=mode), cases)
        run()


def check_all(client: TestClient, requests: Any, cases: int) -> Callable[[], None]:
    """A test of so many of these requests, the same each time."""

    @hypothesis.settings(
        max_examples=cases,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @hypothesis.given(requests)
    def run(case: Any) -> None:
        sent = case.as_transport_kwargs(base_url="http://testserver")
        answered = client.request(
            sent["method"],
            sent["url"],
            params=sent.get("params"),
            headers={**dict(sent.get("headers") or {}), "authorization": f"Bearer {TOKEN}"},
            **({"json": sent["json"]} if "json" in sent else {"content": sent.get("data")}),
        )
        assert answered.status_code < 500 or answered.status_code == 504, answered.text
        case.validate_response(answered, checks=CHECKS if answered.status_code != 504 else CHECKS[1:])

    return run


@pytest.mark.parametrize("label", OPERATIONS)
def test_what_is_answered_is_what_is_described(asked: TestClient, label: str):
    """A few requests a route, the same ones each time."""
    ask_by_description(asked, label, 3)


@pytest.mark.soak
@pytest.mark.parametrize("label", OPERATIONS)
def test_what_is_answered_is_what_is_described_thousands_of_times(asked: TestClient, label: str):
    """A hundred a route, and a hundred broken ones where there is a body."""
    ask_by_description(asked, label, 100)
