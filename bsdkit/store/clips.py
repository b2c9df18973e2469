"""The clips table of a store: ``clips.h5``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

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
        for name in _SHORT + _LONG:
            write_texts(file, name, getattr(clips, name).tolist())
        file.create_dataset("label", data=clips.labels)
        file.create_dataset("confidence", data=clips.confidence)
        file.create_dataset("duration", data=clips.duration)


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
            audio=[None] * len(ids),
            **{name: read_texts(file, name) for name in _SHORT + _LONG},
        )


def same_table(a: Clips, b: Clips) -> bool:
    """Whether two tables hold the same rows in the same order, paths apart."""
    if len(a) != len(b) or a.taxonomy != b.taxonomy:
        return False
    columns = ("ids", "labels", "sha256", *_SHORT, *_LONG)
    return all(np.array_equal(getattr(a, c), getattr(b, c)) for c in columns) and all(
        np.array_equal(getattr(a, c), getattr(b, c), equal_nan=True)
        for c in ("confidence", "duration")
    )
