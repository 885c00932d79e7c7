"""What a person sees while a run works: one bar a step with rate and time left, or plain lines where nobody watches."""

import sys
import time
from types import TracebackType

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

from training.stages import Step


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

    def __enter__(self) -> "Display":
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
        elapsed = time.monotonic() - self._started
        what = f"[green]✓[/green] {step.stage:<9} {step.label:<20} {seconds:6.1f} s"
        self.console.print(f"{what}  [dim]{note} (at {elapsed:.0f} s)[/dim]", soft_wrap=True, highlight=False)
