"""Groups of clips that must not stand on two sides of a fold: by any column, and equal sounds."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bsdkit.dataset.clips import Clips, Strings, strings
from bsdkit.errors import SplitError, nearest

__all__ = ["GroupKey", "Grouping", "column_values", "copies", "group_clips", "numbered"]

IntArray = npt.NDArray[np.int64]

_BUILT_IN = ("uploader", "licence", "title", "tags", "description", "id")


@dataclass(frozen=True)
class GroupKey:
    """A column whose equal values make a group.

    Attributes:
        column: one of the clips table's, or one that was kept.
        pattern: a regular expression; what its first group matches, or all that it matches, is
            taken instead of the value. A value that it does not match is unknown.
    """

    column: str
    pattern: str = ""

    def __str__(self) -> str:
        return f"{self.column}~{self.pattern}" if self.pattern else self.column

    @classmethod
    def parse(cls, text: str) -> tuple[GroupKey, ...]:
        r"""The keys in a text such as ``origin``, ``uploader+pack`` or ``uploader+id~^(\d+)_``.

        Raises:
            SplitError: a column has no name, stands twice, or the pattern is none.
        """
        columns, _, pattern = text.partition("~")
        names = [name.strip() for name in columns.split("+")]
        if not all(names) or len(set(names)) < len(names):
            raise SplitError(f"groups {text!r}: expected COLUMN, COLUMN+COLUMN or COLUMN~PATTERN")
        try:
            re.compile(pattern)
        except re.error as error:
            raise SplitError(f"groups {text!r}: {pattern!r} is no pattern: {error}") from None
        return (*(cls(name) for name in names[:-1]), cls(names[-1], pattern))

    def values(self, clips: Clips) -> Strings:
        """The key [n_clips] of each clip; empty where it is unknown.

        Raises:
            SplitError: the clips have no such column.
        """
        values = column_values(clips, self.column)
        if not self.pattern:
            return values
        found = [re.search(self.pattern, value) for value in values]
        return strings((m[1] or "" if m.re.groups else m[0]) if m else "" for m in found)


def column_values(clips: Clips, column: str) -> Strings:
    """A column [n_clips] as texts; empty where a value is unknown.

    Raises:
        SplitError: the clips have no such column.
    """
    if column in clips.columns:
        values = clips.columns[column]
        if values.dtype == object:
            return values
        return strings("" if np.isnan(value) else f"{value:.17g}" for value in values)
    if column in _BUILT_IN:
        return clips.ids if column == "id" else np.asarray(getattr(clips, column))
    known = [*_BUILT_IN, *clips.columns]
    raise SplitError(
        f"the clips have no column {column!r}: {nearest(column, known)}; a column of the metadata "
        f"is kept with bsdkit extract --keep-columns {column}"
    )


@dataclass(frozen=True)
class Grouping:
    """Which clips belong together.

    Attributes:
        keys: what makes a group.
        values: the keys [n_clips] by the key's text; empty where unknown.
        numbers: group numbers [n_clips]: clips with an equal known value of any key, or an
            equal sound, have the same.
    """

    keys: tuple[GroupKey, ...]
    values: dict[str, Strings]
    numbers: IntArray

    @property
    def name(self) -> str:
        """The keys as one text, e.g. ``uploader`` or ``uploader and origin``."""
        return " and ".join(str(key) for key in self.keys)


def group_clips(clips: Clips, keys: Sequence[GroupKey]) -> Grouping:
    """Clips that are linked by an equal known value of any of the keys, or by an equal sound.

    A clip of which nothing is known is a group of its own.

    Raises:
        SplitError: the clips have no such column.
    """
    values = {str(key): key.values(clips) for key in keys}
    linked = [*values.values(), clips.sound]
    return Grouping(tuple(keys), values, _components(linked, len(clips)))


def numbered(values: Strings) -> IntArray:
    """Group numbers [n] of texts; an empty one, which is unknown, is a group of its own."""
    return _components([values], len(values))


def copies(clips: Clips) -> npt.NDArray[np.bool_]:
    """Whether another clip of the table has an equal sound, [n_clips]."""
    counts = Counter(clips.sound.tolist())
    return np.array([bool(sound) and counts[sound] > 1 for sound in clips.sound], bool)


def _components(columns: Sequence[Strings], n: int) -> IntArray:
    """Numbers [n], in the order of their first row, of rows linked by equal texts of a column."""
    parent = np.arange(n)

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return int(i)

    for values in columns:
        first: dict[str, int] = {}
        for i, value in enumerate(values.tolist()):
            if value:
                a, b = root(i), root(first.setdefault(value, i))
                parent[max(a, b)] = min(a, b)
    roots = [root(i) for i in range(n)]
    numbers: dict[int, int] = {}
    return np.array([numbers.setdefault(r, len(numbers)) for r in roots], np.int64)
