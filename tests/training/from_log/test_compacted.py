"""The same log, as segments and as the Parquet that `python -m service compact` makes of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from service.__main__ import main as service_main
from tests.training.from_log.test_from_log import LATER, NOW, SCHEMA, WINDOW, event, exposure, write_log
from training.errors import DataError
from training.from_log.join import Choice, join


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A log of everything there is, and beside it the same compacted."""
    pytest.importorskip("duckdb")
    records: list[Any] = [exposure("a"), event("click", 1, request_id="a"), event("impression", 2, request_id="a")]
    records += [exposure("columns", candidates={"unit": ["x", "y", "z"], "campaign": [1, 2, 2**64 - 1]})]
    records += [event("impression", n, request_id="columns") for n in range(3)]
    records += [exposure("ids", candidates=None, candidate_ids=["p", "q", "p"]), event("click", 1, request_id="ids")]
    records += [exposure("bare", context=None, candidates=None), event("click", request_id="bare")]
    records += [{"kind": "failure", "request_id": "f", "time": NOW, "unit": "u", "experiment": "e", "phase": 1}]
    records[-1] |= {"arm": "a", "code": "x", "latency_ms": 1.0}
    records += [exposure("model route", experiment=None, phase=None, arm=None)]
    records += [event("click", request_id="model route")]
    records += [event("click", 1, request_id="a", event_id="again"), {"kind": "from the future"}, b"{"]
    write_log(tmp_path / "log", *records)
    (segment,) = (tmp_path / "log").glob("*.seg")
    segment.write_bytes(segment.read_bytes() + b"torn")
    options = ["--out", str(tmp_path / "parquet"), "--keep-days", "36500"]
    assert service_main(["compact", str(tmp_path / "log"), *options]) == 0
    return tmp_path


def test_the_same_rows_and_the_same_counts_come_of_both(folder: Path):
    """Raw features, too, with integers that take 64 bits."""
    found = [
        join([folder / name], SCHEMA, Choice(WINDOW, LATER), catalogue={"q": {"unit": "from the catalogue"}})
        for name in ("log", "parquet")
    ]

    assert len(found[0].table) == 7
    assert None in found[0].table["phase"].to_pylist()
    assert found[0].table["campaign"].to_pylist().count(str(2**64 - 1)) == 1
    assert found[0].table.equals(found[1].table)
    assert dict(+found[0].counts) == dict(+found[1].counts)
    assert found[0].counts["torn"] == 1
    assert found[0].counts["unreadable"] == 2


def test_parts_that_are_being_made_one_are_read_once(folder: Path):
    """As whoever was killed meanwhile has left them: the merged one is there, and what it replaces is too."""
    whole = join([folder / "parquet"], SCHEMA, Choice(WINDOW, LATER))
    (part,) = (folder / "parquet").glob("part-*")
    merged = shutil.copytree(part, part.with_name(part.name.replace("part-", "merged-")))
    (merged / "replaces.json").write_text(json.dumps([part.name]))

    found = join([folder / "parquet"], SCHEMA, Choice(WINDOW, LATER))

    assert found.table.equals(whole.table)
    assert dict(+found.counts) == dict(+whole.counts)


def test_a_damaged_part_is_refused_by_name(folder: Path):
    (path,) = (folder / "parquet").glob("part-*/exposures/*/*.parquet")
    path.write_bytes(path.read_bytes()[:-20])

    with pytest.raises(DataError, match=r"parquet: is damaged: .*compact the segments again"):
        join([folder / "parquet"], SCHEMA, Choice(WINDOW, LATER))


def test_what_is_no_json_in_it_is_unreadable(folder: Path):
    """Which `compact` never writes; somebody else may have."""
    (path,) = (folder / "parquet").glob("part-*/exposures/*/*.parquet")
    table = pq.ParquetFile(path).read()
    texts = [None if text is None else "{" for text in table["context"].to_pylist()]
    place = table.column_names.index("context")
    pq.write_table(table.set_column(place, "context", pa.array(texts, pa.string())), path)

    with pytest.raises(DataError, match="unreadable 6"):
        join([folder / "parquet"], SCHEMA, Choice(WINDOW, LATER))
