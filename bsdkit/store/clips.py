"""The clips table of a store: ``clips.h5``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bsdkit.dataset import Clips
from bsdkit.errors import CorruptStore
from bsdkit.store.files import (
    atomic_h5,
    open_h5,
    read_strings,
    read_texts,
    write_strings,
    write_texts,
)
from bsdkit.taxonomy import BST, Taxonomy, TaxonomyClass

__all__ = ["read_clips", "same_table", "write_clips"]

FORMAT = "bsdkit-clips-1"
_SHORT = ("uploader", "licence")
_LONG = ("title", "tags", "description")


def write_clips(path: Path, clips: Clips) -> None:
    """Writes a clips table with its taxonomy, without the paths of the audio.

    Raises:
        StoreError: the disk is full or the folder cannot be written.
    """
    with atomic_h5(path) as file:
        file.attrs["format"] = FORMAT
        file.attrs["taxonomy"] = clips.taxonomy.name
        file.attrs["classes"] = json.dumps([vars(c) for c in clips.taxonomy.classes])
        write_strings(file, "id", clips.ids.tolist())
        write_strings(file, "sha256", clips.sha256.tolist())
        if not np.array_equal(clips.sound, clips.sha256):
            write_strings(file, "sound", clips.sound.tolist())
        for name in _SHORT + _LONG:
            write_texts(file, name, getattr(clips, name).tolist())
        file.create_dataset("label", data=clips.labels)
        file.create_dataset("confidence", data=clips.confidence)
        file.create_dataset("duration", data=clips.duration)
        if clips.unread:
            file.attrs["unread"] = json.dumps(clips.unread)
        for i, (name, values) in enumerate(clips.columns.items()):
            kept = file.create_group(f"columns/{i}")  # a name of the user's may hold a slash
            kept.attrs["name"] = name
            if values.dtype == object:
                write_texts(kept, "values", values.tolist())
            else:
                kept.create_dataset("values", data=values)


def read_clips(path: Path) -> Clips:
    """The clips table in a file that `write_clips` wrote.

    Raises:
        CorruptStore: it is no clips table.
    """
    with open_h5(path) as file:
        if file.attrs.get("format") != FORMAT:
            raise CorruptStore(f"{path} is an HDF5 file but no clips table of bsdkit")
        classes = [TaxonomyClass(**c) for c in json.loads(file.attrs["classes"])]
        taxonomy = Taxonomy(str(file.attrs["taxonomy"]), classes)
        ids = read_strings(file, "id")
        return Clips(
            ids=ids,
            labels=file["label"][()],
            taxonomy=BST if taxonomy == BST else taxonomy,
            confidence=file["confidence"][()],
            duration=file["duration"][()],
            sha256=read_strings(file, "sha256"),
            # they are the same where no two files hold equal sounds, or before sounds were compared
            sound=read_strings(file, "sound" if "sound" in file else "sha256"),
            columns=_read_columns(file["columns"]) if "columns" in file else {},
            audio=[None] * len(ids),
            unread=tuple(json.loads(file.attrs.get("unread", "[]"))),
            uploader=read_texts(file, "uploader"),
            licence=read_texts(file, "licence"),
            title=read_texts(file, "title"),
            tags=read_texts(file, "tags"),
            description=read_texts(file, "description"),
        )


def _read_columns(groups: Any) -> dict[str, npt.NDArray[Any]]:
    columns: dict[str, npt.NDArray[Any]] = {}
    for i in range(len(groups)):
        kept = groups[str(i)]
        is_text = "utf8" in kept["values"] if hasattr(kept["values"], "keys") else False
        values = read_texts(kept, "values") if is_text else kept["values"][()]
        columns[str(kept.attrs["name"])] = values
    return columns


def same_table(a: Clips, b: Clips) -> bool:
    """Whether two tables hold the same rows in the same order, paths apart."""
    if len(a) != len(b) or a.taxonomy != b.taxonomy or a.unread != b.unread:
        return False
    names = ("ids", "labels", "sha256", "sound", "confidence", "duration", *_SHORT, *_LONG)
    pairs = [(getattr(a, name), getattr(b, name)) for name in names]
    pairs += [(values, b.columns.get(name)) for name, values in a.columns.items()]
    return list(a.columns) == list(b.columns) and all(_is_equal(*pair) for pair in pairs)


def _is_equal(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> bool:
    return a.dtype.kind == b.dtype.kind and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
