"""The clips table of a dataset: ids, labels and metadata in row order.

Three layouts are read: the folders of BSD10k and BSD35k-CS (``audio/<id>.wav`` beside
``metadata/*_metadata.csv``), a folder of class folders, and a plain CSV. The row order is
that of the metadata after the filter, and every array of the project follows it.
"""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bsdkit.audio import audio_seconds
from bsdkit.csvfile import read_csv_rows, whole_number
from bsdkit.errors import DatasetError, UnknownClass
from bsdkit.location import as_location, is_remote
from bsdkit.taxonomy import Taxonomy, load_taxonomy

__all__ = [
    "AUDIO_SUFFIXES",
    "ID_COLUMNS",
    "Clips",
    "FilterReport",
    "inspect_audio",
    "read_dataset",
]

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3", ".opus", ".aiff", ".aif")
"""File name endings that are taken for audio, in order of preference for the same stem."""

ID_COLUMNS = ("sound_id", "anonymous_id", "id", "clip_id")
_PATH_COLUMNS = ("path", "file", "filename", "audio")
_LABEL_COLUMNS = ("class", "label")

Strings = npt.NDArray[np.object_]


def _strings(values: Iterable[str]) -> Strings:
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
        audio: paths [n] of the audio files, None where only embeddings are available.
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
    audio: Sequence[Path | None] = field(repr=False)

    def __len__(self) -> int:
        """The number of clips."""
        return len(self.ids)

    @property
    def is_labelled(self) -> bool:
        """Whether every clip has a label."""
        return bool(len(self)) and bool((self.labels >= 0).all())

    @property
    def groups(self) -> npt.NDArray[np.int64]:
        """A group number [n] for each uploader; a clip without one is a group of its own."""
        keys = [
            f"uploader:{name}" if name else f"clip:{clip}"
            for name, clip in zip(self.uploader, self.ids, strict=True)
        ]
        numbers: dict[str, int] = {}
        return np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.int64)

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
        return _strings(str(row.get(name, "")) for row in rows)

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
        sha256=_strings("" for _ in rows),
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


def _inspect(path: Path | None) -> tuple[str, float]:
    """(sha256, seconds) of an audio file; ("", NaN) where it cannot be read."""
    if path is None:
        return "", float("nan")
    source: Path | io.BytesIO = path
    try:
        if is_remote(path):
            source = io.BytesIO(path.read_bytes())
            digest = hashlib.sha256(source.getbuffer()).hexdigest()
        else:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return "", float("nan")
    return digest, audio_seconds(source)


def inspect_audio(
    clips: Clips, *, n_threads: int = 2, progress: Callable[[int], None] | None = None
) -> Clips:
    """The same clips with the sha256 and, from its header, the seconds of each audio file.

    A file that cannot be read keeps an empty digest; one that cannot be decoded, NaN seconds.

    Args:
        clips: a clips table with audio paths.
        n_threads: files read at a time.
        progress: called with the number of files done.
    """
    digests, seconds = [], []
    with ThreadPoolExecutor(n_threads) as pool:
        for i, (digest, duration) in enumerate(pool.map(_inspect, clips.audio)):
            digests.append(digest)
            # without a file, what the metadata say is all there is
            seconds.append(float(clips.duration[i]) if clips.audio[i] is None else duration)
            if progress:
                progress(len(digests))
    return replace(clips, sha256=_strings(digests), duration=np.array(seconds, np.float32))
