"""From a log of the service to a log to train on: what becomes a row, what does not and where that is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from models.columns import Column
from models.encoder import Encoder
from models.journal.frames import FILE_MAGIC, frame
from models.schema import FeatureSchema
from training.cli import main
from training.data.chunks import Source
from training.data.clicks import ClickLog
from training.data.faults import Faults
from training.data.readers import FileSource
from training.errors import DataError
from training.from_log.join import Choice, Joined, join
from training.from_log.write import MOST_NAMES, said
from training.recipe import load_recipe

NOW = 1_795_300_000.0
WINDOW = 3600.0
LATER = NOW + 10 * WINDOW
SCHEMA = FeatureSchema.from_text("""
label: {column: clicked}
timestamp: {column: t, format: epoch, timezone: Europe/Berlin}
unit: {column: user}
fields:
  - {name: device, column: dev, type: string, role: context, kind: categorical, encoding: {method: vocabulary}}
  - {name: hour, derived_from: timestamp, derive: hour, type: integer, role: context, kind: categorical,
     encoding: {method: vocabulary}}
  - {name: visited, type: string, role: context, kind: sequence, separator: "|", max_length: 3,
     encoding: {method: hash, buckets: 8}}
  - {name: unit, type: string, role: candidate, kind: categorical, encoding: {method: vocabulary}}
  - {name: campaign, type: integer, role: candidate, kind: categorical, encoding: {method: hash, buckets: 16}}
  - {name: price, type: float, role: candidate, kind: numeric, encoding: {method: quantile, buckets: 4}}
  - {name: position, type: integer, role: training_only, serving_value: 1, kind: categorical,
     encoding: {method: vocabulary}}
