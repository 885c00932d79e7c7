"""What holds for every test.

They run beside others and on machines of any speed, so hypothesis judges values and not time, and torch takes one
thread: tensors here are too small for two, which only wait for each other.
"""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

HERE = Path(__file__).parent
ALONE = ("service", "docker")
"""Folders whose tests have the machine to themselves: servers are killed, overloaded and hurried there."""
BESIDE_OTHERS = (
    "docker/test_compose.py",
    "docker/test_dashboard_and_alerts.py",
    "docker/test_dockerfiles.py",
    "docker/test_runbook.py",
    "docker/test_service_image.py",
    "docker/test_train_when_empty.py",
    "service/answers",
    "service/console/test_durations.py",
    "service/console/test_view.py",
    "service/experiments",
    "service/guard",
    "service/journal/test_joined.py",
    "service/journal/test_erase.py",
    "service/journal/sinks",
    "service/oip/test_document.py",
    "service/oip/test_fuzz.py",
    "service/test_api_document.py",
    "service/test_candidates.py",
    "service/test_faults_document.py",
    "service/test_plan.py",
    "service/test_ramp.py",
    "service/test_settings.py",
    "service/test_unread.py",
)
"""What of these hurries no server and is hurried by nobody."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what has to be alone."""
    for item in items:
        path = item.path.relative_to(HERE)
        if any(path.is_relative_to(folder) for folder in ALONE) and not any(map(path.is_relative_to, BESIDE_OTHERS)):
            item.add_marker(pytest.mark.alone)
