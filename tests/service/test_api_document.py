"""docs/api.md against the code: every table, every option and every bound that it names."""

import re

import pytest
from starlette.testclient import TestClient

from service.errors import PROBLEMS
from service.http import protocol
from service.http.descriptions import PREDICT_REQUEST_SCHEMA
from service.metrics import LATENCY_SECONDS, STAGE_SECONDS, STAGES, Metrics
from service.processes import worker
from service.processes.supervisor import LONGEST_PATIENCE_SECONDS
from service.scoring.request import MAX_DEADLINE_MS, MAX_ID_BYTES, MEMBERS
from service.settings import Settings
from tests.service.running import ROOT
from tests.service.test_metrics import declared

PAGES = ("GET /docs", "GET /openapi.json", "GET /console", "GET /console/assets/{name}", "GET /console/example")
TEXT = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")


def table(first_heading: str) -> list[list[str]]:
    """The rows below a heading, a list of cells each."""
    lines = TEXT.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"| {first_heading} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split(" |")])
    return rows


def code(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_every_table_is_held_here():
    """A table that is added has to be added to these tests."""
    headings = re.findall(r"^\| (\S+) \|.*\n\|-", TEXT, flags=re.MULTILINE)

    assert headings == ["route", "member", "status", "metric"]


def test_every_route_is_listed(client: TestClient):
    """Those of the OpenAPI, those that show it, and the console."""
    listed = [route for row in table("route") for route in code(row[0])]
    described = [
        f"{method.upper()} {path}"
        for path, operations in client.get("/openapi.json").json()["paths"].items()
        for method in operations
    ]

    assert sorted(listed) == sorted([*described, *PAGES])


def test_every_member_of_a_request_is_listed():
    """As the decoder takes them and the OpenAPI describes them."""
    listed = {name for row in table("member") for name in code(row[0])}

    assert listed == MEMBERS == PREDICT_REQUEST_SCHEMA["properties"].keys()


def test_every_refusal_is_listed_with_its_status():
    """One row a code."""
    rows = [(code(row[1]), int(row[0])) for row in table("status")]

    assert rows == [([str(name)], problem.status) for name, problem in PROBLEMS.items()]


def test_every_metric_is_listed_with_its_labels():
    """Those that two names share a row with stand in the order of their names, parted by a semicolon."""
    listed = {}
    for row in table("metric"):
        names, labels = code(row[0]), [tuple(code(part)) for part in row[1].split(";")]
        listed |= dict(zip(names, labels * len(names) if len(labels) == 1 else labels, strict=False))

    assert listed == {name: labels for name, (_, labels) in declared(Metrics()).items()}


def test_the_stages_and_the_buckets_are_as_listed():
    """Their names in order, and from where to where."""
    (row,) = (row for row in table("metric") if code(row[0]) == ["retort_stage_duration_seconds"])

    assert tuple(code(row[2])) == STAGES
    assert "Latency buckets run from 0.1 ms to 1 s, those of the stages from 10 us." in TEXT
    assert (LATENCY_SECONDS[0], LATENCY_SECONDS[-1], STAGE_SECONDS[0]) == (0.0001, 1.0, 0.00001)


def test_every_option_it_names_exists():
    """And has the default that is said."""
    named = set(re.findall(r"`--([a-z-]+)`", TEXT))
    defaults = dict(re.findall(r"`--([a-z-]+)` \(([\d,]+)", TEXT))

    assert {name.replace("-", "_") for name in named} <= Settings.model_fields.keys()
    assert defaults.keys() == {"max-candidates", "max-body-bytes", "max-in-flight", "drain-seconds"}
    for name, value in defaults.items():
        default = Settings.model_fields[name.replace("-", "_")].default
        assert float(value.replace(",", "")) * (1024 if name == "max-body-bytes" else 1) == default


@pytest.mark.parametrize(
    ("said", "value", "actual"),
    [
        ("not complete {} s after its first byte", 3, protocol.REQUEST_SECONDS),
        ("more than {} halves of requests", 1024, protocol.MAX_ARRIVING),
        ("{} times `--max-body-bytes`", 128, protocol.MAX_ARRIVING_BODIES),
        ("headers of more than {} KiB", 64, protocol.MAX_HEAD_BYTES / 1024),
        ("more than {} headers", 256, protocol.MAX_HEADERS),
        ("more than {} chunks", 10_000, protocol.MAX_CHUNKS),
        ("idle for {} s is closed", 1, worker.IDLE_SECONDS),
        ("up to {} s", 30, LONGEST_PATIENCE_SECONDS),
        ("longer than {} bytes", 256, MAX_ID_BYTES),
        ("at most {}", 3_600_000, MAX_DEADLINE_MS),
    ],
)
def test_every_bound_is_as_said(said: str, value: int, actual: float):
    """The words, with the number that the code has."""
    words = " ".join(TEXT.split())

    assert said.format(f"{value:,}") in words or said.format(value) in words
    assert value == actual
