"""What the columns of metadata are called, and the words that stand for nothing."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

from bsdkit.errors import DatasetError, nearest

__all__ = [
    "ID_COLUMNS",
    "WEAK_LABELS",
    "column_key",
    "find_column",
    "find_columns",
    "kept_columns",
    "known",
    "n_known",
    "unread_columns",
]

ID_COLUMNS = ("sound_id", "anonymous_id", "id", "clip_id")

_FIELDS: dict[str, tuple[str, ...]] = {
    "id": (*ID_COLUMNS, "ytid", "youtube_id"),
    "path": (
        *("path", "file", "filename", "audio", "fname", "file_path", "slice_file_name"),
        *("audio_path", "audio_file", "audio_filename", "wav", "wav_path", "wav_file"),
    ),
    "label": ("class", "label", "class_name", "class_label"),
    "code": ("class_idx",),
    "confidence": ("confidence",),
    "uploader": (
        *("uploader", "username", "user", "uploader_name", "uploaded_by", "freesound_user"),
        *("author", "creator", "user_id", "uploader_id"),
    ),
    "licence": ("license", "licence", "license_name", "licence_name"),
    "title": ("title", "name", "sound_name"),
    "tags": ("tags", "keywords"),
    "description": ("description", "caption"),
    "duration": ("duration", "duration_s", "duration_sec", "duration_seconds", "seconds"),
}
"""What each thing that is read may be called, the preferred name first. They are those of BSD10k,
Freesound's API, FSD50K, ESC-50, UrbanSound8K and AudioSet."""

WEAK_LABELS = ("category", "labels", "target", "class_id", "label_id", "label_idx")
"""Columns that hold the classes where no column is called so and their values are classes."""

_IMPLIED = ("class_top",)
"""Columns that say again what another says: the family of a class."""

_MISSING = {"", "nan", "-nan", "none", "null", "n/a", "na", "<na>", "-", "#n/a", "#na"}
_LETTERS = re.compile(r"[\W_]+")
_HINT_CUTOFF = 0.75  # more than this alike and a name may be meant: usrname, but not class_top


def known(text: str) -> str:
    """The text without blanks around it; empty where it is a word for an unknown value.

    Examples:
        >>> known(" Anna "), known("NaN"), known("<NA>"), known("-")
        ('Anna', '', '', '')
    """
    text = text.strip()
    return "" if text.casefold() in _MISSING else text


def column_key(name: str) -> str:
    """A column's name without case, blanks, underscores and hyphens, by which it is found."""
    return _LETTERS.sub("", name.casefold())


def find_column(name: str, header: Sequence[str]) -> int | None:
    """The place of a column: of that very name, or else of the first that is alike."""
    if name in header:
        return header.index(name)
    keys = [column_key(column) for column in header]
    key = column_key(name)
    return keys.index(key) if key in keys else None


def find_columns(header: Sequence[str]) -> dict[str, int]:
    """The places of what is read, by what it is; the preferred name wins."""
    found = {}
    for field, names in _FIELDS.items():
        places = (find_column(name, header) for name in names)
        place = next((place for place in places if place is not None), None)
        if place is not None:
            found[field] = place
    return found


def n_known(header: Sequence[str]) -> int:
    """How many columns of a header have a known name."""
    names = {column_key(name) for names in _FIELDS.values() for name in names}
    return sum(column_key(column) in names for column in header)


def unread_columns(header: Sequence[str], read: Iterable[int]) -> tuple[str, ...]:
    """The columns that nothing reads, each with the known name that may be meant.

    Args:
        header: all columns.
        read: the places of those that are read or kept.
    """
    is_read = set(read)
    names = {column_key(header[i]) for i in is_read}
    # a family is implied by the class, where there is one
    implied = set(_IMPLIED) if names & {column_key(n) for n in _FIELDS["label"]} else set()
    return tuple(
        _with_hint(name, i)
        for i, name in enumerate(header)
        if i not in is_read and name.casefold() not in implied
    )


def _with_hint(name: str, place: int) -> str:
    key = column_key(name)
    if key in ("", "unnamed0"):
        name = name or f"column {place + 1} without a name"
        return name if place else f"{name} (row numbers as pandas writes them)"
    if key in ("fold", "split"):
        return f"{name} (--keep-columns {name} keeps it, for folds split: group:{name})"
    if key in map(column_key, WEAK_LABELS):
        return name
    meant = [known for names in _FIELDS.values() for known in names]
    if key in map(column_key, meant):
        return f"{name} (another column is preferred)"
    meant += WEAK_LABELS
    close = difflib.get_close_matches(name.casefold(), meant, n=1, cutoff=_HINT_CUTOFF)
    return f"{name} (did you mean {close[0]}?)" if close else name


def kept_columns(
    header: Sequence[str], wanted: Sequence[str], if_there: Iterable[str], source: object
) -> dict[str, int]:
    """The places of columns to keep, by the name that was asked for.

    Args:
        header: all columns.
        wanted: names that must be there.
        if_there: names that may be.
        source: the file, for the message.

    Raises:
        DatasetError: there is none of that name; the message names the nearest.
    """
    found = {}
    for name in wanted:
        place = find_column(name, header)
        if place is None:
            raise DatasetError(
                f"--keep-columns {name}: {source} has no such column: {nearest(name, header)}"
            )
        found[name] = place
    for name in if_there:
        place = find_column(name, header)
        if place is not None:
            found.setdefault(name, place)
    return found
