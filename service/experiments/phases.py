"""What may change of an experiment while its phase lasts, and what starts a new one (docs/experiments.md).

    coverage             may grow: nobody who is in an arm is moved
    halted, shadow, ramp may change: none says which arm a unit belongs to
    everything else      starts a new phase: a higher `phase` and a new `salt`, so that no analysis mixes the two

Enforced wherever a program changes the file. Whoever edits the file by hand is trusted to know, and warned.
"""

from __future__ import annotations

from typing import Any

from service.errors import PhaseError
from service.experiments.file import Experiment

FREE = frozenset(("halted", "ramp", "shadow"))


def changed_keys(before: Experiment, after: Experiment) -> list[str]:
    """The keys that two states of an experiment differ in, an arm's as `arms[1].weight`; in the order of the file."""
    old, new = before.model_dump(), after.model_dump()
    keys: list[str] = []
    for key in new:
        if key == "arms" and len(old[key]) == len(new[key]):
            for place, (one, other) in enumerate(zip(old[key], new[key], strict=True)):
                keys += [f"arms[{place}].{part}" for part in other if one[part] != other[part]]
        elif old[key] != new[key]:
            keys.append(key)
    return keys


def describe_changes(before: Experiment | None, after: Experiment) -> str:
    """What an audit says of a change: the keys, and both values of those that are numbers or names."""
    if before is None:
        return "new"
    told = []
    for key in changed_keys(before, after):
        if key in ("coverage", "phase"):
            told.append(f"{key} {getattr(before, key)} -> {getattr(after, key)}")
        elif key == "halted":
            told.append(f"halted [{', '.join(before.halted)}] -> [{', '.join(after.halted)}]")
        elif key.endswith(".weight"):
            place = int(key[len("arms[") : key.index("]")])
            told.append(f"{key} {before.arms[place].weight} -> {after.arms[place].weight}")
        else:
            told.append(key)
    return "; ".join(told) or "nothing"


def check_change(before: Experiment | None, after: Experiment) -> None:
    """Raises `PhaseError` naming the key that a phase does not let move; a new experiment may be anything."""
    if before is None:
        return
    keys = changed_keys(before, after)
    if after.phase < before.phase:
        raise PhaseError("phase", f"phase {before.phase} has begun: expected at least that, got {after.phase}")
    if after.phase > before.phase:
        if after.salt == before.salt:
            raise PhaseError(
                "salt",
                f"phase {after.phase} has the salt of phase {before.phase}: take a new one, or every arm keeps the "
                "units it had, and what they have seen",
            )
        return
    if "coverage" in keys and after.coverage < before.coverage:
        raise PhaseError(
            "coverage",
            f"coverage may only grow within a phase, and {before.coverage} -> {after.coverage} would take units out of "
            f"their arms: halt arms instead (their units get control), or {_new_phase(before)}",
        )
    moved = [key for key in keys if key != "coverage" and key not in FREE]
    if moved:
        also = "" if len(moved) == 1 else f" (and {', '.join(moved[1:])})"
        todo = f"raise phase above {before.phase}" if moved == ["salt"] else _new_phase(before)
        raise PhaseError(moved[0], f"{moved[0]}{also} may not change within phase {before.phase}: {todo}")


def _new_phase(before: Experiment) -> str:
    return f"start a new phase: raise phase above {before.phase} and take a new salt"


def replaced(data: dict[str, Any], name: str, content: dict[str, Any]) -> dict[str, Any]:
    """A decoded file with this experiment's object in the place of its old one, or behind the others."""
    old = data.get("experiments")
    experiments = list(old) if isinstance(old, list) else []
    for place, experiment in enumerate(experiments):
        if isinstance(experiment, dict) and experiment.get("name") == name:
            experiments[place] = content
            break
    else:
        experiments.append(content)
    return {**data, "experiments": experiments}
