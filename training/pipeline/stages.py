"""Steps that are done once: a small build graph over folders.

A `Step` is a function that fills a folder. Its key is a hash over all that its result depends on: the function, its
arguments, the source files and packages it names, and the keys of the steps it needs. A step whose folder stands is
done; anything else is built in a temporary folder beside it and renamed when complete, so an interrupted run loses only
the steps that were under way, and a changed recipe redoes only what depends on the change.

A step under way may keep what it can go on from in `UNDER_WAY`, a folder in its own. It outlives a kill, is found there
when the step is built again, and is gone when the step is complete. A text `IF_OUT_OF_MEMORY` in it is what a person is
told if memory runs out, because a process that the kernel killed for that says nothing any more.

Steps without an order between them run side by side, one process a core with one thread each: the numbers are the same
whatever runs beside them. Of those that may use a GPU (`Step.device`) each GPU has one at a time. Where torchrun
started several processes, one step at a time of those that are shared is done by all of them (`torchrun.py`).

This file knows nothing about clicks or networks; `pipeline.py` says which steps there are.
"""

import ast
import errno
import functools
import hashlib
import importlib
import importlib.metadata
import json
import multiprocessing
import os
import shutil
import signal
import sys
import textwrap
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing.managers import SyncManager
from pathlib import Path
from typing import Any, Protocol

from models.errors import ModelsError
from training.errors import OutOfMemoryError, StepError, TrainingError
from training.pipeline import torchrun

Json = Any
ROOT = Path(__file__).parents[2]
OUR_ROOMS = ("training", "models")

UNDER_WAY = "under-way"
IF_OUT_OF_MEMORY = "if-out-of-memory.txt"
KEPT_SECONDS = 24 * 3600
"""What another run's step under way has left is kept so long after it was last written."""

_BUILDING = ".building-"
_BY_ALL = "every process"
_SAID_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "bad_alloc", "Cannot allocate")


class Report(Protocol):
    """How a running step says how far it is: rows (or other units) done of total, and a short note."""

    def __call__(self, done: float, total: float, note: str = "") -> None: ...


@dataclass(frozen=True, eq=False)
class Step:
    """One folder to fill.

    `run(folder, report, **arguments, **{name: folder of the needed step})` must be importable by name, because it
    runs in another process. `arguments` are JSON values and part of the key, as is what is written in the module of
    `run`, and in every file of `code` (paths from the repository root; folders count whole) with all of ours that it
    imports.
    """

    stage: str
    label: str
    run: Callable[..., None]
    arguments: Mapping[str, Json] = field(default_factory=dict)
    needs: Mapping[str, "Step"] = field(default_factory=dict)
    code: tuple[str, ...] = ()
    places: Mapping[str, str] = field(default_factory=dict)
    """Where things lie or stand, handed to `run` as `places` when there are any: no part of the key."""
    weight: float = 1.0
    """How long it takes beside the others, roughly: of the steps that could start, the one with the longest way
    behind it goes first. No part of the key."""
    if_out_of_memory: str = ""
    """What to lower then, where the step itself says nothing better. No part of the key."""
    device: str = ""
    """Where it computes, as `devices.py` has it; `run` is handed `device`, such as cpu or cuda:0. Empty: on the CPU,
    and `run` is told nothing. What is asked for by name is part of the key, but for the number of the GPU."""
    is_shared: bool = False
    """Whether all processes of torchrun do it together; it is handed `device`. No part of the key."""

    @functools.cached_property
    def key(self) -> str:
        """64 hex digits that change when anything this step's result depends on changes."""
        facts = {
            "folder": f"{self.stage}/{self.label}",
            "run": [self.run.__qualname__, source_hash(_module_file(self.run.__module__))],
            "arguments": dict(self.arguments),
            "needs": {name: step.key for name, step in self.needs.items()},
            "code": {path: source_hash(path) for path in sorted(reached(self.code))},
        }
        if self.device not in ("", "auto"):
            facts["device"] = self.device.partition(":")[0]
        return hashlib.sha256(json.dumps(facts, sort_keys=True, allow_nan=False).encode()).hexdigest()

    def folder(self, runs: Path) -> Path:
        return runs / self.stage / f"{self.label}-{self.key[:12]}"

    def is_done(self, runs: Path) -> bool:
        return self.folder(runs).is_dir()


