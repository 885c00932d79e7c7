"""`torchrun ... -m training run RECIPE`: several processes as one run, on one machine or more.

    torchrun --nproc-per-node 2 -m training run synthetic

The first process is the run: it reads, caches, reports and writes, alone. The others follow it. When a step that fits a
network begins (`Step.is_shared`), one at a time, the first says so in torchrun's store, and every process takes part by
`parallel.py`, with its share of each batch; what comes of it the first keeps. The steps' keys know nothing of this: the
result is that of one process to rounding, so a run may go on with more processes or fewer.

The first's part is a worker of its pool as ever, so that memory, divergence and a full disk are said as ever. A
process that dies ends the fit for all, and torchrun ends the others. On several machines the runs' folder has to be the
same for all, under the same path.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

FOREVER = timedelta(days=365)
"""Until the first process has something to share out: reading a log may take hours."""
FAREWELL = timedelta(seconds=30)


def processes() -> int:
    """How many torchrun started; 1 without it, whatever else sets variables."""
    is_started = all(name in os.environ for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"))
    return int(os.environ.get("WORLD_SIZE", "1")) if is_started else 1


def is_follower() -> bool:
    """Whether this process takes part in what another one leads."""
    return processes() > 1 and int(os.environ["RANK"]) > 0


@contextmanager
def leading() -> Iterator[None]:
    """Within, the other processes take part in what this one trains; afterwards they end. Nothing without others."""
    if processes() == 1:
        yield
        return
    _Orders.of_this_process = orders = _Orders(_store(is_master=os.environ.get(_AGENTS_STORE) != "True"))
    try:
        yield
    finally:
        _Orders.of_this_process = None
        orders.give(None)
        with suppress(RuntimeError):  # whoever is gone already
            orders.store.wait([f"ended/{rank}" for rank in range(1, processes())], FAREWELL)


def share_out(order: Mapping[str, Any]) -> int | None:
    """Tell the others to take part in this; its number, or None where this process leads nobody.

    `order` has the step's `module`, `function`, `folder`, `arguments` (JSON), `needs` (folders) and `device`.
    """
    return None if _Orders.of_this_process is None else _Orders.of_this_process.give(order)


@contextmanager
def taking_part(number: int | None) -> Iterator[None]:
    """Within, this process works on order `number` with all others: `parallel.py` finds them. Nothing for None.

    Raises StepError where the others are lost.
    """
    if number is None:
        yield
        return
    from torch import distributed
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]

    from training.errors import StepError
    from training.fit import parallel

    try:
        with parallel.joined(PrefixStore(f"group/{number}", _store(is_master=False))):
            yield
    except (distributed.DistError, RuntimeError) as error:
        if not (isinstance(error, distributed.DistError) or "gloo" in str(error) or "NCCL" in str(error)):
            raise
        raise StepError(
            "a process of torchrun that shared in this ended (what it said, and torchrun's own report, name it); "
            f"the same command goes on from there: {str(error).strip().splitlines()[0]}"
        ) from error


def follow() -> int:
    """Take part in whatever the first process shares out, until it has ended; the exit code.

    What goes wrong for all the first process says; what goes wrong here alone is said here, and there is no more to do.
    """
    import torch

    from training.errors import TrainingError

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)  # nothing here needs putting in order
    torch.set_num_threads(1)
    store, rank, given = _store(is_master=False), os.environ["RANK"], 0
    while True:
        store.wait([f"order/{given}"], FOREVER)
        order = json.loads(store.get(f"order/{given}"))
        if order is None:
            store.set(f"ended/{rank}", "")
            return 0
        try:
            with taking_part(given):
                _take_part(order)
        except TrainingError:
            pass
        except Exception as error:
            from training.pipeline.stages import is_out_of_memory

            text = f"memory ran out ({error})" if is_out_of_memory(error) else traceback.format_exc()
            print(f"process {rank} of torchrun: {order['function']}: {text}", file=sys.stderr)
        given += 1


def _take_part(order: Mapping[str, Any]) -> None:
    """The step as the first process does it, with this one's GPU."""
    from training.fit.devices import give_memory_back, gpus

    device = next(iter(gpus(order["device"])), "cpu")
    needs = {name: Path(folder) for name, folder in order["needs"].items()}
    function = getattr(importlib.import_module(order["module"]), order["function"])
    try:
        function(Path(order["folder"]), _unheard, **{**order["arguments"], **needs, "device": device})
    finally:
        give_memory_back()


def _unheard(done: float, total: float, note: str = "") -> None:
    """The first process shows how far it is."""


_AGENTS_STORE = "TORCHELASTIC_USE_AGENT_STORE"


def _store(*, is_master: bool) -> Any:
    """torchrun's store, under a name of ours for each time that it started us."""
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

    place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(*place, is_master=is_master, wait_for_workers=False)
    return PrefixStore(f"retort/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


class _Orders:
    """What the first process has shared out, numbered from 0."""

    of_this_process: _Orders | None = None

    def __init__(self, store: Any) -> None:
        self.store = store
        self._given = 0

    def give(self, order: Mapping[str, Any] | None) -> int:
        number, self._given = self._given, self._given + 1
        self.store.set(f"order/{number}", json.dumps(order))
        return number
