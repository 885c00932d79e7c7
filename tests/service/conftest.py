"""A repository of three tiny real bundles, and an application that serves it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from service.app import Service
from tests.models.tiny_bundle import write_tiny_bundle
from tests.service.running import make_app, wait_until_ready


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """student, ensemble (with teachers) and control, version 1 each. Read only: tests that publish make their own."""
    root = tmp_path_factory.mktemp("repository")
    write_tiny_bundle(root, "student", bias=0.0)
    write_tiny_bundle(root, "ensemble", bias=1.0, teachers=3)
    write_tiny_bundle(root, "control", bias=-1.0)
    return root


@pytest.fixture(scope="module")
def app(repository: Path) -> Service:
    """The shipped experiment over the session's repository."""
    return make_app(repository)


@pytest.fixture(scope="module")
def client(app: Service) -> Iterator[TestClient]:
    """A client of a ready application."""
    with TestClient(app, raise_server_exceptions=False) as client:
        wait_until_ready(client)
        yield client


@pytest.fixture
def own_repository(tmp_path: Path) -> Path:
    """A repository of this test alone, with `student` and `ensemble`, version 1."""
    root = tmp_path / "repository"
    root.mkdir()
    write_tiny_bundle(root, "student", bias=0.0)
    write_tiny_bundle(root, "ensemble", bias=1.0, teachers=3)
    return root
