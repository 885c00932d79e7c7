"""What a person sees while a run works: one bar a step with rate and time left, one for all of them, or plain lines
where nobody watches.
"""

import statistics
import sys
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from training.pipeline.stages import Step


class _Rate(ProgressColumn):
    """Units a second, in thousands where that reads better."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        if speed is None:
            return Text("", style="progress.data.speed")
        text = f"{speed / 1000:.0f}k/s" if speed >= 10_000 else f"{speed:.0f}/s"
        return Text(text, style="progress.data.speed")


class _Amount(MofNCompleteColumn):
    """Done of total, in thousands where that reads better."""

    def render(self, task: Task) -> Text:
        if not task.total or task.total <= 1:
            return Text("")
        scale, unit = (1000, "k") if task.total >= 10_000 else (1, "")
        return Text(f"{task.completed / scale:.0f}/{task.total / scale:.0f}{unit}", style="progress.download")


class Whole:
    """How many of all steps are done, and how long the rest may take: by what those that are done took, stage by stage,
    at the pace at which they ran side by side."""

    def __init__(self, steps: Iterable[Step], clock: Callable[[], float] = time.monotonic) -> None:
        self._left = {step.key: step.stage for step in steps}
        self.total = len(self._left)
        self._took: dict[str, list[float]] = {}
        self._clock, self._started = clock, clock()

    @property
    def done(self) -> int:
        """Steps that are finished."""
        return self.total - len(self._left)

    def finished(self, step: Step, seconds: float) -> None:
        """One step fewer; one that is not among them counts for nothing."""
        if self._left.pop(step.key, None) is not None:
            self._took.setdefault(step.stage, []).append(seconds)

    def seconds_left(self) -> float | None:
        """None before anything is known."""
        every = [seconds for took in self._took.values() for seconds in took]
        elapsed = self._clock() - self._started
        if not every or elapsed <= 0:
            return None
        usual = statistics.fmean(every)
        work = sum(statistics.fmean(self._took.get(stage, [usual])) for stage in self._left.values())
        return work / max(1.0, sum(every) / elapsed)

    def said(self) -> str:
        """For people: 12 of 240 steps, about 1 h 5 min left."""
        left = self.seconds_left()
        about = "" if left is None or not self._left else f", about {_in_words(left)} left"
        return f"{self.done} of {self.total} steps{about}"


def _in_words(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return "a minute"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


class Display:
    """A `stages.Watcher` for a terminal; used as a context manager around `run_steps`."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(file=sys.stderr)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            _Amount(),
            _Rate(),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            TextColumn("[dim]{task.fields[note]}"),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._notes: dict[str, str] = {}
        self._cached = 0
        self._done: set[str] = set()
        self._started = time.monotonic()
        self._whole: Whole | None = None
        self._bar: TaskID | None = None

    def expects(self, steps: Iterable[Step]) -> None:
        """All that is still to be done: from now on a bar of its own says how far that is, and how long it may take."""
        whole = Whole(step for step in steps if step.key not in self._done)
        if whole.total > 1:
            self._whole = whole
            self._bar = self._progress.add_task("all", total=whole.total, note=whole.said())

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
        if self._cached:
            self.console.print(f"[dim]{self._cached} steps were already done[/dim]")

    def say(self, text: str) -> None:
        """A line of its own, above the bars."""
        self.console.print(text, soft_wrap=True, highlight=False, markup=False)

    def cached(self, step: Step) -> None:
        self._cached += step.key not in self._done
        self._done.add(step.key)

    def started(self, step: Step) -> None:
        self._tasks[step.key] = self._progress.add_task(f"{step.stage:<9} {step.label}", total=None, note="")

    def advanced(self, step: Step, done: float, total: float, note: str) -> None:
        if (task := self._tasks.get(step.key)) is not None:
            self._progress.update(task, completed=done, total=total, note=note)
        self._notes[step.key] = note

    def finished(self, step: Step, seconds: float) -> None:
        if (task := self._tasks.pop(step.key, None)) is not None:
            self._progress.remove_task(task)
        self._done.add(step.key)
        note = self._notes.pop(step.key, "")
        whole = ""
        if self._whole is not None and self._bar is not None:
            self._whole.finished(step, seconds)
            self._progress.update(self._bar, completed=self._whole.done, note=self._whole.said())
            whole = f"; {self._whole.said()}"
        elapsed = time.monotonic() - self._started
        what = f"[green]✓[/green] {step.stage:<9} {step.label:<20} {seconds:6.1f} s"
        self.console.print(f"{what}  [dim]{note} (at {elapsed:.0f} s{whole})[/dim]", soft_wrap=True, highlight=False)
