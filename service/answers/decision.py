"""Keep running, ship, roll back, or invalid: from what was stated before the experiment and what it has shown.

    invalid        the split is not the planned one, or units are in arms the published hash does not give them
    roll back      a guard-rail is crossed, or the whole confidence sequence of the lift lies below the minimum effect
    ship           the whole confidence sequence lies above the minimum effect
    keep running   otherwise

The minimum effect is what treatment must be *better than*, as a relative lift: .02 asks for two percent, 0 for any
improvement, -.01 asks that nothing worse than a percent is lost, as for a cheaper model. In this order: an
experiment that is broken says nothing about its arms, and a rail counts before a gain.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from service.answers.guard_rails import Rail
from service.answers.lift import Estimate


class Action(enum.StrEnum):
    """What the owner is told."""

    KEEP_RUNNING = "keep running"
    SHIP = "ship"
    ROLL_BACK = "roll back"
    INVALID = "invalid"


@dataclass(frozen=True, slots=True)
class Decision:
    """The action for one arm, and every reason for it."""

    arm: str
    action: Action
    reasons: tuple[str, ...]


def decide(
    arm: str, relative: Estimate, rails: Sequence[Rail], *, minimum_effect: float, broken: Sequence[str] = ()
) -> Decision:
    """`broken`: why the experiment as a whole cannot be believed, if anything."""
    if broken:
        return Decision(arm, Action.INVALID, tuple(broken))
    crossed = [rail for rail in rails if rail.crossed]
    if crossed:
        reasons = (
            f"guard-rail {rail.name}: {_number(rail.found)} against a bound of {_number(rail.bound)}"
            for rail in crossed
        )
        return Decision(arm, Action.ROLL_BACK, tuple(reasons))
    asked = f"the minimum effect of {minimum_effect:+.2%}"
    if relative.always is None:
        return Decision(arm, Action.KEEP_RUNNING, (relative.reason or "no interval yet",))
    low, high = relative.always
    between = f"the lift is between {low:+.2%} and {high:+.2%}"
    if low > minimum_effect:
        return Decision(arm, Action.SHIP, (f"{between}, above {asked}",))
    if high < minimum_effect:
        return Decision(arm, Action.ROLL_BACK, (f"{between}, below {asked}",))
    return Decision(arm, Action.KEEP_RUNNING, (f"{between}, which leaves {asked} open",))


def _number(value: float | None) -> str:
    return "nothing seen" if value is None else f"{value:.4g}"
