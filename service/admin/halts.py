"""An administrator lifts the halt of an arm: DELETE /experiments/{name}/halts/{arm}.

The state file is written, which every worker of the machine follows within a second; the answer comes once the worker
asked has. What the phase has shown until then is judged no more, or the arm would be halted again at once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from service.admin import audit
from service.admin.gate import Admin
from service.errors import Code, ExperimentError, Refusal
from service.experiments.file import Experiment
from service.experiments.state import Halt, lift_halt

logger = logging.getLogger(__name__)

_NOT_HALTED = Refusal(
    Code.NOT_HALTED,
    "no guard-rail has halted this arm in this phase; an arm that is halted in the experiment file is let go there",
    field="arm",
)


async def lift(
    admin: Admin, experiment: Experiment, arm: str, state: Path | None, look: Callable[[], Awaitable[None]]
) -> Halt:
    """Lifts it, and returns what it was. `look` follows the state file, and returns when that is in force. Raises
    `Refusal`; audited either way."""
    result = str(Code.INTERNAL)
    known = arm if experiment.arm_index(arm) is not None else None
    try:
        if known is None:
            raise Refusal(Code.UNKNOWN_ARM, "the experiment has no such arm", field="arm")
        halt = None
        if state is not None:
            try:
                halt = await asyncio.to_thread(lift_halt, state, experiment, arm, time.time())
            except ExperimentError as error:
                logger.error("a halt could not be lifted: %s", error)
                detail = "the state file cannot be read or written; the log says why"
                raise Refusal(Code.STATE_UNAVAILABLE, detail) from None
        if halt is None:
            raise _NOT_HALTED.with_traceback(None)
        await look()
        result = "ok"
        return halt
    except Refusal as refusal:
        result = str(refusal.code)
        raise
    finally:
        facts: dict[str, audit.Fact] = {"experiment": experiment.name, "phase": experiment.phase, "arm": known}
        audit.record(admin.name, admin.address, "lift", None, result, **facts)
