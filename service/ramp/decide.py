"""Whether a ramp takes its next step: a pure function of what is stated, what was done, the time and the evidence.

    nothing is asked      the plan is paused, an arm is halted (by a person or by a guard-rail), the last step was taken
    the first step        is taken at once: nobody has been in the experiment, so there is nothing to look at
    the hold time         has passed since the step began, else hold
    the split             is the planned one, else hold: what the experiment shows cannot be believed
    the guard-rails       are all kept, else hold. A rail that is not judged for too little evidence counts as kept; how
                          much evidence is enough is what the minimum of impressions says
    the sample            every arm has its minimum of impressions since the step began, else hold

Holding is all it ever does where something is wrong: it takes nobody out of an arm, and halts none.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from service.experiments.file import Experiment


class Action(enum.StrEnum):
    """What is to be done."""

    STEP = "step"
    HOLD = "hold"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the log says of an experiment's phase."""

    impressions: Mapping[str, int]
    """By arm, since the step began; only those old enough for their clicks to be in."""
    rails: Sequence[Mapping[str, Any]] = ()
    """Every guard-rail of every arm, of the whole phase, as the report has them, with `arm`."""
    broken: Sequence[str] = ()
    """Why the split cannot be believed."""

    def as_json(self) -> dict[str, Any]:
        """For the state file and the log."""
        return {"impressions": dict(self.impressions), "guard_rails": list(self.rails), "broken": list(self.broken)}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to be done, and why."""

    action: Action
    kind: str
    """One word for the reason."""
    reason: str
    coverage: Decimal | None = None
    """To step to."""
    evidence: dict[str, Any] = field(default_factory=dict)
    """What it rests on, where the log was asked."""


def decide(
    experiment: Experiment, halted: Collection[str], since: float, now: float, look: Callable[[], Evidence]
) -> Verdict:
    """What is to be done with an experiment that has a ramp. `halted`: arms that are switched off, by whomever;
    `since`: when its coverage became what it is; `look` asks the log, and is called only where all else is well,
    because it takes long."""
    plan = experiment.ramp
    assert plan is not None
    ahead = [coverage for coverage in experiment.ramp_coverages() if coverage > experiment.coverage]
    if not ahead:
        return Verdict(Action.DONE, "done", f"the last step was taken: coverage {experiment.coverage}")
    if plan.paused:
        return Verdict(Action.HOLD, "paused", "the plan says paused")
    if halted:
        return Verdict(Action.HOLD, "halted", f"halted: {', '.join(sorted(halted))}")
    if len(ahead) == len(plan.steps) and experiment.coverage == 0:
        return Verdict(Action.STEP, "first", "the first step", ahead[0])
    left = since + plan.hold_seconds - now
    if left > 0:
        return Verdict(Action.HOLD, "time", f"{left:.0f} s are left of {plan.hold_seconds:.0f}")
    found = look()
    seen = found.as_json()
    if found.broken:
        return Verdict(Action.HOLD, "split", "; ".join(found.broken), evidence=seen)
    crossed = [rail for rail in found.rails if rail["crossed"]]
    if crossed:
        told = "; ".join(f"{rail['arm']}: {rail['name']} {rail['found']} against {rail['bound']}" for rail in crossed)
        return Verdict(Action.HOLD, "guard_rail", told, evidence=seen)
    few = {arm: count for arm, count in found.impressions.items() if count < plan.minimum_impressions}
    if few:
        told = ", ".join(f"{arm} {count}" for arm, count in few.items())
        reason = f"impressions since the step began: {told}; {plan.minimum_impressions} are needed of each arm"
        return Verdict(Action.HOLD, "sample", reason, evidence=seen)
    return Verdict(Action.STEP, "clean", "held, sampled, and every guard-rail kept", ahead[0], seen)