@functools.cache
def source_hash(path: str) -> str:
    """Hash of what a source file does (named from the repository root), or the version of an installed package
    (`package:torch`)."""
    if path.startswith("package:"):
        return importlib.metadata.version(path.removeprefix("package:"))
    return hashlib.sha256(meaning((ROOT / path).read_text("utf-8"))).hexdigest()


@functools.cache
def reached(code: tuple[str, ...]) -> frozenset[str]:
    """The files and packages that `code` names, folders file by file, and every file of ours that those import."""
    found: set[str] = set()
    waiting = [
        str(file.relative_to(ROOT))
        for path in code
        if not path.startswith("package:")
        for file in (sorted((ROOT / path).rglob("*.py")) if (ROOT / path).is_dir() else [ROOT / path])
    ]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += _imports(path)
    return frozenset(found | {path for path in code if path.startswith("package:")})


@functools.cache
def _imports(path: str) -> tuple[str, ...]:
    """The files of our own that a file imports, at its top or in a function."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text("utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    files = (_module_file(module) for module in modules if module.split(".")[0] in OUR_ROOMS)
    return tuple(file for file in files if (ROOT / file).is_file())


def _module_file(module: str) -> str:
    """`training.zoo` -> training/zoo/__init__.py, `training.fit.loop` -> training/fit/loop.py, whether there or not."""
    place = module.replace(".", "/")
    return f"{place}/__init__.py" if (ROOT / place).is_dir() else f"{place}.py"


def meaning(source: str) -> bytes:
    """Python source less what does not change what it does: comments, docstrings, layout."""
    tree = ast.parse(textwrap.dedent(source))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
            node, clean=False
        ):
            node.body = node.body[1:]
    return ast.dump(tree).encode()


def same_file(source: Path, target: Path) -> None:
    """The file under another name, without copying gigabytes where the file system can do that."""
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)


class Watcher(Protocol):
    """Who is told about a run: the progress display, or a list in a test."""

    def cached(self, step: Step) -> None: ...
    def started(self, step: Step) -> None: ...
    def advanced(self, step: Step, done: float, total: float, note: str) -> None: ...
    def finished(self, step: Step, seconds: float) -> None: ...


def in_order(targets: Iterable[Step]) -> list[Step]:
    """The targets and all they need, each after what it needs, each once."""
    ordered: dict[str, Step] = {}

    def visit(step: Step) -> None:
        if step.key not in ordered:
            for needed in step.needs.values():
                visit(needed)
            ordered[step.key] = step

    for target in targets:
        visit(target)
    return list(ordered.values())


def longest_way(steps: Iterable[Step]) -> dict[str, float]:
    """Of steps in order, by key: the weight of the heaviest chain that starts with it."""
    way: dict[str, float] = {}
    for step in reversed(list(steps)):
        way[step.key] = way.get(step.key, 0.0) + step.weight
        for needed in step.needs.values():
            way[needed.key] = max(way.get(needed.key, 0.0), way[step.key])
    return way


def run_steps(
    targets: Sequence[Step],
    runs: Path,
    *,
    workers: int,
    watcher: Watcher,
    tolerated: tuple[type[TrainingError], ...] = (),
) -> dict[str, TrainingError]:
    """Bring every target's folder into being under `runs`, `workers` processes side by side.

    Raises `StepError` with the step's own message when one fails (what runs beside it is finished first and kept) and
    passes KeyboardInterrupt on after stopping the workers and clearing what they had half done and cannot go on from.
    Of errors that are `tolerated` nothing is raised: returned are, by key, the steps that failed so and those that need
    them, with the error.
    """
    steps = in_order(targets)
    missing = {}
    for step in steps:
        if step.is_done(runs):
            watcher.cached(step)
        else:
            missing[step.key] = step
    if not missing:
        return {}

    _clear(runs, steps)
    context = multiprocessing.get_context("spawn")
    manager = SyncManager(ctx=context)
    manager.start(_die_with_parent)
    with manager:
        events = manager.Queue()
        pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(events,))
        try:
            failed = _drive(pool, missing, runs, workers, events, watcher, tolerated)
        except BaseException:
            _stop(pool)
            _clear(runs, steps)
            raise
        pool.shutdown()
        return failed


def building_folder(final: Path) -> Path:
    """Where a step's folder is filled before it is complete."""
    return final.parent / f"{_BUILDING}{final.name}"