""")
CONTEXT = {"device": "phone", "hour": 13, "visited": ["x", None, "y"]}
CANDIDATES: list[dict[str, Any]] = [{"unit": f"a{n}", "campaign": n, "price": 0.5 * n, "position": n} for n in range(3)]


def exposure(request_id: str = "r", **members: Any) -> dict[str, Any]:
    record = {"kind": "exposure", "request_id": request_id, "time": NOW, "unit": f"u-{request_id}", "model": "student"}
    record |= {"version": 3, "pctr": [0.1, 0.2, 0.3], "latency_ms": 0.5, "experiment": "e", "phase": 1, "arm": "b"}
    record |= {"enrolled": True, "propensity": 0.25, "context": CONTEXT, "candidates": CANDIDATES}
    return {name: value for name, value in {**record, **members}.items() if value is not None}


def event(event: str, candidate: int | None = 0, after: float = 1.0, **members: Any) -> dict[str, Any]:
    record = {"kind": "event", "request_id": "r", "event": event, "candidate": candidate, "time": NOW + after}
    return {**record, "received": NOW + after + 0.1, **members}


def write_log(folder: Path, *records: Any, name: str = "0000000000001-1-000001.seg") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    payloads = [record if isinstance(record, bytes) else json.dumps(record).encode() for record in records]
    (folder / name).write_bytes(FILE_MAGIC + b"".join(map(frame, payloads)))
    return folder


def joined(folder: Path, *records: Any, schema: FeatureSchema = SCHEMA, **choice: Any) -> Joined:
    write_log(folder, *records)
    options: dict[str, Any] = {"window_seconds": WINDOW, "as_of": LATER, **choice}
    return join([folder], schema, Choice(**options))


def rows(found: Joined, *columns: str) -> list[tuple[Any, ...]]:
    return list(zip(*(found.table[column].to_pylist() for column in columns), strict=True))


def counts(found: Joined) -> dict[str, int]:
    return {name: count for name, count in found.counts.items() if count}


def test_an_impression_is_a_row_with_its_features_its_click_and_its_chances(tmp_path: Path):
    """With the unit and the request it belongs to, and the propensity of its arm."""
    found = joined(tmp_path, exposure(), event("impression", 1), event("click", 1, after=8.0), event("impression", 2))

    facts = ("request_id", "candidate", "unit", "click", "click_seconds", "arm", "served", "propensity", "version")
    assert rows(found, *facts) == [
        ("r", 1, "u-r", 1, 8.0, "b", "b", 0.25, 3),
        ("r", 2, "u-r", 0, None, "b", "b", 0.25, 3),
    ]
    assert rows(found, "device", "hour", "visited", "campaign", "price", "pctr") == [
        ("phone", 13, ["x", None, "y"], 1, 0.5, 0.2),
        ("phone", 13, ["x", None, "y"], 2, 1.0, 0.3),
    ]
    assert counts(found) == {"exposures": 1, "events": 3, "rows": 2, "clicks": 1}


def test_a_field_whose_name_the_log_has_itself_gets_another_column(tmp_path: Path):
    assert rows(joined(tmp_path, exposure(), event("click")), "unit", "feature.unit") == [("u-r", "a0")]


def test_training_only_fields_are_taken_where_a_request_had_them(tmp_path: Path):
    bare = [{"unit": "a"}]
    found = joined(
        tmp_path, exposure(), exposure("s", pctr=[0.5], candidates=bare), event("click"), event("click", request_id="s")
    )

    assert rows(found, "request_id", "position") == [("r", 0), ("s", None)]


def test_candidates_as_columns_are_the_same_as_rows(tmp_path: Path):
    columns = {name: [row[name] for row in CANDIDATES] for name in CANDIDATES[0]}
    events = [event("click", 2), event("impression", 0)]
    one, other = (
        joined(tmp_path / name, exposure(candidates=given), *events)
        for name, given in (("rows", CANDIDATES), ("columns", columns))
    )

    assert one.table.equals(other.table)


def test_what_is_not_a_row_is_counted_by_its_reason(tmp_path: Path):
    """Forced, young, not shown, without features, sent twice, of nobody, late, a kind of its own, not answered."""
    records = [
        exposure("kept"),
        exposure("kept", time=NOW + 5),
        event("click", request_id="kept"),
        event("click", request_id="kept", received=NOW + 9),
        event("conversion", request_id="kept"),
        exposure("forced", forced=True, enrolled=False),
        event("click", request_id="forced"),
        exposure("young", time=LATER - WINDOW + 1),
        event("click", 0, LATER - NOW, request_id="young"),
        exposure("not shown"),
        exposure("bare", context=None, candidates=None),
        event("impression", 0, request_id="bare"),
        event("impression", 1, request_id="bare"),
        event("click", request_id="nobody"),
        exposure("late"),
        event("impression", 0, request_id="late"),
        event("click", 0, WINDOW + 1, request_id="late"),
        event("click", 7, request_id="kept"),
        {"kind": "failure", "request_id": "f", "time": NOW, "unit": "u", "code": "x"},
        {"kind": "shadow", "request_id": "kept", "time": NOW, "arm": "a", "pctr": [0.1]},
        {"kind": "from the future"},
        b"[1, 2",
        b'{"kind":"exposure","request_id":"nan","time":NaN}',
    ]
    found = joined(tmp_path, *records)

    assert rows(found, "request_id", "click") == [("kept", 1), ("late", 0)]
    assert counts(found) == {
        "exposures": 7,
        "duplicate_exposures": 1,
        "forced": 1,
        "forced_impressions": 1,
        "young": 1,
        "young_impressions": 1,
        "not_shown": 1,
        "without_features": 1,
        "without_features_impressions": 2,
        "events": 10,
        "duplicate_events": 1,
        "orphan_events": 1,
        "misplaced_events": 1,
        "late_events": 1,
        "late_clicks": 1,
        "other_events": 1,
        "failures": 1,
        "unreadable": 3,
        "rows": 2,
        "clicks": 1,
    }


def test_an_impression_waits_until_its_window_has_closed_clicked_or_not(tmp_path: Path):
    """Without --as-of, now is the last record. The same log later has it."""
    log = [exposure("old"), event("click", request_id="old"), exposure("new", time=NOW + WINDOW)]
    log.append(event("click", 0, WINDOW + 1.0, request_id="new"))

    assert rows(joined(tmp_path, *log, as_of=None), "request_id") == [("old",)]
    assert rows(joined(tmp_path, *log, as_of=NOW + 2 * WINDOW), "request_id") == [("old",), ("new",)]


def test_one_experiment_alone_and_forced_requests_on_demand(tmp_path: Path):
    log = [exposure("a"), exposure("b", experiment="other"), exposure("c", forced=True), exposure("d", experiment=None)]
    log += [event("impression", 0, request_id=name) for name in "abcd"]

    assert rows(joined(tmp_path, *log), "request_id") == [("a",), ("b",), ("d",)]
    assert rows(joined(tmp_path, *log, experiment="e", keep_forced=True), "request_id") == [("a",), ("c",)]


def test_candidates_without_a_click_make_rows_of_their_own_on_demand(tmp_path: Path):
    """Not shown beside one that was, not shown at all, or waiting; a place that nobody gave them is the serving one."""
    bare = [{"unit": "x"}, {"unit": "y", "position": 7}]
    log = [
        *(exposure("seen"), event("impression", 1, request_id="seen")),
        exposure("not shown", candidates=bare, pctr=[0.5, None]),
        *(exposure("young", time=LATER, candidates=bare, pctr=[0.1, 0.2]), event("click", 0, request_id="young")),
        exposure("forced", forced=True),
    ]

    found = joined(tmp_path, *log, unlabelled=1.0)

    assert found.unlabelled is not None
    columns = ("request_id", "candidate", "click", "position", "feature.unit")
    assert list(zip(*(found.unlabelled[name].to_pylist() for name in columns), strict=True)) == [
        *(("not shown", 0, None, 1, "x"), ("seen", 0, None, 0, "a0"), ("seen", 2, None, 2, "a2")),
        *(("young", 0, None, 1, "x"), ("young", 1, None, 7, "y")),
    ]
    assert rows(found, "request_id", "candidate") == [("seen", 1)]
    assert found.counts["unlabelled"] == 5
    assert joined(tmp_path, *log).unlabelled is None


def test_a_share_of_them_is_the_same_in_whatever_order_they_are_read(tmp_path: Path):
    log = [exposure(f"r{n}") for n in range(200)]
    log += [event("impression", 0, request_id="r0")]

    one, other = (joined(tmp_path / name, *given, unlabelled=0.25) for name, given in (("a", log), ("b", log[::-1])))

    assert one.unlabelled is not None
    assert one.unlabelled.equals(other.unlabelled)
    assert 100 < len(one.unlabelled) < 200


def test_order_and_number_of_segments_change_nothing(tmp_path: Path):
    """Rows stand by time, request and candidate, wherever their records lay: events before their exposure, too."""
    log = [exposure(name, time=NOW + at) for at, name in ((3, "c"), (1, "b"), (1, "a"))]
    log += [event("impression", candidate, 5.0, request_id=name) for name in "abc" for candidate in (2, 0)]
    first = joined(tmp_path / "one", *log)
    write_log(tmp_path / "two", *log[5:], name="0000000000001-1-000001.seg")
    write_log(tmp_path / "two", *log[:5][::-1], name="0000000000002-1-000001.seg")
    second = join([tmp_path / "two"], SCHEMA, Choice(WINDOW, LATER))

    assert rows(first, "request_id", "candidate") == [(name, n) for name in "abc" for n in (0, 2)]
    assert first.table.equals(second.table)


def test_a_torn_log_loses_what_was_torn_and_says_so(tmp_path: Path):
    write_log(tmp_path, exposure(), event("click"), exposure("s"), event("click", request_id="s"))
    (segment,) = tmp_path.glob("*.seg")
    content = segment.read_bytes()
    segment.write_bytes(content[:-10].replace(b'"u-s"', b'"u-x"'))
    found = join([tmp_path], SCHEMA, Choice(WINDOW, LATER))

    assert rows(found, "request_id") == [("r",)]
    assert (found.counts["torn"], found.counts["damaged"]) == (1, 0) or found.counts["damaged"] == 1


def test_values_of_a_wrong_type_are_missing_and_unknown_fields_are_left_out(tmp_path: Path):
    """The schema may be another than the one that was served; nothing of it is silent."""
    context = {"device": 7, "hour": 13.0, "visited": "x|y", "secret": 1, "more": None}
    candidate = {"unit": None, "campaign": 2**64 - 1, "price": "cheap"}
    found = joined(tmp_path, exposure(pctr=[0.1], context=context, candidates=[candidate]), event("click"))

    assert rows(found, "device", "hour", "visited", "feature.unit", "price") == [(None, 13, None, None, None)]
    assert found.features.bad == {"device": 1, "visited": 1, "price": 1}
    assert found.features.ignored == {"secret": 1, "more": 1}
    assert found.features.missing == dict.fromkeys(("device", "visited", "unit", "price", "position"), 1)


def test_units_under_a_keyed_hash_are_units(tmp_path: Path):
    """What parts validation rows is one name a unit; whose it is does not matter."""
    found = joined(tmp_path, exposure(unit="9f86d081884c7d65"), event("click"))

    assert rows(found, "unit") == [("9f86d081884c7d65",)]


def test_candidates_by_id_need_the_catalogue(tmp_path: Path):
    log = [exposure(candidates=None, candidate_ids=["x", "y", "z"], pctr=[0.1, None, 0.2])]
    log += [event("impression", n) for n in range(3)]
    write_log(tmp_path, *log)
    choice = Choice(WINDOW, LATER)
    found = join([tmp_path], SCHEMA, choice, catalogue={"x": CANDIDATES[1]})

    assert rows(found, "candidate", "feature.unit") == [(0, "a1")]
    assert counts(found)["candidates_unknown_impressions"] == 1
    assert counts(found)["misplaced_events"] == 1
    with pytest.raises(DataError, match=r"no impression is left to train on: .*without_features 1"):
        join([tmp_path], SCHEMA, choice)


@pytest.mark.parametrize(
    ("log", "said"),
    [
        ([], "no record"),
        ([exposure(context=None, candidates=None), event("click")], r"without_features_impressions 1.*--log-features"),
        ([exposure(time=LATER), event("click", 0, LATER - NOW)], r"young 1.*--as-of, or come later"),
        ([event("click")], "orphan_events 1"),
    ],
)
def test_a_log_without_a_row_is_refused_with_what_became_of_it(log: list[Any], said: str, tmp_path: Path):
    with pytest.raises(DataError, match=said):
        joined(tmp_path, *log)


def test_a_folder_that_is_none_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="expected the folder of the service's --log"):
        join([tmp_path / "nowhere"], SCHEMA, Choice(WINDOW))


def busy_log(folder: Path) -> Path:
    """A hundred requests in order of time, every third clicked."""
    records: list[Any] = []
    for n in range(100):
        ids = {"request_id": f"r{n:03}"}
        campaign = 2**63 + 5 if n == 50 else n % 5
        records.append(
            exposure(**ids, time=NOW + n, unit=f"u{n % 9}", candidates=[{"unit": "a", "campaign": campaign}])
        )
        records[-1]["pctr"] = [0.5]
        records.append(event("impression" if n % 3 else "click", 0, n + 1.0, **ids))
    return write_log(folder, *records)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """What the command leaves."""
    busy_log(tmp_path / "log")
    (tmp_path / "schema.json").write_text(SCHEMA.to_json())
    options = ["--schema", str(tmp_path / "schema.json"), "--out", str(tmp_path / "out")]
    assert main(["from-log", str(tmp_path / "log"), *options, "--window", "60", "--as-of", str(LATER)]) == 0
    return tmp_path / "out"


def test_rows_are_parted_by_time_and_a_request_is_never_parted(written: Path):
    table = pq.read_table(written / "log.parquet")

    assert table["split"].to_pylist() == ["train"] * 70 + ["valid"] * 20 + ["test"] * 10
    assert table["time"].to_pylist() == sorted(table["time"].to_pylist())


def test_the_recipe_and_the_schema_read_the_log_that_was_written(written: Path):
    """As any log of files: every field, the time, the unit, the label; what was wide for Parquet's integers, too."""
    loaded = load_recipe(str(written / "recipe.yaml"))
    source: Source = FileSource((written / "log.parquet",))
    log = ClickLog(source, loaded.schema, ("split",))
    (clicks,) = log.read(Faults(0.0))
    columns: dict[str, Column] = log.fields(clicks)

    assert clicks.label.sum() == 34
    assert np.diff(clicks.time).tolist() == [1_000_000] * 99
    assert len(set(clicks.unit.tolist())) == 9
    assert set(columns) == {field.name for field in SCHEMA.fields}
    encoder = Encoder(loaded.schema, {name: [] for name in ("device", "hour", "unit", "position")} | {"price": [1.0]})
    ids = encoder.encode_columns(columns).ids["campaign"]
    online = encoder.encode_candidates([{"campaign": 2**63 + 5}, {"campaign": 1}]).ids[:, 1]
    assert [ids[50], ids[51]] == online.tolist(), "one value, one id"
    assert loaded.recipe.split.by == "column"
    assert yaml.safe_load((written / "recipe.yaml").read_text())["source"] == {
        "kind": "files",
        "paths": ["log.parquet"],
    }


