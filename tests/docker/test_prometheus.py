"""A real Prometheus scrapes a running service; every query of dashboard and alerts is asked and answered.

Runs where a `prometheus` binary is installed (Debian and Ubuntu: the package of that name).
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.docker.promql import (
    ALERTS,
    Expression,
    alert_expressions,
    alert_rules,
    dashboard_expressions,
    filled_in,
    runbook_expressions,
)
from tests.docker.serving import PATIENCE_SECONDS, ask, free_port, running
from tests.models.tiny_bundle import REQUESTS, write_tiny_bundle

ROOT = Path(__file__).parents[2]
SCRAPE_SECONDS = 1
RATE_INTERVAL = "10m"
"""All that the fixture did lies within it, however long that took."""

#: Nothing in this test need make these count: deadlines, feedback, the log and the catalogue are other tests' business.
WITHOUT_TRAFFIC = {"retort_fallbacks_total", "retort_events_total", "retort_log_dropped_total", "ALERTS"}
WITHOUT_TRAFFIC |= {"retort_catalogue_candidates", "retort_shadow_dropped_total"}
WITHOUT_TRAFFIC |= {
    *("retort_shadow_kl", "retort_drift_psi"),
    *("retort_drift_change_psi", "retort_drift_lost_share"),
}  # of a thousand candidates on (test_drift.py)
WITHOUT_TRAFFIC |= {"retort_ship_lag_seconds", "retort_ship_unread_bytes", "retort_ship_lost_bytes"}  # test_lag.py
WITHOUT_TRAFFIC |= {
    "retort_guard_rail_evidence",
    "retort_guard_rail_trips_total",
    "retort_arm_halted",
}  # of 50 clicks on (test_guarded.py)
WATCHED = ("retort_shadow_scored_total", "retort_guard_rails_judged_timestamp_seconds")
"""What comes of traffic after a while, each at its own pace."""


@dataclass(frozen=True)
class Prometheus:
    """A Prometheus on this port, and the moment at which it had seen all that the fixture did."""

    port: int
    seen: float


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Configured by our own file; has seen every kind of traffic, in two halves at least."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is not installed (Debian and Ubuntu: the package `prometheus`)")
    folder = tmp_path_factory.mktemp("prometheus")
    repository = folder / "repository"
    write_tiny_bundle(repository, "student")
    write_tiny_bundle(repository, "ensemble", teachers=2)
    experiments = folder / "experiments.yaml"
    shipped = watched((ROOT / "models/experiments.yaml").read_text(encoding="utf-8"))
    experiments.write_text(shipped, encoding="utf-8")
    service_port, prometheus_port = free_port(), free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RETORT_")}

    service = [sys.executable, "-m", "service", "--repository", str(repository), "--experiments", str(experiments)]
    service += [
        "--port",
        str(service_port),
        "--workers",
        "2",
        "--drain-seconds",
        "0",
        "--guard-rail-seconds",
        "0.5",
        "--log",
        str(folder / "exposures"),
    ]
    storage = [f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address=127.0.0.1:{prometheus_port}"]
    with (
        running(
            service,
            port=service_port,
            ready="/health/ready",
            log=folder / "service.log",
            cwd=ROOT,
            environment=environment,
        ),
        running(
            [program, f"--config.file={_config(folder, service_port)}", *storage],
            port=prometheus_port,
            ready="/-/ready",
            log=folder / "prometheus.log",
            cwd=folder,
            environment=environment,
        ),
    ):
        # Counters with labels exist from their first count on: two halves, so that rate() sees them grow.
        _traffic(service_port)
        _wait_until(lambda: _answered(prometheus_port) == [60, 3], "the first half is scraped")
        _traffic(service_port)
        _wait_until(lambda: _answered(prometheus_port) == [120, 6], "the second half is scraped")
        _damage(repository, experiments, shipped)
        for refused in ("retort_model_load_failures_total", "retort_experiment_reload_failures_total > 0"):
            _wait_until(lambda refused=refused: bool(_values(prometheus_port, refused)), f"{refused} is scraped")
        _traffic(service_port)
        _wait_until(lambda: _answered(prometheus_port) == [180, 9], "the last of it is scraped")
        for watched_ in WATCHED:
            _wait_until(lambda watched_=watched_: bool(_values(prometheus_port, watched_)), f"{watched_} is scraped")
        yield Prometheus(prometheus_port, time.time())


def watched(shipped: str) -> str:
    """The experiment that is shipped, with every request scored in the shadow and with guard-rails."""
    file = yaml.safe_load(shipped)
    (experiment,) = file["experiments"]
    experiment["shadow"] = {"arm": "student", "sample": 1.0}
    experiment["guard_rails"] = {"max_error_rate": 0.5}
    return yaml.safe_dump(file)


def _wait_until(condition: Callable[[], bool], what: str) -> None:
    until = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < until, f"waited in vain until {what}"
        time.sleep(0.1)


def _answered(port: int) -> list[float]:
    """How many requests were scored and how many refused, as scraped; refusals are the last that `_traffic` sends."""
    scored = _values(port, 'sum(retort_requests_total{route="/predict", code="200"})')
    return scored + _values(port, 'sum(retort_refused_total{reason!="not_ready"})')


def _config(folder: Path, service_port: int) -> Path:
    """docker/prometheus/prometheus.yml, with the address of this test's service and a shorter patience."""
    config = yaml.safe_load(ALERTS.with_name("prometheus.yml").read_text(encoding="utf-8"))
    config["global"] = {
        "scrape_interval": f"{SCRAPE_SECONDS}s",
        "scrape_timeout": f"{SCRAPE_SECONDS}s",
        "evaluation_interval": "1s",
    }
    config["rule_files"] = [str(ALERTS.parent / name) for name in config["rule_files"]]
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [f"127.0.0.1:{service_port}"]
    path = folder / "prometheus.yml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def _traffic(port: int) -> None:
    """Scored requests to both arms, with missing and unknown values and a member no field takes; one over the Open
    Inference Protocol; refused ones too."""
    for number in range(60):
        context, candidates = REQUESTS[number % len(REQUESTS)]
        body = {"unit_id": f"user-{number}", "context": context, "candidates": candidates}
        if number % 2:  # which keeps it out of the cache
            body["colour"] = "blue"
        assert ask(port, "/predict", body)[0] == 200
    tensor = {"name": "ad_id", "datatype": "BYTES", "shape": [2], "data": ["a1", "a2"]}
    assert ask(port, "/v2/models/student/infer", {"inputs": [tensor]})[0] == 200
    for bad in (b"{", b'{"candidates": []}', b'{"context": {"device": 7}, "candidates": [{}]}'):
        assert 400 <= ask(port, "/predict", bad)[0] < 500


