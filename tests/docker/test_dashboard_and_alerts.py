"""Dashboard and alerts ask for metrics that exist, by labels that these have; promtool agrees with the alerts."""

from __future__ import annotations

import itertools
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.docker.promql import (
    ALERTS,
    FOREIGN,
    TARGET_LABELS,
    Expression,
    alert_expressions,
    alert_rules,
    dashboard,
    dashboard_expressions,
    own_metrics,
)

EXPRESSIONS = [*dashboard_expressions(), *alert_expressions()]
ALERT_TESTS = sorted(ALERTS.parent.glob("alerts*_test.yml"))
KNOWN = {**FOREIGN, **own_metrics()}


def strangers(expression: Expression) -> set[str]:
    """What an expression names that nobody exposes."""
    wrong = set()
    grouped_by: set[str] = set(TARGET_LABELS)
    for metric, labels in expression.metrics.items():
        if metric not in KNOWN:
            wrong.add(metric)
            continue
        grouped_by |= KNOWN[metric]
        wrong |= {f"{metric}.{label}" for label in labels - KNOWN[metric] - TARGET_LABELS}
    return wrong | {f"by {label}" for label in expression.groupings - grouped_by}


@pytest.mark.parametrize("expression", EXPRESSIONS, ids=lambda expression: expression.place)
def test_every_query_names_metrics_and_labels_that_exist(expression: Expression):
    """A renamed metric leaves a panel empty and an alert silent, which nobody notices in time."""
    assert expression.metrics, "names no metric at all"
    assert not strangers(expression)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("rate(retort_request_seconds_sum[5m])", {"retort_request_seconds_sum"}),
        ("retort_candidates", {"retort_candidates"}),
        ('sum by (arm) (retort_requests_total{route="/predict"})', {"by arm"}),
        ('retort_requests_total{status=~"5.."} / up', {"retort_requests_total.status"}),
        ('histogram_quantile(0.9, sum by (le) (rate(retort_pctr_bucket{instance="a b"}[5m] offset 1d)))', set()),
    ],
)
def test_the_check_above_finds_a_wrong_name(text: str, wrong: set[str]):
    """A histogram has no series of its own name; a label is looked for on the metric that is asked for it."""
    assert strangers(Expression("here", text)) == wrong


def test_the_dashboard_shows_every_metric_of_the_service():
    """What is measured and never shown might as well not be measured."""
    named = {name for expression in dashboard_expressions() for name in expression.metrics}
    families = {name.rsplit("_", 1)[0] if name.endswith(("_bucket", "_sum", "_count")) else name for name in KNOWN}
    shown = {name.rsplit("_", 1)[0] if name.endswith(("_bucket", "_sum", "_count")) else name for name in named}

    assert families - shown == set()


def test_panels_ask_the_datasource_that_is_provisioned():
    """By its uid, which the provisioning file fixes."""
    provisioned = yaml.safe_load(
        (Path(ALERTS).parents[1] / "grafana/provisioning/datasources/prometheus.yaml").read_text(encoding="utf-8")
    )["datasources"][0]
    board = dashboard()
    sources = [panel["datasource"] for panel in board["panels"] if panel["type"] != "row"]
    sources += [target["datasource"] for panel in board["panels"] for target in panel.get("targets", ())]
    sources += [variable["datasource"] for variable in board["templating"]["list"]]

    assert {(source["type"], source["uid"]) for source in sources} == {(provisioned["type"], provisioned["uid"])}


def test_panels_have_ids_of_their_own_and_do_not_overlap():
    """Grafana would draw one over the other."""
    panels = dashboard()["panels"]

    assert len({panel["id"] for panel in panels}) == len(panels)
    for one, other in itertools.combinations([panel["gridPos"] for panel in panels], 2):
        apart_x = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        apart_y = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert apart_x or apart_y, (one, other)
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in panels)


def test_every_alert_says_how_bad_it_is_what_happened_and_what_to_do():
    for rule in alert_rules():
        assert rule["labels"]["severity"] in {"critical", "warning"}, rule["alert"]
        assert {"summary", "description"} <= set(rule["annotations"]), rule["alert"]


def test_every_alert_is_seen_to_fire_in_promtools_tests():
    """A rule that was never seen to fire is a hope."""
    tests = [test for file in ALERT_TESTS for test in yaml.safe_load(file.read_text(encoding="utf-8"))["tests"]]
    fired = {case["alertname"] for test in tests for case in test["alert_rule_test"] if case["exp_alerts"]}

    assert {rule["alert"] for rule in alert_rules()} - fired == set()


@pytest.fixture(scope="module")
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not installed (Debian and Ubuntu: the package `prometheus`)")
    return found


def test_promtool_accepts_configuration_and_rules(promtool: str):
    """prometheus.yml and all that it refers to."""
    config = ALERTS.with_name("prometheus.yml")
    done = subprocess.run([promtool, "check", "config", str(config)], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(alert_rules())} rules found" in done.stdout + done.stderr


def test_the_alerts_fire_when_they_should_and_only_then(promtool: str):
    """docker/prometheus/alerts*_test.yml, by promtool."""
    command = [promtool, "test", "rules", *map(str, ALERT_TESTS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr


def test_promtools_tests_can_fail(promtool: str, tmp_path: Path):
    """With the thresholds raised, both files do."""
    raised = ALERTS.read_text(encoding="utf-8").replace("> 0.", "> 9.")
    (tmp_path / "alerts.yml").write_text(raised)
    for file in ALERT_TESTS:
        (tmp_path / file.name).write_text(file.read_text(encoding="utf-8"))
        command = [promtool, "test", "rules", file.name]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode != 0
        assert "exp:" in done.stdout + done.stderr