def _clear(runs: Path, steps: Sequence[Step]) -> None:
    """Away with what was half done, but for what these steps, or of late those of another run, can go on from."""
    own = {building_folder(step.folder(runs)) for step in steps}
    for leftover in runs.glob(f"*/{_BUILDING}*"):
        kept = leftover / UNDER_WAY
        files = [file for file in kept.glob("*") if file.name != IF_OUT_OF_MEMORY]
        last = max((file.stat().st_mtime for file in files), default=0.0)
        if files and (leftover in own or time.time() - last < KEPT_SECONDS):
            _empty(leftover)
        else:
            shutil.rmtree(leftover, ignore_errors=True)


def _empty(building: Path) -> None:
    """Remove everything but `UNDER_WAY`."""
    for path in building.iterdir():
        if path.is_dir() and not path.is_symlink():
            if path.name != UNDER_WAY:
                shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _drive(
    pool: ProcessPoolExecutor,
    missing: dict[str, Step],
    runs: Path,
    workers: int,
    events: Any,
    watcher: Watcher,
    tolerated: tuple[type[TrainingError], ...],
) -> dict[str, TrainingError]:
    way = longest_way(missing.values())
    processes: dict[int, Any] = {}
    who: dict[str, int] = {}
    waiting = dict(sorted(missing.items(), key=lambda item: -way[item[0]]))
    running: dict[Future[float], Step] = {}
    taken: dict[str, str] = {}
    """GPUs in use, by the key of the step that has one; `_BY_ALL` for one that all processes are on."""
    failure: TrainingError | None = None
    failed: dict[str, TrainingError] = {}

    def hear() -> None:
        while not events.empty():
            key, *said = events.get()
            if len(said) == 1:
                who[key] = said[0]
            elif key in missing:
                watcher.advanced(missing[key], *said)

    while running or (waiting and failure is None):
        if failure is None:
            ready = [s for s in waiting.values() if not any(n.key in missing for n in s.needs.values())]
            for step in ready:
                device = _free_device(step, taken)
                is_by_all = step.is_shared and torchrun.processes() > 1
                if device is None or len(running) == workers or (is_by_all and _BY_ALL in taken.values()):
                    continue
                taken |= {step.key: device} if device.startswith("cuda") else {}
                del waiting[step.key]
                order = _order(step, runs, device)
                number = None
                if is_by_all:
                    taken[step.key] = _BY_ALL
                    number = _shared_out(step, runs)
                running[pool.submit(_build, *order, number)] = step
                watcher.started(step)
        done, _ = wait(running, timeout=0.1, return_when=FIRST_COMPLETED)
        processes |= dict(pool._processes or {})
        hear()
        for future in done:
            step = running.pop(future)
            taken.pop(step.key, None)
            try:
                watcher.finished(step, future.result())
                del missing[step.key]
            except BrokenProcessPool:
                hear()
                raise StepError(_died([step, *running.values()], who, processes, runs)) from None
            except OutOfMemoryError as error:
                text = f"step {step.stage}/{step.label}: memory ran out ({error}); {_advice(step, runs)}"
                failure = failure or OutOfMemoryError(text)
            except tolerated as error:
                failed[step.key] = error
                for other in [s for s in waiting.values() if any(n.key in failed for n in in_order([s]))]:
                    failed[other.key] = error
                    del waiting[other.key]
            except TrainingError as error:
                failure = failure or error
            except ModelsError as error:
                failure = failure or StepError(f"step {step.stage}/{step.label}: {error}")
            except Exception as error:
                trace = getattr(error, "trace", None) or "".join(traceback.format_exception(error))
                text = f"step {step.stage}/{step.label} failed:\n{trace}"
                if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                    what = f"{error.filename or runs}: {error.strerror}"
                    text = f"step {step.stage}/{step.label}: {what}; make room, then the same command goes on"
                failure = failure or StepError(text)
        # The pool itself may not see the death of a process it has just started, before another of them has ended.
        if running and any(process.exitcode is not None for process in processes.values()):
            hear()
            raise StepError(_died([*running.values()], who, processes, runs))
    if failure:
        raise failure
    return failed


def _free_device(step: Step, taken: Mapping[str, str]) -> str | None:
    """Where a step may start now: `cpu`, or a GPU that no other step has; None where all of them are taken."""
    if not step.device:
        return "cpu"
    from training.fit.devices import gpus  # torch, which workers are not to import before they have set their threads

    known = gpus(step.device)
    if known and _BY_ALL in taken.values():  # torchrun's processes have a GPU each, and it has this one's
        return None
    return next((name for name in known if name not in taken.values()), None) if known else "cpu"


