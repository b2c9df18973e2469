"""Files of class probabilities: read, whoever wrote them, and written.

Rows are matched by clip id and columns by class label, never by position. True labels in a file
are never looked at.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import math
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from bsdkit.csvfile import read_csv_rows, whole_number, write_whole
from bsdkit.dataset import ID_COLUMNS
from bsdkit.errors import DatasetError, nearest
from bsdkit.predictions import PREDICTION_COLUMNS
from bsdkit.stats import softmax
from bsdkit.taxonomy import Taxonomy

__all__ = [
    "SUM_TOLERANCE",
    "Form",
    "ImportedProbabilities",
    "export_probabilities",
    "read_probabilities",
]

SUM_TOLERANCE = 1e-3
"""How far from 1 the probabilities of a clip may add up: what rounding to 4 decimals leaves."""

Form = Literal["full", "top-1", "logits"]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_ROUNDING = 1e-6  # what float32 leaves of a sum of 1; such rows keep their bits
_HIGHEST_FOLD = 2**31 - 1
_SUFFIXES = (".csv", ".csv.gz", ".npz")
_SCORE_COLUMN = "prediction_score"
_TRUTH_COLUMN = "ground_truth"
# Columns beside those of classes that a file may have. Any other is refused: it may be a
# class of another taxonomy, and its share of the probability would be lost unseen.
_OTHER_COLUMNS = {
    *ID_COLUMNS,
    *PREDICTION_COLUMNS,
    _SCORE_COLUMN,
    *(_TRUTH_COLUMN, "class", "label", "class_idx", "class_top", "fold", "confidence"),
    *("uploader", "license", "licence", "title", "tags", "description", "duration"),
    *("", "Unnamed: 0"),  # the row numbers of pandas
}


@dataclass(frozen=True)
class ImportedProbabilities:
    """The class probabilities of a file.

    Attributes:
        ids: clip ids [n], all different, in the file's order.
        probabilities: [n, n_classes], columns in the taxonomy's order; rows add up to 1.
        form: what the file held: ``full`` probabilities; ``logits``, of which these are the
            softmax; or ``top-1``, the predicted class and its score alone, where the other
            classes have equal parts of what the score leaves.
        fold: [n] the fold whose models gave each row, or None where the file does not say.
        sha256: hex digest of the file.
    """

    ids: tuple[str, ...]
    probabilities: FloatArray
    form: Form
    fold: IntArray | None
    sha256: str


@dataclass(frozen=True)
class _Rows:
    """What a file holds, before it is known to be probabilities.

    Attributes:
        path: the file.
        ids: clip ids [n].
        values: [n, n_classes] in the taxonomy's order.
        form: see `ImportedProbabilities`.
        fold: fold numbers [n], or None.
        places: where each row stands [n], e.g. ``line 7``, for messages.
    """

    path: Path
    ids: Sequence[str]
    values: FloatArray
    form: Form
    fold: IntArray | None
    places: Sequence[str]

    def where(self, i: int) -> str:
        """The file and the place of a row."""
        return f"{self.path} {self.places[i]}"


def read_probabilities(path: Path, taxonomy: Taxonomy) -> ImportedProbabilities:
    """The class probabilities in a CSV (``.csv``, ``.csv.gz``) or ``.npz`` file.

    A CSV has an id column (``sound_id``, ``anonymous_id``, ``id`` or ``clip_id``) and either
    one column a class, named by its label, or ``prediction`` (in submissions
    ``predicted_bst_second_level_class``) with ``prediction_score``. Of the second kind, form
    ``top-1``, only one probability of a clip is known: the predicted class gets the score s
    and each of the other n - 1 classes (1 - s) / (n - 1). A score below 1 / n therefore leaves
    the predicted class the least probable one.

    An ``.npz`` has the arrays ``ids`` (or ``id``, ``sound_id``), ``classes`` (labels, in the
    order of the columns) and ``probabilities`` [n, n_classes], or else ``logits``, of which
    the softmax is taken. Nothing is unpickled.

    Either may have ``fold``, whole numbers from 0, or -1 for none. Rows may stand in any
    order, and so may classes. A row whose sum is 1 within 1e-6, as that of float32 is, keeps
    its bits; one whose sum is 1 within SUM_TOLERANCE is divided by it.

    Args:
        path: the file.
        taxonomy: the classes.

    Raises:
        DatasetError: the file cannot be read; a column or array is missing; an id stands
            twice; a class is unknown or missing; a probability or score is no number from 0
            to 1; or the probabilities of a clip do not add up to 1. The message names the line.
    """
    suffix = _suffix(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DatasetError(f"cannot read {path}: {error.strerror}") from None
    rows = _read_npz(path, data, taxonomy) if suffix == ".npz" else _read_csv(path, taxonomy)
    if not len(rows.ids):
        raise DatasetError(f"{path} has no rows; expected one a clip")
    _check_ids(rows)
    return ImportedProbabilities(
        tuple(rows.ids),
        _normalized(rows, taxonomy),
        rows.form,
        rows.fold,
        hashlib.sha256(data).hexdigest(),
    )


def _suffix(path: Path) -> str:
    name = path.name.lower()
    for suffix in _SUFFIXES:
        if name.endswith(suffix):
            return suffix
    raise DatasetError(f"{path}: files of probabilities end in {', '.join(_SUFFIXES)}")


def _check_ids(rows: _Rows) -> None:
    first: dict[str, int] = {}
    for i, clip in enumerate(rows.ids):
        if not clip:
            raise DatasetError(f"{rows.where(i)}: empty id")
        if clip in first:
            raise DatasetError(
                f"{rows.where(i)}: id {clip!r} stands already on {rows.places[first[clip]]}"
            )
        first[clip] = i


def _normalized(rows: _Rows, taxonomy: Taxonomy) -> FloatArray:
    """The values [n, n_classes] as rows that add up to 1, or the first fault."""
    values = np.ascontiguousarray(rows.values)  # one order of addition, whatever the file's
    is_wrong = ~((values >= 0) & (values <= 1 + _ROUNDING))
    if is_wrong.any():
        i, j = (int(k) for k in np.argwhere(is_wrong)[0])
        raise DatasetError(
            f"{rows.where(i)}: clip {rows.ids[i]!r} has {values[i, j]:g} for class "
            f"{taxonomy.labels[j]!r}, expected a probability from 0 to 1; save logits as the "
            "array logits of an .npz"
        )
    sums = values.sum(axis=1, keepdims=True)
    distance = np.abs(sums - 1)
    if (distance > SUM_TOLERANCE).any():
        i = int(np.argmax(distance[:, 0] > SUM_TOLERANCE))
        raise DatasetError(
            f"{rows.where(i)}: the probabilities of clip {rows.ids[i]!r} add up to "
            f"{sums[i, 0]:.6g}, expected 1 within {SUM_TOLERANCE:g}; divide rows by their sum "
            "first if they are scores"
        )
    is_kept = (distance <= _ROUNDING) & (values.max(axis=1, keepdims=True) <= 1)
    return np.where(is_kept, values, values / sums)


def _columns_of_classes(found: Sequence[str], where: str, taxonomy: Taxonomy) -> list[int]:
    """For each class of the taxonomy, the position of its column among these labels."""
    position = {label: j for j, label in enumerate(found)}
    unknown = [label for label in found if label not in taxonomy.labels]
    missing = [label for label in taxonomy.labels if label not in position]
    if unknown:
        raise DatasetError(
            f"{where} has {unknown[0]!r}, which is no class of taxonomy {taxonomy.name!r} "
            f"({nearest(unknown[0], missing or taxonomy.labels)}); rename it or leave it out"
        )
    if missing:
        raise DatasetError(
            f"{where} lacks {len(missing)} of {len(taxonomy)} classes, the first is "
            f"{missing[0]!r}; a class that was never predicted needs its zeros"
        )
    return [position[label] for label in taxonomy.labels]


def _number(text: str) -> float:
    """The number that a text is, or NaN; digits may not be grouped."""
    try:
        return math.nan if "_" in text else float(text)
    except ValueError:
        return math.nan


def _read_csv(path: Path, taxonomy: Taxonomy) -> _Rows:
    header, rows = read_csv_rows(path)
    column = {name: j for j, name in enumerate(header)}
    id_column = next((name for name in ID_COLUMNS if name in column), None)
    if id_column is None:
        raise DatasetError(
            f"{path} has the columns {', '.join(header) or 'none'}; one of "
            f"{', '.join(ID_COLUMNS)} is needed"
        )
    fields = [row for _, row in rows]
    lines = [f"line {line}" for line, _ in rows]
    ids = [row[column[id_column]].strip() for row in fields]
    fold: IntArray | None = None
    if "fold" in column:
        cells = [row[column["fold"]].strip() for row in fields]
        numbers = [whole_number(cell) for cell in cells]
        for i, number in enumerate(numbers):
            if number is None or not -1 <= number <= _HIGHEST_FOLD:
                raise DatasetError(
                    f"{path} {lines[i]}: fold {cells[i]!r}, expected a whole number from 0 (-1 for "
                    "none)"
                )
        fold = np.array(numbers, np.int64)
    if any(label in column for label in taxonomy.labels):
        classes = [name for name in header if name in taxonomy.labels or name not in _OTHER_COLUMNS]
        places = [
            column[classes[j]]
            for j in _columns_of_classes(classes, f"the header of {path}", taxonomy)
        ]
        values = np.array([[_number(row[j]) for j in places] for row in fields], np.float64)
        for i, j in np.argwhere(np.isnan(values))[:1]:
            raise DatasetError(
                f"{path} {lines[i]}: clip {ids[i]!r} has {fields[i][places[j]]!r} for class "
                f"{taxonomy.labels[j]!r}, expected a probability from 0 to 1"
            )
        return _Rows(path, ids, values, "full", fold, lines)
    predicted = next((name for name in PREDICTION_COLUMNS if name in column), None)
    if predicted is None or _SCORE_COLUMN not in column:
        raise DatasetError(
            f"{path} has the columns {', '.join(header)}; expected one a class "
            f"({taxonomy.labels[0]}, ...), or {PREDICTION_COLUMNS[0]} and {_SCORE_COLUMN}"
        )
    labels = [row[column[predicted]].strip() for row in fields]
    unknown = next((i for i, label in enumerate(labels) if label not in taxonomy.labels), None)
    if unknown is not None:
        raise DatasetError(
            f"{path} {lines[unknown]}: {labels[unknown]!r} is not a class of taxonomy "
            f"{taxonomy.name!r}: {nearest(labels[unknown], taxonomy.labels)}"
        )
    place = column[_SCORE_COLUMN]
    scores = np.array([_number(row[place]) for row in fields], np.float64)
    for i in np.flatnonzero(~((scores >= 0) & (scores <= 1)))[:1]:
        raise DatasetError(
            f"{path} {lines[i]}: clip {ids[i]!r} has the {_SCORE_COLUMN} {fields[i][place]!r}, "
            "expected a number from 0 to 1"
        )
    rest = (1 - scores) / max(len(taxonomy) - 1, 1)
    values = np.repeat(rest[:, None], len(taxonomy), axis=1)
    values[np.arange(len(ids)), taxonomy.encode(labels)] = scores
    return _Rows(path, ids, values, "top-1", fold, lines)


def _read_npz(path: Path, data: bytes, taxonomy: Taxonomy) -> _Rows:
    arrays = _load_arrays(
        path, data, ("ids", "id", "sound_id", "probabilities", "logits", "classes", "fold")
    )
    listed = ", ".join(arrays) or "none of these names"
    ids_name = next((name for name in ("ids", "id", "sound_id") if name in arrays), None)
    name = next((name for name in ("probabilities", "logits") if name in arrays), None)
    if ids_name is None or name is None:
        raise DatasetError(
            f"{path} holds {listed}; expected the arrays ids, classes and probabilities (or logits)"
        )
    if "classes" not in arrays:
        raise DatasetError(
            f"{path} lacks the array classes, and columns in another order than is assumed would "
            "go unseen; save classes=[labels in the order of the columns] with the rest"
        )
    ids = _texts(path, ids_name, arrays[ids_name])
    classes = _texts(path, "classes", arrays["classes"])
    values = arrays[name]
    if values.dtype.kind not in "fiu" or values.shape != (len(ids), len(classes)):
        raise DatasetError(
            f"{path}: {name} is {values.dtype} of shape {values.shape}; expected numbers of shape "
            f"({len(ids)}, {len(classes)}), a row each of {ids_name} and a column each of classes"
        )
    twice = next((label for label in classes if classes.count(label) > 1), None)
    if twice is not None:
        raise DatasetError(f"{path}: the array classes names {twice!r} twice")
    order = _columns_of_classes(classes, f"the array classes of {path}", taxonomy)
    values = np.ascontiguousarray(values.astype(np.float64)[:, order])
    fold: IntArray | None = None
    if "fold" in arrays:
        found = arrays["fold"]
        if found.dtype.kind not in "iu" or found.shape != (len(ids),):
            raise DatasetError(
                f"{path}: fold is {found.dtype} of shape {found.shape}; expected whole numbers of "
                f"shape ({len(ids)},)"
            )
        if found.size and not (found.min() >= -1 and found.max() <= _HIGHEST_FOLD):
            raise DatasetError(
                f"{path}: fold reaches from {found.min()} to {found.max()}, expected whole numbers "
                "from 0 (-1 for none)"
            )
        fold = found.astype(np.int64)
    places = [f"row {i}" for i in range(len(ids))]
    if name == "probabilities" or not ids:
        return _Rows(path, ids, values, "full", fold, places)
    for i in np.flatnonzero(~np.isfinite(values).all(axis=1))[:1]:
        raise DatasetError(f"{path} row {i}: the logits of clip {ids[i]!r} are not all finite")
    if (values >= 0).all() and (np.abs(values.sum(axis=1) - 1) <= SUM_TOLERANCE).all():
        raise DatasetError(
            f"{path}: every row of logits adds up to 1, so these are probabilities; save them as "
            "the array probabilities"
        )
    return _Rows(path, ids, softmax(values), "logits", fold, places)


def _load_arrays(path: Path, data: bytes, names: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    """The arrays of those names; others of the file, such as true labels, are not read."""
    hint = f"{path} is no .npz file of arrays; save it with np.savez(path, ids=..., ...)"
    if not data.startswith(b"PK"):  # a lone .npy or a pickle
        raise DatasetError(hint)
    arrays: dict[str, npt.NDArray[Any]] = {}
    name = ""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            for name in names:
                if name in file.files:
                    arrays[name] = np.asarray(file[name])
    except (OSError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise DatasetError(f"{hint} ({error})") from None
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise DatasetError(f"{hint} ({error})") from None
        raise DatasetError(
            f"{path}: the array {name} holds Python objects, which are never unpickled; save it "
            f"as text or numbers, e.g. {name}=np.array({name}, "
            + ("str)" if name in ("ids", "id", "sound_id", "classes") else "float)")
        ) from None
    return arrays


def _texts(path: Path, name: str, array: npt.NDArray[Any]) -> list[str]:
    """Ids or labels [n] as text; whole numbers are taken for their digits."""
    if array.ndim != 1 or array.dtype.kind not in "UTSiu":
        raise DatasetError(
            f"{path}: {name} is {array.dtype} of shape {array.shape}; expected text of shape (n,)"
        )
    try:
        values = [v.decode() if isinstance(v, bytes) else str(v) for v in array.tolist()]
    except UnicodeDecodeError:
        raise DatasetError(f"{path}: {name} is not UTF-8 text") from None
    return [value.strip() for value in values]


def export_probabilities(
    path: Path,
    ids: Iterable[str],
    probabilities: FloatArray,
    taxonomy: Taxonomy,
    *,
    fold: IntArray | None = None,
    labels: Sequence[str] | None = None,
) -> None:
    """Writes probabilities so that `read_probabilities` gives the same float64 bits.

    The same arguments give the same bytes, and the file appears whole. Rows that do not add
    up to 1 are treated as in reading.

    Args:
        path: the file, ``.csv``, ``.csv.gz`` or ``.npz``.
        ids: clip ids [n].
        probabilities: [n, n_classes], columns in the taxonomy's order.
        taxonomy: the classes.
        fold: the fold whose models gave each row [n].
        labels: true labels [n], for others; `read_probabilities` does not look at them.

    Raises:
        DatasetError: the probabilities, ids or lengths are wrong, or the file cannot be written.
    """
    suffix = _suffix(path)
    clips = list(ids)
    values = np.asarray(probabilities, np.float64)
    if values.shape != (len(clips), len(taxonomy)):
        raise DatasetError(
            f"probabilities of shape {values.shape}; expected ({len(clips)}, {len(taxonomy)}), a "
            "row a clip and a column a class"
        )
    for what, column in (("folds", fold), ("labels", labels)):
        if column is not None and len(column) != len(clips):
            raise DatasetError(f"{len(column)} {what} for {len(clips)} clips; expected one each")
    if any(clip != clip.strip() for clip in clips):
        odd = next(clip for clip in clips if clip != clip.strip())
        raise DatasetError(f"clip id {odd!r} begins or ends with a space, which CSV readers drop")
    rows = _Rows(path, clips, values, "full", None, [f"row {i}" for i in range(len(clips))])
    _check_ids(rows)
    values = _normalized(rows, taxonomy)
    if suffix == ".npz":
        arrays: dict[str, npt.NDArray[Any]] = {
            "ids": np.array(clips, str),
            "probabilities": values,
            "classes": np.array(taxonomy.labels, str),
        }
        if fold is not None:
            arrays["fold"] = np.asarray(fold, np.int64)
        if labels is not None:
            arrays[_TRUTH_COLUMN] = np.array(labels, str)
        file = io.BytesIO()
        np.savez(file, **arrays)  # type: ignore[arg-type]
        data = file.getvalue()
    else:
        before: list[tuple[str, Sequence[object]]] = [("sound_id", clips)]
        if labels is not None:
            before.append((_TRUTH_COLUMN, labels))
        if fold is not None:
            before.append(("fold", np.asarray(fold, np.int64).tolist()))
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*(name for name, _ in before), *taxonomy.labels])
        numbers = values.tolist()  # Python writes a float as the shortest text that reads back
        for row in zip(*(column for _, column in before), numbers, strict=True):
            writer.writerow([*row[:-1], *row[-1]])
        data = text.getvalue().encode()
        if suffix == ".csv.gz":
            data = _gzip(data)
    write_whole(path, data)


def _gzip(data: bytes) -> bytes:
    """Compressed without a time stamp, so that the same text gives the same bytes."""
    file = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as stream:
        stream.write(data)
    return file.getvalue()