def _damage(repository: Path, experiments: Path, shipped: str) -> None:
    """A second version with a flipped bit, and an experiment file that is not valid: both are refused and counted."""
    staged = repository.parent / "staged"
    shutil.copytree(repository / "student" / "1", staged)
    graph = bytearray((staged / "model.onnx").read_bytes())
    graph[len(graph) // 2] ^= 1
    (staged / "model.onnx").write_bytes(bytes(graph))
    staged.rename(repository / "student" / "2")
    replacement = experiments.with_name("new.yaml")
    replacement.write_text(shipped.replace("0.5", "0.4"), encoding="utf-8")
    replacement.replace(experiments)


def _api(port: int, path: str) -> dict[str, Any]:
    status, body = ask(port, path)
    answer: dict[str, Any] = json.loads(body)
    assert status == 200, answer
    assert answer["status"] == "success"
    assert not answer.get("warnings"), answer
    return answer["data"]  # type: ignore[no-any-return]


def _values(port: int, expression: str, when: float | None = None) -> list[float]:
    """The samples of an instant query, now or at another time, NaN left out."""
    asked = {"query": expression, **({} if when is None else {"time": f"{when:.3f}"})}
    result = _api(port, "/api/v1/query?" + urllib.parse.urlencode(asked))["result"]
    samples = [float(sample["value"][1]) for sample in result]
    return [sample for sample in samples if sample == sample]


@pytest.mark.parametrize("expression", [*dashboard_expressions()], ids=lambda expression: expression.place)
def test_every_panel_gets_data_once_there_is_traffic(prometheus: Prometheus, expression: Expression):
    """Not only that it parses: that labels match, and that divisions have something to divide."""
    values = _values(prometheus.port, filled_in(expression.text, RATE_INTERVAL), prometheus.seen)

    assert values or set(expression.metrics) <= WITHOUT_TRAFFIC, expression.text
    assert all(value >= 0 for value in values)


@pytest.mark.parametrize("expression", [*runbook_expressions()], ids=lambda expression: expression.place)
def test_every_query_of_the_runbook_gets_data_or_says_that_all_is_well(prometheus: Prometheus, expression: Expression):
    """What somebody pastes at night: at the moment it was written for, or empty where it only shows what is wrong."""
    values = _values(prometheus.port, expression.text, prometheus.seen)

    shows_only_faults = "offset" in expression.text or " unless " in expression.text or "code=" in expression.text
    assert values or shows_only_faults or set(expression.metrics) <= WITHOUT_TRAFFIC, expression.text


@pytest.mark.parametrize("expression", [*alert_expressions()], ids=lambda expression: expression.place)
def test_every_alerts_expression_parses(prometheus: Prometheus, expression: Expression):
    """By Prometheus itself; when they fire is promtool's business."""
    _values(prometheus.port, expression.text)


@pytest.mark.parametrize("expression", [*alert_expressions()], ids=lambda expression: expression.place)
def test_whatever_an_alert_reads_is_there(prometheus: Prometheus, expression: Expression):
    """While all is well an alert's comparison is empty, as one would be whose metric or label is misspelled: so each
    selector of it gets data, but for what only faults bring about."""
    assert expression.selectors
    for selector in expression.selectors:
        name = selector.partition("{")[0]
        values = _values(prometheus.port, selector, prometheus.seen)

        assert values or name in WITHOUT_TRAFFIC or "code=~" in selector, selector


def test_prometheus_evaluates_our_rules(prometheus: Prometheus):
    """All of them, without an error."""
    rules: list[dict[str, Any]] = []

    def evaluated() -> bool:
        rules[:] = [rule for group in _api(prometheus.port, "/api/v1/rules")["groups"] for rule in group["rules"]]
        return all(rule["health"] != "unknown" for rule in rules)

    _wait_until(evaluated, "every rule is evaluated")
    assert len(rules) == len(alert_rules())
    assert {rule["name"]: rule.get("lastError", "") for rule in rules if rule["health"] != "ok"} == {}


def test_a_refused_version_and_a_refused_file_alert(prometheus: Prometheus):
    """From a flipped bit on disk to an alert, through the real scrape: the very first failure counts, and nothing else
    is the matter."""

    def firing() -> set[str]:
        alerts = _api(prometheus.port, "/api/v1/alerts")["alerts"]
        return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}

    _wait_until(lambda: firing() == {"RetortModelRefused", "RetortExperimentFileRefused"}, "both alerts fire")


def test_the_panels_agree_with_what_was_sent(prometheus: Prometheus):
    """180 requests were scored, split over two arms; three bad ones were refused each time."""

    def values(expression: str) -> list[float]:
        return _values(prometheus.port, expression, prometheus.seen)

    arms = values("sum by (arm) (retort_exposures_total)")

    assert values('sum(retort_requests_total{route="/predict", code="200"})') == [180]
    assert values('sum(retort_refused_total{reason!="not_ready"})') == [9]
    assert len(arms) == 2
    assert sum(arms) == 180
    over_v2 = values("sum(retort_inference_candidates_total)")
    assert over_v2 == [3 * 2]
    sent = 3 * sum(len(REQUESTS[number % 3][1]) for number in range(60))
    assert values("retort_candidates_sum") == [sent + over_v2[0]]
