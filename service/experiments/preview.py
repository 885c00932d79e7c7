"""How many units a change would move, and from where to where: counted over all 10,000 buckets, not estimated."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection
from typing import Any

from service.errors import PhaseError
from service.experiments.assignment import BUCKETS, OUTSIDE, Assigner
from service.experiments.file import Experiment
from service.experiments.phases import changed_keys, check_change


def preview(
    before: Experiment, after: Experiment, layer_share: float = 1.0, halted: Collection[str] = ()
) -> dict[str, Any]:
    """What becomes of each bucket, as a JSON-able tree (docs/experiments.md). `layer_share`: of the layer that is
    theirs. `halted`: arms that guard-rails have halted.

    Both are asked under one salt: what a new salt does is that every unit is drawn anew.
    """
    old, new = (Assigner(experiment.salt, tuple(experiment.ranges())) for experiment in (before, after))
    moves: Counter[tuple[int, int]] = Counter()
    otherwise = 0
    # Between two edges of anybody's range all buckets go the same way: asking for the first of them is asking for each.
    edges = {edge for assigner in (old, new) for owned in assigner.ranges for edge in (owned.start, owned.stop)}
    for first, end in itertools.pairwise(sorted({0, BUCKETS, *edges})):
        places = old.place_bucket(first), new.place_bucket(first)
        moves[places] += end - first
        otherwise += (end - first) * (_answering(before, places[0], halted) != _answering(after, places[1], halted))
    changed = {places: count for places, count in moves.items() if places[0] != places[1]}
    reason = None
    try:
        check_change(before, after)
    except PhaseError as error:
        reason = str(error)
    return {
        "experiment": before.name,
        "phase": before.phase,
        "changes": changed_keys(before, after),
        "buckets": BUCKETS,
        "share_of_units": layer_share,
        "enrolled": {"before": _enrolled(moves, 0), "after": _enrolled(moves, 1)},
        "moves": [
            {"from": _arm(before, places[0]), "to": _arm(after, places[1]), "buckets": count}
            for places, count in sorted(changed.items())
        ],
        "joining": sum(count for (left, _), count in changed.items() if left == OUTSIDE),
        "leaving": sum(count for (_, right), count in changed.items() if right == OUTSIDE),
        "switching": sum(count for places, count in changed.items() if OUTSIDE not in places),
        "answered_otherwise": otherwise,
        "needs_new_phase": reason is not None,
        "reason": reason,
    }


def _enrolled(moves: Counter[tuple[int, int]], side: int) -> int:
    return sum(count for places, count in moves.items() if places[side] != OUTSIDE)


def _arm(experiment: Experiment, place: int) -> str | None:
    return None if place == OUTSIDE else experiment.arms[place].name


def _answering(experiment: Experiment, place: int, halted: Collection[str]) -> str:
    """The arm that answers: control for those outside, and for the units of an arm that is halted."""
    arm = experiment.control if place == OUTSIDE else experiment.arms[place]
    return experiment.control.name if arm.name in experiment.halted or arm.name in halted else arm.name
