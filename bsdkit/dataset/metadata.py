"""A table of metadata as clips: ids, labels, texts, and the audio file of each row."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bsdkit.csvfile import whole_number
from bsdkit.dataset.clips import Clips, make_clips
from bsdkit.dataset.columns import (
    ID_COLUMNS,
    WEAK_LABELS,
    find_column,
    find_columns,
    kept_columns,
    known,
    unread_columns,
)
from bsdkit.dataset.folders import AudioFinder, audio_folders, read_folder
from bsdkit.dataset.report import LABELS_OF_ONES_OWN, FilterReport, alike_classes
from bsdkit.dataset.tables import read_table
from bsdkit.errors import DatasetError, UnknownClass
from bsdkit.location import as_location, is_remote
from bsdkit.taxonomy import Taxonomy, load_taxonomy

__all__ = ["TableReader"]


def _shortened(header: Sequence[str]) -> str:
    more = ", ..." if len(header) > 20 else ""
    return ", ".join(name[:40] for name in header[:20]) + more


def _number(text: str, what: str, where: str) -> float:
    if not text:
        return float("nan")
    try:
        return float(text)
    except ValueError:
        raise DatasetError(f"{where}: {what} {text!r} is not a number") from None


def _whole(text: str) -> int | None:
    return whole_number(text.removesuffix(".0"))  # pandas writes 405.0 where the column has a gap


class TableReader:
    """Reads one table of metadata.

    Args:
        path: the table.
        root: the folder that paths and ``audio/`` are in.

    Raises:
        DatasetError: see `read_table`; or no column holds ids.
    """

    def __init__(self, path: Path, root: Path) -> None:
        self.table = table = read_table(path)
        self.header = list(table.header)
        self.at = find_columns(self.header)
        self.notes = list(table.notes)
        ids_at = self.at.get("id", self.at.get("path"))
        if ids_at is None:
            raise DatasetError(
                f"{path} has the columns {_shortened(self.header) or 'none'}; "
                f"one of {', '.join(ID_COLUMNS)} is needed, or one of file names"
            )
        self.ids_at = ids_at
        folders = audio_folders(root)
        contents = [read_folder(folder) for folder in folders]
        if not folders and not is_remote(root):
            contents = [read_folder(root, is_deep=False)]  # sounds beside the table
        self.root, self.contents = root, contents
        self.finder = AudioFinder(root, folders, contents)

    def get(self, fields: list[str], field: str) -> str:
        """What a row says of a thing; empty where it is unknown."""
        return known(fields[self.at[field]]) if field in self.at else ""

    def read(
        self, taxonomy: Taxonomy | str, keep: Sequence[str], if_there: Iterable[str]
    ) -> tuple[Clips, FilterReport]:
        """The clips and the report, see `read_dataset`."""
        path, rows = self.table.path, self.table.rows
        kept_at = kept_columns(self.header, keep, if_there, path)
        tree = None
        if taxonomy != "flat":
            tree = load_taxonomy(taxonomy) if isinstance(taxonomy, str) else taxonomy
        is_code = self._choose_label(tree)
        labels = [self._label(fields, tree, is_code=is_code) for _, fields in rows]
        tree = tree or Taxonomy.flat(sorted(set(labels) - {""}) or ["unlabelled"])
        self._check_ids()
        dropped: list[tuple[str, str, str]] = []
        kept: list[dict[str, Any]] = []
        for (line, fields), label in zip(rows, labels, strict=True):
            where = f"{path} line {line}"
            clip = fields[self.ids_at].strip()
            label, code = self._class(label, fields, tree, where, is_code=is_code)
            audio = self._audio(clip, self.get(fields, "path"))
            if reason := tree.reason_to_drop(label, code):
                dropped.append((clip, label, reason))
                continue
            row: dict[str, Any] = {
                "id": clip,
                "label": _position(tree, label, code, where),
                "audio": audio,
                "kept": {name: known(fields[at]) for name, at in kept_at.items()},
            }
            for name in ("confidence", "duration"):
                row[name] = _number(self.get(fields, name), name, where)
            for name in ("uploader", "licence", "title", "tags", "description"):
                row[name] = self.get(fields, name)
            kept.append(row)
        if not kept:
            raise DatasetError(
                f"{path} has no clip to keep: {len(rows)} rows read, {len(dropped)} dropped"
            )
        blank = {
            i
            for i, name in enumerate(self.header)
            if not name and not any(fields[i].strip() for _, fields in rows)
        }
        read = {*self.at.values(), *kept_at.values(), self.ids_at, *blank}
        unread = unread_columns(self.header, read)
        clips = replace(make_clips(kept, tree), unread=unread)
        self._note(clips)
        report = FilterReport(str(path), len(rows), tuple(dropped), tuple(self.notes), unread)
        return clips, report

    def _check_ids(self) -> None:
        first_line: dict[str, int] = {}
        name = self.header[self.ids_at]
        for line, fields in self.table.rows:
            where = f"{self.table.path} line {line}"
            clip = fields[self.ids_at].strip()
            if not clip:
                raise DatasetError(f"{where}: empty {name}")
            if not known(clip):
                raise DatasetError(f"{where}: {name} {clip!r} says unknown; give an id")
            if clip in first_line:
                raise DatasetError(
                    f"{where}: id {clip!r} stands already on line {first_line[clip]}; "
                    "ids must differ"
                )
            first_line[clip] = line

    def _choose_label(self, tree: Taxonomy | None) -> bool:
        """Takes a column for the labels where none is called so; whether it is that of codes."""
        if "label" in self.at:
            return False
        codes = {c.code for c in tree.classes if c.code >= 0} if tree else set()
        if "code" in self.at and (tree is None or codes):
            self.at["label"] = self.at["code"]
            return True
        for name in WEAK_LABELS:
            at = find_column(name, self.header)
            values = {known(fields[at]) for _, fields in self.table.rows if at is not None} - {""}
            if not values:
                continue
            if tree is None and name == "labels" and any("," in value for value in values):
                self.notes.append(
                    f"{name} holds several labels a clip and is not read: one is taken, from a "
                    "column class"
                )
            elif tree is None or all(
                v in tree.labels or tree.reason_to_drop(v, -1) for v in values
            ):
                self.at["label"] = at  # type: ignore[assignment]
                return False
            elif all(_whole(value) in codes for value in values):
                self.at["label"] = self.at["code"] = at  # type: ignore[assignment]
                return True
            else:
                odd = next(v for v in sorted(values) if v not in tree.labels)
                self.notes.append(
                    f"{name} is not read as the label: {odd!r} is no class of taxonomy "
                    f"{tree.name!r}; {LABELS_OF_ONES_OWN}"
                )
        if "code" in self.at:
            self.notes.append(
                f"{self.header[self.at['code']]} is not read: the taxonomy gives no codes"
            )
        return False

    def _label(self, fields: list[str], tree: Taxonomy | None, *, is_code: bool) -> str:
        if "label" not in self.at:
            return ""
        text = fields[self.at["label"]].strip()
        if tree is None or text not in tree.labels:  # a class may be called none
            text = known(text)
        return text.removesuffix(".0") if is_code else unicodedata.normalize("NFC", text)

    def _class(
        self, label: str, fields: list[str], tree: Taxonomy, where: str, *, is_code: bool
    ) -> tuple[str, int]:
        """The label of a row and its code, -1 where there is none."""
        text = self.get(fields, "code")
        code = _whole(text) if text else -1
        if code is None:
            if is_code and label in tree.labels:  # flat: a code of the user's own
                return label, -1
            raise DatasetError(f"{where}: class_idx {text!r} is not a whole number")
        if is_code and label and label not in tree.labels:
            label = next((c.label for c in tree.classes if c.code == code), str(code))
        return label, code

    def _audio(self, clip: str, named: str) -> Path | None:
        if "://" in named:
            return as_location(named)
        found = self.finder.by_path(named) if named else None
        is_fallback = bool(named) and found is None and "id" in self.at
        found = found or self.finder.by_id(clip, "by id, not by path" if is_fallback else "")
        if found is not None:
            return found
        if named and "id" in self.at:
            return self.root / named
        return self.finder.missing(named or clip) or (self.root / named if named else None)

    def _note(self, clips: Clips) -> None:
        """Notes which columns were read for what, what is unknown, and what audio there is."""
        usual = {"licence": ("license", "licence"), "id": ID_COLUMNS, "code": ("class_idx",)}
        usual |= {"label": ("class", "label"), "path": ("path", "file", "filename", "audio")}
        renamed = [
            f"{self.header[at]} as {field}"
            for field, at in self.at.items()
            if self.header[at].casefold() not in usual.get(field, (field,))
            and (field != "code" or self.at.get("label") != at)
        ]
        if "id" not in self.at:
            renamed.append(f"{self.header[self.at['path']]} as id")
        if renamed:
            self.notes.append("read " + ", ".join(renamed))
        n = len(clips)
        unknown = {"uploader": sum(not value for value in clips.uploader)}
        unknown["label"] = int((clips.labels < 0).sum())
        self.notes += [
            f"{field} unknown of {n_unknown} of {n} clips (column {self.header[self.at[field]]})"
            for field, n_unknown in unknown.items()
            if n_unknown and field in self.at
        ]
        self.notes += alike_classes(clips.taxonomy)
        self.notes += self.finder.notes()
        self.notes += [note for found in self.contents for note in found.notes() if found.is_deep]
        if not is_remote(self.root) and any(path is not None for path in clips.audio):
            self.notes.append(_audio_counts(clips))
        unused = self.finder.files - self.finder.used
        if unused and self.finder.folders:
            example = min(unused)
            self.notes.append(f"{len(unused)} audio files that no row names, e.g. {example.name}")


def _audio_counts(clips: Clips) -> str:
    paths = dict(zip(clips.ids.tolist(), clips.audio, strict=True))
    lacking = [c for c, p in paths.items() if p is None or not (is_remote(p) or p.is_file())]
    n_found = len(clips) - len(lacking)
    example = f"; {len(lacking)} have none, e.g. {lacking[0]}" if lacking else ""
    return f"audio files of {n_found} of {len(clips)} clips{example}"


def _position(tree: Taxonomy, label: str, code: int, where: str) -> int:
    """The position of a label, -1 of the empty one.

    Raises:
        DatasetError: the taxonomy lacks it, or its code is another.
    """
    if not label:
        return -1
    try:
        position = tree.index(label)
    except UnknownClass as error:
        raise DatasetError(f"{where}: {error}; {LABELS_OF_ONES_OWN}") from None
    expected = tree.classes[position].code
    if code >= 0 and expected >= 0 and code != expected:
        raise DatasetError(
            f"{where}: class {label!r} with class_idx {code}; its code is {expected}"
        )
    return position
