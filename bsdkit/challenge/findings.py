"""What a check of files found: problems, which make them unfit, and warnings, which do not."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Findings"]

MOST_LINES = 20
"""How many problems of one kind get a line each; the rest are counted in one more."""


@dataclass
class Findings:
    """Problems and warnings, each one line that names the file and, where it can, the line.

    Attributes:
        problems: what makes a submission unfit.
        warnings: what is allowed and unlikely to be meant.
    """

    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    _counts: Counter[tuple[Path, str]] = field(default_factory=Counter, repr=False, compare=False)

    @property
    def is_ready(self) -> bool:
        """Whether there is no problem."""
        return not self.problems

    def problem(self, path: Path, line: int, text: str) -> None:
        """Adds a problem; line 0 stands for the whole file."""
        self.problems.append(_located(path, line, text))

    def warning(self, path: Path, line: int, text: str) -> None:
        """Adds a warning; line 0 stands for the whole file."""
        self.warnings.append(_located(path, line, text))

    def allows(self, path: Path, kind: str) -> bool:
        """Counts a problem of a kind that may fill a file; whether it still gets a line."""
        self._counts[path, kind] += 1
        return self._counts[path, kind] <= MOST_LINES

    def close(self, path: Path) -> None:
        """Adds a line for each kind of problem of a file that did not get all of its lines."""
        for (file, kind), count in self._counts.items():
            if file == path and count > MOST_LINES:
                self.problem(path, 0, f"{kind}: {count - MOST_LINES} more lines")

    def extend(self, other: Findings) -> None:
        """Adds what another check found."""
        self.problems += other.problems
        self.warnings += other.warnings


def _located(path: Path, line: int, text: str) -> str:
    return f"{path} line {line}: {text}" if line else f"{path}: {text}"
