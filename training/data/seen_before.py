"""Rows that weights to start from have learned from must not judge what comes of them.

They would be remembered, not known: training would stop at once, and gate and calibration would be fitted to answers
that are too sure of themselves.
"""

from collections.abc import Mapping
from datetime import datetime

from training.errors import SplitError


def refuse_rows_seen_before(
    earlier: Mapping[str, str], first_time: Mapping[str, str], source: str, *, is_refitted: bool = True
) -> None:
    """`SplitError` where weights to start from have learned from rows that are to stop, calibrate or test.

    `earlier` has the last moment of each part of the earlier run, `first_time` the first of each part now, ISO 8601.
    """
    if not earlier or not first_time:
        raise SplitError(
            "warm_start: expected logs with a timestamp, which shows that no row is judged by weights that learned "
            "from it; got none. Name it in the schema"
        )
    train, valid = ([name for name in earlier if name.startswith(part)] for part in ("train", "valid"))
    checks: list[tuple[str, list[str], str]] = [("first fits", train, "valid"), ("refits", [*train, *valid], "test")]
    for fits, learned, judged in checks[: 2 if is_refitted else 1]:
        end = max(datetime.fromisoformat(earlier[name]) for name in learned)
        start = min(datetime.fromisoformat(time) for name, time in first_time.items() if name.startswith(judged))
        if start <= end:
            raise SplitError(
                f"warm_start: {source}: its {fits} learned from rows up to {end.isoformat()}, and now {judged} begins "
                f"at {start.isoformat()}; expected it to begin later. Start from an earlier run, or split later"
            )
