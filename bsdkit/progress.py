"""What long work says while it runs: an observer that library code calls and a caller may show."""

from __future__ import annotations

import logging
from types import TracebackType
from typing import Self

__all__ = ["Progress"]

_LOG = logging.getLogger("bsdkit")


class Progress:
    """Logs lines, shows no bars; the command line has one that draws on the terminal.

    Used as a context while work is under way.
    """

    def __init__(self) -> None:
        self._steps: dict[str, tuple[int, int]] = {}

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

    def start(self, name: str, todo: int, done: int) -> None:
        """Begins a stage that is moved on step by step, with what is to be done and what is."""
        self._steps[name] = done, done + todo
        self.stage(name, done, done + todo)

    def advance(self, name: str, n: int) -> None:
        """Tells that n more are done of a stage; one that nobody began is not shown."""
        if name in self._steps:
            done, total = self._steps[name]
            self._steps[name] = done + n, total
            self.stage(name, done + n, total)
