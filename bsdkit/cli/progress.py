"""Progress on the terminal."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.text import Text

from bsdkit.location import readable
from bsdkit.progress import Progress

__all__ = ["ConsoleProgress"]


class _Speed(ProgressColumn):
    """Clips a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f}/s")


class ConsoleProgress(Progress):
    """One bar a stage, with clips per second and the time left; and lines of text between.

    Args:
        console: where to draw; without a terminal no bar is drawn, only the lines.
    """

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console
        self._progress = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Speed(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def line(self, text: str) -> None:
        """Prints a line above the bars."""
        self._progress.console.print(readable(text), soft_wrap=True)

    def stage(self, name: str, done: int, total: int) -> None:
        """Sets how far a stage is; a new name starts a new bar."""
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=total)
        self._progress.update(self._tasks[name], completed=done, total=total)
