"""A folder of class folders as clips."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from bsdkit.dataset.clips import Clips, make_clips
from bsdkit.dataset.folders import AUDIO_SUFFIXES, is_split_name, read_folder
from bsdkit.dataset.report import LABELS_OF_ONES_OWN, FilterReport, alike_classes
from bsdkit.errors import DatasetError, UnknownClass, nearest
from bsdkit.location import readable
from bsdkit.taxonomy import Taxonomy, load_taxonomy

__all__ = ["read_class_folders"]

_SPLIT = "split"


def read_class_folders(
    root: Path, taxonomy: Taxonomy | str, keep: Sequence[str]
) -> tuple[Clips, FilterReport]:
    """Clips of ``root/<class>/**`` or, without class folders, unlabelled files in root.

    Where all folders are parts of a dataset, such as ``train`` and ``test``, the classes are
    those below them, and the part is the column ``split``.
    """
    contents = read_folder(root)
    files = contents.audio
    if not files:
        what = "; ".join(contents.lost_folders()[:3] + contents.notes())
        raise DatasetError(
            f"{root} holds no audio ({', '.join(AUDIO_SUFFIXES)}) and no metadata/*_metadata.csv"
            + (f": {what}" if what else "")
        )
    relative = [f.relative_to(root) for f in files]
    _check_not_mixed(root, [f.parts for f in relative])
    parts = [f.parts[:-1] for f in relative]
    split_at = next(
        (i for i in (0, 1) if all(is_split_name("".join(p[i : i + 1])) for p in parts)), -1
    )
    if split_at == 0:
        for top in sorted({p[0] for p in parts}):
            inside = [f.parts[1:] for f in relative if f.parts[0] == top]
            _check_not_mixed(root / top, inside)
    level = 1 if split_at == 0 else 0
    names = [_label_of_folder(p[level]) if len(p) > level else "" for p in parts]
    kept_names = [_SPLIT] if split_at >= 0 else []
    for name in keep:
        if name not in kept_names:
            raise DatasetError(
                f"--keep-columns {name}: {root} is a folder without a table: "
                f"{nearest(name, kept_names)}"
            )
    if taxonomy == "flat":
        taxonomy = Taxonomy.flat(sorted(set(names) - {""}) or ["unlabelled"])
    tree = load_taxonomy(taxonomy) if isinstance(taxonomy, str) else taxonomy
    dropped, kept = [], []
    for file, name, short in zip(files, names, relative, strict=True):
        clip = readable(short.as_posix())
        reason = tree.reason_to_drop(name, -1)
        if reason:
            dropped.append((clip, name, reason))
            continue
        try:
            position = tree.index(name) if name else -1
        except UnknownClass as error:
            folder = root.joinpath(*short.parts[: level + 1])
            raise DatasetError(f"folder {folder}: {error}; {LABELS_OF_ONES_OWN}") from None
        split = {_SPLIT: readable(short.parts[split_at])} if split_at >= 0 else {}
        kept.append(
            {
                "id": clip,
                "label": position,
                "title": readable(file.stem),
                "audio": file,
                "kept": split,
            }
        )
    if not kept:
        raise DatasetError(f"{root} has no clip to keep: {len(dropped)} dropped")
    notes = [*contents.lost_folders(level + 1)]
    if split_at >= 0:
        counts = Counter(readable(p[split_at]) for p in parts)
        listed = ", ".join(f"{part}/ ({n} files)" for part, n in sorted(counts.items()))
        where = "in" if split_at == 0 else "above"
        notes.insert(
            0, f"{listed} are read as the column {_SPLIT}, the folders {where} them as classes"
        )
    elif len(set(names)) == 1 and all(len(p) > 1 for p in parts):
        inner = sorted({readable(p[1]) for p in parts})
        notes.insert(
            0,
            f"all clips are of the one class {names[0]!r}: the folders in it are no classes "
            f"({', '.join(inner[:3])}); if they are, give {root / parts[0][0]}",
        )
    if contents.tables():
        notes.append(f"{contents.tables()} tables here are not read: give the file itself")
    notes += [*alike_classes(tree), *contents.notes()]
    return make_clips(kept, tree), FilterReport(str(root), len(files), tuple(dropped), tuple(notes))


def _label_of_folder(name: str) -> str:
    return unicodedata.normalize("NFC", readable(name))


def _check_not_mixed(root: Path, parts: list[tuple[str, ...]]) -> None:
    """Refuses a folder that holds both files and folders of them."""
    if {len(p) > 1 for p in parts} == {True, False}:
        loose = next(p[0] for p in parts if len(p) == 1)
        raise DatasetError(
            f"{root} mixes class folders with loose files such as {loose}; "
            "move them into a class folder"
        )
