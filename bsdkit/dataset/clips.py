"""The clips table: ids, labels and metadata of a dataset, in row order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bsdkit.errors import DatasetError
from bsdkit.taxonomy import Taxonomy

__all__ = ["Clips", "Strings", "make_clips", "strings"]

Strings = npt.NDArray[np.object_]


def strings(values: Iterable[str]) -> Strings:
    """Texts as an array [n] of Python strings."""
    array = np.array(list(values), dtype=object)
    return array.reshape(-1)


@dataclass(frozen=True)
class Clips:
    """A dataset's clips in row order.

    Attributes:
        ids: clip ids [n], all different.
        labels: class positions [n] in `taxonomy`; -1 where a clip has no label.
        taxonomy: the classes.
        confidence: annotators' confidence [n], 1 to 5; NaN where unknown.
        uploader: who made or uploaded each clip [n]; the groups of group-disjoint folds.
        licence: licence names [n].
        title: titles [n].
        tags: comma-separated tags [n].
        description: descriptions [n].
        duration: seconds [n]; NaN where unknown.
        sha256: hex digests [n] of the audio files; empty where unknown.
        sound: hex digests [n] that are equal where two files hold the same samples, whatever
            their containers and tags; empty where unknown.
        audio: paths [n] of the audio files, None where only embeddings are available.
        columns: further columns [n] that the user asked to keep, by name: float64 where every
            known value is a number (NaN where unknown), texts otherwise (empty where unknown).
        unread: columns of the metadata that were not read.
    """

    ids: Strings
    labels: npt.NDArray[np.int64]
    taxonomy: Taxonomy
    confidence: npt.NDArray[np.float32]
    uploader: Strings
    licence: Strings
    title: Strings
    tags: Strings
    description: Strings
    duration: npt.NDArray[np.float32]
    sha256: Strings
    sound: Strings
    audio: Sequence[Path | None] = field(repr=False)
    columns: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    unread: tuple[str, ...] = ()

    def __len__(self) -> int:
        """The number of clips."""
        return len(self.ids)

    @property
    def is_labelled(self) -> bool:
        """Whether every clip has a label."""
        return bool(len(self)) and bool((self.labels >= 0).all())

    def rows(self, index: npt.NDArray[np.integer]) -> Clips:
        """The same of some clips, in that order."""
        arrays = {
            f.name: value[index]
            for f in fields(self)
            if isinstance(value := getattr(self, f.name), np.ndarray)
        }
        return replace(
            self,
            **arrays,
            audio=[self.audio[i] for i in index.tolist()],
            columns={name: values[index] for name, values in self.columns.items()},
        )

    def positions(self, ids: Iterable[str]) -> npt.NDArray[np.int64]:
        """Row numbers of clip ids.

        Raises:
            DatasetError: an id is not in the table.
        """
        index = {clip: i for i, clip in enumerate(self.ids)}
        wanted = list(ids)
        unknown = [clip for clip in wanted if clip not in index]
        if unknown:
            raise DatasetError(
                f"{len(unknown)} ids are not in the clips table, the first is {unknown[0]!r}"
            )
        return np.array([index[clip] for clip in wanted], np.int64)


def _column(values: list[str]) -> npt.NDArray[Any]:
    """A kept column [n]: float64 where every known value is a number, texts otherwise."""
    try:
        # Python takes 1_2 for 12
        numbers = [float(value.replace("_", "?") or "nan") for value in values]
    except ValueError:
        return strings(values)
    return np.array(numbers, np.float64)


def make_clips(rows: Sequence[Mapping[str, Any]], taxonomy: Taxonomy) -> Clips:
    """The clips of rows that have ``id``, ``label``, ``audio`` and ``kept``, at least one."""

    def text(name: str) -> Strings:
        return strings(str(row.get(name, "")) for row in rows)

    def number(name: str) -> npt.NDArray[np.float32]:
        return np.array([row.get(name, float("nan")) for row in rows], np.float32)

    return Clips(
        ids=text("id"),
        labels=np.array([row["label"] for row in rows], np.int64),
        taxonomy=taxonomy,
        confidence=number("confidence"),
        uploader=text("uploader"),
        licence=text("licence"),
        title=text("title"),
        tags=text("tags"),
        description=text("description"),
        duration=number("duration"),
        sha256=strings("" for _ in rows),
        sound=strings("" for _ in rows),
        audio=[row["audio"] for row in rows],
        columns={name: _column([row["kept"][name] for row in rows]) for name in rows[0]["kept"]},
    )
