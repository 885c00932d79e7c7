"""What a PromQL expression names: metrics and, for each, the labels it selects or groups by. No evaluation.

Also the service's own metrics by name, as `service/metrics.py` makes them, and Grafana's variables filled in.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from service.metrics import DerivedGauge, Metrics

ROOT = Path(__file__).parents[2]
DASHBOARD = ROOT / "docker/grafana/dashboards/retort.json"
ALERTS = ROOT / "docker/prometheus/alerts.yml"
RUNBOOK = ROOT / "docs/runbook.md"

#: Not ours: what Prometheus says of a target and of its alerts, with their labels.
FOREIGN = {"up": {"job", "instance"}, "ALERTS": {"alertname", "alertstate", "severity"}}
TARGET_LABELS = {"job", "instance"}

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_SELECTOR = re.compile(r"\b([a-zA-Z_:][\w:]*)\s*(\{[^}]*\})?")
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_FUNCTIONS = {
    *("abs", "and", "count", "group_left", "histogram_quantile", "increase", "label_values", "max", "offset", "or"),
    *("rate", "scalar", "sum", "time", "topk", "unless", "vector"),
}


@dataclass(frozen=True)
class Expression:
    """A PromQL expression and where it stands."""

    place: str
    text: str

    @property
    def metrics(self) -> dict[str, set[str]]:
        """Metric name -> labels that its selectors match on."""
        found: dict[str, set[str]] = {}
        text = re.sub(r"\[[^\]]*\]", "", _GROUPING.sub("", _STRING.sub('""', self.text)))
        for name, selector in _SELECTOR.findall(re.sub(r"\boffset\s+\w+", "", text)):
            if name in _FUNCTIONS or re.fullmatch(r"e\d+|by", name):
                continue
            found.setdefault(name, set()).update(re.findall(r"(\w+)\s*(?:=~|!=|!~|=)", selector))
        return found

    @property
    def selectors(self) -> list[str]:
        """What it reads, each as `name{matchers}`, without ranges and offsets: what must be there at all before a
        comparison can say that something is wrong."""
        text = re.sub(r"\[[^\]]*\]", "", _GROUPING.sub("", self.text))
        named = self.metrics.keys()
        return [name + matchers for name, matchers in _SELECTOR.findall(text) if name in named]

    @property
    def groupings(self) -> set[str]:
        """Labels that it groups or joins by."""
        return {label.strip() for group in _GROUPING.findall(self.text) for label in group.split(",")} - {""}


def own_metrics() -> dict[str, set[str]]:
    """Every series name that the service exposes -> its labels."""
    series: dict[str, set[str]] = {}
    metrics = Metrics(CollectorRegistry())
    for metric in vars(metrics).values():
        if not isinstance(metric, (Counter, Gauge, Histogram, DerivedGauge)):
            continue
        (family,) = metric.describe()
        labels = set(metric._labelnames)
        if isinstance(metric, Histogram):
            series[f"{family.name}_bucket"] = labels | {"le"}
            series[f"{family.name}_sum"] = series[f"{family.name}_count"] = labels
        elif isinstance(metric, Counter):
            series[f"{family.name}_total"] = labels
        else:
            series[family.name] = labels
    return series


def dashboard() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return loaded


def dashboard_expressions() -> Iterator[Expression]:
    """Every query of the dashboard: panels, annotations and variables (label_values(M, L) as `count by (L) (M)`)."""
    board = dashboard()
    for panel in board["panels"]:
        for target in panel.get("targets", ()):
            yield Expression(f"panel '{panel['title']}' {target['refId']}", target["expr"])
    for annotation in board["annotations"]["list"]:
        yield Expression(f"annotation '{annotation['name']}'", annotation["expr"])
    for variable in board["templating"]["list"]:
        metric, label = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"]).groups()  # type: ignore[union-attr]
        yield Expression(f"variable '{variable['name']}'", f"count by ({label}) ({metric})")


def alert_rules() -> list[dict[str, Any]]:
    """The alerts, as written."""
    groups = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def alert_expressions() -> Iterator[Expression]:
    for rule in alert_rules():
        yield Expression(f"alert '{rule['alert']}'", rule["expr"])


def runbook_expressions() -> Iterator[Expression]:
    """Every query that docs/runbook.md tells to ask."""
    text = RUNBOOK.read_text(encoding="utf-8")
    for number, query in enumerate(re.findall(r"^ *```promql\n(.*?)^ *```", text, flags=re.MULTILINE | re.DOTALL)):
        yield Expression(f"runbook query {number}", query.strip())


def filled_in(text: str, rate_interval: str) -> str:
    """An expression as Grafana sends it, every variable at All."""
    text = text.replace("$__rate_interval", rate_interval).replace("$instance", ".*").replace("$experiment", ".*")
    if "$" in text:
        raise ValueError(f"expected every variable of the dashboard to be known, got {text}")
    return text
