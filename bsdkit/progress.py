"""What long work says while it runs: an observer that library code calls and a caller may show."""

from __future__ import annotations

import logging
from types import TracebackType
from typing import Self

__all__ = ["Bar", "Progress"]

_LOG = logging.getLogger("bsdkit")


class Progress:
    """Logs lines, shows no bars; the command line has one that draws on the terminal.

    Used as a context while work is under way.
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None

    def line(self, text: str) -> None:
        """Takes a line of text."""
        _LOG.info(text)

    def stage(self, name: str, done: int, total: int) -> None:
        """Takes how far a stage is; a new name starts a new stage."""

    def bar(self, name: str) -> Bar:
        """A stage that is moved on step by step."""
        return Bar(self, name)


class Bar:
    """One stage of a Progress.

    Args:
        progress: who is told.
        name: its label.
    """

    def __init__(self, progress: Progress, name: str) -> None:
        self._progress = progress
        self._name = name
        self._done = self._total = 0

    def start(self, todo: int, done: int) -> None:
        """Tells what is to be done and what is done already."""
        self._done, self._total = done, done + todo
        self._progress.stage(self._name, self._done, self._total)

    def advance(self, n: int) -> None:
        """Tells that n more are done."""
        self._done += n
        self._progress.stage(self._name, self._done, self._total)
