"""Datasets on disk as clips tables.

Three layouts are read: the folders of BSD10k and BSD35k-CS (``audio/<id>.wav`` beside
``metadata/*_metadata.csv``), a folder of class folders, and a plain CSV. The row order is
that of the metadata after the filter, and every array of the project follows it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bsdkit.csvfile import read_csv_rows, whole_number
from bsdkit.dataset.clips import Clips, Strings, strings
from bsdkit.errors import DatasetError, UnknownClass
from bsdkit.location import as_location
from bsdkit.taxonomy import Taxonomy, load_taxonomy

__all__ = ["AUDIO_SUFFIXES", "ID_COLUMNS", "FilterReport", "read_dataset"]

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3", ".opus", ".aiff", ".aif")
"""File name endings that are taken for audio, in order of preference for the same stem."""

ID_COLUMNS = ("sound_id", "anonymous_id", "id", "clip_id")
_PATH_COLUMNS = ("path", "file", "filename", "audio")
_LABEL_COLUMNS = ("class", "label")


@dataclass(frozen=True)
class FilterReport:
    """What reading a dataset kept and dropped.

    Attributes:
        source: the metadata file or folder.
        n_rows: rows read.
        dropped: (clip id, label, reason) of each row left out.
    """

    source: str
    n_rows: int
    dropped: tuple[tuple[str, str, str], ...] = ()

    def lines(self) -> list[str]:
        """The report as lines of text: rows, kept, and the count of each reason."""
        n_kept = self.n_rows - len(self.dropped)
        lines = [f"{self.source}: {self.n_rows} rows, {n_kept} kept, {len(self.dropped)} dropped"]
        reasons = Counter((label, reason) for _, label, reason in self.dropped)
        lines += [
            f"  dropped {n} of {label!r}: {reason}"
            for (label, reason), n in sorted(reasons.items())
        ]
        return lines


def read_dataset(path: Path | str, taxonomy: Taxonomy | str = "bst") -> tuple[Clips, FilterReport]:
    """The clips of a dataset on disk, and the report of what was left out.

    Args:
        path: a folder in BSD layout, a folder of class folders, a folder of audio files
            (unlabelled), or a CSV with an id column, optionally ``path`` and ``class``; or
            the URL of one. A ``path`` in the CSV may be a URL too.
        taxonomy: a taxonomy, ``bst``, the path of a taxonomy CSV, or ``flat`` to take the
            labels found, sorted, as classes that are their own families.

    Raises:
        DatasetError: nothing to read, broken quoting, a missing column, a duplicate id, an
            unknown class, or a class that contradicts its code; the message names the line.
    """
    path = as_location(path)
    if path.is_file():
        return _read_csv(path, taxonomy, path.parent)
    if not path.is_dir():
        raise DatasetError(f"no dataset at {path}: give a folder or a CSV file")
    if (path / "metadata").is_dir():
        return _read_csv(_metadata_file(path / "metadata"), taxonomy, path)
    return _read_folders(path, taxonomy)


def _metadata_file(folder: Path) -> Path:
    found = sorted(folder.glob("*_metadata.csv")) or sorted(folder.glob("*.csv"))
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise DatasetError(
            f"{folder} must hold one *_metadata.csv, found: {names}; "
            "give the CSV file itself instead of the folder"
        )
    return found[0]


def _audio_index(folder: Path) -> dict[str, Path]:
    """Audio files below a folder by stem; the preferred suffix wins."""
    index: dict[str, Path] = {}
    if folder.is_dir():
        rank = {suffix: i for i, suffix in enumerate(AUDIO_SUFFIXES)}
        files = [f for f in folder.iterdir() if f.suffix.lower() in rank]
        for file in sorted(files, key=lambda f: -rank[f.suffix.lower()]):
            index[file.stem] = file
    return index


def _number(text: str, what: str, where: str) -> float:
    if not text.strip():
        return float("nan")
    try:
        return float(text)
    except ValueError:
        raise DatasetError(f"{where}: {what} {text!r} is not a number") from None


def _read_csv(path: Path, taxonomy: Taxonomy | str, root: Path) -> tuple[Clips, FilterReport]:
    header, rows = read_csv_rows(path)
    column = {name: i for i, name in enumerate(header)}
    id_column = next((name for name in ID_COLUMNS if name in column), None)
    if id_column is None:
        raise DatasetError(
            f"{path} has the columns {', '.join(header) or 'none'}; "
            f"one of {', '.join(ID_COLUMNS)} is needed"
        )
    label_column = next((name for name in _LABEL_COLUMNS if name in column), None)
    path_column = next((name for name in _PATH_COLUMNS if name in column), None)
    audio_index = _audio_index(root / "audio")

    def get(fields: list[str], *names: str) -> str:
        for name in names:
            if name in column:
                return fields[column[name]].strip()
        return ""

    if taxonomy == "flat":
        labels_found = {get(f, label_column) for _, f in rows} if label_column else set()
        taxonomy = Taxonomy.flat(sorted(labels_found - {""}) or ["unlabelled"])
    tree = load_taxonomy(taxonomy) if isinstance(taxonomy, str) else taxonomy

    first_line: dict[str, int] = {}
    dropped: list[tuple[str, str, str]] = []
    kept: list[dict[str, object]] = []
    for line, fields in rows:
        where = f"{path} line {line}"
        clip = get(fields, id_column)
        if not clip:
            raise DatasetError(f"{where}: empty {id_column}")
        if clip in first_line:
            raise DatasetError(
                f"{where}: id {clip!r} stands already on line {first_line[clip]}; ids must differ"
            )
        first_line[clip] = line
        label = get(fields, label_column) if label_column else ""
        code_text = get(fields, "class_idx")
        # pandas writes 405.0 where the column has a gap
        code = whole_number(code_text.removesuffix(".0")) if code_text else -1
        if code is None:
            raise DatasetError(f"{where}: class_idx {code_text!r} is not a whole number")
        reason = tree.reason_to_drop(label, code)
        if reason:
            dropped.append((clip, label, reason))
            continue
        position = -1
        if label:
            try:
                position = tree.index(label)
            except UnknownClass as error:
                raise DatasetError(
                    f"{where}: {error}; for labels of your own give --taxonomy flat or a CSV with "
                    "class,family rows"
                ) from None
            expected = tree.classes[position].code
            if code >= 0 and expected >= 0 and code != expected:
                raise DatasetError(
                    f"{where}: class {label!r} with class_idx {code}; its code is {expected}"
                )
        audio: Path | None = audio_index.get(clip)
        if path_column and get(fields, path_column):
            named = get(fields, path_column)
            audio = as_location(named) if "://" in named else root / named
        elif audio is None and (audio_index or (root / "audio").is_dir()):
            audio = root / "audio" / f"{clip}.wav"
        kept.append(
            {
                "id": clip,
                "label": position,
                "confidence": _number(get(fields, "confidence"), "confidence", where),
                "uploader": get(fields, "uploader"),
                "licence": get(fields, "license", "licence"),
                "title": get(fields, "title"),
                "tags": get(fields, "tags"),
                "description": get(fields, "description"),
                "duration": _number(get(fields, "duration"), "duration", where),
                "audio": audio,
            }
        )
    if not kept:
        raise DatasetError(
            f"{path} has no clip to keep: {len(rows)} rows read, {len(dropped)} dropped"
        )
    return _clips(kept, tree), FilterReport(str(path), len(rows), tuple(dropped))


def _clips(rows: list[dict[str, object]], taxonomy: Taxonomy) -> Clips:
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
        audio=[row["audio"] for row in rows],  # type: ignore[misc]
    )


def _read_folders(root: Path, taxonomy: Taxonomy | str) -> tuple[Clips, FilterReport]:
    """Clips of ``root/<class>/**`` or, without class folders, unlabelled files in root."""
    files = sorted(f for f in root.rglob("*") if f.suffix.lower() in AUDIO_SUFFIXES and f.is_file())
    if not files:
        raise DatasetError(
            f"{root} holds no audio ({', '.join(AUDIO_SUFFIXES)}) and no metadata/*_metadata.csv"
        )
    relative = [f.relative_to(root) for f in files]
    depths = {len(f.parts) > 1 for f in relative}
    if depths == {True, False}:
        loose = next(f for f in relative if len(f.parts) == 1)
        raise DatasetError(
            f"{root} mixes class folders with loose files such as {loose}; "
            "move them into a class folder"
        )
    is_labelled = depths == {True}
    names = [f.parts[0] if is_labelled else "" for f in relative]
    if taxonomy == "flat":
        taxonomy = Taxonomy.flat(sorted(set(names) - {""}) or ["unlabelled"])
    tree = load_taxonomy(taxonomy) if isinstance(taxonomy, str) else taxonomy
    dropped, kept = [], []
    for file, name, short in zip(files, names, relative, strict=True):
        clip = short.as_posix()
        reason = tree.reason_to_drop(name, -1)
        if reason:
            dropped.append((clip, name, reason))
            continue
        try:
            position = tree.index(name) if name else -1
        except UnknownClass as error:
            raise DatasetError(
                f"folder {root / name}: {error}; for labels of your own give --taxonomy flat "
                "or a CSV with class,family rows"
            ) from None
        kept.append({"id": clip, "label": position, "title": file.stem, "audio": file})
    if not kept:
        raise DatasetError(f"{root} has no clip to keep: {len(dropped)} dropped")
    return _clips(kept, tree), FilterReport(str(root), len(files), tuple(dropped))
