"""A service that keeps a log."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from tests.service.running import make_app, wait_until_ready


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "log"


@pytest.fixture
def client(repository: Path, folder: Path) -> Iterator[TestClient]:
    """The shipped experiment, with a log."""
    with TestClient(make_app(repository, log=folder), raise_server_exceptions=False) as client:
        wait_until_ready(client)
        yield client
