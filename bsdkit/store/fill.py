"""A dataset read into the clips table of a store, new or there already."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from bsdkit.dataset import Clips, FilterReport, inspect_audio, read_dataset
from bsdkit.location import as_location
from bsdkit.progress import Progress
from bsdkit.store.changes import compare_tables
from bsdkit.store.clips import read_clips
from bsdkit.store.store import Store
from bsdkit.taxonomy import Taxonomy

__all__ = ["fill_store", "fill_table", "open_store", "read_for_store"]


def open_store(
    data: Path | None,
    store: Path,
    taxonomy: Taxonomy | str,
    progress: Progress,
    *,
    keep_columns: Sequence[str] = (),
    is_replacing: bool = False,
) -> tuple[Store, Clips]:
    """The store of a dataset, made where it is not there; or one that is there; and its clips.

    Args:
        data: the dataset; None where the store has its clips table already.
        store: its folder.
        taxonomy: see `read_dataset`.
        progress: who is told what happens.
        keep_columns: see `read_for_store`.
        is_replacing: see `Store.create`.

    Raises:
        DatasetError: the dataset cannot be read.
        StoreError: there is no store, or it holds other clips.
    """
    if data is None:
        opened = Store(store)
        return opened, opened.clips
    return fill_store(
        data, store, taxonomy, progress, keep_columns=keep_columns, is_replacing=is_replacing
    )


def fill_store(
    data: Path,
    store: Path,
    taxonomy: Taxonomy | str,
    progress: Progress,
    *,
    keep_columns: Sequence[str] = (),
    is_replacing: bool = False,
) -> tuple[Store, Clips]:
    """Reads a dataset, says what was left out, and writes the clips table of a store.

    Args:
        data: the dataset.
        store: the store's folder; made if it is not there.
        taxonomy: see `read_dataset`.
        progress: who is told what happens.
        keep_columns: see `read_for_store`.
        is_replacing: see `Store.create`.

    Raises:
        DatasetError: the dataset cannot be read.
        StoreError: see `Store.create`.
    """
    clips, filtered = read_for_store(data, store, taxonomy, keep_columns)
    for line in filtered.lines():
        progress.line(line)
    with progress:
        return fill_table(clips, store, progress, is_replacing=is_replacing)


def read_for_store(
    data: Path, store: Path, taxonomy: Taxonomy | str, keep_columns: Sequence[str] = ()
) -> tuple[Clips, FilterReport]:
    """A dataset with the columns to keep: those that are named, and those that a store has kept.

    Raises:
        DatasetError: the dataset cannot be read, or lacks a column that is named.
    """
    old = _table_of(store)
    return read_dataset(
        data, taxonomy, keep_columns=keep_columns, keep_if_there=old.columns if old else ()
    )


def fill_table(
    clips: Clips, store: Path, progress: Progress, *, is_replacing: bool = False
) -> tuple[Store, Clips]:
    """Reads the audio files' digests and lengths, and writes the clips table of a store.

    Raises:
        StoreError: see `Store.create`.
    """
    clips = inspect_audio(
        clips,
        n_threads=os.cpu_count() or 1,
        progress=lambda n: progress.stage("reading", n, len(clips)),
    )
    old = _table_of(store)
    opened = Store.create(store, clips, is_replacing=is_replacing)
    if old is not None:
        for line in compare_tables(old, clips).lines(store):
            progress.line(line)
        if old.taxonomy.name != clips.taxonomy.name:
            progress.line(
                f"the taxonomy of {store} changes from {old.taxonomy.name} to "
                f"{clips.taxonomy.name}: scores of runs before and after cannot be compared"
            )
    return opened, clips


def _table_of(store: Path) -> Clips | None:
    table = as_location(store) / "clips.h5"
    return read_clips(table) if table.is_file() else None