def _shared_out(step: Step, runs: Path) -> int | None:
    """Tell the other processes of torchrun of a step; the order's number."""
    arguments = dict(step.arguments) | ({"places": dict(step.places)} if step.places else {})
    return torchrun.share_out(
        {
            "module": step.run.__module__,
            "function": step.run.__qualname__,
            "folder": str(building_folder(step.folder(runs))),
            "arguments": arguments,
            "needs": {name: str(needed.folder(runs)) for name, needed in step.needs.items()},
            "device": step.device,
        }
    )


def _order(step: Step, runs: Path, device: str) -> tuple[str, str, str, str, dict[str, Any]]:
    """A step as plain values, so that it travels to a worker whatever start method Python uses."""
    arguments = dict(step.arguments) | {name: needed.folder(runs) for name, needed in step.needs.items()}
    if step.device:
        arguments["device"] = device
    if step.places:
        arguments["places"] = dict(step.places)
    return step.key, step.run.__module__, step.run.__qualname__, str(step.folder(runs)), arguments


_events: Any = None


def _start_worker(events: Any) -> None:
    """Each worker uses one core and leaves Ctrl-C to the program that started it."""
    global _events
    _events = events
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _die_with_parent()
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"
    if torch := sys.modules.get("torch"):  # already imported with the program's main module: too late for variables
        torch.set_num_threads(1)


def _die_with_parent() -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed program leaves nobody computing behind."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _build(
    key: str, module: str, function: str, folder: str, arguments: dict[str, Any], number: int | None = None
) -> float:
    started = time.monotonic()
    last = 0.0

    def report(done: float, total: float, note: str = "") -> None:
        nonlocal last
        if time.monotonic() - last > 0.1 or done >= total:
            last = time.monotonic()
            _events.put((key, done, total, note))

    final = Path(folder)
    building = building_folder(final)
    building.mkdir(parents=True, exist_ok=True)
    _empty(building)
    _events.put((key, os.getpid()))
    try:
        with torchrun.taking_part(number):
            getattr(importlib.import_module(module), function)(building, report, **arguments)
    except Exception as error:
        if is_out_of_memory(error):
            said = str(error).strip().partition("\n")[0].rpartition("DefaultCPUAllocator: ")[2]
            raise OutOfMemoryError(said or "no memory") from None
        raise
    finally:
        if "torch" in sys.modules:
            importlib.import_module("training.fit.devices").give_memory_back()
    shutil.rmtree(building / UNDER_WAY, ignore_errors=True)
    building.rename(final)
    return time.monotonic() - started


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, numpy, torch's allocator, a GPU's, or C++ found no memory: they have no error in common."""
    said = str(error)
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError | OSError) and any(words in said for words in _SAID_OUT_OF_MEMORY))
    )


def _advice(step: Step, runs: Path) -> str:
    """What to do if memory runs out, as the step said beforehand."""
    try:
        said = (building_folder(step.folder(runs)) / UNDER_WAY / IF_OUT_OF_MEMORY).read_text(encoding="utf-8").strip()
    except OSError:
        said = step.if_out_of_memory
    return said or "let fewer steps run side by side (--workers 1)"


def _died(beside: Sequence[Step], who: Mapping[str, int], processes: Mapping[int, Any], runs: Path) -> str:
    """For people: which of the steps side by side lost its process, how, and what to do.

    When one process dies the pool ends the others by SIGTERM, so whoever ended otherwise was the first.
    """
    first, ended = beside[0], ""
    for step in beside:
        process = processes.get(who.get(step.key, 0))
        if process is not None:
            code = _exit_code(process)
            if code not in (None, -signal.SIGTERM):
                first, ended = step, f" (exit code {code})"
                break
    return (
        f"step {first.stage}/{first.label}: its process died, as one does when memory runs out{ended}, "
        f"{len(beside) - 1} beside it; {_advice(first, runs)}"
    )


def _exit_code(process: Any) -> int | None:
    """How a process ended, or None where that cannot be had. The pool's own thread waits for it too: the system tells
    one of the two, and the other finds it a moment later."""
    until = time.monotonic() + 2
    while process.exitcode is None and time.monotonic() < until:
        process.join(timeout=0.01)
        time.sleep(0.01)
    code: int | None = process.exitcode
    return code


def _stop(pool: ProcessPoolExecutor) -> None:
    # A worker in the middle of an epoch would not look up for seconds; nothing it holds outlives it but its folder.
    for process in list((pool._processes or {}).values()):
        process.terminate()
    pool.shutdown(wait=True, cancel_futures=True)
