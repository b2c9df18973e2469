"""Prediction files: the organisers' CSV of one prediction a clip, read and written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bsdkit.csvfile import lines_of_ids, read_csv_rows, write_csv_rows
from bsdkit.dataset import ID_COLUMNS
from bsdkit.errors import DatasetError, UnknownClass
from bsdkit.taxonomy import Taxonomy, TaxonomyClass

__all__ = [
    "PREDICTION_COLUMNS",
    "Predictions",
    "flat_taxonomy",
    "read_predictions",
    "write_predictions",
]

PREDICTION_COLUMNS = ("prediction", "predicted_bst_second_level_class")
"""Names of the column of predicted labels: that of a prediction file, of a submission."""

_NONE = "no prediction"
_TRUTH_COLUMNS = ("ground_truth", "class", "label")


@dataclass(frozen=True)
class Predictions:
    """Predictions that can be scored.

    Attributes:
        ids: clip ids [n].
        y_true: true class positions [n].
        y_pred: predicted class positions [n].
        taxonomy: the classes, and where some clips have no prediction a last one that stands for
            that, of a family of its own: such a clip is wrong and lowers the precision of none.
        uncovered: ids of labelled clips without a prediction.
        is_covered_only: whether these were left out.
    """

    ids: tuple[str, ...]
    y_true: npt.NDArray[np.int64]
    y_pred: npt.NDArray[np.int64]
    taxonomy: Taxonomy
    uncovered: tuple[str, ...] = ()
    is_covered_only: bool = False

    def notes(self) -> list[str]:
        """How many labelled clips have no prediction, and what became of them."""
        if not self.uncovered:
            return []
        what = (
            "left out of the scores"
            if self.is_covered_only
            else "scored as wrong; --covered-only leaves them out"
        )
        n = len(self.ids) + (len(self.uncovered) if self.is_covered_only else 0)
        return [
            f"{len(self.uncovered)} of {n} labelled clips have no prediction, e.g. "
            f"{self.uncovered[0]}: {what}"
        ]


def flat_taxonomy(path: Path, labels: Path | None = None) -> Taxonomy:
    """The classes that a prediction file and its labels name, each a family of its own.

    Raises:
        DatasetError: a file cannot be read or lacks a column.
    """
    found: set[str] = set()
    for file, names in (
        (path, ("prediction",)),
        (labels or path, _TRUTH_COLUMNS),
    ):
        found |= set(_column(file, ID_COLUMNS, names)[0].values())
    return Taxonomy.flat(sorted(found - {""}))


def _column(
    path: Path, ids: tuple[str, ...], names: tuple[str, ...]
) -> tuple[dict[str, str], dict[str, int]]:
    """A column by clip id, and the line of each id."""
    header, rows = read_csv_rows(path)
    id_column = next((name for name in ids if name in header), None)
    value_column = next((name for name in names if name in header), None)
    if id_column is None or value_column is None:
        raise DatasetError(
            f"{path} has the columns {', '.join(header) or 'none'}; expected "
            f"{ids[0]} and {names[0]}"
        )
    clips = [(line, fields[header.index(id_column)].strip()) for line, fields in rows]
    lines = lines_of_ids(path, clips, id_column)
    position = header.index(value_column)
    values = {
        clip: fields[position].strip() for (_, clip), (_, fields) in zip(clips, rows, strict=True)
    }
    return values, lines


def _encode(
    path: Path,
    values: dict[str, str],
    lines: dict[str, int],
    ids: Sequence[str],
    taxonomy: Taxonomy,
) -> npt.NDArray[np.int64]:
    positions = []
    for clip in ids:
        try:
            positions.append(taxonomy.index(values[clip]))
        except UnknownClass as error:
            raise DatasetError(f"{path} line {lines[clip]}: {error}") from None
    return np.array(positions, np.int64)


def read_predictions(
    path: Path, taxonomy: Taxonomy, labels: Path | None = None, *, covered_only: bool = False
) -> Predictions:
    """The predictions in a CSV with the columns sound_id, ground_truth, prediction.

    Args:
        path: the predictions.
        taxonomy: the classes.
        labels: a CSV with sound_id and class (or ground_truth), instead of the column
            ground_truth; it must name all clips that were predicted.
        covered_only: whether labelled clips without a prediction are left out; else they count
            as wrong.

    Raises:
        DatasetError: a column is missing, an id stands twice or has no label, or a class is
            unknown; the message names the file and the line.
    """
    predicted, lines = _column(path, ID_COLUMNS, PREDICTION_COLUMNS)
    ids = tuple(predicted)
    if not ids:
        raise DatasetError(f"{path} has no rows; there is nothing to score")
    source = labels or path
    try:
        truth, truth_lines = _column(source, ID_COLUMNS, _TRUTH_COLUMNS)
    except DatasetError as error:
        hint = "" if labels else "; give the true classes with --labels FILE"
        raise DatasetError(f"{error}{hint}") from None
    missing = [clip for clip in ids if not truth.get(clip)]
    if missing:
        raise DatasetError(
            f"{source} has no class for {len(missing)} of {len(ids)} predicted clips, "
            f"e.g. {missing[0]!r}"
        )
    covered = tuple(clip for clip in ids if predicted[clip])
    uncovered = tuple(
        clip
        for clip, label in truth.items()
        if label and not predicted.get(clip) and not taxonomy.reason_to_drop(label, -1)
    )
    if covered_only and not covered:
        raise DatasetError(f"{path} predicts no class for any clip; there is nothing to score")
    scored = covered if covered_only else covered + uncovered
    y_pred = _encode(path, predicted, lines, covered, taxonomy)
    if uncovered and not covered_only:
        none = TaxonomyClass(_NONE, _NONE, name=_NONE)
        y_pred = np.append(y_pred, np.full(len(uncovered), len(taxonomy)))
        taxonomy = Taxonomy(taxonomy.name, [*taxonomy.classes, none])
    y_true = _encode(source, truth, truth_lines, scored, taxonomy)
    return Predictions(scored, y_true, y_pred, taxonomy, uncovered, covered_only)


def write_predictions(
    path: Path,
    ids: Iterable[str],
    labels: Iterable[str],
    scores: Iterable[float],
    truth: Sequence[str] | None = None,
) -> None:
    """Writes a prediction file; it appears whole.

    Args:
        path: the CSV file.
        ids: clip ids [n].
        labels: predicted labels [n].
        scores: probabilities [n] of the predicted labels, written with 6 decimals, so that what
            another processor rounds differently does not show.
        truth: true labels [n]; without them there is no column ground_truth.

    Raises:
        DatasetError: the file cannot be written.
    """
    header = [
        "sound_id",
        *(["ground_truth"] if truth is not None else []),
        "prediction",
        "prediction_score",
    ]
    written = [f"{score:.6f}" for score in scores]
    columns = [ids, *([truth] if truth is not None else []), labels, written]
    write_csv_rows(path, [header, *zip(*columns, strict=True)])
