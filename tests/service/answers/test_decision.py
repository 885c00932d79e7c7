"""Keep running, ship, roll back, invalid: one table."""

from __future__ import annotations

import pytest

from service.answers.decision import Action, decide
from service.answers.guard_rails import Rail
from service.answers.lift import Estimate

CROSSED = Rail("ctr_loss", 0.1, 0.5, True, 1.2)
CLEAN = Rail("errors", 0.01, 0.001, False, 0.1)


def between(low: float, high: float) -> Estimate:
    return Estimate((low + high) / 2, (low, high), (low, high))


@pytest.mark.parametrize(
    ("relative", "rails", "minimum", "broken", "action"),
    [
        (between(0.01, 0.05), [CLEAN], 0.0, [], Action.SHIP),
        (between(0.01, 0.05), [], 0.02, [], Action.KEEP_RUNNING),
        (between(-0.005, 0.02), [], -0.01, [], Action.SHIP),
        (between(-0.05, 0.01), [], 0.02, [], Action.ROLL_BACK),
        (between(-0.05, 0.01), [], 0.0, [], Action.KEEP_RUNNING),
        (between(0.01, 0.05), [CLEAN, CROSSED], 0.0, [], Action.ROLL_BACK),
        (between(0.01, 0.05), [CROSSED], 0.0, ["the split is broken"], Action.INVALID),
        (Estimate(0.5, None, (0.1, 0.9), "control has 46 clicks, needed are 50"), [], 0.0, [], Action.KEEP_RUNNING),
        (Estimate(None, reason="nothing"), [CROSSED], 0.0, [], Action.ROLL_BACK),
    ],
)
def test_the_decision(relative: Estimate, rails: list[Rail], minimum: float, broken: list[str], action: Action):
    """What is broken says nothing; a rail counts before a gain; the interval for one look decides nothing."""
    found = decide("student", relative, rails, minimum_effect=minimum, broken=broken)

    assert found.action == action
    assert found.reasons
    assert all(found.reasons)
