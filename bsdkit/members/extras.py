"""Labels of extra clips: what the labels of another store mean in this one's classes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bsdkit.csvfile import read_csv_rows
from bsdkit.dataset import Clips
from bsdkit.errors import RecipeError, nearest
from bsdkit.taxonomy import Taxonomy

__all__ = ["class_positions", "read_labels_map", "said_of_unknown"]

_SHOWN = 10


def read_labels_map(path: Path | str) -> dict[str, str]:
    """The class by label that a CSV with the columns ``label`` and ``class`` says.

    Raises:
        RecipeError: the file cannot be read, lacks a column, or names a label twice.
    """
    path = Path(path)
    header, rows = read_csv_rows(path, RecipeError, "the map of labels")
    if not {"label", "class"} <= set(header):
        raise RecipeError(
            f"{path} has the columns {', '.join(header) or 'none'}; expected label,class"
        )
    found: dict[str, str] = {}
    for line, fields in rows:
        label, stands_for = (fields[header.index(name)].strip() for name in ("label", "class"))
        if label in found:
            raise RecipeError(f"{path} line {line}: label {label!r} stands twice; keep one line")
        found[label] = stands_for
    return found


def class_positions(
    clips: Clips, taxonomy: Taxonomy, labels_map: Path | str | None = None
) -> tuple[npt.NDArray[np.int64], Mapping[str, int]]:
    """Positions [n_clips] of clips' labels in another taxonomy, -1 where there is none.

    Args:
        clips: the clips, with labels of their own taxonomy.
        taxonomy: whose positions.
        labels_map: see `read_labels_map`; None where equal labels are the same class.

    Returns:
        The positions, and how many clips have each label that stands for no class.

    Raises:
        RecipeError: see `read_labels_map`; a class does not exist, or no clip has a label that
            the map names.
    """
    theirs = clips.taxonomy.labels
    if labels_map is None:
        named = {label: label for label in taxonomy.labels}
    else:
        named = read_labels_map(labels_map)
        for label, stands_for in named.items():
            if stands_for not in taxonomy.labels:
                raise RecipeError(
                    f"{labels_map}: label {label!r} stands for {stands_for!r}, which is no class: "
                    f"{nearest(stands_for, taxonomy.labels)}"
                )
        if not named.keys() & set(theirs):
            raise RecipeError(
                f"{labels_map} names none of the store's {len(theirs)} labels, e.g. {theirs[0]!r}; "
                "write a line LABEL,CLASS for each"
            )
    by_label = np.array([taxonomy.index(named[t]) if t in named else -1 for t in theirs], np.int64)
    labels = np.where(clips.labels >= 0, by_label[clips.labels], -1)
    counts = np.bincount(clips.labels[clips.labels >= 0], minlength=len(theirs))
    unknown = {t: int(n) for t, n in zip(theirs, counts, strict=True) if t not in named and n}
    return labels, unknown


def said_of_unknown(unknown: Mapping[str, int]) -> str:
    """Labels that stand for no class, the commonest first, with their clips."""
    order = sorted(unknown, key=lambda label: -unknown[label])
    shown = [f"{label} ({unknown[label]})" for label in order[:_SHOWN]]
    if len(order) > _SHOWN:
        rest = sum(unknown[label] for label in order[_SHOWN:])
        shown.append(f"{len(order) - _SHOWN} more ({rest})")
    return f"{sum(unknown.values())} clips have no class here: {', '.join(shown)}"
