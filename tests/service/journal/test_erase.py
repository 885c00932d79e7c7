"""One unit is taken out of a log, and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from models.journal.reading import segment_paths
from service.__main__ import main
from service.journal.erase import erase_unit
from service.journal.units import unit_hasher
from tests.service.journal.reading import records
from tests.service.journal.test_joined import event, exposure, join
from tests.service.journal.test_units import KEY, key_file
from tests.service.running import make_app, request_of, wait_until_ready


def test_exposures_of_a_unit_go_with_the_events_of_its_requests(tmp_path: Path):
    """Those of others stay, byte for byte and in their order; so do the age of a segment and its mode."""
    ours = [exposure(f"r-{number}", unit="them") for number in range(20)]
    told = [event("click", request_id=f"r-{number}") for number in range(20)]
    others = [exposure(f"s-{number}", unit="them too") for number in range(20)]
    theirs = [event("click", request_id=f"s-{number}") for number in range(20)]
    join(tmp_path, *(one for four in zip(theirs, told, ours, others, strict=True) for one in four))
    for path in segment_paths(tmp_path):
        os.utime(path, (5, 5))

    assert erase_unit(tmp_path, "them") == (40, 0)

    assert records(tmp_path) == [one for two in zip(theirs, others, strict=True) for one in two]
    assert {path.stat().st_mtime for path in segment_paths(tmp_path)} == {5}
    assert {path.stat().st_mode & 0o777 for path in segment_paths(tmp_path)} == {0o640}
    assert not [path for path in tmp_path.iterdir() if b"them" in path.read_bytes().replace(b"them too", b"")]
    assert erase_unit(tmp_path, "them") == (0, 0)


def test_what_is_being_written_to_is_counted_and_left(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """While the service runs; once it has stopped, everything is sealed and can go. Under its hash, where the log has
    hashes."""
    folder, key = tmp_path / "log", key_file(tmp_path, KEY)
    command = ["erase-unit", "--log", str(folder), "--unit", "them", "--log-unit-key-file", str(key)]
    with TestClient(make_app(repository, log=folder, log_unit_key_file=key)) as client:
        wait_until_ready(client)
        for unit in ("them", "other"):
            client.post("/predict", json=request_of(1, unit_id=unit, request_id=unit))
        assert main(command) == 1
        assert capsys.readouterr().out == "0 records erased, 1 left in segments that are being written to\n"
        assert len(records(folder)) == 2

    assert main(command) == 0
    assert [record["request_id"] for record in records(folder)] == ["other"]


def test_a_folder_that_is_not_there_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["erase-unit", "--log", str(tmp_path / "nowhere"), "--unit", "u"]) == 2
    assert "no folder" in capsys.readouterr().err


def test_a_unit_is_not_said_to_be_gone_from_a_log_of_hashes_without_their_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    hashed = unit_hasher(KEY.encode())("them")
    join(tmp_path, exposure("r-1", unit=hashed))
    command = ["erase-unit", "--log", str(tmp_path), "--unit", "them"]

    assert main(command) == 2
    told = capsys.readouterr()
    assert "--log-unit-key-file" in told.err
    assert not told.out

    assert main([*command, "--log-unit-key-file", str(key_file(tmp_path, KEY))]) == 0
    assert records(tmp_path) == []