def test_the_report_says_all_of_it(written: Path):
    report = json.loads((written / "report.json").read_text())

    assert report["counts"]["rows"] == 100
    assert report["parts"]["test"]["rows"] == 10
    assert report["missing_values"]["price"] == 100
    assert report["window_seconds"] == 60


def test_the_same_log_gives_the_same_bytes(written: Path, tmp_path: Path):
    options = ["--schema", str(tmp_path / "schema.json"), "--out", str(tmp_path / "again")]
    assert main(["from-log", str(tmp_path / "log"), *options, "--window", "60", "--as-of", str(LATER)]) == 0

    for name in ("log.parquet", "schema.json", "report.json"):
        assert (written / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_the_recipe_reads_the_rows_without_clicks_that_were_asked_for(tmp_path: Path):
    """And forgets those of the recipe whose networks it takes, which are of another log."""
    write_log(tmp_path / "log", *(exposure(f"r{n}") for n in range(9)), event("impression", 0, request_id="r0"))
    (tmp_path / "schema.json").write_text(SCHEMA.to_json())
    template = load_recipe("synthetic").recipe.model_dump(mode="json", exclude_unset=True)
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(template | {"unlabelled": {"source": {"paths": ["old.csv"]}}}))

    def recipe(out: str, *more: str) -> Any:
        options = ["--schema", str(tmp_path / "schema.json"), "--out", str(tmp_path / out), *more]
        options += ["--recipe", str(tmp_path / "own.yaml")]
        assert main(["from-log", str(tmp_path / "log"), *options, "--window", "60", "--as-of", str(LATER)]) == 0
        return load_recipe(str(tmp_path / out / "recipe.yaml"))

    with_ = recipe("with", "--unlabelled", "1")
    source = FileSource((tmp_path / "with" / with_.recipe.unlabelled.source.paths[0],))
    (clicks,) = ClickLog(source, with_.schema, has_labels=False).read(Faults(0.0))
    assert len(clicks) == 9 * 3 - 1
    assert recipe("without").recipe.unlabelled is None
    with pytest.raises(SystemExit):
        recipe("wrong", "--unlabelled", "1.5")


def test_nothing_is_written_over(written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    options = ["--schema", str(tmp_path / "schema.json"), "--out", str(written)]

    assert main(["from-log", str(tmp_path / "log"), *options]) == 1
    assert "is there already" in capsys.readouterr().err


def test_names_that_requests_made_up_neither_flood_nor_rule_a_terminal(tmp_path: Path):
    """Every one of them stands in the report; told are the most frequent, and nothing of them is obeyed."""
    names = ["\x1b[2J", *(f"made-up-{number}" for number in range(50))]
    log = joined(tmp_path, exposure(context={**CONTEXT, **dict.fromkeys(names, 1)}), event("impression"))
    counts = dict(log.features.ignored)
    report = {"counts": {"rows": 1, "clicks": 0, "exposures": 1}, "parts": {}, "bad_values": {}, "missing_values": {}}

    told = said({**report, "ignored_features": counts}, [])

    assert set(names) <= counts.keys()
    assert all(line.isprintable() for line in told)
    assert told[-1].endswith(f" and {len(counts) - MOST_NAMES} others")
