"""A public log that is not there, or not whole, is refused with what it has and where it is found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from training.data.public_logs import PUBLIC_LOGS, open_log
from training.data.sources import SourceSettings
from training.errors import DataError

DOCUMENT = (Path(__file__).parents[2] / "docs" / "logs.md").read_text(encoding="utf-8")


def settings(**values: Any) -> Any:
    return TypeAdapter(SourceSettings).validate_python(values)


@pytest.mark.parametrize("kind", PUBLIC_LOGS)
def test_a_folder_that_is_not_there_is_told_with_its_files(kind: str, tmp_path: Path):
    with pytest.raises(DataError) as refused:
        open_log(settings(kind=kind), base=tmp_path, data=tmp_path)

    for names in PUBLIC_LOGS[kind].files:
        assert names[0] in str(refused.value)
    assert PUBLIC_LOGS[kind].page in str(refused.value)


@pytest.mark.parametrize("kind", ["kuairand_pure", "ml_latest_small", "obd_small"])
def test_a_file_that_is_missing_is_named(kind: str, tmp_path: Path):
    (tmp_path / kind).mkdir()
    files = [names[0] for names in PUBLIC_LOGS[kind].files]
    for name in files[1:]:
        (tmp_path / kind / name).write_bytes(b"")

    with pytest.raises(DataError, match=rf"{kind}: {files[0]}: no such file\. The folder {kind}/ has"):
        open_log(settings(kind=kind), base=tmp_path, data=tmp_path)
    (tmp_path / kind / files[0]).write_bytes(b"")
    with pytest.raises(DataError, match="empty"):  # all are there: what is in them is another matter
        open_log(settings(kind=kind), base=tmp_path, data=tmp_path)


def test_a_log_of_ones_own_is_refused_in_its_own_words(tmp_path: Path):
    with pytest.raises(DataError, match="no file matches") as refused:
        open_log(settings(kind="files", paths=["*.csv"]), base=tmp_path, data=None)

    assert "docs/logs.md" not in str(refused.value)


@pytest.mark.parametrize("kind", PUBLIC_LOGS)
def test_the_document_has_each_file_and_where_it_comes_from(kind: str):
    assert all(names[0] in DOCUMENT for names in PUBLIC_LOGS[kind].files)
    assert all(Path(name).name in DOCUMENT for name in PUBLIC_LOGS[kind].originals)
    assert kind in DOCUMENT
