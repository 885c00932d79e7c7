"""Units under a keyed hash."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from service.errors import ConfigError
from tests.service.journal.reading import records
from tests.service.running import make_app, request_of, wait_until_ready

KEY = "7" * 32


def key_file(tmp_path: Path, key: str) -> Path:
    path = tmp_path / "unit.key"
    path.write_text(key)
    return path


def test_a_unit_has_one_name_that_only_the_key_gives(repository: Path, tmp_path: Path):
    """The arm is that of the unit as it was sent; the key's last line break is none of it."""
    folder = tmp_path / "log"
    app = make_app(repository, log=folder, log_unit_key_file=key_file(tmp_path, KEY + "\n"))
    with TestClient(app) as client:
        wait_until_ready(client)
        arms = [client.post("/predict", json=request_of(1, unit_id=unit)).json()["arm"] for unit in ("é", 7, "é")]

    found = records(folder)
    assert [record["arm"] for record in found] == arms
    assert [record["unit"] for record in found] == [
        hmac.new(KEY.encode(), unit.encode(), hashlib.sha256).hexdigest()[:32] for unit in ("é", "7", "é")
    ]


@pytest.mark.parametrize("key", [None, "", "short\n"])
def test_a_key_that_would_not_do_stops_the_start(repository: Path, tmp_path: Path, key: str | None):
    path = tmp_path / "nowhere" if key is None else key_file(tmp_path, key)

    with pytest.raises(ConfigError, match=r"--log-unit-key-file \(RETORT_LOG_UNIT_KEY_FILE\)"):
        make_app(repository, log=tmp_path / "log", log_unit_key_file=path)
