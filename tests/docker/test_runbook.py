"""docs/runbook.md against the alerts and the service: every alert has its section, and what a section names exists.

Nobody finds out by day that a runbook asks for a metric that was renamed.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from service.__main__ import make_parser
from tests.docker.promql import ALERTS, RUNBOOK, alert_rules, own_metrics, runbook_expressions
from tests.docker.test_dashboard_and_alerts import strangers

TEXT = RUNBOOK.read_text(encoding="utf-8")
ROOT = RUNBOOK.parents[1]
PARTS = ("**Who is hurt.**", "**Look at", "**Do.**", "**False alarm**")

#: What stands in for a value: in the runbook, in the service's log calls.
_BLANK = re.compile(r"<[^>]*>|%(?:\.\d)?[sdf]")


def sections() -> dict[str, str]:
    """Heading of each alert's section -> its text."""
    _, *parts = re.split(r"^## (\w+)\n", TEXT, flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def blocks(kind: str) -> list[str]:
    """The fenced blocks of one kind."""
    return [block.strip() for block in re.findall(rf"^ *```{kind}\n(.*?)^ *```", TEXT, flags=re.MULTILINE | re.DOTALL)]


def log_messages() -> set[str]:
    """Every text that a method of the service is given first: the messages that it logs are among them."""
    found = set()
    for path in (ROOT / "service").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)  # a logger's, or a method that hands on to one
                and node.args
                and isinstance(node.args[0], ast.Constant)
            ):
                found.add(str(node.args[0].value))
    return found


def test_every_alert_has_a_section_and_every_section_an_alert():
    """In the order of the alerts, so that nobody searches."""
    assert [*sections()] == [rule["alert"] for rule in alert_rules()]


@pytest.mark.parametrize("rule", alert_rules(), ids=lambda rule: rule["alert"])
def test_an_alert_leads_to_its_section(rule: dict[str, dict[str, str]]):
    """`runbook_url` is what pagers and Grafana show as a link."""
    assert rule["annotations"]["runbook_url"] == f"{RUNBOOK.relative_to(ROOT)}#{str(rule['alert']).lower()}"


@pytest.mark.parametrize("rule", alert_rules(), ids=lambda rule: rule["alert"])
def test_a_section_says_how_bad_it_is_who_is_hurt_what_to_look_at_and_what_to_do(rule: dict[str, dict[str, str]]):
    text = sections()[str(rule["alert"])]

    assert text.strip().startswith(f"*{rule['labels']['severity'].capitalize()}.*")
    assert [part for part in PARTS if part not in text] == []
    assert [text.index(part) for part in PARTS] == sorted(text.index(part) for part in PARTS)


@pytest.mark.parametrize("expression", [*runbook_expressions()], ids=lambda expression: expression.text[:40])
def test_every_query_names_metrics_and_labels_that_exist(expression):
    """That Prometheus takes and answers them is test_prometheus.py's business."""
    assert expression.metrics
    assert not strangers(expression)


def test_every_log_line_is_one_that_the_service_writes():
    """A line that is searched for at night and was reworded by day is not found."""
    logged = {_BLANK.sub("…", message) for message in log_messages()}
    # Where the runbook says more than the service's format does, it does so in the place of the last value.
    named = {_BLANK.sub("…", re.sub(r"(<[^>]*>)(?:: <[^>]*>)+$", r"\1", line)) for line in blocks("log")}
    raised = (ROOT / "service/scoring/watch.py").read_text(encoding="utf-8")

    assert len(named) >= 8
    assert {line for line in named if line not in logged and line.partition("…")[0] not in raised} == set()


def test_every_metric_option_and_file_that_is_named_exists():
    options = set(make_parser()._option_string_actions)
    named_options = set(re.findall(r"`(--[a-z-]+)", TEXT))
    own = own_metrics()
    families = own.keys() | {re.sub(r"_(bucket|sum|count)$", "", name) for name in own}

    assert named_options - options == set()
    assert set(re.findall(r"\bretort_\w+", TEXT)) - families == set()
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", TEXT):
        assert (RUNBOOK.parent / link).exists(), link


def test_links_lead_to_headings_that_exist():
    """Here and in the documents beside it."""
    for file, anchor in re.findall(r"\]\(([^)#]*)#([^)]+)\)", TEXT):
        text = (RUNBOOK.parent / file).read_text(encoding="utf-8") if file else TEXT
        headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
        assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}, anchor


def test_the_exit_codes_are_those_that_the_program_teaches():
    """`python -m service --help` lists them."""
    taught = re.search(r"exit codes +(.*)", make_parser().format_help())
    assert taught is not None
    listed = set(re.findall(r"^\| ([0-9])", sections()["RetortDown"], flags=re.MULTILINE))

    assert listed == set(re.findall(r"(\d) ", taught[1]))


def test_the_alerts_say_how_the_link_becomes_an_address():
    assert "docs/runbook.md,https://" in Path(ALERTS).read_text(encoding="utf-8")
