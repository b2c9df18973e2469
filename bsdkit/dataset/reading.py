"""Datasets on disk as clips tables.

Three layouts are read: the folders of BSD10k and BSD35k-CS (``audio/<id>.wav`` beside
``metadata/*_metadata.csv``), a folder of class folders, and a plain CSV. The row order is
that of the metadata after the filter, and every array of the project follows it. Whatever is
there and not used is named in the report, with its count.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from bsdkit.dataset.class_folders import read_class_folders
from bsdkit.dataset.clips import Clips
from bsdkit.dataset.metadata import TableReader
from bsdkit.dataset.report import FilterReport
from bsdkit.errors import DatasetError
from bsdkit.location import as_location
from bsdkit.taxonomy import Taxonomy

__all__ = ["read_dataset"]


def read_dataset(
    path: Path | str,
    taxonomy: Taxonomy | str = "bst",
    *,
    keep_columns: Sequence[str] = (),
    keep_if_there: Iterable[str] = (),
) -> tuple[Clips, FilterReport]:
    """The clips of a dataset on disk, and the report of what was left out.

    Args:
        path: a folder in BSD layout, a folder of class folders, a folder of audio files
            (unlabelled), or a CSV with an id column, optionally ``path`` and ``class``; or
            the URL of one. A ``path`` in the CSV may be a URL too.
        taxonomy: a taxonomy, ``bst``, the path of a taxonomy CSV, or ``flat`` to take the
            labels found, sorted, as classes that are their own families.
        keep_columns: further columns of the metadata to keep in `Clips.columns`.
        keep_if_there: more of them, which may be absent.

    Raises:
        DatasetError: nothing to read, broken quoting, a missing column, a duplicate id, an
            unknown class, or a class that contradicts its code; the message names the line.
    """
    path = as_location(path)
    if path.is_file():
        return TableReader(path, path.parent).read(taxonomy, keep_columns, keep_if_there)
    if not path.is_dir():
        raise DatasetError(f"no dataset at {path}: give a folder or a CSV file")
    tables = path / "metadata"
    if not tables.is_dir() and any((path / "meta").glob("*.csv")):
        tables = path / "meta"  # ESC-50
    if tables.is_dir():
        table = _metadata_file(tables)
        return TableReader(table, path).read(taxonomy, keep_columns, keep_if_there)
    return read_class_folders(path, taxonomy, keep_columns)


def _metadata_file(folder: Path) -> Path:
    found = sorted(folder.glob("*_metadata.csv")) or sorted(folder.glob("*.csv"))
    found = [file for file in found if not file.name.startswith(".")]
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise DatasetError(
            f"{folder} must hold one *_metadata.csv, found: {names}; "
            "give the CSV file itself instead of the folder"
        )
    return found[0]
